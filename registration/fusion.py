"""Fuse fitted views into a signed distance grid (a TSDF) and its surface, robustly and in a fixed order.

Each voxel near a surface gathers the distance that every view measures along that view's own surface normal. The
value is their robust mean; a view that looked through a supposed surface votes against it. Only the blocks of the
grid that a surface touches are visited, and each voxel is worked out by one thread in the order of the views, so the
result is the same whatever the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass

import numba
import numpy as np
from numpy.typing import NDArray
from skimage.measure import marching_cubes

from registration.depth import FittedViews, in_threads
from registration.mesh import Mesh
from registration.pose_refinement import project

BLOCK = 8
"""Edge of a block of voxels."""
MAX_VIEWS = 256
"""How many views a voxel can listen to."""
LEAST_FACING = 0.12
"""A view that sees the surface flatter than this cosine is not listened to."""


@dataclass(frozen=True)
class Grid:
    """A regular grid of voxels.

    Attributes:
        T_world_from_grid: (4, 4) rigid; the grid's own frame is mm, its origin the centre of voxel (0, 0, 0).
        shape: voxels along x, y, z.
        voxel_mm: edge of a voxel.
    """

    T_world_from_grid: NDArray[np.float64]
    shape: tuple[int, int, int]
    voxel_mm: float


def grid_for_box(T_world_from_head: NDArray, low_mm: NDArray, high_mm: NDArray, voxel_mm: float) -> Grid:
    """The grid that fills a box of the head frame."""
    low, high = np.asarray(low_mm, np.float64), np.asarray(high_mm, np.float64)
    shape = np.ceil((high - low) / voxel_mm / BLOCK).astype(int) * BLOCK
    T = np.asarray(T_world_from_head, np.float64).copy()
    T[:3, 3] += T[:3, :3] @ low
    return Grid(T, (int(shape[0]), int(shape[1]), int(shape[2])), float(voxel_mm))


def fuse(
    views: FittedViews, grid: Grid, truncation_mm: float, least_weight: float, threads: int = 1
) -> NDArray[np.float32]:
    """Signed distances of all voxels near a surface that some view saw.

    Args:
        views: fitted and with refined poses.
        grid: where.
        truncation_mm: how far before and behind a surface a view is listened to.
        least_weight: of all views together, below which a voxel stays unknown.
        threads: at a time; the result does not depend on it.

    Returns:
        ``grid.shape`` float32 distances in mm, positive outside; NaN where nothing is known.
    """
    M = views_from_grid(views, grid)
    blocks_shape = tuple(n // BLOCK for n in grid.shape)
    marks = in_threads(
        lambda v: mark_blocks(
            views.cameras[v],
            np.linalg.inv(M[v]),
            views.layout[v],
            views.depth_mm,
            blocks_shape,
            grid.voxel_mm * BLOCK,
            truncation_mm,
        ),
        list(range(len(views.names))),
        threads,
    )
    marked = np.argwhere(np.any(marks, axis=0))
    values = np.full(grid.shape, np.nan, np.float32)
    noise = float(np.median(views.noise_mm))
    soft = max(3.0 * noise, 0.3)
    in_threads(
        lambda part: fuse_blocks(
            part,
            values,
            grid.voxel_mm,
            M,
            views.cameras,
            views.layout,
            views.depth_mm,
            views.slope,
            views.normal,
            views.weight,
            truncation_mm,
            soft,
            least_weight,
        ),
        np.array_split(marked, max(1, len(marked) // 256)),
        threads,
    )
    return values


def views_from_grid(views: FittedViews, grid: Grid) -> NDArray[np.float64]:
    """(V, 4, 4) camera from grid."""
    return np.linalg.inv(views.T_world_from_camera) @ grid.T_world_from_grid


def extract_surface(values: NDArray[np.float32], grid: Grid) -> Mesh:
    """The zero surface within the known voxels, grid frame in mm; normals point to positive values.

    Cells with an unknown corner give nothing.
    """
    known = np.isfinite(values)
    cell = known[:-1, :-1, :-1] & known[1:, :-1, :-1] & known[:-1, 1:, :-1] & known[:-1, :-1, 1:]
    cell &= known[1:, 1:, :-1] & known[1:, :-1, 1:] & known[:-1, 1:, 1:] & known[1:, 1:, 1:]
    mask = np.zeros(values.shape, bool)
    mask[1:, 1:, 1:] = cell
    filled = np.where(known, values, np.float32(1.0))
    if not (cell.any() and filled.min() < 0 < filled.max()):
        return Mesh.of(np.zeros((0, 3)), np.zeros((0, 3)))
    vertices, faces, _, _ = marching_cubes(filled, 0.0, mask=mask, gradient_direction="descent")
    return Mesh.of(vertices * grid.voxel_mm, faces)


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


@numba.njit(cache=True, nogil=True)
def mark_blocks(camera, grid_from_camera, layout, depth_mm, shape, block_mm, reach_mm):  # type: ignore[no-untyped-def]
    """Mask of the blocks within reach of one view's surface. Lens distortion is neglected within the reach."""
    marked = np.zeros(shape, np.bool_)
    first, height, width = layout
    T = grid_from_camera
    low = np.empty(3, np.int64)
    high = np.empty(3, np.int64)
    for row in range(height):
        for column in range(width):
            z = np.float64(depth_mm[first + row * width + column])
            if z <= 0:
                continue
            x = (column + 0.5 - camera[2]) / camera[0] * z
            y = (row + 0.5 - camera[3]) / camera[1] * z
            inside = True
            for a in range(3):
                p = T[a, 0] * x + T[a, 1] * y + T[a, 2] * z + T[a, 3]
                low[a] = max(0, int(np.floor((p - reach_mm) / block_mm)))
                high[a] = min(shape[a] - 1, int(np.floor((p + reach_mm) / block_mm)))
                inside = inside and low[a] <= high[a]
            if inside:
                for i in range(low[0], high[0] + 1):
                    for j in range(low[1], high[1] + 1):
                        for k in range(low[2], high[2] + 1):
                            marked[i, j, k] = True
    return marked


