"""Hold a mesh against a simulated capture's truth: one rigid motion removed, then distances by part.

What is face, what is observed, and what is compared with what follows the capture tool's own page on its truth.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import open3d as o3d
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from registration.mesh import Mesh, face_normals, sample_surface, transform_points

SKIN, HAIR, INSIDE, WORN = 0, 1, 2, 3
LOWEST_Y_MM = -95.0
REACH_MM = 20.0
FACE_VERTICES = 6706
"""ICT vertices before this one are the face: brow to chin, no ears, no throat."""


@dataclass(frozen=True)
class Truth:
    """One scan's truth, in mm in the scan's true world.

    Attributes:
        vertices: (26719, 3) in ICT's order.
        vertex_views: (26719,) cameras that see each.
        landmarks: (68, 3).
        surface: every layer.
        surface_part, surface_views: per face.
        cameras: (views, 4, 4) camera to world, OpenGL axes.
        head_to_world: (4, 4).
    """

    vertices: NDArray[np.float64]
    vertex_views: NDArray[np.uint8]
    landmarks: NDArray[np.float64]
    surface: Mesh
    surface_part: NDArray[np.uint8]
    surface_views: NDArray[np.uint8]
    cameras: NDArray[np.float64]
    head_to_world: NDArray[np.float64]


def load_truth(root: Path, key: str) -> Truth:
    """Read ``root/truth/SUBJECT/EXPRESSION.npz``."""
    with np.load(root / "truth" / f"{key}.npz") as z:
        return Truth(
            z["vertices"].astype(np.float64),
            z["vertex_views"],
            z["landmarks"].astype(np.float64),
            Mesh.of(z["surface_vertices"], z["surface_faces"]),
            z["surface_part"],
            z["surface_views"],
            z["cameras"],
            z["head_to_world"],
        )


class Surface:
    """Closest points on a mesh."""

    def __init__(self, mesh: Mesh) -> None:
        self.normals = face_normals(mesh.vertices, mesh.faces)
        self._scene = o3d.t.geometry.RaycastingScene(1)
        self._scene.add_triangles(o3d.core.Tensor(mesh.vertices), o3d.core.Tensor(mesh.faces.astype(np.uint32)))

    def closest(self, points: NDArray) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.int64]]:
        """Distance (n,), closest point (n, 3) and its face (n,)."""
        found = self._scene.compute_closest_points(o3d.core.Tensor(points.astype(np.float32)))
        near = found["points"].numpy().astype(np.float64)
        return np.linalg.norm(points - near, axis=1), near, found["primitive_ids"].numpy().astype(np.int64)


def rigid_motion(mesh: Mesh, truth: Truth, seed: int = 0) -> NDArray[np.float64]:
    """T_true_from_told (4, 4): brings the mesh onto the seen surface, point to plane, robustly weighted."""
    head_from_true = np.linalg.inv(truth.head_to_world)

    def above(moved: NDArray) -> NDArray[np.bool_]:
        return np.asarray(transform_points(head_from_true, moved)[:, 1] > LOWEST_Y_MM)

    return motion_onto(mesh, Surface(truth.surface.select_faces(truth.surface_views >= 1)), seed, above)


def motion_onto(
    mesh: Mesh,
    surface: Surface,
    seed: int = 0,
    counts: Callable[[NDArray], NDArray[np.bool_]] = lambda moved: np.ones(len(moved), bool),
) -> NDArray[np.float64]:
    """(4, 4) rigid motion of a mesh onto a surface, point to plane, robustly weighted.

    Args:
        mesh, surface: mm, no further than some centimetres apart.
        seed: of the points that are drawn on the mesh.
        counts: which of the moved points (n, 3) are to be brought onto it.
    """
    points, _, _ = sample_surface(mesh, 20000, np.random.default_rng(seed))
    T = np.eye(4)
    scale = 5.0
    for _ in range(30):
        moved = transform_points(T, points)
        distance, near, face = surface.closest(moved)
        use = (distance < 20.0) & counts(moved)
        normal = surface.normals[face[use]]
        centre = moved[use].mean(0)
        J = np.concatenate([np.cross(moved[use] - centre, normal), normal], 1)
        r = ((moved[use] - near[use]) * normal).sum(1)
        scale = max(0.02, min(scale, 2.0 * float(np.median(np.abs(r)))))
        w = 1.0 / (1.0 + (r / scale) ** 2) ** 2
        x = np.linalg.solve(J.T @ (J * w[:, None]) + 1e-9 * np.eye(6), -J.T @ (w * r))
        step = np.eye(4)
        step[:3, :3] = Rotation.from_rotvec(x[:3]).as_matrix()
        step[:3, 3] = centre + x[3:] - step[:3, :3] @ centre
        T = step @ T
        if np.abs(x[:3]).max() * 150 < 1e-4 and np.abs(x[3:]).max() < 1e-4:
            break
    return T


def motion_mm(T: NDArray[np.float64], truth: Truth) -> float:
    """How far the motion moves the middle of the head."""
    centre = truth.head_to_world[:3, 3]
    return float(np.linalg.norm(T[:3, :3] @ centre + T[:3, 3] - centre))


@dataclass(frozen=True)
class CleaningFigures:
    """One cleaned mesh against the truth; mm and shares.

    Attributes:
        motion_mm: the rigid motion removed.
        skin_median_mm, skin_p95_mm, hair_median_mm, hair_p95_mm: accuracy, mesh to seen surface by part, within 20 mm.
        beyond: share of the mesh's points further than 20 mm from any seen surface.
        complete_1mm: share of the surface seen by two cameras (skin and hair) within 1 mm of the mesh.
        complete_10mm: share of it within 10 mm; what is missing was cut off.
    """

    motion_mm: float
    skin_median_mm: float
    skin_p95_mm: float
    hair_median_mm: float
    hair_p95_mm: float
    beyond: float
    complete_1mm: float
    complete_10mm: float


def measure_cleaning(mesh: Mesh, truth: Truth, points: int = 40000, seed: int = 0) -> CleaningFigures:
    """Accuracy and completeness of a cleaned mesh, one rigid motion removed."""
    rng = np.random.default_rng(seed)
    T = rigid_motion(mesh, truth)
    head_from_world = np.linalg.inv(truth.head_to_world)
    moved = mesh.transformed(T)

    def above(p: NDArray) -> NDArray:
        return transform_points(head_from_world, p)[:, 1] > LOWEST_Y_MM

    keep = above(moved.vertices)[moved.faces].all(1)
    sample, _, _ = sample_surface(moved.select_faces(keep), points, rng)
    seen_faces = np.flatnonzero(truth.surface_views >= 1)
    distance, _, face = Surface(truth.surface.select_faces(seen_faces)).closest(sample)
    part = truth.surface_part[seen_faces[face]]
    near = distance <= REACH_MM
    twice = (truth.surface_views >= 2) & (truth.surface_part <= HAIR)
    wanted, _, _ = sample_surface(truth.surface.select_faces(twice), points, rng)
    missing, _, _ = Surface(moved).closest(wanted[above(wanted)])

    def percentile(which: int, q: float) -> float:
        d = distance[near & (part == which)]
        return float(np.percentile(d, q)) if len(d) else float("nan")

    return CleaningFigures(
        motion_mm(T, truth),
        percentile(SKIN, 50),
        percentile(SKIN, 95),
        percentile(HAIR, 50),
        percentile(HAIR, 95),
        float(1.0 - near.mean()),
        float((missing <= 1.0).mean()),
        float((missing <= 10.0).mean()),
    )
