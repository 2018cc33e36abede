"""Fits to what users bring: heads in any pose and unit, few noisy points, and things that are no heads.

People who were not trained on, by the `small` preset's model. A turned head counts as found if the start of the fit,
before the codes refine it, is within 10 degrees and 10 mm of the scan's registration, in its unit. Things that are no
heads count as accepted if that start is; the fit's own residuals, which would reject more, are not asked.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from benchmarks.field_data import kept, nphm
from benchmarks.nonheads import NON_HEADS
from benchmarks.paper_head import HELD_OUT, QUICK_HELD_OUT, people
from benchmarks.timing import shown
from model import HeadModel
from model.head_fitter import NphmFitter
from pipeline.evaluate import load_model, read_scan
from pipeline.evaluate_config import EvaluateConfig
from pipeline.evaluation import HeadScan, evaluate_scan
from pipeline.fit import ScanFitConfig, fit_scans
from pipeline.workspace import Workspace
from registration.mesh import sample_surface, transform_points
from registration.point_search import search_points
from registration.rendered_points import single_view_cloud
from registration.template import Template
from storage.digest import digest_json

EXPRESSIONS, QUICK_EXPRESSIONS = ("neutral_open", "smile", "jaw_open_wide", "brows_up"), ("neutral_open", "smile")
UNITS_TO_MM = (1.0, 10.0, 1000.0)
HIT_DEG, HIT_MM = 10.0, 10.0
POSES, QUICK_POSES = 100, 4
VIEWS_DEG = (0.0, 90.0, -90.0)
VIEW_SPREAD_DEG = 12.0
POINTS, FEW_POINTS, NOISE_MM = 2500, 250, 1.5
NOISY_SCANS = 6
ROOT = Path(__file__).resolve().parents[1]
SEARCH = ("point_order", "pose_search", "search_model", "point_fit", "point_search", "cloud_noise", "cloud_normals")
"""Modules of ``registration`` that the rows of poses and of things depend on."""


def scan_rows(work: Path, quick: bool) -> dict[str, float]:
    """Poses found, things accepted, seconds of a fit, and the face's error with few noisy points."""
    workspace, _ = people(work, quick)
    template = workspace.template()
    accepted = [name for name in _things(quick) if _accepted(work, name, template, quick)]
    figures = shown({"nonheads_accepted": float(len(accepted))})
    scans = [f"{s}/{e}" for s in _held_out(quick) for e in (QUICK_EXPRESSIONS if quick else EXPRESSIONS)]
    figures |= shown(_poses(work, workspace, scans, QUICK_POSES if quick else POSES))
    nphm("run", "-w", workspace.url, "--until", "train")
    head = load_model(workspace, json.loads(workspace.store.get("models/latest.json"))["name"])
    figures |= shown(_seconds(head, read_scan(workspace, scans[-1], template), quick))
    return figures | shown(_noisy(work, workspace, head, scans[:: max(1, len(scans) // NOISY_SCANS)]))


def _held_out(quick: bool) -> tuple[str, ...]:
    return QUICK_HELD_OUT if quick else HELD_OUT


def _things(quick: bool) -> list[str]:
    return list(NON_HEADS)[:: 5 if quick else 1]


def _accepted(work: Path, name: str, template: Template, quick: bool) -> bool:
    """Whether one thing is taken for a head, from many points or from few noisy ones."""
    rng = np.random.default_rng([11, *name.encode()])
    digest = digest_json([_search_code(), (ROOT / "benchmarks" / "nonheads.py").read_text(), template.digest()])[:12]
    for count, noise_mm in ((POINTS, 0.0),) if quick else ((POINTS, 0.0), (2 * FEW_POINTS, NOISE_MM)):
        points, _, _ = sample_surface(NON_HEADS[name](), count, rng)
        points = points + noise_mm * rng.normal(size=points.shape)

        def row(points: NDArray = points) -> dict[str, str | float]:
            found = search_points(points, None, template, 0, UNITS_TO_MM)
            return {"score": found.score, "reason": found.reason}

        told = kept(work / "rows" / f"thing-{name.replace(' ', '-')}-{count}-{digest}.json", row)
        print(f"  {name}, {count} points: {told['reason'] or 'ACCEPTED'}", flush=True)
        if not told["reason"]:
            return True
    return False


def _search_code() -> list[str]:
    return [(ROOT / "registration" / f"{name}.py").read_text() for name in SEARCH]


def _poses(work: Path, workspace: Workspace, scans: list[str], count: int) -> dict[str, float]:
    """How many of so many turned, shifted and rescaled views are found."""
    code = _search_code()
    hits = 0
    for index in range(count):
        key = scans[index % len(scans)]
        name = f"pose-{index:03d}-{digest_json([workspace.accepted('register', key).outputs_digest(), code])[:12]}.json"
        row = kept(work / "rows" / name, lambda key=key, index=index: _pose(workspace, key, index))
        if not row["hit"]:
            print(f"  missed: {row}", flush=True)
        hits += row["hit"]
    return {"poses_hit_of_100": 100.0 * hits / count}


def _pose(workspace: Workspace, key: str, index: int) -> dict:
    scan, rng = read_scan(workspace, key, workspace.template()), np.random.default_rng([5, index])
    yaw_deg = VIEWS_DEG[index % 3] + rng.uniform(-VIEW_SPREAD_DEG, VIEW_SPREAD_DEG)
    cloud = single_view_cloud(scan.clean, scan.throat_plane, POINTS, rng, _direction(yaw_deg, rng.uniform(-12, 12)))
    T = np.eye(4)
    T[:3, :3] = Rotation.random(random_state=int(rng.integers(2**31))).as_matrix()
    T[:3, 3] = rng.uniform(-500, 500, 3)
    unit = float(rng.choice(UNITS_TO_MM))
    found = search_points(transform_points(T, cloud.points_mm) / unit, None, workspace.template(), 0, UNITS_TO_MM)
    off = np.linalg.inv(T) @ found.T_world_from_head
    angle_deg = float(np.degrees(Rotation.from_matrix(off[:3, :3]).magnitude()))
    away_mm = float(np.linalg.norm(off[:3, 3]))
    hit = found.accepted and found.unit_to_mm == unit and angle_deg < HIT_DEG and away_mm < HIT_MM
    told = {"key": key, "yaw_deg": yaw_deg, "angle_deg": angle_deg, "away_mm": away_mm, "score": found.score}
    return told | {"hit": bool(hit), "reason": found.reason}


def _direction(yaw_deg: float, pitch_deg: float) -> NDArray[np.float64]:
    yaw, pitch = np.radians([yaw_deg, pitch_deg])
    return np.array([np.sin(yaw) * np.cos(pitch), np.sin(pitch), np.cos(yaw) * np.cos(pitch)])


def _seconds(head: HeadModel, scan: HeadScan, quick: bool) -> dict[str, float]:
    """One view with nothing told, from points to codes, meshes and verdict."""
    cloud = single_view_cloud(scan.clean, scan.throat_plane, POINTS, np.random.default_rng(0))
    config = ScanFitConfig(resolution=64) if quick else ScanFitConfig()
    start = time.perf_counter()
    fit_scans(head, [cloud.points_mm], config=config)
    return {"fit_seconds": time.perf_counter() - start}


def _noisy(work: Path, workspace: Workspace, head: HeadModel, scans: list[str]) -> dict[str, float]:
    """Mean over scans of the face's distance, fitted to few noisy points of one view."""
    config = EvaluateConfig(points=FEW_POINTS, noise_mm=NOISE_MM)
    errors = []
    for key in scans:

        def row(key: str = key) -> float:
            scan = read_scan(workspace, key, head.template)
            fitter = NphmFitter(head, config.fit, config.resolution)
            result = evaluate_scan(scan, [fitter], config, workspace.seed("evaluate", key))
            return float(result.methods[fitter.name].errors["face"].as_figures()["point_to_triangle_mm"])

        digest = digest_json([config.model_dump(mode="json"), head.identity_codes.tolist()])[:12]
        errors.append(kept(work / "rows" / f"noisy-{key.replace('/', '-')}-{digest}.json", row))
    return {"noisy_face_mm": float(np.mean(errors))}
