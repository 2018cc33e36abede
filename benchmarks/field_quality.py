"""What training the field reaches on captures of ICT heads, beside the truth. Used by field.py.

Trained models and finished rows are kept in the work folder by what they were made from, so that a killed run goes on
where it was; the training itself goes on from its last checkpoint.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.field_data import kept, make_workspace, nphm
from benchmarks.truth import FACE_VERTICES, LOWEST_Y_MM, REACH_MM, SKIN, Surface, Truth, load_truth, rigid_motion
from model import HeadModel
from pipeline.opening import open_workspace
from pipeline.workspace import Workspace
from registration.mesh import Mesh, mesh_from_ply, sample_surface, transform_points
from registration.pictures import VIEWS, render, sheet, to_png
from registration.pieces import vertex_pieces, without_crumbs


class TrueHead:
    """One scan's truth: the skin, which of it is observed face, and all that was seen."""

    def __init__(self, truth: Truth) -> None:
        skin = truth.surface_part == SKIN
        faces = truth.surface.faces[skin]
        # the head's own vertices come first among the surface's, in ICT's order
        self.is_face = (faces < FACE_VERTICES).all(1) & (truth.surface_views[skin] >= 2)
        self.skin = Surface(Mesh.of(truth.surface.vertices, faces))
        self.seen = Surface(truth.surface.select_faces(truth.surface_views >= 1))
        self.head_from_world = np.linalg.inv(truth.head_to_world)

    def face_mm(self, points: NDArray) -> NDArray[np.float64]:
        """Distance to the true skin of those points that lie nearest to observed face, within reach."""
        distance, _, face = self.skin.closest(points)
        return distance[self.is_face[face] & (distance < REACH_MM)]

    def seen_mm(self, points: NDArray) -> NDArray[np.float64]:
        """Distance to the seen surface of the points above the throat, within reach."""
        above = transform_points(self.head_from_world, points)[:, 1] > LOWEST_Y_MM
        distance, _, _ = self.seen.closest(points[above])
        return distance[distance < REACH_MM]


def quality_rows(work: Path, quick: bool) -> dict[str, float]:
    """Train the `small` preset (`demo` if quick) and hold its heads against the truth."""
    preset, subjects, expressions = ("demo", 2, 2) if quick else ("small", 24, 6)
    steps = (100, 60) if quick else None
    workspace, captures = make_workspace(work, "quality", subjects, expressions, preset, steps)
    start = time.perf_counter()
    nphm("train", "-w", workspace.url)
    seconds = time.perf_counter() - start
    workspace = open_workspace(workspace.url)
    name = json.loads(workspace.store.get("models/latest.json"))["name"]
    with workspace.store.local_path(f"models/{name}/model.safetensors") as weights:
        head = HeadModel.load(weights.parent)
    rows = [
        kept(
            work / "rows" / f"field-{name}-{subject}.json",
            lambda s=subject: head_row(work, workspace, head, captures, s),
        )
        for subject in head.subjects
    ]
    posed = kept(work / "rows" / f"field-{name}-posed.json", lambda: posed_errors(workspace, head))
    figures = {f"train_{figure}": float(np.median([row[figure] for row in rows])) for figure in rows[0]}
    for figure in ("pieces", "pieces_with_crumbs"):
        figures[f"train_most_{figure}"] = max(row[figure] for row in rows)
    return figures | {"posed_face_mean_mm": float(np.mean(posed)), "train_seconds_this_time": seconds}


def head_row(work: Path, workspace: Workspace, head: HeadModel, captures: Path, subject: str) -> dict[str, float]:
    """A training head, meshed anew from its code, against the truth; four views of it are kept as a picture."""
    key = str(workspace.canonical_key(subject))
    truth = load_truth(captures, key)
    true = TrueHead(truth)
    scan = mesh_from_ply(workspace.read(workspace.accepted("clean", key), "mesh.ply"))
    T_world_from_head = np.array(workspace.accepted("register", key).extra("T_world_from_head"))
    T_true_from_head = rigid_motion(scan, truth) @ T_world_from_head
    whole = head.mesh(subject, "canonical", crumbs=True)
    mesh = without_crumbs(whole)
    picture = sheet([[render(mesh, azimuth, elevation) for azimuth, elevation in VIEWS]])
    (work / "rows").mkdir(parents=True, exist_ok=True)
    (work / "rows" / f"field-{subject}.png").write_bytes(to_png(picture))
    points, _, _ = sample_surface(mesh, 100_000, np.random.default_rng(0))
    points = transform_points(T_true_from_head, points)
    face, seen = true.face_mm(points), true.seen_mm(points)
    return {
        "face_median_mm": float(np.median(face)),
        "face_p95_mm": float(np.percentile(face, 95)),
        "head_median_mm": float(np.median(seen)),
        "head_p95_mm": float(np.percentile(seen, 95)),
        "pieces": float(vertex_pieces(mesh).max() + 1),
        "pieces_with_crumbs": float(vertex_pieces(whole).max() + 1),
    }


def posed_errors(workspace: Workspace, head: HeadModel) -> list[float]:
    """Mean distance of posed from registered face vertices, a scan each, but not the canonical ones."""
    face = np.flatnonzero(workspace.template().face_mask)
    errors = []
    for key in head.scans:
        subject = key.partition("/")[0]
        own = workspace.canonical_key(subject)
        if key == own:
            continue
        canonical, posed = (
            mesh_from_ply(workspace.read(workspace.accepted("register", str(one)), "mesh.ply")).vertices[face]
            for one in (own, key)
        )
        errors.append(float(np.linalg.norm(head.pose(canonical, subject, key) - posed, axis=1).mean()))
    return errors
