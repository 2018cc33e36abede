"""Where a mesh passes through itself, for lips and lids that must not cross."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.spatial import cKDTree

MERE_TOUCH = 1e-6
"""Crossings closer than this to an edge's end or a triangle's side, as a share of their lengths, are touches."""


def crossing_faces(
    vertices_mm: NDArray[np.floating], faces: NDArray[np.integer], among: NDArray[np.bool_]
) -> NDArray[np.bool_]:
    """Which faces are pierced by an edge of another face, or pierce one (Moeller and Trumbore's test, all at once).

    Args:
        vertices_mm: (n, 3).
        faces: (m, 3).
        among: (m,) the faces that are held against each other.

    Returns:
        (m,) bool. Faces that share a vertex are not held against each other.
    """
    out = np.zeros(len(faces), bool)
    members = np.flatnonzero(among)
    if len(members) < 2:
        return out
    corner = np.asarray(vertices_mm, np.float64)[faces[members]]
    centre = corner.mean(1)
    radius = np.linalg.norm(corner - centre[:, None], axis=2).max(1)
    # Few faces are large; each of them is asked apart, so that the others need not look as far.
    usual = float(np.percentile(radius, 90))
    tree = cKDTree(centre)
    pairs = tree.query_pairs(2 * usual, output_type="ndarray")
    large = np.flatnonzero(radius > usual)
    found = tree.query_ball_point(centre[large], radius[large] + radius.max())
    far = np.stack([np.repeat(large, [len(near) for near in found]), np.concatenate([*found, []]).astype(np.int64)], 1)
    far = far[np.linalg.norm(centre[far[:, 0]] - centre[far[:, 1]], axis=1) > 2 * usual * (1 - 1e-9)]
    a, b = np.concatenate([pairs, far]).T
    low, high = corner.min(1), corner.max(1)
    for axis in range(3):
        near = (low[a, axis] <= high[b, axis]) & (low[b, axis] <= high[a, axis])
        a, b = a[near], b[near]
    index = faces[members]
    strange = ~(index[a][:, :, None] == index[b][:, None, :]).any((1, 2))
    a, b = a[strange], b[strange]
    for first, second in ((a, b), (b, a)):
        for i in range(3):
            hit = _pierces(corner[first, i], corner[first, (i + 1) % 3], corner[second])
            out[members[first[hit]]] = out[members[second[hit]]] = True
    return out


def _pierces(start: NDArray[np.float64], end: NDArray[np.float64], triangle: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Whether each segment passes through its triangle (k, 3, 3)."""
    along, u, v = end - start, triangle[:, 1] - triangle[:, 0], triangle[:, 2] - triangle[:, 0]
    p = np.cross(along, v)
    scale = (u * p).sum(1)
    flat = np.abs(scale) < 1e-12
    scale[flat] = 1.0
    s = start - triangle[:, 0]
    q = np.cross(s, u)
    x, y, t = (s * p).sum(1) / scale, (along * q).sum(1) / scale, (v * q).sum(1) / scale
    inside = (x > MERE_TOUCH) & (y > MERE_TOUCH) & (x + y < 1 - MERE_TOUCH)
    return np.asarray(inside & (t > MERE_TOUCH) & (t < 1 - MERE_TOUCH) & ~flat)


def uncross(
    vertices_mm: NDArray[np.float64],
    safe_mm: NDArray[np.float64],
    faces: NDArray[np.int32],
    among: NDArray[np.bool_],
    allowed: NDArray[np.bool_],
    rounds: int = 6,
) -> NDArray[np.float64]:
    """Take vertices back towards a safe shape where faces cross that don't cross there.

    Args:
        vertices_mm: (n, 3) with crossings.
        safe_mm: (n, 3) the shape to go back to.
        among: (m,) the faces that must not cross.
        allowed: (m,) faces that cross in the safe shape already.
        rounds: each halves the way to the safe shape, around what still crosses.

    Returns:
        (n, 3); what still crosses after the last round stays so.
    """
    n = len(vertices_mm)
    pairs = faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    link = sp.csr_matrix(sp.coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (n, n)) + sp.eye(n))
    link = sp.csr_matrix(sp.diags(1.0 / np.asarray(link.sum(1)).ravel()) @ link)
    share = np.ones(n)
    for _ in range(rounds):
        placed = safe_mm + share[:, None] * (vertices_mm - safe_mm)
        crossing = crossing_faces(placed, faces, among) & ~allowed
        if not crossing.any():
            return placed
        near = np.zeros(n)
        near[faces[crossing]] = 1.0
        for _ in range(4):  # four rings, fading, so that no step is left at the rim
            near = np.maximum(near, np.asarray(link @ near))
        share *= 1.0 - 0.5 * np.minimum(near * 2, 1.0)
    return safe_mm + share[:, None] * (vertices_mm - safe_mm)
