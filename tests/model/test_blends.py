"""Blends of people: shares, mixed codes, losses, and what they teach a field."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.batch_tensors import BatchTensors
from model.blend_losses import BlendedMotionsBatch, blended_motion_losses, blended_shape_losses
from model.blend_shares import draw_expression_shares, draw_shares, part_correlation, part_root, part_weights
from model.codes import CodeBook, IdentityLayout
from model.config import DeformationConfig, IdentityConfig
from model.deformation_field import DeformationField
from model.training import train
from model.training_data import TrainingData
from model.units import to_mm, to_units
from storage.errors import ConfigError
from tests.model.test_training import DIRECTIONS, RADII_MM, SHIFTS_MM, SUBJECT_OF, Balls, a_config, some_data

ANCHORS_MM = DIRECTIONS * 75
PARTS = len(DIRECTIONS) + 2


def test_neighbouring_parts_vary_alike() -> None:
    correlation = part_correlation(ANCHORS_MM)
    assert correlation.shape == (PARTS, PARTS)
    np.testing.assert_allclose(np.diag(correlation), 1)
    assert np.linalg.eigvalsh(correlation).min() > -1e-9
    left, right, above_left = 1, 2, 3
    assert correlation[left, above_left] > correlation[left, right] > 0.4
    assert correlation[0, -1] == pytest.approx(1)  # what no anchor has goes with the whole head


def test_blends_vary_as_people_do() -> None:
    share = draw_shares(np.random.default_rng(0), part_root(ANCHORS_MM), 4000, 5)
    np.testing.assert_allclose(share.sum(1), 1, atol=1e-5)
    np.testing.assert_allclose(((share - 0.2) ** 2).sum(1).mean(0), 1, rtol=0.1)


def test_expressions_are_never_undone() -> None:
    share = draw_expression_shares(np.random.default_rng(0), 1000, 5)
    assert share.min() >= 0
    np.testing.assert_allclose(share.sum(1), 1, atol=1e-5)
    assert share.max(1).mean() > 0.4  # some are nearly one of them


def test_places_listen_to_the_nearest_anchor_and_far_ones_to_the_background() -> None:
    places = np.concatenate([ANCHORS_MM, [[0, -500, 0]]])
    weight = part_weights(places, ANCHORS_MM, 3, IdentityConfig())
    np.testing.assert_allclose(weight.sum(1), 1, atol=1e-6)
    assert (weight[:-1, 1:-1].argmax(1) == np.arange(len(ANCHORS_MM))).all()
    assert weight[-1, -1] == 1
    assert (weight[:, 0] == 0).all()


def test_codes_are_mixed_part_by_part() -> None:
    layout = IdentityLayout(global_dim=2, local_dim=3, anchors=1, pairs=0)
    book = CodeBook(3, layout.size, 1.0, torch.Generator().manual_seed(0))
    share = torch.tensor([[[1.0, 0.0, 0.5], [0.0, 1.0, 0.5]]])
    mixed = book.mixed(torch.tensor([[2, 0]]), share, torch.as_tensor(layout.part))[0]
    first, second = book.codes[2], book.codes[0]
    assert torch.equal(mixed[:2], first[:2])
    assert torch.equal(mixed[2:5], second[2:5])
    torch.testing.assert_close(mixed[5:], (first + second)[5:] / 2)
    mixed.sum().backward()
    assert book.codes.grad is not None
    assert sorted(book.codes.grad.coalesce().indices()[0].tolist()) == [0, 2]


@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_a_field_that_moves_nothing_is_off_by_the_motion(direction: str) -> None:
    config = DeformationConfig.model_validate({"direction": direction, "hidden": [8], "skip_layer": None})
    field = DeformationField(config, 5, 2, torch.Generator().manual_seed(0))
    with torch.no_grad():
        field.hidden_weights[-1].zero_()
    prepared = field.prepare(torch.zeros(2, 5), torch.zeros(2, 2, 3), torch.zeros(2, config.expression_dim))
    start = torch.rand(2, 6, 3)
    motion = torch.tensor([0.3, 0.0, 0.4]).expand(2, 6, 3)
    weight = torch.tensor([[1.0] * 6, [0.0] * 6])
    none = torch.zeros(2, 1, dtype=torch.int64)
    batch = BlendedMotionsBatch(none, torch.ones(2, 1, 4), none, torch.ones(2, 1, 1), start, start + motion, weight)
    losses = blended_motion_losses(field, prepared, batch)
    assert list(losses) == ["blend_corresp"]
    assert float(losses["blend_corresp"].detach()) == pytest.approx(0.25)


class BlendedBalls(Balls):
    """Blends of the two ellipsoids, all parts alike: ellipsoids again, whose radii are mixed."""

    def __next__(self) -> dict[str, NDArray]:
        rng = np.random.default_rng([9, self.step])
        self.step += 1
        first = rng.uniform(-0.2, 1.2, (4, 1))
        share = np.concatenate([first, 1 - first], 1)
        radii = share @ RADII_MM
        unit = rng.normal(size=(4, 100, 3))
        unit /= np.linalg.norm(unit, axis=2, keepdims=True)
        normal = unit / radii[:, None]
        normal /= np.linalg.norm(normal, axis=2, keepdims=True)
        lengths = {"surface": unit * radii[:, None], "normal": normal, "anchors": DIRECTIONS * radii[:, None]}
        batch = lengths | {"share": share[:, :, None].repeat(PARTS, 2), "weight": np.ones((4, 100))}
        return {name: array.astype(np.float32) for name, array in batch.items()} | {
            "subject": np.tile(np.arange(2), (4, 1))
        }


class BlendedShifts(Balls):
    """Blends of the three expressions on the second ellipsoid."""

    def __next__(self) -> dict[str, NDArray]:
        rng = np.random.default_rng([10, self.step])
        self.step += 1
        share = rng.dirichlet(np.ones(3), 4).astype(np.float32)
        canonical = rng.uniform(-90, 90, (4, 50, 3)).astype(np.float32)
        return {
            "subject": np.tile(np.array([1]), (4, 1)),
            "share": np.ones((4, 1, PARTS), np.float32),
            "scan": np.tile(np.arange(3), (4, 1)),
            "expression_share": share[:, :, None],
            "canonical": canonical,
            "posed": canonical + (share @ SHIFTS_MM.astype(np.float32))[:, None],
            "weight": np.ones((4, 50), np.float32),
        }


@pytest.mark.parametrize("joint", [False, True])
def test_blends_teach_what_lies_between_people(joint: bool) -> None:
    config = a_config(250, 150).model_copy(update={"joint": joint})
    kinds = {"shape_blends": BlendedBalls(), "motion_blends": BlendedShifts()}
    errors = []
    for data in (some_data(), replace(some_data(), **kinds)):
        model = train(config, data, lambda name, tensors: None)
        middle = model.identity_codes.codes.detach().mean(0, keepdim=True)
        unit = np.random.default_rng(0).normal(size=(500, 3))
        unit /= np.linalg.norm(unit, axis=1, keepdims=True)
        points = torch.as_tensor(to_units((unit * RADII_MM.mean(0)).astype(np.float32)))
        prepared = model.identity.prepare(middle)
        distance = to_mm(model.identity.sdf(prepared, points).detach()).abs().mean()
        z_ex = model.expression_codes.codes.detach().mean(0, keepdim=True)
        z_id = model.identity_codes.codes.detach()[SUBJECT_OF[1:2]]
        motion = model.deformation.displacement(
            model.deformation.prepare(z_id, model.identity.prepare(z_id).anchors, z_ex), points
        ).detach()
        wrong = to_mm(motion) - torch.as_tensor(SHIFTS_MM.mean(0), dtype=torch.float32)
        errors.append((float(distance), float(wrong.norm(dim=1).mean())))
    (without, still), (between, moved) = errors
    assert between < 0.6 * without
    assert moved < 0.6 * still


def test_a_training_with_blends_goes_on_in_the_same_bits() -> None:
    def data() -> TrainingData:
        return replace(some_data(), shape_blends=BlendedBalls(), motion_blends=BlendedShifts())

    kept: dict[str, bytes] = {}
    whole = train(a_config(20, 20), data(), kept.__setitem__)
    for name in ("stage1-0000010", "stage2-0000010"):
        found = train(a_config(20, 20), data(), lambda *at: None, resume=kept[f"{name}.safetensors"])
        assert all(torch.equal(tensor, whole.tensors()[one]) for one, tensor in found.tensors().items())
    with pytest.raises(ConfigError, match="checkpoint is of another training"):
        train(a_config(20, 20), some_data(), lambda *at: None, resume=kept["stage1-0000010.safetensors"])


def test_terms_without_weight_are_left_out() -> None:
    config = a_config(3, 0)
    model = train(config, replace(some_data(), deformation=None), lambda name, tensors: None)
    batch = BatchTensors("cpu", 1.0).blended_shapes(next(BlendedBalls()))
    part = torch.as_tensor(model.identity.layout.part)
    prepared = model.identity.prepare(model.identity_codes.mixed(batch.subject, batch.share, part))
    every = blended_shape_losses(model.identity, prepared, batch, config)
    assert sorted(every) == ["blend_anchors", "blend_normals", "blend_sdf"]
    weights = config.identity_losses.model_copy(update={"blend_normals": 0.0, "blend_anchors": 0.0})
    fewer = blended_shape_losses(
        model.identity, prepared, batch, config.model_copy(update={"identity_losses": weights})
    )
    assert list(fewer) == ["blend_sdf"]
    torch.testing.assert_close(fewer["blend_sdf"], every["blend_sdf"])
