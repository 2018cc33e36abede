"""Sizes of the fields and the settings of their training."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from storage.frozen import Frozen

MAX_LAYERS = 64
"""Hidden layers of a network."""

ActivationName = Literal["silu", "softplus100"]


class IdentityConfig(Frozen):
    """The identity field: one small network an anchor and one for the background (paper, section 3.1)."""

    global_dim: int = Field(
        default=64, ge=1, description="entries of the code that every local network and the anchors share"
    )
    local_dim: int = Field(default=32, ge=1, description="entries of the code of each anchor and of the background")
    hidden: tuple[int, ...] = Field(
        default=(64, 64, 64), min_length=1, max_length=MAX_LAYERS, description="outputs of the hidden layers"
    )
    skip_layer: int | None = Field(default=None, description="hidden layer that is given the network's input once more")
    activation: ActivationName = Field(
        default="silu", description="softplus100 is the paper's; silu is cheap and as smooth"
    )
    anchor_hidden: tuple[int, ...] = Field(
        default=(256, 256), max_length=MAX_LAYERS, description="hidden layers of the network that places anchors"
    )
    reach_neighbours: int = Field(
        default=4, ge=1, description="an anchor's reach is its distance to this neighbour, ..."
    )
    reach_factor: float = Field(default=1.0, gt=0, description="... times this")
    background_reach_units: float = Field(
        default=0.6, gt=0, description="scale of the background network's coordinates"
    )
    coordinate_gain: float = Field(
        default=8.0, gt=0, description="local coordinates at the reach; more shows finer detail sooner"
    )
    sharpness: float = Field(
        default=4.0, ge=0, description="log-weight an anchor has lost at its reach, before the window"
    )
    background_weight: float = Field(
        default=0.01,
        gt=0,
        description="weight of the background where no anchor reaches, an anchor's own place being 1",
    )
    background_limit: float = Field(
        default=0.1, gt=0, description="sum of the anchors' weights from which on the background counts for nothing"
    )


class DeformationConfig(Frozen):
    """The expression field: one network that moves points (paper, section 3.2)."""

    direction: Literal["forward", "backward"] = Field(
        default="forward",
        description="forward moves canonical points to the pose (NPHM), backward posed ones to canonical (MonoNPHM)",
    )
    hyper_dim: int = Field(
        default=0,
        ge=0,
        description="backward: further coordinates that the identity field is given beside a canonical point",
    )
    expression_dim: int = Field(default=64, ge=1, description="entries of the expression code")
    compressed_dim: int = Field(
        default=32, ge=1, description="entries to which identity code and anchors are compressed"
    )
    hidden: tuple[int, ...] = Field(
        default=(160, 160, 160, 160), min_length=1, max_length=MAX_LAYERS, description="outputs of the hidden layers"
    )
    skip_layer: int | None = Field(default=2, description="hidden layer that is given the network's input once more")
    activation: ActivationName = Field(
        default="silu", description="softplus100 is the paper's; silu is cheap and as smooth"
    )
    coordinate_gain: float = Field(
        default=8.0, gt=0, description="positions are multiplied by this before the first layer"
    )
    compression_noise: float = Field(
        default=0.005, ge=0, description="spread of the noise on the compressed code in training"
    )

    @model_validator(mode="after")
    def _hyper_goes_backward(self) -> DeformationConfig:
        if self.hyper_dim and self.direction == "forward":
            raise ValueError(f"hyper_dim {self.hyper_dim} needs direction backward")
        return self


class RegionConfig(Frozen):
    """The region field: one small network that names the part of the head a point belongs to."""

    hidden: tuple[int, ...] = Field(
        default=(64, 64), min_length=1, max_length=MAX_LAYERS, description="outputs of the hidden layers"
    )
    coordinate_gain: float = Field(
        default=8.0, gt=0, description="positions are multiplied by this before the first layer"
    )


class ColorConfig(Frozen):
    """The colour field: one network that gives canonical points a colour, with a code of its own (MonoNPHM)."""

    appearance_dim: int = Field(default=32, ge=1, description="entries of the appearance code")
    hidden: tuple[int, ...] = Field(
        default=(128, 128, 128), min_length=1, max_length=MAX_LAYERS, description="outputs of the hidden layers"
    )
    coordinate_gain: float = Field(
        default=12.0, gt=0, description="positions are multiplied by this before the first layer"
    )


class ImFaceConfig(Frozen):
    """ImFace's networks in place of both fields: a baseline, see ``model.imface``."""

    code_dim: int = Field(default=128, ge=1, description="entries of the identity code, and of the expression code")
    width: int = Field(default=128, ge=1, description="outputs of a hidden layer of a mini network")
    layers: int = Field(default=3, ge=1, le=MAX_LAYERS, description="hidden layers of a mini network")
    hyper_hidden: int = Field(
        default=128, ge=1, description="hidden layer between a code and the mini networks' weights"
    )
    fusion_hidden: int = Field(default=128, ge=1, description="hidden layer of the network that blends mini networks")
    frequency: float = Field(default=30.0, gt=0, description="what a sine layer's argument is multiplied by")
    crop_mm: float = Field(default=130.0, gt=0, description="radius of the ball about the face that alone is learnt")
    behind_nose_mm: float = Field(default=40.0, ge=0, description="how far behind the tip of the nose its centre lies")


