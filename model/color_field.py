"""Which colour a canonical point has: one network, with a code of its own beside the shape's (MonoNPHM).

Kept simple: the network sees the point, the global part of the identity code as what it knows of the shape, and the
subject's appearance code. It is trained after the shapes, on the coloured points that the samples carry.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from model.activations import activation
from model.config import ColorConfig
from model.grouped_mlp import evaluate
from model.grouped_sweeps import Group, Layer

_POINTS_AT_ONCE = 1 << 16


class ColorField(nn.Module):
    """One network from canonical space to a colour.

    Args:
        config: sizes.
        global_dim: entries of the global part of an identity code.
        generator: where the initial weights are drawn from.
    """

    def __init__(self, config: ColorConfig, global_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.activation = activation("silu")
        sizes = [3 + global_dim + config.appearance_dim, *config.hidden, 3]
        weights, biases = [], []
        for depth in range(len(sizes) - 1):
            bound = math.sqrt(6 / (sizes[depth] if depth else 3))
            drawn = torch.rand(sizes[depth], sizes[depth + 1], generator=generator)
            weights.append(nn.Parameter((2 * drawn - 1) * bound))
            biases.append(nn.Parameter(torch.zeros(sizes[depth + 1])))
        self.weights = nn.ParameterList(weights)
        self.biases = nn.ParameterList(biases)

    def prepare(self, z_global: Tensor, z_color: Tensor) -> tuple[Layer, ...]:
        """Fold the codes (B, global_dim) and (B, appearance_dim) into the first layer."""
        first, *rest = self.weights
        codes = torch.cat([z_global, z_color], 1)
        layers = [Layer(None, first[None, :3], torch.addmm(self.biases[0], codes, first[3:]))]
        layers += [Layer(w[None], None, b[None]) for w, b in zip(rest, list(self.biases)[1:], strict=True)]
        return tuple(layers)

    def colors(self, layers: tuple[Layer, ...], points: Tensor, index: Tensor | None = None) -> Tensor:
        """Colours (N, 3), sRGB from 0 to 1.

        Args:
            layers: of B subjects.
            points: (N, 3) canonical, model units, head frame.
            index: (N,) int64 into the B subjects; None means the first for all.
        """
        if index is None:
            index = torch.zeros(len(points), dtype=torch.int64, device=points.device)
        if not torch.is_grad_enabled() and len(points) > _POINTS_AT_ONCE:
            parts = zip(points.split(_POINTS_AT_ONCE), index.split(_POINTS_AT_ONCE), strict=True)
            return torch.cat([self.colors(layers, *part) for part in parts])
        group = [Group(0, 0, len(points))]
        return torch.sigmoid(evaluate(layers, self.activation, group, points * self.config.coordinate_gain, index))
