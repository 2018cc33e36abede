"""A run from the command line: the engine is started where something is stale, and nothing is where nothing is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from flows.console import Exit, Reply, counted
from flows.engine import engine, quiet_engine
from flows.progress import StepProgress
from flows.worker import load_steps
from flows.workers import REAL_STEPS
from pipeline.ingest import IngestReport, look_again, look_at_session, remember_session, settle_looks
from pipeline.inputs import model_name
from pipeline.models import promote_first
from pipeline.opening import open_workspace
from pipeline.planner import plan
from pipeline.rejected import is_refusal, write_rejected
from pipeline.snapshot import Snapshot, take_snapshot
from pipeline.standing import StepStanding, stand
from pipeline.workspace import Workspace
from storage.lock import hold

_MOST_LINES = 20


@dataclass(frozen=True)
class RunResult:
    """What a run came to.

    Attributes:
        standing: how each step stands now.
        cost: results, seconds of work and of the clock, and bytes by step; empty where nothing was stale.
        rejected: each rejected scan with step, reason and file.
        report: where the report lies, or None.
    """

    standing: Sequence[StepStanding]
    cost: dict[str, dict[str, float]] = field(default_factory=dict)
    rejected: Sequence[dict[str, Any]] = ()
    report: str | None = None

    def reply(self, strict: bool) -> Reply:
        """The run's answer on the command line: a line a step, the rejected scans, the sum and the report last."""
        taken = self.standing[0].accepted + self.standing[0].rejected if self.standing else 0
        usable = taken - sum(1 for line in self.rejected if not is_refusal(line))
        lines = []
        for step in self.standing:
            if step.accepted or step.rejected:
                made = int(self.cost.get(step.step, {}).get("results", 0))
                lines.append(f"{step.step:<9}{step.accepted:6} accepted {step.rejected:6} rejected   {made} made now")
        lines += [f"rejected {line['key']} at {line['step']}: {line['reason']}" for line in self.rejected[:_MOST_LINES]]
        if len(self.rejected) > _MOST_LINES:
            lines.append(f"and {len(self.rejected) - _MOST_LINES} more in rejected.jsonl")
        last = f"{max(usable, 0)} of {counted(taken, 'scan')} usable, {len(self.rejected)} rejected"
        lines.append(f"{last}; report: {self.report}" if self.report else last)
        document = {
            "steps": [asdict(step) for step in self.standing],
            "cost": self.cost,
            "rejected": list(self.rejected),
            "report": self.report,
        }
        exit = Exit.DONE
        if usable <= 0:
            exit = Exit.NOTHING_USABLE
        elif strict and self.rejected:
            exit = Exit.FAILED
        return Reply(document, tuple(lines), exit)


def bring_up_to(
    url: str,
    until: str,
    progress: StepProgress,
    workers: int | None = None,
    steps: str = REAL_STEPS,
    dask: str | None = None,
) -> RunResult:
    """Look at a workspace's sessions again and do whatever is stale.

    Args:
        url: the workspace.
        until: the last step to do.
        progress: hears how far it is.
        workers: processes for scans; as many as there are cores when None.
        steps: where the table of steps is found, ``MODULE:NAME``.
        dask: address of a Dask scheduler whose workers do the steps over scans, or ``local``.

    Raises:
        NphmError: as ``flows.process.bring_up_to_date``; what does not depend on the failure has been done.
    """
    workspace = open_workspace(url, load_steps(steps))
    cost: dict[str, dict[str, float]] = {}
    book = take_snapshot(workspace)
    if any(look.pending for look in look_again(workspace)) or plan(book, until):
        quiet_engine()
        from flows.process import PROGRESS, bring_up_to_date

        PROGRESS.set(progress)
        with engine():
            cost = bring_up_to_date(workspace.url, until, workers, steps, dask)
        book = take_snapshot(workspace)
    return sum_up(workspace, until, cost, book)


def take_sessions_in(url: str, sessions: Sequence[Path], subject_prefix: str, progress: StepProgress) -> IngestReport:
    """Take sessions into a workspace, on the engine where there is anything to read."""
    workspace = open_workspace(url)
    looks = [look_at_session(workspace, session.absolute(), subject_prefix) for session in sessions]
    if any(look.pending for look in looks):
        quiet_engine()
        from flows.process import PROGRESS, ingest_sessions

        PROGRESS.set(progress)
        with engine():
            return ingest_sessions(workspace.url, [str(session) for session in sessions], subject_prefix)
    with hold(workspace.store, "ingest", "taking sessions in"):
        for look in looks:
            if look.fault is None:
                remember_session(workspace, look)
        report = settle_looks(workspace, looks, {})
        write_rejected(workspace, take_snapshot(workspace))
        return report


def sum_up(workspace: Workspace, until: str, cost: dict[str, dict[str, float]], snapshot: Snapshot) -> RunResult:
    """Write what is derived from the manifests, promote a first model, and tell how the workspace stands.

    Args:
        snapshot: the manifests as the run left them.
    """
    rejected = write_rejected(workspace, snapshot)
    made = {
        step: snapshot.manifest(step, model_name(snapshot)) for step in ("train", "report") if step in snapshot.steps
    }
    trained, reported = made.get("train"), made.get("report")
    if trained is not None and trained.accepted:
        promote_first(workspace, trained.key)
    report = None
    if reported is not None and until == "report":
        report = f"{workspace.url}/{reported.outputs['index.html'].path}"
    return RunResult(stand(snapshot, plan(snapshot, until)), cost, rejected, report)
