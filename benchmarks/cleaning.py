"""How near cleaned scans come to the truth, and what they cost, beside the plain recipe that Open3D alone gives.

    python benchmarks/cleaning.py [--quick] [--json FILE] [--work DIR] [--profiles perfect,studio,handheld,phone]
                                  [--turn DEGREES] [--one]

Captures are made by the ICT capture tool beside the checkout: 4 subjects (two seeds, three with a beard, one of them
with glasses) in 2 expressions and 4 profiles. `--quick` takes one scan of `studio`, `--one` one of each profile. With
`--turn` heads turn by about so much, in worlds of any orientation. Captures and finished rows are kept in DIR.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import open3d as o3d

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.ict import CAPTURE_TOOL, HEADS, require_ict
from benchmarks.truth import load_truth, measure_cleaning
from pipeline.capture import IngestConfig, read_capture
from pipeline.clean import clean_scan
from pipeline.clean_config import STEP_VERSION, CleanConfig, CleanThresholds, judge_clean
from pipeline.rawfiles import SessionFiles
from registration.mesh import Mesh
from registration.pieces import vertex_pieces
from registration.template import Template
from registration.template_import import import_ict
from registration.views import Capture
from storage.errors import ScanRejected

PROFILES = ("perfect", "studio", "handheld", "phone")
EXPRESSIONS = ("neutral_open", "smile")
SEEDS = (0, 1)
SUBJECTS = 2
MEANS = ("skin_median_mm", "skin_p95_mm", "complete_1mm", "hair_median_mm", "motion_mm")
"""Figures whose mean over a profile's scans is told, ours and the plain recipe's."""
SHOWN = ("skin_median_mm", "skin_p95_mm", "complete_1mm", "complete_10mm", "hair_median_mm", "motion_mm", "cpu_seconds")
COMPLETE_ENOUGH = 0.98
"""A head counts as found, nothing cut off, if this share of its seen surface has mesh within 10 mm."""


def captures(
    work: Path, profile: str, seed: int, expressions: tuple[str, ...], subjects: int, turn_deg: float | None
) -> Path:
    """Make the session of one profile and seed, unless it is there."""
    turned = "" if turn_deg is None else f"_turned_{turn_deg:g}"
    out = work / "captures" / f"{profile}_{seed}{turned}"
    wanted = [out / "truth" / f"{s:03d}" / f"{e}.npz" for s in range(1, subjects + 1) for e in expressions]
    if not all(path.exists() for path in wanted):
        command = [sys.executable, str(CAPTURE_TOOL), str(out), "--profile", profile]
        command += ["--subjects", str(subjects), "--expressions", ",".join(expressions), "--seed", str(seed)]
        command += ["--beard", "0.3", "--glasses", "0.4"]
        if turn_deg is not None:
            command += ["--turn", str(turn_deg), "--world", "any"]
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


def kept_row(work: Path, told: str, make: Callable[[], dict[str, float | str]]) -> dict[str, float | str]:
    """A finished row by the digest of what it rests on, made and kept where it is not there yet."""
    path = work / "cleaning_rows" / f"{hashlib.sha256(told.encode()).hexdigest()[:24]}.json"
    if path.exists():
        return dict(json.loads(path.read_text()))
    out = make()
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    part.write_text(json.dumps(out))
    part.replace(path)
    return out


def code_digest() -> str:
    """Digest of the project's own modules that are loaded, this one and the measure of truth included."""
    files = {Path(m.__file__) for m in list(sys.modules.values()) if getattr(m, "__file__", None)}
    floors = (ROOT / "registration", ROOT / "pipeline")
    own = sorted(f for f in files if f.parent in floors)
    own.append(ROOT / "benchmarks" / "truth.py")
    return hashlib.sha256(b"".join(f.read_bytes() for f in own)).hexdigest()


def load_capture(root: Path, key: str) -> Capture:
    """Read one scan of a made session."""
    files = SessionFiles(root / "session", root / "session" / key, key)
    return read_capture(files, key, "depth_frames", "mm", IngestConfig()).capture


