"""Fit identity, expressions and small pose corrections to partial clouds.

Each observed point should lie on the zero level of the identity field at its canonical place.
All codes and poses are found together by a damped, robustly reweighted Gauss-Newton method: the gradients of every
point's distance with respect to its codes come from one backward pass with a copy of the codes for each point. A dozen
such steps do what a thousand first-order steps do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.bound_fields import Fields
from model.code_prior import CodePrior
from model.fit_config import FitConfig
from model.observation import Observation, small_rigid
from model.posterior import Posterior
from model.threads import fixed_threads
from model.units import to_mm, to_units
from registration.mesh import transform_points

_POSE = 6
_POINTS_AT_ONCE = 1024


@dataclass(frozen=True)
class FittedCodes:
    """Codes and poses of one person.

    Attributes:
        identity: (D,) float32.
        expressions: (E,) float32 each, one an observation.
        T_told_from_head: (4, 4) float64 each: the correction of the told head frames, mm.
        canonical_mm: (n, 3) each: where the used points lie in canonical space, nan without a root.
        residual_mm: (n,) each: distance of the used points to the surface, nan without a root.
        cost: what was minimised, a step each.
        posteriors: what each observation left unknown.
    """

    identity: NDArray[np.float32]
    expressions: tuple[NDArray[np.float32], ...]
    T_told_from_head: tuple[NDArray[np.float64], ...]
    canonical_mm: tuple[NDArray[np.float64], ...]
    residual_mm: tuple[NDArray[np.float64], ...]
    cost: tuple[float, ...]
    posteriors: tuple[Posterior, ...] = ()


@dataclass
class _Cloud:
    """One observation's points and its current unknowns."""

    points: NDArray[np.float64]  # mm, told head frame
    normals: NDArray[np.float64] | None
    expression: NDArray[np.float64]
    twist: NDArray[np.float64]  # head from told: rotation vector in radians, translation in mm
    canonical: Tensor | None = None  # where the points came from last, the next start

    def some(self, most: int, rng: np.random.Generator) -> _Cloud:
        """At most so many of the points, drawn without replacement."""
        if len(self.points) <= most:
            return replace(self)
        pick = np.sort(rng.choice(len(self.points), most, replace=False))
        return replace(self, points=self.points[pick], normals=None if self.normals is None else self.normals[pick])


@dataclass
class _Linear:
    """Residuals of one observation in mm and their derivatives by its codes and twist."""

    residual: NDArray[np.float64]
    by_identity: NDArray[np.float64]
    by_own: NDArray[np.float64]
    valid: NDArray[np.bool_]


def fit_codes(
    fields: Fields,
    identity_prior: CodePrior,
    expression_prior: CodePrior,
    observations: Sequence[Observation],
    config: FitConfig,
    seed: int = 0,
    expression_starts: NDArray[np.floating] | None = None,
) -> FittedCodes:
    """Fit one identity, and an expression and a small rigid correction an observation.

    Starts at the mean identity, and for each observation at the expression that explains it best there: an open mouth
    can't be reached from a closed one, since the points of its lips have wrong canonical places. Then the robust
    kernel (Geman-McClure) narrows and the identity's prior softens step by step: large shapes settle before small ones.

    Args:
        fields: the trained fields.
        identity_prior, expression_prior: over the codes.
        observations: at least one cloud.
        seed: draws the points that are used.
        expression_starts: (k, E) expressions to try first; the mean alone by default.
    """
    starts = expression_prior.mean[None] if expression_starts is None else np.asarray(expression_starts, np.float64)
    rng = np.random.default_rng(seed)
    with fixed_threads(config.threads):
        clouds = [_draw(observation, expression_prior.mean, config.points, rng) for observation in observations]
        for cloud in clouds:
            _start(fields, identity_prior.mean, cloud, starts, expression_prior, config, rng)
        return _fit(fields, identity_prior, expression_prior, clouds, config)


