"""NPM is our field without anchors: it has the paper's size, starts as a sphere, and is learnt and fitted as ours."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from model.config import StageConfig, TrainingConfig
from model.fit_config import FitConfig
from model.head_model import HeadModel
from model.npm import NpmFitter, npm_data, npm_field, npm_losses, npm_start
from model.observation import Observation
from model.trained_model import new_model
from model.training import train
from tests.model.test_head_model import a_template
from tests.model.test_training import RADII_MM, SHIFTS_MM, Balls, some_data

SMALL = npm_losses(
    TrainingConfig(
        field=npm_field(code=40, expression_dim=8, width=96, layers=4, skip_layer=2),
        stage1=StageConfig(steps=200, learning_rate=2e-3, code_learning_rate=2e-2, code_init=1.0, warmup_steps=5),
        stage2=StageConfig(steps=100, learning_rate=2e-3, code_learning_rate=5e-3, code_init=0.1, warmup_steps=5),
        threads=1,
    )
)


def test_it_has_the_papers_size() -> None:
    data = npm_data(some_data())
    model = new_model(TrainingConfig(field=npm_field()), data, 0)
    assert model.identity.layout.size == 512
    shape = sum(p.numel() for p in model.identity.parameters())
    pose = sum(p.numel() for name, p in model.deformation.named_parameters() if not name.startswith("compress"))
    assert shape == pytest.approx(7.35e6, rel=1e-3)
    assert pose == pytest.approx(7.35e6, rel=1e-3)


def test_it_starts_as_a_sphere() -> None:
    config = TrainingConfig(field=npm_field(width=256))
    data = npm_data(some_data())
    model = new_model(config, data, 0)
    model.warm(npm_start(config, data, 0))
    directions = torch.nn.functional.normalize(torch.randn(200, 3, generator=torch.Generator().manual_seed(3)), dim=1)
    with torch.no_grad():
        prepared = model.identity.prepare(model.identity_codes.codes[:1])
        at = {radius: model.identity.sdf(prepared, radius * directions) for radius in (0.1, 0.4, 0.8)}
    assert float(at[0.1].max()) < -0.05
    assert float(at[0.8].min()) > 0.15
    assert all(float(value.std()) < 0.1 * radius for radius, value in at.items())


def test_it_learns_is_kept_and_is_fitted_to_points() -> None:
    data = npm_data(some_data())
    trained = train(SMALL, data, lambda name, content: None, start=npm_start(SMALL, data, 0))
    box = [[-110, -110, -110], [110, 110, 110]]
    head = HeadModel.of(
        trained, SMALL.field, ["a", "b"], ["a/smile", "b/smile", "b/frown"], a_template(), box, [0, 1, 0, 500]
    )
    again = HeadModel.from_files(head.to_files())
    surface = next(Balls())["surface"]
    for place, subject in enumerate(("a", "b")):
        assert np.median(np.abs(again.sdf(surface[place], subject))) < 1.0
    moved = again.pose(surface[1] * 0.5, "b", "b/frown") - surface[1] * 0.5
    assert np.abs(moved - SHIFTS_MM[2]).max() < 3.0
    points = surface[1] + SHIFTS_MM[1]
    fitter = NpmFitter(again, FitConfig(points=250, iterations=8, threads=1), resolution=48)
    (fitted,) = fitter.fit([Observation("cloud", points.astype(np.float64))], seed=0)
    assert fitter.name == "npm"
    assert np.median(fitted.residual_mm) < 1.5
    radius = np.linalg.norm((fitted.mesh.vertices - SHIFTS_MM[1]) / RADII_MM[1], axis=1)
    assert np.median(np.abs(radius - 1)) * 75 < 2.5
