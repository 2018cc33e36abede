"""Training for so many minutes of the processor, so that designs can be held against each other on a shared machine."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from benchmarks.field_data import TrainingSet
from model.averaging import WeightAverage
from model.batch_tensors import BatchTensors
from model.config import TrainingConfig
from model.losses import Losses
from model.objective import Objective
from model.optimisation import StageOptimiser
from model.processes import ALONE
from model.threads import fixed_threads
from model.trained_model import TrainedModel

Kind = Literal["stage1", "stage2", "joint"]

_TRIAL_STEPS = 7
_LOOKS = 40


@dataclass(frozen=True)
class Spent:
    """What a training took.

    Attributes:
        steps: of the optimiser.
        minutes: of the processor, over its threads; looks are not counted.
        goal_met: whether it ended since its goal was met.
    """

    steps: int
    minutes: float
    goal_met: bool


def train_for(
    config: TrainingConfig,
    model: TrainedModel,
    data: TrainingSet,
    minutes: float,
    kind: Kind = "stage1",
    goal: Callable[[], bool] | None = None,
) -> Spent:
    """Train one stage for so many minutes, with a schedule made to fit; a few steps tell its length and are undone.

    Args:
        config: settings; the stages' own steps are not looked at.
        model: is trained; stage 2 leaves identities as they are.
        data: batches.
        minutes: of the processor, over ``config.threads``.
        kind: which stage.
        goal: asked now and then of the averaged weights; true ends the training.
    """
    steps = steps_in(config, model, data, minutes, kind)
    with fixed_threads(config.threads):
        run = _Steps(config, model, data, kind, steps)
        spent, step, met = 0.0, 0, False
        look = max(1, run.steps // _LOOKS)
        while step < run.steps and not met:
            spent += run.take(step)
            step += 1
            if goal is not None and (step % look == 0 or step == run.steps):
                with run.average.applied():
                    met = goal()
        run.average.settle()
        return Spent(step, spent / 60 / config.threads, met)


def steps_in(config: TrainingConfig, model: TrainedModel, data: TrainingSet, minutes: float, kind: Kind) -> int:
    """How many steps of a stage so many minutes of the processor hold, by a few that are undone; at least ten.

    Arguments as ``train_for``.
    """
    with fixed_threads(config.threads):
        before = {name: tensor.clone() for name, tensor in model.tensors().items()}
        trial = _Steps(config, model, data, kind, _TRIAL_STEPS)
        each = sorted(trial.take(step) for step in range(_TRIAL_STEPS))[_TRIAL_STEPS // 2]
        model.restore(before)
        return max(10, round(minutes * 60 * config.threads / each))


class _Steps:
    """The steps of one stage, and what each takes."""

    def __init__(self, config: TrainingConfig, model: TrainedModel, data: TrainingSet, kind: Kind, steps: int) -> None:
        self.steps, self._data, self._kind = steps, data, kind
        self._objective = Objective(
            config, model, BatchTensors("cpu", config.guessed_weight), torch.Generator().manual_seed(0), ALONE
        )
        shape = (config.stage1, model.identity.parameters(), model.identity_codes.codes)
        motion = (config.stage2, model.deformation.parameters(), model.expression_codes.codes)
        for part in (model.identity, model.identity_codes):
            part.requires_grad_(kind != "stage2")
        stages = {"stage1": [shape], "stage2": [motion], "joint": [shape, motion]}[kind]
        self._optimisers = [
            StageOptimiser(stage.model_copy(update={"steps": steps}), networks, codes)
            for stage, networks, codes in stages
        ]
        moved = [p for one in self._optimisers for p in (*one.networks, one.codes)]
        self.average = WeightAverage(moved, config.average_decay)

    def take(self, step: int) -> float:
        """Take a step; returns the processor's seconds."""
        start = time.process_time()
        _, loss = self._losses()
        for optimiser in self._optimisers:
            optimiser.clear()
        loss.backward()
        for optimiser in self._optimisers:
            optimiser.descend(step, ALONE)
        self.average.update(step)
        return time.process_time() - start

    def _losses(self) -> tuple[Losses, Tensor]:
        data, objective = self._data.data, self._objective
        if self._kind == "joint":
            return objective.joint(*map(next, data.for_both()))
        if self._kind == "stage2":
            return objective.deformation(*map(next, data.for_motions()))
        return objective.identity(*map(next, data.for_shapes()))
