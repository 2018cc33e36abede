"""Smooth fields on a template: Laplacians, and sparse precisions of Gaussian fields of a given size and range.

A Gaussian field with Matern covariance solves (kappa^2 - Laplacian) u = white noise (Whittle 1954; Lindgren,
Rue and Lindstrom 2011). Its precision is sparse on a mesh, so 'the offset is about 1 mm and varies over 30 mm' becomes
a sparse matrix.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg as spla
from numpy.typing import NDArray

from registration.mesh import face_areas


def cotangent_laplacian(
    vertices: NDArray[np.floating], faces: NDArray[np.integer]
) -> tuple[sp.csc_matrix, NDArray[np.float64]]:
    """The stiffness matrix (n, n), positive semidefinite, and the lumped areas (n,) in mm^2.

    Cotangents are kept between 0.05 and 5, so that slivers neither cut nor weld the surface.
    """
    v = np.asarray(vertices, np.float64)
    n = len(v)
    rows, columns, values = [], [], []
    for i in range(3):
        a, b, c = faces[:, i], faces[:, (i + 1) % 3], faces[:, (i + 2) % 3]
        ab, ac = v[b] - v[a], v[c] - v[a]
        cross = np.linalg.norm(np.cross(ab, ac), axis=1)
        weight = 0.5 * np.clip((ab * ac).sum(1) / np.maximum(cross, 1e-12), 0.05, 5.0)
        rows += [b, c]
        columns += [c, b]
        values += [weight, weight]
    off = sp.coo_matrix((np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))), (n, n)).tocsc()
    laplacian = sp.csc_matrix(sp.diags(np.asarray(off.sum(1)).ravel()) - off)
    area = np.bincount(faces.ravel(), np.repeat(face_areas(v, faces) / 3, 3), minlength=n)
    return laplacian, np.maximum(area, 0.05)


def field_precision(
    laplacian: sp.csc_matrix,
    area_mm2: NDArray[np.float64],
    spread_mm: float | NDArray[np.floating],
    range_mm: float,
) -> sp.csc_matrix:
    """Precision (n, n) of a smooth random field on the surface.

    Args:
        spread_mm: standard deviation of the field, one or (n,).
        range_mm: distance at which its correlation has fallen to about 0.1.
    """
    kappa2 = 8.0 / range_mm**2
    scale = 1.0 / (np.sqrt(4 * np.pi * kappa2) * np.broadcast_to(spread_mm, area_mm2.shape))
    operator = (sp.diags(kappa2 * area_mm2) + laplacian) @ sp.diags(scale)
    return sp.csc_matrix(operator.T @ sp.diags(1.0 / area_mm2) @ operator)


class SymmetricSolver:
    """Factor symmetric positive definite matrices of one structure: the ordering is found once and used again.

    Args:
        structure: (n, n) any matrix with the structure that all later ones have, diagonal included.
    """

    def __init__(self, structure: sp.csc_matrix) -> None:
        pattern = sp.csc_matrix(structure, copy=True)
        pattern.data = np.abs(pattern.data)
        dominant = sp.csc_matrix(pattern + sp.diags(1.0 + np.asarray(pattern.sum(0)).ravel()))
        self._order = np.argsort(_factor(dominant, "MMD_AT_PLUS_A").perm_c)

    def factor(self, matrix: sp.csc_matrix) -> SymmetricFactor:
        """Factor one matrix."""
        turned = sp.csc_matrix(matrix[self._order][:, self._order])
        return SymmetricFactor(_factor(turned, "NATURAL"), self._order)


class SymmetricFactor:
    """A factored matrix, ready to solve."""

    def __init__(self, factor: spla.SuperLU, order: NDArray[np.int64]) -> None:
        self._factor = factor
        self._order = order

    def solve(self, right: NDArray[np.float64]) -> NDArray[np.float64]:
        """Solve for one column (n,) or several (n, k)."""
        out = np.empty_like(right)
        out[self._order] = self._factor.solve(np.ascontiguousarray(right[self._order]))
        return out


def _factor(matrix: sp.csc_matrix, ordering: Literal["NATURAL", "MMD_AT_PLUS_A"]) -> spla.SuperLU:
    return spla.splu(
        matrix.astype(np.float64), permc_spec=ordering, diag_pivot_thresh=0.0, options={"SymmetricMode": True}
    )
