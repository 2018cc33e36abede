#!/usr/bin/env python3
"""Mutated captures: whatever is broken must end in one line, never in a traceback, a hang or a wrong result.

Files of small captures of all layouts are changed at random: bits flipped, bytes replaced, cut out and doubled, ends
cut off, numbers and words in text replaced by hostile ones. Each session then goes through ingest and cleaning as in a
run, in a process with a memory limit and a clock. What is cleaned is held against the whole capture's result.

    python benchmarks/mutations.py [--quick] [--json FILE] [--work DIR] [--count 500] [--processes 2]

A killed run goes on in the same ``--work``; give another one after a change of the code.

Counted are: ``refused`` (ingest says what is wrong), ``rejected`` (cleaning does), ``harmless`` (the read content is
the same, or the cleaned surface is), ``left_out`` (the surface is the same without a view, which is named); and the
faults: ``different`` (another surface was published), ``traceback``, ``hang``, ``memory``, ``no_line``.
"""

from __future__ import annotations

import argparse
import collections
import hashlib
import json
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import traceback
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from types import FrameType

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # before this folder, whose files are named like packages

from benchmarks.ict import CAPTURE_TOOL, HEADS, require_ict
from benchmarks.truth import Surface, motion_onto
from pipeline.config import preset_config
from pipeline.execute import execute_in
from pipeline.ingest import ingest_session
from pipeline.opening import create_workspace, open_workspace
from pipeline.workspace import Workspace
from registration.mesh import Mesh, mesh_from_ply, sample_surface
from registration.template import Template
from registration.template_import import import_ict
from storage.errors import NphmError

KEY = "001/neutral_open"
SECONDS = 240
MEMORY_BYTES = 12 * 1024**3
SAME_MM = 1.5
POINTS = 20000
FAULTS = ("different", "traceback", "hang", "memory", "no_line")
TARGETS = {
    "depth/session.json": 70,
    "depth/transforms.json": 110,
    "depth/depth": 80,
    "depth/color": 40,
    "clouds/views": 80,
    "mesh/scan.ply": 60,
    "obj/scan.obj": 60,
}
"""Files that are changed, and how often of 500."""
HOSTILE = [
    b"0", b"-1", b"1e308", b"1e-308", b"NaN", b"Infinity", b"null", b"true", b'""', b"[]", b"{}", b"9" * 400, b"1,5",
    b'"../../x"', b'"/etc/passwd"', b'"\\u0000"', b'"\\ud800"', b"1e400", b"-0", b"4294967296", b"2147483648",
]  # fmt: skip


