"""Training on heads that are known exactly, and going on from a checkpoint."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from model.checkpoint import decode, encode
from model.config import DeformationConfig, FieldConfig, IdentityConfig, StageConfig, TrainingConfig
from model.optimisation import rate_share
from model.training import TrainingData, train
from storage.errors import ConfigError

RADII_MM = np.array([[60.0, 85.0, 75.0], [70.0, 80.0, 90.0]])
SHIFTS_MM = np.array([[0.0, 6.0, 0.0], [4.0, 0.0, 8.0], [0.0, -5.0, 3.0]])
SUBJECT_OF = np.array([0, 1, 1])
DIRECTIONS = (
    np.array([[-1, 0, 0], [1, 0, 0], [-1, 1, 1], [1, 1, 1], [-1, -1, 1], [1, -1, 1], [0, 0, 1], [0, 1, 0], [0, 0, -1]])
    / np.sqrt([1, 1, 3, 3, 3, 3, 1, 1, 1])[:, None]
)


class Balls:
    """Batches over two ellipsoids: exact on the surface, first order near it."""

    def __init__(self) -> None:
        self.step = 0

    def state(self) -> dict[str, Any]:
        return {"step": self.step}

    def restore(self, state: Mapping[str, Any]) -> None:
        self.step = int(state["step"])

    def __next__(self) -> dict[str, NDArray]:
        rng = np.random.default_rng([7, self.step])
        self.step += 1
        unit = rng.normal(size=(2, 300, 3))
        unit /= np.linalg.norm(unit, axis=2, keepdims=True)
        surface = unit * RADII_MM[:, None]
        normal = unit / RADII_MM[:, None]
        normal /= np.linalg.norm(normal, axis=2, keepdims=True)
        offset = rng.normal(size=(2, 300)) * 3
        space = rng.uniform(-120, 120, size=(2, 100, 3))
        scaled = np.linalg.norm(space / RADII_MM[:, None], axis=2)
        space_sdf = (scaled - 1) * np.linalg.norm(space, axis=2) / np.maximum(scaled, 1e-6)
        yes = np.ones((2, 300), bool)
        batch = {
            "anchors": DIRECTIONS * RADII_MM[:, None],
            "surface": surface,
            "normal": normal,
            "near": surface + offset[..., None] * normal,
            "near_sdf": offset,
            "space": space,
            "space_sdf": space_sdf,
        }
        flags = {"face": yes, "observed": yes, "near_observed": yes, "space_observed": yes[:, :100]}
        return {k: v.astype(np.float32) for k, v in batch.items()} | flags | {"subject": np.arange(2)}


class Shifts(Balls):
    """Batches of expressions that move a whole ellipsoid."""

    def __next__(self) -> dict[str, NDArray]:
        rng = np.random.default_rng([8, self.step])
        self.step += 1
        canonical = rng.uniform(-90, 90, size=(3, 100, 3)).astype(np.float32)
        return {
            "scan": np.arange(3),
            "subject": SUBJECT_OF,
            "canonical": canonical,
            "posed": canonical + SHIFTS_MM[:, None].astype(np.float32),
            "weight": np.ones((3, 100), np.float32),
        }


def a_config(steps1: int, steps2: int) -> TrainingConfig:
    return TrainingConfig(
        field=FieldConfig(
            identity=IdentityConfig(global_dim=8, local_dim=4, hidden=(16, 16), anchor_hidden=(64,), coordinate_gain=2),
            deformation=DeformationConfig(
                expression_dim=4, compressed_dim=4, hidden=(24, 24), skip_layer=None, coordinate_gain=2
            ),
        ),
        stage1=StageConfig(steps=steps1, learning_rate=5e-3, code_learning_rate=2e-2, code_init=1.0, warmup_steps=5),
        stage2=StageConfig(steps=steps2, learning_rate=5e-3, code_learning_rate=5e-3, code_init=0.1, warmup_steps=5),
        threads=1,
        record_every=5,
        checkpoint_every=10,
    )


def some_data() -> TrainingData:
    return TrainingData(Balls(), Shifts(), 2, 3, (DIRECTIONS * RADII_MM.mean(0)).astype(np.float32), 3)


def test_training_learns_the_shapes_and_the_motions() -> None:
    lines: list[dict[str, Any]] = []
    told: list[tuple[str, int, int]] = []
    model = train(
        a_config(250, 150),
        some_data(),
        lambda name, data: None,
        progress=lambda *at: told.append(at),
        record=lines.append,
    )
    batch = next(Balls())
    with torch.no_grad():
        codes = model.identity_codes(torch.arange(2))
        prepared = model.identity.prepare(codes)
        points = torch.as_tensor(batch["surface"] / 250).reshape(-1, 3)
        sdf_mm = 250 * model.identity.sdf(prepared, points, torch.arange(2).repeat_interleave(300))
        anchors_mm = 250 * prepared.anchors.numpy()
        z_ex = model.expression_codes(torch.arange(3))
        posed = model.deformation.prepare(codes[SUBJECT_OF], prepared.anchors[SUBJECT_OF], z_ex)
        moved_mm = 250 * model.deformation.displacement(posed, points[:3] * 0.5, torch.arange(3)).numpy()
    assert float(sdf_mm.abs().median()) < 0.5
    assert np.abs(anchors_mm - batch["anchors"]).max() < 4
    assert np.abs(moved_mm - SHIFTS_MM).max() < 1.5
    assert told[0] == ("stage1", 1, 400)
    assert told[-1] == ("stage2", 400, 400)
    assert {line["stage"] for line in lines} == {1, 2}
    assert {"surf_sdf", "normals", "grad", "near_sdf", "space_sdf_direct"} <= set(lines[0])


def test_stage_two_leaves_identity_as_it_is() -> None:
    short, long = (train(a_config(8, steps), some_data(), lambda name, data: None) for steps in (0, 8))
    for one, other in zip(short.identity.parameters(), long.identity.parameters(), strict=True):
        assert torch.equal(one, other)
        assert one.grad is None or not one.requires_grad
    assert torch.equal(short.identity_codes.codes, long.identity_codes.codes)


@pytest.mark.parametrize("name", ["stage1-0000010", "stage1-0000020", "stage1-0000023", "stage2-0000010"])
def test_resume_ends_in_the_same_bits(name: str) -> None:
    kept: dict[str, bytes] = {}
    whole = train(a_config(23, 17), some_data(), kept.__setitem__)
    again = train(a_config(23, 17), some_data(), lambda n, d: None, resume=kept[f"{name}.safetensors"])
    for key, tensor in whole.tensors().items():
        assert torch.equal(tensor, again.tensors()[key]), key
    assert again.curve == whole.curve


def test_same_seed_same_bytes_and_another_seed_others() -> None:
    def last(seed: int) -> bytes:
        kept: dict[str, bytes] = {}
        train(a_config(12, 6), some_data(), kept.__setitem__, seed=seed)
        return kept[max(kept)]

    assert last(0) == last(0)
    assert last(0) != last(1)


def test_checkpoint_of_another_config_is_refused() -> None:
    kept: dict[str, bytes] = {}
    train(a_config(10, 0), some_data(), kept.__setitem__)
    with pytest.raises(ConfigError, match="config, seed, subjects or anchors differ"):
        train(a_config(11, 0), some_data(), lambda n, d: None, resume=kept["stage1-0000010.safetensors"])
    with pytest.raises(ConfigError, match="is no checkpoint"):
        train(a_config(10, 0), some_data(), lambda n, d: None, resume=kept["stage1-0000010.safetensors"][:999])


def test_a_loss_that_is_not_finite_stops_training() -> None:
    class Broken(Balls):
        def __next__(self) -> dict[str, NDArray]:
            batch = super().__next__()
            return batch | {"near_sdf": batch["near_sdf"] * np.nan}

    data = TrainingData(Broken(), None, 2, 0, DIRECTIONS * 75, 3)
    with pytest.raises(ConfigError, match=r"training diverged.*near_sdf"):
        train(a_config(5, 0), data, lambda n, d: None)


def test_rates_rise_then_fall() -> None:
    stage = StageConfig(steps=100, learning_rate=1, code_learning_rate=1, code_init=1, warmup_steps=9, final_share=0.1)
    shares = [rate_share(stage, step) for step in range(100)]
    assert shares[0] == pytest.approx(0.1, rel=0.01)
    assert max(shares) == pytest.approx(1.0, abs=0.03)
    assert shares[-1] == pytest.approx(0.1, abs=0.01)
    halving = stage.model_copy(update={"schedule": "halving", "halving_steps": 30, "warmup_steps": 0})
    assert [rate_share(halving, step) for step in (0, 29, 30, 60)] == [1, 1, 0.5, 0.25]


def test_checkpoint_bytes_are_read_back() -> None:
    data = encode({"a": torch.arange(3.0), "b": torch.zeros(2, 2, dtype=torch.uint8)}, {"step": 3, "state": {"x": [1]}})
    tensors, values = decode(data)
    assert torch.equal(tensors["a"], torch.arange(3.0))
    assert values == {"step": 3, "state": {"x": [1]}}
    assert encode(tensors, values) == data
