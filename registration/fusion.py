"""Fuse fitted views into a signed distance grid (a TSDF) and its surface, robustly and in a fixed order.

Each voxel near a surface gathers the distance that every view measures along that view's own surface normal. The
value is their robust mean; a view that looked through a supposed surface votes against it. Only the blocks of the
grid that a surface touches are visited, and each voxel is worked out by one thread in the order of the views, so the
result is the same whatever the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

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
TILE = 8
"""Edge of the depth image's tiles whose range is looked at first, pixels."""
PAST_MM = 10.0
"""A view that sees this far behind a voxel has looked through it."""
FADE = -0.6
"""From this share of the truncation behind a surface on, its view's weight falls. Were it to fall from the surface on,
one stray view would outvote all others there and leave a second layer beneath the first."""
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
) -> tuple[NDArray[np.float32], Grid]:
    """Signed distances of all voxels near a surface that some view saw.

    Args:
        views: fitted and with refined poses; at most ``MAX_VIEWS`` are listened to.
        grid: where at most.
        truncation_mm: how far before and behind a surface a view is listened to.
        least_weight: of all views together, below which a voxel stays unknown.
        threads: at a time; the result does not depend on it.

    Returns:
        Distances in mm, float32, positive outside, NaN where nothing is known; and their grid, which is the given
        one cut down to what was seen. Its lower end along y (below the head) stays where it was.
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
    if len(marked) == 0:
        return np.full((BLOCK, BLOCK, BLOCK), np.nan, np.float32), replace(grid, shape=(BLOCK, BLOCK, BLOCK))
    low = np.maximum(marked.min(0) - 1, 0) * [1, 0, 1]
    high = np.minimum(marked.max(0) + 2, blocks_shape)
    T = grid.T_world_from_grid.copy()
    T[:3, 3] += T[:3, :3] @ (low * BLOCK * grid.voxel_mm)
    nx, ny, nz = ((high - low) * BLOCK).tolist()
    cut = Grid(T, (nx, ny, nz), grid.voxel_mm)
    values = np.full(cut.shape, np.nan, np.float32)
    M = views_from_grid(views, cut)
    tiles = [tile_ranges(views.layout[v], views.depth_mm) for v in range(len(views.names))]
    tile_first = np.cumsum([0] + [len(tile) for tile in tiles])[:-1].astype(np.int64)
    tile = np.concatenate(tiles)
    soft = max(3.0 * float(np.median(views.noise_mm)), 0.3)
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
            tile_first,
            tile,
            truncation_mm,
            soft,
            least_weight,
        ),
        np.array_split(marked - low, max(1, len(marked) // 256)),
        threads,
    )
    return values, cut


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
def tile_ranges(layout, depth_mm):  # type: ignore[no-untyped-def]
    """Least and greatest depth (tiles, 2) of each tile of a view; (inf, 0) where it has none. What lies past the
    region of interest counts as infinitely far."""
    first, height, width = layout
    across = (width + TILE - 1) // TILE
    out = np.empty((((height + TILE - 1) // TILE) * across, 2), np.float32)
    out[:, 0] = np.inf
    out[:, 1] = 0.0
    for row in range(height):
        for column in range(width):
            z = depth_mm[first + row * width + column]
            tile = (row // TILE) * across + column // TILE
            if z > 0:
                out[tile, 0] = min(out[tile, 0], z)
                out[tile, 1] = max(out[tile, 1], z)
            elif z < 0:
                out[tile, 0] = min(out[tile, 0], -z)
                out[tile, 1] = np.inf
    return out


@numba.njit(cache=True, nogil=True)
def blended_depth(nearest, u, v, layout, depth_mm, slope):  # type: ignore[no-untyped-def]
    """The view's surface at an image position: the planes fitted at the four pixels around, those of another surface
    than the nearest pixel's left out."""
    first, height, width = layout
    column, row = int(np.floor(u)), int(np.floor(v))
    left, top = int(np.floor(u - 0.5)), int(np.floor(v - 0.5))
    fu, fv = u - 0.5 - left, v - 0.5 - top
    z0 = depth_mm[nearest] + slope[nearest, 0] * (u - column - 0.5) + slope[nearest, 1] * (v - row - 0.5)
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
    return z / total


