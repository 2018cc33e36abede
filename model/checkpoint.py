"""Tensors and plain values in one safetensors file; nothing is ever unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from storage.errors import ConfigError, one_line

_VALUES = "values"


def encode(tensors: Mapping[str, Tensor], values: Mapping[str, Any] | None = None) -> bytes:
    """Encode tensors with plain values (anything JSON takes). Same contents, same bytes."""
    plain = {name: tensor.detach().to("cpu").contiguous() for name, tensor in sorted(tensors.items())}
    return bytes(safetensors.torch.save(plain, {_VALUES: json.dumps(values or {}, sort_keys=True)}))


def decode(data: bytes, where: str = "checkpoint") -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Decode what ``encode`` wrote.

    Raises:
        ConfigError: the bytes are damaged or of something else.
    """
    try:
        tensors = safetensors.torch.load(data)
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        values = json.loads(header["__metadata__"][_VALUES])
    except (safetensors.SafetensorError, ValueError, KeyError) as error:
        why = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(one_line("is no checkpoint", where, why, "train again")) from error
    return tensors, values


def module_tensors(module: nn.Module, prefix: str) -> dict[str, Tensor]:
    """A module's weights and buffers by ``prefix.name``."""
    return {f"{prefix}.{name}": tensor for name, tensor in module.state_dict().items()}


def load_module(
    module: nn.Module, prefix: str, tensors: Mapping[str, Tensor], where: str = "checkpoint", *, assign: bool = False
) -> None:
    """Put ``prefix.name`` tensors into a module.

    Args:
        module: whose weights and buffers are overwritten.
        prefix: what their names begin with.
        tensors: by name; others are left alone.
        where: for messages.
        assign: copies become the module's own tensors; it may have been built on the device "meta", without memory.

    Raises:
        ConfigError: a tensor is missing or of another size.
    """
    lead = f"{prefix}."
    state = {name.removeprefix(lead): tensor for name, tensor in tensors.items() if name.startswith(lead)}
    try:
        if assign:
            own = module.state_dict()
            # copies lie as torch lays its tensors, and are of the kinds that the module is of
            state = {name: tensor.to(own.get(name, tensor).dtype, copy=True) for name, tensor in state.items()}
        module.load_state_dict(state, assign=assign)
    except RuntimeError as error:
        why = " ".join(str(error).split())[:200]
        raise ConfigError(one_line("weights are of another architecture", where, why, "train again")) from error


def generator_tensor(generator: torch.Generator) -> Tensor:
    """A generator's state as a tensor."""
    return generator.get_state()
