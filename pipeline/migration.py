"""Workspaces of earlier schemas: their settings are carried over to today's, or refused by name, never misread."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.resources import files
from typing import Any

from storage.errors import ConfigError, one_line

SCHEMA_VERSION = 2
"""Raised when a key of ``pipeline.toml`` goes, gets another name or another meaning, or when the folders change."""


def migrate(told: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Carry the settings of a workspace over to today's schema.

    Args:
        told: what ``pipeline.toml`` says.
        where: its place, for messages.

    Returns:
        The same in today's keys, with today's ``schema_version``.

    Raises:
        ConfigError: the schema is of a later version of the project, or none.
    """
    settings = dict(told)
    found = settings.get("schema_version", SCHEMA_VERSION)
    if not isinstance(found, int) or not 1 <= found <= SCHEMA_VERSION:
        why = f"found {found!r}, this version reads 1 to {SCHEMA_VERSION}"
        raise ConfigError(one_line("schema_version: is not known", where, why, "use the nphm that made the workspace"))
    for version in range(found, SCHEMA_VERSION):
        settings = _STEPS[version](settings)
    return settings | {"schema_version": SCHEMA_VERSION}


def _from_1(told: dict[str, Any]) -> dict[str, Any]:
    """Schema 1 wrote every default out: what is as its preset then was, was not chosen, and follows today's preset."""
    written = json.loads(files("pipeline").joinpath("schemas/1.json").read_text())
    preset = told.get("preset", "small")
    return {"preset": preset} | _chosen(told, written.get(preset, {}))


def _chosen(told: Mapping[str, Any], default: Mapping[str, Any]) -> dict[str, Any]:
    """What differs from the defaults, section by section."""
    chosen = {}
    for name, value in told.items():
        before = default.get(name)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            if inner := _chosen(value, before):
                chosen[name] = inner
        elif value != before:
            chosen[name] = value
    return chosen


_STEPS: dict[int, Callable[[dict[str, Any]], dict[str, Any]]] = {1: _from_1}
"""How the settings of a schema become those of the next one."""
