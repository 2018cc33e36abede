"""Carry out one action, in whatever process, and record what came of it."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from pipeline.inputs import model_name
from pipeline.opening import open_workspace
from pipeline.planner import Kind, decide
from pipeline.steps import STEPS
from pipeline.stepspec import StepSpec
from pipeline.verdict import judged_anew
from pipeline.workspace import Workspace
from storage.errors import ScanRejected, StorageConflict, one_line
from storage.manifest import Manifest, rewrite, withdraw

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Outcome:
    """What became of one key at one step.

    Attributes:
        step: name of the step.
        key: SUBJECT/EXPRESSION, or the model's name.
        kind: what was done; ``fresh`` when there was nothing to do.
        why: why it was done, in words.
        verdict: ``accepted`` or ``rejected``; None where no result stands.
        reasons: why it was rejected.
        bytes: size of the outputs.
    """

    step: str
    key: str
    kind: Kind | Literal["fresh"]
    why: str
    verdict: str | None
    reasons: tuple[str, ...] = ()
    bytes: int = 0

    @classmethod
    def of_plain(cls, told: Mapping[str, Any]) -> Outcome:
        """One that came from another process, as JSON has it."""
        return cls(**{**told, "reasons": tuple(told["reasons"])})


def execute(url: str, step: str, key: str, steps: Mapping[str, StepSpec] = STEPS) -> Outcome:
    """Do what a step has to do for one key, in the workspace at ``url``. Takes and gives plain values only."""
    return execute_in(open_workspace(url, steps), step, key)


def execute_in(workspace: Workspace, step: str, key: str) -> Outcome:
    """Do what a step has to do for one key.

    What that is, is decided here and now from the manifests as they stand: a key whose inputs turned out as they were,
    or that was done by somebody else, costs nothing.

    Args:
        key: SUBJECT/EXPRESSION; for steps over a whole model its name, or '' for the one that the data calls for. What
            came in while a model was trained makes another one; this one stands under its name.

    Raises:
        ConfigError, StorageConflict: the run must stop. A scan that can't be used is recorded as rejected instead.
    """
    spec = workspace.steps[step]
    if spec.scope == "model" and not (key and any(need.over == "model" for need in spec.needs)):
        key = model_name(workspace)  # a model is named by its data; what follows training goes by the model
    action = decide(workspace, spec, key)
    if action is None:
        return outcome_of(spec, key, "fresh", "", workspace.manifest(step, key))
    if action.kind == "withdraw":
        withdraw(workspace.store, spec.manifest_path(key), spec.own_folder)
        made = None
    elif action.kind == "judge":
        made = _judge_anew(workspace, spec, key)
    else:
        made = _compute(workspace, spec, key)
        left = decide(workspace, spec, key)
        if left is not None and spec.scope == "scan":
            raise StorageConflict(one_line("is stale as soon as made", f"{step} of {key}", left.why, "run again"))
    log.info("%s: %s %s (%s): %s", key, step, action.kind, action.why, made.verdict if made else "withdrawn")
    return outcome_of(spec, key, action.kind, action.why, made)


def _compute(workspace: Workspace, spec: StepSpec, key: str) -> Manifest:
    assert spec.run is not None, f"{spec.name} is not run by key"
    inputs = workspace.inputs(spec.name, key)
    try:
        return spec.run(workspace, key)
    except ScanRejected as fault:
        return workspace.commit(spec.name, key, inputs=inputs, faults=[str(fault)])


def _judge_anew(workspace: Workspace, spec: StepSpec, key: str) -> Manifest:
    manifest = workspace.manifest(spec.name, key)
    assert manifest is not None, f"{spec.name} of {key} has no manifest to judge"
    thresholds = workspace.config.thresholds_of_step(spec.name)
    anew = judged_anew(spec, thresholds, workspace.judgement(key), manifest)
    rewrite(workspace.store, spec.manifest_path(key), anew)
    return anew


def outcome_of(spec: StepSpec, key: str, kind: Kind | Literal["fresh"], why: str, made: Manifest | None) -> Outcome:
    """What became of a key, by the manifest that stands now."""
    if made is None:
        return Outcome(spec.name, key, kind, why, None)
    total = sum(output.bytes for output in made.outputs.values())
    return Outcome(spec.name, key, kind, why, made.verdict, tuple(made.reasons), total)
