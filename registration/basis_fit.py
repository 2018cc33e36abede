"""Fit pose and linear shape coefficients to a scan, together with what the linear model can't express.

A linear model of other people never meets a person exactly, and what it lacks is smooth: neighbouring residuals say the
same thing. Least squares that takes them as independent pays for the relief of one cheek with wrong coefficients
elsewhere. Here the misfit is a Gaussian field along the normals, so that pose and coefficients are those of generalised
least squares with correlated errors. A thinned set of vertices carries it: the field is wider than their spacing.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import numba
import numpy as np
from numpy.typing import NDArray
from scipy.linalg import cholesky, solve_triangular
from scipy.spatial.distance import cdist
from scipy.spatial.transform import Rotation
from scipy.special import k1

from registration.correspondence import match
from registration.mesh import vertex_normals
from registration.surface import SurfaceIndex

MATERN_STEPS, MATERN_END = 1 << 17, 64.0
"""Entries of the table that a misfit's correlation is read from, for a Bessel function is dear; good to 3e-4. Beyond
its end, 23 ranges away, nothing is left of it."""

SETTLED = 0.025
"""A stage ends early where a step moves the head by less than this share of the residuals that count in full."""


@dataclass(frozen=True)
class LinearModel:
    """A head with linear modes.

    Attributes:
        vertices: (n, 3) float64, mean, head frame, mm.
        faces: (m, 3).
        basis: (k, n, 3) float32 mm.
        prior_mean: (k,) of the coefficients.
        prior_spread: (k,) their standard deviations.
        low, high: (k,) bounds of the coefficients.
    """

    vertices: NDArray[np.float64]
    faces: NDArray[np.int32]
    basis: NDArray[np.float32]
    prior_mean: NDArray[np.float64]
    prior_spread: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]

    def subset(self, modes: NDArray[np.int64]) -> LinearModel:
        """The same head with some of its modes."""
        return LinearModel(
            self.vertices, self.faces, self.basis[modes], self.prior_mean[modes], self.prior_spread[modes],
            self.low[modes], self.high[modes],
        )  # fmt: skip

    def held(self, modes: NDArray[np.bool_], coefficients: NDArray[np.float64]) -> LinearModel:
        """The same head with the coefficients of some modes (k,) held."""
        low, high = np.where(modes, coefficients, self.low), np.where(modes, coefficients, self.high)
        return replace(self, low=low, high=high)

    def around(self, vertices: NDArray[np.int64]) -> tuple[LinearModel, NDArray[np.int64]]:
        """What of the head some vertices and their normals depend on, and where those vertices lie in it."""
        wanted = np.zeros(len(self.vertices), bool)
        wanted[vertices] = True
        faces = self.faces[wanted[self.faces].any(1)]
        wanted[faces] = True
        index = np.cumsum(wanted) - 1
        part = replace(
            self, vertices=self.vertices[wanted], faces=index[faces],
            basis=self.basis.take(np.flatnonzero(wanted), axis=1),
        )  # fmt: skip
        return part, index[vertices]

    def shape(self, coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
        """Vertices (n, 3) for coefficients (k,)."""
        bent = coefficients.astype(self.basis.dtype) @ self.basis.reshape(len(self.basis), self.vertices.size)
        return np.asarray(self.vertices + bent.reshape(-1, 3))


@dataclass(frozen=True)
class Misfit:
    """What a linear model is expected to lack: offsets along the normals, smooth over the surface.

    Attributes:
        pick: (s,) int64 the vertices that carry the fit.
        weights: (s,) how much each counts, 0 to 1.
        covariance: (s, s) float32 mm^2; the noise on its diagonal leaves a condition far within single precision.
        noise_mm: of a match along its normal, neighbours independent.
    """

    pick: NDArray[np.int64]
    weights: NDArray[np.float64]
    covariance: NDArray[np.float32]
    noise_mm: float

    @classmethod
    def over(
        cls,
        vertices: NDArray[np.floating],
        pick: NDArray[np.int64],
        weights: NDArray[np.float64],
        spread_mm: float,
        range_mm: float,
        noise_mm: float,
    ) -> Misfit:
        """A Matern field (nu = 1) of the given standard deviation and range over some vertices."""
        apart = cdist(vertices[pick], vertices[pick])
        apart *= np.sqrt(8.0) / range_mm * (MATERN_STEPS - 1) / MATERN_END
        index = np.minimum(apart.round().astype(np.int32), MATERN_STEPS - 1)
        return cls(pick, weights[pick], (spread_mm**2 * _matern()).astype(np.float32)[index], noise_mm)


@lru_cache(maxsize=1)
def _matern() -> NDArray[np.float64]:
    """x K1(x), the correlation of a Matern field (nu = 1), for x up to ``MATERN_END``."""
    x = np.linspace(0.0, MATERN_END, MATERN_STEPS)
    return np.append(1.0, x[1:] * k1(x[1:]))


@dataclass(frozen=True)
class Pins:
    """Vertices that are drawn to known places, softly: landmarks.

    Attributes:
        vertices: (p,) int64.
        targets: (p, 3) float64 in the scan's frame, mm.
        spread_mm: (p,) standard deviation of each target; places further than three of them lose their pull.
    """

    vertices: NDArray[np.int64]
    targets: NDArray[np.float64]
    spread_mm: NDArray[np.float64]

    def pull(
        self, model: LinearModel, shape: NDArray[np.float64], T: NDArray[np.float64], centre: NDArray[np.float64]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What the pins add to the normal equations of turn about ``centre``, shift and coefficients.

        Returns:
            Hessian (6 + k, 6 + k) and gradient (6 + k,).
        """
        placed = shape[self.vertices] @ T[:3, :3].T + T[:3, 3]
        gap = self.targets - placed
        reach = 3.0 * self.spread_mm
        weight = (reach**2 / (reach**2 + (gap**2).sum(1))) ** 2 / self.spread_mm**2
        arm = placed - centre
        turn = np.zeros((len(arm), 3, 3))
        turn[:, [0, 1, 2], [1, 2, 0]] = arm[:, [2, 0, 1]]
        turn[:, [1, 2, 0], [0, 1, 2]] = -arm[:, [2, 0, 1]]
        bent = np.einsum("kpc,dc->pdk", model.basis[:, self.vertices], T[:3, :3])
        jacobian = np.concatenate([turn, np.broadcast_to(np.eye(3), turn.shape), bent], axis=2)
        flat = jacobian.reshape(-1, jacobian.shape[2])
        weighted = flat * np.repeat(weight, 3)[:, None]
        return weighted.T @ flat, weighted.T @ gap.ravel()


