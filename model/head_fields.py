"""The trained fields with codes bound, as fitting asks for them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from model.deformation_field import DeformationField, PreparedDeformation
from model.identity_field import IdentityField, PreparedIdentity


@dataclass(frozen=True)
class HeadFields:
    """Both trained fields of a head model; satisfies ``model.fitting.Fields``."""

    identity: IdentityField
    deformation: DeformationField

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.identity.reach.device

    def bind(self, identity: Tensor, expression: Tensor) -> BoundHead:
        """Give the codes (B, D) and (B, E): one of each for all points (B = 1), or one for each point."""
        of_identity = self.identity.prepare(identity)
        of_expression = self.deformation.prepare(identity, of_identity.anchors, expression)
        return BoundHead(self, of_identity, of_expression, len(identity))


@dataclass(frozen=True)
class BoundHead:
    """Both fields of one head, or of one head a point; lengths in model units."""

    fields: HeadFields
    prepared_identity: PreparedIdentity
    prepared_deformation: PreparedDeformation
    heads: int

    def sdf(self, points: Tensor) -> Tensor:
        """Signed distances (n,) at canonical points (n, 3)."""
        return self.fields.identity.sdf(self.prepared_identity, points, self._index(points))

    def displacement(self, points: Tensor) -> Tensor:
        """Posed less canonical places (n, 3) of canonical points (n, 3)."""
        return self.fields.deformation.displacement(self.prepared_deformation, points, self._index(points))

    def posed_jacobian(self, points: Tensor) -> Tensor:
        """Jacobian (n, 3, 3) of the posed places with respect to the canonical points, as a constant."""
        _, jacobian = self.fields.deformation.displacement_and_jacobian(
            self.prepared_deformation, points, self._index(points)
        )
        return jacobian + torch.eye(3, dtype=jacobian.dtype, device=jacobian.device)

    def _index(self, points: Tensor) -> Tensor | None:
        return None if self.heads == 1 else torch.arange(len(points), device=points.device)
