"""Sizes and steps of the neural heads that the head model is compared with. Free of torch: every command reads it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from model.config import ImFaceConfig, StageConfig
from storage.frozen import Frozen

BaselineName = Literal["npm", "npm_4x", "imface"]
LONGER = 4
"""How many times as many steps as ``npm`` ``npm_4x`` takes, so that an advantage is not speed alone."""


class NpmTraining(Frozen):
    """NPM's sizes and steps; all else is as in the head model's own training."""

    code: int = Field(default=512, ge=1, description="entries of the identity code")
    expression_dim: int = Field(default=200, ge=1, description="entries of the expression code")
    width: int = Field(default=1024, ge=4, description="outputs of a hidden layer")
    layers: int = Field(default=8, ge=2, description="hidden layers of each network")
    skip_layer: int = Field(default=4, ge=1, description="hidden layer that is given the network's input once more")
    stage1: StageConfig = Field(
        default=StageConfig(steps=20000, learning_rate=5e-4, code_learning_rate=1e-3, code_init=0.1, weight_decay=0.02),
        description="the shape",
    )
    stage2: StageConfig = Field(
        default=StageConfig(steps=12000, learning_rate=1e-4, code_learning_rate=5e-4, code_init=0.1, weight_decay=1e-5),
        description="the pose",
    )


class ImFaceTraining(Frozen):
    """ImFace's sizes and steps; all else is as in the head model's own training."""

    sizes: ImFaceConfig = ImFaceConfig()
    stage1: StageConfig = Field(
        default=StageConfig(steps=20000, learning_rate=5e-4, code_learning_rate=1e-3, code_init=0.1),
        description="identity part and template",
    )
    stage2: StageConfig = Field(
        default=StageConfig(steps=12000, learning_rate=5e-4, code_learning_rate=1e-3, code_init=0.1),
        description="expression part",
    )
