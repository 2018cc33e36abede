"""The trained fields with codes bound, as fitting, meshing and posing ask for them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from model.bound_fields import Places
from model.root_finding import Roots, find_canonical, implicit_canonical, safe_inverse
from model.shape_and_motion import MotionField, ShapeField


@dataclass(frozen=True)
class HeadFields:
    """Both trained fields of a head model; satisfies ``model.bound_fields.Fields``."""

    identity: ShapeField
    deformation: MotionField

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return self.identity.device

    def bind(self, identity: Tensor, expression: Tensor) -> BoundForward | BoundBackward:
        """Give the codes (B, D) and (B, E): one of each for all points (B = 1), or one for each point (B = n)."""
        of_identity = self.identity.prepare(identity)
        of_expression = self.deformation.prepare(identity, of_identity.anchors, expression)
        kind = BoundBackward if self.deformation.config.direction == "backward" else BoundForward
        return kind(self.identity, self.deformation, of_identity, of_expression, len(identity))


@dataclass(frozen=True)
class _Bound:
    """Both fields of one head, or of one head a point; satisfies ``model.bound_fields.BoundFields``."""

    identity: ShapeField
    deformation: MotionField
    prepared_identity: Any
    prepared_deformation: Any
    heads: int

    def sdf(self, canonical: Tensor) -> Tensor:
        """Signed distances (n,) at canonical points (n, 3), or (n, 3 + hyper_dim)."""
        return self.identity.sdf(self.prepared_identity, canonical, self._index(canonical))

    def displacement(self, points: Tensor) -> Tensor:
        """Displacements (n, 3) of points (n, 3) of the space that the deformation starts in."""
        return self.deformation.displacement(self.prepared_deformation, points, self._index(points))

    def jacobian(self, points: Tensor) -> Tensor:
        """Jacobian (n, 3, 3) of the displaced points with respect to the points, as a constant."""
        _, jacobian = self.deformation.displacement_and_jacobian(self.prepared_deformation, points, self._index(points))
        return jacobian + torch.eye(3, dtype=jacobian.dtype, device=jacobian.device)

    def _source(self, displaced: Tensor, start: Tensor | None) -> Places:
        roots: Roots = find_canonical(self.displacement, displaced, start, jacobian=self.jacobian)
        return Places(roots.canonical, roots.converged)

    def _displaced(self, points: Tensor) -> Places:
        with torch.no_grad():
            moved = points + self.displacement(points)
        return Places(moved, torch.ones(len(points), dtype=torch.bool, device=points.device))

    def _index(self, points: Tensor) -> Tensor | None:
        return None if self.heads == 1 else torch.arange(len(points), device=points.device)


class BoundForward(_Bound):
    """Posed places are the network's answer, canonical ones its roots (paper, section 3.2)."""

    def canonical(self, posed: Tensor, start: Tensor | None = None) -> Places:
        """Where posed points (n, 3) come from, found from ``start`` or from the points themselves."""
        return self._source(posed, start)

    def posed(self, canonical: Tensor) -> Places:
        """Where canonical points (n, 3) go."""
        return self._displaced(canonical)

    def distance(self, posed: Tensor, canonical: Tensor) -> Tensor:
        """Signed distances (n,) at posed points that come from ``canonical``; the implicit function theorem carries
        gradients through the root.
        """
        if not torch.is_grad_enabled():
            return self.sdf(canonical)
        inverse = safe_inverse(self.jacobian(canonical))
        reposed = canonical + self.displacement(canonical)
        return self.sdf(implicit_canonical(canonical, reposed, posed, inverse))


class BoundBackward(_Bound):
    """Canonical places, hyper coordinates too, are the network's answer, posed ones its roots (MonoNPHM)."""

    def canonical(self, posed: Tensor, start: Tensor | None = None) -> Places:
        """Where posed points (n, 3) come from; needs no start."""
        return self._displaced(posed)

    def posed(self, canonical: Tensor) -> Places:
        """Where canonical points (n, 3) go, found from the points themselves."""
        return self._source(canonical, None)

    def distance(self, posed: Tensor, canonical: Tensor) -> Tensor:
        """Signed distances (n,) at posed points; ``canonical`` is not asked: the network answers."""
        return self.sdf(self.deformation.canonical(self.prepared_deformation, posed, self._index(posed)))
