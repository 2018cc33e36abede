"""A table of steps that write a few bytes each, over the real store, planner and executor."""

from __future__ import annotations

import errno
import hashlib
import os
import sys
import time
from collections.abc import Mapping
from typing import Any

from pipeline.ingest import STEP_VERSION, judge_ingest
from pipeline.stepspec import Need, StepSpec
from pipeline.workspace import Workspace
from storage.errors import ScanRejected
from storage.manifest import Manifest

IS_WORKER = "flows.worker" in sys.orig_argv
CLEAN_VERSION = 1 if IS_WORKER else int(os.environ.get("SMALL_STEP_VERSION_OF_THE_RUN", "1"))
SECONDS = float(os.environ.get("SMALL_STEP_SECONDS", "0"))


def _run(step: str, workspace: Workspace, key: str) -> Manifest:
    inputs = workspace.inputs(step, key)
    for done in range(4):
        workspace.tell(done, 4, "")
        time.sleep(SECONDS / 4)
    if f"{step} {key}" == os.environ.get("SMALL_STEP_REJECTS"):
        raise ScanRejected(f"{key}: is not wanted (a test); take another")
    if f"{step} {key}" == os.environ.get("SMALL_STEP_FINDS_NO_ROOM"):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "a file")
    if f"{step} {key}" == os.environ.get("SMALL_STEP_BREAKS"):
        raise ZeroDivisionError("a fault of the program")
    data = hashlib.sha256(repr((step, key, sorted(inputs.items()))).encode()).digest() * 100
    return workspace.commit(step, key, inputs=inputs, outputs={"made.bin": data}, figures={"size_mm": 1.0})


def run_clean(workspace: Workspace, key: str) -> Manifest:
    """Write a few bytes."""
    return _run("clean", workspace, key)


def run_register(workspace: Workspace, key: str) -> Manifest:
    """Write a few bytes."""
    return _run("register", workspace, key)


def run_train(workspace: Workspace, key: str) -> Manifest:
    """Write a few bytes."""
    return _run("train", workspace, key)


def judge(figures: Mapping[str, Any], thresholds: object) -> list[str]:
    """Nothing speaks against anything."""
    return []


_REGISTER_NEEDS = (Need("clean"), Need("register", "canonical"))

STEPS = {
    spec.name: spec
    for spec in (
        StepSpec("ingest", "ingest", STEP_VERSION, None, judge_ingest),
        StepSpec("clean", "clean", CLEAN_VERSION, run_clean, judge, needs=(Need("ingest"),)),
        StepSpec("register", "registrations", 1, run_register, judge, needs=_REGISTER_NEEDS),
        StepSpec("train", "models", 1, run_train, judge, scope="model", needs=(Need("register", "all"),)),
    )
}
