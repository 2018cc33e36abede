"""The flow that brings a workspace up to date: it lists what is stale, submits what is ready, waits, and lists again.

It computes nothing. What is stale is the planner's to say, and what is done is told by manifests alone, so the engine's
own results and caches are off, and a run that was cut off needs no memory of itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from contextlib import ExitStack
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture
from prefect.task_runners import ThreadPoolTaskRunner
from prefect.tasks import Task

from flows.logs import new_log
from flows.progress import SilentProgress, StepProgress
from flows.runlog import RunLog
from flows.worker import load_steps
from flows.workers import REAL_STEPS, PassingError, StepError, Workers
from pipeline.ingest import (
    IngestReport,
    Pending,
    SessionLook,
    look_again,
    look_at_session,
    remember_session,
    settle_looks,
    take_scan,
)
from pipeline.opening import open_workspace
from pipeline.planner import Action, plan
from pipeline.session import Refusal
from pipeline.snapshot import take_snapshot
from pipeline.workspace import Workspace
from storage.errors import ConfigError, NphmError, one_line
from storage.manifest import Manifest

PROGRESS: ContextVar[StepProgress | None] = ContextVar("PROGRESS", default=None)
"""Who hears how far the run is. A deployment's run has no terminal and stays silent."""

RETRY_AFTER_SECONDS = [2.0, 15.0, 60.0]

_THREADS: Any = ThreadPoolTaskRunner(max_workers=os.cpu_count())


def _may_pass(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    return isinstance(state.data, PassingError | OSError)


def as_task(function: Callable[..., None], name: str) -> Task[..., None]:
    """Make a task of a function of plain values: tried again where the failure may pass, nothing cached or kept."""
    return Task(
        function,
        name=name,
        task_run_name=name + " {key}",
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=len(RETRY_AFTER_SECONDS),
        retry_delay_seconds=RETRY_AFTER_SECONDS,
        retry_condition_fn=_may_pass,
    )


@flow(name="ingest-sessions", persist_result=False, task_runner=_THREADS)
def ingest_sessions(workspace: str, sessions: list[str], subject_prefix: str = "") -> IngestReport:
    """Take sessions into a workspace.

    Args:
        workspace: its address.
        sessions: folders with a ``session.json``.
        subject_prefix: put before every subject's id.
    """
    opened = open_workspace(workspace)
    looks = [look_at_session(opened, Path(session).absolute(), subject_prefix) for session in sessions]
    for look in looks:
        if look.fault is None:
            remember_session(opened, look)
    return take_in_pending(opened, looks)


@flow(name="bring-up-to-date", persist_result=False, task_runner=_THREADS)
def bring_up_to_date(
    workspace: str, until: str | None = None, workers: int | None = None, steps: str = REAL_STEPS
) -> dict[str, dict[str, float]]:
    """Look at the workspace's sessions again, then do whatever is stale.

    Args:
        workspace: its address.
        until: the last step to do; all of them when None.
        workers: processes for scans; as many as there are cores when None.
        steps: where the table of steps is found, ``MODULE:NAME``.

    Returns:
        Results, seconds and bytes by step.

    Raises:
        NphmError: a step failed in a way that speaks against the run. What does not depend on it has been done.
    """
    opened = open_workspace(workspace, load_steps(steps))
    take_in_pending(opened, look_again(opened))
    log = RunLog(opened)
    if until != "ingest":
        _do_what_is_stale(opened, until, workers or os.cpu_count() or 1, steps, log)
    return log.cost()


def take_in_pending(workspace: Workspace, looks: list[SessionLook]) -> IngestReport:
    """Take in what a look at sessions found pending, a task a scan. To be called in a flow."""
    by_key: dict[str, list[Pending]] = {}
    for look in looks:
        for found in look.pending:
            by_key.setdefault(found.scan.key, []).append(found)
    outcomes: dict[str, Manifest | Refusal] = {}
    if by_key:
        progress = PROGRESS.get() or SilentProgress()
        progress.start("ingest", sum(map(len, by_key.values())))

        def ingest_scan(key: str) -> None:
            # Scans of two sessions that claim one key, one after the other: the second is to be refused.
            for found in by_key[key]:
                outcomes[str(found.scan.folder)] = taken = take_scan(workspace, found)
                if isinstance(taken, Refusal):
                    progress.say(f"refused: {taken.line}")
                elif not taken.accepted:
                    progress.say(f"rejected: {'; '.join(taken.reasons)}")
                progress.update("ingest", len(outcomes))

        failures = _wait(as_task(ingest_scan, "ingest").submit(key) for key in by_key)
        progress.finish("ingest")
        if failures:
            settle_looks(workspace, looks, outcomes)
            raise failures[0]
    return settle_looks(workspace, looks, outcomes)


def _do_what_is_stale(workspace: Workspace, until: str | None, count: int, steps: str, log: RunLog) -> None:
    progress = PROGRESS.get() or SilentProgress()
    cores = os.cpu_count() or 1
    done: dict[str, int] = {}
    tried: set[Action] = set()
    failures: list[NphmError] = []
    with ExitStack() as stack:
        # A scan's worker has one thread, so that the bytes do not depend on the number of workers.
        scans = stack.enter_context(Workers(count, 1, new_log("scans"), steps))
        models = stack.enter_context(Workers(1, cores, new_log("models"), steps))

        def execute_key(step: str, key: str) -> None:
            whole = workspace.steps[step].scope == "model"

            def hear(part: int, total: int, note: str) -> None:
                if whole:
                    progress.update(step, part, note, total)

            finished = (models if whole else scans).call(workspace.url, step, key, hear)
            log.add(finished)
            if finished.outcome.verdict == "rejected":
                progress.say(f"rejected: {key} at {step}: {'; '.join(finished.outcome.reasons)}")
            done[step] = done.get(step, 0) + 1
            if not whole:
                progress.update(step, done[step])

        while actions := plan(take_snapshot(workspace), until):
            wave = _next_wave(actions, tried)
            if not wave:
                break
            step = wave[0].step
            if step not in done:
                done[step] = 0
                of_step = sum(action.step == step for action in actions)
                whole = workspace.steps[step].scope == "model"
                progress.start(step, of_step, "steps" if whole else "scans")
            if workspace.steps[step].scope == "model":
                scans.rest()
            execute = as_task(execute_key, step)
            failures += _wait(execute.submit(step, action.key) for action in wave)
            tried.update(wave)
            log.write()
            if not any(action.step == step for action in actions if action not in tried):
                progress.finish(step)
    if failures:
        more = f" ({len(failures)} such failures)" if len(failures) > 1 else ""
        raise StepError(f"{failures[0]}{more}")


def _next_wave(actions: list[Action], tried: set[Action]) -> list[Action]:
    """The actions that are ready, of the first step that has some; a failed one is not tried twice in a run."""
    ready = [action for action in actions if action.ready and action not in tried]
    return [action for action in ready if action.step == ready[0].step]


def _wait(futures: Iterable[PrefectFuture[None]]) -> list[NphmError]:
    """Wait for all tasks and return what failed. A wrong configuration stops the run at once."""
    failures: list[NphmError] = []
    for future in list(futures):
        try:
            future.result()
        except ConfigError:
            raise
        except NphmError as error:
            failures.append(error)
        except OSError as error:
            failures.append(StepError(one_line("could not read or write", "ingest", str(error), "run again")))
    return failures
