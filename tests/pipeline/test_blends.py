"""Batches of blended registrations: what they hold, and that they can be gone on with."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from model.config import IdentityConfig
from model.training_data import TrainingData
from pipeline.blends import BlendedMotions, BlendedShapes, RegisteredPeople, with_blends
from pipeline.sample_config import DeformationSampleConfig
from pipeline.train import training_scans
from pipeline.train_config import TrainConfig
from registration.mesh import Mesh
from registration.template import Template
from storage.errors import ConfigError
from tests.pipeline.test_train import ANCHORS, RADII_MM, sampled_workspace

SIDE = 12
SHIFTS = np.array([[0, 0, 0], [6, 0, 0], [0, 9, 3]], np.float32)
MOTIONS = np.array([[0, 0, 0], [0, -10, 0], [0, 0, 4], [2, 0, 0]], np.float32)


def _sheet() -> Template:
    """A flat sheet 110 mm wide that looks along +z, with four anchors."""
    u, v = np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij")
    vertices = np.stack([u.ravel() * 10.0 - 55, v.ravel() * 10.0 - 55, np.zeros(SIDE**2)], 1)
    corner = (u[:-1, :-1] * SIDE + v[:-1, :-1]).ravel()
    a, b, c, d = corner, corner + SIDE, corner + SIDE + 1, corner + 1
    faces = np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)])
    n, none = len(vertices), np.zeros((0, len(vertices), 3), np.float32)
    return Template(
        "sheet",
        Mesh.of(vertices, faces),
        np.zeros(68, np.int32),
        np.array([14, 119, 60, 77], np.int32),
        1,
        np.zeros(n, np.uint8),
        np.ones(n, bool),
        np.arange(n, dtype=np.int32),
        np.arange(3, dtype=np.int32),
        none,
        none,
    )


def _people(shifts: NDArray = SHIFTS, plane: tuple[float, ...] = (0, 1, 0, 30)) -> RegisteredPeople:
    """People that are one sheet in several places, and scans that move all of it."""
    template = _sheet()
    base = template.mesh.vertices.astype(np.float32)
    doubt = np.zeros((len(shifts), len(base)), np.float32)
    doubt[-1] = 0.7
    motion = np.broadcast_to(MOTIONS[:, None], (len(MOTIONS), *base.shape)).copy()
    return RegisteredPeople(
        template,
        base[None] + shifts[:, None],
        doubt,
        np.arange(len(MOTIONS)),
        motion,
        np.zeros(motion.shape[:2], np.float32),
        np.array(plane, float),
        np.ones(len(template.mesh.faces)),
    )


def test_blended_shapes_lie_where_their_shares_put_them() -> None:
    people = _people()
    batch = BlendedShapes(people, IdentityConfig(), blends=5, points=200, parents=3).batch_at(4)
    assert batch["subject"].shape == (5, 3)
    assert all(sorted(one) == [0, 1, 2] for one in batch["subject"].tolist())
    shifts = SHIFTS[batch["subject"]]
    anchors = people.template.mesh.vertices[people.template.anchors]
    expected = anchors + np.einsum("bnk,bnc->bkc", batch["share"][:, :, 1:-1], shifts)
    np.testing.assert_allclose(batch["anchors"], expected, atol=1e-4)
    np.testing.assert_allclose(batch["normal"], np.broadcast_to([0, 0, 1], batch["normal"].shape), atol=1e-6)
    height = batch["surface"][:, :, 2]  # the third person's share of a place, times its height of 3 mm
    third = np.take_along_axis(batch["share"], (batch["subject"] == 2).argmax(1)[:, None, None], 1)[:, 0, 1:]
    assert (height >= 3 * third.min(1, keepdims=True) - 1e-4).all()
    assert (height <= 3 * third.max(1, keepdims=True) + 1e-4).all()
    np.testing.assert_allclose(batch["weight"], np.exp(-0.7 * np.abs(height / 3)), atol=1e-4)


def test_nothing_below_the_throat_is_drawn() -> None:
    people = _people(SHIFTS * 0)
    batch = BlendedShapes(people, IdentityConfig(), points=2000).batch_at(0)
    assert batch["surface"][:, :, 1].min() >= -30
    assert batch["surface"][:, :, 1].max() > 45
    with pytest.raises(ConfigError, match="below the throat plane"):
        BlendedShapes(_people(plane=(0, 1, 0, -100)), IdentityConfig())


def test_blended_motions_mix_expressions_apart_from_people() -> None:
    batch = BlendedMotions(_people(), IdentityConfig(), blends=6, points=50, parents=3).batch_at(1)
    assert batch["scan"].shape == (6, 3)
    share = batch["expression_share"]
    np.testing.assert_allclose(share.sum(1), 1, atol=1e-5)
    moved = np.einsum("bmk,bmc->bc", share, MOTIONS[batch["scan"]])
    np.testing.assert_allclose(batch["posed"] - batch["canonical"], moved[:, None].repeat(50, 1), atol=1e-4)


@pytest.mark.parametrize("kind", [BlendedShapes, BlendedMotions])
def test_batches_go_on_from_a_state(kind: type[BlendedShapes | BlendedMotions]) -> None:
    def batches(seed: int) -> BlendedShapes | BlendedMotions:
        return kind(_people(), IdentityConfig(), 2, 20, 3, seed)

    first = batches(5)
    next(first)
    state = first.state()
    expected = next(first)
    second = batches(5)
    second.restore(state)
    found = next(second)
    assert all(found[name].tobytes() == expected[name].tobytes() for name in expected)
    with pytest.raises(ConfigError, match="is of other blends"):
        batches(6).restore(state)


def test_a_workspaces_registrations_are_read_in_the_order_of_the_codes(tmp_path) -> None:
    workspace = sampled_workspace(tmp_path)
    scans = training_scans(workspace)
    people = RegisteredPeople.read(workspace, scans, DeformationSampleConfig())
    expected = np.stack([ANCHORS * RADII_MM[subject] for subject in scans.subjects])
    np.testing.assert_allclose(people.canonical, expected, atol=1e-4)
    moved = [[0, 5, 0] if key.endswith("smile") else [0, 0, 0] for key in scans.scans]
    np.testing.assert_allclose(people.motion, np.array(moved)[:, None].repeat(4, 1), atol=1e-4)
    assert (people.doubt == 0).all()


def test_one_person_alone_is_not_blended() -> None:
    data = TrainingData(None, None, 1, 0, np.zeros((4, 3)), 1)  # type: ignore[arg-type]
    assert with_blends(data, _people(SHIFTS[:1]), TrainConfig(), 0) is data
    both = with_blends(data, _people(), TrainConfig(), 0)
    assert both.shape_blends is not None
    assert both.motion_blends is None  # no expressions are trained