def mutated(data: bytes, rng: np.random.Generator, text: bool) -> bytes:
    """A file with one to four places changed; half of the files gently, so that they stay readable."""
    changed = bytearray(data)
    gentle = rng.random() < 0.5
    for _ in range(int(rng.integers(1, 5))):
        if len(changed) < 8:
            break
        at = int(rng.integers(len(changed)))
        length = int(rng.integers(1, 40))
        kind = rng.integers(7 if text else 5)
        if gentle and text:
            places = [k for k in range(at, min(at + 400, len(changed))) if chr(changed[k]).isdigit()]
            changed[places[0] if places else at] = ord("0") + int(rng.integers(10))
        elif gentle or kind == 3:
            count = int(rng.integers(1, 5))
            changed[at : at + count] = rng.bytes(len(changed[at : at + count]))
        elif kind == 0:
            changed[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del changed[at : at + length]
        elif kind == 2:
            changed[at:at] = changed[at : at + length]
        elif kind == 4 and rng.random() < 0.3:
            del changed[at:]
        elif text:
            end = at + 1
            while end < len(changed) and changed[end] not in b" ,:\n]}":
                end += 1
            changed[at:end] = HOSTILE[int(rng.integers(len(HOSTILE)))]
    return bytes(changed)


def make_captures(work: Path, template: Path) -> None:
    """Small captures in all layouts, a mesh in text among them, and the template."""
    for name, layout, size in (
        ("depth", "depth", "128x96"),
        ("clouds", "clouds", "128x96"),
        ("mesh", "mesh", "160x120"),
    ):
        if not (work / name / "session/session.json").exists():
            command = [sys.executable, str(CAPTURE_TOOL), str(work / name), "--subjects", "1"]
            command += [
                "--expressions",
                "neutral_open",
                "--views",
                "12",
                "--size",
                size,
                "--format",
                layout,
                "--seed",
                "5",
            ]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    if not (work / "obj").exists():
        shutil.copytree(work / "mesh", work / "obj")
        file = work / "obj/session" / KEY / "scan.ply"
        mesh = mesh_from_ply(file.read_bytes())
        lines = [f"v {x:.6f} {y:.6f} {z:.6f}" for x, y, z in mesh.vertices.tolist()]
        lines += [f"f {a + 1} {b + 1} {c + 1}" for a, b, c in mesh.faces.tolist()]
        file.with_suffix(".obj").write_text("\n".join([*lines, ""]))
        file.unlink()
    if not template.exists():
        template.write_bytes(import_ict(HEADS).to_bytes())


def choose_file(session: Path, target: str, rng: np.random.Generator) -> Path:
    """The file of a target that is to be changed."""
    name = target.partition("/")[2]
    if name == "session.json":
        return session / name
    place = session / KEY / name
    files = sorted(place.iterdir()) if place.is_dir() else [place]
    return files[int(rng.integers(len(files)))]


class _TooLong(BaseException):
    """A step took longer than it may."""


def _ring(number: int, frame: FrameType | None) -> None:
    raise _TooLong


def take(workspace: Workspace, session: Path) -> tuple[str, str, Mesh | None]:
    """Ingest and clean; what it came to, the line that says so, and the surface."""
    report = ingest_session(workspace, session)
    made = [workspace.manifest("ingest", key) for key in report.rejected]
    lines = [*report.faults, *(refusal.line for refusal in report.refused)]
    lines += [reason for manifest in made if manifest is not None for reason in manifest.reasons]
    found = workspace.manifest("ingest", KEY)
    if found is None or not found.accepted:
        return "refused", lines[0] if lines else "", None
    execute_in(workspace, "clean", KEY)
    cleaned = workspace.manifest("clean", KEY)
    assert cleaned is not None
    if not cleaned.accepted:
        return "rejected", cleaned.reasons[0], None
    left_out = cleaned.extra("left_out")
    mesh = mesh_from_ply(workspace.read(cleaned, "mesh.ply"))
    return ("left_out" if left_out else "harmless"), "; ".join(left_out), mesh


def distance_mm(one: Mesh, other: Mesh) -> float:
    """95th percentile of the distance between two surfaces, the worse of both directions.

    One rigid motion is taken out first: told poses fix the world to some millimetres alone, and a changed one moves it.
    What only a view that was left out had seen is missing, and counts too.
    """
    there = Surface(other)
    here = one.transformed(motion_onto(one, there))
    points = [sample_surface(mesh, POINTS, np.random.default_rng(0))[0] for mesh in (here, other)]
    to = (there, Surface(here))
    return max(float(np.percentile(surface.closest(p)[0], 95)) for p, surface in zip(points, to, strict=True))


def try_one(work: Path, target: str, seed: int) -> dict[str, str | float]:
    """Change one file and take the session through."""
    kept = work / "rows" / f"{hashlib.sha256(f'{target} {seed}'.encode()).hexdigest()[:16]}.json"
    if kept.exists():
        row: dict[str, str | float] = json.loads(kept.read_text())
        return row
    layout = target.partition("/")[0]
    rng = np.random.default_rng(seed)
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, MEMORY_BYTES))
    signal.signal(signal.SIGALRM, _ring)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        session = Path(folder) / "session"
        shutil.copytree(work / layout / "session", session)
        file = choose_file(session, target, rng)
        data = file.read_bytes()
        changed = mutated(data, rng, file.suffix in (".json", ".obj"))
        file.write_bytes(changed)
        template = Template.from_bytes((work / "template.npz").read_bytes(), "template.npz")
        workspace = create_workspace(f"{folder}/workspace", preset_config("demo"), template)
        whole = open_workspace(str(work / layout / "workspace"))
        row = {"target": target, "seed": seed, "file": file.name}
        signal.alarm(SECONDS)
        try:
            verdict, line, mesh = _taken(workspace, session, whole)
        except NphmError as error:  # such a line stops a run
            verdict, line, mesh = "refused", str(error), None
        except MemoryError:
            verdict, line, mesh = "memory", "", None
        except _TooLong:
            verdict, line, mesh = "hang", traceback.format_exc(), None
        except Exception:  # noqa: BLE001  what is counted here
            verdict, line, mesh = "traceback", traceback.format_exc(), None
        signal.alarm(0)
        if mesh is not None:
            of_whole = whole.manifest("clean", KEY)
            assert of_whole is not None
            row["distance_mm"] = distance_mm(mesh, mesh_from_ply(whole.read(of_whole, "mesh.ply")))
            verdict = verdict if row["distance_mm"] < SAME_MM else "different"
        if verdict in ("refused", "rejected") and not (line and line.isprintable() and len(line) < 1600):
            verdict = "no_line"
        row |= {"verdict": verdict, "line": line.replace(folder, "")}
    kept.parent.mkdir(exist_ok=True)
    kept.write_text(json.dumps(row))
    return row


