"""Landmarks of a scan from its colour frames: found in each by a detector, lifted by the depth, fused in 3D."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from registration.landmarks import COUNT, Landmarks
from registration.mesh import transform_points
from registration.views import DepthView, pixel_rays

LEAST_CONFIDENCE = 0.5
WINDOW = 2
"""Half width, in pixels, of the window whose depths stand for a landmark's."""
MOST_RELIEF_MM = 12.0
"""A window with more depth than this lies across an edge: the landmark may belong to what is behind it."""
MOST_GRAZING_DEG = 65.0
"""Beyond this angle between ray and surface, a pixel's error becomes a large one in depth."""
OUTLIER_MM = (6.0, 12.0)
"""Views that put a landmark further than this from the median of all are left out: 3 times the median distance, within
these limits."""
VIEW_SPREAD_MM = 4.0
"""Standard deviation of what one view tells of one landmark, common errors of the detector included."""
LEAST_SPREAD_MM = 1.5
JAW_SPREAD_FACTOR = 3.0
"""Landmarks 0 to 16 lie on the face's outline, which is another line of the skin in each view."""


class LandmarkDetector(Protocol):
    """Finds the 68 landmarks of a face in a colour picture."""

    def detect(self, color: NDArray[np.uint8]) -> NDArray[np.float64] | None:
        """Find them in one picture.

        Args:
            color: (h, w, 3) uint8 sRGB.

        Returns:
            (68, 3) float64: column and row in pixels, pixel centres at +0.5, and confidence from 0 to 1; None where
            there is no face.
        """


def landmarks_from_views(views: Sequence[DepthView], detector: LandmarkDetector) -> Landmarks | None:
    """Find the landmarks in every view that has colour, and fuse them in 3D.

    Args:
        views: with their poses as good as they are known.
        detector: of faces in pictures.

    Returns:
        In the views' world, mm, landmarks that less than two views agree on left out; None where no view shows a face.
    """
    lifted = []
    for view in views:
        found = None if view.color is None else detector.detect(view.color)
        if found is not None:
            lifted.append(lift(view, found))
    return fuse_landmarks(np.stack(lifted)) if lifted else None


def lift(view: DepthView, found: NDArray[np.floating]) -> NDArray[np.float64]:
    """Landmarks of one picture in 3D.

    Args:
        view: depth and pose.
        found: (68, 3) column, row, confidence.

    Returns:
        (68, 3) world frame, mm; nan where there is no depth, an edge, a grazing surface or little confidence.
    """
    out = np.full((len(found), 3), np.nan)
    column, row, sure = np.asarray(found, np.float64).T
    x, y = pixel_rays(view.intrinsics, column, row)
    height, width = view.depth_mm.shape
    for i in np.flatnonzero((sure >= LEAST_CONFIDENCE) & np.isfinite(column) & np.isfinite(row)):
        u, v = int(np.floor(column[i])), int(np.floor(row[i]))
        if not (WINDOW <= u < width - WINDOW and WINDOW <= v < height - WINDOW):
            continue
        window = view.depth_mm[v - WINDOW : v + WINDOW + 1, u - WINDOW : u + WINDOW + 1].astype(np.float64)
        there = window > 0
        if there.sum() < 0.6 * window.size or np.ptp(window[there]) > MOST_RELIEF_MM:
            continue
        # A plane through the window's depths: its value in the middle, and its slope against the ray.
        dv, du = np.nonzero(there)
        du, dv = du - WINDOW - (column[i] - u - 0.5), dv - WINDOW - (row[i] - v - 0.5)
        plane = np.linalg.lstsq(np.stack([np.ones(len(du)), du, dv], 1), window[there], rcond=None)[0]
        depth = plane[0]
        step_mm = depth / np.array([view.intrinsics.fx, view.intrinsics.fy])
        if np.degrees(np.arctan(np.linalg.norm(plane[1:] / step_mm))) <= MOST_GRAZING_DEG:
            out[i] = x[i] * depth, y[i] * depth, depth
    return transform_points(view.T_world_from_camera, out)


def fuse_landmarks(points_mm: NDArray[np.floating]) -> Landmarks:
    """Fuse what several views tell of each landmark: the mean of those near the median of all.

    Args:
        points_mm: (views, 68, 3), nan where a view doesn't tell.

    Returns:
        Landmarks with a spread by how many views agree and how well.
    """
    points = np.asarray(points_mm, np.float64)
    fused, spread = np.full((COUNT, 3), np.nan), np.full(COUNT, np.nan)
    for i in range(COUNT):
        told = points[np.isfinite(points[:, i]).all(1), i]
        if len(told) < 2:
            continue
        away = np.linalg.norm(told - geometric_median(told), axis=1)
        kept = told[away <= np.clip(3.0 * np.median(away), *OUTLIER_MM)]
        if len(kept) < 2 or len(kept) < 0.5 * len(told):
            continue
        fused[i] = kept.mean(0)
        apart = np.sqrt(((kept - fused[i]) ** 2).sum(1).mean())
        own = max(LEAST_SPREAD_MM, max(VIEW_SPREAD_MM, float(apart)) / np.sqrt(len(kept)))
        spread[i] = own * (JAW_SPREAD_FACTOR if i < 17 else 1.0)
    return Landmarks(fused, spread)


def geometric_median(points: NDArray[np.floating], rounds: int = 50) -> NDArray[np.float64]:
    """The point (3,) with the least sum of distances to (k, 3) points, by Weiszfeld's iterations."""
    middle = np.asarray(np.median(points, axis=0), np.float64)
    for _ in range(rounds):
        weight = 1.0 / np.maximum(np.linalg.norm(points - middle, axis=1), 1e-6)
        middle = (weight[:, None] * points).sum(0) / weight.sum()
    return middle
