"""NPM as a baseline: one global network for the shape, one for the pose, trained and fitted as the head model is.

It is our own field without anchors: the background network alone then covers all of space, and sees the whole code. So
batches, losses, optimiser, root finding and fit are the same lines of code for both.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import numpy as np
import torch

from model.config import DeformationConfig, FieldConfig, IdentityConfig, TrainingConfig
from model.head_fitter import NphmFitter
from model.identity_field import IdentityField
from model.trained_model import WarmStart, new_model
from model.training_data import TrainingData

_BACKGROUND_DIM = 32
"""Entries of the code that our field calls the background's own; its network sees them beside the global ones."""
_START_RADIUS_UNITS = 0.4


def npm_field(
    *, code: int = 512, expression_dim: int = 200, width: int = 1024, layers: int = 8, skip_layer: int = 4
) -> FieldConfig:
    """The sizes of NPM inside the NPHM code by default: 7.35 M weights for the shape and as many for the pose.

    The layer before the skip is narrower by the input that is given once more, as in DeepSDF, but never less than a
    quarter of the others, which networks narrower than their codes need.
    """

    def hidden(inputs: int) -> tuple[int, ...]:
        before_skip = max(width - inputs, width // 4)
        return tuple(before_skip if depth == skip_layer - 1 else width for depth in range(layers))

    return FieldConfig(
        identity=IdentityConfig(
            global_dim=code - _BACKGROUND_DIM,
            local_dim=_BACKGROUND_DIM,
            hidden=hidden(3 + code),
            skip_layer=skip_layer,
            activation="softplus100",
            anchor_hidden=(),
            background_reach_units=1.0,
            coordinate_gain=1.0,
        ),
        deformation=DeformationConfig(
            expression_dim=expression_dim,
            compressed_dim=code,
            hidden=hidden(3 + code + expression_dim),
            skip_layer=skip_layer,
            activation="softplus100",
            coordinate_gain=1.0,
            compression_noise=0.0,
        ),
    )


def npm_losses(config: TrainingConfig) -> TrainingConfig:
    """The head model's losses without those of anchors and mirrored parts, which a global network has not."""
    identity = config.identity_losses.model_copy(update={"anchors": 0.0, "symm_dist": 0.0, "lat_reg": 0.002})
    deformation = config.deformation_losses.model_copy(update={"reg_zero": 0.0})
    return config.model_copy(update={"identity_losses": identity, "deformation_losses": deformation})


def npm_data(data: TrainingData) -> TrainingData:
    """The same batches for a model without anchors."""
    return replace(data, mean_anchors_mm=np.zeros((0, 3)), anchor_pairs=0)


@torch.no_grad()
def npm_start(config: TrainingConfig, data: TrainingData, seed: int) -> WarmStart:
    """Codes and weights that training starts from: the shape network gives the distance to a sphere, nearly.

    The initialisation is geometric: normal hidden weights of variance 2 over the outputs, no constants, and a last
    layer that averages.

    Args:
        data: without anchors.
    """
    model = new_model(config, data, seed)
    generator = torch.Generator().manual_seed(seed + 2)
    field = model.identity
    assert isinstance(field, IdentityField)
    *inner, last = field.hidden_weights
    for weights in (*field.input_weights, *inner):
        weights.normal_(0.0, math.sqrt(2 / weights.shape[2]), generator=generator)
    for bias in field.biases:
        bias.zero_()
    last.normal_(math.sqrt(math.pi / last.shape[1]), 1e-5, generator=generator)
    field.biases[-1].fill_(-_START_RADIUS_UNITS)
    return WarmStart(model.tensors(), model.identity_codes.codes.clone(), model.expression_codes.codes.clone())


@dataclass(frozen=True)
class NpmFitter(NphmFitter):
    """Fits NPM with the head model's own method; satisfies ``model.observation.HeadFitter``.

    Attributes:
        called: what tables call it: there may be several trainings of it.
    """

    called: str = "npm"

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.called
