"""Pictures of meshes, by ray casting: no window system, no GPU, the same pixels every time."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import open3d as o3d
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from registration.mesh import Mesh, unit, vertex_normals

Picture = NDArray[np.uint8]

BACKGROUND = (250, 250, 252)
CLAY = (205, 198, 190)
FRONT, LEFT, RIGHT, BACK = 0.0, 90.0, -90.0, 180.0
"""Azimuths in degrees about +y; 0 looks at the face from +z."""
VIEWS = ((FRONT, 0.0), (0.5 * LEFT, 0.0), (LEFT, 0.0), (BACK, 20.0))
"""Azimuth and elevation of four views that show a whole head."""
REGION_COLORS = np.array(
    [
        [233, 190, 150],  # face
        [160, 170, 190],  # scalp
        [90, 160, 110],  # ears
        [190, 170, 120],  # neck
        [200, 70, 80],  # lips
        [60, 110, 190],  # eyes
        [110, 75, 50],  # hair
        [150, 60, 170],  # worn
    ],
    np.uint8,
)
"""(regions, 3) uint8 in the order of ``REGIONS``."""


def render(
    mesh: Mesh,
    azimuth_deg: float = FRONT,
    elevation_deg: float = 0.0,
    size: int = 384,
    centre_mm: Sequence[float] | None = None,
    extent_mm: float = 320.0,
    colors: NDArray[np.uint8] | None = None,
    R_head_from_mesh: NDArray[np.floating] | None = None,
) -> Picture:
    """Render a mesh by parallel projection with soft headlight shading.

    Args:
        mesh: in mm; its frame is taken as the head frame unless a rotation is given.
        azimuth_deg, elevation_deg: where the eye stands, around +y and above the horizon.
        size: edge of the square picture in pixels.
        centre_mm: (3,) what the picture is centred on; the middle of the mesh by default.
        extent_mm: width of the picture.
        colors: (n, 3) uint8 per vertex, else the mesh's own, else clay.
        R_head_from_mesh: (3, 3) turns the mesh upright first.

    Returns:
        (size, size, 3) uint8.
    """
    if len(mesh.faces) == 0:
        return np.full((size, size, 3), BACKGROUND, np.uint8)
    vertices = mesh.vertices.astype(np.float64)
    if R_head_from_mesh is not None:
        vertices = vertices @ np.asarray(R_head_from_mesh).T
    centre = 0.5 * (vertices.min(0) + vertices.max(0)) if centre_mm is None else np.asarray(centre_mm, np.float64)
    azimuth, elevation = np.radians([azimuth_deg, elevation_deg])
    back = np.array([np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)])
    right = np.array([np.cos(azimuth), 0.0, -np.sin(azimuth)])
    up = np.cross(back, right)
    step = (np.arange(size) + 0.5) / size - 0.5
    u, v = np.meshgrid(step * extent_mm, -step * extent_mm)
    start = centre + u[..., None] * right + v[..., None] * up + 2000.0 * back
    rays = np.concatenate([start, np.broadcast_to(-back, start.shape)], -1).astype(np.float32)
    scene = o3d.t.geometry.RaycastingScene()
    scene.add_triangles(
        o3d.core.Tensor.from_numpy(vertices.astype(np.float32)),
        o3d.core.Tensor.from_numpy(mesh.faces.astype(np.uint32)),
    )
    hit = scene.cast_rays(o3d.core.Tensor.from_numpy(rays))
    seen = np.isfinite(hit["t_hit"].numpy())
    corner = mesh.faces[hit["primitive_ids"].numpy()[seen].astype(np.int64)]
    uv = hit["primitive_uvs"].numpy()[seen].astype(np.float64)
    weight = np.stack([1 - uv.sum(1), uv[:, 0], uv[:, 1]], 1)
    normal = unit(np.einsum("nk,nkc->nc", weight, vertex_normals(vertices, mesh.faces)[corner]))
    light = 0.25 + 0.75 * np.clip(np.abs(normal @ (0.85 * back + 0.35 * up + 0.25 * right)), 0, 1)
    paint = mesh.colors if colors is None else colors
    base = np.array(CLAY, np.float64) if paint is None else np.einsum("nk,nkc->nc", weight, paint[corner].astype(float))
    picture = np.full((size, size, 3), BACKGROUND, np.float64)
    picture[seen] = base * light[:, None]
    return np.clip(picture, 0, 255).astype(np.uint8)


def splat(
    points_mm: NDArray[np.floating],
    colors: NDArray[np.uint8],
    azimuth_deg: float = FRONT,
    size: int = 384,
    centre_mm: Sequence[float] = (0.0, 0.0, 0.0),
    extent_mm: float = 320.0,
    dot: int = 2,
) -> Picture:
    """Draw points as square dots by parallel projection, the nearest on top.

    Args:
        points_mm: (n, 3).
        colors: (n, 3) uint8.
        azimuth_deg: where the eye stands, around +y.
        size: edge of the square picture in pixels.
        centre_mm: (3,) what the picture is centred on.
        extent_mm: width of the picture.
        dot: edge of a dot in pixels.

    Returns:
        (size, size, 3) uint8.
    """
    angle = np.radians(azimuth_deg)
    right = np.array([np.cos(angle), 0.0, -np.sin(angle)])
    back = np.array([np.sin(angle), 0.0, np.cos(angle)])
    away = np.asarray(points_mm, np.float64) - np.asarray(centre_mm, np.float64)
    order = np.argsort(away @ back, kind="stable")
    column = np.floor((away @ right / extent_mm + 0.5) * size).astype(int)[order]
    row = np.floor((0.5 - away[:, 1] / extent_mm) * size).astype(int)[order]
    picture = np.full((size, size, 3), BACKGROUND, np.uint8)
    depth = np.full((size, size), -1)
    rank = np.arange(len(order))
    for dy in range(dot):
        for dx in range(dot):
            r, c = row + dy, column + dx
            inside = (r >= 0) & (r < size) & (c >= 0) & (c < size)
            np.maximum.at(depth, (r[inside], c[inside]), rank[inside])
    drawn = depth >= 0
    picture[drawn] = np.asarray(colors)[order][depth[drawn]]
    return picture


def signed_colors(values: NDArray[np.floating], limit: float) -> Picture:
    """Colour per value: blue shades below zero, white at zero, red shades above, full at ``limit``.

    Args:
        values: (n,) of either sign.
        limit: the magnitude that is shown in full.
    """
    x = np.clip(np.asarray(values, np.float64) / limit, -1, 1)[:, None]
    blue, white, red = np.array([[33, 82, 160], [247, 247, 245], [178, 34, 40]], np.float64)
    return np.where(x < 0, white + (blue - white) * -x, white + (red - white) * x).astype(np.uint8)


def heat_colors(values: NDArray[np.floating], limit: float, unknown: NDArray[np.bool_] | None = None) -> Picture:
    """Colour per value from blue (0) over green and yellow to red (``limit`` and above); grey where unknown.

    Args:
        values: (n,) non-negative.
        limit: the value shown as full red.
        unknown: (n,) mask of the values that mean nothing.
    """
    stops = np.array([[49, 54, 149], [69, 170, 200], [120, 200, 120], [250, 220, 90], [200, 30, 38]], np.float64)
    x = np.clip(np.nan_to_num(np.asarray(values, np.float64)) / limit, 0, 1) * (len(stops) - 1)
    low = np.minimum(x.astype(int), len(stops) - 2)
    colors = stops[low] + (stops[low + 1] - stops[low]) * (x - low)[:, None]
    if unknown is not None:
        colors[unknown] = 170
    return colors.astype(np.uint8)


def sheet(rows: Sequence[Sequence[Picture]], titles: Sequence[Sequence[str]] | None = None) -> Picture:
    """Join equally large pictures to a grid, with a caption under each where titles are given."""
    strip = 0 if titles is None else 18
    height, width = rows[0][0].shape[:2]
    columns = max(len(row) for row in rows)
    out = Image.new("RGB", (columns * width, len(rows) * (height + strip)), BACKGROUND)
    draw = ImageDraw.Draw(out)
    for r, row in enumerate(rows):
        for c, picture in enumerate(row):
            out.paste(Image.fromarray(picture), (c * width, r * (height + strip)))
            if titles is not None and c < len(titles[r]):
                draw.text((c * width + 6, r * (height + strip) + height + 3), titles[r][c], fill=(60, 60, 70))
    return np.asarray(out)


def to_png(picture: Picture) -> bytes:
    """Encode a picture as PNG."""
    out = io.BytesIO()
    Image.fromarray(picture).save(out, "PNG", optimize=False)
    return out.getvalue()
