"""Workspaces of an earlier schema keep what was chosen in them, and follow today's presets in the rest."""

from __future__ import annotations

import json
import tomllib
from importlib.resources import files

import pytest
import tomli_w

from pipeline.config import config_from_toml, config_to_toml, preset_config
from pipeline.migration import SCHEMA_VERSION, migrate
from pipeline.opening import CONFIG_PATH, open_workspace, write_schema
from storage.errors import ConfigError
from storage.store import LocalStore


@pytest.fixture
def written() -> dict:
    """What schema 1 wrote for the demo preset."""
    return {"schema_version": 1} | json.loads(files("pipeline").joinpath("schemas/1.json").read_text())["demo"]


def test_defaults_that_were_only_written_out_follow_todays_preset(written):
    assert migrate(written, "x") == {"preset": "demo", "schema_version": SCHEMA_VERSION}
    assert config_from_toml(tomli_w.dumps(written).encode()) == preset_config("demo")


def test_what_was_chosen_is_kept(written):
    written["seed"] = 7
    written["train"]["training"]["stage1"]["steps"] = 17
    config = config_from_toml(tomli_w.dumps(written).encode())
    assert (config.seed, config.train.training.stage1.steps) == (7, 17)
    assert config.sample == preset_config("demo").sample


def test_a_chosen_key_that_is_gone_is_refused_by_name(written):
    written["clean"]["of_old_mm"] = 3
    with pytest.raises(ConfigError, match=r"clean.of_old_mm: is no known key \(found 3\)"):
        config_from_toml(tomli_w.dumps(written).encode())


@pytest.mark.parametrize("version", [0, SCHEMA_VERSION + 1, "1", 1.5])
def test_an_unknown_schema_is_refused_by_name(version):
    with pytest.raises(ConfigError, match=f"schema_version: is not known .found {version!r}"):
        migrate({"schema_version": version}, "x")


def test_a_workspace_is_read_as_it_is_and_written_in_todays_schema_by_a_run(tmp_path, written):
    written["seed"] = 7
    old = tomli_w.dumps(written).encode()
    store = LocalStore(tmp_path)
    store.put(CONFIG_PATH, old)
    workspace = open_workspace(str(tmp_path))
    assert store.get(CONFIG_PATH) == old
    assert write_schema(workspace) == 1
    assert tomllib.loads(store.get(CONFIG_PATH).decode())["schema_version"] == SCHEMA_VERSION
    assert open_workspace(str(tmp_path)).config == workspace.config
    assert store.get("pipeline.schema1.toml") == old
    assert write_schema(workspace) is None
    assert store.get(CONFIG_PATH) == config_to_toml(workspace.config)
