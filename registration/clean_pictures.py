"""Pictures of a cleaned scan: the sheet before and after, and the map of its confidence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from registration.compiled import compiled
from registration.mesh import Mesh, face_areas, face_normals, sample_surface, transform_points
from registration.pictures import BACK, BACKGROUND, CLAY, FRONT, LEFT, RIGHT, Picture, heat_colors, sheet

VIEWS_SHOWN = {"front": (FRONT, 0.0), "front left": (55.0, 0.0), "back": (BACK, 0.0)}
"""Azimuth and elevation in degrees of the sheet's sides."""
MAP_VIEWS = VIEWS_SHOWN | {"left": (LEFT, 0.0), "right": (RIGHT, 0.0), "above": (FRONT, 90.0), "below": (FRONT, -60.0)}
"""The same of the map's sides."""
SIZE = 288
EXTENT_MM = 400.0
MIDDLE_Y_MM = 20.0
SPREAD_SHOWN_MM = 1.0
VIEWS_ENOUGH = 8
"""So many views of a point are drawn as full confidence."""
POINTS_SHOWN = 200_000
RAW_POINT_MM = 2.0
FILLED = (230, 60, 200)
LINE_PX = 16


def nearest_points(
    points_head_mm: NDArray[np.floating], azimuth_deg: float, elevation_deg: float = 0.0, size_mm: float = 0.0
) -> NDArray[np.int64]:
    """Which point (SIZE, SIZE) each pixel of a parallel projection shows, the nearest one; -1 where there is none.

    Args:
        points_head_mm: (n, 3).
        azimuth_deg, elevation_deg: where the eye stands; 0, 0 looks at the face.
        size_mm: edge of the square that each point covers; at least one pixel.
    """
    right, up, back = _axes(azimuth_deg, elevation_deg)
    middle = np.array([0.0, MIDDLE_Y_MM, 0.0])
    turned = (np.asarray(points_head_mm, np.float64) - middle) @ np.stack([right, -up, back], 1)
    turned[:, :2] = (turned[:, :2] / EXTENT_MM + 0.5) * SIZE
    return np.asarray(nearest_of(turned, max(1, int(np.ceil(size_mm * SIZE / EXTENT_MM))), SIZE))


@compiled
def nearest_of(points, wide, size):  # type: ignore[no-untyped-def]
    """Index (size, size) of the point that each pixel shows, -1 where none; points (n, 3) are column, row, nearness."""
    shown = np.full((size, size), -1, np.int64)
    nearness = np.full((size, size), -np.inf)
    for p in range(len(points)):
        column, row = int(np.floor(points[p, 0])), int(np.floor(points[p, 1]))
        for r in range(max(0, row), min(size, row + wide)):
            for c in range(max(0, column), min(size, column + wide)):
                if points[p, 2] >= nearness[r, c]:
                    nearness[r, c] = points[p, 2]
                    shown[r, c] = p
    return shown


def painted(shown: NDArray[np.int64], colors: NDArray | None, light: NDArray[np.floating] | None = None) -> Picture:
    """The picture of a projection: colours (n, 3) of the points, or clay, times the light of each pixel."""
    base = np.broadcast_to(np.array(CLAY, np.float64), (*shown.shape, 3)) if colors is None else colors[shown]
    paint = base if light is None else base * light[..., None]
    return np.where((shown >= 0)[..., None], np.clip(paint, 0, 255), BACKGROUND).astype(np.uint8)


def clean_sheet(
    points_mm: NDArray[np.floating],
    normals: NDArray[np.floating],
    colors: NDArray[np.uint8] | None,
    mesh: Mesh,
    T_world_from_head: NDArray,
    left_out: Sequence[str] = (),
) -> Picture:
    """Raw points as told, the clean mesh in clay, its confidence, and its colours, each from three sides.

    Args:
        points_mm: (n, 3) raw points, world frame.
        normals: (n, 3) of theirs, world frame.
        colors: (n, 3) of theirs, or None.
        mesh: cleaned, world frame, with ``spread_mm`` and ``observed``.
        T_world_from_head: (4, 4) where the head is.
        left_out: lines about views that were left out, written below.
    """
    T = np.linalg.inv(T_world_from_head)
    raw, clean = transform_points(T, points_mm), mesh.transformed(T)
    paints: dict[str, NDArray | None] = {
        "cleaned and fused": None,
        f"spread of views, red {SPREAD_SHOWN_MM:g} mm; magenta filled in": _spread_colors(clean),
    }
    if clean.colors is not None:
        paints["colour"] = clean.colors
    drawn = _drawn(clean, VIEWS_SHOWN, paints)
    rows, titles = [], []
    for side, (azimuth, elevation) in VIEWS_SHOWN.items():
        shown = nearest_points(raw, azimuth, elevation, RAW_POINT_MM)
        told = painted(shown, colors, _light(normals[shown] @ T[:3, :3].T, azimuth, elevation))
        rows.append([told] + [drawn[side][name] for name in paints])
        titles.append([f"raw points as told, {side}", *paints])
    return _with_lines(sheet(rows, titles), left_out)


