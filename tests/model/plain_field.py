"""The identity field formula by formula, as slow as it reads: every network at every point, codes repeated."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from model.identity_field import IdentityField


def plain_sdf(field: IdentityField, z_id: Tensor, points: Tensor, subject_index: Tensor) -> Tensor:
    """Signed distances (N,) with one code a point; arguments as ``IdentityField.sdf``."""
    points, hyper = points[:, :3], points[:, 3:]
    config, layout = field.config, field.layout
    z_global, z_local = layout.split(z_id)
    anchors = field.anchors_head(z_global)[subject_index]
    z_global, z_local = z_global[subject_index], z_local[subject_index]
    numerator = torch.zeros(len(points), dtype=points.dtype)
    denominator = torch.zeros(len(points), dtype=points.dtype)
    for k in range(layout.anchors + 1):
        background = k == layout.anchors
        local = points if background else points - anchors[:, k]
        reach = config.background_reach_units if background else field.reach[k]
        x = config.coordinate_gain * local / reach
        if k < 2 * layout.pairs and k % 2 == 1:
            x = x * torch.tensor([-1.0, 1.0, 1.0], dtype=x.dtype)
        network = k // 2 if k < 2 * layout.pairs else k - layout.pairs
        value = _network(field, network, torch.cat([x, hyper, z_global, z_local[:, k]], 1))
        if background:
            left = torch.clamp(1 - denominator / config.background_limit, min=0)
            weight = config.background_weight * left**2
        else:
            t = (local**2).sum(1) / reach**2
            weight = torch.exp(-config.sharpness * t) * torch.clamp(1 - t, min=0) ** 2
        numerator = numerator + weight * value
        denominator = denominator + weight
    return numerator / denominator


def _network(field: IdentityField, network: int, given: Tensor) -> Tensor:
    h, seen = given, 0
    depth_of_input = {0} if field.config.skip_layer is None else {0, field.config.skip_layer}
    for depth in range(len(field.biases)):
        weight = torch.zeros(0, field.biases[depth].shape[1], dtype=given.dtype)
        if depth > 0:
            weight = field.hidden_weights[depth - 1][network]
        if depth in depth_of_input:
            weight = torch.cat([weight, field.input_weights[seen][network]])
            h = given if depth == 0 else torch.cat([h, given], 1) / math.sqrt(2)
            seen += 1
        h = h @ weight + field.biases[depth][network]
        if depth < len(field.biases) - 1:
            silu = field.config.activation == "silu"
            h = torch.nn.functional.silu(h) if silu else torch.nn.functional.softplus(h, beta=100)
    return h[:, 0]
