"""How near registrations come to the truth, with the template's linear modes and without, and what they cost.

    python benchmarks/registration.py [--quick] [--json FILE] [--work DIR] [--profiles studio,handheld]
                                      [--first N] [--subjects N] [--rows table,cut]

Captures are made by the ICT capture tool beside the checkout and go through cleaning: 6 subjects in `studio`, 3 in
`handheld`, 10 expressions each, a third with beard or glasses. They are registered with the ICT template, with the same
template without its modes (`nobasis_`), with the project's own head (`procedural_`), and once more with 30 % of each
scan cut away (`cut_`). Then 200 turned, shifted and rescaled heads for the rigid part, and clean pairs of meshes beside
trimesh's two methods. `--quick` takes one subject in 3 expressions, 12 turned heads and one pair. Clean scans and all
rows are kept in DIR by what made them, so that a run that was cut off goes on.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # told before NumPy is there: idle threads' waiting would count

import numpy as np
import trimesh
from numpy.typing import NDArray
from scipy.spatial import cKDTree

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.ict import CAPTURE_TOOL, HEADS, require_ict
from benchmarks.registration_cases import cut_away, nricp_row, own_row, pose_row, turned_head
from benchmarks.truth import FACE_VERTICES, SKIN, Surface, Truth, load_truth, rigid_motion
from pipeline.capture import IngestConfig, read_capture
from pipeline.clean import clean_scan
from pipeline.clean_config import STEP_VERSION as CLEAN_VERSION
from pipeline.clean_config import CleanConfig
from pipeline.rawfiles import SessionFiles
from pipeline.register import register_scan, registration_from_files, registration_to_files
from pipeline.register_config import STEP_VERSION as REGISTER_VERSION
from pipeline.register_config import RegisterConfig, RegisterThresholds, judge_register
from registration.mesh import Mesh, mesh_from_ply, mesh_to_ply, transform_points
from registration.procedural_head import head_template
from registration.register_head import Registration, registration_in_world
from registration.template import Template
from registration.template_import import import_ict
from storage.errors import ScanRejected

EXPRESSIONS = (
    "neutral_open", "neutral", "smile", "jaw_open_wide", "pucker",
    "brows_up", "eyes_closed", "funnel", "lips_pressed", "sneer",
)  # fmt: skip
QUICK = ("neutral_open", "smile", "jaw_open_wide")
LIPS_MEASURED = ("jaw_open_wide", "lips_pressed", "funnel")
SUBJECTS = {"studio": 6, "handheld": 3}
INNER_LIPS = slice(60, 68)
POSES, PAIRS = 200, 5
ICT_SKIN_VERTICES = 11248
FALSE_FACE_MM, FALSE_LANDMARKS_MM = 1.0, 4.0
"""A registration that is this far off and still accepted is a false accept."""
PARTS = (
    "alignment", "basis_fit", "correspondence", "crossings", "fit_vertices", "mouth_opening", "nonrigid", "point_order",
    "pose_search", "register_head", "registration_figures", "scan_labels", "search_model", "shape_modes",
    "smoothness", "surface",
)  # fmt: skip
"""Modules of ``registration`` that rows depend on."""
SEARCH_PARTS = ("alignment", "point_order", "pose_search", "search_model", "shape_modes")
"""Those that the search for the head depends on."""
ROWS = ("table", "nobasis", "procedural", "cut", "poses", "pairs")


@dataclass(frozen=True)
class Run:
    """One way to register the scans.

    Attributes:
        prefix: of its figures.
        template: what is registered.
        cut: whether a part of each scan is cut away.
    """

    prefix: str
    template: Template
    cut: bool = False


def kept(path: Path, make: Callable[[], Any]) -> Any:
    """What a JSON file in DIR holds, made first where it isn't there."""
    if not path.exists():
        made = make()
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(".part")
        part.write_text(json.dumps(made))
        part.replace(path)
    return json.loads(path.read_text())


def digest_of(*told: object, parts: tuple[str, ...] = PARTS) -> str:
    """A name for what depends on this and on the registration's code."""
    code = "".join((ROOT / "registration" / f"{name}.py").read_text() for name in parts)
    config = RegisterConfig().model_dump_json() + RegisterThresholds().model_dump_json()
    return hashlib.sha256(repr((told, code, config, REGISTER_VERSION, CLEAN_VERSION)).encode()).hexdigest()[:20]