@numba.njit(cache=True, nogil=True)
def look_up(camera, layout, depth_mm, slope, cx, cy, cz):  # type: ignore[no-untyped-def]
    """The view's surface on the ray through a camera point.

    The planes fitted at the four pixels around are blended; those on another surface are left out.

    Returns:
        Depth (0 unknown, negative = looked past) and the index of the nearest pixel.
    """
    if cz <= 1.0:
        return 0.0, 0
    u, v = project(camera, cx / cz, cy / cz)
    first, height, width = layout
    column, row = int(np.floor(u)), int(np.floor(v))
    if column < 0 or row < 0 or column >= width or row >= height:
        return 0.0, 0
    nearest = first + row * width + column
    z0 = np.float64(depth_mm[nearest])
    if z0 <= 0:
        return z0, nearest
    left, top = int(np.floor(u - 0.5)), int(np.floor(v - 0.5))
    fu, fv = u - 0.5 - left, v - 0.5 - top
    z0 += slope[nearest, 0] * (u - column - 0.5) + slope[nearest, 1] * (v - row - 0.5)
    total = 0.0
    z = 0.0
    for a in range(2):
        for b in range(2):
            r, c = top + a, left + b
            if r < 0 or c < 0 or r >= height or c >= width:
                continue
            pixel = first + r * width + c
            here = np.float64(depth_mm[pixel])
            if here <= 0:
                continue
            here += slope[pixel, 0] * (u - c - 0.5) + slope[pixel, 1] * (v - r - 0.5)
            if abs(here - z0) > 1.5:
                continue
            w = (fv if a else 1.0 - fv) * (fu if b else 1.0 - fu) + 1e-6
            total += w
            z += w * here
    return z / total, nearest


@numba.njit(cache=True, nogil=True)
def robust_mean(distance, weight, n, soft):  # type: ignore[no-untyped-def]
    """Weighted median, then three reweighted means around it. Sorts its arguments.

    Returns:
        The mean, its weight, and the spread of what it rests on.
    """
    total = 0.0
    for i in range(n):
        total += weight[i]
    for i in range(1, n):
        d, w = distance[i], weight[i]
        j = i - 1
        while j >= 0 and distance[j] > d:
            distance[j + 1], weight[j + 1] = distance[j], weight[j]
            j -= 1
        distance[j + 1], weight[j + 1] = d, w
    half = 0.0
    mean = distance[0]
    for i in range(n):
        half += weight[i]
        if half >= 0.5 * total:
            mean = distance[i]
            break
    used = 0.0
    variance = 0.0
    for _ in range(3):
        used = 0.0
        moment = 0.0
        for i in range(n):
            a = (distance[i] - mean) / soft
            w = weight[i] / (1.0 + a * a) ** 2
            used += w
            moment += w * distance[i]
        mean = moment / used
    for i in range(n):
        a = (distance[i] - mean) / soft
        variance += weight[i] / (1.0 + a * a) ** 2 * (distance[i] - mean) ** 2
    return mean, used, np.sqrt(variance / used)


