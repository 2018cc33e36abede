"""Settings of the fits. Free of torch, since every command reads them."""

from __future__ import annotations

from pydantic import Field

from storage.frozen import Frozen


class FitConfig(Frozen):
    """How codes and poses are fitted to clouds."""

    points: int = Field(
        default=2500, gt=0, description="points of each observation that are used, drawn without replacement"
    )
    starts: int = Field(
        default=6, ge=1, description="expressions that each observation tries first: the mean and some trained ones"
    )
    start_iterations: int = Field(default=4, ge=0, description="steps of each such try, the identity being the mean")
    start_points: int = Field(default=400, gt=0, description="points of each such try")
    iterations: int = Field(default=12, gt=0, description="Gauss-Newton steps")
    first_scale_mm: float = Field(
        default=10.0, gt=0, description="distance that the robust kernel forgives at the start, mm"
    )
    last_scale_mm: float = Field(default=1.0, gt=0, description="the same at the end, mm")
    noise_mm: float = Field(
        default=0.4, gt=0, description="expected distance of a point from a fitted surface, beside its noise, mm"
    )
    first_stiffness: float = Field(
        default=30.0, gt=0, description="factor on the identity's prior at the start, falling to 1"
    )
    rotation_deg: float = Field(
        default=3.0, ge=0, description="expected error of the told rotation, degrees; 0 keeps it"
    )
    translation_mm: float = Field(default=5.0, ge=0, description="expected error of the told position, mm; 0 keeps it")
    threads: int = Field(default=2, ge=1, description="CPU threads; the same number gives the same bits")
    normal_cosine: float = Field(
        default=0.3, ge=-1, lt=1, description="least cosine of told and fitted normal of a used point"
    )
    ray_points: int = Field(
        default=400, ge=0, description="places between the sensor and what it saw, where no head may be; 0 asks none"
    )
    ray_spread_mm: float = Field(default=5.0, gt=0, description="how far the head may come into such places, mm")
    scale_share: float = Field(
        default=0.0, ge=0, lt=0.5, description="expected error of the told unit, as a share of it; 0 keeps the unit"
    )
    expression_step: float = Field(
        default=0.5, gt=0, description="change of expression from a frame of a sequence to the next, in spreads"
    )
    rotation_step_deg: float = Field(
        default=3.0, gt=0, description="the head's turn from a frame of a sequence to the next, degrees"
    )
    translation_step_mm: float = Field(
        default=10.0, gt=0, description="the head's way from a frame of a sequence to the next, mm"
    )
    largest_step: float = Field(
        default=1.5, gt=0, description="largest root-mean-square step of a code, in its spreads"
    )


class PcaConfig(Frozen):
    """How many modes the linear model keeps, and how it is fitted."""

    identity_modes: int = Field(
        default=80, ge=0, description="identity modes kept, at most as many as the subjects give"
    )
    expression_modes: int = Field(default=40, ge=0, description="expression modes kept, likewise")
    mirror: bool = Field(default=True, description="train on the mirrored heads too, as the field's own symmetry does")
    iterations: int = Field(default=40, gt=0, description="alternations of correspondences and least squares")
    noise_mm: float = Field(
        default=2.0, gt=0, description="expected distance of a point from the model, mm; sets the ridge"
    )
    first_reach_mm: float = Field(default=30.0, gt=0, description="farthest correspondence at the start, mm")
    last_reach_mm: float = Field(default=5.0, gt=0, description="farthest correspondence at the end, mm")
    trim_spreads: float = Field(default=3.0, gt=0, description="residuals beyond this many robust spreads are trimmed")
    normal_cosine: float = Field(
        default=0.3, ge=-1, lt=1, description="least cosine between the normals of a correspondence"
    )
    rotation_deg: float = Field(default=3.0, gt=0, description="expected error of the told rotation, degrees")
    translation_mm: float = Field(default=5.0, gt=0, description="expected error of the told position, mm")
