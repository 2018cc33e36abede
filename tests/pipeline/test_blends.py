"""Batches of blended registrations: what they hold, and that they can be gone on with."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
from numpy.typing import NDArray

from model.config import IdentityConfig
from pipeline.blends import BlendCounts, BlendedMotions, BlendedShapes, RegisteredPeople, _Ground, blend_batches
from pipeline.train_config import TrainConfig
from pipeline.training_scans import training_scans
from registration.mesh import vertex_normals
from storage.errors import ConfigError
from tests.pipeline.test_train import ANCHORS, RADII_MM, sampled_workspace

SIDE = 12
SHIFTS = np.array([[0, 0, 0], [6, 0, 0], [0, 9, 3]], np.float32)
MOTIONS = np.array([[0, 0, 0], [0, -10, 0], [0, 0, 4], [2, 0, 0]], np.float32)


def _people(shifts: NDArray = SHIFTS, plane: tuple[float, ...] = (0, 1, 0, 30)) -> RegisteredPeople:
    """People that are one flat sheet, 110 mm wide, in several places; scans that move all of it."""
    u, v = np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij")
    sheet = np.stack([u.ravel() * 10.0 - 55, v.ravel() * 10.0 - 55, np.zeros(SIDE**2)], 1).astype(np.float32)
    a = (u[:-1, :-1] * SIDE + v[:-1, :-1]).ravel()
    faces = np.concatenate([np.stack([a, a + SIDE, a + SIDE + 1], 1), np.stack([a, a + SIDE + 1, a + 1], 1)])
    doubt = np.zeros((len(shifts), len(sheet)), np.float32)
    doubt[-1] = 0.7
    motion = np.broadcast_to(MOTIONS[:, None], (len(MOTIONS), *sheet.shape)).copy()
    return RegisteredPeople(
        faces=faces,
        anchors=np.array([14, 119, 60, 77]),
        anchor_pairs=1,
        density=np.ones(len(faces)),
        throat_plane=np.array(plane, float),
        canonical_mm=sheet[None] + shifts[:, None],
        doubt=doubt,
        scan=np.arange(len(MOTIONS)),
        motion_mm=motion,
        motion_doubt=np.zeros(motion.shape[:2], np.float32),
    )


FEW = BlendCounts(5, 200, 3)


def _shapes(people: RegisteredPeople, counts: BlendCounts = FEW, seed: int = 0) -> BlendedShapes:
    return BlendedShapes(_Ground.of(people, IdentityConfig()), counts, seed)


def _motions(people: RegisteredPeople, counts: BlendCounts = FEW, seed: int = 0) -> BlendedMotions:
    return BlendedMotions(_Ground.of(people, IdentityConfig()), counts, seed)


def test_blended_shapes_lie_where_their_shares_put_them() -> None:
    batch = _shapes(_people()).batch_at(4)
    assert batch["subject"].shape == (5, 3)
    assert all(sorted(one) == [0, 1, 2] for one in batch["subject"].tolist())
    height = batch["surface"][:, :, 2]  # the third person's share of a place, times its height of 3 mm
    third = np.take_along_axis(batch["share"], (batch["subject"] == 2).argmax(1)[:, None, None], 1)[:, 0, 1:]
    assert (height >= 3 * third.min(1, keepdims=True) - 1e-4).all()
    assert (height <= 3 * third.max(1, keepdims=True) + 1e-4).all()
    assert np.ptp(height, axis=1).max() > 0.5
    signed = (third.min(1) > 0) | (third.max(1) < 0)  # elsewhere corners may have shares of both signs
    np.testing.assert_allclose(batch["weight"][signed], np.exp(-0.7 * np.abs(height / 3))[signed], atol=1e-4)


def test_anchors_are_mixed_by_what_the_global_code_is_mixed_by() -> None:
    people = _people()
    batch = _shapes(people).batch_at(4)
    shift = np.einsum("bm,bmc->bc", batch["share"][:, :, 0], SHIFTS[batch["subject"]])
    expected = people.canonical_mm[0, people.anchors] + shift[:, None]
    np.testing.assert_allclose(batch["anchors"], expected, atol=1e-4)


def test_normals_are_those_of_the_blended_surface() -> None:
    people = _people(SHIFTS * [1, 1, 8])  # 24 mm high: where shares change, the sheet slopes
    shapes = _shapes(people)
    rng = np.random.default_rng([0, 0, 4])
    heads = shapes._heads(rng)
    batch = shapes.batch_at(4)
    whole = np.einsum("nk,bmk->bmn", shapes._ground.listens, heads.share)
    mixed = np.einsum("bmn,bmnc->bnc", whole, people.canonical_mm[heads.subject])
    for one in range(len(mixed)):
        corners = mixed[one][heads.corner[one]]
        true = np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        true /= np.linalg.norm(true, axis=1, keepdims=True)
        assert np.median(np.abs(true[:, 2])) < 0.999
        np.testing.assert_allclose(batch["normal"][one], true, atol=1e-4)


def test_normals_are_smooth_where_people_are_curved() -> None:
    people = _people(SHIFTS * 0)
    bulge = people.canonical_mm.copy()
    bulge[:, :, 2] = -0.01 * (bulge[:, :, 0] ** 2 + bulge[:, :, 1] ** 2)
    shapes = _shapes(replace(people, canonical_mm=bulge))
    batch, heads = shapes.batch_at(0), shapes._heads(np.random.default_rng([0, 0, 0]))
    smooth = np.einsum("bpi,bpic->bpc", heads.bary, vertex_normals(bulge[0], people.faces)[heads.corner])
    smooth /= np.linalg.norm(smooth, axis=2, keepdims=True)
    np.testing.assert_allclose(batch["normal"], smooth, atol=1e-3)


def test_nothing_below_the_throat_is_drawn() -> None:
    batch = _shapes(_people(SHIFTS * 0), BlendCounts(8, 2000, 3)).batch_at(0)
    assert batch["surface"][:, :, 1].min() >= -30
    assert batch["surface"][:, :, 1].max() > 45
    with pytest.raises(ConfigError, match="below the throat plane"):
        _shapes(_people(plane=(0, 1, 0, -100)))


def test_blended_motions_mix_expressions_apart_from_people() -> None:
    batch = _motions(_people()).batch_at(1)
    assert batch["scan"].shape == (5, 3)
    share = batch["expression_share"][:, :, 0]
    np.testing.assert_allclose(share.sum(1), 1, atol=1e-5)
    assert share.min() >= 0
    moved = np.einsum("bq,bqc->bc", share, MOTIONS[batch["scan"]])
    np.testing.assert_allclose(batch["posed"] - batch["canonical"], moved[:, None].repeat(200, 1), atol=1e-4)


@pytest.mark.parametrize("make", [_shapes, _motions])
def test_batches_go_on_from_a_state(make) -> None:
    first = make(_people(), seed=5)
    next(first)
    state = first.state()
    expected = next(first)
    second = make(_people(), seed=5)
    second.restore(state)
    found = next(second)
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)
    first.close()
    second.close()
    with pytest.raises(ConfigError, match="is of other batches"):
        make(_people(), seed=6).restore(state)


@pytest.mark.parametrize("name", [one.name for one in fields(RegisteredPeople)])
def test_a_state_is_of_these_people_alone(name: str) -> None:
    people = _people()
    value = getattr(people, name)
    other = replace(people, **{name: value + 1})
    assert people.digest() == _people().digest()
    assert other.digest() != people.digest()


def test_a_workspaces_registrations_are_read_in_the_order_of_the_codes(tmp_path) -> None:
    workspace = sampled_workspace(tmp_path)
    scans = training_scans(workspace)
    people = RegisteredPeople.read(workspace, scans, 1000)
    expected = np.stack([ANCHORS * RADII_MM[subject] for subject in scans.subjects])
    np.testing.assert_allclose(people.canonical_mm, expected, atol=1e-4)
    moved = [[0, 5, 0] if key.endswith("smile") else [0, 0, 0] for key in scans.scans]
    np.testing.assert_allclose(people.motion_mm, np.array(moved)[:, None].repeat(4, 1), atol=1e-4)
    assert (people.doubt == 0).all()
    few = RegisteredPeople.read(workspace, scans, 2)
    assert few.scan.tolist() == [0, len(scans.scans) - 1]
    np.testing.assert_allclose(few.motion_mm, people.motion_mm[few.scan])


def test_one_person_alone_is_not_blended() -> None:
    with pytest.raises(ConfigError, match="there are no two people"):
        blend_batches(TrainConfig(), _people(SHIFTS[:1]), 0)
