"""A field's values on a lattice, asked for only where its zero level may pass.

The lattice is refined by halves from a coarse one. Where a field's slope is at most L, a value f at one point says that
it is at least |f| - L d at distance d. So a new point whose neighbours agree in sign, one of them being farther from
the surface than its distance to the new point allows, is not evaluated: it keeps that sign and what is left of the
bound, and passes both on to the next level. L is the steepest slope between evaluated points around, an exact
distance's 1 at least, and ``MARGIN`` more. A piece of the surface that the dense lattice holds, however small or thin,
is missed only where the field is steeper than that between the surface and an evaluated point; and the sign of every
point beside a known crossing is checked by its value, so that a surface once found is followed to its end even there.

Below cells of ``BLOCK`` only the blocks that the surface may pass are kept. Each holds its own closed lattice; what two
of them share is evaluated once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import product

import numpy as np
from numpy.typing import NDArray

Distance = Callable[[NDArray[np.float32]], NDArray[np.float32]]
"""(N, 3) float32 head mm to (N,) float32 mm, negative inside."""

MARGIN = 0.3
"""How much steeper a field may be than it was seen to be around, mm a mm."""

BLOCK = 8
_COARSE_CELLS = 32
_CORNERS = np.array(list(product((0, 1), repeat=3)))


@dataclass(frozen=True)
class Crossings:
    """The lattice where the surface passes.

    Attributes:
        low: (3,) mm, place of lattice point 0.
        step: mm.
        cells: (3,) of the whole lattice.
        cell: (m, 3) int64 low corners of the unit cells that the surface passes, sorted.
        point: (p, 3) int64 their corners, each once, sorted.
        value: (p,) float32 the field there, mm.
    """

    low: NDArray[np.float64]
    step: float
    cells: NDArray[np.int64]
    cell: NDArray[np.int64]
    point: NDArray[np.int64]
    value: NDArray[np.float32]


def find_crossings(
    distance: Distance,
    low_mm: NDArray[np.floating],
    high_mm: NDArray[np.floating],
    resolution: int,
    plane: NDArray[np.floating] | None = None,
) -> Crossings:
    """Find the unit cells of a box's lattice that a field's zero level passes.

    Args:
        distance: the field.
        low_mm, high_mm: (3,) corners of the box; it is widened to whole coarse cells.
        resolution: cells along the longest edge.
        plane: (4,); blocks wholly on its negative side (``plane[:3] @ x + plane[3] < 0``) are left out.
    """
    low = np.asarray(low_mm, np.float64)
    extent = np.asarray(high_mm, np.float64) - low
    step = float(extent.max()) / resolution
    size = 2 ** max(0, int(np.log2(resolution / _COARSE_CELLS)))
    cells = np.ceil(extent / step / size - 1e-9).astype(np.int64).clip(1) * size
    return _Search(distance, low, step, cells, plane).run(size)


class _Search:
    def __init__(
        self,
        distance: Distance,
        low: NDArray[np.float64],
        step: float,
        cells: NDArray[np.int64],
        plane: NDArray[np.floating] | None,
    ) -> None:
        self.distance, self.low, self.step, self.cells, self.plane = distance, low, step, cells, plane
        self._strides = np.array([(cells[1] + 1) * (cells[2] + 1), cells[2] + 1, 1])

    def run(self, size: int) -> Crossings:
        nothing = np.full((1, *(self.cells // size + 1)), np.nan, np.float32)
        whole = _Patches(
            np.zeros((1, 3), np.int64), nothing, np.zeros(nothing.shape, bool), np.ones_like(nothing), size
        )
        self._evaluate_unknown(whole)
        while whole.size > BLOCK:
            self._refine(whole)
        whole.measure_slopes(self.step)
        self.coarse = whole
        self.block = whole.size
        self.slot = np.full(self.cells // self.block, -1, np.int64)
        closed = (0, *[self.block + 1] * 3)
        none = np.zeros(closed, np.float32)
        self.blocks = _Patches(np.zeros((0, 3), np.int64), none, np.zeros(closed, bool), none, 1)
        self.wanted = self._wanted()
        self._add(np.argwhere(self.wanted & self._may_pass()))
        changed = np.arange(len(self.blocks.origin))
        while len(changed):
            changed = self._complete(changed)
        return self._crossings()

    def _wanted(self) -> NDArray[np.bool_]:
        """Which blocks have a corner on the plane's positive side."""
        if self.plane is None:
            return np.ones(self.slot.shape, bool)
        place = np.stack(np.meshgrid(*(np.arange(n + 1) for n in self.slot.shape), indexing="ij"), -1) * self.block
        height = (self.low + place * self.step) @ np.asarray(self.plane[:3], np.float64) + float(self.plane[3])
        _, highest = _extremes(height[None], (1, 1, 1))
        return np.asarray(highest[0] >= 0)

    def _may_pass(self) -> NDArray[np.bool_]:
        """Which coarse cells the surface may pass."""
        low, high = _extremes(self.coarse.values, (1, 1, 1))
        farthest = np.maximum(high, -low)[0]
        nearest = np.maximum(low, -high)[0]
        _, slope = _extremes(self.coarse.slope, (1, 1, 1))
        reach = (slope[0] + MARGIN) * np.float32(self.step * self.block * np.sqrt(3))
        return (nearest <= 0) | ((farthest <= reach) & (nearest <= 0.5 * reach))

    def _refine(self, patches: _Patches) -> None:
        """Halve the cells; points that their neighbours' values do not keep from the surface are evaluated."""
        patches.measure_slopes(self.step)
        patches.halve(self.step)
        self._evaluate_unknown(patches)

    def _evaluate_unknown(self, patches: _Patches) -> None:
        unknown = np.argwhere(np.isnan(patches.values))
        key = (patches.origin[unknown[:, 0]] + unknown[:, 1:] * patches.size) @ self._strides
        patches.values[tuple(unknown.T)] = self._evaluate(key)
        patches.exact[tuple(unknown.T)] = True

    def _evaluate(self, key: NDArray[np.int64]) -> NDArray[np.float32]:
        """Values at lattice points by number, each asked for once however often it stands there."""
        once, back = np.unique(key, return_inverse=True)
        if not len(once):
            return np.zeros(0, np.float32)
        points = self.low + self._place(once) * self.step
        return np.asarray(self.distance(points.astype(np.float32)), np.float32)[back]

    def _place(self, key: NDArray[np.int64]) -> NDArray[np.int64]:
        return np.stack(np.unravel_index(key, self.cells + 1), 1)

    def _complete(self, chosen: NDArray[np.int64]) -> NDArray[np.int64]:
        """Evaluate what is missing around the crossed cells of some blocks; returns the blocks to look at again."""
        values = self.blocks.values[chosen]
        crossed = _crossed(values)
        wanted = _corners_of(crossed) & ~self.blocks.exact[chosen]
        where = np.argwhere(wanted)
        place = self.blocks.origin[chosen[where[:, 0]]] + where[:, 1:]
        found = self._evaluate(place @ self._strides)
        turned = (found < 0) != (values[wanted] < 0)
        touched = self._share(place, found)
        again = np.unique(touched[np.tile(turned, len(_CORNERS))])
        return np.union1d(again[again >= 0], self._grow(chosen, crossed))

    def _share(self, place: NDArray[np.int64], value: NDArray[np.float32]) -> NDArray[np.int64]:
        """Give values to all blocks that hold their points; returns these (8 times the points), -1 where none."""
        touched = []
        for corner in _CORNERS:
            home = place // self.block - corner
            local = place - home * self.block
            inside = ((local <= self.block) & (home >= 0) & (home < self.slot.shape)).all(1)
            slot = np.full(len(place), -1)
            slot[inside] = self.slot[tuple(home[inside].T)]
            there = slot >= 0
            at = (slot[there], *local[there].T)
            self.blocks.values[at] = value[there]
            self.blocks.exact[at] = True
            touched.append(slot)
        return np.concatenate(touched)

    def _grow(self, chosen: NDArray[np.int64], crossed: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Add blocks into which the surface goes on from some blocks; returns their slots."""
        negative = self.blocks.values[chosen] < 0
        wanted = []
        for axis, side in product(range(3), (0, 1)):
            face = np.take(negative, -side, axis + 1)
            leaving = face.any((1, 2)) & ~face.all((1, 2))
            home = self.blocks.origin[chosen[leaving]] // self.block
            home[:, axis] += 2 * side - 1
            wanted.append(home[((home >= 0) & (home < self.slot.shape)).all(1)])
        home = np.unique(np.concatenate(wanted), axis=0)
        home = home[(self.slot[tuple(home.T)] < 0) & self.wanted[tuple(home.T)]]
        if not len(home):
            return np.zeros(0, np.int64)
        first = len(self.blocks.origin)
        self._add(home)
        # the new ones and those around them know different points of what they share
        around = np.unique((home[:, None] + np.array(list(product((-1, 0, 1), repeat=3)))).reshape(-1, 3), axis=0)
        around = around[((around >= 0) & (around < self.slot.shape)).all(1)]
        slot = self.slot[tuple(around.T)]
        slot = slot[slot >= 0]
        known = np.argwhere(self.blocks.exact[slot])
        place = self.blocks.origin[slot[known[:, 0]]] + known[:, 1:]
        self._share(place, self.blocks.values[slot][self.blocks.exact[slot]])
        return np.arange(first, len(self.blocks.origin))

    def _add(self, home: NDArray[np.int64]) -> None:
        """Add blocks at places (n, 3) of the coarse lattice."""
        corner = tuple((home[:, None] + _CORNERS).reshape(-1, 3).T)
        whole = self.coarse
        values, slope = (known[0][corner].reshape(-1, 2, 2, 2) for known in (whole.values, whole.slope))
        new = _Patches(home * self.block, values, whole.exact[0][corner].reshape(-1, 2, 2, 2), slope, self.block)
        while new.size > 1:
            self._refine(new)
        first = len(self.blocks.origin)
        self.slot[tuple(home.T)] = np.arange(first, first + len(home))
        self.blocks = self.blocks.joined(new)

    def _crossings(self) -> Crossings:
        crossed = _crossed(self.blocks.values)
        where = np.argwhere(crossed)
        cell = self.blocks.origin[where[:, 0]] + where[:, 1:]
        corner = np.argwhere(_corners_of(crossed))
        key, first = np.unique((self.blocks.origin[corner[:, 0]] + corner[:, 1:]) @ self._strides, return_index=True)
        value = self.blocks.values[tuple(corner[first].T)]
        return Crossings(self.low, self.step, self.cells, cell, self._place(key), value)


@dataclass
class _Patches:
    """Closed lattices of one shape, each with its place in the whole.

    Attributes:
        origin: (n, 3) lowest point of each, in unit cells.
        values: (n, a, b, c): exact, or a bound of the right sign, or nan where not known yet.
        exact: (n, a, b, c) which values were evaluated.
        slope: (n, a, b, c) steepest seen around, mm a mm, at least 1.
        size: unit cells between two points.
    """

    origin: NDArray[np.int64]
    values: NDArray[np.float32]
    exact: NDArray[np.bool_]
    slope: NDArray[np.float32]
    size: int

    def measure_slopes(self, step: float) -> None:
        """Take the slopes between neighbours that were evaluated into account; ``step`` is a unit cell's, mm."""
        for axis in (1, 2, 3):
            before, after = _halves(axis)
            rise = np.abs(self.values[after] - self.values[before]) / np.float32(step * self.size)
            rise[~(self.exact[before] & self.exact[after])] = 0
            for side in (before, after):
                np.maximum(self.slope[side], rise, out=self.slope[side])

    def halve(self, step: float) -> None:
        """Put points between all points: nan, or a bound where the neighbours tell the sign."""
        self.size //= 2
        n, *shape = self.values.shape
        values = np.full([n, *(2 * a - 1 for a in shape)], np.nan, np.float32)
        exact: NDArray[np.bool_] = np.zeros(values.shape, bool)
        slope = np.empty_like(values)
        for odd in product((0, 1), repeat=3):
            new = (slice(None), *(slice(start, None, 2) for start in odd))
            low, high = _extremes(self.values, odd)
            _, slope[new] = _extremes(self.slope, odd)
            if not any(odd):
                values[new], exact[new] = self.values, self.exact
                continue
            reach = (slope[new] + MARGIN) * np.float32(step * self.size * np.sqrt(sum(odd)))
            bound = np.maximum(high, -low) - reach
            told = (bound > 0) & ((low > 0) | (high < 0))
            values[new] = np.where(told, np.copysign(bound, low), np.nan)
        self.values, self.exact, self.slope = values, exact, slope

    def joined(self, other: _Patches) -> _Patches:
        """These and others of the same shape and size."""
        return _Patches(
            np.concatenate([self.origin, other.origin]),
            np.concatenate([self.values, other.values]),
            np.concatenate([self.exact, other.exact]),
            np.concatenate([self.slope, other.slope]),
            self.size,
        )


def _halves(axis: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """All lattice points but the last along an axis, and their neighbours."""
    return (slice(None),) * axis + (slice(-1),), (slice(None),) * axis + (slice(1, None),)


def _extremes(values: NDArray, along: tuple[int, ...]) -> tuple[NDArray, NDArray]:
    """Least and largest of the neighbours along some axes, of lattices (n, a, b, c)."""
    low = high = values
    for axis, wanted in enumerate(along, 1):
        if wanted:
            before, after = _halves(axis)
            low, high = np.minimum(low[before], low[after]), np.maximum(high[before], high[after])
    return low, high


def _crossed(values: NDArray[np.float32]) -> NDArray[np.bool_]:
    """Cells (n, a - 1, b - 1, c - 1) whose corners differ in sign."""
    negative = values < 0
    some, every = negative, negative
    for axis in (1, 2, 3):
        before, after = _halves(axis)
        some, every = some[before] | some[after], every[before] & every[after]
    return np.asarray(some & ~every)


def _corners_of(cells: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Points (n, a + 1, b + 1, c + 1) that are corners of some of the cells (n, a, b, c)."""
    points = cells
    for axis in (1, 2, 3):
        before, after = _halves(axis)
        shape = list(points.shape)
        shape[axis] += 1
        wider: NDArray[np.bool_] = np.zeros(shape, bool)
        wider[before] = points
        wider[after] |= points
        points = wider
    return points
