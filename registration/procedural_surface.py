"""The closed form behind the project's own head: soft unions and cuts of simple bodies, in the head frame, mm.

Every body is placed by adult averages of anthropometry (head 152 mm wide and 192 mm long, 63 mm between the pupils);
places and radii of skull, face and nose were then fitted to an average of scanned adults, the mean head of ICT-FaceKit.
The value is close to a signed distance near the surface, negative inside.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float64]

EYE_MM = np.array([31.5, 33.0, 79.5])
"""Centre of the head's left eyeball."""
EYE_RADIUS_MM = 12.2
LID_MM = 1.6
"""Thickness of a lid."""
MOUTH_Y_MM = -36.0
MOUTH_HALF_MM = 25.0


def head_distance(points: Field) -> Field:
    """Signed distance (n,) in mm of points (n, 3) to the neutral head with lids and lips closed, ears left out."""
    side = points.copy()
    side[:, 0] = np.sqrt(points[:, 0] ** 2 + 4.0) - 2.0  # both sides in one, without a crease in the middle
    d = _union(_skull(side), _face(side), 18.0)
    d = _union(d, _neck(side), 20.0)
    d = _cut(d, _ellipsoid(side, (24, 32.5, 109), (20, 12, 14.5)), 14.0)
    d = _union(d, _ball(side, EYE_MM, EYE_RADIUS_MM + LID_MM), 5.0)
    d = _union(d, _nose(side), 9.0)
    d = _cut(d, _ellipsoid(side, (6.0, -13.0, 114.5), (3.4, 4.5, 5.5)), 2.5)
    return _lid_folds(_lips(d, side), side)


def _skull(p: Field) -> Field:
    d = _union(_ellipsoid(p, (0, 57.5, -16), (73.5, 86, 70)), _ellipsoid(p, (0, 68.5, 27.5), (68.5, 70.5, 77)), 40.0)
    return _union(d, _capsule(p, (11.5, 50.5, 90.5), (38, 48.5, 80), 10.5, 10), 30.0)


def _face(p: Field) -> Field:
    d = _ellipsoid(p, (0, -13, 37), (47, 78, 57))
    d = _union(d, _ellipsoid(p, (18, 3.5, 76.5), (23.5, 29, 21)), 16.0)  # beside the nose
    d = _union(d, _ellipsoid(p, (47, 36, 46), (14.5, 24, 21)), 20.0)  # temple
    d = _union(d, _ellipsoid(p, (43, 9, 59), (19.5, 21, 26.5)), 20.0)  # cheekbone
    d = _union(d, _capsule(p, (42, -36.5, 33.5), (18, -60, 78), 14, 12.5), 26.0)  # lower jaw
    d = _union(d, _ellipsoid(p, (0, -66, 84), (19.5, 16, 20.5)), 14.0)  # chin
    d = _union(d, _ellipsoid(p, (44.5, 5.5, 23.5), (22.5, 41, 36.5)), 24.0)  # in front of the ear
    return _union(d, _ellipsoid(p, (28, -20.5, 57), (27, 38.5, 35)), 18.0)  # cheek


def _neck(p: Field) -> Field:
    y = p[:, 1]
    flare = np.clip((-y - 105.0) / 60.0, 0, 1.2) ** 2
    z = p[:, 2] + 14.0 - 0.18 * (y + 60.0)
    tube = np.hypot(p[:, 0] / (1 + 0.9 * flare), z / (1.04 + 0.3 * flare)) - 54.0
    return np.maximum(tube, y - 5.0)  # it ends within the skull


def _nose(p: Field) -> Field:
    d = _capsule(p, (0, 41.5, 98.5), (0, 10.5, 112.5), 3, 8)
    d = _union(d, _capsule(p, (2, 28, 88.5), (12, 0, 110.5), 9, 1.5), 9.0)  # flanks
    d = _union(d, _ellipsoid(p, (0, 1, 121), (8.5, 8.5, 7.5)), 10.0)  # tip
    d = _union(d, _ellipsoid(p, (12.0, -4.5, 107.5), (6.0, 7.0, 10.5)), 4.5)  # wings
    return _union(d, _capsule(p, (0, -6, 119), (0, -11, 108), 4.2, 5.0), 5.0)  # between the nostrils


def _lips(d: Field, p: Field) -> Field:
    x = p[:, 0]
    d = _union(d, _ellipsoid(p, (0, -33.5, 84.5), (29, 25.5, 27.5)), 14.0)  # the mound over the teeth
    d = _union(d, _capsule(p, (3, -31.0, 111.2), (22, -35.0, 100.5), 4.8, 1.8), 4.5)
    d = _union(d, _capsule(p, (0, -41.5, 110.0), (19, -37.8, 101.5), 5.6, 2.0), 4.5)
    front = np.clip((p[:, 2] - 80.0) / 10.0, 0, 1)
    seam = MOUTH_Y_MM - 1.0 * np.exp(-((x / 5.0) ** 2))
    groove = np.exp(-(((p[:, 1] - seam) / 1.6) ** 2)) * np.clip(1.2 - (x / MOUTH_HALF_MM) ** 4, 0, 1)
    philtrum = np.exp(-((x / 3.2) ** 2) - (((p[:, 1] + 21.0) / 7.0) ** 2))
    below_lip = np.exp(-((x / 17.0) ** 2) - (((p[:, 1] + 51.5) / 4.5) ** 2))
    return d + (2.2 * groove + 1.2 * philtrum + 2.2 * below_lip) * front


def _lid_folds(d: Field, p: Field) -> Field:
    q = p - EYE_MM
    height = q[:, 1] - (9.6 - 0.016 * (q[:, 0] + 1.0) ** 2)
    fold = np.exp(-((height / 1.1) ** 2)) * np.clip(1.25 - (q[:, 0] / 15.0) ** 2, 0, 1) * (p[:, 2] > 70)
    below = q[:, 1] + 8.2 - 0.012 * q[:, 0] ** 2
    bag = np.exp(-((below / 1.6) ** 2)) * np.clip(1.1 - (q[:, 0] / 14.0) ** 2, 0, 1) * (p[:, 2] > 70)
    return d + 1.3 * fold + 0.45 * bag


def _ball(p: Field, centre: tuple[float, float, float] | Field, radius: float) -> Field:
    return np.linalg.norm(p - np.asarray(centre), axis=1) - radius


def _ellipsoid(p: Field, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Field:
    q = p - np.asarray(centre, float)
    r = np.asarray(radii, float)
    near, far = np.linalg.norm(q / r, axis=1), np.linalg.norm(q / r**2, axis=1)
    return near * (near - 1.0) / np.maximum(far, 1e-9)


def _capsule(p: Field, a: tuple[float, float, float], b: tuple[float, float, float], ra: float, rb: float) -> Field:
    start, along = np.asarray(a, float), np.asarray(b, float) - np.asarray(a, float)
    t = np.clip((p - start) @ along / (along @ along), 0, 1)
    return np.linalg.norm(p - start - t[:, None] * along, axis=1) - (ra + t * (rb - ra))


def _union(a: Field, b: Field, soft: float) -> Field:
    h = np.clip(0.5 + 0.5 * (b - a) / soft, 0, 1)
    return b + (a - b) * h - soft * h * (1 - h)


def _cut(a: Field, b: Field, soft: float) -> Field:
    return -_union(-a, b, soft)
