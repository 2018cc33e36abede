"""Bring a fitted head onto the scan: a smooth displacement, coarse to fine.

Each level is a displacement field of a given size and range (``smoothness.field_precision``) on top of the last one.
Only the part along the scan's normal is pulled, so vertices follow the surface and stay in place along it; the
system is then the same scalar one for x, y and z, factored once an iteration (it majorises the point-to-plane energy).
The displacement is regularised, not the shape: what the scan does not show stays as the linear fit left it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from registration.correspondence import Matches, match
from registration.mesh import vertex_normals
from registration.smoothness import SymmetricSolver, cotangent_laplacian, field_precision
from registration.surface import SurfaceIndex


@dataclass(frozen=True)
class Level:
    """One level of the displacement.

    Attributes:
        spread_mm: standard deviation of the displacement that this level may add.
        range_mm: distance over which it varies.
        iterations: how many.
        gate_mm: matches further away count nothing.
        robust_mm: residuals beyond this lose weight (Geman-McClure).
        noise_mm: of a match along its normal.
    """

    spread_mm: float
    range_mm: float
    iterations: int
    gate_mm: float
    robust_mm: float
    noise_mm: float


AFTER_BASIS = (Level(0.8, 30.0, 4, 5.0, 1.5, 0.15), Level(0.3, 9.0, 4, 3.0, 0.8, 0.1))
"""Levels for a head that has met the person already but for details."""


def follow_surface(
    scan: SurfaceIndex,
    vertices: NDArray[np.float64],
    faces: NDArray[np.int32],
    weights: NDArray[np.float64],
    softness: NDArray[np.float64],
    levels: Sequence[Level],
    skin: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """Move (n, 3) vertices onto a scan in the same frame.

    Args:
        weights: (n,) how much each vertex follows, 0 to 1.
        softness: (n,) factor on the spread of the displacement; below 1 where features are easily pulled apart.
        skin: (v,) which vertices of the scan are skin; all by default.

    Returns:
        (n, 3) float64.
    """
    laplacian, area = cotangent_laplacian(vertices, faces)
    base = vertices
    solver: SymmetricSolver | None = None
    for level in levels:
        precision = field_precision(laplacian, area, level.spread_mm * softness, level.range_mm)
        solver = solver or SymmetricSolver(precision)
        move = np.zeros_like(base)
        for _ in range(level.iterations):
            placed = base + move
            found = match(scan, placed, vertex_normals(placed, faces), level.gate_mm, 0.6, skin)
            gap = ((found.points - placed) * found.normals).sum(1)
            robust = (level.robust_mm**2 / (level.robust_mm**2 + gap**2)) ** 2
            confidence = weights * found.weights * robust / level.noise_mm**2
            target = confidence[:, None] * (move + gap[:, None] * found.normals)
            move = solver.factor(sp.csc_matrix(precision + sp.diags(confidence))).solve(target)
        base = base + move
    return base


def final_matches(
    scan: SurfaceIndex, vertices: NDArray[np.float64], faces: NDArray[np.int32], skin: NDArray[np.bool_] | None = None
) -> Matches:
    """Where the moved vertices lie on the scan, by the strictest tests."""
    return match(scan, vertices, vertex_normals(vertices, faces), 3.0, 0.7, skin)
