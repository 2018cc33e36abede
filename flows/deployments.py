"""What prefect.yaml deploys: take a session in, process what is new, train anew. Each may be called as a function."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from prefect import flow

from flows.process import bring_up_to_date, ingest_sessions
from flows.run import sum_up
from flows.worker import load_steps
from flows.workers import REAL_STEPS
from pipeline.opening import open_workspace
from storage.errors import NphmError


class NothingUsableError(NphmError):
    """Nothing of what came in could be used."""


@flow(name="ingest-session", persist_result=False)
def ingest_session(workspace: str, session: str, subject_prefix: str = "") -> dict[str, int]:
    """Take one finished session into a workspace. Taking it in again changes nothing.

    Args:
        workspace: its address.
        session: the folder with ``session.json``.
        subject_prefix: put before every subject's id.

    Returns:
        Scans accepted, rejected, unchanged and refused.

    Raises:
        NothingUsableError: not one scan is in the workspace after it.
    """
    report = ingest_sessions(workspace, [str(Path(session))], subject_prefix)
    if not (report.accepted or report.unchanged):
        raise NothingUsableError("; ".join(report.faults) or f"{session}: no scan could be used; see rejected.jsonl")
    return {name: len(getattr(report, name)) for name in ("accepted", "rejected", "unchanged", "refused")}


@flow(name="process", persist_result=False)
def process(workspace: str, workers: int | None = None, steps: str = REAL_STEPS) -> dict[str, Any]:
    """Clean, register and sample whatever is stale.

    Args:
        workspace: its address.
        workers: processes for scans; as many as there are cores when None.
        steps: where the table of steps is found, ``MODULE:NAME``.

    Returns:
        How the workspace stands, as ``nphm run --json`` prints it.
    """
    return _bring_up_to(workspace, "sample", workers, steps)


@flow(name="retrain", persist_result=False)
def retrain(workspace: str, workers: int | None = None, steps: str = REAL_STEPS) -> dict[str, Any]:
    """Train, evaluate and report, after whatever of the earlier steps is stale.

    Args:
        workspace: its address.
        workers: processes for scans; as many as there are cores when None.
        steps: where the table of steps is found, ``MODULE:NAME``.

    Returns:
        How the workspace stands, as ``nphm run --json`` prints it.
    """
    return _bring_up_to(workspace, "report", workers, steps)


def _bring_up_to(workspace: str, until: str, workers: int | None, steps: str) -> dict[str, Any]:
    cost = bring_up_to_date(workspace, until, workers, steps)
    result = sum_up(open_workspace(workspace, load_steps(steps)), until, cost)
    return dict(result.reply(strict=False).document)
