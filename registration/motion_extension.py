"""What a surface carries, extended smoothly to all of space."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from registration.compiled import compiled
from registration.mesh import Mesh, face_areas

_NEAREST_MM = 1.0
_BATCH = 64


class MotionExtension:
    """A mean of per-vertex values over the whole surface, weighted by area over the sixth power of the distance.

    At a height h above the surface this is a mean over a patch about h wide: the surface's own values close to it, and
    smoother ones further out, without a jump where another part of the surface becomes the nearest.

    Args:
        mesh: mm, with faces.
        values: (n, 4) a vertex.
    """

    def __init__(self, mesh: Mesh, values: NDArray[np.floating]) -> None:
        area = face_areas(mesh.vertices, mesh.faces)
        weight = np.bincount(mesh.faces.ravel(), np.repeat(area / 3, 3), minlength=len(mesh.vertices))
        used = np.flatnonzero(weight)
        self._sources = np.ascontiguousarray(
            np.concatenate([mesh.vertices[used], weight[used, None], values[used]], 1), np.float32
        )

    def at(self, points_mm: NDArray[np.floating]) -> NDArray[np.float64]:
        """The values (k, 4) at points (k, 3)."""
        columns = np.ascontiguousarray(np.asarray(points_mm, np.float32).reshape(-1, 3).T)
        total = _mean(columns, self._sources).astype(np.float64)
        return np.asarray((total[1:] / total[0]).T)


@compiled
def _mean(points: NDArray[np.float32], sources: NDArray[np.float32]) -> NDArray[np.float32]:
    """Weight and weighted values (5, k): the inner loop runs over points, so that no sum is reordered."""
    count = points.shape[1]
    out = np.zeros((5, count), np.float32)
    floor = np.float32(_NEAREST_MM * _NEAREST_MM)
    for first in range(0, count, _BATCH):
        last = min(first + _BATCH, count)
        x, y, z = points[0, first:last], points[1, first:last], points[2, first:last]
        w, a, b = out[0, first:last], out[1, first:last], out[2, first:last]
        c, d = out[3, first:last], out[4, first:last]
        for j in range(sources.shape[0]):
            sx, sy, sz, area = sources[j, 0], sources[j, 1], sources[j, 2], sources[j, 3]
            va, vb, vc, vd = sources[j, 4], sources[j, 5], sources[j, 6], sources[j, 7]
            for i in range(last - first):
                dx, dy, dz = x[i] - sx, y[i] - sy, z[i] - sz
                square = dx * dx + dy * dy + dz * dz + floor
                share = area / (square * square * square)
                w[i] += share
                a[i] += share * va
                b[i] += share * vb
                c[i] += share * vc
                d[i] += share * vd
    return out
