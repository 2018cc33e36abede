"""Smooth activations with the first and second derivatives that the hand-written gradients need.

Each keeps of its forward pass what its derivatives are cheapest to find from: softplus its value, SiLU its argument.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from model.config import ActivationName


class Activation(Protocol):
    """An elementwise function with two derivatives; each takes and gives tensors of one shape."""

    def value(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The function, and what is to be kept of it. ``z`` may be overwritten."""

    def derivatives(self, kept: Tensor, value: bool = True) -> tuple[Tensor | None, Tensor]:
        """The function, where asked for, and its first derivative, from what was kept."""

    def second_derivatives(self, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The function and its first two derivatives, from what was kept."""


class Silu:
    """z times the logistic function of z."""

    def value(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return torch.nn.functional.silu(z), z

    def derivatives(self, kept: Tensor, value: bool = True) -> tuple[Tensor | None, Tensor]:
        s = torch.sigmoid(kept)
        a = kept * s
        slope = torch.addcmul(s, a, 1 - s)
        return (a if value else None), slope

    def second_derivatives(self, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s = torch.sigmoid(kept)
        rest = 1 - s
        a = kept * s
        slope = torch.addcmul(s, a, rest)
        # rest (slope + s - s a), with the buffers that are free by now
        bend = torch.addcmul(slope, s, a, value=-1).add_(s).mul_(rest)
        return a, slope, bend


class Softplus100:
    """log(1 + exp(100 z)) / 100, the paper's."""

    def value(self, z: Tensor) -> tuple[Tensor, Tensor]:
        a = torch.nn.functional.softplus(z, beta=100.0)
        return a, a

    def derivatives(self, kept: Tensor, value: bool = True) -> tuple[Tensor | None, Tensor]:
        return (kept if value else None), _slope(kept)

    def second_derivatives(self, kept: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        slope = _slope(kept)
        return kept, slope, torch.addcmul(slope, slope, slope, value=-1).mul_(100.0)


def _slope(value: Tensor) -> Tensor:
    """The logistic function of 100 z, from softplus: 1 - exp(-100 a)."""
    return torch.mul(value, -100.0).exp_().neg_().add_(1.0)


def activation(name: ActivationName) -> Activation:
    """The activation of that name."""
    return Silu() if name == "silu" else Softplus100()
