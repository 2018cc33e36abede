"""All steps, in the order in which they follow each other."""

from __future__ import annotations

from pipeline.stepspec import StepSpec

_IN_ORDER: tuple[StepSpec, ...] = ()

STEPS: dict[str, StepSpec] = {spec.name: spec for spec in _IN_ORDER}
"""The steps by name."""
