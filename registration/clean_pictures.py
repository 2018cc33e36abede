"""The before-and-after sheet of a cleaned scan."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from registration.mesh import Mesh, transform_points
from registration.pictures import BACK, BACKGROUND, CLAY, FRONT, Picture, heat_colors, render, sheet

VIEWS_SHOWN = (FRONT, 55.0, BACK)
SIZE = 288
EXTENT_MM = 400.0
SPREAD_SHOWN_MM = 1.0


def point_picture(
    points_head_mm: NDArray[np.floating], colors: NDArray[np.uint8] | None, azimuth_deg: float
) -> Picture:
    """Points seen by parallel projection from an azimuth about +y, the nearest on top."""
    a = np.radians(azimuth_deg)
    right, back = np.array([np.cos(a), 0.0, -np.sin(a)]), np.array([np.sin(a), 0.0, np.cos(a)])
    u = np.floor((points_head_mm @ right / EXTENT_MM + 0.5) * SIZE).astype(int)
    v = np.floor((0.5 - (points_head_mm[:, 1] - 20.0) / EXTENT_MM) * SIZE).astype(int)
    depth = points_head_mm @ back
    order = np.argsort(depth, kind="stable")
    order = order[((u >= 0) & (u < SIZE) & (v >= 0) & (v < SIZE))[order]]
    picture = np.full((SIZE, SIZE, 3), BACKGROUND, np.uint8)
    picture[v[order], u[order]] = CLAY if colors is None else colors[order]
    return picture


def clean_sheet(
    points_mm: NDArray[np.floating], colors: NDArray[np.uint8] | None, mesh: Mesh, T_world_from_head: NDArray
) -> Picture:
    """Raw points as told, the clean mesh in clay, in its colours, and its confidence, each from three sides.

    Args:
        points_mm: (n, 3) raw points, world frame.
        colors: (n, 3) of theirs, or None.
        mesh: cleaned, world frame, with ``spread_mm`` and ``observed``.
        T_world_from_head: (4, 4) where the head is.
    """
    T = np.linalg.inv(T_world_from_head)
    raw, clean = transform_points(T, points_mm), mesh.transformed(T)
    clay = np.broadcast_to(np.array(CLAY, np.uint8), clean.vertices.shape)
    observed = clean.attributes["observed"] > 0
    confidence = heat_colors(clean.attributes["spread_mm"], SPREAD_SHOWN_MM)
    confidence[~observed] = (230, 60, 200)
    rows = [
        [point_picture(raw, colors, azimuth) for azimuth in VIEWS_SHOWN],
        [_render(clean, azimuth, clay) for azimuth in VIEWS_SHOWN],
        [_render(clean, azimuth, confidence) for azimuth in VIEWS_SHOWN],
    ]
    titles = [
        ["raw points as told"],
        ["cleaned and fused"],
        [f"spread between views: blue 0, red {SPREAD_SHOWN_MM:g} mm", "magenta: filled in"],
    ]
    if clean.colors is not None:
        rows.append([_render(clean, azimuth, clean.colors) for azimuth in VIEWS_SHOWN])
        titles.append(["colour"])
    return sheet(rows, titles)


def _render(mesh: Mesh, azimuth_deg: float, colors: NDArray[np.uint8]) -> Picture:
    return render(mesh, azimuth_deg, 0.0, SIZE, (0.0, 20.0, 0.0), EXTENT_MM, colors)
