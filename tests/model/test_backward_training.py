"""A backward deformation trained together with the shapes, on pairs and on distances of the posed heads."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from model import HeadModel
from model.bound_fields import BoundFields
from model.config import DeformationConfig, TrainingConfig
from model.deformation_field import DeformationField
from model.deformation_losses import DeformationSamplesBatch, PosedSamplesBatch, backward_losses, forward_losses
from model.head_fields import HeadFields
from model.training import TrainingData, train
from tests.model.test_head_fields import some_fields
from tests.model.test_head_model import a_template
from tests.model.test_training import DIRECTIONS, RADII_MM, SHIFTS_MM, SUBJECT_OF, Balls, Shifts, a_config

STILL = 2
"""A scan that is its subject's canonical one."""


class PosedBalls(Shifts):
    """``Shifts`` with distances of the shifted ellipsoids, the last one staying where it is."""

    def __next__(self) -> dict[str, NDArray]:
        rng = np.random.default_rng([9, self.step])
        batch = super().__next__()
        batch["posed"][STILL] = batch["canonical"][STILL]
        shifts = SHIFTS_MM * (np.arange(3) != STILL)[:, None]
        unit = rng.normal(size=(3, 100, 3))
        unit /= np.linalg.norm(unit, axis=2, keepdims=True)
        radii = RADII_MM[SUBJECT_OF][:, None]
        normal = unit / radii
        normal /= np.linalg.norm(normal, axis=2, keepdims=True)
        offset = rng.normal(size=(3, 100)) * 3
        surface = unit * radii + shifts[:, None]
        yes = np.ones((3, 100), bool)
        floats = {"surface": surface, "near": surface + offset[..., None] * normal, "near_sdf": offset}
        posed = {name: values.astype(np.float32) for name, values in floats.items()}
        return batch | posed | {"observed": yes, "near_observed": yes}


def backward_config(steps: int) -> TrainingConfig:
    plain = a_config(steps, 0)
    told = plain.field.deformation.model_dump() | {"direction": "backward", "hyper_dim": 2}
    field = plain.field.model_copy(update={"deformation": DeformationConfig(**told)})
    return TrainingConfig.model_validate(plain.model_dump() | {"field": field.model_dump(), "joint": True})


def some_data() -> TrainingData:
    return TrainingData(Balls(), PosedBalls(), 2, 3, (DIRECTIONS * RADII_MM.mean(0)).astype(np.float32), 3)


def test_shapes_and_motions_are_learnt_together_and_answer_both_ways() -> None:
    config = backward_config(250)
    kept: dict[str, bytes] = {}
    model = train(config, some_data(), kept.__setitem__)
    told = {"surf_sdf", "corresp", "hyper", "hyper_neutral", "neutral_zero", "posed_surf_sdf", "posed_near_sdf"}
    assert told <= set(model.curve[-1])
    again = train(config, some_data(), lambda n, d: None, resume=kept["joint-0000240.safetensors"])
    for name, tensor in model.tensors().items():
        assert torch.equal(tensor, again.tensors()[name]), name

    box = [[-110, -110, -110], [110, 110, 110]]
    scans = ["a/smile", "b/smile", "b/still"]
    head = HeadModel.of(model, config.field, ["a", "b"], scans, a_template(), box, [0, 1, 0, 200])
    head = HeadModel.from_files(head.to_files())
    points = DIRECTIONS.astype(np.float32) * RADII_MM[1].astype(np.float32)
    posed = head.pose(points, "b", "b/smile")
    assert np.median(posed - points, axis=0) == pytest.approx(SHIFTS_MM[1], abs=1.5)
    assert np.abs(head.unpose(posed, "b", "b/smile") - points).max() < 0.05
    for expression, shift in (("b/smile", SHIFTS_MM[1]), ("b/still", 0 * SHIFTS_MM[1])):
        mesh = head.mesh("b", expression, resolution=64)
        error = np.abs(np.linalg.norm((mesh.vertices - shift) / RADII_MM[1], axis=1) - 1) * 80
        assert np.median(error) < 1.2


