"""From batches of arrays in mm to tensors in model units on the training's device."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from numpy.typing import NDArray
from torch import Tensor

from model.blend_losses import BlendedMotionsBatch, BlendedShapesBatch
from model.deformation_losses import DeformationSamplesBatch, PosedSamplesBatch
from model.losses import IdentitySamplesBatch
from model.units import to_units


def page_locked(batch: Mapping[str, NDArray]) -> dict[str, NDArray]:
    """A copy of a batch in page-locked memory, which a GPU fetches by itself while the processor goes on.

    Raises:
        RuntimeError: there is no GPU.
    """
    return {name: torch.from_numpy(array).pin_memory().numpy() for name, array in batch.items()}


@dataclass(frozen=True)
class BatchTensors:
    """How batches become tensors.

    Attributes:
        device: where they are to lie.
        guessed_weight: weight of samples whose nearest surface was filled in, not seen.
    """

    device: str
    guessed_weight: float

    def identity(self, batch: Mapping[str, NDArray]) -> IdentitySamplesBatch:
        """A batch for the identity field."""
        return IdentitySamplesBatch(
            anchors=self.lengths(batch["anchors"]),
            surface=self.lengths(batch["surface"]),
            normal=self.tensor(batch["normal"]),
            surface_weight=self._confidence(batch["observed"]),
            face=self.tensor(batch["face"]),
            near=self.lengths(batch["near"]),
            near_sdf=self.lengths(batch["near_sdf"]),
            near_weight=self._confidence(batch["near_observed"]),
            space=self.lengths(batch["space"]),
            space_sdf=self.lengths(batch["space_sdf"]),
            space_weight=self._confidence(batch["space_observed"]),
        )

    def deformation(self, batch: Mapping[str, NDArray]) -> DeformationSamplesBatch:
        """A batch for the deformation field, with what it has of the posed heads: samples of both kinds, keypoints."""
        samples = None
        if "surface" in batch and "near" in batch:
            samples = PosedSamplesBatch(
                surface=self.lengths(batch["surface"]),
                surface_weight=self._confidence(batch["observed"]),
                near=self.lengths(batch["near"]),
                near_sdf=self.lengths(batch["near_sdf"]),
                near_weight=self._confidence(batch["near_observed"]),
            )
        pairs = self.lengths(batch["canonical"]), self.lengths(batch["posed"]), self.tensor(batch["weight"])
        keypoints = self.lengths(batch["keypoints"]) if "keypoints" in batch else None
        return DeformationSamplesBatch(*pairs, samples, keypoints)

    def blended_shapes(self, batch: Mapping[str, NDArray]) -> BlendedShapesBatch:
        """Blends of people."""
        return BlendedShapesBatch(
            subject=self.tensor(batch["subject"]),
            share=self.tensor(batch["share"]),
            surface=self.lengths(batch["surface"]),
            normal=self.tensor(batch["normal"]),
            weight=self.tensor(batch["weight"]),
            anchors=self.lengths(batch["anchors"]),
        )

    def blended_motions(self, batch: Mapping[str, NDArray]) -> BlendedMotionsBatch:
        """Blends of expressions on blends of people."""
        return BlendedMotionsBatch(
            subject=self.tensor(batch["subject"]),
            share=self.tensor(batch["share"]),
            scan=self.tensor(batch["scan"]),
            expression_share=self.tensor(batch["expression_share"]),
            canonical=self.lengths(batch["canonical"]),
            posed=self.lengths(batch["posed"]),
            weight=self.tensor(batch["weight"]),
        )

    def tensor(self, array: NDArray) -> Tensor:
        """An array as it is. From page-locked memory it is on its way when this returns, see ``page_locked``."""
        return torch.as_tensor(array).to(self.device, non_blocking=True)

    def lengths(self, array_mm: NDArray) -> Tensor:
        """An array in mm, in model units."""
        return to_units(self.tensor(array_mm))

    def _confidence(self, observed: NDArray) -> Tensor:
        seen = self.tensor(observed).float()
        return seen + (1 - seen) * self.guessed_weight
