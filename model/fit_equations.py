"""The normal equations of a fit's step: one identity, and each observation's own expression and pose.

Own unknowns are eliminated first, so that many observations cost no more than each alone. In a sequence those of
consecutive frames are tied; elimination then goes along the chain of frames.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from model.block_chain import BlockChain
from model.code_prior import CodePrior
from model.fit_cloud import POSE, Cloud, Rows, as_float64
from model.fit_config import FitConfig
from model.posterior import Posterior

_SCALE_STEP = 1e-3
"""A scanner's unit does not change from frame to frame."""


@dataclass(frozen=True)
class Ties:
    """What ties consecutive observations: their own unknowns (expression, pose) differ by little.

    Attributes:
        precision: (E + 7, E + 7) of a difference.
        offsets: (E + 7,) each, one fewer than observations: what is added to the difference of the unknowns of an
            observation and the one before, for poses that are corrections of different told frames.
    """

    precision: NDArray[np.float64]
    offsets: tuple[NDArray[np.float64], ...]

    @classmethod
    def of(cls, expression_prior: CodePrior, offsets: Sequence[NDArray[np.float64]], config: FitConfig) -> Ties:
        """Ties as tight as the settings tell, over told frames that differ by twists (6,)."""
        E = len(expression_prior.mean)
        step = np.r_[[np.radians(config.rotation_step_deg)] * 3, [config.translation_step_mm] * 3, _SCALE_STEP]
        precision = np.zeros((E + POSE, E + POSE))
        precision[:E, :E] = expression_prior.precision / config.expression_step**2
        precision[range(E, E + POSE), range(E, E + POSE)] = step**-2.0
        return cls(precision, tuple(np.r_[np.zeros(E), offset, 0.0] for offset in offsets))


@dataclass(frozen=True)
class Priors:
    """What is believed before any point.

    Attributes:
        identity, expression: over the codes.
        stiffness: factor on the identity's precision.
        ties: of consecutive observations; None where each stands for itself.
    """

    identity: CodePrior
    expression: CodePrior
    stiffness: float = 1.0
    ties: Ties | None = None


@dataclass(frozen=True)
class Equations:
    """One step's normal equations, the own unknowns eliminated.

    Attributes:
        cost: here.
        A, b: (D, D), (D,) what is left for the identity.
        free: (E + 7,) which own unknowns are fitted at all.
        chain: of the own unknowns.
        by_identity: (f, D) each: how own unknowns follow the identity.
        alone: (f,) each: their step where the identity stays.
    """

    cost: float
    A: NDArray[np.float64]
    b: NDArray[np.float64]
    free: NDArray[np.bool_]
    chain: BlockChain
    by_identity: tuple[NDArray[np.float64], ...]
    alone: tuple[NDArray[np.float64], ...]

    def posteriors(self) -> tuple[Posterior, ...]:
        """What is still unknown of each observation, by the curvature of the cost."""
        identity = np.asarray(np.linalg.inv(self.A), np.float64)
        own = self.chain.inverse_blocks()
        return tuple(Posterior(identity, block, by, self.free) for block, by in zip(own, self.by_identity, strict=True))

    def step(self, priors: Priors, largest: float) -> tuple[NDArray[np.float64], list[NDArray[np.float64]]]:
        """The identity's step and each observation's (E + 7,), none longer than so many spreads of its codes."""
        step = np.asarray(np.linalg.solve(self.A, self.b), np.float64)
        own_steps = []
        for by, alone in zip(self.by_identity, self.alone, strict=True):
            full = np.zeros(len(self.free))
            full[self.free] = alone - by @ step
            own_steps.append(full)
        E = len(priors.expression.mean)
        shrink = min(
            _within(step, priors.identity.precision, largest),
            *(_within(own[:E], priors.expression.precision, largest) for own in own_steps),
        )
        return shrink * step, [shrink * own for own in own_steps]


