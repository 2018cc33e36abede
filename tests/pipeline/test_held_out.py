"""Held-out sets are frozen with their scans' digests, and no model is measured twice on the same."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipeline import held_out
from pipeline.held_out import freeze, measure_model, scan_digest
from pipeline.retraining import compare_models
from storage.errors import ConfigError
from tests.pipeline.test_evaluate import _workspace


def test_a_set_is_frozen_and_models_are_measured_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workspace = _workspace(tmp_path, held_out=("003",))
    frozen = freeze(workspace, "first")
    assert sorted(frozen.scans) == ["003/neutral", "003/smile"]
    asked: list[str] = []

    def error(workspace, fitter, key, config) -> float:
        asked.append(key)
        return 1.5

    monkeypatch.setattr(held_out, "_error", error)
    monkeypatch.setattr(held_out, "_fitter", lambda workspace, model, config: object())
    assert measure_model(workspace, "first", "first") == {"003/neutral": 1.5, "003/smile": 1.5}
    assert measure_model(workspace, "first", "first") == {"003/neutral": 1.5, "003/smile": 1.5}
    assert asked == ["003/neutral", "003/smile"]

    # A scan that changed is left out; a new name freezes what there is now.
    made = workspace.manifest("clean", "003/smile")
    assert made is not None
    mesh = workspace.read(workspace.accepted("clean", "003/neutral"), "mesh.ply")
    workspace.commit("clean", "003/smile", inputs={}, outputs={"mesh.ply": mesh})
    assert scan_digest(workspace, "003/smile") != frozen.scans["003/smile"]
    assert set(measure_model(workspace, "first", "first")) == {"003/neutral"}
    assert freeze(workspace, "first") == frozen
    assert freeze(workspace, "second").version != frozen.version


def test_a_real_model_is_measured(tmp_path: Path) -> None:
    workspace = _workspace(tmp_path, held_out=("003",))
    workspace.commit("register", "003/smile", inputs={}, faults=["left out, to save time"])
    compared = compare_models(workspace, "first", "first")
    assert (compared["set"], compared["set_scans"]) == ("first", 1)
    assert compared["promote"] == (compared["scans"] == 1)


def test_without_held_out_scans_there_is_nothing_to_freeze(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no held-out scan was registered"):
        freeze(_workspace(tmp_path, held_out=()), "first")
