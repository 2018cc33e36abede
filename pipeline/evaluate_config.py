"""Evaluation as a plan sees it: version, settings, limits, verdict. Free of torch, since every command reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field

from model.fit_config import FitConfig, PcaConfig
from storage.frozen import Frozen

STEP_VERSION = 6


class EvaluateConfig(Frozen):
    """How held-out scans are fitted and all are measured."""

    points: int = Field(default=2500, gt=0, description="points of the single-view cloud, drawn with replacement")
    noise_mm: float = Field(default=0.0, ge=0, description="noise added to the cloud along the view rays, mm")
    samples: int = Field(default=100_000, gt=0, description="samples on each surface (the paper: 250,000)")
    render_scale: float = Field(
        default=0.5, gt=0, le=1, description="resolution of the sampling renders over 960 x 1280 (the paper: 1)"
    )
    resolution: int = Field(default=192, gt=15, description="cells along the longest edge of a meshed head")
    most_scans: int | None = Field(
        default=None, gt=0, description="held-out scans that are fitted at most, spread over subjects; all by default"
    )
    fit: FitConfig = FitConfig()
    baseline_noise_mm: float = Field(
        default=1.0,
        gt=0,
        description="fit.noise_mm of the neural baselines, which meet even trained faces less nearly, mm",
    )
    linear: tuple[Literal["pca", "bfm", "flame"], ...] = Field(
        default=("pca",), description="linear heads to compare with, learnt from the model's own registrations"
    )
    flame_file: str | None = Field(
        default=None, description="a FLAME model, a file in the workspace; flame is then it, else learnt like it"
    )
    flame_sha256: str = Field(default="", description="of that file; another one is refused")
    pca: PcaConfig = Field(default=PcaConfig(), description="of all linear heads")


class EvaluateThresholds(Frozen):
    """Limits of a model's verdict."""

    most_failures_share: float = Field(default=0.1, ge=0, le=1, description="share of held-out scans without a result")
    worst_train_face_median_mm: float = Field(
        default=3.0, gt=0, description="median distance of re-meshed training faces to their scans, mm"
    )
    worst_face_point_to_triangle_mm: float = Field(
        default=6.0, gt=0, description="mean distance of fitted held-out faces to their scans, both ways, mm"
    )


def judge_evaluate(figures: Mapping[str, Any], thresholds: EvaluateThresholds) -> list[str]:
    """What speaks against a model; empty when it may be used."""
    reasons = []
    scans, failures = figures.get("held_out_scans", 0), figures.get("nphm_failures", 0)
    if scans and failures / scans > thresholds.most_failures_share:
        limit = thresholds.most_failures_share
        reasons.append(f"{failures} of {scans} held-out scans have no result, at most {limit:.0%} may")
    limits = {
        "train_face_median_mm": ("re-meshed training faces", thresholds.worst_train_face_median_mm),
        "nphm_face_point_to_triangle_mm": ("fitted held-out faces", thresholds.worst_face_point_to_triangle_mm),
    }
    for name, (what, limit_mm) in limits.items():
        value = figures.get(name)
        if value is not None and value > limit_mm:
            reasons.append(f"{what} are {value:.2f} mm off their scans, limit {limit_mm:g} mm")
    return reasons
