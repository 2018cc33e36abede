"""All steps, in the order in which they follow each other."""

from __future__ import annotations

from pipeline import ingest
from pipeline.stepspec import StepSpec

INGEST = StepSpec("ingest", "ingest", ingest.STEP_VERSION, None, ingest.judge_ingest)

_IN_ORDER: tuple[StepSpec, ...] = (INGEST,)

STEPS: dict[str, StepSpec] = {spec.name: spec for spec in _IN_ORDER}
"""The steps by name."""
