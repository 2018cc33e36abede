"""The project's own neutral head: the topology laid onto the closed form, with lids, lips and ears shaped on it."""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.interpolate import PchipInterpolator

from registration.mesh import unit
from registration.procedural_ears import shape_ears
from registration.procedural_surface import EYE_MM, MOUTH_HALF_MM, MOUTH_Y_MM, head_distance
from registration.procedural_topology import COLUMNS, EYE_ROW, MOUTH_ROW, ROWS, HeadGrid, Slit, head_grid

Field = NDArray[np.float64]

AXIS_Z_MM = -10.0
# Row, then where the ray that finds it starts on the axis (y, mm) and how it rises (degrees), in front and behind.
_ROW_KNOTS = np.array(
    [
        [0, -138, 0, -132, 0],
        [5, -62, -35, -114, 0],
        [8, -27, -44, -102, 0],
        [12, -20, -38, -87, 0],
        [18, -20, -28, -68, 0],
        [22, -25, -18.5, -56, 0],
        [26, -31, -9, -46, 0],
        [MOUTH_ROW, MOUTH_Y_MM, 0, -35, 0],
        [53, 22, 0, 22, 0],
        [EYE_ROW, 33, 0, 33, 0],
        [63, 44, 0, 45, 0],
        [68, 50, 4, 50, 5],
        [73, 56, 16, 55, 17],
        [78, 59, 38, 59, 38],
        [ROWS - 1, 60, 66, 60, 66],
    ]
)
# Angle of the columns around the axis, degrees, against their number.
_COLUMN_KNOTS = np.array([[0, 0], [18, 24.5], [31, 60], [51, 106], [COLUMNS // 2, 180]], float)


@lru_cache(maxsize=1)
def neutral_head() -> tuple[HeadGrid, Field]:
    """The topology and its neutral positions (n, 3) in the head frame, mm; built once a process."""
    grid, bare = bare_head()
    v = bare.copy()
    shape_ears(v, grid.faces)
    return grid, v


@lru_cache(maxsize=1)
def bare_head() -> tuple[HeadGrid, Field]:
    """The same without ears: what hair lies on."""
    grid = head_grid()
    v = np.zeros((grid.count, 3))
    v[grid.grid.ravel()] = _cast(*_rays())
    v[grid.cap.ravel()] = _crown(v[grid.cap])
    _open_slits(grid, v)
    image = v[grid.mirror] * [-1.0, 1.0, 1.0]
    return grid, 0.5 * (v + image) + 0.0  # what rounding left between the halves is taken out


def _rays() -> tuple[Field, Field]:
    """Starts and directions (ROWS * COLUMNS, 3) of the rays whose last crossing with the closed form makes the grid."""
    half = PchipInterpolator(*_COLUMN_KNOTS.T)(np.arange(COLUMNS // 2 + 1))
    angle = np.radians(np.concatenate([half, -half[-2:0:-1]]))
    knots = PchipInterpolator(_ROW_KNOTS[:, 0], _ROW_KNOTS[:, 1:])(np.arange(ROWS))
    # Under the nose the rays come from above, or its underside would be seen by none.
    under_nose = np.exp(-(((np.arange(ROWS) - 40.0) / 3.5) ** 2))
    knots[:, 0] += 14.0 * under_nose
    knots[:, 1] -= 6.5 * under_nose
    front = _ease((np.cos(angle) - np.cos(np.radians(80.0))) / (np.cos(np.radians(35.0)) - np.cos(np.radians(80.0))))
    y = knots[:, :1] * front + knots[:, 2:3] * (1 - front)
    rise = np.radians(knots[:, 1:2] * front + knots[:, 3:4] * (1 - front))
    even = np.linspace(0, 2 * np.pi, COLUMNS, endpoint=False)
    even = np.where(even > np.pi, even - 2 * np.pi, even)
    to_even = 0.85 * _ease((np.arange(ROWS) - 62.0) / (ROWS - 62.0))[:, None]  # columns spread towards the crown
    turn = angle * (1 - to_even) + even * to_even
    direction = np.stack([np.sin(turn) * np.cos(rise), np.sin(rise), np.cos(turn) * np.cos(rise)], -1)
    start = np.stack([np.zeros_like(y), y, np.full_like(y, AXIS_Z_MM)], -1)
    return start.reshape(-1, 3), direction.reshape(-1, 3)


def _cast(start: Field, direction: Field, reach_mm: float = 190.0) -> Field:
    """Outermost points of the closed form along rays, found from outside inwards."""
    t = np.full(len(start), reach_mm)
    moving = np.arange(len(t))
    for _ in range(75):
        step = np.minimum(0.7 * head_distance(start[moving] + t[moving, None] * direction[moving]), 5.0)
        t[moving] = np.maximum(t[moving] - step, 0.0)
        moving = moving[np.abs(step) > 1e-5]
    return start + t[:, None] * direction


def _drop(xy: Field, front_mm: float = 150.0) -> Field:
    """Points (k, 3) of the closed form seen from the front at (k, 2)."""
    start = np.column_stack([xy, np.full(len(xy), -10.0)])
    return _cast(start, np.tile([0.0, 0.0, 1.0], (len(xy), 1)), front_mm)


def _crown(cap: Field) -> Field:
    """Fill the crown: directions harmonic between the border's, on the form. Takes (k, k, 3), returns (k * k, 3)."""
    centre = np.array([0.0, 60.0, AXIS_Z_MM])
    out = unit(cap - centre)
    k = cap.shape[0]
    s = np.linspace(0, 1, k)[:, None, None]
    t = np.linspace(0, 1, k)[None, :, None]
    out = (
        (1 - s) * out[:1] + s * out[-1:] + (1 - t) * out[:, :1] + t * out[:, -1:]
        - (1 - s) * (1 - t) * out[0, 0] - (1 - s) * t * out[0, -1] - s * (1 - t) * out[-1, 0] - s * t * out[-1, -1]
    )  # fmt: skip
    out[..., 1] = 0.0
    flat = np.linalg.norm(out, axis=-1, keepdims=True)
    rim = np.sin(np.radians(90 - _ROW_KNOTS[-1, 2]))
    out[..., 1:2] = np.sqrt(np.maximum(1 - np.minimum(flat, rim) ** 2, 0))
    out /= np.linalg.norm(out, axis=-1, keepdims=True)
    found = _cast(np.tile(centre, (k * k, 1)), out.reshape(-1, 3)).reshape(k, k, 3)
    found[[0, -1]] = cap[[0, -1]]
    found[:, [0, -1]] = cap[:, [0, -1]]
    return found.reshape(-1, 3)


def _open_slits(grid: HeadGrid, v: Field) -> None:
    """Lay the slits' edges onto the contours of lids and lips, let the grid around follow, and line the openings."""
    fixed: dict[int, Field] = {}
    for slit, lower, upper, right, left in (_mouth_edges(grid), *_eye_edges(grid)):
        v[slit.upper] = v[slit.lower]
        for index, target in ((slit.lower, lower), (slit.upper, upper), (slit.corners, np.stack([right, left]))):
            fixed |= {int(i): p for i, p in zip(index, target, strict=True)}
    _pull(grid, v, fixed)
    for slit in (grid.mouth, grid.right_eye, grid.left_eye):
        _line(slit, v)


def _mouth_edges(grid: HeadGrid) -> tuple[Slit, Field, Field, Field, Field]:
    k = len(grid.mouth.lower)
    x = MOUTH_HALF_MM * np.linspace(-1, 1, k + 2)
    y = MOUTH_Y_MM - 1.0 * np.exp(-((x / 5.0) ** 2)) + 0.9 * (x / MOUTH_HALF_MM) ** 2
    edge = _drop(np.column_stack([x, y]))
    gap = np.array([0.0, 0.03, 0.0])
    return grid.mouth, edge[1:-1] - gap, edge[1:-1] + gap, edge[0], edge[-1]


def _eye_edges(grid: HeadGrid) -> list[tuple[Slit, Field, Field, Field, Field]]:
    k = len(grid.left_eye.lower)
    s = np.linspace(0, 1, k + 2)  # from the inner corner to the outer
    x = 17.3 + 28.2 * s
    y = 31.0 + 3.2 * s
    upper = _drop(np.column_stack([x, y + 7.6 * np.sin(np.pi * s**0.85) ** 0.8]))
    lower = _drop(np.column_stack([x, y - 4.6 * np.sin(np.pi * s**1.2) ** 0.85]))
    flip = np.array([-1.0, 1.0, 1.0])
    left = (grid.left_eye, lower[1:-1], upper[1:-1], lower[0], lower[-1])
    right = (grid.right_eye, lower[-2:0:-1] * flip, upper[-2:0:-1] * flip, lower[-1] * flip, lower[0] * flip)
    return [left, right]


def _pull(grid: HeadGrid, v: Field, fixed: dict[int, Field], rounds: int = 6) -> None:
    """Move the fixed vertices to their places and spread the motion smoothly over their surroundings, on the form."""
    n = grid.count
    skin = np.concatenate([grid.grid.ravel(), grid.mouth.upper, grid.right_eye.upper, grid.left_eye.upper])
    is_skin = np.zeros(n, bool)
    is_skin[skin] = True
    f = grid.faces[is_skin[grid.faces].all(1)]
    pairs = np.unique(np.sort(f[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2), 1), axis=0)
    half = sp.csr_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (n, n))
    W = sp.csr_matrix(half + half.T)
    L = sp.csr_matrix(sp.diags(np.asarray(W.sum(1)).ravel() + 1e-9) - W)
    held = np.array(list(fixed))
    move = np.zeros((n, 3))
    move[held] = np.array(list(fixed.values())) - v[held]
    still = np.setdiff1d(np.flatnonzero(is_skin), grid.grid[18:72].ravel())
    known = np.union1d(held, still)
    free = np.setdiff1d(skin, known)
    A = (L @ L)[free]
    solve = sp.linalg.splu(A[:, free].tocsc())
    move[free] = -solve.solve(A[:, known] @ move[known])
    v += move
    outwards = v[free] - np.column_stack([0 * v[free, 0], 0.8 * v[free, 1], 0 * v[free, 0] - 30.0])
    outwards /= np.linalg.norm(outwards, axis=1, keepdims=True)
    for _ in range(12):  # along rays, since the slope misleads where the form is thin
        v[free] -= 0.7 * head_distance(v[free])[:, None] * outwards
    middle = free[grid.mirror[free] == free]
    degree = np.maximum(np.asarray(W.sum(1)).ravel(), 1.0)[free, None]
    for _ in range(rounds):
        slide = (W[free] @ v) / degree - v[free]
        slide -= _normal(v[free]) * (slide * _normal(v[free])).sum(1, keepdims=True)
        v[free] = _onto(v[free] + 0.4 * slide)
        v[middle, 0] = 0.0
    for _ in range(3):
        v[free] = _onto(v[free])


def _normal(points: Field) -> Field:
    return unit(_slope(points, head_distance(points)))


def _slope(points: Field, distance: Field, h: float = 0.05) -> Field:
    return np.stack([head_distance(points + h * e) - distance for e in np.eye(3)], 1) / h


def _onto(points: Field) -> Field:
    """One Newton step towards the closed form."""
    d = head_distance(points)
    slope = _slope(points, d)
    return points - (d / np.maximum((slope**2).sum(1), 0.25))[:, None] * slope


def _line(slit: Slit, v: Field) -> None:
    """Turn the edge inwards, ring by ring: lids against the eyeball, lips into the mouth."""
    loop = v[slit.loop]
    middle = loop.mean(0)
    depth = np.arange(1, len(slit.rings) + 1)[:, None, None]
    if len(slit.rings) == 2:
        centre = EYE_MM * [np.sign(middle[0]), 1.0, 1.0]
        inward = centre - loop
        inward /= np.linalg.norm(inward, axis=1, keepdims=True)
        v[slit.rings] = loop + inward * depth * 1.4
    else:
        k = len(slit.lower)
        apart = np.zeros_like(loop)
        apart[1 : k + 1, 1], apart[k + 2 :, 1] = -1.0, 1.0
        round_lip = 1.0 - np.abs(loop[:, :1] / MOUTH_HALF_MM) ** 2
        v[slit.rings] = loop + np.array([0, 0, -2.6]) * depth + apart * round_lip * 0.35 * (depth - 1) ** 2


def _ease(x: NDArray[np.floating]) -> Field:
    x = np.clip(x, 0.0, 1.0)
    return x * x * (3 - 2 * x)
