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

from registration.compiled import compiled
from registration.mesh import Mesh, face_normals
from registration.point_order import morton_order

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
        order = morton_order(points)
        found = self._query(points[order])
        place = np.empty_like(order)
        place[order] = np.arange(len(order))
        return SignedDistances(found.distance_mm[place], found.observed[place], found.disputed[place])

    def _query(self, points: NDArray[np.float32]) -> SignedDistances:
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
        self._faces = faces
        self._face = face_normals(mesh.vertices, faces)
        self._across = _across(faces, len(mesh.vertices))
        self._vertex = _angle_weighted(mesh.vertices.astype(np.float64), faces, self._face)
        self._vertex_open = np.zeros(len(mesh.vertices), bool)
        for corner in range(3):
            alone = self._across[:, corner] < 0
            self._vertex_open[faces[alone, corner - 2]] = True
            self._vertex_open[faces[alone, corner - 1]] = True

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
        across = self._across[face[on_edge], which]
        trusted[on_edge] = across >= 0
        normal[on_edge] += self._face[across] * (across >= 0)[:, None]
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


@compiled
def _across(faces: NDArray[np.int64], count: int) -> NDArray[np.int64]:
    """(m, 3) the triangle beyond the edge opposite each corner, -1 where there is none or more than one."""
    first = np.zeros(count + 1, np.int64)
    for face in faces:
        for corner in range(3):
            first[min(face[corner - 2], face[corner - 1]) + 1] += 1
    first = np.cumsum(first)
    filled = first.copy()
    member = np.empty(3 * len(faces), np.int64)
    for f in range(len(faces)):
        for corner in range(3):
            low = min(faces[f, corner - 2], faces[f, corner - 1])
            member[filled[low]] = 3 * f + corner
            filled[low] += 1
    across = np.full(faces.shape, -1, np.int64)
    for low in range(count):
        for one in range(first[low], first[low + 1]):
            f, corner = member[one] // 3, member[one] % 3
            high = max(faces[f, corner - 2], faces[f, corner - 1])
            beyond, times = -1, 0
            for other in range(first[low], first[low + 1]):
                g, at = member[other] // 3, member[other] % 3
                if other != one and max(faces[g, at - 2], faces[g, at - 1]) == high:
                    beyond, times = g, times + 1
            if times == 1:
                across[f, corner] = beyond
    return across


@compiled
def _angle_weighted(
    vertices: NDArray[np.float64], faces: NDArray[np.int64], normals: NDArray[np.float64]
) -> NDArray[np.float64]:
    """(n, 3) normals of the adjoining triangles, each times its angle there."""
    total = np.zeros_like(vertices)
    for f in range(len(faces)):
        for corner in range(3):
            v, p, q = faces[f, corner], faces[f, corner - 2], faces[f, corner - 1]
            dot = one = two = 0.0
            for axis in range(3):
                a, b = vertices[p, axis] - vertices[v, axis], vertices[q, axis] - vertices[v, axis]
                dot, one, two = dot + a * b, one + a * a, two + b * b
            angle = np.arccos(min(max(dot / max(np.sqrt(one * two), 1e-20), -1.0), 1.0))
            for axis in range(3):
                total[v, axis] += angle * normals[f, axis]
    return total


def _scene(vertices: NDArray[np.float32], faces: NDArray[np.int32]) -> o3d.t.geometry.RaycastingScene:
    scene = o3d.t.geometry.RaycastingScene()
    scene.add_triangles(_tensor(vertices.astype(np.float32)), _tensor(faces.astype(np.uint32)))
    return scene


def _tensor(array: NDArray) -> o3d.core.Tensor:
    return o3d.core.Tensor.from_numpy(np.ascontiguousarray(array))
