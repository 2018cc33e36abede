"""The moving average of all weights and codes over the steps, which generalises better than the last ones."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

_NAME = "average."


class WeightAverage:
    """An exponential average of parameters, young at first: after t steps it looks back over about t / 9 of them.

    Args:
        parameters: what is averaged.
        decay: share of the old average that stays at a step, once there have been many; 0 keeps the last weights.
    """

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        self._parameters = list(parameters)
        self._decay = decay
        self._mean = [parameter.detach().clone() for parameter in self._parameters] if decay else []

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after a step, counted from 0."""
        if self._decay:
            fresh = 1 - min(self._decay, (1 + step) / (10 + step))
            torch._foreach_lerp_(self._mean, [p.detach() for p in self._parameters], fresh)

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Let the parameters hold the average for a while."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def settle(self) -> None:
        """Let the parameters hold the average for good."""
        for parameter, mean in zip(self._parameters, self._mean, strict=False):
            parameter.data.copy_(mean)

    def tensors(self) -> dict[str, Tensor]:
        """The averages by name, for a checkpoint."""
        return {f"{_NAME}{place:03d}": mean for place, mean in enumerate(self._mean)}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up the averages of a checkpoint."""
        for place, mean in enumerate(self._mean):
            mean.copy_(tensors[f"{_NAME}{place:03d}"])

    def _swap(self) -> None:
        for place, mean in enumerate(self._mean):
            parameter = self._parameters[place]
            self._mean[place], parameter.data = parameter.data, mean
