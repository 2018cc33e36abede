"""Sweep up after what was killed: runs that the server still takes for running, and processes without a parent."""

from __future__ import annotations

import os
import signal
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

from flows.doctor import orphans
from pipeline.opening import open_workspace
from storage.errors import ConfigError
from storage.lock import read_owners

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
    """Sweep this machine, the workspace and, where one is named, the server.

    Args:
        url: the workspace.
        grace: runs that began later are left alone.
    """
    swept = Swept()
    for pid in orphans():
        os.kill(pid, signal.SIGKILL)
        swept.processes.append(pid)
    if url is not None:
        swept.files = open_workspace(url).store.sweep()
    from prefect.settings import PREFECT_API_URL

    if PREFECT_API_URL.value():
        swept.runs = _zombies(grace)
    return swept


def _zombies(grace: timedelta) -> list[str]:
    """Mark the runs as crashed whose workspace nobody holds: whoever ran them is gone."""
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

    marked = []
    running = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.RUNNING])))
    with get_client(sync_client=True) as client:
        found = client.read_flow_runs(
            flow_filter=FlowFilter(name=FlowFilterName(any_=list(FLOWS))), flow_run_filter=running
        )
        for run in found:
            began = run.start_time or run.created
            if began is not None and datetime.now(UTC) - began < grace:
                continue
            if not _is_held(str(run.parameters.get("workspace", ""))):
                state: State[Any] = Crashed(message="Its process is gone: nobody holds its workspace.")
                client.set_flow_run_state(run.id, state, force=True)
                marked.append(run.name)
    return marked


def _is_held(url: str) -> bool:
    try:
        owners = read_owners(open_workspace(url).store)
    except ConfigError:
        return False
    return any(not owner.gone(datetime.now(UTC).timestamp()) for owner in owners.values())
