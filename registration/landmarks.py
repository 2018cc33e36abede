"""The usual 68 landmarks of a scan: known in 3D, some perhaps missing, each with how far it may be off."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registration.mesh import transform_points
from storage.errors import ScanRejected, one_line

COUNT = 68
UNITS_MM = {"mm": 1.0, "cm": 10.0, "m": 1000.0}
TOLD_SPREAD_MM = 2.0
"""Standard deviation of a landmark that a person placed, or that a file gives without one."""
LEAST_FOR_POSE = 6
"""Fewer landmarks than this say nothing of the head's pose."""
POSE_SPREAD_MM = 10.0
"""How far a person's landmarks lie from a template's in the right pose."""

MIRRORED: NDArray[np.int64] = np.array(
    [
        *range(16, -1, -1), *range(26, 16, -1), *range(27, 31), *range(35, 30, -1),
        45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40,
        *range(54, 47, -1), *range(59, 54, -1), 64, 63, 62, 61, 60, 67, 66, 65,
    ]
)  # fmt: skip
"""(68,) the landmark on the other side of the face; its own number in the middle."""

NAMES: Mapping[str, int] = {
    "jaw_right": 0, "chin": 8, "jaw_left": 16,
    "brow_right_outer": 17, "brow_right_inner": 21, "brow_left_inner": 22, "brow_left_outer": 26,
    "nose_bridge": 27, "nose_tip": 30, "nose_base": 33, "nose_wing_right": 31, "nose_wing_left": 35,
    "eye_right_outer": 36, "eye_right_inner": 39, "eye_left_inner": 42, "eye_left_outer": 45,
    "mouth_right": 48, "lip_upper": 51, "mouth_left": 54, "lip_lower": 57,
}  # fmt: skip
"""Names by which the most used landmarks may be told; right and left are the person's own."""


@dataclass(frozen=True)
class Landmarks:
    """Landmarks of one scan.

    Attributes:
        points_mm: (68, 3) float64 in the scan's world frame; nan where a landmark is missing.
        spread_mm: (68,) float64 standard deviation of each, mm; nan where it is missing.
    """

    points_mm: NDArray[np.float64]
    spread_mm: NDArray[np.float64]

    @property
    def known(self) -> NDArray[np.int64]:
        """Numbers (k,) of the landmarks that are there."""
        return np.flatnonzero(np.isfinite(self.points_mm).all(1) & np.isfinite(self.spread_mm))

    def transformed(self, T: NDArray[np.floating]) -> Landmarks:
        """In another frame; ``T`` is a (4, 4) rigid motion."""
        return Landmarks(transform_points(T, self.points_mm), self.spread_mm)


def landmarks_from_json(data: bytes, where: str, unit: str = "mm") -> Landmarks:
    """Read a landmarks file.

    It holds ``landmarks``: either a list of 68 points, ``null`` for a missing one, or an object from a landmark's
    number or name (``NAMES``) to its point. ``unit`` (mm, cm or m) and ``spread_mm`` (one number, or one for each of
    the 68) may stand beside it.

    Args:
        data: the file.
        where: its name, for messages.
        unit: of the points where the file tells none.

    Raises:
        ScanRejected: it is no such file, or tells a landmark that there is not.
    """
    remedy = "give 68 points, or an object from number or name to point"
    try:
        told = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ScanRejected(one_line("landmarks are no JSON", where, str(error)[:200], "export them again")) from error
    told = {"landmarks": told} if isinstance(told, list) else told
    if not isinstance(told, dict) or "landmarks" not in told:
        raise ScanRejected(one_line("holds no landmarks", where, "the key 'landmarks' is missing", remedy))
    unit = told.get("unit", unit)
    if unit not in UNITS_MM:
        raise ScanRejected(one_line(f"unit {unit!r} is not known", where, "", "write mm, cm or m"))
    points = np.full((COUNT, 3), np.nan)
    for index, point in _numbered(told["landmarks"], where, remedy):
        if point is None:
            continue
        points[index] = _vector(point, where, f"landmark {index}", remedy)
    spread = _spread(told.get("spread_mm", TOLD_SPREAD_MM), where)
    known = np.isfinite(points[:, 0])
    return Landmarks(points * UNITS_MM[unit], np.where(known, spread, np.nan))


