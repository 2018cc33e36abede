"""Registration as a plan sees it: version, settings, limits, verdict. Free of geometry: every command reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from storage.frozen import Frozen

STEP_VERSION = 7


class RegisterConfig(Frozen):
    """How the template is brought onto a scan."""

    misfit_mm: float = Field(default=0.8, gt=0, description="what the template's linear modes lack of a person, mm")
    misfit_range_mm: float = Field(default=30.0, gt=0, description="distance over which that varies, mm")


class RegisterThresholds(Frozen):
    """What a registration must reach."""

    max_face_median_mm: float = Field(default=0.8, gt=0, description="median distance of the face to the scan, mm")
    max_face_p95_mm: float = Field(default=2.0, gt=0, description="95 % of the same, mm")
    max_lips_p95_mm: float = Field(
        default=1.5, gt=0, description="95 % of the distances of the lips: beyond it they met another part of the mouth"
    )
    min_face_observed: float = Field(default=0.35, ge=0, le=1, description="share of the face that the scan shows")
    max_fit_cost: float = Field(default=0.45, gt=0, le=1, description="loss of the linear fit; 1 is no match at all")
    max_flipped_share: float = Field(default=0.02, ge=0, le=1, description="face triangles turned over")
    max_stretched_share: float = Field(default=0.05, ge=0, le=1, description="face edges over 3 times or under a third")
    max_lips_crossing_share: float = Field(
        default=0.25,
        ge=0,
        le=1,
        description="faces of the lips that pass through others; the insides of closed lips do in many templates",
    )
    max_lids_crossing_share: float = Field(
        default=0.05, ge=0, le=1, description="faces of the lids that pass through others"
    )
    max_second_start_mm: float = Field(
        default=2.5,
        gt=0,
        description="median distance between two starts' results that fit equally well, mm",
    )
    equal_cost: float = Field(
        default=0.03, ge=0, le=1, description="a second start whose cost is higher by more than this is no rival"
    )
    max_skull_mm: float = Field(
        default=1.0, gt=0, description="median distance of the canonical skull to another expression's scan, mm"
    )


def judge_register(figures: Mapping[str, Any], thresholds: RegisterThresholds) -> list[str]:
    """What speaks against a registration; empty if nothing does."""
    reasons = []
    median, p95 = figures["face_residual_median_mm"], figures["face_residual_p95_mm"]
    if figures["face_observed"] < thresholds.min_face_observed:
        share, limit = figures["face_observed"], thresholds.min_face_observed
        reasons.append(f"the scan shows {share:.0%} of the face, at least {limit:.0%} are wanted")
    if median is not None and median > thresholds.max_face_median_mm:
        reasons.append(f"the face lies {median:.2f} mm off in the median, at most {thresholds.max_face_median_mm:g} mm")
    if p95 is not None and p95 > thresholds.max_face_p95_mm:
        reasons.append(f"5 % of the face lie over {p95:.2f} mm off, at most {thresholds.max_face_p95_mm:g} mm")
    lips = figures.get("lips_residual_p95_mm")  # none where no lip was seen, or the template has none
    if lips is not None and lips > thresholds.max_lips_p95_mm:
        reasons.append(f"5 % of the lips lie over {lips:.2f} mm off, at most {thresholds.max_lips_p95_mm:g} mm")
    for name, limit, what in (
        ("fit_cost", thresholds.max_fit_cost, "the linear fit misses the scan"),
        ("flipped_share", thresholds.max_flipped_share, "triangles of the face are turned over"),
        ("stretched_share", thresholds.max_stretched_share, "edges of the face are stretched or crushed"),
        ("lips_crossing_share", thresholds.max_lips_crossing_share, "faces of the lips pass through each other"),
        ("lids_crossing_share", thresholds.max_lids_crossing_share, "faces of the lids pass through each other"),
    ):
        if figures[name] > limit:
            reasons.append(f"{what}: {figures[name]:.1%}, at most {limit:.1%}")
    apart, limit = figures["second_start_mm"], thresholds.max_second_start_mm
    if apart > limit and figures["second_start_cost"] < thresholds.equal_cost:
        reasons.append(f"two starts end {apart:.1f} mm apart and fit equally well, at most {limit:g} mm")
    if "skull_disagreement_mm" in figures:
        reasons += _judge_skull(figures["skull_disagreement_mm"], thresholds.max_skull_mm)
    return reasons


def _judge_skull(skull_mm: float | None, limit_mm: float) -> list[str]:
    if skull_mm is None:
        return ["too little of the skull is seen to tell whether it is the canonical scan's person"]
    if skull_mm > limit_mm:
        return [f"the skull is {skull_mm:.2f} mm off the canonical scan's, at most {limit_mm:g} mm: another person?"]
    return []
