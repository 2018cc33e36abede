"""What a plan expects a workspace to cost."""

from __future__ import annotations

import json

import pytest

from model.config import ColorConfig
from pipeline.config import preset_config
from pipeline.ingest import ingest_session
from pipeline.opening import create_workspace, open_workspace
from pipeline.outlook import look_ahead
from pipeline.steps import STEPS
from pipeline.train_config import TrainConfig, expected_minutes
from pipeline.workspace import Workspace
from registration.procedural_head import head_template
from tests.flows.conftest import write_session


def test_costs_are_guessed_at_first_and_then_as_the_last_runs_took(tmp_path):
    workspace = open_workspace(create_workspace(str(tmp_path / "ws"), preset_config("demo"), head_template()).url)
    ingest_session(workspace, write_session(tmp_path / "session"))
    guessed = {(a.step, a.key): a.minutes for a in look_ahead(workspace, "clean").actions}
    assert guessed == dict.fromkeys([("clean", key) for key in workspace.scans()], STEPS["clean"].minutes)

    # Two runs with two workers: 10 results in 60 s of the clock, 120 s of work.
    for number, (results, elapsed) in enumerate([(4, 20.0), (6, 40.0)]):
        cost = {"clean": {"results": results, "seconds": 2 * elapsed, "elapsed": elapsed, "bytes": 5e6 * results}}
        workspace.store.put(f"runs/2026010{number}T000000Z-host-1.json", json.dumps({"cost": cost}).encode())
    outlook = look_ahead(workspace, "clean")
    assert outlook.minutes == pytest.approx(4 * 60 / 10 / 60)
    assert outlook.megabytes == pytest.approx(4 * 5)


def test_a_training_is_expected_to_go_as_fast_as_the_last_one_of_such_a_field(tmp_path):
    def training(preset: str, **steps: int) -> TrainConfig:
        config = preset_config(preset).train
        stages = {name: getattr(config.training, name).model_copy(update={"steps": n}) for name, n in steps.items()}
        return config.model_copy(update={"training": config.training.model_copy(update=stages)})

    def expected() -> float:
        (action,) = [a for a in look_ahead(workspace).actions if a.step == "train"]
        return action.minutes

    config = preset_config("demo").model_copy(update={"train": training("demo", stage1=3000, stage2=600)})
    workspace = open_workspace(create_workspace(str(tmp_path / "ws"), config, head_template()).url)
    ingest_session(workspace, write_session(tmp_path / "session"))
    assert expected() == pytest.approx(expected_minutes(config.train))

    # Two trainings of such a field with other batches and fewer steps, then one of another field, much faster.
    def trained(number: int, then: TrainConfig, rates: dict[str, float]) -> None:
        at = Workspace(workspace.store, config.model_copy(update={"train": then}), workspace.steps)
        at.commit("train", f"m{number}", inputs={}, outputs={"a.bin": b"a"}, figures={})
        line = {"step": "train", "key": f"m{number}", "seconds": 1.0, "steps_per_second": rates}
        workspace.store.put(f"runs/2026010{number}T000000Z-host-1.jsonl", json.dumps(line).encode() + b"\n")

    half = training("demo", stage1=10, stage2=10)
    fewer = {name: getattr(half, name) // 2 for name in ("subjects_per_step", "scans_per_step", "blends_per_step")}
    half = half.model_copy(update=fewer)
    trained(1, half, {"stage1": 1.0, "stage2": 5.0})
    trained(2, half, {"stage1": 20.0})  # the second stage was done before
    wide = half.training.field.model_copy(update={"color": ColorConfig()})
    trained(3, half.model_copy(update={"training": half.training.model_copy(update={"field": wide})}), {"stage1": 1e3})
    assert expected() == pytest.approx((3000 / 10.0 + 600 / 2.5) / 60)
