"""Fields and codes while they are trained: at their start, on the way, at the end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.attribute_field import ColorField, RegionField
from model.checkpoint import load_module, module_tensors
from model.codes import CodeBook
from model.config import TrainingConfig
from model.networks import HeadNetworks
from model.shape_and_motion import MotionField, ShapeField
from model.training_data import TrainingData
from model.units import to_units


@dataclass(frozen=True)
class WarmStart:
    """What an earlier model gives a new one to go on from.

    Attributes:
        weights: both fields' tensors by name, as a model folder holds them.
        identity_codes: (subjects, D): those of known subjects, the mean of all for new ones.
        expression_codes: (scans, E): likewise.
        appearance_codes: (subjects, A): likewise; None without a colour field.
    """

    weights: Mapping[str, Tensor]
    identity_codes: Tensor
    expression_codes: Tensor
    appearance_codes: Tensor | None = None


@dataclass
class TrainedModel:
    """Fields, codes and training curve as they stand.

    Attributes:
        identity, deformation: the fields.
        identity_codes: (subjects, D).
        expression_codes: (scans, E).
        curve: lines with stage, step, rate, loss and each unweighted term.
        regions: the region field; None where the config has none.
        color, appearance_codes: the colour field and its codes (subjects, A); likewise.
    """

    identity: ShapeField
    deformation: MotionField
    identity_codes: CodeBook
    expression_codes: CodeBook
    curve: list[dict[str, Any]]
    regions: RegionField | None = None
    color: ColorField | None = None
    appearance_codes: CodeBook | None = None

    def tensors(self) -> dict[str, Tensor]:
        """All weights, buffers and codes by name."""
        return {name: tensor for prefix, part in self._parts() for name, tensor in module_tensors(part, prefix).items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what ``tensors`` gave."""
        for prefix, part in self._parts():
            load_module(part, prefix, tensors)

    @torch.no_grad()
    def warm(self, start: WarmStart) -> None:
        """Take up an earlier model's weights and codes.

        Raises:
            ConfigError: the earlier model has another architecture or other anchors.
        """
        for prefix, part in self._parts():
            if prefix.endswith("_codes"):
                continue
            load_module(part, prefix, start.weights, "the model to go on from")
        self.identity_codes.codes.copy_(start.identity_codes)
        self.expression_codes.codes[: len(start.expression_codes)].copy_(start.expression_codes)
        if self.appearance_codes is not None and start.appearance_codes is not None:
            self.appearance_codes.codes.copy_(start.appearance_codes)

    def colors(self, subject: Tensor, points: Tensor, index: Tensor) -> Tensor:
        """Colours (N, 3) from 0 to 1 of canonical points (N, 3), model units; ``index`` (N,) into ``subject`` (B,)."""
        assert self.color is not None
        assert self.appearance_codes is not None
        z_global, _ = self.identity.layout.split(self.identity_codes(subject))
        return self.color(self.color.prepare([z_global, self.appearance_codes(subject)]), points, index)

    def to(self, device: str) -> None:
        """Move everything to a device."""
        for _, part in self._parts():
            part.to(device)

    def _parts(self) -> tuple[tuple[str, torch.nn.Module], ...]:
        parts = {
            "identity": self.identity,
            "deformation": self.deformation,
            "identity_codes": self.identity_codes,
            "expression_codes": self.expression_codes,
            "regions": self.regions,
            "color": self.color,
            "appearance_codes": self.appearance_codes,
        }
        return tuple((name, part) for name, part in parts.items() if part is not None)


def new_model(config: TrainingConfig, data: TrainingData, seed: int) -> TrainedModel:
    """Fields and codes at their start, drawn from a seed."""
    generator = torch.Generator().manual_seed(seed)
    anchors = torch.as_tensor(to_units(np.asarray(data.mean_anchors_mm, np.float32)))
    networks = HeadNetworks.build(config.field, anchors, data.anchor_pairs, generator)
    size = networks.identity.layout.size
    identity_codes = CodeBook(data.subjects, size, config.stage1.code_init, generator)
    expression_dim = config.field.deformation.expression_dim
    expression_codes = CodeBook(max(data.scans, 1), expression_dim, config.stage2.code_init, generator)
    appearance_codes = None
    if config.field.color is not None:
        appearance_dim = config.field.color.appearance_dim
        appearance_codes = CodeBook(data.subjects, appearance_dim, config.stage4.code_init, generator)
    return TrainedModel(
        networks.identity,
        networks.deformation,
        identity_codes,
        expression_codes,
        [],
        networks.regions,
        networks.color,
        appearance_codes,
    )