def _taken(workspace: Workspace, session: Path, whole: Workspace) -> tuple[str, str, Mesh | None]:
    """As ``take``, without cleaning again what reads as the whole capture does."""
    ingest_session(workspace, session)
    found, before = workspace.manifest("ingest", KEY), whole.manifest("ingest", KEY)
    assert before is not None
    if found is not None and found.extra("content_digest") == before.extra("content_digest"):
        return "harmless", "", None
    return take(workspace, session)


def main() -> None:
    """Run all mutations and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="70 mutations instead of 500")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--processes", type=int, default=2)
    arguments = parser.parse_args()
    require_ict()
    work = arguments.work.absolute() / "mutations"
    work.mkdir(parents=True, exist_ok=True)
    make_captures(work, work / "template.npz")
    template = Template.from_bytes((work / "template.npz").read_bytes(), "template.npz")
    for layout in ("depth", "clouds", "mesh", "obj"):
        shutil.rmtree(work / layout / "workspace", ignore_errors=True)
        workspace = create_workspace(str(work / layout / "workspace"), preset_config("demo"), template)
        verdict, line, _ = take(workspace, work / layout / "session")
        if verdict != "harmless":
            raise SystemExit(f"the whole capture {layout} is {verdict}: {line}")
    count = 70 if arguments.quick else arguments.count
    jobs = [(target, seed) for target, often in TARGETS.items() for seed in range(max(1, often * count // 500))]
    order = np.random.default_rng(0).permutation(len(jobs))
    table: dict[str, collections.Counter[str]] = {target: collections.Counter() for target in TARGETS}
    with ProcessPoolExecutor(arguments.processes, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(try_one, work, *jobs[k]) for k in order]
        for done, future in enumerate(futures, 1):
            row = future.result()
            table[str(row["target"])][str(row["verdict"])] += 1
            if row["verdict"] in FAULTS:
                print(
                    f"{row['verdict']}: {row['target']} seed {row['seed']} ({row['file']}): {row['line']}", flush=True
                )
            if done % 25 == 0:
                print(f"{done} of {len(futures)}", file=sys.stderr, flush=True)
    verdicts = ["refused", "rejected", "left_out", "harmless", *FAULTS]
    print(f"{'file':24}" + "".join(f"{verdict:>11}" for verdict in verdicts))
    for target, counts in table.items():
        print(f"{target:24}" + "".join(f"{counts[verdict]:11d}" for verdict in verdicts))
    total = sum(table.values(), collections.Counter[str]())
    print(f"{'all':24}" + "".join(f"{total[verdict]:11d}" for verdict in verdicts))
    if arguments.json is not None:
        figures = {"mutations": len(jobs), **{verdict: total[verdict] for verdict in verdicts}}
        arguments.json.write_text(json.dumps(figures, indent=1))
    sys.exit(1 if any(total[verdict] for verdict in FAULTS) else 0)


if __name__ == "__main__":
    main()
