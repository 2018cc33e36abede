#!/usr/bin/env python3
"""The whole way on captures of ICT heads: three sessions in three layouts to a trained, evaluated model, against truth.

Subjects 001 to 008 come as depth frames, 009 as view clouds, 010 as fused meshes; 007 and 008 are held out. Everything
is run through the command line as a user would; only the measuring reads the truth.

    python benchmarks/real_input.py --work build/benchmarks
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import tomli_w
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.ict import CAPTURE_TOOL, HEADS, require_ict
from benchmarks.truth import (
    FACE_VERTICES,
    REACH_MM,
    SKIN,
    Surface,
    Truth,
    load_truth,
    measure_cleaning,
    rigid_motion,
)
from model import HeadModel
from pipeline.opening import open_workspace
from pipeline.workspace import Workspace
from registration.mesh import Mesh, mesh_from_ply, sample_surface, transform_points

EXPRESSIONS = "neutral_open,neutral,smile,jaw_open_wide,brows_up"
SESSIONS = (
    ("depth", 1, 8, ["--format", "depth"]),
    ("clouds", 9, 1, ["--format", "clouds", "--unit", "cm"]),
    ("mesh", 10, 1, ["--format", "mesh", "--world", "any"]),
)
HELD_OUT = ["007", "008"]


def make_sessions(work: Path, seed: int) -> dict[str, Path]:
    """Simulate the three sessions once; returns the folder of each subject's capture."""
    roots: dict[str, Path] = {}
    for name, first, count, extra in SESSIONS:
        root = work / f"ict-studio-{seed}" / name
        done = root / "complete"
        if not done.exists():
            told = ["--subjects", str(count), "--first-subject", str(first), "--expressions", EXPRESSIONS]
            call = [sys.executable, str(CAPTURE_TOOL), str(root), *told, "--seed", str(seed), *extra]
            subprocess.run(call, check=True, stdout=subprocess.DEVNULL)
            done.touch()
        roots |= {f"{subject:03d}": root for subject in range(first, first + count)}
    return roots


def nphm(*words: str | Path) -> None:
    """Run a verb as a user would; a failure ends the benchmark with the verb's own message."""
    subprocess.run([sys.executable, "-m", "flows", *map(str, words)], check=True)


def make_workspace(url: Path, roots: dict[str, Path], steps: tuple[int, int]) -> float:
    """Set up, ingest and run; returns the seconds that ``run`` took."""
    if not (url / "pipeline.toml").exists():
        template = url.parent / "ict_template.npz"
        nphm("template", "import-ict", HEADS, "-o", template)
        nphm("init", url, "--preset", "demo", "--template", template)
        config = tomllib.loads((url / "pipeline.toml").read_text())
        config["splits"]["held_out_ids"] = HELD_OUT
        config["evaluate"]["most_scans"] = len(HELD_OUT) * len(EXPRESSIONS.split(","))
        config["train"]["training"]["stage1"]["steps"], config["train"]["training"]["stage2"]["steps"] = steps
        (url / "pipeline.toml").write_text(tomli_w.dumps(config))
    nphm("ingest", *sorted({root / "session" for root in roots.values()}), "-w", url)
    start = time.perf_counter()
    nphm("run", "-w", url)
    return time.perf_counter() - start


class TrueFace:
    """The true skin of one scan, and which of it is observed face."""

    def __init__(self, truth: Truth) -> None:
        skin = truth.surface_part == SKIN
        # The head's own vertices come first among the surface's, in ICT's order.
        faces = truth.surface.faces[skin]
        self.skin = Surface(Mesh.of(truth.surface.vertices, faces))
        self.is_face = (faces < FACE_VERTICES).all(1) & (truth.surface_views[skin] >= 2)

    def distances(self, points_mm: NDArray) -> NDArray[np.float64]:
        """Distance to the true skin of those points that lie nearest to observed face, within reach."""
        distance, _, face = self.skin.closest(points_mm)
        return distance[self.is_face[face] & (distance < REACH_MM)]


def measure(workspace: Workspace, roots: dict[str, Path]) -> dict[str, float]:
    """All figures of a finished workspace."""
    accuracy: list[tuple[float, float]] = []
    registered: list[tuple[float, float]] = []
    trained: list[tuple[float, float]] = []
    rejected = 0
    latest = json.loads(workspace.store.get("models/latest.json"))["name"]
    with workspace.store.local_path(f"models/{latest}/model.safetensors") as weights:
        head = HeadModel.load(weights.parent)
    for key in workspace.scans():
        subject = key.split("/")[0]
        clean = workspace.manifest("clean", key)
        registration = workspace.manifest("register", key)
        if clean is None or registration is None or not (clean.accepted and registration.accepted):
            rejected += 1
            continue
        truth = load_truth(roots[subject], key)
        mesh = mesh_from_ply(workspace.read(clean, "mesh.ply"))
        figures = measure_cleaning(mesh, truth)
        accuracy.append((figures.skin_median_mm, figures.skin_p95_mm))
        T_true_from_head = rigid_motion(mesh, truth) @ np.array(registration.extra("T_world_from_head"))
        face = TrueFace(truth)
        fitted = mesh_from_ply(workspace.read(registration, "mesh.ply"))
        seen = np.zeros(len(fitted.vertices), bool)
        seen[:FACE_VERTICES] = truth.vertex_views[:FACE_VERTICES] >= 2
        registered.append(_median_p95(face.distances(transform_points(T_true_from_head, fitted.vertices[seen]))))
        if subject not in HELD_OUT and key == workspace.canonical_key(subject):
            points, _, _ = sample_surface(head.mesh(subject, "canonical"), 200_000, np.random.default_rng(0))
            trained.append(_median_p95(face.distances(transform_points(T_true_from_head, points))))
        print(f"{key:24s} clean {accuracy[-1]}  registered {registered[-1]}", flush=True)
    over = _summary
    return {
        "scans": float(len(workspace.scans())),
        "rejected": float(rejected),
        **over("clean_skin", accuracy),
        **over("registered_face", registered),
        **over("trained_face", trained),
    }


def _median_p95(distances: NDArray) -> tuple[float, float]:
    return round(float(np.median(distances)), 4), round(float(np.percentile(distances, 95)), 4)


def _summary(name: str, rows: list[tuple[float, float]], of: Callable = np.median) -> dict[str, float]:
    """The median over scans of each scan's median and 95th percentile, and the worst median."""
    table = np.array(rows)
    return {
        f"{name}_median_mm": float(of(table[:, 0])),
        f"{name}_p95_mm": float(of(table[:, 1])),
        f"{name}_worst_median_mm": float(table[:, 0].max()),
    }


def main() -> None:
    """Run, measure, print and keep."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--json", type=Path)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument("--steps", type=int, nargs=2, default=(3000, 2000), metavar=("STAGE1", "STAGE2"))
    args = parser.parse_args()
    require_ict()
    args.work.mkdir(parents=True, exist_ok=True)
    roots = make_sessions(args.work, args.seed)
    url = args.work / f"real-input-{args.seed}-{args.steps[0]}-{args.steps[1]}"
    seconds = make_workspace(url, roots, tuple(args.steps))
    figures = measure(open_workspace(str(url)), roots) | {"run_seconds": round(seconds, 1)}
    for name, value in figures.items():
        print(f"{name:32s} {value:10.4f}")
    if args.json:
        args.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
