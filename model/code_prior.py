"""What the trained codes say of codes to come: a Gaussian with the mirror symmetry built in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.codes import IdentityLayout


@dataclass(frozen=True)
class CodePrior:
    """A Gaussian over codes of D entries.

    Attributes:
        mean: (D,) where a fit starts.
        precision: (D, D) inverse covariance.
    """

    mean: NDArray[np.float64]
    precision: NDArray[np.float64]

    def cost(self, code: NDArray[np.floating]) -> float:
        """Squared Mahalanobis distance from the mean."""
        away = code - self.mean
        return float(away @ self.precision @ away)


def mirrored_entries(layout: IdentityLayout) -> NDArray[np.int64]:
    """The permutation (D,) of an identity code's entries that swaps the local parts of each mirrored pair."""
    part = np.arange(layout.anchors + 1)
    part[: 2 * layout.pairs] ^= 1
    local = layout.global_dim + part[:, None] * layout.local_dim + np.arange(layout.local_dim)
    return np.concatenate([np.arange(layout.global_dim), local.ravel()])


def identity_prior(codes: NDArray[np.floating], layout: IdentityLayout, shrinkage: float = 4.0) -> CodePrior:
    """The prior of identity codes.

    A person's mirror image is as likely as the person. So the codes count twice, and the covariance is diagonal in the
    sums and differences of mirrored parts: how far the two sides of a face may differ is learnt from how far they do.

    Args:
        codes: (S, D) the trained ones.
        layout: of their parts.
        shrinkage: how many codes the spread over a whole group counts for against an entry's own spread, which few
            subjects tell only roughly.
    """
    swap = mirrored_entries(layout)
    both = np.concatenate([codes, codes[:, swap]]).astype(np.float64)
    mean = both.mean(0)
    away = both - mean
    turn = _sums_and_differences(swap)
    spread = (away @ turn.T) ** 2
    place = np.arange(layout.size)
    # the global part, local parts and sums, and differences: entries of a group have comparable spreads
    kind = np.where(place < layout.global_dim, 0, np.where(swap < place, 2, 1))
    variance = _shrunk(spread, kind, len(codes), shrinkage)
    return CodePrior(mean, turn.T @ (turn / variance[:, None]))


def expression_prior(codes: NDArray[np.floating], shrinkage: float = 4.0) -> CodePrior:
    """The prior of expression codes (T, E): independent entries about their mean."""
    mean = codes.mean(0).astype(np.float64)
    spread = (codes - mean) ** 2
    variance = _shrunk(spread, np.zeros(codes.shape[1], np.int64), len(codes), shrinkage)
    return CodePrior(mean, np.diag(1 / variance))


def farthest_codes(codes: NDArray[np.floating], prior: CodePrior, count: int) -> NDArray[np.float64]:
    """The prior's mean and up to ``count`` - 1 of the codes (T, E), each as far from those before as can be."""
    chosen = [prior.mean]
    least = np.full(len(codes), np.inf)
    while len(chosen) < count:
        away = codes - chosen[-1]
        least = np.minimum(least, np.einsum("te,ef,tf->t", away, prior.precision, away))
        farthest = int(least.argmax())
        if least[farthest] <= 0:
            break
        chosen.append(codes[farthest].astype(np.float64))
    return np.stack(chosen)


def _sums_and_differences(swap: NDArray[np.int64]) -> NDArray[np.float64]:
    """The orthogonal (D, D) matrix to sums (at the first of a pair's entries) and differences (at the second)."""
    turn = np.eye(len(swap))
    first = (swap > np.arange(len(swap))).nonzero()[0]
    second = swap[first]
    turn[first, second] = turn[first, first] = np.sqrt(0.5)
    turn[second, first], turn[second, second] = np.sqrt(0.5), -np.sqrt(0.5)
    return turn


def _shrunk(
    squares: NDArray[np.float64], group: NDArray[np.int64], count: int, shrinkage: float
) -> NDArray[np.float64]:
    """Variance of each column, drawn towards its group's."""
    own = squares.mean(0)
    pooled = np.empty_like(own)
    for g in np.unique(group):
        pooled[group == g] = own[group == g].mean()
    smallest = 1e-4 * own.mean() + 1e-12
    return np.maximum((count * own + shrinkage * pooled) / (count + shrinkage), smallest)
