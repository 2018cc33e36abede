"""Make a workspace, or open one."""

from __future__ import annotations

from collections.abc import Mapping

from pipeline.config import PipelineConfig, config_from_toml, config_to_toml
from pipeline.steps import STEPS
from pipeline.stepspec import StepSpec
from pipeline.workspace import Workspace
from registration.template import Template
from storage.errors import ConfigError, one_line
from storage.store import open_store

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