@numba.njit(cache=True, nogil=True)
def nearest_pixel(camera, layout, cx, cy, cz):  # type: ignore[no-untyped-def]
    """Packed index of the pixel (-1 if none) that a camera point falls on, and its image position."""
    if cz <= 1.0:
        return -1, 0.0, 0.0
    u, v = project(camera, cx / cz, cy / cz)
    first, height, width = layout
    if not (u >= 0.0 and v >= 0.0 and u < width and v < height):
        return -1, u, v
    return first + int(v) * width + int(u), u, v


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
def block_relation(camera, layout, tile, cx, cy, cz, radius_mm, reach_mm):  # type: ignore[no-untyped-def]
    """What a view may say of a ball around a camera point: -1 nothing (out of sight or hidden), 1 all of it is
    looked through, 0 worth a look at each voxel."""
    if cz <= radius_mm + 1.0:
        return -1
    u, v = project(camera, cx / cz, cy / cz)
    _, height, width = layout
    across = (width + TILE - 1) // TILE
    reach = 1.05 * max(camera[0], camera[1]) * radius_mm / (cz - radius_mm) + 1.0
    if u + reach < 0 or v + reach < 0 or u - reach >= width or v - reach >= height:
        return -1
    near, far = np.inf, 0.0
    for r in range(max(0, int(v - reach)) // TILE, min(height - 1, int(v + reach)) // TILE + 1):
        for c in range(max(0, int(u - reach)) // TILE, min(width - 1, int(u + reach)) // TILE + 1):
            near = min(near, tile[r * across + c, 0])
            far = max(far, tile[r * across + c, 1])
    if far == 0.0 or far < cz - radius_mm - reach_mm / LEAST_FACING:
        return -1
    if near > cz + radius_mm + PAST_MM:
        return 1
    return 0


@numba.njit(cache=True, nogil=True)
def fuse_blocks(  # type: ignore[no-untyped-def]
    blocks,
    values,
    voxel_mm,
    M,
    cameras,
    layout,
    depth_mm,
    slope,
    normal,
    weight,
    tile_first,
    tile,
    truncation_mm,
    soft,
    least_weight,
):
    """Fill the voxels of some blocks of ``values``."""
    count = min(len(M), MAX_VIEWS)
    cells = BLOCK * BLOCK * BLOCK
    distances = np.empty((cells, count))
    weights = np.empty((cells, count))
    number = np.empty(cells, np.int64)
    through = np.empty(cells)
    within = np.empty(cells)
    half = 0.5 * (BLOCK - 1) * voxel_mm
    for b in range(len(blocks)):
        x0, y0, z0 = blocks[b, 0] * BLOCK * voxel_mm, blocks[b, 1] * BLOCK * voxel_mm, blocks[b, 2] * BLOCK * voxel_mm
        number[:] = 0
        through[:] = 0.0
        within[:] = 0.0
        for view in range(count):
            T = M[view]
            camera = cameras[view]
            place = layout[view]
            mx = T[0, 0] * (x0 + half) + T[0, 1] * (y0 + half) + T[0, 2] * (z0 + half) + T[0, 3]
            my = T[1, 0] * (x0 + half) + T[1, 1] * (y0 + half) + T[1, 2] * (z0 + half) + T[1, 3]
            mz = T[2, 0] * (x0 + half) + T[2, 1] * (y0 + half) + T[2, 2] * (z0 + half) + T[2, 3]
            relation = block_relation(camera, place, tile[tile_first[view] :], mx, my, mz, 1.75 * half, truncation_mm)
            if relation < 0:
                continue
            if relation > 0:
                through += 0.3
                continue
            for e in range(cells):
                x = x0 + (e // (BLOCK * BLOCK)) * voxel_mm
                y = y0 + (e // BLOCK % BLOCK) * voxel_mm
                z = z0 + (e % BLOCK) * voxel_mm
                cz = T[2, 0] * x + T[2, 1] * y + T[2, 2] * z + T[2, 3]
                cx = T[0, 0] * x + T[0, 1] * y + T[0, 2] * z + T[0, 3]
                cy = T[1, 0] * x + T[1, 1] * y + T[1, 2] * z + T[1, 3]
                pixel, u, v = nearest_pixel(camera, place, cx, cy, cz)
                if pixel < 0:
                    continue
                depth = np.float64(depth_mm[pixel])
                if depth == 0.0:
                    continue
                gap = abs(depth) - cz
                if gap > PAST_MM:
                    through[e] += 0.3 if depth < 0 else np.float64(weight[pixel])
                    continue
                if depth < 0.0:
                    continue
                facing = -(normal[pixel, 0] * cx + normal[pixel, 1] * cy + normal[pixel, 2] * cz) / cz
                if facing < LEAST_FACING or abs(gap) * facing > 2.0 * truncation_mm:
                    continue
                if gap * facing < FADE * truncation_mm:
                    within[e] += weight[pixel]
                if abs(gap) * facing > truncation_mm + voxel_mm:
                    continue
                d = (blended_depth(pixel, u, v, place, depth_mm, slope) - cz) * facing
                if d > truncation_mm or d < -truncation_mm:
                    continue
                w = np.float64(weight[pixel])
                if d < FADE * truncation_mm:
                    w *= max(0.2, 1.0 - 0.8 * (d / truncation_mm - FADE) / (-1.0 - FADE))
                distances[e, number[e]] = d
                weights[e, number[e]] = w
                number[e] += 1
        for e in range(cells):
            n = number[e]
            near = 0.0
            for k in range(n):
                near += weights[e, k]
            if n == 0 or near < least_weight:
                continue
            mean, used, _ = robust_mean(distances[e], weights[e], n, soft)
            if mean < 0 and through[e] > used:
                mean = truncation_mm
            elif mean > 0 and within[e] > 4.0 * used:
                mean = -truncation_mm
            i, j, k = e // (BLOCK * BLOCK), e // BLOCK % BLOCK, e % BLOCK
            values[blocks[b, 0] * BLOCK + i, blocks[b, 1] * BLOCK + j, blocks[b, 2] * BLOCK + k] = mean


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
            # How the point's own normal faces this camera; the surface is on the same ray.
            nx = T[0, 0] * points[p, 3] + T[0, 1] * points[p, 4] + T[0, 2] * points[p, 5]
            ny = T[1, 0] * points[p, 3] + T[1, 1] * points[p, 4] + T[1, 2] * points[p, 5]
            nz = T[2, 0] * points[p, 3] + T[2, 1] * points[p, 4] + T[2, 2] * points[p, 5]
            length = np.sqrt(cx * cx + cy * cy + cz * cz)
            if -(nx * cx + ny * cy + nz * cz) / length < LEAST_FACING:
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