def captures(work: Path, profile: str, first: int, subjects: int, expressions: tuple[str, ...]) -> Path:
    """Make the session of a profile, unless it is there; the first third of the subjects wears beard or glasses."""
    out = work / "captures" / f"registration_{profile}"
    for s in range(first, subjects + 1):
        worn = "1" if s <= max(1, SUBJECTS[profile] // 3) else "0"
        missing = [e for e in expressions if not (out / "truth" / f"{s:03d}" / f"{e}.npz").exists()]
        if missing:
            command = [sys.executable, str(CAPTURE_TOOL), str(out), "--profile", profile]
            command += ["--subjects", "1", "--first-subject", str(s), "--expressions", ",".join(missing)]
            command += ["--seed", "21", "--glasses" if s % 2 else "--beard", worn]
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out


def clean(root: Path, key: str, work: Path, template: Template, threads: int) -> tuple[Mesh, NDArray] | None:
    """The clean scan and where its head was found, from DIR where they are; None if cleaning rejected it."""
    path = work / "clean" / root.name / key / f"{CLEAN_VERSION}.ply"
    if not path.exists():
        files = SessionFiles(root / "session", root / "session" / key, key)
        capture = read_capture(files, key, "depth_frames", "mm", IngestConfig()).capture
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            made = clean_scan(capture, template, CleanConfig(), threads=threads)
            path.with_suffix(".json").write_text(json.dumps(made.T_world_from_head.tolist()))
            path.write_bytes(mesh_to_ply(made.mesh))
        except ScanRejected:
            path.write_bytes(b"")
    data = path.read_bytes()
    if not data:
        return None
    return mesh_from_ply(data, key), np.array(json.loads(path.with_suffix(".json").read_text()))


def measure(vertices_world: NDArray[np.float64], template: Template, truth: Truth, T_true_from_told: NDArray) -> dict:
    """Observed face to true skin, mm; with ICT's own vertices also to each one's true place, and landmarks."""
    placed = transform_points(T_true_from_told, vertices_world)
    skin = Surface(truth.surface.select_faces(truth.surface_part == SKIN))
    if len(template.mesh.vertices) != ICT_SKIN_VERTICES:
        face = placed[template.face_mask]
        _, nearest = cKDTree(truth.vertices[:FACE_VERTICES]).query(face)
        distance = skin.closest(face[truth.vertex_views[nearest] >= 2])[0]
        return {"face_median_mm": float(np.median(distance)), "face_p95_mm": float(np.percentile(distance, 95))}
    seen = np.flatnonzero(truth.vertex_views[:FACE_VERTICES] >= 2)
    distance = skin.closest(placed[seen])[0]
    marks = np.linalg.norm(placed[template.landmarks] - truth.landmarks, axis=1)
    return {
        "face_median_mm": float(np.median(distance)),
        "face_p95_mm": float(np.percentile(distance, 95)),
        "vertex_mm": float(np.median(np.linalg.norm(placed[seen] - truth.vertices[seen], axis=1))),
        "landmarks_mm": float(marks.mean()),
        "lips_mm": float(marks[INNER_LIPS].mean()),
    }


def rows_of_subject(root: Path, subject: str, expressions: tuple[str, ...], run: Run, told: argparse.Namespace) -> list:
    """Register one subject's scans; the canonical expression comes first. Each row is kept."""
    rows: list[dict] = []
    canonical: Registration | None = None
    for expression in expressions:
        key = f"{subject}/{expression}"
        name = digest_of(root.name, key, run.prefix, run.template.name)
        path = told.work / "registration_rows" / root.name / key / f"{run.prefix}{name}.json"
        files = path.with_suffix("")

        def make(key: str = key, files: Path = files, first: Registration | None = canonical) -> dict:
            return row_of_scan(root, key, first, run, told, files)

        if canonical is None and expression != expressions[0]:
            rows.append({"key": key, "expression": expression, "rejected": "no canonical registration"})
            continue
        rows.append(kept(path, make))
        if expression == expressions[0] and not rows[0]["rejected"]:
            data = [(files / part).read_bytes() for part in ("mesh.ply", "frame.json")]
            canonical = registration_from_files(data[0], data[1], key)
    return rows


def row_of_scan(
    root: Path, key: str, canonical: Registration | None, run: Run, told: argparse.Namespace, files: Path
) -> dict:
    """Register one scan and hold it against the truth; the registration itself is put into a folder."""
    row: dict = {"key": key, "expression": key.partition("/")[2], "rejected": ""}
    cleaned = clean(root, key, told.work, run.template, told.threads)
    if cleaned is None:
        return row | {"rejected": "cleaning rejected it"}
    mesh, start = cleaned
    truth = load_truth(root, key)
    T_true_from_told = rigid_motion(mesh, truth)
    if run.cut:
        mesh, truth = cut_away(mesh, truth, np.random.default_rng([3, *key.encode()]))
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        found = register_scan(mesh, canonical, run.template, RegisterConfig(), 0, start, told.threads)
    except ScanRejected as error:
        return row | {"rejected": str(error)}
    row |= {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
    row["rejected"] = "; ".join(judge_register(found.figures, RegisterThresholds()))
    row["figures"] = {name: value for name, value in found.figures.items() if isinstance(value, int | float)}
    files.mkdir(parents=True, exist_ok=True)
    for name, data in registration_to_files(found, run.template).items():
        (files / name).write_bytes(data)
    return row | measure(registration_in_world(found), run.template, truth, T_true_from_told)


def summary(rows: list[dict]) -> dict[str, float]:
    """Means over the scans that were registered."""
    done = [row for row in rows if "face_median_mm" in row]

    def mean(name: str, of: list[dict]) -> float:
        values = [row[name] for row in of if name in row]
        return float(np.mean(values)) if values else float("nan")

    return {
        "face_median_mm": mean("face_median_mm", done),
        "face_p95_mm": mean("face_p95_mm", done),
        "vertex_canonical_mm": mean("vertex_mm", [r for r in done if r["expression"] == EXPRESSIONS[0]]),
        "vertex_all_mm": mean("vertex_mm", done),
        "landmarks_mm": mean("landmarks_mm", done),
        "lips_mm": mean("lips_mm", [r for r in done if r["expression"] in LIPS_MEASURED]),
        "rejected_share": float(np.mean([bool(r["rejected"]) for r in rows])),
    }


def false_accepts(rows: list[dict]) -> int:
    """How many wrong registrations passed."""
    wrong = [
        r for r in rows if r.get("face_median_mm", 0) > FALSE_FACE_MM or r.get("landmarks_mm", 0) > FALSE_LANDMARKS_MM
    ]
    return sum(not row["rejected"] for row in wrong)


def poses_hit(root: Path, subjects: int, template: Template, count: int, told: argparse.Namespace) -> int:
    """Of so many random rotations, positions and units of up to four heads, how many the rigid part finds."""
    hit = 0
    heads: dict[str, tuple[Mesh, Truth] | None] = {}

    def head_of(key: str) -> tuple[Mesh, Truth]:
        if heads.get(key) is None:
            cleaned = clean(root, key, told.work, template, told.threads)
            if cleaned is None:
                raise SystemExit(f"{key}: cleaning rejected a head that poses are drawn from")
            heads[key] = (cleaned[0], load_truth(root, key))
        return heads[key]  # type: ignore[return-value]

    for i in range(count):
        key = f"{i % min(subjects, 4) + 1:03d}/{EXPRESSIONS[0]}"
        digest = digest_of(root.name, key, template.name, parts=SEARCH_PARTS)
        path = told.work / "registration_rows" / "poses" / f"{i:03d}-{digest}.json"
        row = kept(path, lambda key=key, i=i: pose_row(turned_head(*head_of(key), i), template, i))
        hit += bool(row["hit"])
        if not row["hit"]:
            print(f"  pose {i} of {key}: {row}")
    return hit


def side_by_side(template: Template, bare: Template, count: int, told: argparse.Namespace) -> dict[str, float]:
    """Ours over trimesh's two: speeds as theirs over ours, errors as ours over the better of theirs.

    Seconds are the processor's, for rows that are kept need not be of one run.
    """
    folder = told.work / "registration_rows" / "pairs"
    rows = [
        kept(folder / f"{i}-{trimesh.__version__}.json", lambda i=i: nricp_row(template, i))
        | kept(folder / f"{i}-{digest_of(template.name)}.json", lambda i=i: own_row(template, bare, i))
        for i in range(count)
    ]
    middle = {name: float(np.median([row[name] for row in rows])) for name in rows[0]}
    for name in ("amberg", "sumner", "ours"):
        told_of = (middle[f"{name}_{figure}"] for figure in ("seconds", "distance_mm", "vertex_mm"))
        print("{:16} {:6.1f} s {:6.3f} mm to the surface {:6.3f} mm to the true vertices".format(name, *told_of))
    best = {
        figure: min(middle[f"amberg_{figure}"], middle[f"sumner_{figure}"]) for figure in ("distance_mm", "vertex_mm")
    }
    return {
        "amberg_speed": middle["amberg_seconds"] / middle["ours_seconds"],
        "sumner_speed": middle["sumner_seconds"] / middle["ours_seconds"],
        "distance_over_best": middle["ours_distance_mm"] / best["distance_mm"],
        "vertex_over_best": middle["ours_vertex_mm"] / best["vertex_mm"],
    }


def main() -> None:
    """Run what was asked for, print the table and write the figures."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--quick", action="store_true")
    ask.add_argument("--json", type=Path)
    ask.add_argument("--work", type=Path, default=ROOT / "build" / "benchmarks")
    ask.add_argument("--profiles", default="studio,handheld")
    ask.add_argument("--rows", default=",".join(ROWS), help="which of them, by commas")
    ask.add_argument("--subjects", type=int, help="of each profile, at most; all by default")
    ask.add_argument("--first", type=int, default=1, help="the subject to begin with, by number")
    ask.add_argument("--expressions", help="instead of all ten, by commas; the canonical one first")
    ask.add_argument("--poses", type=int, default=0, help="turned heads; 200 by default, 12 with --quick")
    ask.add_argument("--threads", type=int, default=2)
    told = ask.parse_args()
    require_ict()
    template = import_ict(HEADS)
    nothing = np.zeros((0, len(template.mesh.vertices), 3), np.float32)
    bare = replace(template, name="bare", identity_basis=nothing, expression_basis=nothing, expression_names=())
    wanted = told.rows.split(",")
    runs = {
        "table": Run("", template),
        "nobasis": Run("nobasis_", bare),
        "procedural": Run("procedural_", head_template()),
        "cut": Run("cut_", template, True),
    }
    expressions = QUICK if told.quick else EXPRESSIONS
    expressions = tuple(told.expressions.split(",")) if told.expressions else expressions
    figures: dict[str, float] = {}
    all_rows: list[dict] = []
    print(f"{'':20} {'skin':>6} {'95 %':>6} {'canon.':>6} {'all':>6} {'marks':>6} {'lips':>6} {'rejected':>8}")
    profiles = ("studio",) if told.quick else tuple(told.profiles.split(","))
    for profile in () if wanted == ["pairs"] else profiles:  # pairs need no captures
        subjects = 1 if told.quick else min(told.subjects or SUBJECTS[profile], SUBJECTS[profile])
        root = captures(told.work, profile, told.first, subjects, expressions)
        for run in (run for name, run in runs.items() if name in wanted):
            rows: list[dict] = []
            for s in range(told.first, subjects + 1):
                rows += rows_of_subject(root, f"{s:03d}", expressions, run, told)
            for row in rows:
                if row["rejected"]:
                    print(f"  {run.prefix}{profile}/{row['key']}: {row['rejected']}")
            found = summary(rows)
            figures |= {f"{run.prefix}{profile}_{name}": v for name, v in found.items() if np.isfinite(v)}
            all_rows += rows
            print(f"{run.prefix + profile:20} " + " ".join(f"{v:6.3f}" for v in found.values()), flush=True)
            if profile == "studio" and not run.prefix:
                done = [row for row in rows if "seconds" in row]
                first = [row["seconds"] for row in done if row["expression"] == EXPRESSIONS[0]]
                later = [row["seconds"] for row in done if row["expression"] != EXPRESSIONS[0]]
                figures |= {"seconds_canonical": float(np.mean(first)), "seconds_expression": float(np.mean(later))}
        if profile == "studio" and "poses" in wanted:
            count = told.poses or (12 if told.quick else POSES)
            figures[f"poses_hit_of_{count}"] = poses_hit(root, subjects, template, count, told)
    figures["false_accepts"] = false_accepts(all_rows)
    if "pairs" in wanted:
        figures |= side_by_side(template, bare, 1 if told.quick else PAIRS, told)
    figures["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for name, value in figures.items():
        if not name.endswith("_mm") and not name.endswith("_share"):
            print(f"{name:24} {value:.2f}")
    if told.json:
        told.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
