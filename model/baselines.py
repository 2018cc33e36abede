"""The neural heads that the head model is compared with, each as a way to train it and a way to fit it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from model.baseline_config import LONGER, BaselineName, ImFaceTraining, NpmTraining
from model.config import StageConfig, TrainingConfig
from model.fit_config import FitConfig
from model.head_fitter import NphmFitter
from model.head_model import HeadModel
from model.imface import ImFaceFitter, imface_box_mm, imface_data, imface_field, imface_losses
from model.imface_fields import KEYPOINTS
from model.npm import NpmFitter, npm_data, npm_field, npm_losses, npm_start
from model.trained_model import WarmStart
from model.training_data import TrainingData


class Baseline(ABC):
    """How a baseline differs from the head model; batches, loop, files and fit are the same."""

    landmarks: tuple[int, ...] = ()
    """Which of the 68 serve as its anchors."""

    @abstractmethod
    def training(self, ours: TrainingConfig) -> TrainingConfig:
        """Networks, losses and steps, all else being as in the head model's training."""

    @abstractmethod
    def data(self, data: TrainingData) -> TrainingData:
        """What it learns from, of what the head model learns from; the anchors are its landmarks."""

    def start(self, config: TrainingConfig, data: TrainingData, seed: int) -> WarmStart | None:
        """Weights to start from, where they are not drawn as usual."""
        return None

    def trimmed(self, head: HeadModel) -> HeadModel:
        """The trained model, its box no larger than what was learnt."""
        return head

    @abstractmethod
    def fitter(self, head: HeadModel, config: FitConfig, resolution: int) -> NphmFitter:
        """What fits it; satisfies ``model.observation.HeadFitter``."""


@dataclass(frozen=True)
class _Npm(Baseline):
    name: str
    settings: NpmTraining
    longer: int

    def training(self, ours: TrainingConfig) -> TrainingConfig:
        s = self.settings
        field = npm_field(
            code=s.code, expression_dim=s.expression_dim, width=s.width, layers=s.layers, skip_layer=s.skip_layer
        )
        stages = {"stage1": _longer(s.stage1, self.longer), "stage2": _longer(s.stage2, self.longer)}
        return npm_losses(ours.model_copy(update={"field": field, "joint": False, **stages}))

    def data(self, data: TrainingData) -> TrainingData:
        return npm_data(data)

    def start(self, config: TrainingConfig, data: TrainingData, seed: int) -> WarmStart:
        return npm_start(config, data, seed)

    def fitter(self, head: HeadModel, config: FitConfig, resolution: int) -> NphmFitter:
        return NpmFitter(head, config, resolution, self.name)


@dataclass(frozen=True)
class _ImFace(Baseline):
    settings: ImFaceTraining
    landmarks: tuple[int, ...] = KEYPOINTS

    def training(self, ours: TrainingConfig) -> TrainingConfig:
        stages = {"stage1": self.settings.stage1, "stage2": self.settings.stage2}
        update = {"field": imface_field(self.settings.sizes), "joint": False, **stages}
        return imface_losses(ours.model_copy(update=update))

    def data(self, data: TrainingData) -> TrainingData:
        return imface_data(data, self.settings.sizes)

    def trimmed(self, head: HeadModel) -> HeadModel:
        return imface_box_mm(head)

    def fitter(self, head: HeadModel, config: FitConfig, resolution: int) -> NphmFitter:
        return ImFaceFitter(head, config, resolution)


def baseline(name: BaselineName, npm: NpmTraining, imface: ImFaceTraining) -> Baseline:
    """A baseline by its name and the settings of both kinds."""
    if name == "imface":
        return _ImFace(imface)
    return _Npm(name, npm, LONGER if name == "npm_4x" else 1)


def _longer(stage: StageConfig, times: int) -> StageConfig:
    return stage.model_copy(update={"steps": stage.steps * times})
