"""The before-and-after sheet of a cleaned scan."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from registration.mesh import Mesh, face_areas, face_normals, sample_surface, transform_points
from registration.pictures import BACK, BACKGROUND, CLAY, FRONT, Picture, heat_colors, sheet

VIEWS_SHOWN = (FRONT, 55.0, BACK)
SIZE = 288
EXTENT_MM = 400.0
SPREAD_SHOWN_MM = 1.0
POINTS_SHOWN = 200_000
RAW_POINT_MM = 2.0


def point_picture(
    points_head_mm: NDArray[np.floating],
    colors: NDArray[np.uint8] | None,
    azimuth_deg: float,
    normals_head: NDArray[np.floating] | None = None,
    size_mm: float = 0.0,
) -> Picture:
    """Points seen by parallel projection from an azimuth about +y, the nearest on top.

    Args:
        points_head_mm: (n, 3).
        colors: (n, 3) uint8, or None for clay.
        azimuth_deg: 0 looks at the face.
        normals_head: (n, 3) for a headlight's shading; what turns away is dark.
        size_mm: edge of the square that each point covers; at least one pixel.
    """
    a = np.radians(azimuth_deg)
    right, back = np.array([np.cos(a), 0.0, -np.sin(a)]), np.array([np.sin(a), 0.0, np.cos(a)])
    u = np.floor((points_head_mm @ right / EXTENT_MM + 0.5) * SIZE).astype(int)
    v = np.floor((0.5 - (points_head_mm[:, 1] - 20.0) / EXTENT_MM) * SIZE).astype(int)
    order = np.argsort(points_head_mm @ back, kind="stable")
    paint = np.broadcast_to(np.array(CLAY, np.float64), (len(points_head_mm), 3)) if colors is None else colors
    if normals_head is not None:
        light = 0.2 + 0.8 * np.clip(normals_head @ (0.9 * back + 0.3 * np.array([0.0, 1.0, 0.0])), 0, 1)
        paint = paint * light[:, None]
    picture = np.full((SIZE, SIZE, 3), BACKGROUND, np.uint8)
    wide = max(1, int(np.ceil(size_mm * SIZE / EXTENT_MM)))
    shifts = np.stack(np.meshgrid(np.arange(wide), np.arange(wide), indexing="ij"), -1).reshape(-1, 2)
    rows, columns = v[order][:, None] + shifts[:, 0], u[order][:, None] + shifts[:, 1]
    inside = (rows >= 0) & (rows < SIZE) & (columns >= 0) & (columns < SIZE)
    source = np.broadcast_to(order[:, None], rows.shape)[inside]
    # Later assignments win, and the order is from far to near.
    picture[rows[inside], columns[inside]] = np.clip(paint, 0, 255).astype(np.uint8)[source]
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
    confidence = heat_colors(clean.attributes["spread_mm"], SPREAD_SHOWN_MM)
    confidence[clean.attributes["observed"] == 0] = (230, 60, 200)
    # Points spread evenly over the surface cover it whatever the size of its triangles.
    points, face, bary = sample_surface(clean, POINTS_SHOWN, np.random.default_rng(0))
    normals = face_normals(clean.vertices, clean.faces)[face]
    nearest = clean.faces[face, bary.argmax(1)]
    size = 1.6 * float(np.sqrt(face_areas(clean.vertices, clean.faces).sum() / POINTS_SHOWN))

    def column(paint: NDArray[np.uint8] | None) -> list[Picture]:
        color = None if paint is None else paint[nearest]
        return [point_picture(points, color, azimuth, normals, size) for azimuth in VIEWS_SHOWN]

    columns = {
        "raw points as told": [point_picture(raw, colors, azimuth, size_mm=RAW_POINT_MM) for azimuth in VIEWS_SHOWN],
        "cleaned and fused": column(None),
        f"spread of views, red {SPREAD_SHOWN_MM:g} mm; magenta filled in": column(confidence),
    }
    if clean.colors is not None:
        columns["colour"] = column(clean.colors)
    return sheet(list(zip(*columns.values(), strict=True)), [list(columns)] * len(VIEWS_SHOWN))
