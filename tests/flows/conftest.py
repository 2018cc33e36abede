"""A workspace with tiny scans, steps that write a few bytes, and an engine whose database is kept over the tests."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline.config import preset_config
from pipeline.opening import create_workspace, open_workspace
from registration.procedural_head import head_template
from storage.manifest import Manifest, commit
from storage.ply import write_ply

REPOSITORY = Path(__file__).resolve().parents[2]
SMALL_STEPS = "tests.flows.small_steps:STEPS"


@pytest.fixture(scope="session")
def engine_home(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Environment of a process that runs the engine: caches and logs of its own, no server of the developer's."""
    home = tmp_path_factory.mktemp("home")
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    own = {"XDG_CACHE_HOME": str(home / "cache"), "NPHM_LOGS": str(home / "logs"), "PREFECT_HOME": str(home / "client")}
    return kept | own | {"PYTHONPATH": str(REPOSITORY), "OMP_NUM_THREADS": "1"}


@pytest.fixture(scope="session")
def nphm(engine_home: dict[str, str]) -> Callable[..., subprocess.CompletedProcess[str]]:
    """A function that runs a command line in a process of its own."""

    def call(*tokens: str | Path, **environment: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "flows", *map(str, tokens)]
        env = engine_home | environment
        return subprocess.run(command, capture_output=True, text=True, timeout=300, env=env, cwd=REPOSITORY)

    return call


def write_session(
    root: Path, subjects: int = 2, expressions: tuple[str, ...] = ("neutral", "smile"), **told: Any
) -> Path:
    """A session of fused meshes, each a ball of its own size; ``told`` of each subject as well."""
    names = [f"{number:03d}" for number in range(1, subjects + 1)]
    rng = np.random.default_rng(0)
    for name in names:
        for expression in expressions:
            folder = root / name / expression
            folder.mkdir(parents=True)
            points = rng.normal(size=(300, 3))
            points *= 100 / np.linalg.norm(points, axis=1, keepdims=True)
            faces = np.arange(300, dtype=np.int32).reshape(-1, 3)
            (folder / "scan.ply").write_bytes(write_ply(dict(zip("xyz", points.T, strict=True)), faces))
    note = {
        "schema_version": 1,
        "session_id": "balls",
        "captured_at": "2026-01-02T10:00:00Z",
        "rig": "none",
        "layout": "fused_mesh",
        "unit": "mm",
        "canonical_expression": "neutral",
        "licence": "CC0-1.0",
        "subjects": [{"id": name, "hair": "none", "expressions": list(expressions), **told} for name in names],
    }
    (root / "session.json").write_text(json.dumps(note))
    return root


def commit_cleaned(workspace: str, keys: Iterable[str]) -> None:
    """Put results of cleaning that may be released, a few triangles each."""
    store = open_workspace(workspace).store
    for key in keys:
        points = np.random.default_rng(0).normal(size=(3, 30)).astype(np.float32)
        ply = write_ply(dict(zip("xyz", points, strict=True)), np.arange(30, dtype=np.int32).reshape(-1, 3))
        manifest = Manifest(step="clean", key=key, step_version=1, config_digest="", inputs={}, verdict="accepted")
        commit(store, f"clean/{key}/report.json", manifest, {"mesh.ply": ply, "watertight.ply": ply})


@pytest.fixture
def workspace(tmp_path: Path) -> str:
    """The address of an empty workspace."""
    return create_workspace(str(tmp_path / "ws"), preset_config("demo"), head_template()).url


@pytest.fixture
def session(tmp_path: Path) -> Path:
    """A session of 2 subjects with 2 scans each."""
    return write_session(tmp_path / "session")