def normal_equations(
    rows: Sequence[Sequence[Rows]],
    clouds: Sequence[Cloud],
    identity: NDArray[np.float64],
    priors: Priors,
    config: FitConfig,
) -> Equations:
    """The cost here, and its Gauss-Newton approximation.

    Args:
        rows: of each observation.
        clouds: the observations.
        identity: (D,).
        priors: and ties.
        config: spreads of the poses.
    """
    E = len(priors.expression.mean)
    spread = np.r_[[np.radians(config.rotation_deg)] * 3, [config.translation_mm] * 3, np.log1p(config.scale_share)]
    free = np.r_[np.ones(E, bool), spread > 0]
    own_precision = np.zeros((E + POSE, E + POSE))
    own_precision[:E, :E] = priors.expression.precision
    own_precision[range(E, E + POSE), range(E, E + POSE)] = np.where(spread > 0, spread, 1.0) ** -2.0
    A = priors.stiffness * priors.identity.precision
    b = -A @ (identity - priors.identity.mean)
    cost = priors.stiffness * priors.identity.cost(identity)
    squares, crosses, gradients = [], [], []
    for of_cloud, cloud in zip(rows, clouds, strict=True):
        away = np.r_[cloud.expression - priors.expression.mean, cloud.pose]
        cost += float(away @ own_precision @ away)
        H, g = own_precision[np.ix_(free, free)], -(own_precision @ away)[free]
        cross = np.zeros((len(H), len(A)))
        for kind in of_cloud:
            cost += kind.cost
            weighted = kind.by_own[:, free] * kind.weight[:, None]
            H = H + weighted.T @ kind.by_own[:, free]
            g = g - weighted.T @ kind.residual
            cross += weighted.T @ kind.by_identity
            A = A + _gram(kind.by_identity, kind.weight)
            b = b - kind.by_identity.T @ (kind.weight * kind.residual)
        squares.append(H)
        crosses.append(cross)
        gradients.append(g)
    couplings: list[NDArray[np.float64] | None] = [None] * (len(clouds) - 1)
    if priors.ties is not None:
        cost += _tie(clouds, priors.ties, free, squares, gradients, couplings)
    chain = BlockChain.of(squares, couplings)
    solved = chain.solve([np.c_[cross, g] for cross, g in zip(crosses, gradients, strict=True)])
    by_identity, alone = [x[:, :-1] for x in solved], [x[:, -1] for x in solved]
    for cross, by, own in zip(crosses, by_identity, alone, strict=True):
        A = A - cross.T @ by
        b = b - cross.T @ own
    return Equations(cost, A, b, free, chain, tuple(by_identity), tuple(alone))


def _tie(
    clouds: Sequence[Cloud],
    ties: Ties,
    free: NDArray[np.bool_],
    squares: list[NDArray[np.float64]],
    gradients: list[NDArray[np.float64]],
    couplings: list[NDArray[np.float64] | None],
) -> float:
    """Add what ties consecutive observations to the equations of their own unknowns; the cost of it."""
    own = [np.r_[cloud.expression, cloud.pose] for cloud in clouds]
    some = ties.precision[np.ix_(free, free)]
    cost = 0.0
    for place, offset in enumerate(ties.offsets):
        apart = (own[place + 1] - own[place] + offset)[free]
        pull = some @ apart
        cost += float(apart @ pull)
        for end, sign in ((place, 1.0), (place + 1, -1.0)):
            squares[end] = squares[end] + some
            gradients[end] = gradients[end] + sign * pull
        couplings[place] = -some
    return cost


def _gram(rows: NDArray[np.float64], weight: NDArray[np.float64]) -> NDArray[np.float64]:
    """rows^T diag(weight) rows (D, D): most of a step's arithmetic, and good enough in single precision."""
    half = torch.from_numpy((rows * np.sqrt(weight)[:, None]).astype(np.float32))
    return as_float64(half.T @ half)


def _within(step: NDArray[np.float64], precision: NDArray[np.float64], largest: float) -> float:
    """The share of a step that moves its codes by at most so many spreads, root mean square."""
    length = np.sqrt(max(float(step @ precision @ step), 0.0) / max(len(step), 1))
    return min(1.0, largest / length) if length > 0 else 1.0
