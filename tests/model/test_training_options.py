"""What training can do beyond two plain stages: average, validate, end early, go on from a model, join the stages."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from model.averaging import WeightAverage
from model.checkpoint import decode
from model.config import RegionConfig, TrainingConfig, ValidationConfig
from model.grouped_mlp import evaluate_with_gradient
from model.trained_model import WarmStart
from model.training import train
from model.training_data import TrainingData
from model.validation import VALIDATION
from storage.errors import ConfigError
from tests.model.test_identity_field import CONFIGS, a_field
from tests.model.test_training import DIRECTIONS, RADII_MM, Balls, Shifts, a_config


class Others(Balls):
    """A person between the two of ``Balls``, who is not trained on."""

    def __next__(self) -> dict[str, NDArray]:
        batch = super().__next__()
        mean = RADII_MM.mean(0) / RADII_MM
        scaled = {
            name: batch[name] * mean[:, None].astype(np.float32) for name in ("anchors", "surface", "near", "space")
        }
        return {name: values[:1] for name, values in (batch | scaled).items()}


def some_data(validation: bool = False) -> TrainingData:
    anchors = (DIRECTIONS * RADII_MM.mean(0)).astype(np.float32)
    return TrainingData(Balls(), Shifts(), 2, 3, anchors, 3, Others() if validation else None, int(validation))


def a_config_with(steps1: int, steps2: int, **changes: Any) -> TrainingConfig:
    return a_config(steps1, steps2).model_copy(update=changes)


def test_average_follows_its_formula_and_settles() -> None:
    weight = nn.Parameter(torch.tensor([0.0]))
    average = WeightAverage([weight], 0.5)
    expected = 0.0
    for step in range(12):
        weight.data.fill_(float(step))
        average.update(step)
        decay = min(0.5, (1 + step) / (10 + step))
        expected = decay * expected + (1 - decay) * step
    with average.applied():
        assert float(weight) == pytest.approx(expected)
    assert float(weight) == 11
    average.settle()
    assert float(weight) == pytest.approx(expected)
    last = WeightAverage([weight], 0.0)
    weight.data.fill_(3.0)
    last.update(0)
    last.settle()
    assert float(weight) == 3.0


def test_validation_sees_people_who_are_not_trained_on_come_nearer() -> None:
    config = a_config_with(60, 0, validation=ValidationConfig(every=20, fit_steps=10, code_learning_rate=2e-2))
    model = train(config, some_data(validation=True), lambda name, data: None)
    looks = [line[VALIDATION] for line in model.curve if VALIDATION in line]
    assert len(looks) == 3
    assert looks[-1] < 0.7 * looks[0]


def test_stage_one_ends_early_and_returns_to_its_best() -> None:
    validation = ValidationConfig(every=5, fit_steps=1, patience=2, least_gain=0.999)
    config = a_config_with(60, 5, validation=validation, average_decay=0.0, checkpoint_every=5)
    told: list[tuple[str, int, int]] = []
    kept: dict[str, bytes] = {}
    model = train(config, some_data(validation=True), kept.__setitem__, progress=lambda *at: told.append(at))
    assert [at[1] for at in told if at[0] == "stage1"][-1] == 15
    assert told[-1][0] == "stage2"
    best, _ = decode(kept["stage1-0000005.safetensors"])
    assert torch.equal(model.tensors()["identity_codes.codes"], best["identity_codes.codes"])
    assert torch.equal(model.tensors()["identity.biases.0"], best["identity.biases.0"])
    again = train(config, some_data(validation=True), lambda n, d: None, resume=kept["stage1-0000010.safetensors"])
    end = train(config, some_data(validation=True), lambda n, d: None, resume=kept["stage1-0000015.safetensors"])
    for name, tensor in model.tensors().items():
        assert torch.equal(tensor, again.tensors()[name]), name
        assert torch.equal(tensor, end.tensors()[name]), name


def test_joint_training_moves_both_fields_and_resumes() -> None:
    config = a_config_with(25, 0, joint=True)
    kept: dict[str, bytes] = {}
    model = train(config, some_data(), kept.__setitem__)
    again = train(config, some_data(), lambda n, d: None, resume=kept["joint-0000010.safetensors"])
    assert {"surf_sdf", "corresp"} <= set(model.curve[-1])
    assert model.curve[-1]["corresp"] < 0.7 * model.curve[0]["corresp"]
    for name, tensor in model.tensors().items():
        assert torch.equal(tensor, again.tensors()[name]), name


def test_a_warm_start_goes_on_from_the_earlier_model() -> None:
    parent = train(a_config(60, 20), some_data(), lambda name, data: None)
    tensors = parent.tensors()
    codes = parent.identity_codes.codes.detach()
    start = WarmStart(tensors, torch.stack([codes[0], codes.mean(0)]), parent.expression_codes.codes.detach())
    warm = train(a_config(5, 5), some_data(), lambda name, data: None, start=start)
    cold = train(a_config(5, 5), some_data(), lambda name, data: None)
    assert warm.curve[0]["loss"] < 0.5 * cold.curve[0]["loss"]
    wider = a_config(5, 5).field.identity.model_copy(update={"hidden": (16, 20)})
    other = a_config_with(5, 5, field=a_config(5, 5).field.model_copy(update={"identity": wider}))
    with pytest.raises(ConfigError, match="another architecture"):
        train(other, some_data(), lambda name, data: None, start=start)


class Halves(Balls):
    """Surface samples that know on which side of the head they lie."""

    def __next__(self) -> dict[str, NDArray]:
        batch = super().__next__()
        return batch | {"region": (batch["surface"][..., 0] > 0).astype(np.uint8)}


def test_regions_are_learnt_last_and_move_nothing_else() -> None:
    anchors = (DIRECTIONS * RADII_MM.mean(0)).astype(np.float32)
    data = TrainingData(Halves(), None, 2, 0, anchors, 3)
    plain = a_config(5, 0)
    named = plain.field.model_copy(update={"regions": RegionConfig(hidden=(16,))})
    stage3 = plain.stage1.model_copy(update={"steps": 60, "learning_rate": 2e-2})
    kept: dict[str, bytes] = {}
    model = train(plain.model_copy(update={"field": named, "stage3": stage3}), data, kept.__setitem__)
    assert model.curve[-1]["stage"] == 3
    assert model.curve[-1]["region"] < 0.2
    before, _ = decode(kept["stage3-0000010.safetensors"])
    assert torch.equal(before["identity_codes.codes"], model.identity_codes.codes)
    assert not torch.equal(before["regions.biases.0"], model.tensors()["regions.biases.0"])


def test_half_products_are_near_the_full_ones() -> None:
    field, z_id, points, subject = a_field(CONFIGS["silu"])
    field, points = field.float(), points.float()
    results = []
    for half in (False, True):
        rows = field._rows(field.prepare(z_id.float()), points, subject)
        layers = field.prepare(z_id.float()).layers
        value, gradient = evaluate_with_gradient(layers, field.activation, rows.groups, rows.x, rows.line, half)
        wanted = [*field.hidden_weights, *field.input_weights]
        results.append((value, gradient, *torch.autograd.grad(value.square().sum() + gradient.square().sum(), wanted)))
    for full, rough in zip(*results, strict=True):
        assert float((full - rough).norm()) < 0.03 * float(full.norm())
    assert not torch.equal(results[0][0], results[1][0])