def _absent(value: object) -> bool:
    """What is left out of written settings, so that the digests of settings without it stay what they were."""
    return value is None or value == 0


class FieldConfig(Frozen):
    """All fields: the architecture of a head model."""

    identity: IdentityConfig = IdentityConfig()
    deformation: DeformationConfig = DeformationConfig()
    regions: RegionConfig | None = Field(default=None, description="the region field; left out, there is none")
    color: ColorConfig | None = Field(default=None, description="the colour field; left out, there is none")
    imface: ImFaceConfig | None = Field(
        default=None, exclude_if=_absent, description="ImFace's networks in place of identity and deformation"
    )

    @model_validator(mode="after")
    def _imface_goes_backward(self) -> FieldConfig:
        motion = self.deformation
        if self.imface is not None and (motion.direction, motion.hyper_dim) != ("backward", 0):
            raise ValueError("imface needs deformation.direction backward, without hyper coordinates")
        if self.imface is not None and motion.expression_dim != self.imface.code_dim:
            raise ValueError(f"imface needs deformation.expression_dim {self.imface.code_dim}, its own code_dim")
        return self


class IdentityLossWeights(Frozen):
    """Weights of the losses of stage 1; a weight of 0 leaves the term out.

    With the paper's weights the normals outweigh a distance of 1 mm: where the surface is creased, as about lids, lips
    and ears, a smooth bulge in front of it costs less than the crease. A tenth of these two brings the surface back.
    """

    surf_sdf: float = Field(default=2.0, ge=0, description="absolute distance at surface points")
    normals: float = Field(
        default=0.03, ge=0, description="length of gradient less normal at surface points; the paper's is 0.3"
    )
    grad: float = Field(
        default=0.01, ge=0, description="eikonal: absolute of gradient's length less one; the paper's is 0.1"
    )
    space_sdf: float = Field(default=0.0, ge=0, description="exp(-10 |sdf|) at space points, which need no distances")
    near_sdf: float = Field(default=1.0, ge=0, description="absolute error of the distance near the surface")
    space_sdf_direct: float = Field(default=0.5, ge=0, description="absolute error of the distance, clamped, in space")
    lat_reg: float = Field(default=0.01, ge=0, description="squared length of the identity code (MonoNPHM's reg_shape)")
    anchors: float = Field(default=100.0, ge=0, description="mean squared error of predicted anchors, model units")
    symm_dist: float = Field(default=0.01, ge=0, description="distance between the local codes of a mirrored pair")
    middle_dist: float = Field(default=0.0, ge=0, description="squared length of the local codes on the middle line")
    blend_sdf: float = Field(default=1.0, ge=0, description="blends of people: absolute distance on their surfaces")
    blend_normals: float = Field(default=0.03, ge=0, description="blends: length of gradient less normal")
    blend_anchors: float = Field(default=100.0, ge=0, description="blends: mean squared error of predicted anchors")
    correction: float = Field(
        default=0.0, ge=0, exclude_if=_absent, description="ImFace: what is added to the template's distances, absolute"
    )
    refer: float = Field(
        default=0.0, ge=0, exclude_if=_absent, description="ImFace: squared error of keypoints moved to the template's"
    )


