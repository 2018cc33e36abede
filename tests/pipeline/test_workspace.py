"""A workspace publishes results and reads them back, digest-checked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest
from obstore.store import MemoryStore

from pipeline.config import PipelineConfig
from pipeline.stepspec import StepSpec
from pipeline.workspace import ScanKey, Workspace
from storage.errors import ConfigError, StorageConflict
from storage.manifest import Manifest
from storage.store import LocalStore, ObjectStore, Store


def run_clean(workspace: Workspace, key: str) -> Manifest:
    return workspace.commit("clean", key, outputs={"mesh.ply": b"mesh"}, figures={"coverage": 0.4})


def judge_clean(figures: Mapping[str, Any], thresholds: Any) -> list[str]:
    return ["coverage 0.40 is below 0.50"] if figures["coverage"] < 0.5 else []


CLEAN = StepSpec("clean", "clean", 1, run_clean, judge_clean)


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path) -> Store:
    return LocalStore(tmp_path) if request.param == "local" else ObjectStore(MemoryStore(), "memory://")


def test_commit_and_read(store):
    workspace = Workspace(store, PipelineConfig(), {"clean": CLEAN})
    made = run_clean(workspace, "001/smile")
    assert made.verdict == "rejected"
    assert made.reasons == ["coverage 0.40 is below 0.50"]
    again = workspace.manifest("clean", "001/smile")
    assert again == made
    assert workspace.read(again, "mesh.ply") == b"mesh"
    store.put("clean/001/smile/mesh.ply", b"mess")
    with pytest.raises(StorageConflict, match="was changed"):
        workspace.read(again, "mesh.ply")


def test_the_same_result_has_the_same_bytes(store):
    workspace = Workspace(store, PipelineConfig(), {"clean": replace(CLEAN)})
    run_clean(workspace, "001/smile")
    first = store.get("clean/001/smile/report.json")
    run_clean(workspace, "001/smile")
    assert store.get("clean/001/smile/report.json") == first


@pytest.mark.parametrize("text", ["", "001", "001/", "../x", "001/..", "001/a/b", "a b/c"])
def test_keys_that_are_none(text):
    with pytest.raises(ConfigError):
        ScanKey.parse(text)
