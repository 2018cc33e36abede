"""Every term of the expression field's losses, by name, in model units: NPHM's (section 3.3) and MonoNPHM's."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.config import DeformationLossWeights, TrainingConfig
from model.losses import Losses, Shared, alone, clamped_distance_error, flat, weighted_mean
from model.shape_and_motion import MotionField, ShapeField
from model.units import to_units


@dataclass(frozen=True)
class PosedSamplesBatch:
    """Distances of B posed heads, model units, head frame.

    Attributes:
        surface, surface_weight: (B, P, 3) on the surface, (B, P) confidence.
        near, near_sdf, near_weight: (B, Q, 3), (B, Q), (B, Q).
    """

    surface: Tensor
    surface_weight: Tensor
    near: Tensor
    near_sdf: Tensor
    near_weight: Tensor


@dataclass(frozen=True)
class DeformationSamplesBatch:
    """Correspondences of B scans, model units, head frame.

    Attributes:
        canonical, posed: (B, P, 3).
        weight: (B, P).
        samples: of the posed heads, where the batch has them.
        keypoints: (B, k, 3) of the posed heads, likewise.
    """

    canonical: Tensor
    posed: Tensor
    weight: Tensor
    samples: PosedSamplesBatch | None = None
    keypoints: Tensor | None = None


def forward_losses(
    field: MotionField,
    prepared: Any,
    z_ex: Tensor,
    batch: DeformationSamplesBatch,
    anywhere: Tensor,
    weights: DeformationLossWeights,
    shared: Shared = alone,
) -> Losses:
    """All terms of a forward deformation whose weight is not zero.

    Args:
        field, prepared: of B scans.
        z_ex: (B, E).
        batch: the correspondences.
        anywhere: (B, U, 3) points of all space, model units, where faces should not move things.
        weights: of the terms.
        shared: over the processes that have the batch's other lines.
    """
    scans, pairs = batch.weight.shape
    moved = field.displacement(prepared, *flat(torch.cat([batch.canonical, anywhere], 1))).reshape(scans, -1, 3)
    error = (moved[:, :pairs] - (batch.posed - batch.canonical)).square().sum(2)
    return _common(error, moved[:, pairs:], z_ex, batch, weights, shared)


def backward_losses(
    field: MotionField,
    prepared: Any,
    identity: ShapeField,
    prepared_identity: Any,
    z_ex: Tensor,
    batch: DeformationSamplesBatch,
    anywhere: Tensor,
    config: TrainingConfig,
    shared: Shared = alone,
) -> Losses:
    """All terms of a backward deformation whose weight is not zero (MonoNPHM).

    A scan whose pairs do not move is a canonical one: ``neutral_zero`` and ``hyper_neutral`` see these alone.

    Args:
        field, prepared, z_ex, batch, anywhere, shared: as in ``forward_losses``.
        identity, prepared_identity: of the B scans' subjects, for the distances of posed samples.
        config: weights, and the limit of distances.
    """
    weights, samples = config.deformation_losses, batch.samples
    scans, pairs = batch.weight.shape
    parts = [batch.posed, anywhere, *((samples.surface, samples.near) if samples is not None else ())]
    points = torch.cat(parts, 1)
    came_from = field.canonical(prepared, *flat(points)).reshape(scans, points.shape[1], -1)
    of_pairs, of_anywhere, *of_samples = came_from.split([part.shape[1] for part in parts], 1)
    error = (of_pairs[:, :, :3] - batch.canonical).square().sum(2)
    losses = _common(error, of_anywhere[:, :, :3] - anywhere, z_ex, batch, weights, shared)
    still = (batch.posed == batch.canonical).all(2).all(1).to(points.dtype)[:, None].expand(-1, pairs)
    if weights.neutral_zero:
        moved = (of_pairs[:, :, :3] - batch.posed).square().sum(2)
        losses["neutral_zero"] = weighted_mean(moved, still, shared)
    hyper = of_pairs[:, :, 3:].abs().sum(2)
    if weights.hyper and field.config.hyper_dim:
        losses["hyper"] = hyper.mean()
    if weights.hyper_neutral and field.config.hyper_dim:
        losses["hyper_neutral"] = weighted_mean(hyper, still, shared)
    if samples is not None:
        distance = identity.sdf(prepared_identity, *flat(torch.cat(of_samples, 1))).reshape(scans, -1)
        surface, near = distance.split([part.shape[1] for part in of_samples], 1)
        if weights.posed_surf_sdf:
            losses["posed_surf_sdf"] = weighted_mean(surface.abs(), samples.surface_weight, shared)
        if weights.posed_near_sdf:
            wrong = clamped_distance_error(near, samples.near_sdf, to_units(config.distance_clamp_mm))
            losses["posed_near_sdf"] = weighted_mean(wrong, samples.near_weight, shared)
    return losses | field.own_losses(prepared, batch.keypoints)


def _common(
    error: Tensor,
    moved_anywhere: Tensor,
    z_ex: Tensor,
    batch: DeformationSamplesBatch,
    weights: DeformationLossWeights,
    shared: Shared,
) -> Losses:
    """The terms of both directions: squared errors (B, P) of the pairs, displacements (B, U, 3) anywhere, codes."""
    losses: Losses = {}
    if weights.corresp:
        losses["corresp"] = weighted_mean(error, batch.weight, shared)
    if weights.lat_reg_ex:
        losses["lat_reg_ex"] = z_ex.square().sum(1).mean()
    if weights.reg_zero and moved_anywhere.shape[1]:
        losses["reg_zero"] = moved_anywhere.square().sum(2).mean()
    return losses