class DeformationLossWeights(Frozen):
    """Weights of the losses of stage 2."""

    corresp: float = Field(default=100.0, ge=0, description="squared error of moved points, model units")
    lat_reg_ex: float = Field(
        default=5e-5, ge=0, description="squared length of the expression code (MonoNPHM's reg_expr)"
    )
    reg_zero: float = Field(default=5e-5, ge=0, description="squared displacement at points anywhere")
    neutral_zero: float = Field(
        default=0.001, ge=0, description="backward: squared displacement of canonical scans' points"
    )
    hyper: float = Field(default=0.05, ge=0, description="backward: absolute hyper coordinates")
    hyper_neutral: float = Field(default=0.45, ge=0, description="backward: the same of canonical scans, in addition")
    posed_surf_sdf: float = Field(
        default=1.0, ge=0, description="backward: absolute distance at surface points of posed scans"
    )
    posed_near_sdf: float = Field(
        default=1.0, ge=0, description="backward: absolute error of the distance near posed scans"
    )
    blend_corresp: float = Field(
        default=100.0, ge=0, description="blends of expressions: squared error of moved points, model units"
    )
    keypoints: float = Field(
        default=0.0, ge=0, exclude_if=_absent, description="ImFace: squared error of posed keypoints"
    )


class ColorLossWeights(Frozen):
    """Weights of the colour field's losses."""

    color: float = Field(default=1.0, ge=0, description="absolute error of colours from 0 to 1")
    lat_reg_color: float = Field(default=1e-4, ge=0, description="squared length of the appearance code")


LossWeights = IdentityLossWeights | DeformationLossWeights | ColorLossWeights


class StageConfig(Frozen):
    """Steps, rates and clipping of one stage."""

    steps: int = Field(ge=0, description="optimiser steps; a preset counts steps, never minutes")
    learning_rate: float = Field(gt=0, description="of the networks, at the start")
    code_learning_rate: float = Field(gt=0, description="of the codes, at the start")
    schedule: Literal["cosine", "halving"] = Field(default="cosine", description="cosine to final_share, or halving")
    final_share: float = Field(default=0.01, gt=0, le=1, description="cosine: rates at the end over those at the start")
    halving_steps: int = Field(default=40000, ge=1, description="halving: steps between two halvings")
    warmup_steps: int = Field(default=50, ge=0, description="rates rise linearly over these")
    weight_decay: float = Field(default=0.0, ge=0, description="decoupled weight decay of the networks")
    clip: float = Field(default=1.0, gt=0, description="limit of the gradient's norm, networks and codes apart")
    code_init: float = Field(ge=0, description="spread of the codes at the start, over the root of their length")


class ValidationConfig(Frozen):
    """How people who are not trained on are fitted on the way, and when their error ends stage 1."""

    every: int = Field(default=500, ge=1, description="steps of stage 1 between two looks")
    fit_steps: int = Field(default=20, ge=1, description="steps that the codes are fitted with at a look")
    code_learning_rate: float = Field(default=5e-3, gt=0, description="of the codes while they are fitted")
    patience: int = Field(
        default=0, ge=0, description="looks without a better error after which stage 1 ends; 0 goes to the last step"
    )
    least_gain: float = Field(default=0.002, ge=0, lt=1, description="share by which an error counts as better")


