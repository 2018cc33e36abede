"""ImFace's three parts: an expression's warp to the person's face, the person's warp to a template, the template."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.anchors_head import AnchorsHead
from model.codes import IdentityLayout
from model.config import DeformationConfig, ImFaceConfig
from model.mini_networks import MiniNetworks
from model.shape_and_motion import MotionField, ShapeField
from model.units import to_units

KEYPOINTS = (36, 45, 30, 48, 54)
"""Of the 68 landmarks: outer corners of the eyes, tip of the nose, corners of the mouth."""
_NOSE = 2
_KEYPOINT_HIDDEN = (128,)
_LAST_GAIN = 0.1
"""Warps start small."""
_POINTS_AT_ONCE = 1 << 15


class FaceBall:
    """The ball about the face that alone is learnt; inside the networks its radius is 1 and its centre the origin.

    Args:
        config: its size.
        mean: (5, 3) mean keypoints, model units, head frame.
    """

    def __init__(self, config: ImFaceConfig, mean: Tensor) -> None:
        self.radius = float(to_units(config.crop_mm))
        self._behind = float(to_units(config.behind_nose_mm))
        self._nose = mean[_NOSE].tolist()

    def centre(self, like: Tensor) -> Tensor:
        """(3,) model units, head frame; on the device of ``like``."""
        x, y, z = self._nose
        return like.new_tensor([x, y, z - self._behind])

    def inside(self, places: Tensor) -> Tensor:
        """Places (..., 3) in model units as the networks see them."""
        return (places - self.centre(places)) / self.radius


@dataclass(frozen=True)
class PreparedImFace:
    """What a part needs of B heads.

    Attributes:
        anchors: (B, 5, 3) keypoints, model units, head frame.
        hidden: (B, H) the hyper network's hidden layer.
    """

    anchors: Tensor
    hidden: Tensor


class ImFaceShape(ShapeField):
    """Identity part and template: a person's warp and correction, then one signed distance for everybody.

    Args:
        config: sizes.
        mean: (5, 3) mean keypoints, model units, head frame; the template's own.
        generator: where the initial weights are drawn from.
    """

    def __init__(self, config: ImFaceConfig, mean: Tensor, generator: torch.Generator) -> None:
        super().__init__()
        count = len(KEYPOINTS)
        self.layout = IdentityLayout(config.code_dim, 0, count, 0)
        self.anchors_head = AnchorsHead(mean, config.code_dim, _KEYPOINT_HIDDEN, generator)
        self.warp = MiniNetworks(config, count, 4, config.code_dim, generator, _LAST_GAIN)
        self.template = MiniNetworks(config, count, 1, 0, generator)
        self._config = config

    @property
    def ball(self) -> FaceBall:
        """Where it is learnt."""
        return FaceBall(self._config, self.anchors_head.mean)

    def prepare(self, z_id: Tensor, anchors: Tensor | None = None) -> PreparedImFace:
        """Keypoints and hyper network's hidden layer of identity codes (B, code_dim)."""
        return PreparedImFace(self.anchors_head(z_id) if anchors is None else anchors, self.warp.hidden(z_id))

    def sdf(self, prepared: PreparedImFace, points: Tensor, subject_index: Tensor | None = None) -> Tensor:
        """As in ``ShapeField``; each subject has equally many points, one subject's after the other's."""
        if not torch.is_grad_enabled() and subject_index is None and len(points) > _POINTS_AT_ONCE:
            return torch.cat([self.sdf(prepared, part) for part in points.split(_POINTS_AT_ONCE)])
        prepared, lines = in_lines(prepared, points, subject_index)
        return self._parts(prepared, lines)[0].flatten()

    def sdf_and_gradient(
        self, prepared: PreparedImFace, points: Tensor, subject_index: Tensor | None = None, create_graph: bool = False
    ) -> tuple[Tensor, Tensor]:
        """As in ``ShapeField``."""
        with torch.enable_grad():
            at = points if points.requires_grad else points.detach().requires_grad_(True)
            value = self.sdf(prepared, at, subject_index)
            (slope,) = torch.autograd.grad(value.sum(), at, create_graph=create_graph)
        return (value, slope) if create_graph else (value.detach(), slope)

    def own_losses(self, prepared: PreparedImFace, near: Tensor) -> dict[str, Tensor]:
        """``correction``: its absolute, model units; ``refer``: squared error of the warped keypoints, model units."""
        _, correction = self._parts(prepared, near)
        ball, keypoints = self.ball, prepared.anchors
        warped = ball.inside(keypoints) + self._warp(prepared, ball.inside(keypoints))[..., :3]
        wrong = (warped - ball.inside(self.anchors_head.mean)) * ball.radius
        return {"correction": correction.abs().mean(), "refer": wrong.square().mean()}

    def _parts(self, prepared: PreparedImFace, points: Tensor) -> tuple[Tensor, Tensor]:
        """Distances and their corrections (B, P), model units, at (B, P, 3)."""
        ball = self.ball
        x = ball.inside(points)
        moved = self._warp(prepared, x)
        correction = moved[..., 3]
        mean = ball.inside(self.anchors_head.mean)[None]
        distance = self.template(x + moved[..., :3], mean, None)[..., 0] + correction
        return distance * ball.radius, correction * ball.radius

    def _warp(self, prepared: PreparedImFace, x: Tensor) -> Tensor:
        moved: Tensor = self.warp(x, self.ball.inside(prepared.anchors), prepared.hidden)
        return moved


