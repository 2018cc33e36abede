"""The protocols as a plan sees them: version, settings, verdict. Free of torch, since every command reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from storage.frozen import Frozen

STEP_VERSION = 3

Protocol = Literal["canonical", "joint", "points", "noise", "yaw", "rig"]
"""What may be varied besides what the evaluation shows; see ``pipeline.protocols``."""

_FITS_A_SCAN: dict[Protocol, int] = {"canonical": 2, "joint": 2, "points": 6, "noise": 4, "yaw": 5, "rig": 1}
_MINUTES_A_FIT = 0.4
"""Of all methods together, with its measurements, on 2 cores."""


class ProtocolsConfig(Frozen):
    """Which protocols are measured; points, samples and fits are those of ``evaluate``."""

    names: tuple[Protocol, ...] = Field(default=(), description="which are measured")
    scans: int = Field(default=6, gt=0, description="held-out scans of each, spread over subjects")

    @model_validator(mode="after")
    def _each_once(self) -> ProtocolsConfig:
        if len(set(self.names)) < len(self.names):
            raise ValueError(f"names has one twice: {', '.join(self.names)}")
        return self


def are_wanted(config: ProtocolsConfig) -> bool:
    """Whether any is to be measured."""
    return bool(config.names)


def judge_protocols(figures: Mapping[str, Any], thresholds: None) -> list[str]:
    """Nothing speaks against a measurement: whether the model may be used is what the evaluation says."""
    return []


def expected_minutes(config: ProtocolsConfig) -> float:
    """Rough time on 2 cores."""
    return _MINUTES_A_FIT * config.scans * sum(_FITS_A_SCAN[name] for name in config.names)
