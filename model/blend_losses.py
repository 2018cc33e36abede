"""The losses of blended people: where their codes are mixed, so are their registrations.

They are not the paper's. A field that knows few people passes through each and means little elsewhere; these terms say
what it should mean there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.config import TrainingConfig
from model.losses import Losses, Shared, alone, flat, length, weighted_mean
from model.shape_and_motion import MotionField, PreparedShape, ShapeField


@dataclass(frozen=True)
class BlendedShapesBatch:
    """Surfaces of B blends of n people each, model units, head frame.

    Attributes:
        subject: (B, n) int64 the people.
        share: (B, n, K + 2) of each in every part of the code, see ``model.blend_shares``.
        surface, normal: (B, P, 3).
        weight: (B, P) confidence.
        anchors: (B, K, 3).
    """

    subject: Tensor
    share: Tensor
    surface: Tensor
    normal: Tensor
    weight: Tensor
    anchors: Tensor


@dataclass(frozen=True)
class BlendedMotionsBatch:
    """B blends of q expressions, each on a blend of n people, model units, head frame.

    Attributes:
        subject: (B, n) int64 the people.
        share: (B, n, K + 2) of each in every part of the identity code.
        scan: (B, q) int64 whose expressions.
        expression_share: (B, q, 1) of each in the expression code.
        canonical, posed: (B, P, 3).
        weight: (B, P) confidence.
    """

    subject: Tensor
    share: Tensor
    scan: Tensor
    expression_share: Tensor
    canonical: Tensor
    posed: Tensor
    weight: Tensor


def blended_shape_losses(
    field: ShapeField,
    prepared: PreparedShape,
    batch: BlendedShapesBatch,
    config: TrainingConfig,
    shared: Shared = alone,
) -> Losses:
    """Distance and normals on the blended surfaces, and the anchors; terms without weight are left out.

    The first points, in the surface's share that the config names, are given normals.
    """
    weights = config.identity_losses
    blends, points = batch.weight.shape
    cut = round(points * config.surface_gradient_share) if weights.blend_normals else 0
    losses: Losses = {}
    distances = []
    if cut:
        found, slopes = field.sdf_and_gradient(prepared, *flat(batch.surface[:, :cut]), create_graph=True)
        distances.append(found.reshape(blends, -1))
        error = length(slopes.reshape(blends, -1, 3) - batch.normal[:, :cut])
        losses["blend_normals"] = weighted_mean(error, batch.weight[:, :cut], shared)
    if cut < points and weights.blend_sdf:
        distances.append(field.sdf(prepared, *flat(batch.surface[:, cut:])).reshape(blends, -1))
    if weights.blend_sdf:
        losses["blend_sdf"] = weighted_mean(torch.cat(distances, 1).abs(), batch.weight, shared)
    if weights.blend_anchors:
        losses["blend_anchors"] = (prepared.anchors - batch.anchors).square().mean()
    return losses


def blended_motion_losses(
    field: MotionField, prepared: Any, batch: BlendedMotionsBatch, shared: Shared = alone
) -> Losses:
    """Squared error of moved points, in either direction."""
    blends = len(batch.weight)
    backward = field.config.direction == "backward"
    start, end = (batch.posed, batch.canonical) if backward else (batch.canonical, batch.posed)
    moved = field.displacement(prepared, *flat(start)).reshape(blends, -1, 3)
    error = (moved - (end - start)).square().sum(2)
    return {"blend_corresp": weighted_mean(error, batch.weight, shared)}
