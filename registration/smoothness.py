"""Smooth fields on a template: Laplacians, and sparse precisions of Gaussian fields of a given size and range.

A Gaussian field with Matern covariance solves (kappa^2 - Laplacian) u = white noise (Whittle 1954; Lindgren,
Rue and Lindstrom 2011). Its precision is sparse on a mesh, so 'the offset is about 1 mm and varies over 30 mm' becomes
a sparse matrix.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Literal

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg as spla
from numpy.typing import NDArray

from registration.mesh import face_areas

MOST_STEPS = 30
"""Of conjugate gradients; a matrix near the factored one takes 3 to 8."""


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


def mesh_solver(faces: NDArray[np.integer], count: int, free: NDArray[np.integer]) -> SymmetricSolver:
    """The solver of ``field_precision`` among the vertices ``free`` of a mesh, wherever they lie; the last are kept."""
    return _mesh_solver(np.ascontiguousarray(faces, np.int32).tobytes(), count, free.astype(np.int32).tobytes())


@lru_cache(maxsize=3)
def _mesh_solver(faces: bytes, count: int, free: bytes) -> SymmetricSolver:
    corner, members = np.frombuffer(faces, np.int32).reshape(-1, 3), np.frombuffer(free, np.int32)
    a, b = corner.ravel(), np.roll(corner, 1, axis=1).ravel()
    link = sp.csc_matrix((np.ones(len(a)), (a, b)), (count, count))
    link = sp.csc_matrix(link + link.T + sp.eye(count))
    return SymmetricSolver(sp.csc_matrix((link @ link)[members][:, members]))


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

    def solve_near(
        self, matrix: sp.csc_matrix, right: NDArray[np.float64], start: NDArray[np.float64], tolerance: float = 3e-3
    ) -> NDArray[np.float64]:
        """Solve another symmetric positive definite system that differs little from the factored one.

        Conjugate gradients with the factor as preconditioner, a tenth as dear as another factor.

        Args:
            matrix: (n, n) the other matrix.
            right: (n, k).
            start: (n, k) a first guess.
            tolerance: of the residual, as a share of the right side's length.
        """
        x = start.copy()
        residual = right - matrix @ x
        goal = tolerance * np.linalg.norm(right, axis=0)
        along, last = np.zeros_like(x), np.ones(x.shape[1])
        for _ in range(MOST_STEPS):
            if (np.linalg.norm(residual, axis=0) <= goal).all():
                break
            turned = self.solve(residual)
            energy = (residual * turned).sum(0)
            along = turned + energy / last * along
            ahead = matrix @ along
            step = energy / np.maximum((along * ahead).sum(0), 1e-300)
            x += step * along
            residual -= step * ahead
            last = np.maximum(energy, 1e-300)
        return x


def _factor(matrix: sp.csc_matrix, ordering: Literal["NATURAL", "MMD_AT_PLUS_A"]) -> spla.SuperLU:
    return spla.splu(
        matrix.astype(np.float64), permc_spec=ordering, diag_pivot_thresh=0.0, options={"SymmetricMode": True}
    )
