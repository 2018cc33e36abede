"""One stage's optimiser: AdamW on networks, lazy Adam on the codes that a batch names, clipping, and a schedule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from model.config import StageConfig
from model.processes import Processes


def rate_share(config: StageConfig, step: int) -> float:
    """What both learning rates are multiplied by at a step, counted from 0."""
    warm = min(1.0, (step + 1) / (config.warmup_steps + 1))
    if config.schedule == "halving":
        return warm * 0.5 ** (step // config.halving_steps)
    done = step / max(config.steps, 1)
    return warm * (config.final_share + (1 - config.final_share) * 0.5 * (1 + math.cos(math.pi * done)))


class StageOptimiser:
    """Moves networks and codes together.

    Args:
        config: rates, schedule and clipping.
        networks: dense parameters.
        codes: parameters with sparse gradients; a line without gradient stays where it is.
        name: tells its moments from those of other optimisers in a checkpoint.
    """

    def __init__(
        self, config: StageConfig, networks: Iterable[nn.Parameter], codes: nn.Parameter, name: str = "stage"
    ) -> None:
        self.config = config
        self.name = name
        self.networks: Sequence[nn.Parameter] = list(networks)
        self.codes = codes
        self._dense = torch.optim.AdamW(
            self.networks, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True
        )
        self._sparse = torch.optim.SparseAdam([codes], lr=config.code_learning_rate)

    def clear(self) -> None:
        """Forget the gradients of the last step."""
        self._dense.zero_grad(set_to_none=True)
        self._sparse.zero_grad(set_to_none=True)

    def descend(self, step: int, processes: Processes) -> float:
        """Take a step, counted from 0, along the gradients that backward has left in all processes.

        Returns:
            The learning rate of the networks that was used.
        """
        processes.mean_gradients(self.networks, self.codes)
        torch.nn.utils.clip_grad_norm_(self.networks, self.config.clip)
        if self.codes.grad is not None:
            grad = self.codes.grad.coalesce()
            values = grad.values()
            values.mul_((self.config.clip / (values.norm() + 1e-6)).clamp_max(1.0))
            self.codes.grad = grad
        share = rate_share(self.config, step)
        self._dense.param_groups[0]["lr"] = self.config.learning_rate * share
        self._sparse.param_groups[0]["lr"] = self.config.code_learning_rate * share
        self._dense.step()
        if self.codes.grad is not None:
            self._sparse.step()
        return self.config.learning_rate * share

    def tensors(self) -> dict[str, Tensor]:
        """The moments of all parameters by name, for a checkpoint."""
        out: dict[str, Tensor] = {}
        for kind, optimiser in (("dense", self._dense), ("sparse", self._sparse)):
            for number, state in optimiser.state_dict()["state"].items():
                for name, value in state.items():
                    out[f"optimiser.{self.name}.{kind}.{number}.{name}"] = torch.as_tensor(value)
        return out

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up the moments of a checkpoint."""
        for kind, optimiser in (("dense", self._dense), ("sparse", self._sparse)):
            whole = optimiser.state_dict()
            state: dict[int, dict[str, Tensor | int]] = {}
            for key, tensor in tensors.items():
                if key.startswith(f"optimiser.{self.name}.{kind}."):
                    _, _, _, number, name = key.split(".")
                    plain = kind == "sparse" and name == "step"
                    state.setdefault(int(number), {})[name] = int(tensor) if plain else tensor
            optimiser.load_state_dict(whole | {"state": state})