def landmarks_to_json(landmarks: Landmarks) -> bytes:
    """Encode landmarks in mm, to a thousandth. Same landmarks, same bytes."""
    known = set(landmarks.known.tolist())
    points = [np.round(p, 3).tolist() if i in known else None for i, p in enumerate(landmarks.points_mm)]
    spread = [round(float(s), 3) if i in known else None for i, s in enumerate(landmarks.spread_mm)]
    return json.dumps({"unit": "mm", "landmarks": points, "spread_mm": spread}).encode()


def pose_by_landmarks(template_points_mm: NDArray[np.floating], landmarks: Landmarks) -> NDArray[np.float64] | None:
    """The rigid motion that brings a template's landmarks onto a scan's, single wrong ones outvoted.

    Args:
        template_points_mm: (68, 3) head frame.

    Returns:
        (4, 4) ``T_world_from_head``, or None where too few are known or they lie on a line.
    """
    known = landmarks.known
    if len(known) < LEAST_FOR_POSE:
        return None
    source = np.asarray(template_points_mm, np.float64)[known]
    target = landmarks.points_mm[known]
    middle = source - source.mean(0)
    if np.linalg.svd(middle, compute_uv=False)[1] < 10.0:
        return None
    weight = 1.0 / (POSE_SPREAD_MM**2 + landmarks.spread_mm[known] ** 2)
    robust = np.ones(len(known))
    T = np.eye(4)
    for _ in range(30):
        T = _rigid(source, target, weight * robust)
        gap = np.linalg.norm(transform_points(T, source) - target, axis=1)
        scale = max(POSE_SPREAD_MM, float(np.median(gap)))
        robust = (scale**2 / (scale**2 + gap**2)) ** 2
    return T


def _rigid(
    source: NDArray[np.float64], target: NDArray[np.float64], weight: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Weighted least squares: the (4, 4) rigid motion from source (n, 3) onto target (n, 3)."""
    w = (weight / weight.sum())[:, None]
    a, b = (w * source).sum(0), (w * target).sum(0)
    u, _, vt = np.linalg.svd((w * (source - a)).T @ (target - b))
    turn = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    T = np.eye(4)
    T[:3, :3] = (u @ turn @ vt).T
    T[:3, 3] = b - T[:3, :3] @ a
    return T


def _numbered(told: Any, where: str, remedy: str) -> list[tuple[int, Any]]:
    if isinstance(told, list):
        if len(told) != COUNT:
            raise ScanRejected(one_line(f"tells {len(told)} landmarks", where, f"a list holds all {COUNT}", remedy))
        return list(enumerate(told))
    if not isinstance(told, dict):
        raise ScanRejected(one_line("landmarks are no list", where, f"found {type(told).__name__}", remedy))
    out = []
    for name, point in told.items():
        index = NAMES.get(name, int(name) if name.isascii() and name.isdigit() and len(name) < 4 else COUNT)
        if index >= COUNT:
            names = ", ".join(NAMES)
            raise ScanRejected(one_line(f"landmark {name[:40]!r} is not known", where, "", f"use 0 to 67 or {names}"))
        out.append((index, point))
    return out


def _vector(point: Any, where: str, what: str, remedy: str) -> NDArray[np.float64]:
    numbers = isinstance(point, list) and len(point) == 3 and all(type(x) in (int, float) for x in point)
    if not numbers or not all(abs(x) < 1e9 for x in point):
        raise ScanRejected(one_line(f"{what} is no point", where, f"found {str(point)[:60]}", remedy))
    return np.array(point, np.float64)


def _spread(told: Any, where: str) -> NDArray[np.float64]:
    values = told if isinstance(told, list) else [told] * COUNT
    good = len(values) == COUNT and all(v is None or (type(v) in (int, float) and 0.1 <= v < 1e3) for v in values)
    if not good:
        remedy = f"give one number, or {COUNT}"
        raise ScanRejected(one_line("spread_mm is no standard deviation", where, f"found {str(told)[:60]}", remedy))
    return np.array([TOLD_SPREAD_MM if v is None else v for v in values], np.float64)
