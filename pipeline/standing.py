"""How a workspace stands: what each step has made, what was rejected, what is stale and what is damaged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline.planner import Action
from pipeline.snapshot import Snapshot


@dataclass(frozen=True)
class StepStanding:
    """One step's results.

    Attributes:
        step: its name.
        accepted, rejected: results that stand, stale ones included.
        stale: results to be made or made anew.
        damaged: a line for each result whose outputs are not what its manifest says.
    """

    step: str
    accepted: int
    rejected: int
    stale: int
    damaged: tuple[str, ...] = ()


def stand(snapshot: Snapshot, actions: Sequence[Action]) -> list[StepStanding]:
    """Count a workspace's results, step by step.

    Args:
        snapshot: its manifests.
        actions: what ``pipeline.planner.plan`` made of them.
    """
    verdicts = Counter((step, manifest.verdict) for (step, _), manifest in snapshot.manifests.items())
    stale = Counter(action.step for action in actions if action.kind != "withdraw")
    damaged = {
        step: tuple(
            found
            for (of_step, _), manifest in sorted(snapshot.manifests.items())
            if of_step == step and (found := snapshot.damage(manifest)) is not None
        )
        for step in snapshot.steps
    }
    return [
        StepStanding(step, verdicts[step, "accepted"], verdicts[step, "rejected"], stale[step], damaged[step])
        for step in snapshot.steps
    ]
