"""The zero level of a signed distance as a mesh, evaluated only near the surface.

The lattice is refined from coarse cells to fine ones. A cell is kept where its corners differ in sign or lie nearer to
the surface than the cell is wide. Once at the finest level, cells next to a crossing that were left out are added until
none is missing, so that the surface continues wherever the dense grid's would. All values lie on one lattice and the
cells are meshed in one go: there are no seams.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray
from skimage.measure import marching_cubes

from registration.mesh import Mesh

Distance = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""(N, 3) float32 head mm to (N,) float32 mm, negative inside."""

_COARSEST = 8
_SLACK = 1.5
_CORNERS = np.stack(np.meshgrid([0, 1], [0, 1], [0, 1], indexing="ij"), -1).reshape(8, 3)
_NEIGHBOURS = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]])


def extract(distance: Distance, low_mm: NDArray[np.floating], high_mm: NDArray[np.floating], resolution: int) -> Mesh:
    """Mesh the zero level inside a box.

    Args:
        distance: the field; wrong by at most a factor 1.5 in its slope near the surface.
        low_mm, high_mm: (3,) corners of the box; it is widened to whole cells.
        resolution: cells along the longest edge.

    Returns:
        Every piece of the surface within the box that a coarse cell of 8 cells' width could see; open where the surface
        leaves the box. Faces are counter-clockwise seen from the positive side.
    """
    low = np.asarray(low_mm, np.float64)
    extent = np.asarray(high_mm, np.float64) - low
    step = float(extent.max()) / resolution
    cells = np.ceil(extent / step / _COARSEST - 1e-9).astype(np.int64).clip(1) * _COARSEST
    lattice = _Lattice(distance, low, step, cells)
    size = _COARSEST
    active = np.stack(np.meshgrid(*[np.arange(0, n, size) for n in cells], indexing="ij"), -1).reshape(-1, 3)
    while size > 1:
        active = active[lattice.touched(active, size)]
        size //= 2
        active = (active[:, None] + _CORNERS * size).reshape(-1, 3)
    return lattice.mesh(lattice.close(active))


class _Lattice:
    """Values on a dense lattice of which few are ever computed; nan where not yet."""

    def __init__(self, distance: Distance, low: NDArray[np.float64], step: float, cells: NDArray[np.int64]) -> None:
        self.distance, self.low, self.step, self.cells = distance, low, step, cells
        self.shape = cells + 1
        self.values = np.full(self.shape, np.nan, np.float32)
        self._strides = np.array([self.shape[1] * self.shape[2], self.shape[2], 1])

    def corners(self, active: NDArray[np.int64], size: int) -> NDArray[np.float32]:
        """Values (m, 8) at the corners of cells of ``size`` whose low corners are (m, 3); computed where new."""
        place = (active @ self._strides)[:, None] + (_CORNERS * size) @ self._strides
        flat = self.values.reshape(-1)
        wanted = np.zeros(flat.size, bool)
        wanted[place] = True
        new = np.flatnonzero(wanted)
        new = new[np.isnan(flat[new])]
        index = np.stack(np.unravel_index(new, self.shape), 1)
        flat[new] = self.distance((self.low + index * self.step).astype(np.float32))
        corners: NDArray[np.float32] = flat[place]
        return corners

    def touched(self, active: NDArray[np.int64], size: int) -> NDArray[np.bool_]:
        """Mask (m,) of the cells that the surface may pass."""
        corners = self.corners(active, size)
        near = np.abs(corners).min(1) < _SLACK * 0.5 * np.sqrt(3) * size * self.step
        return near | _crossed(corners)

    def close(self, active: NDArray[np.int64]) -> NDArray[np.int64]:
        """Low corners of all unit cells that the surface passes, from most of them."""
        known = np.zeros(self.cells, bool)
        known[tuple(active.T)] = True
        crossed = [active[_crossed(self.corners(active, 1))]]
        while len(crossed[-1]):
            around = (crossed[-1][:, None] + _NEIGHBOURS).reshape(-1, 3)
            around = around[((around >= 0) & (around < self.cells)).all(1)]
            around = np.unique(around[~known[tuple(around.T)]], axis=0)
            known[tuple(around.T)] = True
            crossed.append(around[_crossed(self.corners(around, 1))])
        return np.concatenate(crossed)

    def mesh(self, crossed: NDArray[np.int64]) -> Mesh:
        """Marching cubes over these unit cells."""
        if not len(crossed):
            return Mesh.of(np.zeros((0, 3)), np.zeros((0, 3)))
        low = crossed.min(0)
        window = tuple(slice(a, b) for a, b in zip(low, crossed.max(0) + 2, strict=True))
        values = self.values[window]
        mask = np.zeros(values.shape, bool)
        mask[tuple((crossed - low + 1).T)] = True
        vertices, faces, _, _ = marching_cubes(
            values, 0.0, mask=mask, gradient_direction="descent", allow_degenerate=False
        )
        return Mesh.of(self.low + (vertices + low) * self.step, faces)


def _crossed(corners: NDArray[np.float32]) -> NDArray[np.bool_]:
    inside = (corners < 0).sum(1)
    return (inside > 0) & (inside < 8)


def clip(mesh: Mesh, plane: NDArray[np.floating]) -> Mesh:
    """Keep what lies on the positive side of a plane, triangles across it cut along it.

    Args:
        mesh: positions and faces; other columns are dropped.
        plane: (4,) with ``plane[:3] @ x + plane[3] >= 0`` on the side that stays.
    """
    height = mesh.vertices.astype(np.float64) @ np.asarray(plane[:3], np.float64) + float(plane[3])
    keep = height >= 0
    kept = keep[mesh.faces].sum(1)
    crossing = mesh.faces[(kept > 0) & (kept < 3)].astype(np.int64)
    kept_crossing = keep[crossing].sum(1)
    odd = np.where(kept_crossing == 1, keep[crossing].argmax(1), (~keep[crossing]).argmax(1))
    a, b, c = (np.take_along_axis(crossing, ((odd + turn) % 3)[:, None], 1)[:, 0] for turn in range(3))
    pairs = np.sort(np.stack([np.stack([a, b], 1), np.stack([a, c], 1)], 1), axis=2)
    edges, index = np.unique(pairs.reshape(-1, 2), axis=0, return_inverse=True)
    share = height[edges[:, 0]] / (height[edges[:, 0]] - height[edges[:, 1]])
    start, stop = mesh.vertices[edges[:, 0]].astype(np.float64), mesh.vertices[edges[:, 1]].astype(np.float64)
    cut = start + share[:, None] * (stop - start)
    ab, ac = (len(mesh.vertices) + index.reshape(-1, 2)).T
    tip = kept_crossing == 1
    faces = np.concatenate(
        [
            mesh.faces[kept == 3],
            np.stack([a, ab, ac], 1)[tip],
            np.stack([ab, b, c], 1)[~tip],
            np.stack([ab, c, ac], 1)[~tip],
        ]
    )
    whole = Mesh.of(np.concatenate([mesh.vertices, cut.astype(np.float32)]), faces)
    return whole.select_faces(np.ones(len(faces), bool))
