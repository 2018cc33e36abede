"""How well a trained model reproduces what it was trained on."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from model.losses import flat
from model.trained_model import TrainedModel
from model.training_data import TrainingData
from model.units import to_mm, to_units
from model.validation import VALIDATION

_BATCHES = 8


@torch.no_grad()
def training_figures(model: TrainedModel, data: TrainingData) -> dict[str, float]:
    """Errors on further batches of the training data.

    Returns:
        ``face_median_mm``, ``face_p95_mm``, ``head_median_mm``, ``head_p95_mm``: the field's value at surface samples,
        of the face and of all that was seen; ``anchors_mean_mm``: predicted to registered anchors; ``posed_mean_mm``:
        moved to true correspondences, in the pose or, where the deformation is backward, in canonical space;
        ``color_mean_error``: of 255, where there is a colour field; ``validation_face_median_mm``: the least on the way
        of subjects set aside; ``subjects`` and ``scans``.
    """
    device = model.identity.device
    face: list[NDArray] = []
    head: list[NDArray] = []
    anchors: list[NDArray] = []
    posed: list[NDArray] = []
    for _ in range(_BATCHES):
        batch = next(data.identity)
        prepared = model.identity.prepare(model.identity_codes(torch.as_tensor(batch["subject"]).to(device)))
        points, index = flat(to_units(torch.as_tensor(batch["surface"]).to(device)))
        sdf = model.identity.sdf(prepared, points, index)
        error = np.abs(to_mm(sdf).cpu().numpy()).reshape(batch["face"].shape)
        face.append(error[batch["face"] & batch["observed"]])
        head.append(error[batch["observed"]])
        away = to_mm(prepared.anchors).cpu().numpy() - batch["anchors"]
        anchors.append(np.linalg.norm(away, axis=2).ravel())
    for _ in range(_BATCHES if data.deformation is not None else 0):
        assert data.deformation is not None
        batch = next(data.deformation)
        z_id = model.identity_codes(torch.as_tensor(batch["subject"]).to(device))
        z_ex = model.expression_codes(torch.as_tensor(batch["scan"]).to(device))
        prepared_pose = model.deformation.prepare(z_id, model.identity.prepare(z_id).anchors, z_ex)
        start, end = batch["canonical"], batch["posed"]
        if model.deformation.config.direction == "backward":
            start, end = end, start
        points, index = flat(to_units(torch.as_tensor(start).to(device)))
        moved = model.deformation.displacement(prepared_pose, points, index)
        goal = (end - start).reshape(-1, 3)
        wrong = np.linalg.norm(to_mm(moved).cpu().numpy() - goal, axis=1)
        posed.append(wrong[batch["weight"].ravel() > 0.5])
    wrong_colors: list[NDArray] = []
    for _ in range(_BATCHES if data.color is not None else 0):
        assert data.color is not None
        batch = next(data.color)
        points, index = flat(to_units(torch.as_tensor(batch["colored"]).to(device)))
        found = 255 * model.colors(torch.as_tensor(batch["subject"]).to(device), points, index).cpu().numpy()
        wrong_colors.append(np.abs(found - batch["color"].reshape(-1, 3)).ravel())
    figures = {"subjects": float(data.subjects), "scans": float(data.scans)}
    for name, parts in (("face", face), ("head", head)):
        values = np.concatenate(parts)
        if len(values):
            figures[f"{name}_median_mm"] = float(np.median(values))
            figures[f"{name}_p95_mm"] = float(np.percentile(values, 95))
    wrong_anchors = np.concatenate(anchors)
    if len(wrong_anchors):
        figures["anchors_mean_mm"] = float(wrong_anchors.mean())
    trusted = np.concatenate(posed) if posed else np.zeros(0)
    if len(trusted):
        figures["posed_mean_mm"] = float(trusted.mean())
    if wrong_colors:
        figures["color_mean_error"] = float(np.concatenate(wrong_colors).mean())
    looks = [line[VALIDATION] for line in model.curve if VALIDATION in line]
    if looks:
        figures[VALIDATION] = min(looks)
    return {name: round(value, 4) for name, value in figures.items()}
