"""Bring a fitted head onto the scan: a smooth displacement, coarse to fine.

Each level is a displacement field of a given size and range (``smoothness.field_precision``) on top of the last one.
Only the part along the scan's normal is pulled, so vertices follow the surface and stay in place along it; the
system is then the same scalar one for x, y and z (it majorises the point-to-plane energy), factored once a level: from
one iteration to the next only the confidences of matches change.
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
from registration.smoothness import SymmetricFactor, cotangent_laplacian, field_precision, mesh_solver
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


AFTER_BASIS = (Level(0.8, 30.0, 4, 5.0, 1.5, 0.15), Level(0.3, 9.0, 3, 3.0, 0.8, 0.1))
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
        weights: (n,) how much each vertex follows, 0 to 1; those with 0 stay where they are.
        softness: (n,) factor on the spread of the displacement; below 1 where features are easily pulled apart.
        skin: (v,) which vertices of the scan are skin; all by default.

    Returns:
        (n, 3) float64.
    """
    free = np.flatnonzero(weights > 0)
    laplacian, area = cotangent_laplacian(vertices, faces)
    solver = mesh_solver(faces, len(vertices), free)
    base = vertices.copy()
    for level in levels:
        precision = field_precision(laplacian, area, level.spread_mm * softness, level.range_mm)[free][:, free]
        start = base[free]
        move = np.zeros_like(start)
        factor: SymmetricFactor | None = None
        for _ in range(level.iterations):
            base[free] = start + move
            found = match(scan, base[free], vertex_normals(base, faces)[free], level.gate_mm, 0.6, skin)
            gap = ((found.points - base[free]) * found.normals).sum(1)
            robust = (level.robust_mm**2 / (level.robust_mm**2 + gap**2)) ** 2
            confidence = weights[free] * found.weights * robust / level.noise_mm**2
            target = confidence[:, None] * (move + gap[:, None] * found.normals)
            system = sp.csc_matrix(precision + sp.diags(confidence))
            if factor is None:
                factor = solver.factor(system)
                move = factor.solve(target)
            else:
                move = factor.solve_near(system, target, move)
        base[free] = start + move
    return base


def final_matches(
    scan: SurfaceIndex, vertices: NDArray[np.float64], faces: NDArray[np.int32], skin: NDArray[np.bool_] | None = None
) -> Matches:
    """Where the moved vertices lie on the scan, by the strictest tests."""
    return match(scan, vertices, vertex_normals(vertices, faces), 3.0, 0.7, skin)