class ImFaceExpression(MotionField):
    """Expression part: moves posed points to where they are in the person's canonical face.

    The expression's code alone makes the networks' weights; the person is seen by the keypoints.

    Args:
        config: sizes.
        motion: direction backward, entries of the expression code.
        mean: (5, 3) mean keypoints, model units, head frame.
        generator: where the initial weights are drawn from.
    """

    def __init__(
        self, config: ImFaceConfig, motion: DeformationConfig, mean: Tensor, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.config = motion
        self.keypoints_head = AnchorsHead(mean, 2 * config.code_dim, _KEYPOINT_HIDDEN, generator)
        self.warp = MiniNetworks(config, len(KEYPOINTS), 3, config.code_dim, generator, _LAST_GAIN)
        self._sizes = config

    def prepare(self, z_id: Tensor, anchors: Tensor, z_ex: Tensor, noise: Tensor | None = None) -> PreparedImFace:
        """Posed keypoints and hyper network's hidden layer; neither ``anchors`` nor ``noise`` has a part in it."""
        return PreparedImFace(self.keypoints_head(torch.cat([z_id, z_ex], 1)), self.warp.hidden(z_ex))

    def displacement(self, prepared: PreparedImFace, points: Tensor, index: Tensor | None = None) -> Tensor:
        """As in ``MotionField``; each scan has equally many points, one scan's after the other's."""
        prepared, lines = in_lines(prepared, points, index)
        ball = FaceBall(self._sizes, self.keypoints_head.mean)
        moved: Tensor = self.warp(ball.inside(lines), ball.inside(prepared.anchors), prepared.hidden)
        return moved.flatten(0, 1) * ball.radius

    def canonical(self, prepared: PreparedImFace, posed: Tensor, index: Tensor | None = None) -> Tensor:
        """Where posed points come from (N, 3)."""
        return posed + self.displacement(prepared, posed, index)

    def displacement_and_jacobian(
        self, prepared: PreparedImFace, points: Tensor, index: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """As in ``MotionField``."""
        with torch.enable_grad():
            at = points.detach().requires_grad_(True)
            moved = self.displacement(prepared, at, index)
            rows = [torch.autograd.grad(moved[:, i].sum(), at, retain_graph=i < 2)[0] for i in range(3)]
        return moved.detach(), torch.stack(rows, 1)

    def own_losses(self, prepared: PreparedImFace, keypoints: Tensor | None) -> dict[str, Tensor]:
        """``keypoints``: squared error of the predicted posed ones, model units."""
        return {} if keypoints is None else {"keypoints": (prepared.anchors - keypoints).square().mean()}


def in_lines(prepared: PreparedImFace, points: Tensor, index: Tensor | None) -> tuple[PreparedImFace, Tensor]:
    """Points (N, 3) as (B, P, 3), a head a line.

    Raises:
        ValueError: the heads have not equally many points each, one head's after the other's.
    """
    if index is None:
        return PreparedImFace(prepared.anchors[:1], prepared.hidden[:1]), points[None]
    heads = len(prepared.hidden)
    if len(index) % heads or not torch.equal(index, _ordered(index, heads)):
        raise ValueError(f"{len(index)} points of {heads} heads are not given head by head, equally many each")
    return prepared, points.reshape(heads, -1, points.shape[1])


def _ordered(index: Tensor, heads: int) -> Tensor:
    return torch.arange(heads, device=index.device).repeat_interleave(len(index) // heads)
