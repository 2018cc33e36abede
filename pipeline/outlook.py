"""What a workspace would do next, and how it stands: a plan over a fresh snapshot, the sessions looked at again."""

from __future__ import annotations

from dataclasses import dataclass

from pipeline.ingest import look_again
from pipeline.planner import Action, plan
from pipeline.snapshot import take_snapshot
from pipeline.standing import StepStanding, stand
from pipeline.workspace import Workspace


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
        """Rough cost on 2 cores."""
        return sum(action.minutes for action in self.actions)

    @property
    def megabytes(self) -> float:
        """Rough size of what is made."""
        return sum(action.megabytes for action in self.actions)


def look_ahead(workspace: Workspace, until: str | None = None) -> Outlook:
    """List what is stale, up to a step. Nothing is written.

    What later steps will have to do for scans that are yet to be taken in is not known before they are.
    """
    snapshot = take_snapshot(workspace)
    pending = [
        Action("ingest", found.scan.key, "compute", found.why)
        for look in look_again(workspace)
        for found in look.pending
    ]
    actions = [*pending, *plan(snapshot, until)]
    return Outlook(tuple(actions), tuple(stand(snapshot, actions)))
