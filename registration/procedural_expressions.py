"""What the project's own head can do with its face: single motions, and named expressions made of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.linalg import splu

from registration.mesh import vertex_normals
from registration.procedural_ears import ear_coordinates
from registration.procedural_neutral import neutral_head
from registration.procedural_surface import EYE_MM, MOUTH_Y_MM
from registration.procedural_topology import EYE_ROW, HeadGrid, Slit
from registration.smoothness import cotangent_laplacian

Field = NDArray[np.float64]

JAW_PIVOT_MM = np.array([0.0, 8.0, 14.0])
"""The axis of the jaw's joints on the neutral head."""
JAW_OPEN_DEG = 20.0
"""The jaw's turn at full opening."""

EXPRESSIONS: dict[str, dict[str, float]] = {
    "neutral_open": {"jaw_open": 0.35},
    "neutral": {},
    "smile": {"smile_left": 1.0, "smile_right": 1.0},
    "jaw_open_wide": {"jaw_open": 1.0},
    "brows_up": {"brow_up_left": 1.0, "brow_up_right": 1.0, "eye_wide": 0.5},
    "pucker": {"pucker": 1.0},
    "eyes_closed": {"blink_left": 1.0, "blink_right": 1.0},
    "frown": {"frown_left": 1.0, "frown_right": 1.0, "brow_down": 0.6},
    "sneer": {"sneer_left": 1.0, "sneer_right": 1.0, "brow_down": 0.4},
    "cheeks_puffed": {"cheek_puff_left": 1.0, "cheek_puff_right": 1.0},
    "brows_down": {"brow_down": 1.0},
    "jaw_left": {"jaw_left": 1.0, "jaw_open": 0.1},
    "jaw_right": {"jaw_right": 1.0, "jaw_open": 0.1},
    "jaw_forward": {"jaw_forward": 1.0},
    "mouth_left": {"mouth_left": 1.0},
    "mouth_right": {"mouth_right": 1.0},
    "funnel": {"pucker": 0.7, "jaw_open": 0.35},
    "stretch": {"stretch": 1.0, "jaw_open": 0.25},
    "lips_pressed": {"lips_pressed": 1.0},
    "surprise": {"jaw_open": 0.65, "brow_up_left": 1.0, "brow_up_right": 1.0, "eye_wide": 1.0},
    "wink_left": {"blink_left": 1.0, "smile_left": 0.5},
    "grin": {"smile_left": 0.9, "smile_right": 0.9, "jaw_open": 0.3},
}
"""Expressions by name, as amounts of ``MOTIONS``; the first is the canonical one."""


def posed(person: Field, amounts: Mapping[str, float]) -> Field:
    """A person (n, 3) at rest, brought into an expression (n, 3) by amounts of motions.

    The jaw turns on an arc and the lids slide on the eyeballs, so amounts don't add up in straight lines.
    """
    out = person.copy()
    for name, amount in amounts.items():
        if not name.startswith(("jaw", "blink")):
            out = out + amount * MOTIONS[name](person)
    for name in ("blink_left", "blink_right"):
        if name in amounts:
            out = out + _blink(person, name == "blink_left", amounts[name])
    aside = amounts.get("jaw_left", 0.0) - amounts.get("jaw_right", 0.0)
    return out + _jaw(person, amounts.get("jaw_open", 0.0), aside, amounts.get("jaw_forward", 0.0))


def motion_basis(person: Field) -> tuple[tuple[str, ...], Field]:
    """Names and offsets (E, n, 3) in mm of every motion at full amount."""
    return tuple(MOTIONS), np.stack([MOTIONS[name](person) for name in MOTIONS])


def eyeballs(person: Field) -> tuple[Field, Field]:
    """Centres (2, 3), right then left, and radii (2,) of the eyeballs that fit behind a person's lids, mm."""
    grid, rest = neutral_head()
    centres, radii = [], []
    for slit, side in ((grid.right_eye, -1.0), (grid.left_eye, 1.0)):
        home = EYE_MM * [side, 1.0, 1.0]
        edge = np.concatenate([slit.lower, slit.upper])
        centre = home + (person[edge] - rest[edge]).mean(0)
        inner = slit.rings[:, 2:-2].ravel()
        centres.append(centre)
        radii.append(
            min(12.2, float(np.linalg.norm(person[np.concatenate([edge, inner])] - centre, axis=1).min()) - 0.1)
        )
    return np.stack(centres), np.array(radii)