class TrainingConfig(Frozen):
    """Everything that the training of a head model depends on, beside its samples."""

    field: FieldConfig = FieldConfig()
    stage1: StageConfig = StageConfig(steps=14000, learning_rate=2e-3, code_learning_rate=5e-3, code_init=0.1)
    stage2: StageConfig = StageConfig(steps=8000, learning_rate=5e-3, code_learning_rate=2e-2, code_init=0.1)
    stage3: StageConfig = Field(
        default=StageConfig(steps=1500, learning_rate=3e-3, code_learning_rate=1e-3, code_init=0.1),
        description="the region field, where there is one; no code is moved",
    )
    stage4: StageConfig = Field(
        default=StageConfig(steps=3000, learning_rate=3e-3, code_learning_rate=1e-2, code_init=0.0),
        description="the colour field, where there is one; appearance codes alone are moved",
    )
    identity_losses: IdentityLossWeights = IdentityLossWeights()
    deformation_losses: DeformationLossWeights = DeformationLossWeights()
    color_losses: ColorLossWeights = ColorLossWeights()
    distance_clamp_mm: float = Field(default=25.0, gt=0, description="direct distances count up to here")
    surface_gradient_share: float = Field(
        default=0.5, ge=0, le=1, description="surface points given normal and eikonal terms"
    )
    near_gradient_share: float = Field(default=0.0, ge=0, le=1, description="near points given the eikonal term")
    space_gradient_share: float = Field(default=0.0, ge=0, le=1, description="space points given the eikonal term")
    outer_normal_clamp: float = Field(default=0.75, gt=0, description="limit of the normal term off the face")
    outer_normal_weight: float = Field(default=0.5, ge=0, description="weight of the normal term off the face")
    guessed_weight: float = Field(
        default=0.2, ge=0, le=1, description="weight of samples whose nearest surface was filled in, not seen"
    )
    joint: bool = Field(
        default=False, description="train both fields together, over stage 1's steps, in place of one after the other"
    )
    average_decay: float = Field(
        default=0.999, ge=0, lt=1, description="of the moving average that is the result; 0 takes the last weights"
    )
    validation: ValidationConfig = ValidationConfig()
    precision: Literal["float32", "bfloat16"] = Field(
        default="float32",
        description="of hidden layers' products on a GPU; bfloat16 is too rough for softplus100",
    )
    threads: int = Field(default=2, ge=1, description="CPU threads; the same number gives the same bits")
    record_every: int = Field(default=20, ge=1, description="steps between two records of the training curve")
    checkpoint_every: int = Field(default=500, ge=1, description="steps between two checkpoints")

    @model_validator(mode="after")
    def _skips_exist(self) -> TrainingConfig:
        for name, part in (("identity", self.field.identity), ("deformation", self.field.deformation)):
            if part.skip_layer is not None and not 1 <= part.skip_layer < len(part.hidden):
                raise ValueError(f"field.{name}.skip_layer {part.skip_layer} is no hidden layer after the first")
        return self

    @model_validator(mode="after")
    def _hyper_coordinates_are_learnt_with_the_shapes(self) -> TrainingConfig:
        if self.field.deformation.hyper_dim and not self.joint:
            raise ValueError("field.deformation.hyper_dim needs joint training: the identity field learns from them")
        return self


PAPER_FIELD = FieldConfig(
    identity=IdentityConfig(
        hidden=(200, 101, 200, 200),
        skip_layer=2,
        activation="softplus100",
        reach_neighbours=5,
        coordinate_gain=1.0,
    ),
    deformation=DeformationConfig(
        expression_dim=200,
        hidden=(512, 512, 277, 512, 512, 512),
        skip_layer=3,
        activation="softplus100",
        coordinate_gain=1.0,
    ),
)
"""The paper's sizes: 2.90 M weights for identity, 112 k for the anchors, 1.31 M and 47 k for expressions."""
