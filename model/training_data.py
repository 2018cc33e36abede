"""What a training is given: batches, counts and mean anchors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray


class BatchSource(Protocol):
    """Endless batches of NumPy arrays (mm, head frame) that can be taken up anywhere."""

    def __next__(self) -> Mapping[str, NDArray]:
        """The next batch."""

    def state(self) -> dict[str, Any]:
        """Where the iteration stands, as plain values."""

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state."""


@dataclass(frozen=True)
class TrainingData:
    """What a model is trained on.

    Attributes:
        identity: batches with ``subject``, ``anchors``, ``surface``, ``normal``, ``face``, ``observed``, ``near``,
            ``near_sdf``, ``near_observed``, ``space``, ``space_sdf``, ``space_observed``.
        deformation: batches with ``scan``, ``subject``, ``canonical``, ``posed``, ``weight``; None without expressions.
            A backward deformation learns from ``surface``, ``observed``, ``near``, ``near_sdf`` and ``near_observed``
            of the posed scans too, where they are there.
        subjects: number of subjects, of which ``subject`` is a place.
        scans: number of scans with expressions, of which ``scan`` is a place.
        mean_anchors_mm: (K, 3) head frame, mirrored pairs first, interleaved.
        anchor_pairs: number of mirrored pairs.
        validation: batches like ``identity`` of subjects that are not trained on; None without such.
        validation_subjects: their number, of which ``subject`` in these batches is a place.
        color: batches with ``subject``, ``colored``, ``color``, of those subjects that have colour; None without any.
        shape_blends: batches with ``subject``, ``share``, ``surface``, ``normal``, ``weight``, ``anchors`` of blended
            people, see ``model.blend_losses.BlendedShapesBatch``; None trains without.
        motion_blends: batches with ``subject``, ``share``, ``scan``, ``expression_share``, ``canonical``, ``posed``,
            ``weight`` of blended expressions, see ``model.blend_losses.BlendedMotionsBatch``; None likewise.
    """

    identity: BatchSource
    deformation: BatchSource | None
    subjects: int
    scans: int
    mean_anchors_mm: NDArray[np.floating]
    anchor_pairs: int
    validation: BatchSource | None = None
    validation_subjects: int = 0
    color: BatchSource | None = None
    shape_blends: BatchSource | None = None
    motion_blends: BatchSource | None = None

    def for_shapes(self) -> tuple[BatchSource, ...]:
        """What a step of the identity field takes its batches from."""
        return _present(self.identity, self.shape_blends)

    def for_motions(self) -> tuple[BatchSource, ...]:
        """What a step of the deformation field takes its batches from."""
        return _present(self.deformation, self.motion_blends)

    def for_both(self) -> tuple[BatchSource, ...]:
        """What a joint step takes its batches from."""
        return _present(self.identity, self.deformation, self.shape_blends, self.motion_blends)

    def sources(self) -> dict[str, BatchSource]:
        """All batches of those who are trained on, by name; later stages and figures go on where earlier ones ended."""
        named = {"identity": self.identity, "deformation": self.deformation, "color": self.color}
        named |= {"shape_blends": self.shape_blends, "motion_blends": self.motion_blends}
        return {name: batches for name, batches in named.items() if batches is not None}


def _present(*batches: BatchSource | None) -> tuple[BatchSource, ...]:
    return tuple(source for source in batches if source is not None)
