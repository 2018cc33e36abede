#!/usr/bin/env python3
"""The service under load and under fire.

scale      many tiny scans through ingest, plan, status and steps that write a small fixed output: milliseconds a scan
           and step, a rerun with nothing changed, three scans changed, peak memory of flow and server
dask       real cleaning and registration on two Dask workers of one thread over one
kills      SIGKILL of flow, worker, server, Dask worker and training at random moments: does each run end in the
           undisturbed run's digests, by the engine's own retries or one rerun?
two days   48 hours at speed: a session an hour, nightly retraining, bad scans, withdrawals, one release; is every scan
           accounted for exactly once?

    python benchmarks/operations.py [--quick] [--json FILE] [--work DIR] [--only scale dask kills days]
"""

from __future__ import annotations

import argparse
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))  # before this folder, whose files are named like packages

from benchmarks.operation_steps import STEPS
from pipeline.config import preset_config
from pipeline.ingest import ingest_session
from pipeline.opening import create_workspace, open_workspace
from pipeline.pseudonyms import Pseudonyms
from pipeline.rejected import list_rejected
from pipeline.release_build import build_release
from pipeline.rig import RigConfig, simulate
from pipeline.snapshot import take_snapshot
from pipeline.withdrawal import withdraw_subject
from registration.procedural_head import head_template
from storage.ply import write_ply
from storage.store import open_store

SMALL = "benchmarks.operation_steps:STEPS"
STEPS_OF_A_SCAN = 4
RUN = """
import json, resource, sys, time
from flows.engine import engine, quiet_engine, _own_server
from flows.progress import LineProgress
from flows.run import bring_up_to
import flows.process, pipeline.opening
until, url, steps, dask, workers = sys.argv[1:6]
began = time.monotonic()
result = bring_up_to(url, until, LineProgress(), int(workers), steps, dask or None)
seconds = time.monotonic() - began
server = _own_server.cache_info().currsize and _own_server().pid
peak = 0
if server:
    told = dict(line.split(":", 1) for line in open(f"/proc/{server}/status") if ":" in line)
    peak = int(told["VmHWM"].split()[0]) / 1024
print(json.dumps({"seconds": seconds, "cost": result.cost, "server_mib": peak,
                  "flow_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}))
"""


