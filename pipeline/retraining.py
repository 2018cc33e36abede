"""What a scheduled retraining calls, in plain values: train on from a model, and compare two."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from pipeline.execute import outcome_of
from pipeline.held_out import FIGURE, freeze, measure_model
from pipeline.promotion import compare
from pipeline.workspace import Workspace


def train_on(workspace: Workspace, parent: str) -> dict[str, Any]:
    """Train a model that goes on from ``parent``; an ``Outcome``'s fields."""
    from pipeline.train import retrain  # batches and shards: loaded where they are needed alone

    made = retrain(workspace, parent)
    return asdict(outcome_of(workspace.steps["train"], made.key, "compute", f"goes on from {parent}", made))


def compare_models(workspace: Workspace, candidate: str, last: str) -> dict[str, Any]:
    """Compare two models on the workspace's frozen held-out set: the set, the figure and a ``Comparison``'s fields."""
    service = workspace.config.service
    frozen = freeze(workspace, service.held_out_set)
    errors = {name: measure_model(workspace, name, frozen.name) for name in (candidate, last)}
    told = asdict(compare(errors[candidate], errors[last], service.noise_floor_mm))
    about = {"set": frozen.name, "set_version": frozen.version, "set_scans": len(frozen.scans), "figure": FIGURE}
    return about | {"candidate": candidate, "last": last} | told
