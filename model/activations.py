"""Smooth activations with the first and second derivatives that the hand-written gradients need.

Each keeps of its forward pass what its derivatives are cheapest to find from: softplus its value, SiLU its argument.
Results go into buffers that are given, since fresh memory costs as much as the arithmetic.
"""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from model.config import ActivationName


class Activation(Protocol):
    """An elementwise function with two derivatives; all tensors are of one shape, and buffers come last."""

    keeps_value: bool
    """Whether what is kept is the value; else it is the argument."""

    def value(self, z: Tensor, out: Tensor) -> Tensor:
        """The function; ``out`` may be ``z``."""

    def derivatives(self, kept: Tensor, value: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        """The function and its first derivative, from what was kept."""

    def second_derivatives(
        self, kept: Tensor, value: Tensor, slope: Tensor, bend: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The function and its first two derivatives, from what was kept."""


class Silu:
    """z times the logistic function of z."""

    keeps_value = False

    def value(self, z: Tensor, out: Tensor) -> Tensor:
        return torch.ops.aten.silu.out(z, out=out)

    def derivatives(self, kept: Tensor, value: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        s = torch.sigmoid(kept, out=slope)
        torch.mul(kept, s, out=value)
        return value, slope.addcmul_(value, s, value=-1).add_(value)  # s + a - a s

    def second_derivatives(
        self, kept: Tensor, value: Tensor, slope: Tensor, bend: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        s = torch.sigmoid(kept)
        torch.mul(kept, s, out=value)
        torch.addcmul(s, value, s, value=-1, out=slope).add_(value)
        torch.addcmul(slope, s, value, value=-1, out=bend).add_(s)
        return value, slope, bend.addcmul_(bend, s, value=-1)  # (1 - s) (slope + s - s a)


class Softplus100:
    """log(1 + exp(100 z)) / 100, the paper's."""

    keeps_value = True

    def value(self, z: Tensor, out: Tensor) -> Tensor:
        return torch.ops.aten.softplus.out(z, 100.0, 20.0, out=out)

    def derivatives(self, kept: Tensor, value: Tensor, slope: Tensor) -> tuple[Tensor, Tensor]:
        # the logistic function of 100 z, from softplus: 1 - exp(-100 a)
        return kept, torch.mul(kept, -100.0, out=slope).exp_().neg_().add_(1.0)

    def second_derivatives(
        self, kept: Tensor, value: Tensor, slope: Tensor, bend: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        self.derivatives(kept, value, slope)
        return kept, slope, torch.addcmul(slope, slope, slope, value=-1, out=bend).mul_(100.0)


def activation(name: ActivationName) -> Activation:
    """The activation of that name."""
    return Silu() if name == "silu" else Softplus100()
