"""Closest points and rays on one mesh."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import open3d as o3d
from numpy.typing import NDArray

from registration.mesh import Mesh, boundary_vertices, vertex_normals


@dataclass(frozen=True)
class SurfacePoints:
    """Places on a mesh, one for each query.

    Attributes:
        distance_mm: (n,) float64 from the query; infinite where a ray met nothing.
        points: (n, 3) float64.
        faces: (n,) int64 index of the face; 0 where a ray met nothing.
        bary: (n, 3) float64 barycentric coordinates in that face.
    """

    distance_mm: NDArray[np.float64]
    points: NDArray[np.float64]
    faces: NDArray[np.int64]
    bary: NDArray[np.float64]


class SurfaceIndex:
    """A mesh prepared for queries. Answers do not depend on the number of threads.

    Args:
        mesh: in mm, with at least one face.
        threads: how many threads a query may use; 0 takes all.
    """

    def __init__(self, mesh: Mesh, threads: int = 1) -> None:
        if len(mesh.faces) == 0:
            raise ValueError("a surface needs faces; this mesh is a cloud")
        self.mesh = mesh
        self.vertices = mesh.vertices.astype(np.float64)
        self.normals = vertex_normals(self.vertices, mesh.faces)
        self.boundary = boundary_vertices(mesh.faces, len(mesh.vertices))
        self.threads = threads
        self._scene = o3d.t.geometry.RaycastingScene(nthreads=threads)
        self._scene.add_triangles(
            o3d.core.Tensor.from_numpy(np.ascontiguousarray(mesh.vertices, np.float32)),
            o3d.core.Tensor.from_numpy(mesh.faces.astype(np.uint32)),
        )

    def closest(self, points: NDArray[np.floating]) -> SurfacePoints:
        """The nearest place on the surface to each of (n, 3) points."""
        query = np.ascontiguousarray(points, np.float32)
        found = self._scene.compute_closest_points(o3d.core.Tensor.from_numpy(query), nthreads=self.threads)
        faces = found["primitive_ids"].numpy().astype(np.int64)
        bary = _bary(found["primitive_uvs"].numpy())
        place = self.interpolate(self.vertices, faces, bary)  # float64, not the engine's float32
        return SurfacePoints(np.linalg.norm(place - points, axis=1), place, faces, bary)

    def cast(self, origins: NDArray[np.floating], directions: NDArray[np.floating]) -> SurfacePoints:
        """The first place that each ray meets; ``directions`` (n, 3) need not be of unit length."""
        length = np.linalg.norm(directions, axis=1, keepdims=True)
        rays = np.concatenate([origins, directions / np.maximum(length, 1e-12)], 1).astype(np.float32)
        found = self._scene.cast_rays(o3d.core.Tensor.from_numpy(rays), nthreads=self.threads)
        distance = found["t_hit"].numpy().astype(np.float64)
        faces = np.where(np.isfinite(distance), found["primitive_ids"].numpy(), 0).astype(np.int64)
        bary = _bary(found["primitive_uvs"].numpy())
        return SurfacePoints(distance, self.interpolate(self.vertices, faces, bary), faces, bary)

    def interpolate(
        self, values: NDArray[np.floating], faces: NDArray[np.int64], bary: NDArray[np.floating]
    ) -> NDArray[np.float64]:
        """Carry per-vertex values (vertices, ...) to places on the surface (n, ...)."""
        corners = values[self.mesh.faces[faces]]
        return np.asarray(np.einsum("nk,nk...->n...", bary, corners, dtype=np.float64))

    def normals_at(self, faces: NDArray[np.int64], bary: NDArray[np.floating]) -> NDArray[np.float64]:
        """Unit normals (n, 3), interpolated between the vertices'."""
        normal = self.interpolate(self.normals, faces, bary)
        length = np.linalg.norm(normal, axis=1, keepdims=True)
        return np.divide(normal, length, out=np.zeros_like(normal), where=length > 1e-12)

    def on_boundary(self, faces: NDArray[np.int64], bary: NDArray[np.floating]) -> NDArray[np.bool_]:
        """Mask (n,) of places on an open edge: a query whose nearest place is there looks past the surface."""
        return np.asarray((self.boundary[self.mesh.faces[faces]] | (bary < 1e-3)).all(1))


def _bary(uv: NDArray[np.float32]) -> NDArray[np.float64]:
    uv64 = np.clip(uv.astype(np.float64), 0, 1)
    return np.stack([1 - uv64.sum(1), uv64[:, 0], uv64[:, 1]], 1)
