"""Steps over scans on the workers of a Dask cluster, through the engine's task runner.

Each worker hands its steps to a process of its own, as a run on one machine does: the same threads, the same seeds, the
same bytes, and a step that runs out of memory takes that process with it, not the worker.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

from prefect.task_runners import TaskRunner

from flows.logs import new_log
from flows.worker import load_steps
from flows.workers import Done, Workers
from storage.errors import ConfigError, NphmError, one_line

LOCAL = "local"
CONNECT_SECONDS = 15


class ClusterError(NphmError):
    """The Dask cluster can't be reached or started."""


@contextmanager
def cluster(address: str, count: int) -> Iterator[TaskRunner[Any]]:
    """The engine's task runner on a Dask cluster.

    Args:
        address: of its scheduler, or ``local`` for one of our own on this machine.
        count: workers of our own cluster, a process of one thread each.

    Raises:
        ClusterError: the scheduler does not answer.
        ConfigError: the address is none.
    """
    from prefect_dask import DaskTaskRunner

    if address == LOCAL:
        own: dict[str, Any] = {"n_workers": count, "threads_per_worker": 1, "dashboard_address": None}
        runner = DaskTaskRunner(cluster_kwargs=own)
    else:
        runner = DaskTaskRunner(address=address, client_kwargs={"timeout": CONNECT_SECONDS})
    with ExitStack() as stack:
        try:
            stack.enter_context(runner)
            _ = runner.client  # connects
        except ValueError as error:
            remedy = "write it as HOST:PORT or tcp://HOST:PORT, or leave --dask out"
            raise ConfigError(one_line("is no address of a Dask scheduler", address, str(error), remedy)) from error
        except OSError as error:
            remedy = "start it with 'dask scheduler', or leave --dask out"
            raise ClusterError(one_line("is no Dask scheduler that answers", address, str(error), remedy)) from error
        yield runner


def execute_there(workspace: str, step: str, key: str, steps: str) -> Done:
    """Execute a step in the process that belongs to this Dask worker. Called by a task, on whatever machine."""
    limit = load_steps(steps)[step].limit_minutes
    return _own_workers(steps).call(workspace, step, key, lambda done, total, note: None, limit)


@cache
def _own_workers(steps: str) -> Workers:
    """One process for this Dask worker, which ends with it."""
    return Workers(1, 1, new_log("scans"), steps)