def a_batch(fields: HeadFields, posed: torch.Tensor) -> DeformationSamplesBatch:
    """Two scans of ten pairs, the second of which does not move, and five samples of both kinds."""
    canonical = posed + 0.02
    canonical[1] = posed[1]
    ones, five = torch.ones(2, 10), torch.ones(2, 5)
    samples = PosedSamplesBatch(posed[:, :5], five, posed[:, 5:], 0.01 * five, five)
    return DeformationSamplesBatch(canonical, posed, ones, samples)


def test_terms_by_hand() -> None:
    fields, z, e, x = some_fields("backward")
    posed, anywhere = x[:20].reshape(2, 10, 3), x[20:24].reshape(2, 2, 3)
    batch = a_batch(fields, posed)
    z, e = z.expand(2, -1), torch.stack([e[0], -e[0]])
    of_identity = fields.identity.prepare(z)
    prepared = fields.deformation.prepare(z, of_identity.anchors, e)
    config = backward_config(1)
    losses = backward_losses(fields.deformation, prepared, fields.identity, of_identity, e, batch, anywhere, config)
    bound = [fields.bind(z[n : n + 1], e[n : n + 1]) for n in range(2)]
    whole = [fields.deformation.canonical(one.prepared_deformation, posed[n]) for n, one in enumerate(bound)]
    expected = {
        "corresp": torch.stack([(whole[n][:, :3] - batch.canonical[n]).square().sum(1) for n in range(2)]).mean(),
        "neutral_zero": (whole[1][:, :3] - posed[1]).square().sum(1).mean(),
        "hyper": torch.stack([whole[n][:, 3:].abs().sum(1) for n in range(2)]).mean(),
        "hyper_neutral": whole[1][:, 3:].abs().sum(1).mean(),
        "reg_zero": torch.cat([bound[n].displacement(anywhere[n]) for n in range(2)]).square().sum(1).mean(),
        "lat_reg_ex": e[0].square().sum(),
        "posed_surf_sdf": torch.cat([_distance(bound[n], posed[n, :5]) for n in range(2)]).abs().mean(),
        "posed_near_sdf": torch.cat([_distance(bound[n], posed[n, 5:]).clamp(-0.1, 0.1) - 0.01 for n in range(2)])
        .abs()
        .mean(),
    }
    assert losses.keys() == expected.keys()
    for name, value in expected.items():
        assert float(losses[name]) == pytest.approx(float(value), rel=1e-4), name


def _distance(bound: BoundFields, posed: torch.Tensor) -> torch.Tensor:
    return bound.distance(posed, posed)


def test_forward_terms_by_hand() -> None:
    fields, z, e, x = some_fields("forward")
    field: DeformationField = fields.deformation
    canonical, anywhere = x[:20].reshape(1, 20, 3), x[20:].reshape(1, 20, 3)
    prepared = field.prepare(z, fields.identity.prepare(z).anchors, e)
    weight = torch.arange(20.0)[None]
    batch = DeformationSamplesBatch(canonical, canonical + 0.01, weight)
    losses = forward_losses(field, prepared, e, batch, anywhere, backward_config(1).deformation_losses)
    error = (field.displacement(prepared, canonical[0]) - 0.01).square().sum(1)
    assert float(losses["corresp"]) == pytest.approx(float((error * weight[0]).sum() / weight.sum()), rel=1e-4)
    moved = field.displacement(prepared, anywhere[0]).square().sum(1).mean()
    assert float(losses["reg_zero"]) == pytest.approx(float(moved), rel=1e-4)
    assert losses.keys() == {"corresp", "lat_reg_ex", "reg_zero"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"hyper_dim": 2}, "needs direction backward"),
        ({"hyper_dim": 2, "direction": "backward"}, "needs joint training"),
    ],
)
def test_hyper_coordinates_have_their_conditions(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        TrainingConfig.model_validate({"field": {"deformation": changes}})
