"""Small sine networks at keypoints, blended by a softmax: what each of ImFace's three parts is made of."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn

from model.config import ImFaceConfig


class MiniNetworks(nn.Module):
    """K sine networks, each seeing a point relative to its keypoint, and the network that blends their answers.

    With a code, the networks' weights are the base ones and what a hyper network of one hidden layer adds to them; its
    last layer is linear, so that ``sum_h hidden[h] * table[h]`` are a head's own weights.

    Args:
        config: sizes.
        keypoints: K.
        outputs: of each network.
        code_dim: entries of the code; 0 for networks that are the same for everybody.
        last_gain: what the last layer starts with, over the usual.
        generator: where the initial weights are drawn from.
    """

    def __init__(
        self,
        config: ImFaceConfig,
        keypoints: int,
        outputs: int,
        code_dim: int,
        generator: torch.Generator,
        last_gain: float = 1.0,
    ) -> None:
        super().__init__()
        self.frequency = config.frequency

        def uniform(*shape: int, bound: float) -> nn.Parameter:
            return nn.Parameter((2 * torch.rand(*shape, generator=generator) - 1) * bound)

        weights, biases, tables = [], [], []
        sizes = list(pairwise([3, *[config.width] * config.layers, outputs]))
        for depth, (inputs, width) in enumerate(sizes):
            bound = 1 / inputs if depth == 0 else math.sqrt(6 / inputs) / config.frequency
            bound *= last_gain if depth == len(sizes) - 1 else 1.0
            weights.append(uniform(keypoints, inputs, width, bound=bound))
            biases.append(uniform(keypoints, 1, width, bound=bound))
            if code_dim:
                share = bound * math.sqrt(3 / config.hyper_hidden)
                tables.append(uniform(config.hyper_hidden, keypoints, inputs + 1, width, bound=share))
        self.weights, self.biases, self.tables = map(nn.ParameterList, (weights, biases, tables))
        if code_dim:
            self.code_weight = uniform(code_dim, config.hyper_hidden, bound=math.sqrt(6 / code_dim))
            self.code_bias = uniform(config.hyper_hidden, bound=1 / math.sqrt(code_dim))
        seen = 3 * keypoints
        self.fusion_in = uniform(seen, config.fusion_hidden, bound=math.sqrt(6 / seen))
        self.fusion_bias = uniform(config.fusion_hidden, bound=1 / math.sqrt(seen))
        self.fusion_out = uniform(config.fusion_hidden, keypoints, bound=1 / math.sqrt(config.fusion_hidden))

    def hidden(self, code: Tensor) -> Tensor:
        """The hyper network's hidden layer (B, H) of codes (B, C)."""
        return torch.relu(torch.addmm(self.code_bias, code, self.code_weight))

    def forward(self, points: Tensor, keypoints: Tensor, hidden: Tensor | None) -> Tensor:
        """The blended answers (B, P, outputs).

        Args:
            points: (B, P, 3).
            keypoints: (B, K, 3), or (1, K, 3) for all.
            hidden: (B, H) of each head; None for networks without a code.
        """
        local = points[:, :, None] - keypoints[:, None]
        logits = torch.nn.functional.silu(local.flatten(2) @ self.fusion_in + self.fusion_bias) @ self.fusion_out
        x = local.transpose(1, 2)
        last = len(self.weights) - 1
        for depth in range(last + 1):
            x = self._layer(depth, x, hidden)
            if depth < last:
                x = torch.sin(self.frequency * x)
        return (torch.softmax(logits, 2).transpose(1, 2)[..., None] * x).sum(1)

    def _layer(self, depth: int, x: Tensor, hidden: Tensor | None) -> Tensor:
        """(B, K, P, in) to (B, K, P, out)."""
        weight, bias = self.weights[depth], self.biases[depth]
        if hidden is None:
            return x @ weight + bias
        table = self.tables[depth]
        if len(hidden) > 1 and x.shape[2] == 1:
            return x @ weight + bias + self._one_point_a_head(x[:, :, 0], hidden, table)[:, :, None]
        own = torch.tensordot(hidden, table, 1)
        return x @ (weight + own[:, :, :-1]) + (bias + own[:, :, -1:])

    @staticmethod
    def _one_point_a_head(x: Tensor, hidden: Tensor, table: Tensor) -> Tensor:
        """What the hyper network adds where each head has one point, without a set of weights a head.

        The products of a head's hidden layer with its point's input are one matrix, the table another.
        """
        given = torch.cat([x, x.new_ones(*x.shape[:2], 1)], 2).transpose(0, 1)
        both = (hidden[None, :, :, None] * given[:, :, None]).flatten(2)
        return torch.bmm(both, table.transpose(0, 1).flatten(1, 2)).transpose(0, 1)
