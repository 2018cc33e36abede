"""The whole configuration of a workspace: one class a step, TOML on disk, three presets."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Mapping
from typing import Any, Literal

import tomli_w
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from model.config import PAPER_FIELD
from pipeline.baselines_config import BaselinesConfig
from pipeline.capture import IngestConfig
from pipeline.clean_config import CleanConfig, CleanThresholds
from pipeline.evaluate_config import EvaluateConfig, EvaluateThresholds
from pipeline.migration import migrate
from pipeline.protocols_config import ProtocolsConfig
from pipeline.register_config import RegisterConfig, RegisterThresholds
from pipeline.release_config import ReleaseConfig
from pipeline.safe_name import SafeName
from pipeline.sample_config import SampleConfig, SampleThresholds
from pipeline.service_config import ServiceConfig
from pipeline.train_config import TrainConfig, TrainThresholds
from storage.digest import digest_json
from storage.errors import ConfigError, one_line
from storage.frozen import Frozen

Preset = Literal["demo", "small", "paper"]

_FIELDS = {"register": "registration"}
"""Steps whose name a pydantic class has taken: their field's name, while the file keeps the step's."""


class SplitShares(Frozen):
    """How subjects are shared out when they are first seen."""

    held_out: float = Field(default=0.1, ge=0, le=0.9, description="share of subjects kept for evaluation")
    held_out_ids: tuple[str, ...] = Field(default=(), description="subjects to hold out; when given, all others train")

    def of(self, subject: str, drawn: Mapping[str, str]) -> str:
        """``train`` or ``held_out``: as named here, or else as it was drawn when the subject was first seen."""
        if self.held_out_ids:
            return "held_out" if subject in self.held_out_ids else "train"
        return drawn.get(subject, "train")


class Thresholds(BaseModel):
    """The limits of each step's verdict. Changing one judges anew and computes nothing."""

    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True)

    clean: CleanThresholds = CleanThresholds()
    registration: RegisterThresholds = Field(default=RegisterThresholds(), alias="register")
    sample: SampleThresholds = SampleThresholds()
    train: TrainThresholds = TrainThresholds()
    evaluate: EvaluateThresholds = EvaluateThresholds()


class PipelineConfig(BaseModel):
    """Everything that a workspace's results depend on, beside the captures and the template."""

    model_config = ConfigDict(extra="forbid", frozen=True, serialize_by_alias=True)

    schema_version: Literal[2] = 2
    preset: Preset = Field(default="small", description="the preset whose values were the start")
    seed: int = Field(default=0, ge=0, description="seed of the run; each key draws from its own generator")
    template: str = Field(default="template.npz", description="the template, a file in the workspace")
    model_name: SafeName | None = Field(
        default=None, description="name of the model; made from preset and inputs if left out"
    )
    splits: SplitShares = SplitShares()
    ingest: IngestConfig = IngestConfig()
    clean: CleanConfig = CleanConfig()
    registration: RegisterConfig = Field(default=RegisterConfig(), alias="register")
    sample: SampleConfig = SampleConfig()
    train: TrainConfig = TrainConfig()
    baselines: BaselinesConfig = BaselinesConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    protocols: ProtocolsConfig = ProtocolsConfig()
    thresholds: Thresholds = Thresholds()
    service: ServiceConfig = ServiceConfig()
    release: ReleaseConfig = ReleaseConfig()

    def of_step(self, step: str) -> BaseModel | None:
        """The config of a step, or None where it has none."""
        return getattr(self, _FIELDS.get(step, step), None)

    def thresholds_of_step(self, step: str) -> BaseModel | None:
        """The thresholds of a step, or None where it has none."""
        return getattr(self.thresholds, _FIELDS.get(step, step), None)

    def resolved(self, step: str) -> dict[str, Any]:
        """What a step's results depend on, as plain values: its config and the run's seed, thresholds left out."""
        config = self.of_step(step)
        return {"run_seed": self.seed} | ({} if config is None else config.model_dump(mode="json"))

    def digest_of_step(self, step: str) -> str:
        """Digest of what a step's results depend on."""
        return digest_json(self.resolved(step))


