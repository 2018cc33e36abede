"""What a workspace would do next, and how it stands: a plan over a fresh snapshot, the sessions looked at again."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace

from pipeline.ingest import look_again
from pipeline.planner import Action, plan
from pipeline.snapshot import take_snapshot
from pipeline.standing import StepStanding, stand
from pipeline.train_config import STEP_VERSION, TrainConfig, expected_minutes, stages_of
from pipeline.workspace import Workspace

_RUNS = 20
"""How many of the last runs tell what a step costs here."""


@dataclass(frozen=True)
class Outlook:
    """A plan and the standing that it starts from.

    Attributes:
        actions: what is to be done, scans to be taken in first.
        standing: how each step stands now.
    """

    actions: tuple[Action, ...]
    standing: tuple[StepStanding, ...]

    @property
    def minutes(self) -> float:
        """Rough cost on 2 cores, or as long as the last runs here took, with as many workers as they had."""
        return sum(action.minutes for action in self.actions)

    @property
    def megabytes(self) -> float:
        """Rough size of what is made."""
        return sum(action.megabytes for action in self.actions)


def look_ahead(workspace: Workspace, until: str | None = None, every_byte: bool = False) -> Outlook:
    """List what is stale, up to a step. Nothing is written.

    With ``every_byte`` all results are read: see ``take_snapshot``.
    """
    snapshot = take_snapshot(workspace, every_byte)
    costs = _measured(workspace)
    settings: TrainConfig = workspace.config.of_step("train")  # type: ignore[assignment]
    training_minutes = expected_minutes(settings, _seconds_per_point(workspace, settings))
    pending = [
        Action("ingest", found.scan.key, "compute", found.why)
        for look in look_again(workspace)
        for found in look.pending
    ]
    following = plan(snapshot, until, [action.key for action in pending])
    actions = [_as_measured(workspace, action, costs, training_minutes) for action in (*pending, *following)]
    return Outlook(tuple(actions), tuple(stand(snapshot, actions)))


def _measured(workspace: Workspace) -> dict[str, tuple[float, float]]:
    """Minutes and megabytes of one result of each step, from the workspace's last runs."""
    sums: dict[str, list[float]] = {}
    logs = [path for path in workspace.store.list("runs") if path.endswith(".json")]
    for path in logs[-_RUNS:]:
        for step, cost in json.loads(workspace.store.get(path))["cost"].items():
            told = sums.setdefault(step, [0.0, 0.0, 0.0])
            seconds = cost.get("elapsed", cost["seconds"])
            for place, value in enumerate((cost["results"], seconds, cost["bytes"])):
                told[place] += value
    return {step: (told[1] / told[0] / 60, told[2] / told[0] / 1e6) for step, told in sums.items() if told[0]}


def _seconds_per_point(workspace: Workspace, config: TrainConfig) -> dict[str, float]:
    """What each stage of the last training of such a field took here for one point of a step."""
    found: dict[str, float] = {}
    logs = [path for path in workspace.store.list("runs") if path.endswith(".jsonl")]
    lines = [line for path in logs[-_RUNS:] for line in workspace.store.get(path).splitlines()]
    for told in map(json.loads, reversed(lines)):
        if told["step"] != "train" or "steps_per_second" not in told:
            continue
        manifest = workspace.manifest("train", told["key"])
        if manifest is None or manifest.step_version != STEP_VERSION:
            continue
        then = TrainConfig.model_validate({k: v for k, v in manifest.config.items() if k in TrainConfig.model_fields})
        if then.training.field == config.training.field:
            for stage, work in stages_of(then).items():
                if rate := told["steps_per_second"].get(stage):
                    found.setdefault(stage, 1 / (rate * work.points))
    return found


def _as_measured(
    workspace: Workspace, action: Action, costs: dict[str, tuple[float, float]], training_minutes: float
) -> Action:
    if action.kind != "compute":
        return action
    minutes, megabytes = costs.get(action.step, (action.minutes, action.megabytes))
    if workspace.steps[action.step].expect is not None:
        # depends on the settings, which may have changed since
        minutes = training_minutes if action.step == "train" else action.minutes
    return replace(action, minutes=minutes, megabytes=megabytes)
