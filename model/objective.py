"""What a step descends: the losses of a batch, by name and summed."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from numpy.typing import NDArray
from torch import Tensor

from model.batch_tensors import BatchTensors
from model.blend_losses import blended_motion_losses, blended_shape_losses
from model.config import TrainingConfig
from model.deformation_losses import backward_losses, forward_losses
from model.losses import Losses, flat, identity_losses, total
from model.processes import Processes
from model.trained_model import TrainedModel

_ANYWHERE_UNITS = 1.25
_ANYWHERE_POINTS = 25

Batch = Mapping[str, NDArray]


class Objective:
    """The losses of both fields for this process's lines of a batch.

    Args:
        config: weights of the losses.
        model: what is trained.
        tensors: how batches become tensors.
        noise: where the noise of a step is drawn from, for all lines of a batch in every process.
        processes: who has the other lines.
    """

    def __init__(
        self,
        config: TrainingConfig,
        model: TrainedModel,
        tensors: BatchTensors,
        noise: torch.Generator,
        processes: Processes,
    ) -> None:
        self.config, self.model, self.tensors = config, model, tensors
        self.noise, self.processes = noise, processes
        self._part = tensors.tensor(model.identity.layout.part)

    def identity(self, batch: Batch, blends: Batch | None = None) -> tuple[Losses, Tensor]:
        """Stage 1, with blends of people where there are some."""
        own, model = self.processes.part(batch), self.model
        z_id = model.identity_codes(self.tensors.tensor(own["subject"]))
        prepared = model.identity.prepare(z_id)
        samples = self.tensors.identity(own)
        losses = identity_losses(model.identity, prepared, z_id, samples, self.config, self.processes.mean)
        if blends is not None:
            losses |= self._blended_shapes(blends)
        return losses, total(losses, self.config.identity_losses)

    def _blended_shapes(self, batch: Batch) -> Losses:
        model = self.model
        blends = self.tensors.blended_shapes(self.processes.part(batch))
        prepared = model.identity.prepare(model.identity_codes.mixed(blends.subject, blends.share, self._part))
        return blended_shape_losses(model.identity, prepared, blends, self.config, self.processes.mean)

    def deformation(self, batch: Batch, blends: Batch | None = None) -> tuple[Losses, Tensor]:
        """Stage 2, with blends of expressions where there are some."""
        own, model = self.processes.part(batch), self.model
        z_id = model.identity_codes(self.tensors.tensor(own["subject"]))
        z_ex = model.expression_codes(self.tensors.tensor(own["scan"]))
        samples, weights = self.tensors.deformation(own), self.config.deformation_losses
        anchors = self._anchors(z_id)
        scans = len(batch["scan"])
        lines = self.processes.lines(scans)
        noise = torch.randn(scans, self.config.field.deformation.compressed_dim, generator=self.noise)[lines]
        anywhere = torch.rand(scans, _ANYWHERE_POINTS, 3, generator=self.noise)[lines]
        anywhere = ((2 * anywhere - 1) * _ANYWHERE_UNITS).to(self.tensors.device)
        prepared = model.deformation.prepare(z_id, anchors, z_ex, noise.to(self.tensors.device))
        shared = self.processes.mean
        if model.deformation.config.direction == "forward":
            losses = forward_losses(model.deformation, prepared, z_ex, samples, anywhere, weights, shared)
        else:
            fields = model.deformation, prepared, model.identity, model.identity.prepare(z_id, anchors)
            losses = backward_losses(*fields, z_ex, samples, anywhere, self.config, shared)
        if blends is not None and weights.blend_corresp:
            losses |= self._blended_motions(blends)
        return losses, total(losses, weights)

    def _anchors(self, z_id: Tensor) -> Tensor:
        """Where the anchors (B, K, 3) of identities (B, D) lie."""
        identity = self.model.identity
        return identity.anchors_head(identity.layout.split(z_id)[0])

    def _blended_motions(self, batch: Batch) -> Losses:
        model = self.model
        blends = self.tensors.blended_motions(self.processes.part(batch))
        z_id = model.identity_codes.mixed(blends.subject, blends.share, self._part)
        whole = self._part.new_zeros(model.expression_codes.codes.shape[1])
        z_ex = model.expression_codes.mixed(blends.scan, blends.expression_share, whole)
        anchors = self._anchors(z_id)
        prepared = model.deformation.prepare(z_id, anchors, z_ex)
        return blended_motion_losses(model.deformation, prepared, blends, self.processes.mean)

    def regions(self, batch: Batch) -> tuple[Losses, Tensor]:
        """Stage 3: cross-entropy of the regions of surface samples."""
        own, model = self.processes.part(batch), self.model
        assert model.regions is not None
        z_global, _ = model.identity.layout.split(model.identity_codes(self.tensors.tensor(own["subject"])))
        points, index = flat(self.tensors.lengths(own["surface"]))
        scores = model.regions(model.regions.prepare([z_global]), points, index)
        told = self.tensors.tensor(own["region"]).long().reshape(-1)
        loss = torch.nn.functional.cross_entropy(scores, told)
        return {"region": loss}, loss

    def colors(self, batch: Batch) -> tuple[Losses, Tensor]:
        """Stage 4: colours of the points that have them."""
        own, model = self.processes.part(batch), self.model
        assert model.appearance_codes is not None
        subject = self.tensors.tensor(own["subject"])
        points, index = flat(self.tensors.lengths(own["colored"]))
        found = model.colors(subject, points, index)
        told = self.tensors.tensor(own["color"]).reshape(-1, 3).float() / 255
        losses = {"color": (found - told).abs().mean()}
        if self.config.color_losses.lat_reg_color:
            losses["lat_reg_color"] = model.appearance_codes(subject).square().sum(1).mean()
        return losses, total(losses, self.config.color_losses)

    def joint(
        self,
        identity: Batch,
        deformation: Batch,
        shape_blends: Batch | None = None,
        motion_blends: Batch | None = None,
    ) -> tuple[Losses, Tensor]:
        """Both in one step; what moves the expressions moves the identities' codes too."""
        shape, of_shape = self.identity(identity, shape_blends)
        motion, of_motion = self.deformation(deformation, motion_blends)
        return shape | motion, of_shape + of_motion
