"""What registrations are tried on beside whole scans: scans partly cut away, turned heads, clean pairs of meshes."""

from __future__ import annotations

import contextlib
import io
import time
from dataclasses import dataclass, replace

import numpy as np
import trimesh
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from benchmarks.truth import FACE_VERTICES, Surface, Truth
from registration.alignment import align_head
from registration.mesh import Mesh, transform_points, vertex_normals
from registration.register_head import register_canonical, registration_in_world
from registration.template import Template

CUT_SHARE = 0.3
UNITS = (1.0, 10.0, 1000.0)
"""Millimetres in a unit of a turned head: mm, cm, m."""
HIT_DEG, HIT_MM = 10.0, 10.0
NRICP_LANDMARKS = 20


def cut_away(mesh: Mesh, truth: Truth, rng: np.random.Generator) -> tuple[Mesh, Truth]:
    """The scan without 30 % of itself at a side, the top or the chin, and the truth with that part unseen."""
    T_head_from_world = np.linalg.inv(truth.head_to_world)
    direction = np.array([[1.0, 0, 0], [-1.0, 0, 0], [0, 1.0, 0], [0, -1.0, 0.5]])[rng.integers(4)]
    direction = direction + 0.2 * rng.normal(size=3)
    along = transform_points(T_head_from_world, mesh.vertices) @ direction
    limit = np.quantile(along, 1 - CUT_SHARE)
    hidden = transform_points(T_head_from_world, truth.vertices) @ direction > limit - 3.0
    seen = np.where(hidden, 0, truth.vertex_views).astype(truth.vertex_views.dtype)
    return mesh.select_vertices(along <= limit), replace(truth, vertex_views=seen)


@dataclass(frozen=True)
class TurnedHead:
    """A head in any rotation, position and unit.

    Attributes:
        points, normals: (n, 3) in the unit.
        unit_to_mm: of the points.
        T_world_from_head: (4, 4) the true pose, mm.
    """

    points: NDArray[np.float64]
    normals: NDArray[np.float64]
    unit_to_mm: float
    T_world_from_head: NDArray[np.float64]


def turned_head(mesh: Mesh, truth: Truth, index: int) -> TurnedHead:
    """One of the turned heads, by its number."""
    rng = np.random.default_rng([5, index])
    W = np.eye(4)
    W[:3, :3] = Rotation.random(random_state=int(rng.integers(2**31))).as_matrix()
    W[:3, 3] = rng.normal(0, 500, 3)
    unit = float(rng.choice(UNITS))
    normals = vertex_normals(mesh.vertices, mesh.faces)[::5] @ W[:3, :3].T
    return TurnedHead(transform_points(W, mesh.vertices[::5]) / unit, normals, unit, W @ truth.head_to_world)


def pose_row(head: TurnedHead, template: Template, index: int) -> dict[str, float | bool]:
    """Whether the rigid part finds a turned head to 10 degrees, 10 mm and in its unit."""
    start = time.perf_counter()
    found = align_head(head.points, head.normals, template, index, UNITS)
    off = np.linalg.inv(head.T_world_from_head) @ found.T_world_from_head
    angle = float(np.degrees(Rotation.from_matrix(off[:3, :3]).magnitude()))
    away = float(np.linalg.norm(off[:3, 3]))
    unit = found.unit_to_mm == head.unit_to_mm
    return {
        "hit": bool(found.accepted and unit and angle < HIT_DEG and away < HIT_MM),
        "angle_deg": angle,
        "away_mm": away,
        "unit": unit,
        "score": found.score,
        "seconds": time.perf_counter() - start,
    }


def _pair(template: Template, index: int) -> Mesh:
    """A clean mesh of another person, drawn from the template's own modes."""
    modes = template.identity_basis
    draw = np.random.default_rng([9, index]).normal(size=len(modes))
    return Mesh.of(template.mesh.vertices + np.tensordot(draw, modes, 1), template.mesh.faces)


def _measured(name: str, seconds: float, vertices: NDArray[np.floating], target: Mesh) -> dict[str, float]:
    face = np.asarray(vertices, np.float64)[:FACE_VERTICES]
    return {
        f"{name}_seconds": seconds,
        f"{name}_distance_mm": float(Surface(target).closest(face)[0].mean()),
        f"{name}_vertex_mm": float(np.linalg.norm(face - target.vertices[:FACE_VERTICES], axis=1).mean()),
    }


def nricp_row(template: Template, index: int) -> dict[str, float]:
    """Trimesh's two on a clean pair. They get 20 exact landmarks and the pose."""
    target = _pair(template, index)
    marks = template.landmarks[np.linspace(0, 67, NRICP_LANDMARKS).round().astype(int)]
    source = trimesh.Trimesh(template.mesh.vertices, template.mesh.faces, process=False)
    goal = trimesh.Trimesh(target.vertices, template.mesh.faces, process=False)
    row: dict[str, float] = {}
    for name in ("amberg", "sumner"):
        run = getattr(trimesh.registration, f"nricp_{name}")
        start = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            vertices = run(source, goal, source_landmarks=marks, target_positions=target.vertices[marks])
        row |= _measured(name, time.process_time() - start, vertices, target)
    return row


def own_row(template: Template, bare: Template, index: int) -> dict[str, float]:
    """Ours on the same pair, without modes, landmarks and pose."""
    target = _pair(template, index)
    start = time.process_time()
    found = register_canonical(target, bare, threads=0)
    return _measured("ours", time.process_time() - start, registration_in_world(found), target)
