"""How near cleaned scans come to the truth, and what they cost, beside the plain recipe that Open3D alone gives.

    python benchmarks/cleaning.py [--quick] [--json FILE] [--work DIR] [--profiles perfect,studio,handheld,phone]

Captures are made by the ICT capture tool beside the checkout: 4 subjects (two seeds, some with beard or glasses) in 2
expressions and 4 profiles; `--quick` takes one scan of `studio`. Captures and finished rows are kept in DIR.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import open3d as o3d

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
sys.path.insert(0, str(ROOT))

from benchmarks.truth import load_truth, measure_cleaning
from pipeline.capture import IngestConfig, read_capture
from pipeline.clean import clean_scan
from pipeline.clean_config import STEP_VERSION, CleanConfig, CleanThresholds, judge_clean
from pipeline.rawfiles import SessionFiles
from registration.mesh import Mesh
from registration.pieces import vertex_pieces
from registration.template_import import import_ict
from registration.views import Capture
from storage.errors import ScanRejected

PROFILES = ("perfect", "studio", "handheld", "phone")
EXPRESSIONS = ("neutral_open", "smile")
SEEDS = (0, 1)
SUBJECTS = 2
COMPLETE_ENOUGH = 0.98
"""A head counts as found, nothing cut off, if this share of its seen surface has mesh within 10 mm."""


def captures(work: Path, profile: str, seed: int, expressions: tuple[str, ...], subjects: int) -> Path:
    """Make the session of one profile and seed, unless it is there."""
    out = work / "captures" / f"{profile}_{seed}"
    wanted = [out / "truth" / f"{s:03d}" / f"{e}.npz" for s in range(1, subjects + 1) for e in expressions]
    if not all(path.exists() for path in wanted):
        command = [sys.executable, str(SHARED / "tools" / "ict_captures.py"), str(out), "--profile", profile]
        command += ["--subjects", str(subjects), "--expressions", ",".join(expressions), "--seed", str(seed)]
        command += ["--beard", "0.3", "--glasses", "0.3"]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return out


def plain_recipe(capture: Capture) -> Mesh:
    """What a user would write with Open3D alone: told poses, a TSDF of 1 mm, the largest piece."""
    number = o3d.core.float32
    volume = o3d.t.geometry.VoxelBlockGrid(
        ("tsdf", "weight"), (number, number), ((1,), (1,)), voxel_size=1.0, block_resolution=8, block_count=60_000
    )
    for view in capture.depth_views:
        camera = view.intrinsics
        pinhole = o3d.core.Tensor(
            np.array([[camera.fx, 0, camera.cx - 0.5], [0, camera.fy, camera.cy - 0.5], [0, 0, 1]], np.float64)
        )
        extrinsic = o3d.core.Tensor(np.linalg.inv(view.T_world_from_camera))
        depth = o3d.t.geometry.Image(o3d.core.Tensor(np.ascontiguousarray(view.depth_mm)))
        blocks = volume.compute_unique_block_coordinates(depth, pinhole, extrinsic, 1.0, 850.0, 4.0)
        volume.integrate(blocks, depth, pinhole, extrinsic, 1.0, 850.0, 4.0)
    found = volume.extract_triangle_mesh(weight_threshold=1.0)
    mesh = Mesh.of(found.vertex.positions.numpy(), found.triangle.indices.numpy())
    label = vertex_pieces(mesh)
    return mesh.select_vertices(label == np.bincount(label).argmax())


def row(root: Path, key: str, work: Path, config: CleanConfig, threads: int, plain: bool) -> dict[str, float | str]:
    """Figures of one scan, taken from DIR where they are already there."""
    code = "".join(p.read_text() for p in sorted((ROOT / "registration").glob("*.py")))
    code += (ROOT / "pipeline" / "clean.py").read_text() + (ROOT / "benchmarks" / "truth.py").read_text()
    told = f"{root.name}/{key}/{STEP_VERSION}/{config.model_dump_json()}/{threads}/{plain}/{code}"
    kept = work / "cleaning_rows" / f"{hashlib.sha256(told.encode()).hexdigest()[:24]}.json"
    if kept.exists():
        return dict(json.loads(kept.read_text()))
    capture = read_capture(
        SessionFiles(root / "session", root / "session" / key, key), key, "depth_frames", "mm", IngestConfig()
    ).capture
    truth = load_truth(root, key)
    template = import_ict(SHARED / "heads" / "ict_heads.npz")
    out: dict[str, float | str] = {"key": key}
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        scan = clean_scan(capture, template, config, threads=threads)
        out |= {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        out |= asdict(measure_cleaning(scan.mesh, truth))
        out["rejected"] = "; ".join(judge_clean(scan.figures, CleanThresholds()))
    except ScanRejected as error:
        out["rejected"] = str(error)
    if plain:
        out["plain_skin_median_mm"] = measure_cleaning(plain_recipe(capture), truth).skin_median_mm
    kept.parent.mkdir(parents=True, exist_ok=True)
    kept.write_text(json.dumps(out))
    return out


def main() -> None:
    """Run what was asked for, print the table and write the figures."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--quick", action="store_true")
    ask.add_argument("--json", type=Path)
    ask.add_argument("--work", type=Path, default=ROOT / "build" / "benchmarks")
    ask.add_argument("--profiles", default=",".join(PROFILES))
    ask.add_argument("--threads", type=int, default=2)
    told = ask.parse_args()
    profiles = ("studio",) if told.quick else tuple(told.profiles.split(","))
    seeds, subjects, expressions = ((0,), 1, EXPRESSIONS[:1]) if told.quick else (SEEDS, SUBJECTS, EXPRESSIONS)
    # The first call compiles the kernels; that is no scan's cost.
    warm_up(told.threads)
    figures: dict[str, float] = {}
    seconds: list[float] = []
    heads = ("skin", "95 %", "1 mm", "hair", "motion", "heads", "plain", "s")
    print(f"{'profile':9} " + " ".join(f"{name:>7}" for name in heads))
    for profile in profiles:
        rows = []
        for seed in seeds:
            root = captures(told.work, profile, seed, expressions, subjects)
            for s in range(1, subjects + 1):
                for expression in expressions:
                    one = row(root, f"{s:03d}/{expression}", told.work, CleanConfig(), told.threads, True)
                    rows.append(one)
                    if one["rejected"]:
                        print(f"  {root.name}/{one['key']}: {one['rejected']}")
        good = [r for r in rows if "skin_median_mm" in r]

        def mean(name: str, of: list[dict[str, float | str]] = good) -> float:
            return float(np.mean([float(r[name]) for r in of])) if of else float("nan")

        found = float(np.mean([float(r.get("complete_10mm", 0.0)) >= COMPLETE_ENOUGH for r in rows]))
        figures |= {
            f"{profile}_skin_median_mm": mean("skin_median_mm"),
            f"{profile}_skin_p95_mm": mean("skin_p95_mm"),
            f"{profile}_complete_1mm": mean("complete_1mm"),
            f"{profile}_hair_median_mm": mean("hair_median_mm"),
            f"{profile}_motion_mm": mean("motion_mm"),
            f"{profile}_heads_found": found,
            f"plain_{profile}_skin_median_mm": mean("plain_skin_median_mm", rows),
        }
        if profile == "studio":
            seconds = [float(r["seconds"]) for r in good]
        print(
            f"{profile:9} {mean('skin_median_mm'):7.3f} {mean('skin_p95_mm'):7.3f} {mean('complete_1mm'):7.2%} "
            f"{mean('hair_median_mm'):7.3f} {mean('motion_mm'):7.2f} {found:7.0%} "
            f"{mean('plain_skin_median_mm', rows):7.3f} {mean('seconds'):7.1f}",
            flush=True,
        )
    figures["seconds_per_scan"] = float(np.mean(seconds)) if seconds else float("nan")
    figures["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"seconds per studio scan {figures['seconds_per_scan']:.1f}, peak {figures['peak_mib']:.0f} MiB")
    if told.json:
        told.json.write_text(json.dumps(figures, indent=1))


def warm_up(threads: int) -> None:
    """Clean a small sphere far enough to have every kernel compiled; it is no head, so it is rejected on the way."""
    from registration.depth import fit_views
    from registration.fusion import extract_surface, fuse, grid_for_box
    from registration.mesh import vertex_normals
    from registration.observation import observe
    from registration.pose_refinement import refine_poses
    from registration.watertight import complete
    from tests.registration.mesh_rig import camera_poses, see, sphere

    views = see(sphere(), camera_poses(6))
    fitted = fit_views(views, [view.depth_mm > 0 for view in views], threads)
    refine_poses(fitted, np.zeros(3), threads=threads)
    values, grid = fuse(fitted, grid_for_box(np.eye(4), np.full(3, -110.0), np.full(3, 110.0), 4.0), 12.0, 0.1, threads)
    mesh = extract_surface(values, grid)
    complete(values, mesh, grid, fitted, 12.0)
    observe(fitted, grid, mesh.vertices, vertex_normals(mesh.vertices, mesh.faces), 12.0, threads)


if __name__ == "__main__":
    main()
