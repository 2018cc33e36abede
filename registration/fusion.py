"""Fuse fitted views into a signed distance grid (a TSDF) and its surface, robustly and in a fixed order.

Each voxel near a surface gathers the distance that every view measures along that view's own surface normal. The
value is their robust mean; a view that looked through a supposed surface votes against it. Only the blocks of the
grid that a surface touches are visited, and each voxel is worked out by one thread in the order of the views, so the
result is the same whatever the number of threads.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray
from skimage.measure import marching_cubes

from registration.compiled import compiled
from registration.depth import FittedViews, in_threads
from registration.mesh import Mesh
from registration.view_lookup import blended_depth, nearest_pixel
from registration.visited_blocks import LEAST_FACING, PAST_MM, block_relation, mark_blocks, tile_ranges

BLOCK = 8
"""Edge of a block of voxels."""
FADE = -0.6
"""From this share of the truncation behind a surface on, its view's weight falls. Were it to fall from the surface on,
one stray view would outvote all others there and leave a second layer beneath the first."""


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
        views: fitted and with refined poses.
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
    mask = np.zeros(values.shape, bool)
    cell = mask[1:, 1:, 1:]
    cell[...] = known[1:, 1:, 1:]
    low, high = slice(None, -1), slice(1, None)
    for corner in product((low, high), repeat=3):
        cell &= known[corner]
    if not (cell.any() and np.nanmin(values) < 0 < np.nanmax(values)):
        return Mesh.of(np.zeros((0, 3)), np.zeros((0, 3)))
    vertices, faces, _, _ = marching_cubes(values, 0.0, mask=mask, gradient_direction="descent")
    return Mesh.of(vertices * grid.voxel_mm, faces)


@compiled
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


@compiled
def first_agreeing(distance, n, soft):  # type: ignore[no-untyped-def]
    """The first of ``n`` rising distances before a surface that agrees with the next one; ``n`` if there is none."""
    for k in range(n - 1):
        if distance[k] > soft and distance[k + 1] - distance[k] < soft:
            return k
    return n


@compiled
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
    count = len(M)
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
            if mean < -2.0 * soft:
                # Behind some views' surface, where a gap may be hidden from them: two that look into it know better.
                first = first_agreeing(distances[e], n, soft)
                if first < n:
                    mean, used, _ = robust_mean(distances[e, first:n], weights[e, first:n], n - first, soft)
            if mean < 0 and through[e] > used:
                mean = truncation_mm
            elif mean > 0 and within[e] > 4.0 * used:
                # A stray view beneath a surface stands alone; two that agree have seen into a narrow gap.
                agree = 0
                for k in range(n):
                    agree += abs(distances[e, k] - mean) < soft
                if agree < 2:
                    mean = -truncation_mm
            i, j, k = e // (BLOCK * BLOCK), e // BLOCK % BLOCK, e % BLOCK
            values[blocks[b, 0] * BLOCK + i, blocks[b, 1] * BLOCK + j, blocks[b, 2] * BLOCK + k] = mean
