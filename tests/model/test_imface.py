"""ImFace's parts agree with a plain reading of them, and it is learnt, kept and fitted as our own head is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.baseline_config import ImFaceTraining, NpmTraining
from model.baselines import baseline
from model.config import DeformationConfig, ImFaceConfig, StageConfig, TrainingConfig
from model.fit_config import FitConfig
from model.head_fields import HeadFields
from model.head_model import HeadModel
from model.imface import FaceBatches
from model.imface_fields import ImFaceExpression, ImFaceShape, in_lines
from model.losses import flat
from model.mini_networks import MiniNetworks
from model.observation import Observation
from model.training import train
from tests.model.test_head_model import a_template
from tests.model.test_training import RADII_MM, SHIFTS_MM, SUBJECT_OF, Balls, Shifts, some_data

SIZES = ImFaceConfig(code_dim=6, width=16, layers=2, hyper_hidden=8, fusion_hidden=16, frequency=10.0)
PLACES = np.array([[-0.4, 0.4, 0.8], [0.4, 0.4, 0.8], [0, 0, 1], [-0.3, -0.5, 0.8], [0.3, -0.5, 0.8]])


class _Balls(Balls):
    """The ellipsoids with five keypoints for anchors."""

    def __next__(self) -> dict[str, NDArray]:
        return super().__next__() | {"anchors": (PLACES * RADII_MM[:, None]).astype(np.float32)}


class _Shifts(Shifts):
    def __next__(self) -> dict[str, NDArray]:
        keypoints = PLACES * RADII_MM[SUBJECT_OF][:, None] + SHIFTS_MM[:, None]
        return super().__next__() | {"keypoints": keypoints.astype(np.float32)}


def _fields(sizes: ImFaceConfig = SIZES) -> tuple[ImFaceShape, ImFaceExpression]:
    generator = torch.Generator().manual_seed(1)
    mean = torch.tensor(PLACES * 0.3, dtype=torch.float32)
    motion = DeformationConfig(direction="backward", expression_dim=sizes.code_dim, compressed_dim=1)
    return ImFaceShape(sizes, mean, generator), ImFaceExpression(sizes, motion, mean, generator)


def test_it_has_its_authors_sizes() -> None:
    generator = torch.Generator().manual_seed(0)
    part = MiniNetworks(ImFaceConfig(), 5, 4, 128, generator)
    own = 5 * (4 * 128 + 2 * 129 * 128 + 129 * 4)
    assert sum(p.numel() for p in part.weights) + sum(p.numel() for p in part.biases) == own
    assert sum(p.numel() for p in part.tables) == 128 * own
    assert ImFaceShape(ImFaceConfig(), torch.zeros(5, 3), generator).layout.size == 128


def test_each_head_has_its_own_weights_however_the_points_come() -> None:
    generator = torch.Generator().manual_seed(2)
    part = MiniNetworks(SIZES, 5, 4, 6, generator).double()
    points, keypoints = torch.randn(3, 4, 3, dtype=torch.float64), torch.randn(3, 5, 3, dtype=torch.float64)
    hidden = part.hidden(torch.randn(3, 6, dtype=torch.float64))
    with torch.no_grad():
        together = part(points, keypoints, hidden)
        one_each = part(points[:, :1], keypoints, hidden)
        plain = torch.stack(
            [
                sum(
                    torch.softmax(_logits(part, points[b, p], keypoints[b]), 0)[k]
                    * _network(part, points[b, p] - keypoints[b, k], hidden[b], k)
                    for k in range(5)
                )
                for b in range(3)
                for p in range(4)
            ]
        ).reshape(3, 4, 4)
    torch.testing.assert_close(together, plain)
    torch.testing.assert_close(one_each, plain[:, :1])


def _logits(part: MiniNetworks, point: torch.Tensor, keypoints: torch.Tensor) -> torch.Tensor:
    local = (point - keypoints).flatten()
    return torch.nn.functional.silu(local @ part.fusion_in + part.fusion_bias) @ part.fusion_out


def _network(part: MiniNetworks, local: torch.Tensor, hidden: torch.Tensor, k: int) -> torch.Tensor:
    x = local
    for depth, (weight, bias, table) in enumerate(zip(part.weights, part.biases, part.tables, strict=True)):
        own = torch.einsum("h,hio->io", hidden, table[:, k])
        x = x @ (weight[k] + own[:-1]) + bias[k, 0] + own[-1]
        x = torch.sin(SIZES.frequency * x) if depth < len(part.weights) - 1 else x
    return x


def test_the_fits_gradient_is_that_of_finite_differences() -> None:
    shape, motion = (field.double() for field in _fields())
    fields = HeadFields(shape, motion)
    generator = torch.Generator().manual_seed(3)
    points = torch.randn(7, 3, dtype=torch.float64, generator=generator) * 0.2 + torch.tensor([0.0, 0, 0.2])
    z, e = (torch.randn(1, 6, dtype=torch.float64, generator=generator) for _ in range(2))
    each = [code.expand(7, -1).clone().requires_grad_(True) for code in (z, e)]
    observed = points.clone().requires_grad_(True)
    value = fields.bind(*each).distance(observed, points)
    found = torch.autograd.grad(value.sum(), (*each, observed))

    def distances(z: torch.Tensor, e: torch.Tensor, points: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return fields.bind(z, e).distance(points, points)

    torch.testing.assert_close(value.detach(), distances(z, e, points))
    step = 1e-6
    for place, gradient in enumerate(found):
        for entry in range(gradient.shape[1]):
            told = [z, e, points]
            ends = []
            for sign in (1, -1):
                moved = told[place].clone()
                moved[:, entry] += sign * step
                ends.append(distances(*[moved if i == place else one for i, one in enumerate(told)]))
            torch.testing.assert_close(gradient[:, entry], (ends[0] - ends[1]) / (2 * step), rtol=1e-4, atol=1e-7)


def test_points_that_are_not_given_head_by_head_are_refused() -> None:
    shape, _ = _fields()
    prepared = shape.prepare(torch.randn(2, 6))
    points, index = flat(torch.randn(2, 3, 3))
    assert in_lines(prepared, points, index)[1].shape == (2, 3, 3)
    with pytest.raises(ValueError, match="head by head"):
        shape.sdf(prepared, points, index.flip(0))


def test_batches_lose_what_lies_outside_the_ball_and_nothing_else() -> None:
    whole, cut = next(_Balls()), next(FaceBatches(_Balls(), np.array([0.0, 0.0, 60.0]), 70.0))
    for place, column in (("surface", "normal"), ("near", "near_sdf"), ("space", "space_observed")):
        inside = np.linalg.norm(whole[place] - [0, 0, 60], axis=2) <= 70
        count = inside.sum(1).min()
        assert cut[place].shape[1] == count > 5
        for line in range(2):
            np.testing.assert_array_equal(cut[column][line], whole[column][line][inside[line]][:count])


def test_it_learns_is_kept_and_is_fitted_to_points() -> None:
    def stage(steps: int) -> StageConfig:
        return StageConfig(steps=steps, learning_rate=2e-3, code_learning_rate=1e-2, code_init=0.5, warmup_steps=5)

    settings = ImFaceTraining(sizes=SIZES, stage1=stage(150), stage2=stage(100))
    method = baseline("imface", NpmTraining(), settings)
    config = method.training(TrainingConfig(threads=1))
    mean = (PLACES * RADII_MM.mean(0)).astype(np.float32)
    data = method.data(replace(some_data(), identity=_Balls(), deformation=_Shifts(), mean_anchors_mm=mean))
    trained = train(config, data, lambda name, content: None)
    losses = [line["loss"] for line in trained.curve if line["stage"] == 1]
    assert losses[-1] < 0.3 * losses[0]
    assert {"correction", "refer", "keypoints"} <= {name for line in trained.curve for name in line}
    box = [[-130, -130, -130], [130, 130, 130]]
    scans = ["a/smile", "b/smile", "b/frown"]
    head = method.trimmed(HeadModel.of(trained, config.field, ["a", "b"], scans, a_template(), box, [0, 1, 0, 500]))
    again = HeadModel.from_files(head.to_files())
    ball = np.array([0, 0, mean[2, 2] - SIZES.behind_nose_mm])
    surface = next(_Balls())["surface"]
    for place, subject in enumerate(("a", "b")):
        near = surface[place][np.linalg.norm(surface[place] - ball, axis=1) < 110]
        assert np.median(np.abs(again.sdf(near, subject))) < 1.5
        assert np.array_equal(again.sdf(near, subject), head.sdf(near, subject))
    front = surface[1][surface[1][:, 2] > 0] * 0.8
    assert np.abs(again.pose(front, "b", "b/frown") - front - SHIFTS_MM[2]).max() < 3.0
    points = (surface[1] + SHIFTS_MM[1])[surface[1][:, 2] > 0].astype(np.float64)
    fitter = method.fitter(again, FitConfig(points=200, iterations=8, threads=1), 48)
    (fitted,) = fitter.fit([Observation("cloud", points)], seed=0)
    assert (fitter.name, fitted.regions) == ("imface", ("face",))
    assert np.median(fitted.residual_mm) < 1.5
    there = np.linalg.inv(fitted.T_told_from_head)
    away = fitted.mesh.vertices @ there[:3, :3].T + there[:3, 3] - ball
    assert np.linalg.norm(away, axis=1).max() <= SIZES.crop_mm + 1e-3
