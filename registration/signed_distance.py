"""Signed distance to a scanned head: exact to what was seen, closed where nothing was.

A scan has holes, so its own mesh knows distances but not everywhere which side is inside; its watertight companion
knows sides, but was smoothed and guesses where the rig saw nothing. Each point gets the distance to the nearer of the
scan and the companion's guessed patches. Its sign comes from the scan's own orientation right at the surface, and
elsewhere from counting crossings of the companion along rays, with a majority vote wherever two opinions differ, so
that a hole never turns the inside out.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import open3d as o3d
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from registration.mesh import Mesh, face_normals

_RAYS = (
    (0.131, 0.958, 0.255),
    (-0.873, 0.379, 0.307),
    (0.722, 0.419, -0.551),
    (0.219, 0.336, 0.916),
    (-0.4, 0.7, -0.6),
)
"""Directions without symmetry, so that no two of them graze the same edges."""
_CORNER = 1e-4
_VOXEL_MM = 4.0


@dataclass(frozen=True)
class SignedDistances:
    """Signed distances of n points.

    Attributes:
        distance_mm: (n,) float32, negative inside.
        observed: (n,) bool, the nearest surface was seen and not filled in or guessed.
        disputed: (n,) bool, away from the surface the scan's orientation and its companion disagree on the side: a
            loose sheet, or something that the companion closed over. The sign is the companion's.
    """

    distance_mm: NDArray[np.float32]
    observed: NDArray[np.bool_]
    disputed: NDArray[np.bool_]


class SignedDistanceField:
    """Answers signed-distance queries around one head.

    Args:
        clean: the scan, mm; faces counter-clockwise from outside; per-vertex ``observed`` (0 where filled in) if known.
        watertight: a closed surface around the same head, mm; per-vertex ``guessed`` (not 0 where nothing was seen).
        band_mm: within this distance of the scan its own orientation decides, for the companion may be off by as much.
        threads: of the ray caster, 0 for all cores; they do not change the result.
    """

    def __init__(self, clean: Mesh, watertight: Mesh, band_mm: float = 1.0, threads: int = 0) -> None:
        self._band_mm, self._threads = band_mm, threads
        self._clean = _scene(clean.vertices, clean.faces)
        self._oriented = _Orientation(clean)
        seen = clean.attributes.get("observed")
        everything = np.ones(len(clean.faces), bool)
        self._seen_face = everything if seen is None else (np.asarray(seen)[clean.faces] != 0).sum(1) >= 2
        self._closed = _scene(watertight.vertices, watertight.faces)
        guessed = watertight.attributes.get("guessed")
        patch = watertight.faces[:0] if guessed is None else watertight.faces[(guessed[watertight.faces] != 0).all(1)]
        self._patches = None if len(patch) == 0 else _scene(watertight.vertices, patch)
        self._reach = None if len(patch) == 0 else _LowerBound(watertight.vertices, patch, clean.vertices)

    def query(self, points_mm: NDArray[np.floating]) -> SignedDistances:
        """Signed distances of (n, 3) points in the meshes' frame."""
        points = np.ascontiguousarray(points_mm, np.float32).reshape(-1, 3)
        hit = self._clean.compute_closest_points(_tensor(points), nthreads=self._threads)
        away = points - hit["points"].numpy()
        distance = np.sqrt(np.einsum("nc,nc->n", away, away))
        face = hit["primitive_ids"].numpy().astype(np.int64)
        outside, trusted = self._oriented.side(away, face, hit["primitive_uvs"].numpy())
        observed = self._seen_face[face]
        trusted &= observed
        if self._patches is not None and self._reach is not None:
            maybe = np.flatnonzero(self._reach.below(points) < distance)
            patch_mm = self._patches.compute_distance(_tensor(points[maybe]), nthreads=self._threads).numpy()
            nearer = patch_mm < distance[maybe]
            distance[maybe[nearer]] = patch_mm[nearer]
            observed[maybe[nearer]] = False
            trusted[maybe[nearer]] = False
        inside = self._inside(points, ~outside, trusted)
        differs = trusted & (inside == outside)
        close = differs & (distance <= self._band_mm)
        inside[close] = ~outside[close]
        return SignedDistances(np.where(inside, -distance, distance), observed, differs & ~close)

    def _inside(
        self, points: NDArray[np.float32], guess: NDArray[np.bool_], trusted: NDArray[np.bool_]
    ) -> NDArray[np.bool_]:
        """One ray where it confirms a trusted guess, the majority of all rays elsewhere."""
        inside = self._odd(points, 0)
        open_ = np.flatnonzero(~trusted | (inside != guess))
        votes = inside[open_].astype(np.int32)
        for ray in range(1, len(_RAYS)):
            votes += self._odd(points[open_], ray)
        inside[open_] = 2 * votes > len(_RAYS)
        return inside

    def _odd(self, points: NDArray[np.float32], ray: int) -> NDArray[np.bool_]:
        along = np.empty((len(points), 6), np.float32)
        along[:, :3] = points
        along[:, 3:] = _RAYS[ray]
        crossings = self._closed.count_intersections(_tensor(along), nthreads=self._threads).numpy()
        return np.asarray(crossings % 2 == 1)