PRESETS: dict[Preset, dict[str, Any]] = {
    "demo": {
        "splits": {"held_out": 0.2},
        "sample": {
            "identity": {"surface_points": 60_000, "near_points": 60_000, "space_points": 15_000},
            "deformation": {"pairs": 40_000},
        },
        "train": {"training": {"stage1": {"steps": 2500}, "stage2": {"steps": 1500}}},
        "evaluate": {"samples": 30_000, "resolution": 128, "most_scans": 3},
    },
    "small": {},
    "paper": {
        "sample": {
            "identity": {
                "surface_points": 2_000_000,
                "near_points": 1_000_000,
                "space_points": 200_000,
                "near_spreads_mm": [2.5, 0.5],
            },
            "deformation": {"pairs": 500_000},
        },
        "train": {
            "subjects_per_step": 32,
            "surface_points": 800,
            "near_points": 800,
            "scans_per_step": 32,
            "pair_points": 1000,
            "blends_per_step": 0,
            "validation_share": 0.05,
            "training": {
                "validation": {"every": 2000, "patience": 15},
                "record_every": 100,
                "field": PAPER_FIELD.model_dump(mode="json"),
                "stage1": {
                    "steps": 120_000,
                    "learning_rate": 5e-4,
                    "code_learning_rate": 1e-3,
                    "schedule": "halving",
                    "halving_steps": 40_000,
                    "weight_decay": 0.01,
                    "clip": 0.1,
                    "code_init": 0.1,
                },
                "stage2": {
                    "steps": 370_000,
                    "learning_rate": 1e-4,
                    "code_learning_rate": 5e-4,
                    "schedule": "halving",
                    "halving_steps": 90_000,
                    "weight_decay": 5e-4,
                    "clip": 0.025,
                    "code_init": 0.14,
                },
                "identity_losses": {"normals": 0.3, "grad": 0.1, "anchors": 7.5},
                "surface_gradient_share": 1.0,
                "near_gradient_share": 1.0,
                "space_gradient_share": 1.0,
            },
        },
        "evaluate": {"samples": 250_000, "render_scale": 1.0, "resolution": 256},
    },
}
"""What each preset changes in the defaults, as in the TOML file: ``demo`` trains minutes on 2 cores, ``small`` an hour,
``paper`` wants a GPU and has the paper's sizes, steps and rates."""


def preset_config(name: Preset) -> PipelineConfig:
    """The configuration of a preset."""
    return parse_config({"preset": name}, f"preset {name}")


def parse_config(told: Mapping[str, Any], where: str) -> PipelineConfig:
    """Validate a configuration read from anywhere; what it leaves out is as in its preset, an older schema is migrated.

    Raises:
        ConfigError: naming the key, the value found and what is allowed.
    """
    told = migrate(told, where)
    changes = next((PRESETS[name] for name in PRESETS if name == told.get("preset")), {})
    whole = _merged(PipelineConfig().model_dump(mode="json"), changes)
    try:
        return PipelineConfig.model_validate(_merged(whole, told))
    except ValidationError as error:
        raise ConfigError(_describe(error, where)) from error


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    both = dict(below)
    for name, value in above.items():
        old = both.get(name)
        both[name] = _merged(old, value) if isinstance(old, Mapping) and isinstance(value, Mapping) else value
    return both


def _describe(error: ValidationError, where: str) -> str:
    first = error.errors()[0]
    names = [str(part) for part in first["loc"]]
    key = ".".join(names)
    if first["type"] == "extra_forbidden":
        allowed = _keys_beside(names)
        near = difflib.get_close_matches(names[-1], allowed, n=1)
        remedy = f"did you mean {near[0]}?" if near else f"allowed are {', '.join(allowed)}"
        return one_line(f"{key}: is no known key", where, f"found {first['input']!r}", remedy)
    return one_line(f"{key}: {first['msg'].lower()}", where, f"found {first['input']!r}", "correct this key")


def _keys_beside(names: list[str]) -> list[str]:
    here: Any = PipelineConfig
    for name in names[:-1]:
        here = here.model_fields[_FIELDS.get(name, name)].annotation
    return sorted(field.alias or name for name, field in here.model_fields.items())


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
