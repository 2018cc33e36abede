"""Cleaning as a plan sees it: version, settings, limits, verdict. Free of geometry: every command reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import Field

from storage.frozen import Frozen

STEP_VERSION = 10


class CleanConfig(Frozen):
    """How a capture is cleaned."""

    voxel_mm: float = Field(default=0.0, ge=0, le=5, description="edge of a voxel, mm; 0 takes the sensor's own pixel")
    voxel_range_mm: tuple[float, float] = Field(default=(0.8, 2.5), description="limits of the sensor's own voxel, mm")
    truncation_voxels: float = Field(
        default=3.0, gt=1, le=10, description="most that the signed distance reaches, voxels"
    )
    least_weight: float = Field(default=0.03, gt=0, description="of a voxel's views together, 1 being a frontal view")
    box_low_mm: tuple[float, float, float] = Field(
        default=(-140, -140, -180), description="lower corner of what is kept, head frame, mm"
    )
    box_high_mm: tuple[float, float, float] = Field(
        default=(140, 220, 170), description="upper corner of what is kept, head frame, mm"
    )
    hole_mm: float = Field(default=14.0, ge=0, description="holes up to this wide are filled and marked, mm")
    piece_area_mm2: float = Field(default=60.0, ge=0, description="loose pieces smaller than this are dropped, mm^2")
    piece_gap_mm: float = Field(default=15.0, ge=0, description="loose pieces further off the head are dropped, mm")
    position_sigma_mm: float = Field(default=4.0, gt=0, description="how wrong a told camera position may be, mm")
    angle_sigma_deg: float = Field(default=0.8, gt=0, description="how wrong a told camera angle may be, degrees")
    agreement_min: float = Field(default=0.35, ge=0, le=1, description="a view that agrees less is left out")
    coarse_pixel_mm: float = Field(default=3.0, gt=0, description="pixel of the first look at poses and head, mm")
    landmark_model: str = Field(
        default="",
        description="mediapipe's face_landmarker.task, a file in the workspace, to find landmarks in colour frames;"
        " empty for none",
    )
    landmark_sha256: str = Field(
        default="",
        description="of that file; another one is refused",
        # Absent where none is told: a digest of settings from before there was this key stays as it was.
        exclude_if=lambda told: not told,
    )


class CleanThresholds(Frozen):
    """What a clean scan must reach."""

    min_views: int = Field(default=3, ge=1, description="views that agree")
    max_left_out_share: float = Field(default=0.5, ge=0, le=1, description="views left out, of all")
    min_coverage: float = Field(default=0.6, ge=0, le=1, description="share of the head's directions that were seen")
    min_face_coverage: float = Field(default=0.7, ge=0, le=1, description="the same over the face alone")
    max_spread_mm: float = Field(default=2.0, gt=0, description="median disagreement between views, mm")
    max_floating_share: float = Field(
        default=0.3, ge=0, le=1, description="area of floating pieces that were dropped, of all"
    )
    max_pose_shift_mm: float = Field(default=25.0, gt=0, description="median shift of the views' poses, mm")


def judge_clean(figures: Mapping[str, Any], thresholds: CleanThresholds) -> list[str]:
    """What speaks against a clean scan; empty if nothing does."""
    reasons = []
    views, used = figures["views"], figures["views_used"]
    if used < thresholds.min_views and views > 0:
        reasons.append(f"{used} views agree, at least {thresholds.min_views} are wanted")
    if views and (views - used) / views > thresholds.max_left_out_share:
        reasons.append(
            f"{views - used} of {views} views were left out, at most {thresholds.max_left_out_share:.0%} may be"
        )
    for name, limit, what in (
        ("coverage", thresholds.min_coverage, "of the head's directions were seen"),
        ("face_coverage", thresholds.min_face_coverage, "of the face was seen"),
    ):
        if figures[name] < limit:
            reasons.append(f"only {figures[name]:.0%} {what}, at least {limit:.0%} are wanted")
    for name, limit, what in (
        ("spread_median_mm", thresholds.max_spread_mm, "the views disagree by"),
        ("pose_shift_median_mm", thresholds.max_pose_shift_mm, "the told poses are wrong by"),
    ):
        if figures.get(name, 0.0) > limit:
            reasons.append(f"{what} {figures[name]:.2f} mm in the median, at most {limit:g} mm are allowed")
    if figures.get("floating_share", 0.0) > thresholds.max_floating_share:
        reasons.append(
            f"{figures['floating_share']:.0%} of the surface floated and was dropped, "
            f"at most {thresholds.max_floating_share:.0%} may"
        )
    return reasons
