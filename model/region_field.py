"""Which region of the head a canonical point belongs to: face, hair, ears, neck, lips, eyes or worn things.

The paper's own outlook, kept simple: one small network on the point and the global part of the identity code, trained
after the shapes on the regions that the surface samples carry.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from model.activations import activation
from model.config import RegionConfig
from model.grouped_mlp import evaluate
from model.grouped_sweeps import Group, Layer
from registration.template import REGIONS


class RegionField(nn.Module):
    """One network from canonical space to a score for each region.

    Args:
        config: sizes.
        global_dim: entries of the global part of an identity code.
        generator: where the initial weights are drawn from.
    """

    def __init__(self, config: RegionConfig, global_dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.config = config
        self.activation = activation("silu")
        sizes = [3 + global_dim, *config.hidden, len(REGIONS)]
        weights, biases = [], []
        for depth in range(len(sizes) - 1):
            bound = math.sqrt(6 / (sizes[depth] if depth else 3))
            drawn = torch.rand(sizes[depth], sizes[depth + 1], generator=generator)
            weights.append(nn.Parameter((2 * drawn - 1) * bound))
            biases.append(nn.Parameter(torch.zeros(sizes[depth + 1])))
        self.weights = nn.ParameterList(weights)
        self.biases = nn.ParameterList(biases)

    def prepare(self, z_global: Tensor) -> tuple[Layer, ...]:
        """Fold the global codes (B, global_dim) into the first layer."""
        first, *rest = self.weights
        layers = [Layer(None, first[None, :3], torch.addmm(self.biases[0], z_global, first[3:]))]
        layers += [Layer(w[None], None, b[None]) for w, b in zip(rest, list(self.biases)[1:], strict=True)]
        return tuple(layers)

    def scores(self, layers: tuple[Layer, ...], points: Tensor, index: Tensor | None = None) -> Tensor:
        """Scores (N, regions), in the order of ``REGIONS``, before softmax.

        Args:
            layers: of B subjects.
            points: (N, 3) canonical, model units, head frame.
            index: (N,) int64 into the B subjects; None means the first for all.
        """
        if index is None:
            index = torch.zeros(len(points), dtype=torch.int64, device=points.device)
        group = [Group(0, 0, len(points))]
        return evaluate(layers, self.activation, group, points * self.config.coordinate_gain, index)
