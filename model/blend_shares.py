"""How much each person has of every part of a blended head.

Registrations share their vertices, so people can be mixed linearly, and their codes by the same shares: a few people
become any number, which teaches a field what lies between the codes that it knows. Every part of the head, anchor by
anchor, has shares of its own, so that a blend has the nose of one and the chin of another; those of neighbouring parts
are alike.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from model.blending import Blending, anchor_reach, anchor_weight
from model.config import IdentityConfig
from model.units import to_units

OWN_SHARE = 0.5
"""Of the variance of a part's shares: what is its own and its neighbours'; the rest all parts have in common."""
REACH_MM = 50.0
"""How far apart parts are whose own shares correlate by exp(-1/2)."""
EXPRESSION_EVENNESS = 0.5
"""Below 1 a few expressions have most of a blend, above it all have about as much."""


def part_root(anchors_mm: NDArray[np.floating]) -> NDArray[np.float64]:
    """A root (K + 2, K + 1) of ``part_correlation``."""
    count = len(anchors_mm)
    apart = np.linalg.norm(anchors_mm[:, None] - anchors_mm[None], axis=2)
    alike = np.exp(-((apart / REACH_MM) ** 2) / 2)
    root = np.zeros((count + 2, count + 1))
    root[:, 0] = 1.0
    root[1:-1, 0] = np.sqrt(1 - OWN_SHARE)
    root[1:-1, 1:] = np.sqrt(OWN_SHARE) * np.linalg.cholesky(alike + 1e-6 * np.eye(count))
    return root / np.linalg.norm(root, axis=1, keepdims=True)


def part_correlation(anchors_mm: NDArray[np.floating]) -> NDArray[np.float64]:
    """How the parts of an identity code vary together.

    Args:
        anchors_mm: (K, 3) head frame.

    Returns:
        (K + 2, K + 2) correlation, positive semi-definite: of the global part, each anchor's, and the background's,
        numbered as ``IdentityLayout.part`` does. Global part and background have nothing of their own.
    """
    root = part_root(anchors_mm)
    return root @ root.T


def draw_shares(rng: np.random.Generator, root: NDArray[np.float64], blends: int, parents: int) -> NDArray[np.float32]:
    """Shares of n parents in each part of B blends, which lie about the parents' mean as people lie about theirs.

    Args:
        rng: where they are drawn from.
        root: (parts, r) of the correlation between parts.
        blends, parents: B and n, which is at least 2.

    Returns:
        (B, n, parts), with sum one over the parents; a share may be negative or over one. The squares of what a part's
        shares are over 1 / n have the sum one in the mean: so blends have the parents' own covariance.
    """
    noise = rng.standard_normal((blends, parents, root.shape[1])) @ root.T
    away = (noise - noise.mean(1, keepdims=True)) / np.sqrt(parents - 1)
    return (1 / parents + away).astype(np.float32)


def draw_expression_shares(rng: np.random.Generator, blends: int, parents: int) -> NDArray[np.float32]:
    """Shares (B, n) of n expressions in B blends: none negative, with sum one.

    What a face does, a mouth that opens or a lid that closes, mostly goes one way from rest: less than nothing of it
    would push lips through each other.
    """
    return rng.dirichlet(np.full(parents, EXPRESSION_EVENNESS), blends).astype(np.float32)


def part_weights(
    vertices_mm: NDArray[np.floating], anchors_mm: NDArray[np.floating], pairs: int, config: IdentityConfig
) -> NDArray[np.float32]:
    """How much the field listens to each part of a code at some places.

    Args:
        vertices_mm: (V, 3) head frame.
        anchors_mm: (K, 3) of the same head.
        pairs: number of mirrored pairs.
        config: reach and blending of the field.

    Returns:
        (V, K + 2), with sum one; numbered as in ``part_correlation``, nothing being left to the global part.
    """
    points, anchors = (to_units(torch.as_tensor(np.asarray(array, np.float32))) for array in (vertices_mm, anchors_mm))
    count = len(anchors)
    reach = anchor_reach(anchors, pairs, config.reach_neighbours, config.reach_factor).clamp_min(1e-6)
    offset = (points[:, None] - anchors[None]).reshape(-1, 3)
    weight, _ = anchor_weight(offset, reach.repeat(len(points)), config.sharpness)
    point = torch.arange(len(points)).repeat_interleave(count)
    blending = Blending.of(len(points), point, weight, config.background_weight, config.background_limit)
    whole = torch.zeros(len(points), count + 2)
    whole[:, 1:-1] = weight.reshape(-1, count)
    whole[blending.background_point, -1] = blending.background_weight
    return np.asarray((whole / blending.total[:, None]).numpy())
