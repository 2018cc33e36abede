"""How the anchors' fields hand over to each other: one function for training, fitting and meshing.

An anchor's weight is ``exp(-sharpness t) (1 - t)^2`` with ``t`` the squared distance to it over its squared reach,
and exactly zero beyond: the log-weights of a softmax times a smooth window of finite reach. Weight and first derivative
vanish at the reach, so that an anchor may be left out there without a crack. The background field fills what the
anchors leave: its weight is small beside an anchor's own, falls with the sum of the anchors' weights and vanishes, with
its derivative, where that sum reaches a limit. So near the surface it is seldom evaluated, and in far space it is all
there is. The weights are divided by their sum, which is nowhere zero. (Paper, section 3.1, whose Gaussian weights die
out in far space with their sum.)
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class ActivePairs:
    """The (point, anchor) pairs whose weight is not zero, sorted by anchor, then by point.

    Attributes:
        point: (M,) int64.
        anchor: (M,) int64.
        counts: pairs of each anchor, K entries.
    """

    point: Tensor
    anchor: Tensor
    counts: list[int]


def anchor_reach(mean_anchors: Tensor, pairs: int, neighbours: int, factor: float) -> Tensor:
    """Reach of each anchor: the distance to its n-th neighbour times a factor, alike within a mirrored pair.

    Args:
        mean_anchors: (K, 3) model units, mirrored pairs first, interleaved.
        pairs: number of mirrored pairs.
        neighbours: n; fewer anchors than that take the farthest.
        factor: see above.

    Returns:
        (K,) model units.
    """
    if len(mean_anchors) == 0:  # one network for all of space
        return mean_anchors.new_zeros(0)
    distance = torch.cdist(mean_anchors, mean_anchors).sort(dim=1).values
    reach = distance[:, min(neighbours, len(mean_anchors) - 1)] * factor
    paired = reach[: 2 * pairs].reshape(pairs, 2).mean(1, keepdim=True).expand(-1, 2).reshape(-1)
    return torch.cat([paired, reach[2 * pairs :]])


@torch.no_grad()
def active_pairs(points: Tensor, anchors: Tensor, subject_index: Tensor | None, reach: Tensor) -> ActivePairs:
    """Find which anchors reach which points.

    Args:
        points: (N, 3) model units.
        anchors: (B, K, 3) model units.
        subject_index: (N,) int64 into the B subjects, or None where there is one.
        reach: (K,) model units.
    """
    squared = points.new_zeros(len(points), anchors.shape[1])
    for axis in range(3):
        of_points = anchors[:, :, axis] if subject_index is None else anchors[:, :, axis].index_select(0, subject_index)
        offset = points[:, axis : axis + 1] - of_points
        squared.addcmul_(offset, offset)
    mask = (squared < reach.square()).t()
    anchor, point = mask.nonzero(as_tuple=True)
    return ActivePairs(point, anchor, mask.sum(1).tolist())


def anchor_weight(offset: Tensor, reach: Tensor, sharpness: float) -> tuple[Tensor, Tensor]:
    """Weight of anchors before division by the sum, and its gradient with respect to the point.

    Args:
        offset: (M, 3) point minus anchor.
        reach: (M,).
        sharpness: see the module.

    Returns:
        (M,) and (M, 3).
    """
    inverse = reach.square().reciprocal()
    t = offset.square().sum(1) * inverse
    left = (1 - t).clamp_min(0)
    decay = torch.exp(-sharpness * t)
    slope = -decay * left * (sharpness * left + 2)
    return decay * left * left, (2 * slope * inverse)[:, None] * offset


@dataclass(frozen=True)
class Blending:
    """The weights of all fields at N points.

    Attributes:
        point: (M,) int64 of the active pairs.
        weight: (M,) of the active pairs.
        background_point: (L,) int64 points where the background counts.
        background_weight: (L,) its weight there.
        background_slope: (L,) derivative of that weight by the sum of the anchors' weights.
        total: (N,) sum of all weights.
    """

    point: Tensor
    weight: Tensor
    background_point: Tensor
    background_weight: Tensor
    background_slope: Tensor
    total: Tensor

    @classmethod
    def of(cls, points: int, point: Tensor, weight: Tensor, background: float, limit: float) -> Blending:
        """Find where the background counts, and how much.

        Args:
            points: N.
            point, weight: (M,) of the active pairs.
            background: the background's weight where no anchor reaches.
            limit: sum of the anchors' weights from which on the background counts for nothing.
        """
        anchored = weight.new_zeros(points).index_add(0, point, weight)
        background_point = (anchored < limit).nonzero()[:, 0]
        left = 1 - anchored.index_select(0, background_point) / limit
        own = background * left * left
        total = anchored.index_add(0, background_point, own)
        return cls(point, weight, background_point, own, (-2 * background / limit) * left, total)

    def mean(self, pair_value: Tensor, background_value: Tensor) -> Tensor:
        """Weighted mean (N,) of the fields, from their values (M,) and (L,)."""
        weighted = torch.zeros_like(self.total).index_add(0, self.point, self.weight * pair_value)
        weighted = weighted.index_add(0, self.background_point, self.background_weight * background_value)
        return weighted / self.total

    def gradient(
        self,
        mean: Tensor,
        pair_value: Tensor,
        pair_gradient: Tensor,
        pair_weight_gradient: Tensor,
        background_value: Tensor,
        background_gradient: Tensor,
    ) -> Tensor:
        """Gradient (N, 3) of what ``mean`` returns, from the parts' values and gradients.

        Where an anchor's weight grows, the background's shrinks: both changes are gathered as the worth of a pair's
        weight before they meet its gradient.
        """
        pull = self.background_slope * (background_value - mean.index_select(0, self.background_point))
        worth = (-mean).index_add(0, self.background_point, pull)
        excess = pair_value + worth.index_select(0, self.point)
        parts = torch.addcmul(excess[:, None] * pair_weight_gradient, self.weight[:, None], pair_gradient)
        outside = self.background_weight[:, None] * background_gradient
        slope = [  # axis by axis, since sums of scattered lines are slow on a CPU
            torch.zeros_like(mean)
            .index_add(0, self.point, parts[:, axis])
            .index_add(0, self.background_point, outside[:, axis])
            for axis in range(3)
        ]
        return torch.stack(slope, 1) / self.total[:, None]
