"""What fitting, meshing and posing need of a head model: its two spaces, and the way from each to the other.

A forward deformation (NPHM) knows where a canonical point goes, a backward one (MonoNPHM) where a posed point comes
from. One way is then a network's answer, the other a root of it. Who asks need not know which.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


@dataclass(frozen=True)
class Places:
    """Where points of one space lie in the other, as constants.

    Attributes:
        place: (n, 3) model units; of a point without a root the nearest that was found.
        found: (n,) bool; the others' places mean little and belong in no loss.
    """

    place: Tensor
    found: Tensor


class BoundFields(Protocol):
    """The fields with their codes given. All lengths in model units, float32."""

    def canonical(self, posed: Tensor, start: Tensor | None = None) -> Places:
        """Where posed points (n, 3) come from.

        Args:
            posed: (n, 3).
            start: (n, 3) a first guess, such as an earlier answer.
        """
        ...

    def posed(self, canonical: Tensor) -> Places:
        """Where canonical points (n, 3) go."""
        ...

    def distance(self, posed: Tensor, canonical: Tensor) -> Tensor:
        """Signed distances (n,) at posed points of which ``canonical`` told where they come from.

        Differentiable with respect to the posed points and the codes.
        """
        ...


class Fields(Protocol):
    """A head model whose codes are yet to be given."""

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        ...

    def bind(self, identity: Tensor, expression: Tensor) -> BoundFields:
        """Give the codes (B, D) and (B, E): one of each for all points (B = 1), or one for each point (B = n)."""
        ...