def start(
    url: str, until: str = "train", steps: str = SMALL, dask: str = "", workers: int = 2, **env: str
) -> subprocess.Popen[str]:
    """Start a run in a process of its own."""
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"} | env
    return subprocess.Popen(
        [sys.executable, "-c", RUN, until, url, steps, dask, str(workers)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        cwd=ROOT,
    )


def finish(process: subprocess.Popen[str]) -> dict[str, Any]:
    """Wait for a run; what it told."""
    out, told = process.communicate()
    if process.returncode:
        raise SystemExit(f"a run ended with {process.returncode}:\n{told[-3000:]}")
    document: dict[str, Any] = json.loads(out.splitlines()[-1])
    return document


def make_workspace(folder: Path) -> str:
    """A workspace with nothing in it."""
    shutil.rmtree(folder, ignore_errors=True)
    return create_workspace(str(folder), preset_config("demo"), head_template()).url


def tiny_session(root: Path, subjects: int, expressions: int) -> Path:
    """Real but tiny scans, 4 views of 64x48: one that the rig made, each copy with noise of its own."""
    if (root / "session.json").is_file():
        return root
    config = RigConfig(views=4, width=64, height=48, field_mm=400)
    model = simulate(root.with_name(f"{root.name}-model"), 1, ["neutral"], 0, config)
    scan = model / "001/neutral"
    depths = [np.asarray(Image.open(file)) for file in sorted((scan / "depth").iterdir())]
    rng = np.random.default_rng(0)
    names = ["neutral", *(f"e{number:02d}" for number in range(1, expressions))]
    for subject in range(1, subjects + 1):
        for name in names:
            folder = root / f"{subject:03d}" / name
            (folder / "depth").mkdir(parents=True, exist_ok=True)
            shutil.copytree(scan / "color", folder / "color", dirs_exist_ok=True)
            shutil.copy(scan / "transforms.json", folder)
            for number, depth in enumerate(depths):
                noisy = np.where(depth > 0, depth + rng.integers(0, 20, depth.shape), 0).astype(np.uint16)
                packed = io.BytesIO()
                Image.fromarray(noisy).save(packed, "PNG")
                (folder / f"depth/{number:03d}.png").write_bytes(packed.getvalue())
    note = json.loads((model / "session.json").read_text())
    about = note["subjects"][0]
    note["subjects"] = [about | {"id": f"{n:03d}", "expressions": names} for n in range(1, subjects + 1)]
    (root / "session.json").write_text(json.dumps(note))
    return root


def scale(work: Path, quick: bool) -> dict[str, float]:
    """The paper's number of scans; quick: one in fifty."""
    subjects, expressions = (5, 23) if quick else (255, 23)
    session = tiny_session(work / f"tiny-{subjects}x{expressions}", subjects, expressions)
    scans = subjects * expressions
    url = make_workspace(work / "scale")
    nphm = [sys.executable, "-m", "flows"]
    began = time.monotonic()
    subprocess.run([*nphm, "ingest", session, "-w", url, "-q"], check=True, cwd=ROOT)
    for verb in ("plan", "status"):
        subprocess.run([*nphm, verb, "-w", url, "-q"], check=True, cwd=ROOT)
    first = finish(start(url, "train"))
    milliseconds = 1000 * (time.monotonic() - began) / (scans * STEPS_OF_A_SCAN)
    rerun = finish(start(url, "train"))
    for name in ("neutral", "e01", "e02"):
        file = session / "001" / name / "depth/000.png"
        depth = np.asarray(Image.open(file)).copy()
        depth[depth > 0] += 1
        packed = io.BytesIO()
        Image.fromarray(depth).save(packed, "PNG")
        file.write_bytes(packed.getvalue())
    third = finish(start(url, "sample"))
    redone = {step: int(cost["results"]) for step, cost in third["cost"].items()}
    shutil.rmtree(session)  # the next call needs unchanged scans
    return {
        "scans": scans,
        "scan_step_ms": milliseconds,
        "rerun_seconds": rerun["seconds"],
        "clean_redone_of_3": redone.get("clean", 0),
        "flow_mib": first["flow_mib"],
        "server_mib": first["server_mib"],
    }


def dask(work: Path, quick: bool) -> dict[str, float]:
    """Two workers over one, from the start of the first step to the end of the last."""
    subjects = 2 if quick else 4
    captures = work / f"dask-captures-{subjects}"
    simulate(captures, subjects, 3, 0)
    seconds = {}
    for count in (1, 2):
        url = make_workspace(work / f"dask-{count}")
        ingest_session(open_workspace(url), captures / "session")
        told = finish(start(url, "register", "pipeline.steps:STEPS", "local", count))
        log = [path for path in open_workspace(url).store.list("runs") if path.endswith(".jsonl")][-1]
        lines = [json.loads(line) for line in open_workspace(url).store.get(log).splitlines()]
        ended = [datetime.strptime(line["time"], "%Y%m%dT%H%M%SZ").timestamp() for line in lines]
        seconds[count] = max(ended) - min(end - line["seconds"] for end, line in zip(ended, lines, strict=True))
        print(f"dask: {count} workers: {seconds[count]:.0f} s for {len(lines)} results, {told['seconds']:.0f} s in all")
    return {"dask_speed": seconds[1] / seconds[2]}


def digests(url: str) -> dict[str, bytes]:
    """The bytes of every result."""
    store = open_workspace(url, STEPS).store
    paths = [path for spec in STEPS.values() if spec.name != "ingest" for path in store.list(spec.folder)]
    return {path: store.get(path) for path in paths if path != "models/latest.json"}


def _children(pid: int) -> list[tuple[int, str]]:
    """A process's children and theirs, with their command lines."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        try:
            own = [int(child) for child in task.read_text().split()]
        except OSError:
            continue
        for child in own:
            try:
                line = Path(f"/proc/{child}/cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue
            found += [(child, line), *_children(child)]
    return found


def _victim(running: subprocess.Popen[str], target: str) -> int | None:
    if target == "flow":
        return running.pid
    marks = {"worker": "flows.worker", "training": "flows.worker", "server": "flows.server", "dask": "multiprocessing"}
    own = [pid for pid, line in _children(running.pid) if marks[target] in line]
    return random.choice(own) if own else None


def kills(work: Path, quick: bool) -> dict[str, float]:
    """Each target some times, each at a random moment of the steps; for training, once that has begun."""
    times = 1 if quick else 10
    session = tiny_session(work / "kills-session", 2, 3)
    calm = make_workspace(work / "kills-calm")
    ingest_session(open_workspace(calm, STEPS), session)
    slow = {"OPERATION_STEP_SECONDS": "0.5"}
    finish(start(calm, **slow))
    wanted = digests(calm)
    random.seed(0)
    equal = total = 0
    for target in ("flow", "worker", "server", "dask", "training"):
        for number in range(times):
            url = make_workspace(work / "kills-shaken")
            ingest_session(open_workspace(url, STEPS), session)
            running = start(url, dask="local" if target == "dask" else "", **slow)
            assert running.stderr is not None
            mark = "train:" if target == "training" else "clean:"
            for line in running.stderr:
                if line.startswith(mark):
                    break
            time.sleep(random.uniform(0, 0.5 if target == "training" else 4))
            victim = _victim(running, target)
            if victim is not None:
                os.kill(victim, signal.SIGKILL)
            running.communicate()
            if running.returncode:
                finish(start(url, **slow))
            same = digests(url) == wanted
            equal, total = equal + same, total + 1
            print(f"kills: {target} {number}: {'equal' if same else 'DIFFERS'}, victim {victim}", flush=True)
    return {"kills": total, "kills_equal_of_50": float(equal)}


def days(work: Path, quick: bool) -> dict[str, float]:
    """A session an hour for two days; quick: for eight hours."""
    hours = 8 if quick else 48
    os.environ["OPERATION_BAD_SHARE"] = "0.05"
    url = make_workspace(work / "days")
    inbox = work / "days-inbox"
    shutil.rmtree(inbox, ignore_errors=True)
    rng = np.random.default_rng(0)
    delivered: list[str] = []
    withdrawn: list[str] = []
    for hour in range(hours):
        subject = f"p{hour:03d}"
        session = _ball_session(inbox / f"hour-{hour:02d}", subject, rng)
        delivered += [f"{subject}/{name}" for name in ("neutral", "smile", "frown", "open")]
        ingest_session(open_workspace(url, STEPS), session)
        night = hour % 24 == 23 or hour == hours - 1
        finish(start(url, "train" if night else "sample"))
        if hour in (hours // 3, hours // 2):
            withdraw_subject(open_workspace(url, STEPS), f"p{hour // 2:03d}", reason="asked for it", on="2026-01-01")
            withdrawn.append(f"p{hour // 2:03d}")
        print(f"days: hour {hour}", flush=True)
    finish(start(url, "train"))
    workspace = open_workspace(url, STEPS)
    shutil.rmtree(work / "days-release", ignore_errors=True)
    built = build_release(workspace, "1.0.0", open_store(str(work / "days-release")), ("clean",))
    rejected = Counter(line["key"] for line in list_rejected(take_snapshot(workspace)))
    # A withdrawn subject's scans are looked for first: of them nothing else may be told.
    names = Pseudonyms.of(workspace.store)
    keys = {names.scan(key): key for key in delivered}
    fates = Counter(keys[scan] for scan in built.scans) + rejected
    once = 0
    for key in delivered:
        gone = key.split("/")[0] in withdrawn
        once += fates[key] == (0 if gone else 1)
    print(f"days: {len(built.scans)} released, {sum(rejected.values())} rejected, {len(withdrawn)} people withdrawn")
    return {"delivered": len(delivered), "accounted_share": once / len(delivered)}


def _ball_session(root: Path, subject: str, rng: np.random.Generator) -> Path:
    """A session of one subject's fused meshes, each a ball of its own; one scan in twenty is an empty file."""
    names = ["neutral", "smile", "frown", "open"]
    for name in names:
        folder = root / subject / name
        folder.mkdir(parents=True)
        points = rng.normal(size=(300, 3))
        points *= 100 / np.linalg.norm(points, axis=1, keepdims=True)
        data = write_ply(dict(zip("xyz", points.T, strict=True)), np.arange(300, dtype=np.int32).reshape(-1, 3))
        (folder / "scan.ply").write_bytes(b"" if rng.uniform() < 0.025 and name != "neutral" else data)
    note = {
        "schema_version": 1,
        "session_id": root.name,
        "captured_at": "2026-01-02T10:00:00Z",
        "rig": "none",
        "layout": "fused_mesh",
        "unit": "mm",
        "canonical_expression": "neutral",
        "licence": "CC0-1.0",
        "subjects": [
            {
                "id": subject,
                "hair": "none",
                "expressions": names,
                "consent": {"given": True, "scope": ["research", "release"], "date": "2026-01-01"},
            }
        ],
    }
    (root / "session.json").write_text(json.dumps(note))
    return root


PARTS = {"scale": scale, "dask": dask, "kills": kills, "days": days}


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a fiftieth of the scans, five kills, eight hours")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--only", nargs="+", choices=list(PARTS), default=list(PARTS))
    options = parser.parse_args()
    work = options.work.resolve() / "operations"
    work.mkdir(parents=True, exist_ok=True)
    row: dict[str, float] = {}
    for name in options.only:
        row |= PARTS[name](work, options.quick)
    row["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for name, value in row.items():
        print(f"{name:<20}{value:.4g}")
    if options.json:
        options.json.write_text(json.dumps(row, indent=1))


if __name__ == "__main__":
    main()
