"""The baselines as a plan sees them: version, settings, verdict. Free of torch, since every command reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field, model_validator

from model.baseline_config import LONGER, BaselineName, ImFaceTraining, NpmTraining
from storage.frozen import Frozen

STEP_VERSION = 1

_SECONDS_PER_WEIGHT = 6e-7
"""What a training step costs on 2 cores for each weight that a point meets, with batches of the default size."""


class BaselinesConfig(Frozen):
    """Which neural heads are trained to compare the model with; batches and all else are those of ``train``."""

    methods: tuple[BaselineName, ...] = Field(
        default=(), description="which are trained; npm_4x is npm with four times the steps"
    )
    npm: NpmTraining = NpmTraining()
    imface: ImFaceTraining = ImFaceTraining()

    @model_validator(mode="after")
    def _each_once(self) -> BaselinesConfig:
        if len(set(self.methods)) < len(self.methods):
            raise ValueError(f"methods names one twice: {', '.join(self.methods)}")
        return self


def are_wanted(config: BaselinesConfig) -> bool:
    """Whether any is to be trained."""
    return bool(config.methods)


def judge_baselines(figures: Mapping[str, Any], thresholds: None) -> list[str]:
    """Nothing speaks against a baseline: how good it is is what the evaluation asks."""
    return []


def expected_minutes(config: BaselinesConfig) -> float:
    """Rough time of the trainings on 2 cores."""
    npm, imface = config.npm, config.imface
    sizes = imface.sizes
    of_npm = (npm.stage1.steps + npm.stage2.steps) * npm.layers * npm.width**2
    # ten mini networks, within the ball half of the points, and sines that cost more than the products
    of_imface = (imface.stage1.steps + imface.stage2.steps) * 20 * sizes.layers * sizes.width**2
    met = {"npm": of_npm, "npm_4x": LONGER * of_npm, "imface": of_imface}
    return sum(met[name] for name in config.methods) * _SECONDS_PER_WEIGHT / 60
