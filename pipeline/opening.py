"""Make a workspace, or open one."""

from __future__ import annotations

import logging
import tomllib
from collections.abc import Mapping

from pipeline.config import PipelineConfig, config_from_toml, config_to_toml
from pipeline.migration import SCHEMA_VERSION
from pipeline.steps import STEPS
from pipeline.stepspec import StepSpec
from pipeline.workspace import Workspace
from registration.template import Template
from storage.errors import ConfigError, one_line
from storage.store import open_store

log = logging.getLogger(__name__)

CONFIG_PATH = "pipeline.toml"


def create_workspace(
    url: str, config: PipelineConfig, template: Template, steps: Mapping[str, StepSpec] = STEPS
) -> Workspace:
    """Make a workspace with its configuration and template.

    Raises:
        ConfigError: there is one already.
    """
    store = open_store(url)
    if store.exists(CONFIG_PATH):
        raise ConfigError(one_line("is a workspace already", url, "", "edit its config, or choose another folder"))
    store.put(config.template, template.to_bytes())
    store.put(CONFIG_PATH, config_to_toml(config))
    return Workspace(store, config, steps)


def open_workspace(url: str, steps: Mapping[str, StepSpec] = STEPS) -> Workspace:
    """Open a workspace.

    Raises:
        ConfigError: there is none, or its configuration is wrong.
    """
    store = open_store(url)
    try:
        told = store.get(CONFIG_PATH)
    except FileNotFoundError:
        raise ConfigError(one_line("is no workspace", url, f"no {CONFIG_PATH}", "make one with 'nphm init'")) from None
    return Workspace(store, config_from_toml(told, f"{url}/{CONFIG_PATH}"), steps)


def write_schema(workspace: Workspace) -> int | None:
    """Write the settings of a workspace of an earlier schema in today's keys, and keep the old file beside them.

    Opening alone reads any schema that is known and writes nothing.

    Returns:
        The schema that was found, or None where it is today's.
    """
    told = workspace.store.get(CONFIG_PATH)
    found = int(tomllib.loads(told.decode()).get("schema_version", SCHEMA_VERSION))
    if found == SCHEMA_VERSION:
        return None
    kept = f"pipeline.schema{found}.toml"
    workspace.store.put(kept, told)
    workspace.store.put(CONFIG_PATH, config_to_toml(workspace.config))
    log.warning("%s: schema %d became %d; the old settings are in %s", workspace.url, found, SCHEMA_VERSION, kept)
    return found
