"""All steps, in the order in which they follow each other."""

from __future__ import annotations

from pipeline import clean, ingest
from pipeline.stepspec import Need, StepSpec

INGEST = StepSpec("ingest", "ingest", ingest.STEP_VERSION, None, ingest.judge_ingest)

CLEAN = StepSpec(
    "clean",
    "clean",
    clean.STEP_VERSION,
    clean.run_clean,
    clean.judge_clean,
    needs=(Need("ingest"),),
    heeds=("accept",),
    uses_template=True,
    minutes=0.3,
    megabytes=25,
)

_IN_ORDER: tuple[StepSpec, ...] = (INGEST, CLEAN)

STEPS: dict[str, StepSpec] = {spec.name: spec for spec in _IN_ORDER}
"""The steps by name."""
