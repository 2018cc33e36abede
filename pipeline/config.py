"""The whole configuration of a workspace: one class a step, TOML on disk, three presets."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.capture import IngestConfig
from storage.digest import digest_json
from storage.errors import ConfigError, one_line

Preset = Literal["demo", "small", "paper"]


class SplitShares(BaseModel):
    """How subjects are shared out when they are first seen."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    held_out: float = Field(default=0.1, ge=0, le=0.9, description="share of subjects kept for evaluation")
    held_out_ids: tuple[str, ...] = Field(default=(), description="subjects to hold out; when given, all others train")

    def of(self, subject: str, drawn: Mapping[str, str]) -> str:
        """``train`` or ``held_out``: as named here, or else as it was drawn when the subject was first seen."""
        if self.held_out_ids:
            return "held_out" if subject in self.held_out_ids else "train"
        return drawn.get(subject, "train")


class Thresholds(BaseModel):
    """The limits of each step's verdict. Changing one judges anew and computes nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class PipelineConfig(BaseModel):
    """Everything that a workspace's results depend on, beside the captures and the template."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    schema_version: Literal[1] = 1
    preset: Preset = Field(default="small", description="the preset whose values were the start")
    seed: int = Field(default=0, ge=0, description="seed of the run; each key draws from its own generator")
    template: str = Field(default="template.npz", description="the template, a file in the workspace")
    model_name: str | None = Field(
        default=None, description="name of the model; made from preset and inputs if left out"
    )
    splits: SplitShares = SplitShares()
    ingest: IngestConfig = IngestConfig()
    thresholds: Thresholds = Thresholds()

    def of_step(self, step: str) -> BaseModel | None:
        """The config of a step, or None where it has none."""
        return getattr(self, step, None)

    def thresholds_of_step(self, step: str) -> BaseModel | None:
        """The thresholds of a step, or None where it has none."""
        return getattr(self.thresholds, step, None)

    def resolved(self, step: str) -> dict[str, Any]:
        """What a step's results depend on, as plain values: its config and the run's seed, thresholds left out."""
        config = self.of_step(step)
        return {"run_seed": self.seed} | ({} if config is None else config.model_dump(mode="json"))

    def digest_of_step(self, step: str) -> str:
        """Digest of what a step's results depend on."""
        return digest_json(self.resolved(step))


PRESETS: dict[Preset, dict[str, Any]] = {"demo": {}, "small": {}, "paper": {}}
"""What each preset changes in the defaults, as in the TOML file."""


def preset_config(name: Preset) -> PipelineConfig:
    """The configuration of a preset."""
    return parse_config({"preset": name} | PRESETS[name], f"preset {name}")


def parse_config(told: dict[str, Any], where: str) -> PipelineConfig:
    """Validate a configuration read from anywhere.

    Raises:
        ConfigError: naming the key, the value found and what is allowed.
    """
    try:
        return PipelineConfig.model_validate(told)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        why = f"found {first['input']!r}"
        raise ConfigError(one_line(f"{key}: {first['msg'].lower()}", where, why, "correct this key")) from error


def config_from_toml(data: bytes, where: str = "pipeline.toml") -> PipelineConfig:
    """Decode ``pipeline.toml``.

    Raises:
        ConfigError: no TOML, or a key or value that is not allowed.
    """
    try:
        told = tomllib.loads(data.decode())
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(one_line("is no TOML file", where, str(error), "correct this line")) from error
    return parse_config(told, where)


def config_to_toml(config: PipelineConfig) -> bytes:
    """Encode a configuration with every value written out."""
    return tomli_w.dumps(config.model_dump(mode="json", exclude_none=True)).encode()
