"""Fit identity, expressions and small pose corrections to partial clouds.

Each observed point should lie on the zero level of the identity field at its canonical place.
All codes and poses are found together by a damped, robustly reweighted Gauss-Newton method: the gradients of every
point's distance with respect to its codes come from one backward pass with a copy of the codes for each point. A dozen
such steps do what a thousand first-order steps do.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from model.bound_fields import Fields
from model.code_prior import CodePrior
from model.fit_cloud import Cloud, as_float64, as_tensor, by_pose, derivatives, linearised
from model.fit_config import FitConfig
from model.fit_equations import Priors, Ties, normal_equations
from model.observation import Observation, rigid_twist, small_rigid
from model.posterior import Posterior
from model.threads import fixed_threads
from model.units import to_mm, to_units


@dataclass(frozen=True)
class FittedCodes:
    """Codes and poses of one person.

    Attributes:
        identity: (D,) float32.
        expressions: (E,) float32 each, one an observation.
        T_told_from_head: (4, 4) float64 each: the correction of the told head frames, mm.
        scales: how many times larger than told each observation is; 1 where the scale was kept. The told frame of
            ``T_told_from_head`` is that of the points after they are scaled.
        canonical_mm: (n, 3) each: where the used points lie in canonical space, nan without a root.
        residual_mm: (n,) each: distance of the used points to the surface, nan without a root.
        cost: what was minimised, a step each.
        posteriors: what each observation left unknown.
    """

    identity: NDArray[np.float32]
    expressions: tuple[NDArray[np.float32], ...]
    T_told_from_head: tuple[NDArray[np.float64], ...]
    scales: tuple[float, ...]
    canonical_mm: tuple[NDArray[np.float64], ...]
    residual_mm: tuple[NDArray[np.float64], ...]
    cost: tuple[float, ...]
    posteriors: tuple[Posterior, ...] = ()


def fit_codes(
    fields: Fields,
    identity_prior: CodePrior,
    expression_prior: CodePrior,
    observations: Sequence[Observation],
    config: FitConfig,
    seed: int = 0,
    expression_starts: NDArray[np.floating] | None = None,
    sequence: bool = False,
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
        sequence: the observations are consecutive frames: expression and pose change little from each to the next.
    """
    starts = expression_prior.mean[None] if expression_starts is None else np.asarray(expression_starts, np.float64)
    rng = np.random.default_rng(seed)
    priors = Priors(identity_prior, expression_prior, config.first_stiffness)
    with fixed_threads(config.threads):
        clouds = [Cloud.drawn(observation, expression_prior.mean, config, rng) for observation in observations]
        for cloud in clouds:
            _start(fields, cloud, starts, priors, config, rng)
        if sequence:
            priors = replace(priors, ties=Ties.of(expression_prior, _told_steps(observations), config))
        return _fit(fields, priors, clouds, config)


def _told_steps(observations: Sequence[Observation]) -> list[NDArray[np.float64]]:
    """How far each told frame lies from the one before in their common world, a twist (6,) each."""
    told = [np.eye(4) if o.T_world_from_told is None else o.T_world_from_told for o in observations]
    return [rigid_twist(np.linalg.inv(after) @ before) for before, after in itertools.pairwise(told)]


def _fit(fields: Fields, priors: Priors, clouds: Sequence[Cloud], config: FitConfig) -> FittedCodes:
    identity = priors.identity.mean.copy()
    scales = np.geomspace(config.first_scale_mm, config.last_scale_mm, config.iterations)
    stiffness = np.geomspace(config.first_stiffness, 1.0, max(config.iterations * 2 // 3, 1))
    costs: list[float] = []
    for number, scale in enumerate(scales):
        soft = replace(priors, stiffness=float(stiffness[min(number, len(stiffness) - 1)]))
        rows = [linearised(fields, identity, cloud, config, float(scale)) for cloud in clouds]
        equations = normal_equations(rows, clouds, identity, soft, config)
        identity_step, own_steps = equations.step(priors, config.largest_step)
        costs.append(equations.cost)
        identity = identity + identity_step
        for cloud, own in zip(clouds, own_steps, strict=True):
            _move(cloud, own)
    last = replace(priors, stiffness=1.0)
    rows = [linearised(fields, identity, cloud, config, config.last_scale_mm) for cloud in clouds]
    equations = normal_equations(rows, clouds, identity, last, config)
    residuals, places = zip(*(_residuals(fields, identity, cloud) for cloud in clouds), strict=True)
    return FittedCodes(
        identity.astype(np.float32),
        tuple(cloud.expression.astype(np.float32) for cloud in clouds),
        tuple(np.asarray(np.linalg.inv(small_rigid(cloud.pose[:6])), np.float64) for cloud in clouds),
        tuple(cloud.scale for cloud in clouds),
        places,
        residuals,
        tuple(costs),
        equations.posteriors(),
    )


def _move(cloud: Cloud, step: NDArray[np.float64]) -> None:
    E = len(cloud.expression)
    cloud.expression, cloud.pose = cloud.expression + step[:E], cloud.pose + step[E:]


def _start(
    fields: Fields,
    cloud: Cloud,
    starts: NDArray[np.float64],
    priors: Priors,
    config: FitConfig,
    rng: np.random.Generator,
) -> None:
    """Give a cloud the expression and pose of its best start, after a few steps with some of its points."""
    few = cloud.few(config.start_points, rng)
    nobody = CodePrior(np.zeros(0), np.zeros((0, 0)))
    alone = Priors(nobody, priors.expression)
    best = np.inf
    for start in starts if len(starts) > 1 else starts[:0]:
        tried = few.started(start)
        for _ in range(config.start_iterations + 1):
            rows = linearised(fields, priors.identity.mean, tried, config, config.first_scale_mm)
            rows = [replace(kind, by_identity=kind.by_identity[:, :0]) for kind in rows]
            expression, pose = tried.expression, tried.pose
            equations = normal_equations([rows], [tried], nobody.mean, alone, config)
            _, (own,) = equations.step(alone, config.largest_step)
            _move(tried, own)
        if equations.cost < best:  # of the state before the last step
            best, cloud.expression, cloud.pose = equations.cost, expression, pose


def _residuals(fields: Fields, identity: NDArray[np.float64], cloud: Cloud) -> tuple[NDArray, NDArray]:
    posed = to_units(as_tensor(cloud.in_head(cloud.points.told_mm), fields.device))
    with torch.no_grad():
        bound = fields.bind(as_tensor(identity, fields.device)[None], as_tensor(cloud.expression, fields.device)[None])
        came_from = bound.canonical(posed, cloud.points.canonical)
        residual = as_float64(to_mm(bound.distance(posed, came_from.place).abs()))
    place = as_float64(to_mm(came_from.place))
    missing = ~came_from.found.cpu().numpy()
    residual[missing], place[missing] = np.nan, np.nan
    return residual, place


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
    z = as_tensor(fitted.identity, fields.device)[None]
    e = as_tensor(fitted.expressions[place], fields.device)[None]
    posed = to_units(as_tensor(points_head_mm, fields.device))
    with torch.no_grad():
        canonical = fields.bind(z, e).canonical(posed).place
    _, by_z, by_e, slope = derivatives(fields, z, e, canonical, posed)
    pose = np.r_[rigid_twist(np.linalg.inv(fitted.T_told_from_head[place])), np.log(fitted.scales[place])]
    own = np.concatenate([by_e, by_pose(points_head_mm, slope, pose)], 1)
    return fitted.posteriors[place].spread(by_z, own)
