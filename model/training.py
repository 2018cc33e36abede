"""The two stages of training: identity, then expressions over frozen identities (paper, section 3.3).

The loop is given batches and a way to save. It knows no workspace and no clock: steps are counted, and every draw comes
from explicit seeds, so that the same batches give the same weights and a resumed run ends in the same bits (on a CPU).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from model.checkpoint import decode, encode, generator_tensor, load_module, module_tensors
from model.codes import CodeBook
from model.config import StageConfig, TrainingConfig
from model.deformation_field import DeformationField
from model.identity_field import IdentityField
from model.losses import (
    DeformationSamplesBatch,
    IdentitySamplesBatch,
    Losses,
    deformation_losses,
    identity_losses,
    total,
)
from model.optimisation import StageOptimiser
from model.threads import fixed_threads
from model.units import to_units
from storage.digest import digest_json
from storage.errors import ConfigError, one_line

_ANYWHERE_UNITS = 1.25
_ANYWHERE_POINTS = 25

Save = Callable[[str, bytes], None]
Progress = Callable[[str, int, int], None]
"""Called with the stage, the steps done and the steps in all, over both stages."""
Record = Callable[[dict[str, Any]], None]
"""Called with a line of the training curve: stage, step, rate and the unweighted losses."""


class BatchSource(Protocol):
    """Endless batches of NumPy arrays (mm, head frame) that can be taken up anywhere."""

    def __next__(self) -> Mapping[str, NDArray]:
        """The next batch."""

    def state(self) -> dict[str, Any]:
        """Where the iteration stands, as plain values."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""


@dataclass(frozen=True)
class TrainingData:
    """What a model is trained on.

    Attributes:
        identity: batches with ``subject``, ``anchors``, ``surface``, ``normal``, ``face``, ``observed``, ``near``,
            ``near_sdf``, ``near_observed``, ``space``, ``space_sdf``, ``space_observed``.
        deformation: batches with ``scan``, ``subject``, ``canonical``, ``posed``, ``weight``; None without expressions.
        subjects: number of subjects, of which ``subject`` is a place.
        scans: number of scans with expressions, of which ``scan`` is a place.
        mean_anchors_mm: (K, 3) head frame, mirrored pairs first, interleaved.
        anchor_pairs: number of mirrored pairs.
    """

    identity: BatchSource
    deformation: BatchSource | None
    subjects: int
    scans: int
    mean_anchors_mm: NDArray[np.floating]
    anchor_pairs: int


