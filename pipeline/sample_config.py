"""Sampling as a plan sees it: version, settings, limits, verdict. Free of geometry: every command reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from registration.template import REGIONS
from storage.frozen import Frozen

STEP_VERSION = 2

Point = tuple[float, float, float]


class RegionDensity(Frozen):
    """Points per area in each region, relative to the others."""

    face: float = Field(default=4.0, ge=0, description="skin from brow to chin")
    scalp: float = Field(default=1.0, ge=0, description="bare scalp")
    ears: float = Field(default=4.0, ge=0, description="ears")
    neck: float = Field(default=1.0, ge=0, description="neck above the throat plane")
    lips: float = Field(default=8.0, ge=0, description="lips")
    eyes: float = Field(default=8.0, ge=0, description="lids and eyes")
    hair: float = Field(default=1.0, ge=0, description="hair and beard")
    worn: float = Field(default=1.0, ge=0, description="glasses")

    def by_code(self) -> NDArray[np.float64]:
        """The densities in the order of ``REGIONS``."""
        return np.array([getattr(self, name) for name in REGIONS], np.float64)


class IdentitySampleConfig(Frozen):
    """How a canonical scan is sampled, or every one."""

    every_scan: bool = Field(
        default=False,
        description="scans in other expressions too: a backward deformation can learn from their distances",
    )
    surface_points: int = Field(
        default=150_000, ge=1000, le=50_000_000, description="points drawn on the clean surface"
    )
    near_points: int = Field(
        default=150_000, ge=1000, le=50_000_000, description="points drawn around it, half at each spread"
    )
    space_points: int = Field(default=30_000, ge=100, le=50_000_000, description="points drawn in the space box")
    color_points: int = Field(
        default=0, ge=0, le=50_000_000, description="points with colour on what was seen of a scan that has colour"
    )
    near_spreads_mm: tuple[float, float] = Field(
        default=(10.0, 2.0), description="standard deviations around the surface, mm"
    )
    space_low_mm: Point = Field(
        default=(-170.0, -190.0, -170.0), description="lowest corner of the space box, head frame, mm"
    )
    space_high_mm: Point = Field(
        default=(170.0, 200.0, 180.0), description="highest corner of the space box, head frame, mm"
    )
    standoff_mm: float = Field(
        default=4.0, gt=0, description="what lies further off the registered skin is not of the face"
    )
    companion_off_mm: float = Field(
        default=1.0, gt=0, description="how far the watertight companion may lie off the scan, mm"
    )
    density: RegionDensity = RegionDensity()


class DeformationSampleConfig(Frozen):
    """How the motion from a subject's canonical registration to another is sampled."""

    pairs: int = Field(default=100_000, ge=1000, le=50_000_000, description="pairs a scan, the extension included")
    spreads_mm: tuple[float, float] = Field(
        default=(2.5, 0.5), description="standard deviations off the registration, mm"
    )
    extension_share: float = Field(
        default=0.2, ge=0, le=0.9, description="share of the pairs that carry the motion further out"
    )
    extension_reach_mm: float = Field(default=90.0, gt=0, description="how far out from scalp, ears and neck, mm")
    face_extension_reach_mm: float = Field(default=12.0, gt=0, description="how far out from the face, mm")
    inward_reach_mm: float = Field(default=12.0, gt=0, description="how far inward everywhere, mm")
    residual_scale_mm: float = Field(
        default=1.5, gt=0, description="a registration's residual at which a pair counts 1/e, mm"
    )
    unobserved_weight: float = Field(default=0.3, ge=0, le=1, description="weight where the registration saw nothing")
    extension_weight: float = Field(
        default=0.5, ge=0, le=1, description="weight of an extension pair over its surface's"
    )
    density: RegionDensity = RegionDensity()


class SampleConfig(Frozen):
    """How scans are sampled."""

    keep: Literal["stored", "on_the_fly"] = Field(
        default="stored",
        description="stored: all samples as shards; on_the_fly: none, training draws the same ones from the meshes",
    )
    identity: IdentitySampleConfig = IdentitySampleConfig()
    deformation: DeformationSampleConfig = DeformationSampleConfig()


class SampleThresholds(Frozen):
    """Limits of the sample step's verdict."""

    most_disputed_share: float = Field(
        default=0.1, ge=0, le=1, description="share of near points on whose side scan and companion disagree"
    )
    least_face_observed_share: float = Field(
        default=0.3, ge=0, le=1, description="share of the face's surface samples that the rig saw"
    )
    least_pair_weight: float = Field(default=0.05, ge=0, le=1, description="mean weight of the deformation pairs")


def judge_sample(figures: Mapping[str, Any], thresholds: SampleThresholds) -> list[str]:
    """What speaks against the samples of a scan; empty when they may be trained on."""
    reasons = []
    disputed = figures.get("near_disputed_share")
    if disputed is not None and disputed > thresholds.most_disputed_share:
        limit = thresholds.most_disputed_share
        reasons.append(f"inside and outside are disputed for {disputed:.1%} of the near points, limit {limit:.1%}")
    seen = figures.get("face_observed_share")
    if seen is not None and seen < thresholds.least_face_observed_share:
        limit = thresholds.least_face_observed_share
        reasons.append(f"only {seen:.1%} of the face was seen, at least {limit:.1%} is wanted")
    weight = figures.get("pair_weight_mean")
    if weight is not None and weight < thresholds.least_pair_weight:
        limit = thresholds.least_pair_weight
        reasons.append(f"the registration is trusted with {weight:.3f} in the mean, at least {limit:.3f} is wanted")
    return reasons