def _jaw(person: Field, open_: float, left: float, forward: float) -> Field:
    weight = _jaw_weight()[:, None]
    pivot = JAW_PIVOT_MM + (person - neutral_head()[1])[_jaw_joint()].mean(0) * [0.0, 1.0, 1.0]
    angle = np.radians(JAW_OPEN_DEG * open_) * weight[:, 0]
    q = person - pivot
    turned = np.column_stack(
        [q[:, 0], q[:, 1] * np.cos(angle) - q[:, 2] * np.sin(angle), q[:, 2] * np.cos(angle) + q[:, 1] * np.sin(angle)]
    )
    slide = np.array([7.0 * left, -1.0 * abs(left), 6.0 * forward])
    return turned - q + weight * slide


def _blink(person: Field, is_left: bool, amount: float) -> Field:
    grid, _ = neutral_head()
    slit = grid.left_eye if is_left else grid.right_eye
    centres, radii = eyeballs(person)
    centre, radius = centres[int(is_left)], radii[int(is_left)]
    offset = np.zeros_like(person)
    gap = person[slit.upper] - person[slit.lower]
    k = len(slit.lower)
    for rows, edge, travel, fade in (
        (_lid_rows(grid, slit, 1), slit.upper, -0.90 * gap, (1.0, 0.85, 0.62, 0.38, 0.16)),
        (_lid_rows(grid, slit, -1), slit.lower, 0.09 * gap, (1.0, 0.75, 0.4, 0.1)),
    ):
        for row, share in zip(rows, fade, strict=False):
            offset[row] = share * travel
        lining = slit.rings[:, 1 : k + 1] if edge is slit.lower else slit.rings[:, : k + 1 : -1]
        offset[lining] = travel
    moved = np.flatnonzero(np.abs(offset).sum(1) > 0)
    target = person[moved] + amount * offset[moved]
    # Lids keep their distance from the eyeball all the way.
    start, now = person[moved] - centre, target - centre
    was, is_ = np.linalg.norm(start, axis=1), np.linalg.norm(now, axis=1)
    near = np.maximum(np.minimum(was, radius + 3.0) - is_, 0.0) * (start[:, 2] > 0)
    offset[moved] = target + now / is_[:, None] * near[:, None] - person[moved]
    return offset


def _lid_rows(grid: HeadGrid, slit: Slit, step: int) -> list[NDArray[np.int64]]:
    """The edge of a lid and the grid's rows beyond it, each (k,), going away from the slit."""
    columns = slit.lower - grid.grid[EYE_ROW, 0]
    first = slit.upper if step > 0 else slit.lower
    return [first] + [grid.grid[EYE_ROW + step * r, columns] for r in range(1, 5)]


@lru_cache(maxsize=1)
def _jaw_joint() -> NDArray[np.int64]:
    v = neutral_head()[1]
    return np.flatnonzero(np.linalg.norm((_sided(v) - [64.0, 8.0, 16.0]), axis=1) < 12.0)


@lru_cache(maxsize=1)
def _jaw_weight() -> Field:
    """How far each vertex (n,) goes with the jaw: smooth between what is fixed to it and what is fixed to the skull."""
    grid, v = neutral_head()
    known = np.full(grid.count, np.nan)
    x, y, z = _sided(v).T
    known[(y > -22) & (z > 92)] = 0.0
    known[(y > -2)] = 0.0
    known[(y < -104)] = 0.0
    known[(z < 5)] = 0.0
    known[ear_coordinates(v)[2] < 1.1] = 0.0
    along = np.abs(np.linspace(-1, 1, len(grid.mouth.lower) + 2))[1:-1]
    lower, upper = 0.42 + 0.58 * (1 - along**2.2), 0.42 * along**5
    known[grid.mouth.lower], known[grid.mouth.upper], known[grid.mouth.corners] = lower, upper, 0.42
    chin = (x < 34) & (y < -52) & (y > -80) & (z > 62)
    known[chin] = 1.0
    jaw_line = (x > 34) & (y < -44) & (y > -74) & (z > 48) & (z < 80)
    known[jaw_line] = np.clip((z[jaw_line] - 14.0) / 50.0, 0, 1)
    loop = np.concatenate([[0.42], lower, [0.42], upper[::-1]])
    known[grid.mouth.rings] = loop
    for slit in (grid.right_eye, grid.left_eye):
        known[slit.rings] = 0.0
    return _harmonic(grid, v, known)


def _harmonic(grid: HeadGrid, v: Field, known: Field) -> Field:
    """Fill in what is not known (nan) with the smoothest surface function: biharmonic, clipped to 0..1."""
    stiffness, area = cotangent_laplacian(v, grid.faces)
    bending = sp.csr_matrix(stiffness @ sp.diags(1.0 / area) @ stiffness)
    fixed = ~np.isnan(known)
    values = np.where(fixed, known, 0.0)
    free = np.flatnonzero(~fixed)
    system = bending[free]
    values[free] = -splu(system[:, free].tocsc()).solve(system[:, fixed] @ known[fixed])
    return np.clip(values, 0.0, 1.0)


