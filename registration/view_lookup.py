"""What a packed view shows at a point: its pixel, and its fitted surface between the pixels."""

from __future__ import annotations

import numpy as np

from registration.compiled import compiled

SAME_SURFACE_MM = 1.5
"""Planes of neighbouring pixels that meet a ray within this belong to one surface."""


@compiled
def project(camera, x, y):  # type: ignore[no-untyped-def]
    """Image position in pixels of normalised coordinates (x/z, y/z); ``camera`` as in ``Intrinsics.as_row``."""
    if camera[4] != 0.0 or camera[5] != 0.0 or camera[6] != 0.0 or camera[7] != 0.0 or camera[8] != 0.0:
        r2 = x * x + y * y
        radial = 1.0 + r2 * (camera[4] + r2 * (camera[5] + r2 * camera[8]))
        xd = x * radial + 2.0 * camera[6] * x * y + camera[7] * (r2 + 2.0 * x * x)
        yd = y * radial + camera[6] * (r2 + 2.0 * y * y) + 2.0 * camera[7] * x * y
        x, y = xd, yd
    return camera[0] * x + camera[2], camera[1] * y + camera[3]


@compiled
def nearest_pixel(camera, layout, cx, cy, cz):  # type: ignore[no-untyped-def]
    """Packed index of the pixel (-1 if none) that a camera point falls on, and its image position."""
    if cz <= 1.0:
        return -1, 0.0, 0.0
    u, v = project(camera, cx / cz, cy / cz)
    first, height, width = layout
    if not (u >= 0.0 and v >= 0.0 and u < width and v < height):
        return -1, u, v
    return first + int(v) * width + int(u), u, v


@compiled
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
            if abs(here - z0) > SAME_SURFACE_MM:
                continue
            w = (fv if a else 1.0 - fv) * (fu if b else 1.0 - fu) + 1e-6
            total += w
            z += w * here
    return z / total
