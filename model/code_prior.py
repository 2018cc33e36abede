"""What the trained codes say of codes to come: a Gaussian with the mirror symmetry built in."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.blend_shares import part_correlation
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


def identity_prior(
    codes: NDArray[np.floating], layout: IdentityLayout, anchors_mm: NDArray[np.floating], shrinkage: float = 4.0
) -> CodePrior:
    """The prior of identity codes.

    A person's mirror image is as likely as the person, so the codes count twice. Few people tell how entries vary
    together only roughly, and least of all those of parts that lie far from each other: their covariances count by the
    correlation of the shares that people are blended with, and all of them less the fewer people there are.

    Args:
        codes: (S, D) the trained ones.
        layout: of their parts.
        anchors_mm: (K, 3) where the parts lie, head frame.
        shrinkage: how many codes the spread over a whole group of entries counts for against their own covariance.
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
    diagonal = turn.T @ (turn * _pooled(spread.mean(0), kind)[:, None])
    alike = part_correlation(anchors_mm)[np.ix_(layout.part, layout.part)]
    alike = (alike + alike[np.ix_(swap, swap)]) / 2  # people's mean anchors are not quite symmetric
    own = alike * (away.T @ away / len(both))
    share = shrinkage / (len(codes) + shrinkage)
    return CodePrior(mean, np.linalg.inv(share * diagonal + (1 - share) * own))


def expression_prior(codes: NDArray[np.floating], shrinkage: float = 4.0) -> CodePrior:
    """The prior of expression codes (T, E): independent entries about their mean."""
    mean = codes.mean(0).astype(np.float64)
    own = ((codes - mean) ** 2).mean(0, dtype=np.float64)
    share = shrinkage / (len(codes) + shrinkage)
    pooled = _pooled(own, np.zeros(codes.shape[1], np.int64))
    return CodePrior(mean, np.diag(1 / (share * pooled + (1 - share) * own)))


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


def _pooled(variance: NDArray[np.float64], group: NDArray[np.int64]) -> NDArray[np.float64]:
    """The mean variance of each entry's group, and a little of that of all."""
    pooled = np.bincount(group, variance) / np.maximum(np.bincount(group), 1)
    return np.maximum(pooled[group], 1e-4 * variance.mean() + 1e-12)
