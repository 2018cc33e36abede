"""How the anchors' fields hand over to each other: one function for training, fitting and meshing.

An anchor's weight is ``exp(-sharpness t) (1 - t)^2`` with ``t`` the squared distance to it over its squared reach, and
exactly zero beyond: the log-weights of a softmax times a smooth window of finite reach. Weight and first derivative
vanish at the reach, so that an anchor may be left out there without a crack. The background field has the same small
weight everywhere; it fills what the anchors leave, all of it where none reaches. The weights are divided by their sum,
which is never below the background's. (Paper, section 3.1, whose Gaussian weights die out in far space with their sum.)
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


def blend(
    pair_value: Tensor, pair_weight: Tensor, point: Tensor, background_value: Tensor, background_weight: float
) -> tuple[Tensor, Tensor]:
    """Weighted mean of the fields at each point.

    Args:
        pair_value, pair_weight, point: (M,) of the active pairs.
        background_value: (N,).
        background_weight: positive.

    Returns:
        The mean (N,) and the sum of the weights (N,).
    """
    total = torch.full_like(background_value, background_weight).index_add(0, point, pair_weight)
    weighted = (background_weight * background_value).index_add(0, point, pair_weight * pair_value)
    return weighted / total, total


def blend_gradient(
    pair_value: Tensor,
    pair_gradient: Tensor,
    pair_weight: Tensor,
    pair_weight_gradient: Tensor,
    point: Tensor,
    background_gradient: Tensor,
    background_weight: float,
    mean: Tensor,
    total: Tensor,
) -> Tensor:
    """Gradient (N, 3) of what ``blend`` returns as ``mean``, from the parts' values and gradients."""
    excess = pair_value - mean.index_select(0, point)
    parts = pair_weight[:, None] * pair_gradient + excess[:, None] * pair_weight_gradient
    return (background_weight * background_gradient).index_add(0, point, parts) / total[:, None]
