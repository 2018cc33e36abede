"""What a head model is made of, whatever its networks: a field for the shape, and one for the way to a pose.

The head model's own are ``IdentityField`` and ``DeformationField``; NPM is a setting of both; ImFace has its own two.
Training, fitting, meshing and files know these two kinds alone.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from model.anchors_head import AnchorsHead
from model.codes import IdentityLayout
from model.config import DeformationConfig


class PreparedShape(Protocol):
    """What a shape field needs of B subjects, computed once however many points follow."""

    @property
    def anchors(self) -> Tensor:
        """(B, K, 3) model units, head frame."""
        ...


class ShapeField(nn.Module):
    """Signed distance to heads in their canonical expression.

    Attributes:
        layout: of an identity code.
        anchors_head: predicts the K anchors, or keypoints, of a person.
    """

    half_products = False
    """Whether products between hidden layers are taken in bfloat16: for training on a GPU."""

    layout: IdentityLayout
    anchors_head: AnchorsHead

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.anchors_head.mean.device

    @abstractmethod
    def prepare(self, z_id: Tensor, anchors: Tensor | None = None) -> Any:
        """Give the codes (B, layout.size); ``anchors`` (B, K, 3) are used in place of the predicted ones."""

    @abstractmethod
    def sdf(self, prepared: Any, points: Tensor, subject_index: Tensor | None = None) -> Tensor:
        """Signed distances (N,) at canonical points (N, 3 or more), negative inside; model units.

        ``subject_index`` (N,) int64 is the place of each point's subject among the B; None means the first for all.
        """

    @abstractmethod
    def sdf_and_gradient(
        self, prepared: Any, points: Tensor, subject_index: Tensor | None = None, create_graph: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The same and its gradient (N, 3) by the points; constants unless ``create_graph``."""

    def own_losses(self, prepared: Any, near: Tensor) -> dict[str, Tensor]:
        """Terms that this kind of field alone has, by the name of their weight; ``near`` (B, Q, 3) lie by the heads."""
        return {}


class MotionField(nn.Module):
    """The way between canonical space and an expression's.

    Attributes:
        config: its direction, and the entries of an expression code.
    """

    half_products = False
    config: DeformationConfig

    @abstractmethod
    def prepare(self, z_id: Tensor, anchors: Tensor, z_ex: Tensor, noise: Tensor | None = None) -> Any:
        """Give the codes (B, D) and (B, E) and the identities' anchors (B, K, 3)."""

    @abstractmethod
    def displacement(self, prepared: Any, points: Tensor, index: Tensor | None = None) -> Tensor:
        """Displacements (N, 3) of points (N, 3) of the space that it starts in; ``index`` as in ``ShapeField.sdf``."""

    @abstractmethod
    def canonical(self, prepared: Any, posed: Tensor, index: Tensor | None = None) -> Tensor:
        """Backward: where posed points come from, (N, 3 or more), as the shape field takes them."""

    @abstractmethod
    def displacement_and_jacobian(
        self, prepared: Any, points: Tensor, index: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Displacements (N, 3) and their Jacobians (N, 3, 3) by the points, as constants."""

    def own_losses(self, prepared: Any, keypoints: Tensor | None) -> dict[str, Tensor]:
        """Terms that this kind of field alone has; ``keypoints`` (B, k, 3) are the posed heads', where told."""
        return {}