@dataclass
class TrainedModel:
    """Fields, codes and training curve as they stand.

    Attributes:
        identity, deformation: the fields.
        identity_codes: (subjects, D).
        expression_codes: (scans, E).
        curve: lines with stage, step, rate, loss and each unweighted term.
    """

    identity: IdentityField
    deformation: DeformationField
    identity_codes: CodeBook
    expression_codes: CodeBook
    curve: list[dict[str, Any]]

    def tensors(self) -> dict[str, Tensor]:
        """All weights, buffers and codes by name."""
        return {name: tensor for prefix, part in self._parts() for name, tensor in module_tensors(part, prefix).items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take up what ``tensors`` gave."""
        for prefix, part in self._parts():
            load_module(part, prefix, tensors)

    def to(self, device: str) -> None:
        """Move everything to a device."""
        for _, part in self._parts():
            part.to(device)

    def _parts(self) -> tuple[tuple[str, torch.nn.Module], ...]:
        return (
            ("identity", self.identity),
            ("deformation", self.deformation),
            ("identity_codes", self.identity_codes),
            ("expression_codes", self.expression_codes),
        )


def new_model(config: TrainingConfig, data: TrainingData, seed: int) -> TrainedModel:
    """Fields and codes at their start, drawn from a seed."""
    generator = torch.Generator().manual_seed(seed)
    anchors = torch.as_tensor(to_units(np.asarray(data.mean_anchors_mm, np.float32)))
    identity = IdentityField(config.field.identity, anchors, data.anchor_pairs, generator)
    size = identity.layout.size
    deformation = DeformationField(config.field.deformation, size, len(anchors), generator)
    identity_codes = CodeBook(data.subjects, size, config.stage1.code_init, generator)
    expression_dim = config.field.deformation.expression_dim
    expression_codes = CodeBook(max(data.scans, 1), expression_dim, config.stage2.code_init, generator)
    return TrainedModel(identity, deformation, identity_codes, expression_codes, [])


def train(
    config: TrainingConfig,
    data: TrainingData,
    save: Save,
    resume: bytes | None = None,
    progress: Progress | None = None,
    record: Record | None = None,
    seed: int = 0,
    device: str = "cpu",
) -> TrainedModel:
    """Train both stages.

    Args:
        config: sizes, losses and steps.
        data: batches and counts.
        save: is given a checkpoint's name, which sorts by progress, and its bytes.
        resume: a checkpoint to go on from.
        progress, record: told of what happens; after a resume, of what is new.
        seed: of initial weights, codes and noise.
        device: "cpu" or a CUDA device.

    Returns:
        The model at the end, on the device.

    Raises:
        ConfigError: the checkpoint is of another config or other data, or a loss is no longer finite.
    """
    with fixed_threads(config.threads):
        return _Run(config, data, save, progress, record, seed, device).train(resume)


class _Run:
    def __init__(
        self,
        config: TrainingConfig,
        data: TrainingData,
        save: Save,
        progress: Progress | None,
        record: Record | None,
        seed: int,
        device: str,
    ) -> None:
        self.config, self.data, self.save, self.device = config, data, save, device
        self.progress = progress or (lambda stage, done, of: None)
        self.record = record or (lambda line: None)
        self.model = new_model(config, data, seed)
        self.model.to(device)
        self.noise = torch.Generator().manual_seed(seed + 1)
        self.digest = digest_json(
            {
                "config": config.model_dump(mode="json"),
                "seed": seed,
                "subjects": data.subjects,
                "scans": data.scans,
                "anchors": np.asarray(data.mean_anchors_mm, np.float64).round(4).tolist(),
            }
        )

    def train(self, resume: bytes | None) -> TrainedModel:
        stage, start, moments = 1, 0, None
        if resume is not None:
            stage, start, moments = self._take_up(resume)
        model = self.model
        if stage == 1:
            self._stage(1, self.config.stage1, self.data.identity, self._identity_step, start, moments)
            start, moments = 0, None
        for part in (model.identity, model.identity_codes):
            part.requires_grad_(False)
        if self.data.deformation is not None:
            self._stage(2, self.config.stage2, self.data.deformation, self._deformation_step, start, moments)
        return model

    def _stage(
        self,
        number: int,
        stage: StageConfig,
        batches: BatchSource,
        losses_of: Callable[[Mapping[str, NDArray]], tuple[Losses, Tensor]],
        start: int,
        moments: Mapping[str, Tensor] | None,
    ) -> None:
        """Run one stage from a step on, with checkpoints and records on their way."""
        model, name = self.model, f"stage{number}"
        network, codes = (
            (model.identity, model.identity_codes) if number == 1 else (model.deformation, model.expression_codes)
        )
        optimiser = StageOptimiser(stage, network.parameters(), codes.codes)
        if moments is not None:
            optimiser.restore(moments)
        before = self.config.stage1.steps if number == 2 else 0
        everything = self.config.stage1.steps + (self.config.stage2.steps if self.data.deformation else 0)
        for step in range(start, stage.steps):
            losses, loss = losses_of(next(batches))
            rate = optimiser.step(loss, step)
            done = step + 1
            if done % self.config.record_every == 0 or done == stage.steps:
                line = {key: float(value.detach()) for key, value in losses.items()}
                if not np.isfinite(list(line.values())).all():
                    broken = ", ".join(key for key, value in line.items() if not np.isfinite(value))
                    remedy = f"lower {name}'s learning_rate or look for samples that are not finite"
                    raise ConfigError(
                        one_line("training diverged", f"{name} step {done}", f"{broken} not finite", remedy)
                    )
                line = {"stage": number, "step": done, "rate": rate, "loss": float(loss.detach()), **line}
                self.model.curve.append(line)
                self.record(line)
            self.progress(name, before + done, everything)
            if done % self.config.checkpoint_every == 0 or done == stage.steps:
                self.save(f"{name}-{done:07d}.safetensors", self._checkpoint(number, done, optimiser, batches))

    def _checkpoint(self, stage: int, step: int, optimiser: StageOptimiser, batches: BatchSource) -> bytes:
        tensors = self.model.tensors() | optimiser.tensors() | {"noise": generator_tensor(self.noise)}
        values = {"stage": stage, "step": step, "batches": batches.state(), "digest": self.digest}
        return encode(tensors, values | {"curve": self.model.curve})

    def _take_up(self, resume: bytes) -> tuple[int, int, dict[str, Tensor]]:
        tensors, values = decode(resume)
        if values.get("digest") != self.digest:
            why = "its config, seed, subjects or anchors differ"
            raise ConfigError(one_line("is of another training", "checkpoint", why, "start training anew"))
        self.model.restore(tensors)
        self.model.curve[:] = values["curve"]
        self.noise.set_state(tensors["noise"])
        batches = self.data.identity if values["stage"] == 1 else self.data.deformation
        if batches is None:
            raise ConfigError(one_line("is of another training", "checkpoint", "no expressions", "start training anew"))
        batches.restore(values["batches"])
        return int(values["stage"]), int(values["step"]), tensors

    def _identity_step(self, batch: Mapping[str, NDArray]) -> tuple[Losses, Tensor]:
        model = self.model
        z_id = model.identity_codes(self._tensor(batch["subject"]))
        prepared = model.identity.prepare(z_id)
        losses = identity_losses(model.identity, prepared, z_id, self._identity_batch(batch), self.config)
        return losses, total(losses, self.config.identity_losses)

    def _deformation_step(self, batch: Mapping[str, NDArray]) -> tuple[Losses, Tensor]:
        model = self.model
        z_id = model.identity_codes(self._tensor(batch["subject"]))
        z_ex = model.expression_codes(self._tensor(batch["scan"]))
        anchors = model.identity.anchors_head(model.identity.layout.split(z_id)[0])
        prepared = model.deformation.prepare(z_id, anchors, z_ex, self.noise)
        samples = DeformationSamplesBatch(
            self._lengths(batch["canonical"]), self._lengths(batch["posed"]), self._tensor(batch["weight"])
        )
        drawn = torch.rand(len(z_ex), _ANYWHERE_POINTS, 3, generator=self.noise).to(self.device)
        anywhere = (2 * drawn - 1) * _ANYWHERE_UNITS
        weights = self.config.deformation_losses
        losses = deformation_losses(model.deformation, prepared, z_ex, samples, anywhere, weights)
        return losses, total(losses, weights)

    def _identity_batch(self, batch: Mapping[str, NDArray]) -> IdentitySamplesBatch:
        return IdentitySamplesBatch(
            anchors=self._lengths(batch["anchors"]),
            surface=self._lengths(batch["surface"]),
            normal=self._tensor(batch["normal"]),
            surface_weight=self._confidence(batch["observed"]),
            face=self._tensor(batch["face"]),
            near=self._lengths(batch["near"]),
            near_sdf=self._lengths(batch["near_sdf"]),
            near_weight=self._confidence(batch["near_observed"]),
            space=self._lengths(batch["space"]),
            space_sdf=self._lengths(batch["space_sdf"]),
            space_weight=self._confidence(batch["space_observed"]),
        )

    def _tensor(self, array: NDArray) -> Tensor:
        return torch.as_tensor(array).to(self.device)

    def _lengths(self, array_mm: NDArray) -> Tensor:
        return to_units(self._tensor(array_mm))

    def _confidence(self, observed: NDArray) -> Tensor:
        seen = self._tensor(observed).float()
        return seen + (1 - seen) * self.config.guessed_weight


def best_device() -> str:
    """A CUDA device where there is one, else the CPU."""
    return "cuda" if torch.cuda.is_available() else "cpu"
