"""What a canonical point has beside its distance: the network behind regions and colours.

One network for all subjects sees the point and codes of the subject. It is trained after the shapes, which it leaves as
they are: the paper's own outlook and MonoNPHM's colours, both kept simple.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from model.activations import activation
from model.config import ColorConfig, RegionConfig
from model.grouped_mlp import evaluate
from model.grouped_sweeps import Group, Layer
from registration.template import REGIONS

_POINTS_AT_ONCE = 1 << 16


class AttributeField(nn.Module):
    """One network from canonical space to some numbers, conditioned on codes.

    Args:
        config: sizes.
        code_dim: entries of all codes together.
        outputs: how many numbers.
        generator: where the initial weights are drawn from.
    """

    def __init__(
        self, config: RegionConfig | ColorConfig, code_dim: int, outputs: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.coordinate_gain = config.coordinate_gain
        self.activation = activation("silu")
        sizes = [3 + code_dim, *config.hidden, outputs]
        weights, biases = [], []
        for depth in range(len(sizes) - 1):
            bound = math.sqrt(6 / (sizes[depth] if depth else 3))
            drawn = torch.rand(sizes[depth], sizes[depth + 1], generator=generator)
            weights.append(nn.Parameter((2 * drawn - 1) * bound))
            biases.append(nn.Parameter(torch.zeros(sizes[depth + 1])))
        self.weights = nn.ParameterList(weights)
        self.biases = nn.ParameterList(biases)

    def prepare(self, codes: Sequence[Tensor]) -> tuple[Layer, ...]:
        """Fold the codes of B subjects, each (B, its entries), into the first layer."""
        first, *rest = self.weights
        layers = [Layer(None, first[None, :3], torch.addmm(self.biases[0], torch.cat(list(codes), 1), first[3:]))]
        layers += [Layer(w[None], None, b[None]) for w, b in zip(rest, list(self.biases)[1:], strict=True)]
        return tuple(layers)

    def forward(self, layers: tuple[Layer, ...], points: Tensor, index: Tensor | None = None) -> Tensor:
        """The numbers (N, outputs).

        Args:
            layers: of B subjects.
            points: (N, 3) canonical, model units, head frame.
            index: (N,) int64 into the B subjects; None means the first for all.
        """
        if index is None:
            index = torch.zeros(len(points), dtype=torch.int64, device=points.device)
        if not torch.is_grad_enabled() and len(points) > _POINTS_AT_ONCE:
            parts = zip(points.split(_POINTS_AT_ONCE), index.split(_POINTS_AT_ONCE), strict=True)
            return torch.cat([self(layers, *part) for part in parts])
        group = [Group(0, 0, len(points))]
        return evaluate(layers, self.activation, group, points * self.coordinate_gain, index)


class RegionField(AttributeField):
    """A score for each of ``REGIONS``, before softmax; sees the global part of the identity code."""

    def __init__(self, config: RegionConfig, global_dim: int, generator: torch.Generator) -> None:
        super().__init__(config, global_dim, len(REGIONS), generator)


class ColorField(AttributeField):
    """An sRGB colour from 0 to 1; sees the global part of the identity code and an appearance code."""

    def __init__(self, config: ColorConfig, global_dim: int, generator: torch.Generator) -> None:
        super().__init__(config, global_dim + config.appearance_dim, 3, generator)

    def forward(self, layers: tuple[Layer, ...], points: Tensor, index: Tensor | None = None) -> Tensor:
        """Colours (N, 3); arguments as ``AttributeField.forward``."""
        return torch.sigmoid(super().forward(layers, points, index))