def _sided(v: Field) -> Field:
    return np.column_stack([np.abs(v[:, 0]), v[:, 1:]])


def _blob(centre: tuple[float, float, float], spread: tuple[float, float, float]) -> Field:
    """Bell (n,) over the neutral head around a place on both sides; a spread is a standard deviation per axis."""
    return np.exp(-0.5 * (((_sided(neutral_head()[1]) - np.asarray(centre)) / spread) ** 2).sum(1))


def _half(side: float) -> Field:
    """1 on one side of the head, 0 on the other, soft in the middle."""
    return 0.5 + 0.5 * np.tanh(side * neutral_head()[1][:, 0] / 6.0)


def _out(person: Field, weight: Field, mm: float) -> Field:
    return vertex_normals(person, neutral_head()[0].faces) * (weight * mm)[:, None]


def _move(weight: Field, x: float = 0.0, y: float = 0.0, z: float = 0.0) -> Field:
    """Offset (n, 3) by a weight; x points away from the middle on both sides."""
    side = np.tanh(neutral_head()[1][:, 0] / 6.0)
    return weight[:, None] * np.column_stack([x * side, np.full_like(side, y), np.full_like(side, z)])


def _above_mouth() -> Field:
    """1 above the seam of the lips, 0 below, following the slit."""
    grid, v = neutral_head()
    above = 1.0 / (1.0 + np.exp(-(v[:, 1] - MOUTH_Y_MM) / 1.5))
    above[grid.mouth.lower], above[grid.mouth.upper], above[grid.mouth.corners] = 0.0, 1.0, 0.5
    k = len(grid.mouth.lower)
    above[grid.mouth.rings] = np.concatenate([[0.5], np.zeros(k), [0.5], np.ones(k)])
    return above


def _smile(side: float) -> Callable[[Field], Field]:
    def motion(person: Field) -> Field:
        corner = _blob((25, -35, 100), (12, 11, 18))
        lips = _blob((12, -36, 110), (11, 8, 14))
        cheek = _blob((42, -4, 75), (14, 13, 22))
        fold = _blob((33, -22, 90), (5, 11, 14))
        lid = _blob((32, 24, 92), (12, 4.5, 14))
        offset = _move(corner, 7.5, 6.5, -5.5) + _move(lips, 2.0, 0.8, -1.8) + _move(lid, 0.0, 1.8, 0.6)
        offset += _out(person, cheek, 3.6) + _move(cheek, 1.0, 2.5) - _out(person, fold, 1.3)
        return offset * _half(side)[:, None]

    return motion


def _frown(side: float) -> Callable[[Field], Field]:
    def motion(person: Field) -> Field:
        corner = _blob((25, -37, 100), (9, 9, 16))
        chin = _blob((0, -60, 106), (18, 8, 14))
        fold = _blob((29, -48, 95), (5, 8, 12))
        offset = _move(corner, 1.5, -7.0, -1.5) + _move(chin, 0.0, 2.5, 0.8) - _out(person, fold, 1.0)
        return offset * _half(side)[:, None]

    return motion


def _brow_up(side: float) -> Callable[[Field], Field]:
    def motion(person: Field) -> Field:
        brow, forehead = _blob((28, 52, 95), (26, 8, 30)), _blob((25, 72, 92), (28, 12, 30))
        lid = _blob((31, 44, 94), (14, 4, 16))
        offset = _move(brow, 0.5, 7.0, 0.8) + _move(forehead, 0.0, 2.5, 0.6) + _move(lid, 0.0, 1.2)
        return offset * _half(side)[:, None]

    return motion


def _brow_down(person: Field) -> Field:
    inner, brow = _blob((12, 50, 104), (10, 7, 16)), _blob((30, 51, 95), (22, 6, 30))
    crease = _blob((4, 50, 106), (2.5, 8, 12))
    return _move(inner, -3.0, -3.5, 1.2) + _move(brow, -0.8, -2.8, 0.4) - _out(person, crease, 0.9)


def _sneer(side: float) -> Callable[[Field], Field]:
    def motion(person: Field) -> Field:
        wing, lip = _blob((13, -3, 108), (7, 8, 14)), _blob((12, -28, 112), (10, 7, 14)) * _above_mouth()
        beside, fold = _blob((24, 8, 98), (9, 12, 16)), _blob((21, -10, 100), (4, 11, 12))
        offset = _move(wing, 1.2, 3.6, -0.6) + _move(lip, 0.8, 4.0, 0.4)
        offset += _move(beside, 0.0, 2.6) + _out(person, beside, 1.8) - _out(person, fold, 1.2)
        return offset * _half(side)[:, None]

    return motion


