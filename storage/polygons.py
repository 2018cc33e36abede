"""Polygons of any size as triangles."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def fan_triangles(corners: NDArray[np.integer], sizes: NDArray[np.integer]) -> NDArray[np.int64]:
    """Fan each polygon from its first corner. What has fewer than three corners gives none.

    Args:
        corners: (k,) vertex indices of all polygons, one polygon after the other.
        sizes: (m,) corners of each polygon.

    Returns:
        (t, 3) vertex indices.
    """
    sizes = np.asarray(sizes, np.int64)
    if (sizes == 3).all():
        return np.asarray(corners, np.int64).reshape(-1, 3)
    count = np.maximum(sizes - 2, 0)
    first = np.repeat(np.cumsum(sizes) - sizes, count)
    within = np.arange(count.sum()) - np.repeat(np.cumsum(count) - count, count)
    return np.asarray(corners, np.int64)[np.stack([first, first + within + 1, first + within + 2], 1)]
