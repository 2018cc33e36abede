"""How well a field takes on people it is not trained on: their codes fitted with frozen networks, then measured."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from model.batch_tensors import BatchTensors
from model.config import TrainingConfig
from model.losses import identity_losses, total
from model.shape_and_motion import ShapeField
from model.training_data import BatchSource
from model.units import to_mm

VALIDATION = "validation_face_median_mm"
"""Name of the measured error in the training curve."""

_CODES = "validation.codes"


class ValidationFit:
    """Codes of subjects that are not trained on, fitted anew at each look from where they stood.

    Args:
        config: of the training; its ``validation`` says how the codes are fitted.
        batches: of the subjects.
        subjects: their number.
        tensors: how batches become tensors.
    """

    def __init__(self, config: TrainingConfig, batches: BatchSource, subjects: int, tensors: BatchTensors) -> None:
        self._batches, self._subjects, self._tensors = batches, subjects, tensors
        self._fit = config.validation
        # distances alone: normals and the eikonal term cost twice as much and say little of a code
        shares = {"surface_gradient_share": 0.0, "near_gradient_share": 0.0, "space_gradient_share": 0.0}
        self._config = config.model_copy(update=shares)
        self._codes: Tensor | None = None

    def face_median_mm(self, field: ShapeField, training_codes: Tensor) -> float:
        """Fit the codes for some steps, then measure how far the subjects' face samples lie from their fields.

        Args:
            field: as it stands.
            training_codes: (S, D), whose mean the codes start from at the first look.
        """
        if self._codes is None:
            self._codes = training_codes.detach().mean(0).repeat(self._subjects, 1)
        codes = self._codes.clone().requires_grad_(True)
        wanted = [p for p in field.parameters() if p.requires_grad]
        for parameter in wanted:
            parameter.requires_grad_(False)
        optimiser = torch.optim.Adam([codes], lr=self._fit.code_learning_rate)
        for _ in range(self._fit.fit_steps):
            batch = next(self._batches)
            z_id = codes[self._tensors.tensor(batch["subject"])]
            prepared = field.prepare(z_id)
            losses = identity_losses(field, prepared, z_id, self._tensors.identity(batch), self._config)
            optimiser.zero_grad(set_to_none=True)
            total(losses, self._config.identity_losses).backward()
            optimiser.step()
        for parameter in wanted:
            parameter.requires_grad_(True)
        self._codes = codes.detach()
        return self._measure(field)

    @torch.no_grad()
    def _measure(self, field: ShapeField) -> float:
        assert self._codes is not None
        batch = next(self._batches)
        prepared = field.prepare(self._codes[self._tensors.tensor(batch["subject"])])
        points = self._tensors.lengths(batch["surface"])
        index = torch.arange(len(points), device=points.device).repeat_interleave(points.shape[1])
        error = np.abs(to_mm(field.sdf(prepared, points.reshape(-1, 3), index)).cpu().numpy())
        seen = (batch["face"] & batch["observed"]).ravel()
        return float(np.median(error[seen] if seen.any() else error))

    def tensors(self) -> dict[str, Tensor]:
        """The codes, for a checkpoint."""
        return {} if self._codes is None else {_CODES: self._codes}

    def state(self) -> dict[str, Any]:
        """Where the batches stand, for a checkpoint."""
        return self._batches.state()

    def restore(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Take up what ``tensors`` and ``state`` gave."""
        if _CODES in tensors:
            self._codes = tensors[_CODES].to(self._tensors.device)
        self._batches.restore(state)
