"""Every term of the identity field's losses, by the paper's name (section 3.3), in model units.

A term is a plain function of tensors. ``identity_losses`` says which points each one sees.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from model.codes import IdentityLayout
from model.config import LossWeights, TrainingConfig
from model.shape_and_motion import PreparedShape, ShapeField
from model.units import to_units

Losses = dict[str, Tensor]
"""Unweighted terms by name, each a scalar."""


@dataclass(frozen=True)
class IdentitySamplesBatch:
    """Samples of B subjects, model units, head frame.

    Attributes:
        anchors: (B, K, 3) from the registrations.
        surface, normal: (B, P, 3).
        surface_weight: (B, P) confidence.
        face: (B, P) bool.
        near, near_sdf, near_weight: (B, Q, 3), (B, Q), (B, Q).
        space, space_sdf, space_weight: (B, R, 3), (B, R), (B, R).
    """

    anchors: Tensor
    surface: Tensor
    normal: Tensor
    surface_weight: Tensor
    face: Tensor
    near: Tensor
    near_sdf: Tensor
    near_weight: Tensor
    space: Tensor
    space_sdf: Tensor
    space_weight: Tensor


Shared = Callable[[Tensor], Tensor]
"""The mean over all training processes of a constant; in a single process, the constant itself."""


def alone(value: Tensor) -> Tensor:
    """``Shared`` of a single process."""
    return value


def weighted_mean(values: Tensor, weight: Tensor, shared: Shared = alone) -> Tensor:
    """Mean with weights; zero where no weight is left. The weights' sum is shared by all training processes."""
    return (values * weight).sum() / shared(weight.sum()).clamp_min(1e-6)


def normal_error(gradient: Tensor, normal: Tensor, face: Tensor, outer_clamp: float, outer_weight: float) -> Tensor:
    """Length of gradient less normal; off the face limited and counted less, since hair has no certain normal."""
    error = length(gradient - normal)
    return torch.where(face, error, error.clamp_max(outer_clamp) * outer_weight)


def eikonal_error(gradient: Tensor) -> Tensor:
    """Absolute of the gradient's length less one."""
    return (length(gradient) - 1).abs()


def off_surface(sdf: Tensor) -> Tensor:
    """exp(-10 |sdf|): pushes points of space off the surface where no distance is known."""
    return torch.exp(-10 * sdf.abs())


def clamped_distance_error(sdf: Tensor, told: Tensor, limit: float) -> Tensor:
    """Absolute error of distances, both limited to ``limit`` first."""
    return (sdf.clamp(-limit, limit) - told.clamp(-limit, limit)).abs()


def symmetry_distance(z_id: Tensor, layout: IdentityLayout) -> Tensor:
    """Mean distance between the local codes of each mirrored pair."""
    if layout.pairs == 0:
        return z_id.new_zeros(())
    local = layout.split(z_id)[1][:, : 2 * layout.pairs].reshape(len(z_id), layout.pairs, 2, -1)
    return length(local[:, :, 0] - local[:, :, 1]).mean()


def middle_distance(z_id: Tensor, layout: IdentityLayout) -> Tensor:
    """Mean squared length of the local codes on the middle line."""
    local = layout.split(z_id)[1][:, 2 * layout.pairs : layout.anchors]
    return local.square().sum(-1).mean() if local.numel() else z_id.new_zeros(())


def identity_losses(
    field: ShapeField,
    prepared: PreparedShape,
    z_id: Tensor,
    batch: IdentitySamplesBatch,
    config: TrainingConfig,
    shared: Shared = alone,
) -> Losses:
    """All terms of stage 1 whose weight is not zero.

    The first points of each kind, in the shares that the config names, are given spatial gradients.

    Args:
        field, prepared: of B subjects.
        z_id: (B, D).
        batch: samples of these subjects.
        config: weights, shares and limits.
        shared: over the processes that have the batch's other lines.
    """
    weights = config.identity_losses
    subjects = len(z_id)
    kinds = (batch.surface, batch.near, batch.space)
    shares = (config.surface_gradient_share, config.near_gradient_share, config.space_gradient_share)
    cuts = [round(points.shape[1] * share) for points, share in zip(kinds, shares, strict=True)]
    sloped = torch.cat([points[:, :cut] for points, cut in zip(kinds, cuts, strict=True)], 1)
    plain = torch.cat([points[:, cut:] for points, cut in zip(kinds, cuts, strict=True)], 1)
    gradient = sloped.new_zeros(subjects, 0, 3)
    sloped_sdf = sloped.new_zeros(subjects, 0)
    plain_sdf = sloped_sdf
    if sloped.shape[1]:
        values, slopes = field.sdf_and_gradient(prepared, *flat(sloped), create_graph=True)
        sloped_sdf, gradient = values.reshape(subjects, -1), slopes.reshape(subjects, -1, 3)
    if plain.shape[1]:
        plain_sdf = field.sdf(prepared, *flat(plain)).reshape(subjects, -1)
    rests = [points.shape[1] - cut for points, cut in zip(kinds, cuts, strict=True)]
    surface, near, space = (
        torch.cat(parts, 1) for parts in zip(sloped_sdf.split(cuts, 1), plain_sdf.split(rests, 1), strict=True)
    )
    limit = to_units(config.distance_clamp_mm)
    losses: Losses = {}
    if weights.surf_sdf:
        losses["surf_sdf"] = weighted_mean(surface.abs(), batch.surface_weight, shared)
    if weights.near_sdf:
        error = clamped_distance_error(near, batch.near_sdf, limit)
        losses["near_sdf"] = weighted_mean(error, batch.near_weight, shared)
    if weights.space_sdf_direct:
        error = clamped_distance_error(space, batch.space_sdf, limit)
        losses["space_sdf_direct"] = weighted_mean(error, batch.space_weight, shared)
    if weights.space_sdf:
        losses["space_sdf"] = off_surface(space).mean()
    if weights.normals and cuts[0]:
        told = batch.normal[:, : cuts[0]], batch.face[:, : cuts[0]]
        error = normal_error(gradient[:, : cuts[0]], *told, config.outer_normal_clamp, config.outer_normal_weight)
        losses["normals"] = weighted_mean(error, batch.surface_weight[:, : cuts[0]], shared)
    if weights.grad and gradient.shape[1]:
        losses["grad"] = eikonal_error(gradient).mean()
    if weights.lat_reg:
        losses["lat_reg"] = z_id.square().sum(1).mean()
    if weights.anchors:
        losses["anchors"] = (prepared.anchors - batch.anchors).square().mean()
    if weights.symm_dist:
        losses["symm_dist"] = symmetry_distance(z_id, field.layout)
    if weights.middle_dist:
        losses["middle_dist"] = middle_distance(z_id, field.layout)
    return losses | field.own_losses(prepared, batch.near)


def flat(points: Tensor) -> tuple[Tensor, Tensor]:
    """Points (B, P, c) one after the other, (B P, c), and the place in B of each, (B P,)."""
    index = torch.arange(len(points), device=points.device).repeat_interleave(points.shape[1])
    return points.flatten(0, 1), index


def total(losses: Losses, weights: LossWeights) -> Tensor:
    """Sum of the terms by their weights."""
    return torch.stack([getattr(weights, name) * value for name, value in losses.items()]).sum()


def length(vectors: Tensor) -> Tensor:
    """Lengths (...) of vectors (..., 3), with a derivative at zero too."""
    return torch.sqrt(vectors.square().sum(-1) + 1e-12)
