"""Triangle meshes as plain arrays."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TypeVar

import numpy as np
from numpy.typing import ArrayLike, NDArray

from storage.ply import read_ply, write_ply

Real = TypeVar("Real", bound=np.floating)


@dataclass(frozen=True)
class Mesh:
    """A triangle mesh, or a cloud where there are no faces.

    Attributes:
        vertices: (n, 3) float32, mm unless a name says otherwise.
        faces: (m, 3) int32, counter-clockwise seen from outside.
        colors: (n, 3) uint8 sRGB, or None.
        attributes: further per-vertex columns by name, each (n,).
    """

    vertices: NDArray[np.float32]
    faces: NDArray[np.int32]
    colors: NDArray[np.uint8] | None = None
    attributes: Mapping[str, NDArray] = field(default_factory=dict)

    @classmethod
    def of(cls, vertices: ArrayLike, faces: ArrayLike, colors: ArrayLike | None = None, **attributes: NDArray) -> Mesh:
        """Build a mesh from array-likes of any numeric type."""
        return cls(
            np.ascontiguousarray(vertices, np.float32).reshape(-1, 3),
            np.ascontiguousarray(faces, np.int32).reshape(-1, 3),
            None if colors is None else np.ascontiguousarray(colors, np.uint8),
            attributes,
        )

    def with_vertices(self, vertices: ArrayLike) -> Mesh:
        """The same topology, colours and attributes with other positions (n, 3)."""
        return replace(self, vertices=np.ascontiguousarray(vertices, np.float32))

    def transformed(self, T: NDArray[np.floating]) -> Mesh:
        """Apply a 4x4 similarity to the positions."""
        return self.with_vertices(transform_points(T, self.vertices))

    def select_faces(self, keep: NDArray) -> Mesh:
        """Keep some faces (mask or indices) and the vertices that they use, in their order."""
        faces = self.faces[keep]
        used = np.zeros(len(self.vertices), bool)
        used[faces] = True
        return self._compact(faces, used)

    def select_vertices(self, keep: NDArray[np.bool_]) -> Mesh:
        """Keep some vertices (mask) and the faces that lie wholly among them."""
        return self._compact(self.faces[keep[self.faces].all(1)], keep)

    def _compact(self, faces: NDArray[np.int32], used: NDArray[np.bool_]) -> Mesh:
        index = np.cumsum(used) - 1
        return Mesh(
            self.vertices[used],
            index[faces].astype(np.int32),
            None if self.colors is None else self.colors[used],
            {name: column[used] for name, column in self.attributes.items()},
        )


def transform_points(T: NDArray[np.floating], points: NDArray[np.floating]) -> NDArray[np.float64]:
    """Apply a 4x4 transform to (n, 3) points, in float64."""
    T = np.asarray(T, np.float64)
    return np.asarray(points, np.float64) @ T[:3, :3].T + T[:3, 3]


def face_normals(vertices: NDArray[np.floating], faces: NDArray[np.integer]) -> NDArray[np.float64]:
    """Unit normals (m, 3); zero where a triangle has no area."""
    return unit(_face_cross(vertices, faces))


def face_areas(vertices: NDArray[np.floating], faces: NDArray[np.integer]) -> NDArray[np.float64]:
    """Areas (m,) in squared units of the vertices."""
    return np.asarray(0.5 * np.linalg.norm(_face_cross(vertices, faces), axis=1))


def vertex_normals(vertices: NDArray[np.floating], faces: NDArray[np.integer]) -> NDArray[np.float64]:
    """Unit normals (n, 3), the adjoining faces weighted by area; zero at vertices without area."""
    cross = _face_cross(vertices, faces)
    total: NDArray[np.float64] = np.stack(
        [np.bincount(faces.ravel(), np.repeat(cross[:, axis], 3), minlength=len(vertices)) for axis in range(3)], 1
    )
    return unit(total)


def _face_cross(vertices: NDArray[np.floating], faces: NDArray[np.integer]) -> NDArray[np.float64]:
    corner = np.asarray(vertices, np.float64)[faces]
    return np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])


def unit(vectors: NDArray[Real]) -> NDArray[Real]:
    """Vectors (..., 3) at unit length; zero stays zero."""
    length = np.linalg.norm(vectors, axis=-1, keepdims=True)
    return np.divide(vectors, length, out=np.zeros_like(vectors), where=length > 1e-20)


def edges(faces: NDArray[np.integer]) -> NDArray[np.int64]:
    """Undirected edges (e, 2), each once, sorted."""
    if not len(faces):
        return np.zeros((0, 2), np.int64)
    count = int(faces.max()) + 1
    return np.stack(np.divmod(np.unique(_edge_keys(faces, count)), count), 1)


def boundary_vertices(faces: NDArray[np.integer], count: int) -> NDArray[np.bool_]:
    """Mask (count,) of the vertices on an open edge."""
    unique, times = np.unique(_edge_keys(faces, count), return_counts=True)
    mask = np.zeros(count, bool)
    mask[np.stack(np.divmod(unique[times == 1], count))] = True
    return mask


def _edge_keys(faces: NDArray[np.integer], count: int) -> NDArray[np.int64]:
    """One number an edge of each face (3m,), the same from both sides: numbers sort much faster than rows."""
    a, b = faces.astype(np.int64), np.roll(faces, -1, axis=1).astype(np.int64)
    return (np.minimum(a, b) * count + np.maximum(a, b)).ravel()


def sample_surface(
    mesh: Mesh, count: int, rng: np.random.Generator, density: NDArray[np.floating] | None = None
) -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64]]:
    """Draw points uniformly by area.

    Args:
        mesh: with at least one face that has an area.
        count: number of points.
        rng: the draw's own generator.
        density: (m,) points per area of each face relative to the others; the same everywhere by default.

    Returns:
        Points (count, 3), the face of each (count,), and its barycentric coordinates (count, 3).
    """
    areas = face_areas(mesh.vertices, mesh.faces)
    if density is not None:
        areas = areas * density
    face = np.searchsorted(np.cumsum(areas), rng.random(count) * areas.sum(), side="right").clip(0, len(areas) - 1)
    r, s = np.sqrt(rng.random(count)), rng.random(count)
    bary = np.stack([1 - r, r * (1 - s), r * s], 1)
    corner = mesh.vertices[mesh.faces[face]].astype(np.float64)
    return np.einsum("nk,nkc->nc", bary, corner), face, bary


def mesh_to_ply(mesh: Mesh) -> bytes:
    """Encode a mesh as binary PLY with its colours and attributes."""
    columns: dict[str, NDArray] = {axis: mesh.vertices[:, i] for i, axis in enumerate("xyz")}
    if mesh.colors is not None:
        columns |= {name: mesh.colors[:, i] for i, name in enumerate(("red", "green", "blue"))}
    return write_ply(columns | dict(mesh.attributes), mesh.faces)


def mesh_from_ply(data: bytes, where: str = "mesh.ply") -> Mesh:
    """Decode a PLY mesh or cloud.

    Raises:
        storage.errors.ScanRejected: the file is damaged.
    """
    columns, faces = read_ply(data, where)
    vertices = np.stack([columns.pop(axis) for axis in "xyz"], 1).astype(np.float32)
    colors = None
    if all(name in columns for name in ("red", "green", "blue")):
        channels = np.stack([columns.pop(name) for name in ("red", "green", "blue")], 1)
        scale = 255.0 if np.issubdtype(channels.dtype, np.floating) else 1.0
        colors = np.clip(np.round(channels * scale), 0, 255).astype(np.uint8)
    return Mesh(vertices, faces, colors, columns)
