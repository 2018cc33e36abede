"""What the views say of given surface points: how many saw each, how far they disagree, and its colour."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from registration.compiled import compiled
from registration.depth import FittedViews, in_threads
from registration.fusion import Grid, robust_mean, views_from_grid
from registration.mesh import Mesh, vertex_normals
from registration.view_lookup import blended_depth, nearest_pixel
from registration.visited_blocks import LEAST_FACING


@dataclass(frozen=True)
class Observation:
    """What the views say of given surface points.

    Attributes:
        views: (n,) uint8 number of views that saw the point.
        offset_mm: (n,) float32 robust mean distance of the views' surface along the point's normal.
        spread_mm: (n,) float32 robust spread between the views; 0 where fewer than two saw it.
        color: (n, 3) uint8, or None.
    """

    views: NDArray[np.uint8]
    offset_mm: NDArray[np.float32]
    spread_mm: NDArray[np.float32]
    color: NDArray[np.uint8] | None


def observe(
    views: FittedViews,
    grid: Grid,
    vertices: NDArray[np.floating],
    normals: NDArray[np.floating],
    reach_mm: float,
    threads: int = 1,
) -> Observation:
    """Ask every view about given surface points (n, 3), grid frame in mm, with their outward normals (n, 3)."""
    M = views_from_grid(views, grid)
    color = np.zeros((1, 3), np.uint8) if views.color is None else views.color
    soft = max(3.0 * float(np.median(views.noise_mm)), 0.3)
    points = np.ascontiguousarray(np.column_stack([vertices, normals]), np.float64)
    parts = in_threads(
        lambda part: observe_points(
            part,
            M,
            views.cameras,
            views.layout,
            views.depth_mm,
            views.slope,
            views.normal,
            views.weight,
            color,
            reach_mm,
            soft,
        ),
        np.array_split(points, max(1, len(points) // 8192)),
        threads,
    )
    rows = np.concatenate(parts)
    return Observation(
        rows[:, 0].astype(np.uint8),
        rows[:, 1].astype(np.float32),
        rows[:, 2].astype(np.float32),
        None if views.color is None else np.clip(np.round(rows[:, 3:]), 0, 255).astype(np.uint8),
    )


def settled(closed: Mesh, views: FittedViews, grid: Grid, reach_mm: float, threads: int = 1) -> Mesh:
    """Bring a fused surface onto what the views see, and tell what of it no view sees.

    Between voxels the fused distances are no more than interpolated, and where views disagree about a voxel they can
    leave a surface that none of them saw. So each vertex asks all views again, is moved along its normal to the middle
    of their answers, and counts as guessed where there is none; what was guessed where fusion had no voxels, in narrow
    gaps, and is seen after all, is a guess no more.

    Args:
        closed: grid frame, mm.
        views: fitted and with refined poses.
        grid: whose frame the surface is in.
        reach_mm: a view's surface further off than this is another one.
        threads: at a time.

    Returns:
        The surface with ``views`` uint8, ``spread_mm`` float32 and ``guessed`` uint8, and the views' colours.
    """
    normals = vertex_normals(closed.vertices, closed.faces)
    seen = observe(views, grid, closed.vertices, normals, reach_mm, threads)
    known = seen.views > 0
    moved = closed.vertices + np.where(known, seen.offset_mm, np.float32(0))[:, None] * normals.astype(np.float32)
    columns: dict[str, NDArray] = {
        "views": np.where(known, seen.views, 0).astype(np.uint8),
        "spread_mm": np.where(known, seen.spread_mm, 0).astype(np.float32),
        "guessed": (~known).astype(np.uint8),
    }
    return Mesh(moved, closed.faces, seen.color, columns)


@compiled
def observe_points(  # type: ignore[no-untyped-def]
    points, M, cameras, layout, depth_mm, slope, normal, weight, color, reach_mm, soft
):
    """Rows (n, 6): views, offset along the normal, spread, colour."""
    out = np.zeros((len(points), 6))
    distances = np.empty(len(M))
    weights = np.empty(len(M))
    colored = len(color) == len(depth_mm)
    for p in range(len(points)):
        x, y, z = points[p, 0], points[p, 1], points[p, 2]
        n = 0
        paint = 0.0
        for v in range(len(M)):
            T = M[v]
            cx = T[0, 0] * x + T[0, 1] * y + T[0, 2] * z + T[0, 3]
            cy = T[1, 0] * x + T[1, 1] * y + T[1, 2] * z + T[1, 3]
            cz = T[2, 0] * x + T[2, 1] * y + T[2, 2] * z + T[2, 3]
            # How the point's own normal faces this camera; the surface is on the same ray.
            nx = T[0, 0] * points[p, 3] + T[0, 1] * points[p, 4] + T[0, 2] * points[p, 5]
            ny = T[1, 0] * points[p, 3] + T[1, 1] * points[p, 4] + T[1, 2] * points[p, 5]
            nz = T[2, 0] * points[p, 3] + T[2, 1] * points[p, 4] + T[2, 2] * points[p, 5]
            length = np.sqrt(cx * cx + cy * cy + cz * cz)
            if -(nx * cx + ny * cy + nz * cz) < LEAST_FACING * length:
                continue
            pixel, u, w = nearest_pixel(cameras[v], layout[v], cx, cy, cz)
            if pixel < 0 or depth_mm[pixel] <= 0:
                continue
            depth = blended_depth(pixel, u, w, layout[v], depth_mm, slope)
            facing = -(normal[pixel, 0] * cx + normal[pixel, 1] * cy + normal[pixel, 2] * cz) / cz
            d = (cz - depth) * facing  # from the point to the view's surface, outwards positive
            if facing < LEAST_FACING or d > reach_mm or d < -reach_mm:
                continue
            w = np.float64(weight[pixel])
            if colored:
                s = w * w
                paint += s
                for c in range(3):
                    out[p, 3 + c] += s * color[pixel, c]
            distances[n] = d
            weights[n] = w
            n += 1
        if n > 0:
            mean, _, spread = robust_mean(distances, weights, n, soft)
            out[p, 0] = min(n, 255)
            out[p, 1] = mean
            out[p, 2] = spread if n > 1 else 0.0
            if colored and paint > 0:
                for c in range(3):
                    out[p, 3 + c] /= paint
    return out
