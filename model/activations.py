"""Smooth activations with the first and second derivatives that the hand-written gradients need."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from model.config import ActivationName


class Activation(Protocol):
    """An elementwise function with two derivatives; each takes and gives tensors of one shape."""

    def value(self, z: Tensor) -> Tensor:
        """The function."""

    def value_and_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        """The function and its first derivative."""

    def value_slope_curvature(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The function and its first two derivatives."""


class Silu:
    """z times the logistic function of z."""

    def value(self, z: Tensor) -> Tensor:
        return torch.nn.functional.silu(z)

    def value_and_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        s = torch.sigmoid(z)
        a = z * s
        return a, torch.addcmul(s, a, 1 - s)

    def value_slope_curvature(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        s = torch.sigmoid(z)
        rest = 1 - s
        a = z * s
        slope = torch.addcmul(s, a, rest)
        return a, slope, rest * (slope + s - s * a)


class Softplus100:
    """log(1 + exp(100 z)) / 100, the paper's."""

    def value(self, z: Tensor) -> Tensor:
        return torch.nn.functional.softplus(z, beta=100.0)

    def value_and_slope(self, z: Tensor) -> tuple[Tensor, Tensor]:
        return self.value(z), torch.sigmoid(100.0 * z)

    def value_slope_curvature(self, z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        slope = torch.sigmoid(100.0 * z)
        return self.value(z), slope, 100.0 * slope * (1 - slope)


def activation(name: ActivationName) -> Activation:
    """The activation of that name."""
    return Silu() if name == "silu" else Softplus100()
