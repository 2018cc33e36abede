"""Training as a plan sees it: version, settings, limits, verdict. Free of torch, since every command reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

from pydantic import Field, model_validator

from model.config import TrainingConfig
from storage.frozen import Frozen

STEP_VERSION = 3


_SECONDS_PER_POINT = 6e-6
"""What a training step costs on 2 cores for each of its points."""


class TrainConfig(Frozen):
    """What a model is trained with: batches here, networks, losses and steps in ``training``."""

    training: TrainingConfig = TrainingConfig()
    subjects_per_step: int = Field(default=8, ge=1, description="subjects in a batch of stage 1")
    surface_points: int = Field(default=400, ge=1, description="surface points a subject and step")
    near_points: int = Field(default=500, ge=1, description="points near the surface a subject and step")
    space_points: int = Field(default=200, ge=1, description="points in space a subject and step")
    scans_per_step: int = Field(default=16, ge=1, description="scans in a batch of stage 2")
    pair_points: int = Field(default=500, ge=1, description="correspondences a scan and step")
    posed_surface_points: int = Field(
        default=0,
        ge=0,
        description="surface points of the posed head a scan and step, for a backward deformation; every scan must be "
        "sampled then (sample.identity.every_scan)",
    )
    posed_near_points: int = Field(default=0, ge=0, description="likewise, points near the posed surface")
    blends_per_step: int = Field(
        default=8,
        ge=0,
        description="blends of registered people, and of their expressions, in a step beside the samples; 0 trains "
        "without, and one person alone is never blended",
    )
    blend_points: int = Field(default=300, ge=1, description="surface points a blend and step")
    blend_motions: int = Field(
        default=1000,
        ge=2,
        description="scans whose expressions are blended, spread evenly over all: they are held in memory",
    )
    blend_parents: int = Field(default=6, ge=2, description="people, and expressions, mixed in a blend")
    color_points: int = Field(default=1000, ge=1, description="coloured points a subject and step, for a colour field")
    validation_share: float = Field(
        default=0.0, ge=0, lt=1, description="share of training subjects set aside to steer stage 1, drawn by their ids"
    )

    @model_validator(mode="after")
    def _posed_samples_go_backward(self) -> TrainConfig:
        asked = self.posed_surface_points, self.posed_near_points
        if any(asked) and self.training.field.deformation.direction == "forward":
            raise ValueError("posed_surface_points and posed_near_points need field.deformation.direction backward")
        if any(asked) and not all(asked):
            raise ValueError("posed_surface_points and posed_near_points go together: set both, or none")
        return self


class TrainThresholds(Frozen):
    """Limits of the training's verdict."""

    most_face_median_mm: float = Field(
        default=2.0, gt=0, description="median distance of the training faces' samples from their fields, mm"
    )
    most_posed_mean_mm: float = Field(default=6.0, gt=0, description="mean error of the training pairs when posed, mm")


class Metrics(Frozen):
    """The document ``metrics.json`` of a model folder: errors on further samples of the training data.

    What nothing could be measured on is left out.
    """

    subjects: int = Field(description="training subjects")
    scans: int = Field(description="training scans with correspondences")
    face_median_mm: float | None = Field(
        default=None, description="median distance of observed face samples from their field, mm"
    )
    face_p95_mm: float | None = Field(default=None, description="95 % of the same, mm")
    head_median_mm: float | None = Field(
        default=None, description="median distance of all observed surface samples, mm"
    )
    head_p95_mm: float | None = Field(default=None, description="95 % of the same, mm")
    anchors_mean_mm: float | None = Field(
        default=None, description="mean distance of predicted from registered anchors, mm; None without anchors"
    )
    posed_mean_mm: float | None = Field(default=None, description="mean error of moved pairs, mm; None without scans")
    color_mean_error: float | None = Field(
        default=None, description="mean absolute error of colours, of 255; None without a colour field"
    )
    validation_face_median_mm: float | None = Field(
        default=None, description="least median distance of face samples of subjects set aside, on the way, mm"
    )
    known_subjects: int | None = Field(
        default=None, description="subjects that the model gone on from knew; None where training began from nothing"
    )
    known_codes_moved: float | None = Field(
        default=None, description="root mean square of these subjects' codes' change, over the codes' spread"
    )
    known_face_median_mm: float | None = Field(
        default=None, description="median distance of these subjects' face samples from their fields, mm"
    )
    parent_face_median_mm: float | None = Field(
        default=None, description="the same from the fields of the model gone on from, mm"
    )


def judge_train(figures: Mapping[str, Any], thresholds: TrainThresholds) -> list[str]:
    """What speaks against a model; empty when it may be used."""
    reasons = []
    for name, limit in (
        ("face_median_mm", thresholds.most_face_median_mm),
        ("posed_mean_mm", thresholds.most_posed_mean_mm),
    ):
        value = figures.get(name)
        if value is not None and not value <= limit:
            reasons.append(f"{name} of the training data is {value:.2f}, limit {limit:g}: train longer")
    return reasons


class StageWork(NamedTuple):
    """What a stage of a training goes through."""

    steps: int
    points: int
    """A step."""


def stages_of(config: TrainConfig) -> dict[str, StageWork]:
    """What each stage of a training goes through, by its name."""
    identity = config.subjects_per_step * (config.surface_points + config.near_points + config.space_points)
    motion = config.scans_per_step * (config.pair_points + config.posed_surface_points + config.posed_near_points)
    blends = config.blends_per_step * config.blend_points
    identity, motion = identity + blends, motion + blends
    training, field = config.training, config.training.field
    if training.joint:
        stages = {"joint": StageWork(training.stage1.steps, identity + motion)}
    else:
        stages = {
            "stage1": StageWork(training.stage1.steps, identity),
            "stage2": StageWork(training.stage2.steps, motion),
        }
    if field.regions is not None:
        stages["stage3"] = StageWork(training.stage3.steps, identity - blends)
    if field.color is not None:
        stages["stage4"] = StageWork(training.stage4.steps, config.subjects_per_step * config.color_points)
    return stages


def expected_minutes(config: TrainConfig, seconds_per_point: Mapping[str, float] | None = None) -> float:
    """Rough time of a training.

    Args:
        config: of the step.
        seconds_per_point: what stages took here before for one point of a step, by their names; one that is not among
            them goes by what networks of the default size take on 2 cores.
    """
    known = seconds_per_point or {}
    stages = stages_of(config).items()
    return sum(work.steps * work.points * known.get(name, _SECONDS_PER_POINT) for name, work in stages) / 60
