"""All steps, in the order in which they follow each other."""

from __future__ import annotations

from pipeline import (
    baselines_config,
    clean_config,
    evaluate_config,
    ingest,
    protocols_config,
    register_config,
    report_config,
    sample_config,
    train_config,
)
from pipeline.stepspec import Later, Need, StepSpec

INGEST = StepSpec("ingest", "ingest", ingest.STEP_VERSION, None, ingest.judge_ingest)

CLEAN = StepSpec(
    "clean",
    "clean",
    clean_config.STEP_VERSION,
    Later("pipeline.clean", "run_clean"),
    clean_config.judge_clean,
    needs=(Need("ingest"),),
    heeds=("accept",),
    uses_template=True,
    minutes=0.1,
    megabytes=15,
)

REGISTER = StepSpec(
    "register",
    "registrations",
    register_config.STEP_VERSION,
    Later("pipeline.register", "run_register"),
    register_config.judge_register,
    needs=(Need("clean"), Need("register", "canonical")),
    heeds=("accept", "reject"),
    uses_template=True,
    minutes=0.08,
    megabytes=2,
)

SAMPLE = StepSpec(
    "sample",
    "samples",
    sample_config.STEP_VERSION,
    Later("pipeline.sample", "run_sample"),
    sample_config.judge_sample,
    needs=(Need("register"), Need("clean"), Need("register", "canonical")),
    uses_template=True,
    minutes=0.02,
    megabytes=3,
)

TRAIN = StepSpec(
    "train",
    "models",
    train_config.STEP_VERSION,
    Later("pipeline.train", "run_train"),
    train_config.judge_train,
    scope="model",
    limit_minutes=None,
    needs=(Need("sample", "train"), Need("register", "train")),
    uses_template=True,
    expect=train_config.expected_minutes,
    megabytes=20,
)

BASELINES = StepSpec(
    "baselines",
    "baselines",
    baselines_config.STEP_VERSION,
    Later("pipeline.baselines", "run_baselines"),
    baselines_config.judge_baselines,
    scope="model",
    limit_minutes=None,
    needs=(Need("train", "model"), Need("sample", "train"), Need("register", "train")),
    wanted=baselines_config.are_wanted,
    uses_template=True,
    expect=baselines_config.expected_minutes,
    megabytes=60,
)

_MEASURED = (
    Need("clean", "train"),
    Need("register", "train"),
    Need("clean", "held_out"),
    Need("register", "held_out"),
)
"""What measurements read: held-out scans, and those that linear heads learn from."""

EVALUATE = StepSpec(
    "evaluate",
    "evaluations",
    evaluate_config.STEP_VERSION,
    Later("pipeline.evaluate", "run_evaluate"),
    evaluate_config.judge_evaluate,
    scope="model",
    limit_minutes=None,
    needs=(
        Need("train", "model"),
        Need("baselines", "model", optional=True),
        *_MEASURED,
    ),
    minutes=3,
    megabytes=10,
)

PROTOCOLS = StepSpec(
    "protocols",
    "protocols",
    protocols_config.STEP_VERSION,
    Later("pipeline.protocols", "run_protocols"),
    protocols_config.judge_protocols,
    scope="model",
    limit_minutes=None,
    needs=(
        Need("train", "model"),
        Need("evaluate", "model", rejected_too=True),
        *_MEASURED,
    ),
    wanted=protocols_config.are_wanted,
    expect=protocols_config.expected_minutes,
    megabytes=1,
)

REPORT = StepSpec(
    "report",
    "reports",
    report_config.STEP_VERSION,
    Later("pipeline.report", "run_report"),
    report_config.judge_report,
    scope="model",
    needs=(
        Need("train", "model", rejected_too=True),
        Need("evaluate", "model", rejected_too=True),
        Need("protocols", "model", optional=True),
        Need("clean", "all", rejected_too=True),
        Need("register", "all", rejected_too=True),
        Need("sample", "all", rejected_too=True),
    ),
    uses_template=True,
    minutes=0.1,
    megabytes=20,
)

_IN_ORDER = (INGEST, CLEAN, REGISTER, SAMPLE, TRAIN, BASELINES, EVALUATE, PROTOCOLS, REPORT)

STEPS: dict[str, StepSpec] = {spec.name: spec for spec in _IN_ORDER}
"""The steps by name."""