@numba.njit(cache=True, nogil=True)
def fuse_blocks(  # type: ignore[no-untyped-def]
    blocks, values, voxel_mm, M, cameras, layout, depth_mm, slope, normal, weight, truncation_mm, soft, least_weight
):
    """Fill the voxels of some blocks of ``values``."""
    distances = np.empty(MAX_VIEWS)
    weights = np.empty(MAX_VIEWS)
    count = min(len(M), MAX_VIEWS)
    for b in range(len(blocks)):
        for i in range(blocks[b, 0] * BLOCK, blocks[b, 0] * BLOCK + BLOCK):
            for j in range(blocks[b, 1] * BLOCK, blocks[b, 1] * BLOCK + BLOCK):
                for k in range(blocks[b, 2] * BLOCK, blocks[b, 2] * BLOCK + BLOCK):
                    x, y, z = i * voxel_mm, j * voxel_mm, k * voxel_mm
                    n = 0
                    through = 0.0
                    near = 0.0
                    for v in range(count):
                        T = M[v]
                        cx = T[0, 0] * x + T[0, 1] * y + T[0, 2] * z + T[0, 3]
                        cy = T[1, 0] * x + T[1, 1] * y + T[1, 2] * z + T[1, 3]
                        cz = T[2, 0] * x + T[2, 1] * y + T[2, 2] * z + T[2, 3]
                        depth, pixel = look_up(cameras[v], layout[v], depth_mm, slope, cx, cy, cz)
                        if depth == 0.0:
                            continue
                        if depth < 0.0:
                            if -depth - cz > 10.0:
                                through += 0.5
                            continue
                        facing = -(normal[pixel, 0] * cx + normal[pixel, 1] * cy + normal[pixel, 2] * cz) / cz
                        gap = depth - cz
                        if gap > 10.0:
                            through += weight[pixel]
                            continue
                        if facing < LEAST_FACING:
                            continue
                        d = gap * facing
                        if d > truncation_mm or d < -truncation_mm:
                            continue
                        w = np.float64(weight[pixel])
                        if d < 0:
                            w *= 1.0 + d / truncation_mm
                        distances[n] = d
                        weights[n] = w
                        near += w
                        n += 1
                    if n == 0 or near < least_weight:
                        continue
                    mean, used, _ = robust_mean(distances, weights, n, soft)
                    if mean < 0 and through > used:
                        mean = truncation_mm
                    values[i, j, k] = mean


@numba.njit(cache=True, nogil=True)
def observe_points(  # type: ignore[no-untyped-def]
    points, M, cameras, layout, depth_mm, slope, normal, weight, color, reach_mm, soft
):
    """Rows (n, 6): views, offset along the normal, spread, colour."""
    out = np.zeros((len(points), 6))
    distances = np.empty(MAX_VIEWS)
    weights = np.empty(MAX_VIEWS)
    colored = len(color) == len(depth_mm)
    for p in range(len(points)):
        x, y, z = points[p, 0], points[p, 1], points[p, 2]
        n = 0
        paint = 0.0
        for v in range(min(len(M), MAX_VIEWS)):
            T = M[v]
            cx = T[0, 0] * x + T[0, 1] * y + T[0, 2] * z + T[0, 3]
            cy = T[1, 0] * x + T[1, 1] * y + T[1, 2] * z + T[1, 3]
            cz = T[2, 0] * x + T[2, 1] * y + T[2, 2] * z + T[2, 3]
            depth, pixel = look_up(cameras[v], layout[v], depth_mm, slope, cx, cy, cz)
            if depth <= 0.0:
                continue
            # How the point's own normal faces this camera; the surface is on the same ray.
            nx = T[0, 0] * points[p, 3] + T[0, 1] * points[p, 4] + T[0, 2] * points[p, 5]
            ny = T[1, 0] * points[p, 3] + T[1, 1] * points[p, 4] + T[1, 2] * points[p, 5]
            nz = T[2, 0] * points[p, 3] + T[2, 1] * points[p, 4] + T[2, 2] * points[p, 5]
            length = np.sqrt(cx * cx + cy * cy + cz * cz)
            if -(nx * cx + ny * cy + nz * cz) / length < LEAST_FACING:
                continue
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
