"""The expression field: where a canonical point of a person goes in an expression (paper, section 3.2).

Or, in the backward direction, where a posed point comes from (MonoNPHM), with hyper coordinates that let an expression
change the shape itself, as where lips part.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.activations import activation
from model.config import DeformationConfig
from model.grouped_mlp import evaluate, evaluate_with_jacobian
from model.grouped_sweeps import Group, Layer
from model.shape_and_motion import MotionField

_POINTS_AT_ONCE = 1 << 16


@dataclass(frozen=True)
class PreparedDeformation:
    """What the field needs of B scans: its layers, identity and expression folded into the tables' B lines."""

    layers: tuple[Layer, ...]


class DeformationField(MotionField):
    """One network between canonical and posed space, conditioned on a compressed identity and an expression code.

    Args:
        config: sizes.
        identity_dim: entries of an identity code.
        anchors: K.
        generator: where the initial weights are drawn from.
    """

    def __init__(self, config: DeformationConfig, identity_dim: int, anchors: int, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.activation = activation(config.activation)

        def uniform(*shape: int, bound: float) -> nn.Parameter:
            return nn.Parameter((2 * torch.rand(*shape, generator=generator) - 1) * bound)

        conditions = identity_dim + 3 * anchors
        self.compress_weight = uniform(conditions, config.compressed_dim, bound=1 / math.sqrt(conditions))
        self.compress_bias = uniform(config.compressed_dim, bound=1 / math.sqrt(conditions))
        inputs = 3 + config.compressed_dim + config.expression_dim
        widths = [*config.hidden, 3 + config.hyper_dim]
        hidden, direct, bias = [], [], []
        for depth, width in enumerate(widths):
            below = widths[depth - 1] if depth > 0 else 0
            sees_input = depth == 0 or depth == config.skip_layer
            fan_in = below + (3 if sees_input else 0)
            last = depth == len(config.hidden)
            bound = 0.1 / math.sqrt(fan_in) if last else math.sqrt(6.0 / fan_in)
            if depth > 0:
                hidden.append(uniform(below, width, bound=bound))
            if sees_input:
                direct.append(uniform(inputs, width, bound=bound))
            bias.append(uniform(width, bound=0.0 if last else 1 / math.sqrt(fan_in)))
        self.hidden_weights = nn.ParameterList(hidden)
        self.input_weights = nn.ParameterList(direct)
        self.biases = nn.ParameterList(bias)

    def prepare(self, z_id: Tensor, anchors: Tensor, z_ex: Tensor, noise: Tensor | None = None) -> PreparedDeformation:
        """Compress the identities and fold the codes into the layers that see the input.

        Args:
            z_id: (B, D) identity code of each scan's subject.
            anchors: (B, K, 3) its anchors, model units.
            z_ex: (B, expression_dim).
            noise: (B, compressed_dim) of unit spread: the training's noise on the compressed codes.
        """
        compressed = torch.cat([z_id, anchors.flatten(1)], 1) @ self.compress_weight + self.compress_bias
        if noise is not None:
            compressed = compressed + self.config.compression_noise * noise
        code = torch.cat([compressed, z_ex], 1)
        layers: list[Layer] = []
        direct = iter(self.input_weights)
        for depth, bias in enumerate(self.biases):
            below = self.hidden_weights[depth - 1][None] if depth > 0 else None
            if depth not in (0, self.config.skip_layer):
                layers.append(Layer(below, None, bias[None]))
                continue
            weights = next(direct)
            share = math.sqrt(0.5) if depth > 0 else 1.0
            table = torch.addmm(bias, code, weights[3:], alpha=share)
            layers.append(Layer(None if below is None else below * share, (weights[:3] * share)[None], table))
        return PreparedDeformation(tuple(layers))

    def displacement(self, prepared: PreparedDeformation, points: Tensor, index: Tensor | None = None) -> Tensor:
        """Displacement of points of the space that the deformation starts in.

        Args:
            prepared: of B scans.
            points: (N, 3) canonical points, or posed ones where the direction is backward; model units, head frame.
            index: (N,) int64 into the B scans; None means the first for all.

        Returns:
            (N, 3) model units, to the other space; differentiable (once) with respect to points, codes and weights.
        """
        return self._answer(prepared, points, index)[:, :3]

    def canonical(self, prepared: PreparedDeformation, posed: Tensor, index: Tensor | None = None) -> Tensor:
        """Backward: where posed points come from, and their hyper coordinates.

        Arguments as ``displacement``.

        Returns:
            (N, 3 + hyper_dim) model units, as the identity field takes them; differentiable (once).
        """
        answer = self._answer(prepared, posed, index)
        return torch.cat([posed + answer[:, :3], answer[:, 3:]], 1)

    def _answer(self, prepared: PreparedDeformation, points: Tensor, index: Tensor | None) -> Tensor:
        if not torch.is_grad_enabled() and len(points) > _POINTS_AT_ONCE:
            parts = [slice(start, start + _POINTS_AT_ONCE) for start in range(0, len(points), _POINTS_AT_ONCE)]
            return torch.cat([self._answer(prepared, points[p], None if index is None else index[p]) for p in parts])
        groups, x, line = self._rows(points, index)
        return evaluate(prepared.layers, self.activation, groups, x, line, self.half_products)

    def displacement_and_jacobian(
        self, prepared: PreparedDeformation, points: Tensor, index: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Displacement (N, 3) and its Jacobian (N, 3, 3) with respect to the points, as constants.

        Arguments as ``displacement``; ``jacobian[n, i, j]`` is the derivative of entry i along axis j.
        """
        groups, x, line = self._rows(points, index)
        value, jacobian = evaluate_with_jacobian(prepared.layers, self.activation, groups, x, line)
        return value[:, :3], jacobian[:, :3] * self.config.coordinate_gain

    def _rows(self, points: Tensor, index: Tensor | None) -> tuple[list[Group], Tensor, Tensor]:
        if index is None:
            index = torch.zeros(len(points), dtype=torch.int64, device=points.device)
        return [Group(0, 0, len(points))], points * self.config.coordinate_gain, index
