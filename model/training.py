"""Training: identity, then expressions over frozen identities (paper, section 3.3), or both together.

The loop is given batches and a way to save. It knows no workspace and no clock: steps are counted, and every draw comes
from explicit seeds, so that the same batches give the same weights and a resumed run ends in the same bits (on a CPU).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from model.averaging import WeightAverage
from model.batch_tensors import BatchTensors
from model.checkpoint import decode, encode, generator_tensor
from model.config import TrainingConfig
from model.losses import Losses
from model.objective import Objective
from model.optimisation import StageOptimiser
from model.processes import ALONE, Processes
from model.threads import fixed_threads
from model.trained_model import TrainedModel, WarmStart, new_model
from model.training_data import BatchSource, TrainingData
from model.validation import VALIDATION, ValidationFit
from storage.digest import digest_bytes, digest_json
from storage.errors import ConfigError, one_line

_BEST = "best."

Save = Callable[[str, bytes], None]
Progress = Callable[[str, int, int], None]
"""Called with the stage, the steps done and the steps in all, over all stages."""
Record = Callable[[dict[str, Any]], None]
"""Called with a line of the training curve: stage, step, rate and the unweighted losses."""


def train(
    config: TrainingConfig,
    data: TrainingData,
    save: Save,
    resume: bytes | None = None,
    progress: Progress | None = None,
    record: Record | None = None,
    seed: int = 0,
    device: str = "cpu",
    start: WarmStart | None = None,
    processes: Processes = ALONE,
) -> TrainedModel:
    """Train a model.

    Args:
        config: sizes, losses and steps.
        data: batches and counts; every process is given the same.
        save: is given a checkpoint's name, which sorts by progress, and its bytes; in the first process alone.
        resume: a checkpoint to go on from.
        progress, record: told of what happens; after a resume, of what is new.
        seed: of initial weights, codes and noise.
        device: "cpu" or a CUDA device.
        start: an earlier model to go on from, in place of weights drawn from the seed.
        processes: those that train together.

    Returns:
        The model at the end, on the device.

    Raises:
        ConfigError: the checkpoint is of another config or other data, the earlier model does not fit, a loss is no
            longer finite, or the batches can't be dealt out to the processes.
    """
    with fixed_threads(config.threads):
        run = _Run(config, data, seed, device, start, processes)
        nothing: Callable[..., None] = lambda *at: None  # noqa: E731
        if processes.first:
            run.save, run.progress, run.record = save, progress or nothing, record or nothing
        return run.train(resume)


@dataclass(frozen=True)
class _Stage:
    name: str
    number: int
    steps: int
    optimisers: tuple[StageOptimiser, ...]
    batches: tuple[BatchSource, ...]
    losses: Callable[..., tuple[Losses, Tensor]]

    def parameters(self) -> list[nn.Parameter]:
        """Everything that the stage moves."""
        moved = [p for optimiser in self.optimisers for p in (*optimiser.networks, optimiser.codes)]
        return [parameter for parameter in moved if parameter.requires_grad]

    def tensors(self) -> dict[str, Tensor]:
        return {name: tensor for optimiser in self.optimisers for name, tensor in optimiser.tensors().items()}


class _Run:
    save: Save = staticmethod(lambda name, data: None)
    progress: Progress = staticmethod(lambda stage, done, of: None)
    record: Record = staticmethod(lambda line: None)

    def __init__(
        self,
        config: TrainingConfig,
        data: TrainingData,
        seed: int,
        device: str,
        start: WarmStart | None,
        processes: Processes,
    ) -> None:
        self.config, self.data, self.processes = config, data, processes
        self.model = new_model(config, data, seed)
        if start is not None:
            self.model.warm(start)
        self.model.to(device)
        for field in (self.model.identity, self.model.deformation):
            field.half_products = config.precision == "bfloat16" and device != "cpu"
        self.noise = torch.Generator().manual_seed(seed + 1)
        tensors = BatchTensors(device, config.guessed_weight)
        self.objective = Objective(config, self.model, tensors, self.noise, processes)
        self.validation: ValidationFit | None = None
        if data.validation is not None:
            self.validation = ValidationFit(config, data.validation, data.validation_subjects, tensors)
        self.best, self.looks_since_best, self.ended = np.inf, 0, False
        self.best_weights: dict[str, Tensor] = {}
        self.digest = digest_json(
            {
                "config": config.model_dump(mode="json"),
                "seed": seed,
                "subjects": data.subjects,
                "scans": data.scans,
                "validation": data.validation_subjects,
                "batches": sorted(data.sources()),
                "anchors": np.asarray(data.mean_anchors_mm, np.float64).round(4).tolist(),
                "start": None if start is None else digest_bytes(encode(start.weights)),
            }
        )

    def train(self, resume: bytes | None) -> TrainedModel:
        self.stages = stages = self._stages()
        first, step, taken = 1, 0, None
        if resume is not None:
            first, step, taken = self._take_up(resume)
        for stage in stages:
            frozen = [] if stage.number == 1 else [self.model.identity, self.model.identity_codes]
            for part in frozen:
                part.requires_grad_(False)
            if stage.number >= first:
                self._run(stage, step, taken)
                step, taken = 0, None
        for field in (self.model.identity, self.model.deformation):
            field.half_products = False
        return self.model

    def _stages(self) -> list[_Stage]:
        config, model, data = self.config, self.model, self.data
        shape = StageOptimiser(config.stage1, model.identity.parameters(), model.identity_codes.codes, "identity")
        motion = StageOptimiser(
            config.stage2, model.deformation.parameters(), model.expression_codes.codes, "deformation"
        )
        if data.deformation is not None and config.joint:
            both = (shape, motion)
            stages = [_Stage("joint", 1, config.stage1.steps, both, data.for_both(), self.objective.joint)]
        else:
            sources = data.for_shapes()
            stages = [_Stage("stage1", 1, config.stage1.steps, (shape,), sources, self.objective.identity)]
            if data.deformation is not None:
                sources = data.for_motions()
                stages += [_Stage("stage2", 2, config.stage2.steps, (motion,), sources, self.objective.deformation)]
        if model.regions is not None:
            naming = StageOptimiser(config.stage3, model.regions.parameters(), model.identity_codes.codes, "regions")
            stages += [_Stage("stage3", 3, config.stage3.steps, (naming,), (data.identity,), self.objective.regions)]
        if model.color is not None and model.appearance_codes is not None:
            if data.color is None:
                remedy = "set sample.identity.color_points, or leave train.training.field.color out"
                raise ConfigError(one_line("no subject has coloured samples", "colour field", "", remedy))
            painting = StageOptimiser(config.stage4, model.color.parameters(), model.appearance_codes.codes, "color")
            stages += [_Stage("stage4", 4, config.stage4.steps, (painting,), (data.color,), self.objective.colors)]
        return stages

    def _run(self, stage: _Stage, start: int, taken: Mapping[str, Tensor] | None) -> None:
        """Run one stage from a step on, with checkpoints and records on their way."""
        average = WeightAverage(stage.parameters(), self.config.average_decay)
        if taken is not None:
            average.restore(taken)
            for optimiser in stage.optimisers:
                optimiser.restore(taken)
        step = start
        while step < stage.steps and not self.ended:
            losses, loss = stage.losses(*(next(batches) for batches in stage.batches))
            for optimiser in stage.optimisers:
                optimiser.clear()
            loss.backward()
            rate, *_ = [optimiser.descend(step, self.processes) for optimiser in stage.optimisers]
            average.update(step)
            step += 1
            self._tell(stage, step, rate, losses, loss, average)
            if step % self.config.checkpoint_every == 0 or step == stage.steps or self.ended:
                self.save(f"{stage.name}-{step:07d}.safetensors", self._checkpoint(stage, step, average))
        average.settle()
        if self.ended:
            for name, parameter in zip(sorted(self.best_weights), stage.parameters(), strict=True):
                parameter.data.copy_(self.best_weights[name])
        self.ended = False

    def _tell(
        self, stage: _Stage, done: int, rate: float, losses: Losses, loss: Tensor, average: WeightAverage
    ) -> None:
        """Report the step; where it is due, record it and look at those who are not trained on."""
        look = stage.number == 1 and self.validation is not None and done % self.config.validation.every == 0
        if look or done % self.config.record_every == 0 or done == stage.steps:
            names, values = ["loss", *losses], torch.stack([loss.detach(), *(v.detach() for v in losses.values())])
            line = dict(zip(names, self.processes.mean(values).tolist(), strict=True))
            if not np.isfinite(list(line.values())).all():
                broken = ", ".join(key for key in losses if not np.isfinite(line[key])) or "loss"
                remedy = f"lower {stage.name}'s learning_rate or look for samples that are not finite"
                where = f"{stage.name} step {done}"
                raise ConfigError(one_line("training diverged", where, f"{broken} not finite", remedy))
            line = {"stage": stage.number, "step": done, "rate": rate, **line}
            if look:
                line[VALIDATION] = self._look(stage, average)
            self.model.curve.append(line)
            self.record(line)
        before = sum(other.steps for other in self.stages if other.number < stage.number)
        self.progress(stage.name, before + done, sum(other.steps for other in self.stages))

    def _look(self, stage: _Stage, average: WeightAverage) -> float:
        """Fit those who are not trained on; remember the best weights, and whether it is time to end."""
        assert self.validation is not None
        rules = self.config.validation
        with average.applied():
            error = self.validation.face_median_mm(self.model.identity, self.model.identity_codes.codes)
            error = self.processes.agree(error)
            if error < self.best * (1 - rules.least_gain):
                self.best, self.looks_since_best = error, 0
                weights = enumerate(p.detach().clone() for p in stage.parameters())
                self.best_weights = {f"{_BEST}{place:03d}": weight for place, weight in weights}
            else:
                self.looks_since_best += 1
        self.ended = 0 < rules.patience <= self.looks_since_best
        return error

    def _checkpoint(self, stage: _Stage, step: int, average: WeightAverage) -> bytes:
        tensors = self.model.tensors() | stage.tensors() | average.tensors() | {"noise": generator_tensor(self.noise)}
        values: dict[str, Any] = {"stage": stage.number, "step": step, "digest": self.digest, "ended": self.ended}
        values |= {"batches": {name: batches.state() for name, batches in self.data.sources().items()}}
        values |= {"curve": self.model.curve}
        if self.validation is not None and stage.number == 1:
            tensors |= self.validation.tensors() | self.best_weights
            values |= {"validation": self.validation.state(), "looks_since_best": self.looks_since_best}
            values |= {"best": self.best if np.isfinite(self.best) else None}
        return encode(tensors, values)

    def _take_up(self, resume: bytes) -> tuple[int, int, dict[str, Tensor]]:
        """Put a checkpoint in place; returns its stage, its step and its tensors."""
        tensors, values = decode(resume)
        if values["digest"] != self.digest:
            why = "its config, seed, subjects or anchors differ"
            remedy = "train again from the start"
            raise ConfigError(one_line("checkpoint is of another training", "resume", why, remedy))
        own = set(self.model.tensors())
        self.model.restore({name: tensor for name, tensor in tensors.items() if name in own})
        self.model.curve[:] = values["curve"]
        self.noise.set_state(tensors["noise"])
        for name, batches in self.data.sources().items():
            batches.restore(values["batches"][name])
        self.ended = values["ended"]
        if "validation" in values and self.validation is not None:
            self.validation.restore(tensors, values["validation"])
            self.best = np.inf if values["best"] is None else values["best"]
            self.looks_since_best = values["looks_since_best"]
            self.best_weights = {name: t for name, t in tensors.items() if name.startswith(_BEST)}
        return values["stage"], values["step"], tensors


def best_device() -> str:
    """A CUDA device where there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"