def _cheek_puff(side: float) -> Callable[[Field], Field]:
    def motion(person: Field) -> Field:
        cheek, lip = _blob((44, -30, 72), (15, 17, 24)), _blob((12, -29, 110), (16, 8, 14))
        return (_out(person, cheek, 9.0) + _move(lip, -0.5, 0.0, 1.8)) * _half(side)[:, None]

    return motion


def _pucker(person: Field) -> Field:
    mouth = _blob((0, MOUTH_Y_MM, 108), (22, 15, 24))
    lips = _blob((0, MOUTH_Y_MM, 112), (15, 8, 16))
    x = person[:, 0]
    offset = np.column_stack([-0.42 * x * mouth, 0 * x, 3.0 * mouth + 4.5 * lips])
    full = 2.0 * _above_mouth() - 1.0
    off_seam = np.clip(np.abs(neutral_head()[1][:, 1] - MOUTH_Y_MM) / 8.0, 0.0, 1.0)
    offset[:, 1] += full * off_seam * (2.2 * lips * np.exp(-((x / 12.0) ** 2)))
    return offset


def _stretch(person: Field) -> Field:
    corner, band = _blob((26, -37, 98), (13, 11, 20)), _blob((38, -80, 40), (16, 22, 30))
    return _move(corner, 7.0, -2.5, -5.0) + _out(person, band, 1.6)


def _lips_pressed(person: Field) -> Field:
    lips, full = _blob((0, MOUTH_Y_MM, 112), (20, 6.0, 16)), 2.0 * _above_mouth() - 1.0
    chin = _blob((0, -62, 106), (16, 8, 14))
    offset = _move(lips, 0.6, 0.0, -3.2) + _move(chin, 0.0, 1.5, 0.8)
    offset[:, 1] -= full * 1.2 * _blob((0, MOUTH_Y_MM, 112), (20, 8, 16)) * (np.abs(person[:, 1] - MOUTH_Y_MM) > 2.5)
    return offset


def _mouth_aside(person: Field, side: float) -> Field:
    mouth = _blob((0, MOUTH_Y_MM, 105), (24, 15, 26))
    return np.column_stack([8.0 * side * mouth, side * mouth * np.tanh(person[:, 0] / 15.0), 0 * mouth])


def _eye_wide(person: Field) -> Field:
    lid, fold = _blob((31, 39, 92), (12, 2.6, 12)), _blob((31, 45, 92), (14, 4, 14))
    grid, _ = neutral_head()
    offset = _move(lid, 0.0, 2.2, -0.5) + _move(fold, 0.0, 1.0)
    for slit in (grid.right_eye, grid.left_eye):
        for low in (slit.lower, *slit.rings[:, 1 : len(slit.lower) + 1]):
            offset[low] = _move(_blob((31, 29, 92), (12, 3.0, 12)), 0.0, -0.8, 0.0)[low]
    return offset


MOTIONS: dict[str, Callable[[Field], Field]] = {
    "jaw_open": lambda person: _jaw(person, 1.0, 0.0, 0.0),
    "jaw_left": lambda person: _jaw(person, 0.0, 1.0, 0.0),
    "jaw_right": lambda person: _jaw(person, 0.0, -1.0, 0.0),
    "jaw_forward": lambda person: _jaw(person, 0.0, 0.0, 1.0),
    "smile_left": _smile(1.0),
    "smile_right": _smile(-1.0),
    "frown_left": _frown(1.0),
    "frown_right": _frown(-1.0),
    "pucker": _pucker,
    "stretch": _stretch,
    "lips_pressed": _lips_pressed,
    "mouth_left": lambda person: _mouth_aside(person, 1.0),
    "mouth_right": lambda person: _mouth_aside(person, -1.0),
    "sneer_left": _sneer(1.0),
    "sneer_right": _sneer(-1.0),
    "cheek_puff_left": _cheek_puff(1.0),
    "cheek_puff_right": _cheek_puff(-1.0),
    "brow_up_left": _brow_up(1.0),
    "brow_up_right": _brow_up(-1.0),
    "brow_down": _brow_down,
    "eye_wide": _eye_wide,
    "blink_left": lambda person: _blink(person, True, 1.0),
    "blink_right": lambda person: _blink(person, False, 1.0),
}
"""Offset (n, 3) in mm of each motion at full amount on a person at rest."""
