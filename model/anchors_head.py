"""Where a person's anchors lie, predicted from the global code (paper, section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

_FIRST_OFFSETS = 0.1
"""Share of the usual spread with which the last layer starts, so that anchors start near their means."""


class AnchorsHead(nn.Module):
    """Offsets from the mean anchors by a small ReLU network.

    Args:
        mean_anchors: (K, 3) model units, head frame.
        global_dim: entries of the global code.
        hidden: outputs of the hidden layers.
        generator: where the initial weights are drawn from.
    """

    mean: Tensor

    def __init__(
        self, mean_anchors: Tensor, global_dim: int, hidden: Sequence[int], generator: torch.Generator
    ) -> None:
        super().__init__()
        self.register_buffer("mean", mean_anchors.clone())
        sizes = list(pairwise([global_dim, *hidden, mean_anchors.numel()]))
        weights, biases = [], []
        for depth, (inputs, outputs) in enumerate(sizes):
            last = depth == len(sizes) - 1
            bound = _FIRST_OFFSETS / math.sqrt(inputs) if last else math.sqrt(6 / inputs)
            weights.append(nn.Parameter((2 * torch.rand(inputs, outputs, generator=generator) - 1) * bound))
            biases.append(nn.Parameter(torch.zeros(outputs)))
        self.weights = nn.ParameterList(weights)
        self.biases = nn.ParameterList(biases)

    def forward(self, z_global: Tensor) -> Tensor:
        """(B, global_dim) to anchors (B, K, 3), model units, head frame."""
        h = z_global
        for depth, (weight, bias) in enumerate(zip(self.weights, self.biases, strict=True)):
            h = torch.addmm(bias, torch.relu(h) if depth > 0 else h, weight)
        return self.mean + h.reshape(len(h), *self.mean.shape)