class _Orientation:
    """On which side of a mesh a point lies, by the angle-weighted normals of what it is nearest to."""

    def __init__(self, mesh: Mesh) -> None:
        faces = mesh.faces.astype(np.int64)
        count = len(mesh.vertices)
        self._faces = faces
        self._face = face_normals(mesh.vertices, faces)
        ends = np.sort(faces[:, [[1, 2], [2, 0], [0, 1]]], axis=2)  # the edge opposite each corner
        _, edge, times = np.unique(
            ends[..., 0].ravel() * count + ends[..., 1].ravel(), return_inverse=True, return_counts=True
        )
        total = _scatter(edge, np.repeat(self._face, 3, axis=0), len(times))
        self._edge = total[edge].reshape(-1, 3, 3)
        self._edge_open = (times[edge] != 2).reshape(-1, 3)
        corner = mesh.vertices.astype(np.float64)[faces]
        one, two = (np.roll(corner, -k, axis=1) - corner for k in (1, 2))
        lengths = np.linalg.norm(one, axis=2) * np.linalg.norm(two, axis=2)
        cosine = np.einsum("fkc,fkc->fk", one, two) / np.maximum(lengths, 1e-20)
        angle = np.arccos(np.clip(cosine, -1, 1))
        self._vertex = _scatter(faces.ravel(), (angle[..., None] * self._face[:, None]).reshape(-1, 3), count)
        self._vertex_open = np.zeros(count, bool)
        self._vertex_open[ends[self._edge_open].ravel()] = True

    def side(
        self, away: NDArray[np.float32], face: NDArray[np.int64], uv: NDArray[np.float32]
    ) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Whether points lie outside, and whether that may be trusted: not where they are nearest to an open edge."""
        normal = self._face[face]
        trusted = np.ones(len(face), bool)
        bary = np.stack([1 - uv.sum(1), uv[:, 0], uv[:, 1]], 1)
        at_edge = bary < _CORNER
        corners = at_edge.sum(1)
        on_edge = np.flatnonzero(corners == 1)
        which = at_edge[on_edge].argmax(1)
        normal[on_edge] = self._edge[face[on_edge], which]
        trusted[on_edge] = ~self._edge_open[face[on_edge], which]
        on_vertex = np.flatnonzero(corners >= 2)
        vertex = self._faces[face[on_vertex], bary[on_vertex].argmax(1)]
        normal[on_vertex] = self._vertex[vertex]
        trusted[on_vertex] = ~self._vertex_open[vertex]
        return np.einsum("nc,nc->n", away, normal) >= 0, trusted


class _LowerBound:
    """A cheap lower bound of the distance to some triangles, from a coarse grid."""

    def __init__(self, vertices: NDArray[np.float32], faces: NDArray[np.int32], around: NDArray[np.float32]) -> None:
        corner = vertices[faces]
        used = corner.reshape(-1, 3)
        everything = np.concatenate([used, around])
        self._low = everything.min(0) - 10.0
        size = np.ceil((everything.max(0) + 10.0 - self._low) / _VOXEL_MM).astype(int) + 1
        empty = np.ones(size, bool)
        cell = self._cell(used, size)
        empty[cell[:, 0], cell[:, 1], cell[:, 2]] = False
        edge_mm = np.linalg.norm(corner - np.roll(corner, 1, axis=1), axis=2).max()
        slack_mm = np.sqrt(3) * _VOXEL_MM + edge_mm
        self._mm = np.maximum(distance_transform_edt(empty).astype(np.float32) * _VOXEL_MM - slack_mm, 0)

    def _cell(self, points: NDArray[np.float32], size: NDArray[np.int_]) -> NDArray[np.int_]:
        return np.clip(((points - self._low) / _VOXEL_MM).astype(int), 0, size - 1)

    def below(self, points: NDArray[np.float32]) -> NDArray[np.float32]:
        """(n,) mm, at most the true distance; a point outside the grid counts as the nearest point in it."""
        cell = self._cell(points, np.array(self._mm.shape))
        bound: NDArray[np.float32] = self._mm[cell[:, 0], cell[:, 1], cell[:, 2]]
        return bound


def _scatter(index: NDArray[np.int64], vectors: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    return np.stack([np.bincount(index, vectors[:, axis], minlength=count) for axis in range(3)], 1)


def _scene(vertices: NDArray[np.float32], faces: NDArray[np.int32]) -> o3d.t.geometry.RaycastingScene:
    scene = o3d.t.geometry.RaycastingScene()
    scene.add_triangles(_tensor(vertices.astype(np.float32)), _tensor(faces.astype(np.uint32)))
    return scene


def _tensor(array: NDArray) -> o3d.core.Tensor:
    return o3d.core.Tensor.from_numpy(np.ascontiguousarray(array))
