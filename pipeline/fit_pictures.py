"""A picture of one fitted scan: its points, the head over them, how far they are off, and how sure the rest is."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from pipeline.fit import FittedScan
from registration.mesh import Mesh, transform_points
from registration.pictures import FRONT, LEFT, RIGHT, Picture, heat_colors, render, sheet, splat
from registration.surface import SurfaceIndex

RESIDUAL_SHOWN_MM, SPREAD_SHOWN_MM = 3.0, 6.0
SIZE = 320
_EXTENT_MARGIN = 1.08
_POINT_COLOR = (40, 110, 190)
_MOST_POINTS = 20_000
_VIEWS = {"front": FRONT, "left": LEFT, "right": RIGHT}


def fit_sheet(name: str, scan: FittedScan, size: int = SIZE) -> Picture:
    """Points seen, the fitted head with them, its residuals at the points, and its uncertainty, from three sides.

    Residuals go from 0 (blue) to 3 mm (red), uncertainty to 6 mm; what was not seen has no residual and is grey.

    Args:
        name: of the scan, for the captions.
        scan: with a fitted head.
    """
    assert scan.mesh is not None
    assert scan.points_head_mm is not None
    T_head_from_world = np.linalg.inv(np.array(scan.document.T_world_from_head))
    unit = scan.document.unit_to_mm
    head = scan.mesh.with_vertices(transform_points(T_head_from_world, scan.mesh.vertices.astype(np.float64) * unit))
    head = Mesh(head.vertices, head.faces, None, head.attributes)
    points = scan.points_head_mm[:: max(1, len(scan.points_head_mm) // _MOST_POINTS)]
    off = SurfaceIndex(head).closest(points).distance_mm
    unseen = head.attributes["observed"] == 0
    residual = heat_colors(_at_vertices(head, points, off), RESIDUAL_SHOWN_MM, unseen)
    spread = heat_colors(head.attributes["uncertainty_mm"], SPREAD_SHOWN_MM)
    low, high = head.vertices.min(0), head.vertices.max(0)
    centre = (0.5 * (low + high)).tolist()
    extent = _EXTENT_MARGIN * float((high - low).max())
    rows, titles = [], []
    for side, azimuth in _VIEWS.items():
        bare = render(head, azimuth, 0.0, size, centre, extent)
        dots = splat(points, np.tile(np.array(_POINT_COLOR, np.uint8), (len(points), 1)), azimuth, size, centre, extent)
        drawn = (dots != dots[0, 0]).any(2, keepdims=True)
        rows.append(
            [
                dots,
                np.where(drawn, (0.35 * bare + 0.65 * dots).astype(np.uint8), bare),
                render(head, azimuth, 0.0, size, centre, extent, residual),
                render(head, azimuth, 0.0, size, centre, extent, spread),
            ]
        )
        titles.append(
            [
                f"{name}: {len(scan.points_head_mm)} points, {side}",
                f"fitted, {scan.document.verdict}",
                f"points off it, red {RESIDUAL_SHOWN_MM:g} mm, grey unseen",
                f"uncertainty, red {SPREAD_SHOWN_MM:g} mm",
            ]
        )
    return sheet(rows, titles)


def _at_vertices(
    head: Mesh, points: NDArray[np.float64], values: NDArray[np.float64], neighbours: int = 3
) -> NDArray[np.float64]:
    """Values (m,) of points as the head's vertices (n,) show them: the mean of the nearest points'."""
    nearest = np.asarray(cKDTree(points).query(head.vertices, k=min(neighbours, len(points)))[1])
    return np.asarray(values[nearest.reshape(len(head.vertices), -1)].mean(1))