def confidence_map(mesh: Mesh, T_world_from_head: NDArray) -> Picture:
    """From seven sides, how far the views of each point disagree and how many there are; magenta where filled in.

    Args:
        mesh: cleaned, world frame, with ``spread_mm``, ``views`` and ``observed``.
        T_world_from_head: (4, 4) where the head is.
    """
    clean = mesh.transformed(np.linalg.inv(T_world_from_head))
    few = heat_colors(np.maximum(VIEWS_ENOUGH - clean.attributes["views"].astype(np.float64), 0), VIEWS_ENOUGH - 1)
    few[clean.attributes["observed"] == 0] = FILLED
    paints: dict[str, NDArray | None] = {
        f"spread, red {SPREAD_SHOWN_MM:g} mm": _spread_colors(clean),
        f"views, blue {VIEWS_ENOUGH} or more, red 1": few,
    }
    drawn = _drawn(clean, MAP_VIEWS, paints)
    rows = [[drawn[side][name] for side in MAP_VIEWS] for name in paints]
    return sheet(rows, [[f"{side}: {name}" for side in MAP_VIEWS] for name in paints])


def _drawn(
    mesh: Mesh, sides: Mapping[str, tuple[float, float]], paints: Mapping[str, NDArray | None]
) -> dict[str, dict[str, Picture]]:
    """A mesh (head frame) in several paints, each a colour (n, 3) per vertex or clay, from several sides."""
    # Points spread evenly over the surface cover it whatever the size of its triangles.
    points, face, bary = sample_surface(mesh, POINTS_SHOWN, np.random.default_rng(0))
    normals = face_normals(mesh.vertices, mesh.faces)[face]
    corner = mesh.faces[face, bary.argmax(1)]
    size = 1.6 * float(np.sqrt(face_areas(mesh.vertices, mesh.faces).sum() / POINTS_SHOWN))
    out = {}
    for side, (azimuth, elevation) in sides.items():
        shown = nearest_points(points, azimuth, elevation, size)
        light = _light(normals[shown], azimuth, elevation)
        out[side] = {n: painted(shown, None if p is None else p[corner], light) for n, p in paints.items()}
    return out


def _axes(azimuth_deg: float, elevation_deg: float) -> tuple[NDArray, NDArray, NDArray]:
    """Right, up and towards the eye, head frame."""
    a, e = np.radians([azimuth_deg, elevation_deg])
    right = np.array([np.cos(a), 0.0, -np.sin(a)])
    back = np.array([np.sin(a) * np.cos(e), np.sin(e), np.cos(a) * np.cos(e)])
    return right, np.cross(back, right), back


def _light(normals_head: NDArray, azimuth_deg: float, elevation_deg: float) -> NDArray[np.float64]:
    """A headlight's share (...,) on surfaces of given normals (..., 3)."""
    _, up, back = _axes(azimuth_deg, elevation_deg)
    return np.asarray(0.2 + 0.8 * np.clip(normals_head @ (0.9 * back + 0.3 * up), 0, 1))


def _spread_colors(mesh: Mesh) -> NDArray[np.uint8]:
    colors = heat_colors(mesh.attributes["spread_mm"], SPREAD_SHOWN_MM)
    colors[mesh.attributes["observed"] == 0] = FILLED
    return colors


def _with_lines(picture: Picture, lines: Sequence[str]) -> Picture:
    """The picture with lines of text below."""
    if not lines:
        return picture
    height, width = picture.shape[:2]
    out = Image.new("RGB", (width, height + LINE_PX * len(lines) + 8), BACKGROUND)
    out.paste(Image.fromarray(picture), (0, 0))
    draw = ImageDraw.Draw(out)
    for k, line in enumerate(lines):
        draw.text((6, height + 4 + LINE_PX * k), line, fill=(178, 34, 40))
    return np.asarray(out)
