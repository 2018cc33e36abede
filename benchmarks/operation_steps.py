"""Steps that write a small fixed output each, over the real store, planner and executor."""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

import numpy as np

from pipeline.execute import execute_in
from pipeline.ingest import STEP_VERSION, judge_ingest
from pipeline.stepspec import Need, StepSpec
from pipeline.workspace import Workspace
from storage.errors import ScanRejected
from storage.manifest import Manifest
from storage.ply import write_ply

SECONDS = float(os.environ.get("OPERATION_STEP_SECONDS", "0"))
BAD_SCANS = os.environ.get("OPERATION_BAD_SCANS", "").split(",")


def _run(step: str, workspace: Workspace, key: str) -> Manifest:
    inputs = workspace.inputs(step, key)
    for part in range(4):
        workspace.tell(part, 4, "")
        time.sleep(SECONDS / 4)
    digest = hashlib.sha256(repr((step, key, sorted(inputs.items()))).encode()).digest()
    if step == "clean" and key in BAD_SCANS:
        raise ScanRejected(f"{key}: is bad (a benchmark); capture it again")
    points = np.frombuffer(digest + digest[:4], np.uint8).reshape(-1, 3).astype(np.float32)
    mesh = write_ply(dict(zip("xyz", points.T, strict=True)), np.arange(12, dtype=np.int32).reshape(-1, 3))
    outputs = {"mesh.ply": mesh, "watertight.ply": mesh} if step == "clean" else {"mesh.ply": mesh}
    return workspace.commit(step, key, inputs=inputs, outputs=outputs, figures={"size_mm": 1.0})


def run_clean(workspace: Workspace, key: str) -> Manifest:
    """Write a few bytes."""
    return _run("clean", workspace, key)


def run_register(workspace: Workspace, key: str) -> Manifest:
    """Write a few bytes."""
    return _run("register", workspace, key)


def run_sample(workspace: Workspace, key: str) -> Manifest:
    """Write a few bytes."""
    return _run("sample", workspace, key)


def run_train(workspace: Workspace, key: str) -> Manifest:
    """Write a few bytes."""
    return _run("train", workspace, key)


def train_on(workspace: Workspace, parent: str) -> dict[str, Any]:
    """What a retraining calls: train the model that the data calls for."""
    return asdict(execute_in(workspace, "train", ""))


def compare_models(workspace: Workspace, candidate: str, last: str) -> dict[str, Any]:
    """What a retraining calls then: the new model is no worse."""
    return {"candidate": candidate, "last": last, "promote": True, "why": "nothing is measured here"}


def judge(figures: Mapping[str, Any], thresholds: object) -> list[str]:
    """Nothing speaks against anything."""
    return []


_REGISTER_NEEDS = (Need("clean"), Need("register", "canonical"))

STEPS = {
    spec.name: spec
    for spec in (
        StepSpec("ingest", "ingest", STEP_VERSION, None, judge_ingest),
        StepSpec("clean", "clean", 1, run_clean, judge, needs=(Need("ingest"),)),
        StepSpec("register", "registrations", 1, run_register, judge, needs=_REGISTER_NEEDS),
        StepSpec("sample", "samples", 1, run_sample, judge, needs=(Need("register"),)),
        StepSpec("train", "models", 1, run_train, judge, scope="model", needs=(Need("sample", "train"),)),
    )
}
