"""Which blocks of the voxel grid are worth a visit, and which views may have a say about a block."""

from __future__ import annotations

import numpy as np

from registration.compiled import compiled
from registration.view_lookup import project

TILE = 8
"""Edge of the depth image's tiles whose range is looked at first, pixels."""
PAST_MM = 10.0
"""A view that sees this far behind a voxel has looked through it."""
LEAST_FACING = 0.06
"""A view that sees the surface flatter than this cosine is not listened to."""


@compiled
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


@compiled
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


@compiled
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
