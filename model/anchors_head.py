"""Where a person's anchors lie, predicted from the global code (paper, section 3.1)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn


class AnchorsHead(nn.Module):
    """Offsets from the mean anchors by a small ReLU network.

    Args:
        mean_anchors: (K, 3) model units, head frame.
        global_dim: entries of the global code.
        hidden: outputs of the hidden layers.
    """

    mean: Tensor

    def __init__(self, mean_anchors: Tensor, global_dim: int, hidden: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("mean", mean_anchors.clone())
        sizes = [global_dim, *hidden, mean_anchors.numel()]
        layers: list[nn.Module] = []
        for inputs, outputs in pairwise(sizes):
            layers += [nn.Linear(inputs, outputs), nn.ReLU()]
        self.network = nn.Sequential(*layers[:-1])
        with torch.no_grad():
            last = self.network[-1]
            assert isinstance(last, nn.Linear)
            last.weight.mul_(0.1)
            last.bias.zero_()

    def forward(self, z_global: Tensor) -> Tensor:
        """(B, global_dim) to anchors (B, K, 3), model units, head frame."""
        return self.mean + self.network(z_global).reshape(len(z_global), *self.mean.shape)
