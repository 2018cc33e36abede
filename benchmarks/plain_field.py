"""The paper's formulas as they stand, in torch: what the benchmarks hold our evaluation against."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.deformation_field import DeformationField
from model.identity_field import IdentityField


@dataclass(frozen=True)
class PlainPrepared:
    """What `PlainIdentity.sdf` needs of B subjects: codes and anchors, to be repeated for every point."""

    z_id: Tensor
    anchors: Tensor


class PlainIdentity(nn.Module):
    """The paper's formulas as they stand: every network at every point, codes repeated, gradients by autograd.

    Takes the weights of an `IdentityField` and has its methods, so that the same losses can be asked of both.
    """

    def __init__(self, field: IdentityField) -> None:
        super().__init__()
        self.config, self.layout = field.config, field.layout
        self.activation = torch.nn.SiLU() if field.config.activation == "silu" else torch.nn.Softplus(beta=100)
        self.anchors_head = field.anchors_head
        self.network_of, self.reach, self.scale = field.network_of, field.reach, field.coordinate_scale
        direct = iter(field.input_weights)
        weights = []
        for depth in range(len(field.biases)):
            parts = [field.hidden_weights[depth - 1]] if depth > 0 else []
            parts += [next(direct)] if depth in (0, field.config.skip_layer) else []
            weights.append(nn.Parameter(torch.cat(parts, 1).detach().clone()))
        self.weights = nn.ParameterList(weights)
        self.biases = nn.ParameterList([nn.Parameter(bias.detach().clone()[:, None]) for bias in field.biases])

    def prepare(self, z_id: Tensor) -> PlainPrepared:
        return PlainPrepared(z_id, self.anchors_head(self.layout.split(z_id)[0]))

    def sdf(self, prepared: PlainPrepared, points: Tensor, subject_index: Tensor) -> Tensor:
        """(N, 3) to (N,); the networks are one batched product over all 40."""
        z_global, z_local = self.layout.split(prepared.z_id[subject_index])
        anchors = prepared.anchors[subject_index]
        offset = torch.cat([points[:, None] - anchors, points[:, None]], 1)
        codes = [z_global[:, None].expand(-1, offset.shape[1], -1), z_local]
        given = torch.cat([offset * self.scale, *codes], 2).transpose(0, 1)
        h = given
        for depth, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if depth > 0 and depth == self.config.skip_layer:
                h = torch.cat([h, given], 2) / math.sqrt(2)
            h = torch.baddbmm(bias[self.network_of], h, weight[self.network_of])
            h = self.activation(h) if depth < len(self.weights) - 1 else h
        value = h[:, :, 0].t()
        t = offset[:, :-1].square().sum(2) / self.reach.square()
        weight = torch.exp(-self.config.sharpness * t) * (1 - t).clamp_min(0).square()
        left = (1 - weight.sum(1, keepdim=True) / self.config.background_limit).clamp_min(0)
        weight = torch.cat([weight, self.config.background_weight * left.square()], 1)
        return (weight * value).sum(1) / weight.sum(1)

    def sdf_and_gradient(
        self, prepared: PlainPrepared, points: Tensor, subject_index: Tensor, create_graph: bool = False
    ) -> tuple[Tensor, Tensor]:
        points = points.detach().requires_grad_(True)
        value = self.sdf(prepared, points, subject_index)
        (gradient,) = torch.autograd.grad(value.sum(), points, create_graph=create_graph)
        return value, gradient

    def own_losses(self, prepared: PlainPrepared, near: Tensor) -> dict[str, Tensor]:
        """None."""
        return {}


class PlainDeformation(nn.Module):
    """The expression network as the paper has it: the codes repeated for every point, autograd."""

    def __init__(self, field: DeformationField) -> None:
        super().__init__()
        self.config = field.config
        self.activation = torch.nn.SiLU() if field.config.activation == "silu" else torch.nn.Softplus(beta=100)
        direct = iter(field.input_weights)
        weights = []
        for depth in range(len(field.biases)):
            parts = [field.hidden_weights[depth - 1]] if depth > 0 else []
            parts += [next(direct)] if depth in (0, field.config.skip_layer) else []
            weights.append(nn.Parameter(torch.cat(parts).detach().clone()))
        self.weights = nn.ParameterList(weights)
        self.biases = nn.ParameterList([nn.Parameter(bias.detach().clone()) for bias in field.biases])
        self.compress_weight = nn.Parameter(field.compress_weight.detach().clone())
        self.compress_bias = nn.Parameter(field.compress_bias.detach().clone())

    def prepare(self, z_id: Tensor, anchors: Tensor, z_ex: Tensor, noise: Tensor | None = None) -> Tensor:
        compressed = torch.cat([z_id, anchors.flatten(1)], 1) @ self.compress_weight + self.compress_bias
        if noise is not None:
            compressed = compressed + self.config.compression_noise * noise
        return torch.cat([compressed, z_ex], 1)

    def displacement(self, codes: Tensor, points: Tensor, index: Tensor) -> Tensor:
        given = torch.cat([points * self.config.coordinate_gain, codes[index]], 1)
        h = given
        for depth, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            if depth > 0 and depth == self.config.skip_layer:
                h = torch.cat([h, given], 1) / math.sqrt(2)
            h = torch.addmm(bias, h, weight)
            h = self.activation(h) if depth < len(self.weights) - 1 else h
        return h