def our_row(root: Path, key: str, template: Template, threads: int) -> dict[str, float | str]:
    """Figures and cost of one scan cleaned by us."""
    capture = load_capture(root, key)
    out: dict[str, float | str] = {"key": f"{root.name}/{key}"}
    wall, cpu = time.perf_counter(), time.process_time()
    try:
        scan = clean_scan(capture, template, CleanConfig(), threads=threads)
        out |= {"seconds": time.perf_counter() - wall, "cpu_seconds": time.process_time() - cpu}
        out |= {"peak_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}
        out |= asdict(measure_cleaning(scan.mesh, load_truth(root, key)))
        out["rejected"] = "; ".join(judge_clean(scan.figures, CleanThresholds()))
    except ScanRejected as error:
        out["rejected"] = str(error)
    return out


def plain_row(root: Path, key: str) -> dict[str, float | str]:
    """Figures of the same scan by the plain recipe."""
    figures = asdict(measure_cleaning(plain_recipe(load_capture(root, key)), load_truth(root, key)))
    return {f"plain_{name}": value for name, value in figures.items()}


def clean_alone(root: Path, key: str) -> float:
    """Seconds of the processor that one scan takes with one thread, kernels warm; for a process of its own."""
    capture = load_capture(root, key)
    template = import_ict(HEADS)
    clean_scan(capture, template, CleanConfig(), threads=1)
    began = time.process_time()
    clean_scan(capture, template, CleanConfig(), threads=1)
    return time.process_time() - began


def side_by_side(root: Path, key: str) -> float:
    """Cost of a scan while another is cleaned beside it, one thread each, over its cost alone.

    In seconds of the processor: what two scans take from each other is memory and cache, and these seconds don't
    depend on what else the machine does.
    """
    with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as pool:
        alone = pool.submit(clean_alone, root, key).result()
        both = [pool.submit(clean_alone, root, key) for _ in range(2)]
        return max(one.result() for one in both) / alone


def main() -> None:
    """Run what was asked for, print the table and write the figures."""
    ask = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ask.add_argument("--quick", action="store_true")
    ask.add_argument("--json", type=Path)
    ask.add_argument("--work", type=Path, default=ROOT / "build" / "benchmarks")
    ask.add_argument("--profiles", default=",".join(PROFILES))
    ask.add_argument("--threads", type=int, default=2)
    ask.add_argument("--one", action="store_true", help="one scan of each profile, and no two side by side")
    ask.add_argument("--turn", type=float, help="spread of the heads' turn, degrees; worlds of any orientation")
    told = ask.parse_args()
    require_ict()
    profiles = ("studio",) if told.quick else tuple(told.profiles.split(","))
    one_scan = told.quick or told.one
    seeds, subjects, expressions = ((0,), 1, EXPRESSIONS[:1]) if one_scan else (SEEDS, SUBJECTS, EXPRESSIONS)
    # The first call compiles the kernels; that is no scan's cost.
    warm_up(told.threads)
    template = import_ict(HEADS)
    code = code_digest()
    # Profiles innermost, so that what is there after a kill covers all of them.
    scans = [
        (profile, captures(told.work, profile, seed, expressions, subjects, told.turn), f"{s:03d}/{expression}")
        for seed in seeds
        for s in range(1, subjects + 1)
        for expression in expressions
        for profile in profiles
    ]
    # All of ours first: the plain recipe would raise the peak of memory.
    rows: dict[str, list[dict[str, float | str]]] = {profile: [] for profile in profiles}
    for profile, root, key in scans:
        name = f"{root.name}/{key}/{STEP_VERSION}/{told.threads}/{code}"
        one = kept_row(told.work, name, partial(our_row, root, key, template, told.threads))
        rows[profile].append(one)
        words = [f"{n} {float(one[n]):.3f}" for n in SHOWN if n in one]
        print(f"  {one['key']:28} {', '.join(words)} {one['rejected']}", flush=True)
    for at, (profile, root, key) in enumerate(scans):
        one = rows[profile][at // len(profiles)]
        name = f"plain/{root.name}/{key}/{(ROOT / 'benchmarks' / 'truth.py').read_text()}"
        one |= kept_row(told.work, name, partial(plain_row, root, key))
    figures: dict[str, float] = {}
    heads = ("skin", "95 %", "1 mm", "hair", "motion", "heads", "plain", "95 %", "1 mm", "s", "CPU s")
    print(f"{'profile':9} " + " ".join(f"{name:>7}" for name in heads))
    for profile in profiles:
        good = [r for r in rows[profile] if "skin_median_mm" in r]

        def mean(name: str, of: list[dict[str, float | str]] = good) -> float:
            values = [float(r[name]) for r in of if name in r and np.isfinite(float(r[name]))]
            return float(np.mean(values)) if values else float("nan")

        found = [float(r.get("complete_10mm", 0.0)) >= COMPLETE_ENOUGH for r in rows[profile]]
        figures |= {f"{profile}_{name}": mean(name) for name in MEANS}
        figures |= {f"plain_{profile}_{name}": mean(f"plain_{name}", rows[profile]) for name in MEANS}
        figures[f"{profile}_heads_found"] = float(np.mean(found))
        print(
            f"{profile:9} {mean('skin_median_mm'):7.3f} {mean('skin_p95_mm'):7.3f} {mean('complete_1mm'):7.2%} "
            f"{mean('hair_median_mm'):7.3f} {mean('motion_mm'):7.2f} {np.mean(found):7.0%} "
            f"{mean('plain_skin_median_mm', rows[profile]):7.3f} {mean('plain_skin_p95_mm', rows[profile]):7.3f} "
            f"{mean('plain_complete_1mm', rows[profile]):7.2%} {mean('seconds'):7.1f} {mean('cpu_seconds'):7.1f}",
            flush=True,
        )
    timed = [r for r in rows.get("studio", rows[profiles[0]]) if "seconds" in r]
    for name in ("seconds", "cpu_seconds"):
        figures[f"{name}_per_scan"] = float(np.mean([float(r[name]) for r in timed])) if timed else float("nan")
    peaks = [float(r["peak_mib"]) for some in rows.values() for r in some if "peak_mib" in r]
    figures["peak_mib"] = max(peaks, default=float("nan"))
    print(
        f"seconds per studio scan {figures['seconds_per_scan']:.1f} ({figures['cpu_seconds_per_scan']:.1f} of the "
        f"processor), peak {figures['peak_mib']:.0f} MiB"
    )
    if not told.one:
        _, root, key = next(scan for scan in scans if scan[0] == ("studio" if "studio" in rows else profiles[0]))
        row = kept_row(told.work, f"pair/{root.name}/{key}/{code}", lambda: {"over": side_by_side(root, key)})
        figures["side_by_side_over"] = float(row["over"])
        print(f"two side by side {figures['side_by_side_over']:.2f} of one")
    if told.json:
        told.json.write_text(json.dumps(figures, indent=1))


def warm_up(threads: int) -> None:
    """Clean a small sphere far enough to have every kernel compiled; it is no head, so it is rejected on the way."""
    from registration.depth import fit_views
    from registration.fusion import extract_surface, fuse, grid_for_box
    from registration.observation import settled
    from registration.pose_refinement import refine_poses
    from registration.watertight import complete
    from tests.registration.mesh_rig import camera_poses, see, sphere

    views = see(sphere(), camera_poses(6))
    fitted = fit_views(views, [view.depth_mm > 0 for view in views], threads)
    refine_poses(fitted, np.zeros(3), threads=threads)
    values, grid = fuse(fitted, grid_for_box(np.eye(4), np.full(3, -110.0), np.full(3, 110.0), 4.0), 12.0, 0.1, threads)
    mesh = extract_surface(values, grid)
    settled(complete(values, mesh, grid, fitted, 12.0), fitted, grid, 6.0, threads)


if __name__ == "__main__":
    main()
