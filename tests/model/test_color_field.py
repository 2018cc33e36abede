"""Colours learnt after the shapes, with codes of their own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model import HeadModel
from model.checkpoint import decode
from model.config import ColorConfig, StageConfig, TrainingConfig
from model.training import TrainingData, train
from model.training_figures import training_figures
from storage.errors import ConfigError
from tests.model.test_head_model import a_template
from tests.model.test_training import DIRECTIONS, RADII_MM, Balls, Shifts, a_config

COLORS = np.array([[200, 60, 40], [40, 60, 200]], np.uint8)
"""Of the two ellipsoids' right halves; the left ones are grey."""


class Painted(Balls):
    """Coloured points of the two ellipsoids."""

    def __next__(self) -> dict[str, NDArray]:
        batch = super().__next__()
        left = batch["surface"][..., :1] > 0
        color = np.where(left, np.uint8(128), COLORS[:, None])
        return {"subject": batch["subject"], "colored": batch["surface"], "color": color}


def painted_config() -> TrainingConfig:
    plain = a_config(20, 0)
    field = plain.field.model_copy(update={"color": ColorConfig(appearance_dim=3, hidden=(32, 32), coordinate_gain=8)})
    stage4 = StageConfig(steps=150, learning_rate=1e-2, code_learning_rate=3e-2, code_init=0.0, warmup_steps=5)
    return plain.model_copy(update={"field": field, "stage4": stage4})


def some_data(color: Painted | None) -> TrainingData:
    anchors = (DIRECTIONS * RADII_MM.mean(0)).astype(np.float32)
    return TrainingData(Balls(), Shifts(), 2, 3, anchors, 3, color=color)


def test_each_subject_has_its_colours_and_shapes_stay() -> None:
    config = painted_config()
    kept: dict[str, bytes] = {}
    model = train(config, some_data(Painted()), kept.__setitem__)
    assert model.curve[-1]["stage"] == 4
    assert training_figures(model, some_data(Painted()))["color_mean_error"] < 12
    resumed = train(config, some_data(Painted()), lambda n, d: None, resume=kept["stage4-0000140.safetensors"])
    early, _ = decode(kept["stage4-0000010.safetensors"])
    for name, tensor in model.tensors().items():
        assert torch.equal(tensor, resumed.tensors()[name]), name
        assert torch.equal(tensor, early[name]) != name.startswith(("color", "appearance_codes")), name

    box = [[-110, -110, -110], [110, 110, 110]]
    head = HeadModel.of(model, config.field, ["a", "b"], ["a/1", "b/1", "b/2"], a_template(), box, [0, 1, 0, 200])
    head = HeadModel.from_files(head.to_files())
    for place, subject in enumerate(("a", "b")):
        points = DIRECTIONS[:2] * RADII_MM[place]
        assert np.abs(head.colors(points, subject).astype(int) - [COLORS[place], [128] * 3]).mean() < 12
        mesh = head.mesh(subject, f"{subject}/1", resolution=32)
        assert mesh.colors is not None
        aside = np.abs(mesh.vertices[:, 0]) > 30
        expected = np.where(mesh.vertices[:, :1] > 0, 128, COLORS[place].astype(int))
        assert np.abs(mesh.colors.astype(int) - expected)[aside].mean() < 16
    known = head.warm_start(["b", "new"], ["b/1"]).appearance_codes
    assert known is not None
    assert known[0].abs().max() > 0
    assert known[1].abs().max() == 0


def test_a_colour_field_wants_colour_and_no_other_model_has_one() -> None:
    with pytest.raises(ConfigError, match="no subject has coloured samples"):
        train(painted_config(), some_data(None), lambda name, data: None)
    config = a_config(1, 0)
    head = HeadModel.of(
        train(config, some_data(None), lambda n, d: None),
        config.field,
        ["a", "b"],
        ["a/1"],
        a_template(),
        np.zeros((2, 3)),
        np.ones(4),
    )
    with pytest.raises(ConfigError, match="has no field of color"):
        head.colors(np.zeros((1, 3)), "a")