@dataclass(frozen=True)
class Stage:
    """One level of the fit.

    Attributes:
        iterations: how many at most.
        gate_mm: matches further away count nothing.
        least_cosine: of the angle between the normals.
        robust_mm: residuals beyond this lose weight (Geman-McClure).
    """

    iterations: int
    gate_mm: float
    least_cosine: float
    robust_mm: float


COARSE = (Stage(5, 25.0, 0.4, 8.0), Stage(3, 12.0, 0.5, 4.0))
FINE = (Stage(5, 8.0, 0.6, 2.0), Stage(3, 5.0, 0.7, 1.0))


@dataclass(frozen=True)
class BasisFit:
    """The result.

    Attributes:
        T_scan_from_head: (4, 4) rigid.
        coefficients: (k,).
        offset_mm: (s,) the misfit along the normals of the linear shape, at the vertices that carry the fit.
        cost: from 0 to 1, mean loss over the weighted vertices that were seen; an unmatched one costs 1.
    """

    T_scan_from_head: NDArray[np.float64]
    coefficients: NDArray[np.float64]
    offset_mm: NDArray[np.float64]
    cost: float


def fit_basis(
    scan: SurfaceIndex,
    model: LinearModel,
    misfit: Misfit,
    start: BasisFit,
    stages: tuple[Stage, ...],
    pins: Pins | None = None,
    skin: NDArray[np.bool_] | None = None,
) -> BasisFit:
    """Fit pose, coefficients and smooth misfit by robust Gauss-Newton steps, point to plane.

    Args:
        scan: what to fit.
        misfit: what the model is expected to lack, and the scan's noise.
        start: where to begin.
        pins: landmarks of the scan, where some are known.
        skin: (v,) which vertices of the scan are skin; all by default. What wasn't seen neither pulls nor costs.
    """
    T, c, offset, cost = start.T_scan_from_head, start.coefficients, start.offset_mm, start.cost
    if pins is not None:
        model, places = model.around(np.concatenate([misfit.pick, pins.vertices]))
        pins = replace(pins, vertices=places[len(misfit.pick) :])
    else:
        model, places = model.around(misfit.pick)
    pick = places[: len(misfit.pick)]
    basis = np.ascontiguousarray(model.basis[:, pick].transpose(1, 2, 0))  # a carrier's rows together: they are picked
    for stage in stages:
        before = np.full((len(pick), 3), np.inf)
        for _ in range(stage.iterations):
            shape = model.shape(c)
            normal = vertex_normals(shape, model.faces)[pick]
            R = T[:3, :3]
            facing = normal @ R.T
            placed = (shape[pick] + normal * offset[:, None]) @ R.T + T[:3, 3]
            if np.sqrt(np.square(placed - before).sum(1).mean()) < SETTLED * stage.robust_mm:
                break
            before = placed
            found = match(scan, placed, facing, stage.gate_mm, stage.least_cosine, skin)
            residual = ((found.points - placed) * found.normals).sum(1)
            kept = stage.robust_mm**2 / (stage.robust_mm**2 + residual**2)
            told = misfit.weights * ~found.unseen
            cost = float(((1 - found.weights * kept) * told).sum() / max(told.sum(), 1e-9))
            weight = misfit.weights * found.weights * kept**2
            good = np.flatnonzero(weight > 1e-3)
            if len(good) < 50:
                return BasisFit(T, c, offset, 1.0)
            toward, centre = found.normals[good], placed[good].mean(0)
            jacobian = np.concatenate(
                [
                    np.cross(placed[good] - centre, toward),
                    toward,
                    np.matmul((toward @ R).astype(basis.dtype)[:, None], basis[good])[:, 0],
                ],
                axis=1,
            )
            along = (toward * facing[good]).sum(1)
            target = residual[good] + along * offset[good]
            noise2 = (misfit.noise_mm**2 + (0.3 * stage.robust_mm) ** 2) / weight[good]
            inner = _seen_covariance(misfit.covariance, good, along.astype(np.float32), noise2.astype(np.float32))
            factor = cholesky(inner, lower=True, overwrite_a=True, check_finite=False)
            rows = np.column_stack([jacobian, target]).astype(np.float32)
            whitened = solve_triangular(factor, rows, lower=True, check_finite=False)
            products = (whitened[:, :-1].T @ whitened).astype(np.float64)
            hessian, gradient = products[:, :-1], products[:, -1]
            if pins is not None:
                stiffer, pull = pins.pull(model, shape, T, centre)
                hessian, gradient = hessian + stiffer, gradient + pull
            move = _bounded_step(hessian, gradient, model, c)
            remaining = whitened[:, -1] - whitened[:, :-1] @ move.astype(np.float32)
            remaining = solve_triangular(factor, remaining, trans=1, lower=True, check_finite=False)
            pulled = np.zeros(len(pick), np.float32)
            pulled[good] = along * remaining
            offset = (misfit.covariance @ pulled).astype(np.float64)
            turn = np.eye(4)
            turn[:3, :3] = Rotation.from_rotvec(move[:3]).as_matrix()
            turn[:3, 3] = centre + move[3:6] - turn[:3, :3] @ centre
            T = turn @ T
            c = np.clip(c + move[6:], model.low, model.high)
    return BasisFit(T, c, offset, cost)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def _seen_covariance(
    covariance: NDArray[np.float32], good: NDArray[np.int64], along: NDArray[np.float32], noise2: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Covariance of the residuals (g, g) of the vertices ``good``, by columns; what lies above the diagonal is 0.

    ``along`` (g,) is how far each residual looks along its vertex's normal, ``noise2`` (g,) mm^2.
    """
    count = len(good)
    out = np.zeros((count, count), np.float32)
    for j in range(count):
        row = covariance[good[j]]
        for i in range(j, count):
            out[j, i] = row[good[i]] * along[i] * along[j]
        out[j, j] += noise2[j]
    return out.T


def _bounded_step(
    hessian: NDArray[np.float64], gradient: NDArray[np.float64], model: LinearModel, c: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Solve for pose and coefficients; those that would leave their bounds are set there and the rest solved again."""
    prior = np.concatenate([np.full(6, 1e-6), 1.0 / model.prior_spread**2])
    hessian = hessian + np.diag(prior)
    gradient = gradient.copy()
    gradient[6:] -= prior[6:] * (c - model.prior_mean)
    free = np.ones(len(gradient), bool)
    move = np.zeros(len(gradient))
    for _ in range(5):
        held = ~free
        right = gradient[free] - hessian[np.ix_(free, held)] @ move[held]
        move[free] = np.linalg.solve(hessian[np.ix_(free, free)], right)
        ahead = c + move[6:]
        out = free[6:] & ((ahead < model.low - 1e-9) | (ahead > model.high + 1e-9))
        if not out.any():
            break
        move[6:][out] = (np.clip(ahead, model.low, model.high) - c)[out]
        free[6:][out] = False
    return move
