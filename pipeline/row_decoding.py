"""Stored rows of a set of samples, taken along a walk and decoded in one pass.

A batch is put together from a hundred short stretches of rows. Column by column, each would be gathered, kept and
decoded by calls of their own; here a compiled loop leads from a block's stored integers right to a batch's columns.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from pipeline.sample_format import (
    CENTRE_MM,
    FACE,
    NEAR_STEP_MM,
    OBSERVED,
    POSITION_STEP_MM,
    SETS,
    SPACE_STEP_MM,
    WEIGHT_STEP,
    Raw,
)
from registration.compiled import compiled
from storage.quantise import octahedral_table

_STEP, _CENTRE = np.float32(POSITION_STEP_MM), np.float32(CENTRE_MM)
_NEAR_STEP, _SPACE_STEP, _WEIGHT_STEP = np.float32(NEAR_STEP_MM), np.float32(SPACE_STEP_MM), np.float32(WEIGHT_STEP)


class Walk(NamedTuple):
    """Rows of a block in the order in which they are taken: ``row``, ``row + stride`` and so on, round and round.

    Attributes:
        row: the first, from 0.
        stride: from 1 to the number of rows in the block.
    """

    row: int = 0
    stride: int = 1


def empty_rows(part: str, count: int) -> dict[str, NDArray]:
    """Columns of a set's decoded rows, to be filled by ``take_rows``: lengths and distances are float32, mm.

    - ``surface``: surface (n, 3), normal (n, 3), region uint8, face and observed bool
    - ``near``, ``space``: the points (n, 3) under the set's name, and with ``_sdf`` and ``_observed`` added to it
    - ``color``: colored (n, 3), color (n, 3) uint8 sRGB
    - ``pairs``: canonical (n, 3), posed (n, 3), pair_region uint8, weight float32 from 0 to 1
    """
    columns = _DECODED[part].columns
    return {name: np.empty((count, *width), dtype) for name, (dtype, width) in columns.items()}


def take_rows(part: str, block: Raw, walk: Walk, decoded: Mapping[str, NDArray], start: int, stop: int) -> None:
    """Decode rows of a block, taken along a walk, into rows ``start`` to ``stop`` of a set's decoded columns."""
    kernel, columns, tables = _DECODED[part]
    stored = (*(block[name] for name in SETS[part]), *(table() for table in tables))
    kernel(stored, tuple(decoded[name] for name in columns), walk.row, walk.stride, start, stop)


def decode_rows(part: str, block: Raw) -> dict[str, NDArray]:
    """All rows of a block as they lie, decoded: see ``empty_rows``."""
    count = len(block[SETS[part][0]])
    decoded = empty_rows(part, count)
    take_rows(part, block, Walk(), decoded, 0, count)
    return decoded


@compiled
def _surface(stored: Any, decoded: Any, row: int, stride: int, start: int, stop: int) -> None:
    position, code, region, flags, direction = stored
    point, normal, told_region, face, observed = decoded
    for at in range(start, stop):
        place = np.int64(code[row, 0]) + 256 * np.int64(code[row, 1])
        for axis in range(3):
            point[at, axis] = np.float32(position[row, axis]) * _STEP + _CENTRE
            normal[at, axis] = direction[place, axis]
        told_region[at] = region[row]
        face[at] = (flags[row] & FACE) != 0
        observed[at] = (flags[row] & OBSERVED) != 0
        row = _next(row, stride, len(position))


@compiled
def _near(stored: Any, decoded: Any, row: int, stride: int, start: int, stop: int) -> None:
    _off_surface(stored, decoded, row, stride, start, stop, _NEAR_STEP)


@compiled
def _space(stored: Any, decoded: Any, row: int, stride: int, start: int, stop: int) -> None:
    _off_surface(stored, decoded, row, stride, start, stop, _SPACE_STEP)


@compiled
def _off_surface(stored: Any, decoded: Any, row: int, stride: int, start: int, stop: int, step_mm: np.float32) -> None:
    position, distance, flags = stored
    point, distance_mm, observed = decoded
    for at in range(start, stop):
        for axis in range(3):
            point[at, axis] = np.float32(position[row, axis]) * _STEP + _CENTRE
        distance_mm[at] = np.float32(distance[row]) * step_mm
        observed[at] = (flags[row] & OBSERVED) != 0
        row = _next(row, stride, len(position))


@compiled
def _color(stored: Any, decoded: Any, row: int, stride: int, start: int, stop: int) -> None:
    position, value = stored
    point, color = decoded
    for at in range(start, stop):
        for axis in range(3):
            point[at, axis] = np.float32(position[row, axis]) * _STEP + _CENTRE
            color[at, axis] = value[row, axis]
        row = _next(row, stride, len(position))


@compiled
def _pairs(stored: Any, decoded: Any, row: int, stride: int, start: int, stop: int) -> None:
    position, displacement, region, weight = stored
    canonical, posed, told_region, told_weight = decoded
    for at in range(start, stop):
        for axis in range(3):
            canonical[at, axis] = np.float32(position[row, axis]) * _STEP + _CENTRE
            posed[at, axis] = canonical[at, axis] + np.float32(displacement[row, axis]) * _STEP
        told_region[at] = region[row]
        told_weight[at] = np.float32(weight[row]) * _WEIGHT_STEP
        row = _next(row, stride, len(position))


@compiled
def _next(row: int, stride: int, rows: int) -> int:
    row += stride
    return row - rows if row >= rows else row


class _Decoded(NamedTuple):
    """How a set is decoded: the loop, type and width of each column in its order, and the tables that it needs."""

    kernel: Callable[..., None]
    columns: Mapping[str, tuple[type, tuple[int, ...]]]
    tables: tuple[Callable[[], NDArray], ...] = ()


_POINT, _NUMBER, _CODE, _FLAG = (np.float32, (3,)), (np.float32, ()), (np.uint8, ()), (np.bool_, ())
_DECODED: Mapping[str, _Decoded] = {
    "surface": _Decoded(
        _surface,
        {"surface": _POINT, "normal": _POINT, "region": _CODE, "face": _FLAG, "observed": _FLAG},
        (octahedral_table,),
    ),
    "near": _Decoded(_near, {"near": _POINT, "near_sdf": _NUMBER, "near_observed": _FLAG}),
    "space": _Decoded(_space, {"space": _POINT, "space_sdf": _NUMBER, "space_observed": _FLAG}),
    "color": _Decoded(_color, {"colored": _POINT, "color": (np.uint8, (3,))}),
    "pairs": _Decoded(_pairs, {"canonical": _POINT, "posed": _POINT, "pair_region": _CODE, "weight": _NUMBER}),
}
