"""Sweep up after what was killed: runs that the server still takes for running, and processes without a parent."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from flows.doctor import orphans
from pipeline.opening import open_workspace
from pipeline.workspace import Workspace
from storage.lock import last_change, read_owners

FLOWS = ("ingest-session", "ingest-sessions", "process", "retrain", "release", "bring-up-to-date")
if TYPE_CHECKING:
    from prefect.client.schemas.objects import State

GRACE = timedelta(minutes=5)
"""How long a run may be under way without a lock: before its first and after its last."""


@dataclass
class Swept:
    """What was swept.

    Attributes:
        runs: names of the engine's runs that are marked as crashed now.
        processes: ids of the processes that were ended.
        files: unfinished files of killed writers that were removed.
    """

    runs: list[str] = field(default_factory=list)
    processes: list[int] = field(default_factory=list)
    files: int = 0


def sweep(url: str | None, grace: timedelta = GRACE) -> Swept:
    """Sweep this machine, and the workspace with its runs on the server, where each is named.

    Args:
        url: the workspace.
        grace: its runs are left alone if they began later, or if a lock of the workspace was held later.
    """
    swept = Swept()
    for pid in orphans():
        with suppress(ProcessLookupError):  # they end by themselves, maybe since they were listed
            os.kill(pid, signal.SIGKILL)
            swept.processes.append(pid)
    if url is None:
        return swept
    workspace = open_workspace(url)
    swept.files = workspace.store.sweep()
    from prefect.settings import PREFECT_API_URL

    if PREFECT_API_URL.value():
        swept.runs = _zombies(workspace, grace)
    return swept


def _zombies(workspace: Workspace, grace: timedelta) -> list[str]:
    """Mark a workspace's runs as crashed if nobody holds it: whoever ran them is gone."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.filters import (
        FlowFilter,
        FlowFilterName,
        FlowRunFilter,
        FlowRunFilterState,
        FlowRunFilterStateType,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.states import Crashed

    marked: list[str] = []
    running = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING])))
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=list(FLOWS))), flow_run_filter=running
        )
        # Looked at after the runs: one of them that ends now must not be taken for one that was never held.
        if _is_in_use(workspace, grace):
            return marked
        for run in found:
            began = run.start_time or run.created
            if began is not None and datetime.now(UTC) - began < grace:
                continue
            if _is_at(str(run.parameters.get("workspace", "")), workspace.url):
                state: State[Any] = Crashed(message="Its process is gone: nobody holds its workspace.")
                client.set_flow_run_state(run.id, state, force=True)
                marked.append(run.name)
    return marked


def _is_in_use(workspace: Workspace, grace: timedelta) -> bool:
    """Whether somebody holds a lock of the workspace, or did so a short while ago and may be on the way to the next."""
    now = datetime.now(UTC).timestamp()
    if any(not owner.gone(now) for owner in read_owners(workspace.store).values()):
        return True
    changed = last_change(workspace.store)
    return changed is not None and now - changed < grace.total_seconds()


def _is_at(told: str, url: str) -> bool:
    """Whether a run's parameter names this workspace; a relative path can't tell, as the run's folder is not known."""
    path = told.removeprefix("file://")
    if "://" in path:
        return path.rstrip("/") == url.rstrip("/")
    return os.path.isabs(path) and os.path.realpath(path) == url
