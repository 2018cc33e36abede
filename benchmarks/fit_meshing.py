"""How fast a head of the paper's sizes is meshed, and that the sparse surface is the dense one."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from skimage.measure import marching_cubes

from benchmarks.paper_head import paper_head
from benchmarks.plain_field import PlainIdentity
from benchmarks.timing import shown
from model import HeadModel
from model.meshing import clip, extract
from model.threads import fixed_threads
from model.units import to_mm, to_units
from registration.mesh import Mesh
from registration.surface import SurfaceIndex

RESOLUTION, QUICK_RESOLUTION = 256, 64
PARTS = 4
PLAIN_POINTS = 8_192
PLAIN_CHUNK = 512
THREADS = 2


def meshing_rows(work: Path, quick: bool) -> dict[str, float]:
    """The sparse mesh over the dense one by the same field, and over the plain implementation.

    The dense grid is evaluated in parts, our mesh being made anew between them, so that what else the machine does
    falls on both alike. The plain implementation is timed at points of the grid drawn at random and extrapolated.
    """
    head = paper_head(work, quick)
    with fixed_threads(THREADS), torch.no_grad():
        return shown(_compare(head, head.subjects[0], QUICK_RESOLUTION if quick else RESOLUTION, quick))


def _compare(head: HeadModel, subject: str, resolution: int, quick: bool) -> dict[str, float]:
    field = head.identity_field
    prepared = field.prepare(torch.as_tensor(head.identity_code(subject))[None])
    asked = 0

    def distance(points_mm: NDArray[np.float32]) -> NDArray[np.float32]:
        nonlocal asked
        asked += len(points_mm)
        return np.asarray(to_mm(field.sdf(prepared, to_units(torch.as_tensor(points_mm)))).numpy())

    lattice = lattice_points(head, resolution)
    values = np.empty(lattice.count, np.float32)
    dense_seconds, sparse_seconds = 0.0, math.inf
    sparse = extract(distance, *head.box_mm, resolution, head.throat_plane)
    for part in np.array_split(np.arange(values.size), PARTS):
        start = time.perf_counter()
        values[part] = distance(lattice.at(part))
        dense_seconds += time.perf_counter() - start
        asked, start = 0, time.perf_counter()
        sparse = extract(distance, *head.box_mm, resolution, head.throat_plane)
        sparse_seconds = min(sparse_seconds, time.perf_counter() - start)
    start = time.perf_counter()
    vertices, faces, _, _ = marching_cubes(
        values.reshape(lattice.shape), 0.0, gradient_direction="descent", allow_degenerate=False
    )
    dense = clip(Mesh.of(lattice.low + vertices * lattice.step, faces), head.throat_plane)
    dense_seconds += time.perf_counter() - start
    few = lattice.drawn(PLAIN_CHUNK if quick else PLAIN_POINTS)
    plain_seconds = plain_seconds_a_point(head, subject, few) * lattice.count
    return {
        "mesh_seconds": sparse_seconds,
        "mesh_speed_dense": dense_seconds / sparse_seconds,
        "mesh_speed_plain": plain_seconds / sparse_seconds,
        "mesh_points_share": asked / values.size,
        "mesh_error_mm": max(_farthest(sparse, dense), _farthest(dense, sparse)),
        "mesh_more_open_edges": max(0, _edges(sparse)[0] - _edges(dense)[0]),
        "mesh_more_nonmanifold_edges": max(0, _edges(sparse)[1] - _edges(dense)[1]),
    }


@dataclass(frozen=True)
class Lattice:
    """The dense grid over a model's box.

    Attributes:
        low: (3,) mm, its low corner.
        step: mm.
        shape: points along each axis.
    """

    low: NDArray[np.float64]
    step: float
    shape: tuple[int, ...]

    @property
    def count(self) -> int:
        """Its points."""
        return int(np.prod(self.shape))

    def at(self, index: NDArray[np.integer]) -> NDArray[np.float32]:
        """Points (n, 3) by number, mm."""
        return (self.low + np.stack(np.unravel_index(index, self.shape), 1) * self.step).astype(np.float32)

    def drawn(self, count: int) -> NDArray[np.float32]:
        """Some of the points, drawn at random."""
        return self.at(np.random.default_rng(0).integers(0, self.count, count))


def lattice_points(head: HeadModel, resolution: int) -> Lattice:
    """The grid with so many cells along the box's longest edge."""
    extent = head.box_mm[1] - head.box_mm[0]
    step = float(extent.max()) / resolution
    return Lattice(head.box_mm[0], step, tuple(int(n) + 1 for n in np.ceil(extent / step - 1e-9)))


def plain_seconds_a_point(head: HeadModel, subject: str, points: NDArray[np.float32]) -> float:
    """What a point costs with all 40 networks at every point."""
    plain = PlainIdentity(head.identity_field)
    prepared = plain.prepare(torch.as_tensor(head.identity_code(subject))[None])
    parts = to_units(torch.as_tensor(points)).split(PLAIN_CHUNK)
    least = math.inf
    for _ in range(2):
        start = time.perf_counter()
        with torch.no_grad():
            for part in parts:
                plain.sdf(prepared, part, torch.zeros(len(part), dtype=torch.int64))
        least = min(least, time.perf_counter() - start)
    return least / len(points)


def _farthest(one: Mesh, other: Mesh) -> float:
    """Largest distance of one surface's vertices and face centres from the other surface, mm."""
    places = np.concatenate([one.vertices, one.vertices[one.faces].mean(1)])
    return float(SurfaceIndex(other).closest(places).distance_mm.max())


def _edges(mesh: Mesh) -> tuple[int, int]:
    """Edges of one face alone, and of more than two."""
    pairs = np.sort(np.concatenate([mesh.faces[:, [0, 1]], mesh.faces[:, [1, 2]], mesh.faces[:, [2, 0]]]), axis=1)
    _, times = np.unique(pairs, axis=0, return_counts=True)
    return int((times == 1).sum()), int((times > 2).sum())