def _fit(
    fields: Fields,
    identity_prior: CodePrior,
    expression_prior: CodePrior,
    clouds: Sequence[_Cloud],
    config: FitConfig,
) -> FittedCodes:
    identity = identity_prior.mean.copy()
    scales = np.geomspace(config.first_scale_mm, config.last_scale_mm, config.iterations)
    stiffness = np.geomspace(config.first_stiffness, 1.0, max(config.iterations * 2 // 3, 1))
    costs: list[float] = []
    for step, scale in enumerate(scales):
        soft = float(stiffness[min(step, len(stiffness) - 1)])
        linear = [_linearise(fields, identity, cloud, config) for cloud in clouds]
        equations = _equations(linear, clouds, identity, identity_prior, expression_prior, float(scale), soft, config)
        identity_step, own_steps = _step(equations, identity_prior, expression_prior, config)
        costs.append(equations.cost)
        identity = identity + identity_step
        for cloud, own in zip(clouds, own_steps, strict=True):
            cloud.expression = cloud.expression + own[:-_POSE]
            cloud.twist = cloud.twist + own[-_POSE:]
    linear = [_linearise(fields, identity, cloud, config) for cloud in clouds]
    equations = _equations(
        linear, clouds, identity, identity_prior, expression_prior, config.last_scale_mm, 1.0, config
    )
    residuals, places = [], []
    for cloud in clouds:
        residual, place = _residuals(fields, identity, cloud)
        residuals.append(residual)
        places.append(place)
    return FittedCodes(
        identity.astype(np.float32),
        tuple(cloud.expression.astype(np.float32) for cloud in clouds),
        tuple(np.asarray(np.linalg.inv(small_rigid(cloud.twist)), np.float64) for cloud in clouds),
        tuple(places),
        tuple(residuals),
        tuple(costs),
        equations.posteriors(),
    )


def _draw(observation: Observation, expression: NDArray[np.float64], most: int, rng: np.random.Generator) -> _Cloud:
    normals = None if observation.normals is None else np.asarray(observation.normals, np.float64)
    cloud = _Cloud(np.asarray(observation.points_mm, np.float64), normals, expression.copy(), np.zeros(_POSE))
    return cloud.some(most, rng)


def _start(
    fields: Fields,
    identity: NDArray[np.float64],
    cloud: _Cloud,
    starts: NDArray[np.float64],
    expression_prior: CodePrior,
    config: FitConfig,
    rng: np.random.Generator,
) -> None:
    """Give a cloud the expression and pose of its best start, after a few steps with some of its points."""
    few = cloud.some(config.start_points, rng)
    nobody = CodePrior(np.zeros(0), np.zeros((0, 0)))
    best = np.inf
    for start in starts if len(starts) > 1 else starts[:0]:
        tried = replace(few, expression=start.copy(), twist=np.zeros(_POSE), canonical=None)
        for _ in range(config.start_iterations + 1):
            linear = _linearise(fields, identity, tried, config)
            linear.by_identity = linear.by_identity[:, :0]
            expression, twist = tried.expression, tried.twist
            equations = _equations(
                [linear], [tried], nobody.mean, nobody, expression_prior, config.first_scale_mm, 1.0, config
            )
            cost, (_, (own,)) = equations.cost, _step(equations, nobody, expression_prior, config)
            tried.expression, tried.twist = expression + own[:-_POSE], twist + own[-_POSE:]
        if cost < best:  # of the state before the last step
            best, cloud.expression, cloud.twist = cost, expression, twist


def _tensor(array: NDArray[np.floating], device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(device)


def _float64(tensor: Tensor) -> NDArray[np.float64]:
    return tensor.detach().cpu().double().numpy()


def _linearise(fields: Fields, identity: NDArray[np.float64], cloud: _Cloud, config: FitConfig) -> _Linear:
    T_head_from_told = small_rigid(cloud.twist)
    posed_mm = transform_points(T_head_from_told, cloud.points)
    posed = to_units(_tensor(posed_mm, fields.device))
    z, e = _tensor(identity, fields.device)[None], _tensor(cloud.expression, fields.device)[None]
    with torch.no_grad():
        shared = fields.bind(z, e)
    came_from = shared.canonical(posed, cloud.canonical)
    cloud.canonical = came_from.place
    parts = [
        _derivatives(fields, z, e, came_from.place[part], posed[part])
        for part in torch.arange(len(posed), device=fields.device).split(_POINTS_AT_ONCE)
    ]
    residual, by_z, by_e, normal = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    valid = came_from.found.cpu().numpy() & np.isfinite(residual)
    if cloud.normals is not None:
        told = cloud.normals @ T_head_from_told[:3, :3].T
        length = np.linalg.norm(normal, axis=1) * np.linalg.norm(told, axis=1)
        valid &= (length == 0) | (np.einsum("nc,nc->n", told, normal) > config.normal_cosine * length)
    turn = np.cross(posed_mm, normal)  # mm a radian
    return _Linear(residual, by_z, np.concatenate([by_e, turn, normal], 1), valid)


def _derivatives(
    fields: Fields, z: Tensor, e: Tensor, canonical: Tensor, posed: Tensor
) -> tuple[NDArray[np.float64], ...]:
    """Distances (n,) of posed points in mm, and their derivatives by codes (n, D), (n, E) and observed mm (n, 3).

    Each point gets a copy of the codes, so that one backward pass gives each point's own derivatives.
    """
    n = len(posed)
    z_each = z.expand(n, -1).clone().requires_grad_(True)
    e_each = e.expand(n, -1).clone().requires_grad_(True)
    observed = posed.clone().requires_grad_(True)
    sdf = fields.bind(z_each, e_each).distance(observed, canonical)
    by_z, by_e, by_observed = torch.autograd.grad(sdf.sum(), (z_each, e_each, observed))
    # a distance by a place has no unit: mm a mm is units a unit
    return _float64(to_mm(sdf)), _float64(to_mm(by_z)), _float64(to_mm(by_e)), _float64(by_observed)


def _residuals(fields: Fields, identity: NDArray[np.float64], cloud: _Cloud) -> tuple[NDArray, NDArray]:
    posed = to_units(_tensor(transform_points(small_rigid(cloud.twist), cloud.points), fields.device))
    with torch.no_grad():
        bound = fields.bind(_tensor(identity, fields.device)[None], _tensor(cloud.expression, fields.device)[None])
        came_from = bound.canonical(posed, cloud.canonical)
        residual = _float64(to_mm(bound.distance(posed, came_from.place)).abs())
    place = _float64(to_mm(came_from.place))
    missing = ~came_from.found.cpu().numpy()
    residual[missing], place[missing] = np.nan, np.nan
    return residual, place


@dataclass(frozen=True)
class _Eliminated:
    """What is left of one observation's own unknowns once they are expressed by the identity's."""

    free: NDArray[np.bool_]
    square: NDArray[np.float64]
    by_identity: NDArray[np.float64]
    alone: NDArray[np.float64]


@dataclass(frozen=True)
class _Equations:
    """One step's normal equations, each observation's own unknowns eliminated: many cost no more than each alone."""

    cost: float
    A: NDArray[np.float64]
    b: NDArray[np.float64]
    eliminated: tuple[_Eliminated, ...]

    def posteriors(self) -> tuple[Posterior, ...]:
        """What is still unknown of each observation, by the curvature of the cost."""
        identity = np.asarray(np.linalg.inv(self.A), np.float64)
        own = [np.asarray(np.linalg.inv(e.square), np.float64) for e in self.eliminated]
        return tuple(
            Posterior(identity, inverse, e.by_identity, e.free) for inverse, e in zip(own, self.eliminated, strict=True)
        )


def _equations(
    linear: Sequence[_Linear],
    clouds: Sequence[_Cloud],
    identity: NDArray[np.float64],
    identity_prior: CodePrior,
    expression_prior: CodePrior,
    scale_mm: float,
    stiffness: float,
    config: FitConfig,
) -> _Equations:
    """The cost here, and its Gauss-Newton approximation."""
    E = len(expression_prior.mean)
    spread = np.concatenate([np.full(3, np.radians(config.rotation_deg)), np.full(3, config.translation_mm)])
    free = np.concatenate([np.ones(E, bool), spread > 0])
    own_precision = np.zeros((E + _POSE, E + _POSE))
    own_precision[:E, :E] = expression_prior.precision
    own_precision[range(E, E + _POSE), range(E, E + _POSE)] = np.where(spread > 0, spread, 1.0) ** -2.0
    A = stiffness * identity_prior.precision
    b = -A @ (identity - identity_prior.mean)
    cost = stiffness * identity_prior.cost(identity)
    eliminated = []
    for part, cloud in zip(linear, clouds, strict=True):
        square = (part.residual / scale_mm) ** 2
        weight = np.where(part.valid, config.noise_mm**-2.0 / (1 + square) ** 2, 0.0)
        away = np.concatenate([cloud.expression - expression_prior.mean, cloud.twist])
        cost += float(away @ own_precision @ away)
        # a point that counts for nothing in the step costs as much as one that is infinitely far
        robust = np.where(part.valid, square / (1 + square), 1.0)
        cost += float((scale_mm / config.noise_mm) ** 2 * robust.sum())
        own = part.by_own[:, free]
        weighted = own * weight[:, None]
        H = own_precision[np.ix_(free, free)] + weighted.T @ own
        cross = weighted.T @ part.by_identity
        g = -own_precision[np.ix_(free, free)] @ away[free] - weighted.T @ part.residual
        inverse_cross, inverse_g = np.linalg.solve(H, cross), np.linalg.solve(H, g)
        A = A + _gram(part.by_identity, weight) - cross.T @ inverse_cross
        b = b - part.by_identity.T @ (weight * part.residual) - cross.T @ inverse_g
        eliminated.append(_Eliminated(free, H, inverse_cross, inverse_g))
    return _Equations(cost, A, b, tuple(eliminated))


def _step(
    equations: _Equations, identity_prior: CodePrior, expression_prior: CodePrior, config: FitConfig
) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
    """The identity's step, and each observation's (expression, then twist)."""
    step = np.asarray(np.linalg.solve(equations.A, equations.b), np.float64)
    own_steps = []
    for e in equations.eliminated:
        full = np.zeros(len(e.free))
        full[e.free] = e.alone - e.by_identity @ step
        own_steps.append(full)
    E = len(expression_prior.mean)
    shrink = min(
        _within(step, identity_prior.precision, config.largest_step),
        *(_within(own[:E], expression_prior.precision, config.largest_step) for own in own_steps),
    )
    return shrink * step, [shrink * own for own in own_steps]


def _gram(rows: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """rows^T diag(weight) rows (D, D): most of a step's arithmetic, and good enough in single precision."""
    half = torch.from_numpy((rows * np.sqrt(weight)[:, None]).astype(np.float32))
    return _float64(half.T @ half)


def _within(step: NDArray[np.float64], precision: NDArray[np.float64], largest: float) -> float:
    """The share of a step that moves its codes by at most so many spreads, root mean square."""
    length = np.sqrt(max(float(step @ precision @ step), 0.0) / max(len(step), 1))
    return min(1.0, largest / length) if length > 0 else 1.0


def surface_spread_mm(
    fields: Fields, fitted: FittedCodes, place: int, points_head_mm: NDArray[np.floating]
) -> NDArray[np.float64]:
    """How far the surface may lie off along its normal (n,), one standard deviation, mm.

    Args:
        fields: those of the fit.
        fitted: its result.
        place: of the observation.
        points_head_mm: (n, 3) on its fitted surface, posed, in the head frame.
    """
    z = _tensor(fitted.identity, fields.device)[None]
    e = _tensor(fitted.expressions[place], fields.device)[None]
    posed = to_units(_tensor(points_head_mm, fields.device))
    with torch.no_grad():
        canonical = fields.bind(z, e).canonical(posed).place
    spread = []
    for part in torch.arange(len(posed), device=fields.device).split(_POINTS_AT_ONCE):
        _, by_z, by_e, normal = _derivatives(fields, z, e, canonical[part], posed[part])
        turn = np.cross(points_head_mm[part.cpu().numpy()], normal)
        spread.append(fitted.posteriors[place].spread(by_z, np.concatenate([by_e, turn, normal], 1)))
    return np.concatenate(spread)
