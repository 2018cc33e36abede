"""The grid of the project's own head: rows around it, columns over it, slits for lids and lips, a cap on the crown.

Everything is mirrored by construction: column j and column -j are images of one another.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

COLUMNS = 120
ROWS = 83
MOUTH_ROW, EYE_ROW = 31, 58
MOUTH_COLUMNS = 11
"""Columns from the middle to the corner of the mouth."""
EYE_COLUMNS = (8, 19)
"""Columns of the inner and the outer corner of an eye."""
MOUTH_RINGS, EYE_RINGS = 4, 2
"""Rings of vertices that turn inwards from the edge of a lip and of a lid."""


@dataclass(frozen=True)
class Slit:
    """An opening in the grid.

    Attributes:
        lower, upper: (k,) vertices of its two edges between the corners, from the head's right to its left.
        corners: (2,) vertices of its ends, right and left.
        rings: (r, 2k + 2) vertices that line it, going inwards, in the order of ``loop``.
    """

    lower: NDArray[np.int64]
    upper: NDArray[np.int64]
    corners: NDArray[np.int64]
    rings: NDArray[np.int64]

    @property
    def loop(self) -> NDArray[np.int64]:
        """(2k + 2,) vertices around the opening: right corner, lower edge, left corner, upper edge backwards."""
        return np.concatenate([self.corners[:1], self.lower, self.corners[1:], self.upper[::-1]])


@dataclass(frozen=True)
class HeadGrid:
    """The topology, without positions.

    Attributes:
        count: number of vertices n.
        grid: (ROWS, COLUMNS) vertices; row 0 ends the neck, column 0 is the middle of the face, 1 lies to its left.
        cap: (k, k) vertices that close the crown; its border is the last row of ``grid``.
        mouth, right_eye, left_eye: the slits.
        faces: (m, 3) int32, counter-clockwise seen from outside.
        mirror: (n,) int32.
    """

    count: int
    grid: NDArray[np.int64]
    cap: NDArray[np.int64]
    mouth: Slit
    right_eye: Slit
    left_eye: Slit
    faces: NDArray[np.int32]
    mirror: NDArray[np.int32]


def head_grid() -> HeadGrid:
    """Build the topology."""
    grid = np.arange(ROWS * COLUMNS).reshape(ROWS, COLUMNS)
    next_vertex = grid.size
    above = grid.copy()  # what the quads above a row take as their lower edge
    slits: list[Slit] = []
    first, last = EYE_COLUMNS
    spans = (
        (MOUTH_ROW, -MOUTH_COLUMNS, MOUTH_COLUMNS, MOUTH_RINGS),
        (EYE_ROW, -last, -first, EYE_RINGS),
        (EYE_ROW, first, last, EYE_RINGS),
    )
    for row, start, stop, rings in spans:
        inner = np.arange(start + 1, stop) % COLUMNS
        upper = next_vertex + np.arange(len(inner))
        next_vertex += len(inner)
        above[row, inner] = upper
        lining = next_vertex + np.arange(rings * (2 * len(inner) + 2)).reshape(rings, -1)
        next_vertex += lining.size
        slits.append(Slit(grid[row, inner], upper, grid[row, [start % COLUMNS, stop % COLUMNS]], lining))
    side = COLUMNS // 4
    cap = np.full((side + 1, side + 1), -1)
    cap[_border(side)] = grid[-1, (np.arange(COLUMNS) + COLUMNS // 8) % COLUMNS]
    cap[1:-1, 1:-1] = next_vertex + np.arange((side - 1) ** 2).reshape(side - 1, side - 1)
    next_vertex += (side - 1) ** 2
    right = np.roll(grid, -1, 1)
    quads = [np.stack([above[:-1], np.roll(above, -1, 1)[:-1], right[1:], grid[1:]], -1).reshape(-1, 4)]
    for slit in slits:
        layers = np.concatenate([slit.loop[None], slit.rings])
        turned = np.roll(layers, -1, 1)
        quads.append(np.stack([turned[:-1], layers[:-1], layers[1:], turned[1:]], -1).reshape(-1, 4)[:, ::-1])
    quads.append(np.stack([cap[:-1, :-1], cap[:-1, 1:], cap[1:, 1:], cap[1:, :-1]], -1).reshape(-1, 4)[:, ::-1])
    mirror = _mirror(next_vertex, grid, slits, cap)
    faces = _symmetric_triangles(np.concatenate(quads), mirror)
    return HeadGrid(next_vertex, grid, cap, slits[0], slits[1], slits[2], faces, mirror)


def _border(side: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns around a (side + 1)^2 square, from its front left corner along the left side backwards."""
    k, far = np.arange(side), np.full(side, side)
    zero = np.zeros(side, np.int64)
    # row 0 lies in front, column 0 on the head's left
    return np.concatenate([k, far, side - k, zero]), np.concatenate([zero, k, far, side - k])


def _mirror(count: int, grid: NDArray, slits: list[Slit], cap: NDArray) -> NDArray[np.int32]:
    mirror = np.arange(count)
    mirror[grid] = grid[:, (-np.arange(COLUMNS)) % COLUMNS]
    mirror[cap] = cap[:, ::-1]
    for one, other in ((slits[0], slits[0]), (slits[1], slits[2]), (slits[2], slits[1])):
        back = (len(one.lower) + 1 - np.arange(2 * len(one.lower) + 2)) % (2 * len(one.lower) + 2)
        mirror[one.upper] = other.upper[::-1]
        mirror[one.rings] = other.rings[:, back]
    return mirror.astype(np.int32)


def _symmetric_triangles(quads: NDArray, mirror: NDArray[np.int32]) -> NDArray[np.int32]:
    """Split quads so that the two halves of the head are cut along mirrored diagonals."""
    images = np.sort(mirror[quads], axis=1)
    own = np.sort(quads, axis=1)
    turned = np.array([tuple(a) < tuple(b) for a, b in zip(images.tolist(), own.tolist(), strict=True)])
    start = np.where(turned[:, None], np.roll(quads, -1, 1), quads)
    return np.concatenate([start[:, [0, 1, 2]], start[:, [0, 2, 3]]]).astype(np.int32)
