"""A mesh of a head that a model knows, of its mean, or of one drawn from the spread of its codes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model import HeadModel
from registration.mesh import Mesh
from storage.errors import ConfigError, one_line

_SPREAD = 0.85
"""Share of the training codes' standard deviation that random codes are drawn with (paper's released sampling)."""


def find_model(model: str, workspace: str) -> Path:
    """The folder of a model named by its folder, or by its name in a local workspace.

    Raises:
        ConfigError: neither is there.
    """
    named = Path(workspace) / "models" / model
    for folder in (Path(model), named):
        if (folder / "model.safetensors").is_file():
            return folder
    why = f"neither {model} nor {named} holds a model.safetensors"
    raise ConfigError(one_line("is no model", model, why, "name a model's folder, or a model of the workspace with -w"))


def draw_mesh(model: Path, identity: str, expression: str, resolution: int, seed: int) -> Mesh:
    """Mesh one head of a model.

    Args:
        model: its folder.
        identity: subject id, ``mean`` or ``random``.
        expression: SUBJECT/EXPRESSION, ``canonical`` or ``random``.
        resolution: cells along the longest edge of the box.
        seed: of what is drawn; identity and expression draw from streams of their own.

    Returns:
        Head frame, mm.

    Raises:
        ConfigError: the model knows no such subject or scan.
    """
    head = HeadModel.load(model)
    who: str | NDArray[np.float32] = identity
    if identity == "mean":
        who = head.identity_mean
    elif identity == "random":
        who = _draw(head.identity_mean, head.identity_std, [seed, 0])
    face: str | NDArray[np.float32] = expression
    if expression == "random":
        face = _draw(head.expression_mean, head.expression_std, [seed, 1])
    return head.mesh(who, face, resolution=resolution)


def _draw(mean: NDArray[np.float32], std: NDArray[np.float32], seed: list[int]) -> NDArray[np.float32]:
    drawn = np.random.default_rng(seed).standard_normal(len(mean))
    return (mean + _SPREAD * std * drawn).astype(np.float32)
