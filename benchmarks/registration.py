"""How near registrations come to the truth, with the template's linear modes and without, and what they cost.

    python benchmarks/registration.py [--quick] [--json FILE] [--work DIR] [--profiles studio,handheld]

Captures are made by the ICT capture tool beside the checkout and go through cleaning: 6 subjects in `studio`, 3 in
`handheld`, 10 expressions each, a third with beard or glasses; then 200 turned, shifted and rescaled heads for the
rigid part. `--quick` takes one subject in 3 expressions and 12 turned heads. Clean scans and rows are kept in DIR.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
sys.path.insert(0, str(ROOT))

from benchmarks.truth import FACE_VERTICES, SKIN, Surface, Truth, load_truth, rigid_motion
from pipeline.capture import IngestConfig, read_capture
from pipeline.clean import clean_scan
from pipeline.clean_config import CleanConfig
from pipeline.rawfiles import SessionFiles
from pipeline.register import register_scan
from pipeline.register_config import RegisterConfig, RegisterThresholds, judge_register
from registration.alignment import align_head
from registration.mesh import Mesh, mesh_from_ply, mesh_to_ply, transform_points, vertex_normals
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
FALSE_FACE_MM, FALSE_LANDMARKS_MM = 1.0, 4.0
"""A registration that is this far off and still accepted is a false accept."""


def captures(work: Path, profile: str, subjects: int, expressions: tuple[str, ...]) -> Path:
    """Make the session of a profile, unless it is there; the first third of the subjects wears beard or glasses."""
    out = work / "captures" / f"registration_{profile}"
    for first, count, worn in ((1, max(1, subjects // 3), "1"), (1 + max(1, subjects // 3), subjects, "0")):
        for s in range(first, min(first + count, subjects + 1)):
            missing = [e for e in expressions if not (out / "truth" / f"{s:03d}" / f"{e}.npz").exists()]
            if missing:
                command = [sys.executable, str(SHARED / "tools" / "ict_captures.py"), str(out), "--profile", profile]
                command += ["--subjects", "1", "--first-subject", str(s), "--expressions", ",".join(missing)]
                command += ["--seed", "21", "--glasses" if s % 2 else "--beard", worn]
                subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out


def clean(root: Path, key: str, work: Path, template: Template, threads: int) -> Mesh | None:
    """The clean scan, from DIR where the same code made it already; None if cleaning rejected it."""
    names = ("depth", "pose_refinement", "fusion", "head_crop", "pieces", "repair", "watertight", "alignment")
    code = "".join((ROOT / "registration" / f"{name}.py").read_text() for name in names)
    digest = hashlib.sha256((code + (ROOT / "pipeline" / "clean.py").read_text()).encode()).hexdigest()[:16]
    kept = work / "clean" / root.name / key / f"{digest}.ply"
    if not kept.exists():
        files = SessionFiles(root / "session", root / "session" / key, key)
        capture = read_capture(files, key, "depth_frames", "mm", IngestConfig()).capture
        kept.parent.mkdir(parents=True, exist_ok=True)
        try:
            kept.write_bytes(mesh_to_ply(clean_scan(capture, template, CleanConfig(), threads=threads).mesh))
        except ScanRejected:
            kept.write_bytes(b"")
    data = kept.read_bytes()
    return mesh_from_ply(data, key) if data else None


def measure(vertices_world: NDArray[np.float64], template: Template, truth: Truth, T_true_from_told: NDArray) -> dict:
    """Observed face to true skin and to its own true vertices, and landmarks, mm."""
    placed = transform_points(T_true_from_told, vertices_world)
    seen = np.flatnonzero(truth.vertex_views[:FACE_VERTICES] >= 2)
    skin = Surface(truth.surface.select_faces(truth.surface_part == SKIN))
    distance = skin.closest(placed[seen])[0]
    marks = np.linalg.norm(placed[template.landmarks] - truth.landmarks, axis=1)
    return {
        "face_median_mm": float(np.median(distance)),
        "face_p95_mm": float(np.percentile(distance, 95)),
        "vertex_mm": float(np.median(np.linalg.norm(placed[seen] - truth.vertices[seen], axis=1))),
        "landmarks_mm": float(marks.mean()),
        "lips_mm": float(marks[INNER_LIPS].mean()),
    }


def rows_of_subject(
    root: Path, subject: str, expressions: tuple[str, ...], template: Template, work: Path, threads: int
) -> list[dict]:
    """Register one subject's scans; the canonical expression comes first."""
    rows: list[dict] = []
    canonical: Registration | None = None
    for expression in expressions:
        key = f"{subject}/{expression}"
        mesh = clean(root, key, work, template, threads)
        row: dict = {"key": key, "expression": expression, "rejected": ""}
        rows.append(row)
        if mesh is None or (canonical is None and expression != expressions[0]):
            row["rejected"] = "cleaning rejected it" if mesh is None else "no canonical registration"
            continue
        wall, cpu = time.perf_counter(), time.process_time()
        try:
            found = register_scan(mesh, canonical, template, RegisterConfig())
        except ScanRejected as error:
            row["rejected"] = str(error)
            continue
        row |= {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        row["rejected"] = "; ".join(judge_register(found.figures, RegisterThresholds()))
        truth = load_truth(root, key)
        row |= measure(registration_in_world(found), template, truth, rigid_motion(mesh, truth))
        if expression == expressions[0] and not row["rejected"]:
            canonical = found
    return rows


def kept_rows(root: Path, subject: str, expressions: tuple[str, ...], template: Template, work: Path, threads: int):
    """``rows_of_subject``, from DIR where the same code made them already."""
    code = "".join(p.read_text() for p in sorted((ROOT / "registration").glob("*.py")))
    code += "".join((ROOT / "pipeline" / f"{name}.py").read_text() for name in ("clean", "register"))
    told = f"{root.name}/{subject}/{expressions}/{template.name}/{len(template.identity_basis)}/{code}"
    kept = work / "registration_rows" / f"{hashlib.sha256(told.encode()).hexdigest()[:24]}.json"
    if not kept.exists():
        rows = rows_of_subject(root, subject, expressions, template, work, threads)
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.write_text(json.dumps(rows))
    return json.loads(kept.read_text())


def summary(rows: list[dict]) -> dict[str, float]:
    """Means over the scans that were registered."""
    done = [row for row in rows if "vertex_mm" in row]

    def mean(name: str, of: list[dict]) -> float:
        return float(np.mean([row[name] for row in of])) if of else float("nan")

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


def poses_hit(heads: list[tuple[Mesh, Truth]], template: Template, count: int) -> int:
    """Of so many random rotations, positions and units, how many the rigid part finds to 10 degrees and 10 mm."""
    hit = 0
    rng = np.random.default_rng(5)
    for i in range(count):
        mesh, truth = heads[i % len(heads)]
        W = np.eye(4)
        W[:3, :3] = Rotation.random(random_state=int(rng.integers(2**31))).as_matrix()
        W[:3, 3] = rng.normal(0, 500, 3)
        unit = float(rng.choice([1.0, 10.0, 1000.0]))
        points = transform_points(W, mesh.vertices[::5]) / unit
        normals = vertex_normals(mesh.vertices, mesh.faces)[::5] @ W[:3, :3].T
        found = align_head(points, normals, template, i, (1.0, 10.0, 1000.0))
        off = np.linalg.inv(W @ truth.head_to_world) @ found.T_world_from_head
        angle_deg = np.degrees(Rotation.from_matrix(off[:3, :3]).magnitude())
        ok = found.accepted and found.unit_to_mm == unit and angle_deg < 10 and np.linalg.norm(off[:3, 3]) < 10
        hit += bool(ok)
    return hit


def main() -> None:
    """Run what was asked for, print the table and write the figures."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--quick", action="store_true")
    ask.add_argument("--json", type=Path)
    ask.add_argument("--work", type=Path, default=ROOT / "build" / "benchmarks")
    ask.add_argument("--profiles", default="studio,handheld")
    ask.add_argument("--threads", type=int, default=2)
    told = ask.parse_args()
    template = import_ict(SHARED / "heads" / "ict_heads.npz")
    n = len(template.mesh.vertices)
    nothing = np.zeros((0, n, 3), np.float32)
    bare = replace(template, identity_basis=nothing, expression_basis=nothing, expression_names=())
    expressions = QUICK if told.quick else EXPRESSIONS
    figures: dict[str, float] = {}
    all_rows: list[dict] = []
    heads: list[tuple[Mesh, Truth]] = []
    print(f"{'':16} {'skin':>6} {'95 %':>6} {'canon.':>6} {'all':>6} {'marks':>6} {'lips':>6} {'rejected':>8}")
    for profile in ("studio",) if told.quick else tuple(told.profiles.split(",")):
        subjects = 1 if told.quick else SUBJECTS[profile]
        root = captures(told.work, profile, subjects, expressions)
        for prefix, used in (("", template), ("nobasis_", bare)):
            rows = []
            for s in range(1, subjects + 1):
                rows += kept_rows(root, f"{s:03d}", expressions, used, told.work, told.threads)
            for row in rows:
                if row["rejected"]:
                    print(f"  {prefix}{profile}/{row['key']}: {row['rejected']}")
            found = summary(rows)
            figures |= {f"{prefix}{profile}_{name}": value for name, value in found.items()}
            all_rows += rows
            print(f"{prefix + profile:16} " + " ".join(f"{value:6.3f}" for value in found.values()), flush=True)
            if profile == "studio" and not prefix:
                done = [row for row in rows if "seconds" in row]
                first = [row["seconds"] for row in done if row["expression"] == EXPRESSIONS[0]]
                later = [row["seconds"] for row in done if row["expression"] != EXPRESSIONS[0]]
                figures |= {"seconds_canonical": float(np.mean(first)), "seconds_expression": float(np.mean(later))}
        for s in range(1, min(subjects, 4) + 1):
            key = f"{s:03d}/{EXPRESSIONS[0]}"
            mesh = clean(root, key, told.work, template, told.threads)
            if mesh is not None and profile == "studio":
                heads.append((mesh, load_truth(root, key)))
    figures["false_accepts"] = false_accepts(all_rows)
    if heads:
        count = 12 if told.quick else 200
        figures[f"poses_hit_of_{count}"] = poses_hit(heads, template, count)
    figures["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    for name in ("seconds_canonical", "seconds_expression", "false_accepts", "peak_mib"):
        print(f"{name} {figures.get(name, float('nan')):.1f}")
    print({name: value for name, value in figures.items() if name.startswith("poses")})
    if told.json:
        told.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
