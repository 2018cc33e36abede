"""Quantisation: how values become small integers with a stated bound on the error."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import ScanRejected, one_line


@dataclass(frozen=True)
class Column:
    """How one array of a group is stored.

    Attributes:
        name: of the array.
        dtype: of the stored integers (or of plain floats).
        dimensions: names, the first runs over rows.
        meaning: one line for people.
        scale, offset: stored * scale + offset is the value in ``unit``; a scale of 0 stores the values as they are.
        unit: of the value.
        attributes: further attributes, such as CF's ``flag_meanings``.
    """

    name: str
    dtype: str
    dimensions: tuple[str, ...]
    meaning: str
    scale: float = 0.0
    offset: float = 0.0
    unit: str = ""
    attributes: Mapping[str, Any] = field(default_factory=dict)

    def quantise(self, values: NDArray, where: str) -> NDArray:
        """Round values to the stored type; the error is at most half of ``scale``.

        Raises:
            ScanRejected: a value is not finite, or does not fit into the stored type.
        """
        if not self.scale:
            return np.ascontiguousarray(values, self.dtype)
        steps = np.rint((np.asarray(values, np.float64) - self.offset) / self.scale)
        limits = np.iinfo(self.dtype)
        good = (steps >= limits.min) & (steps <= limits.max)
        if not good.all():
            low, high = limits.min * self.scale + self.offset, limits.max * self.scale + self.offset
            why = f"{int((~good).sum())} values lie outside {low:.1f} to {high:.1f} {self.unit}"
            raise ScanRejected(one_line(f"{self.name} does not fit", where, why, "check the scan's registration"))
        return steps.astype(self.dtype)

    def decode(self, stored: NDArray) -> NDArray:
        """Stored integers as float32 values; arrays without a scale as they are."""
        if not self.scale:
            return stored
        values = stored.astype(np.float32)
        values *= np.float32(self.scale)
        if self.offset:
            values += np.float32(self.offset)
        return values

    def described(self) -> dict[str, Any]:
        """The array's attributes."""
        scaled = {"scale_factor": self.scale, "add_offset": self.offset} if self.scale else {}
        unit = {"units": self.unit} if self.unit else {}
        return {"long_name": self.meaning, **scaled, **unit, **self.attributes}


def encode_octahedral(normals: NDArray[np.floating]) -> NDArray[np.uint8]:
    """Unit vectors (n, 3) as two bytes each (n, 2), off by at most 0.65 degrees.

    The unit sphere is folded onto an octahedron and that onto a square; of the four grid points around a vector the
    nearest in angle is taken. A zero vector becomes +z.
    """
    v = np.asarray(normals, np.float64)
    v = v / np.maximum(np.abs(v).sum(1, keepdims=True), 1e-12)
    fold = np.where(v[:, 2:] < 0, (1 - np.abs(v[:, 1::-1])) * np.where(v[:, :2] >= 0, 1.0, -1.0), v[:, :2])
    low = np.clip(np.floor((fold + 1) * 127), 0, 253).astype(np.int64)
    unit = v / np.maximum(np.linalg.norm(v, axis=1, keepdims=True), 1e-12)
    best = low.astype(np.uint8)
    score = np.full(len(v), -2.0)
    for corner in ((0, 0), (0, 1), (1, 0), (1, 1)):
        trial = (low + corner).astype(np.uint8)
        cosine = np.einsum("nc,nc->n", decode_octahedral(trial), unit)
        better = cosine > score
        best[better], score[better] = trial[better], cosine[better]
    return best


def decode_octahedral(codes: NDArray[np.uint8]) -> NDArray[np.float32]:
    """What ``encode_octahedral`` wrote, as float32 unit vectors (n, 3)."""
    place = np.ascontiguousarray(codes).view("<u2")[..., 0].astype(np.intp)
    return octahedral_table().take(place, axis=0, mode="clip")


@cache
def octahedral_table() -> NDArray[np.float32]:
    """(65536, 3) the unit vector of each pair of bytes, the second byte counting 256."""
    axis = np.arange(256) / 127.0 - 1.0
    x, y = (a.ravel() for a in np.meshgrid(axis, axis))
    z = 1 - np.abs(x) - np.abs(y)
    slip = np.maximum(-z, 0)
    v = np.stack([x - np.copysign(slip, x), y - np.copysign(slip, y), z], 1)
    v /= np.linalg.norm(v, axis=1, keepdims=True)
    return np.asarray(v, np.float32)
