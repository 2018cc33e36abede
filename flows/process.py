"""The flow that brings a workspace up to date: it lists what is stale, submits what is ready, waits, and lists again.

It computes nothing. What is stale is the planner's to say, and what is done is told by manifests alone, so the engine's
own results and caches are off, and a run that was cut off needs no memory of itself.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from prefect import flow
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.futures import PrefectFuture, as_completed
from prefect.runtime import flow_run
from prefect.task_runners import TaskRunner, ThreadPoolTaskRunner
from prefect.tasks import Task

from flows.cluster import cluster, execute_there
from flows.failures import StepError, StoreError, may_pass, store_error
from flows.logs import new_log
from flows.patience import RETRY_AFTER_SECONDS, patiently
from flows.progress import SilentProgress, StepProgress
from flows.runlog import RunLog
from flows.tagging import RunTags
from flows.worker import load_steps
from flows.workers import REAL_STEPS, Done, Workers
from pipeline.execute import Outcome
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
from pipeline.opening import open_workspace, write_schema
from pipeline.planner import Action, plan
from pipeline.rejected import write_rejected
from pipeline.session import Refusal
from pipeline.snapshot import Snapshot, take_snapshot
from pipeline.workspace import Workspace
from storage.errors import ConfigError, NphmError, one_line
from storage.lock import Lock, hold
from storage.manifest import Manifest

PROGRESS: ContextVar[StepProgress | None] = ContextVar("PROGRESS", default=None)
"""Who hears how far the run is. A deployment's run has no terminal and stays silent."""

INGEST_WAIT_SECONDS = 600.0
"""How long to wait for somebody else who takes sessions in."""

_THREADS: Any = ThreadPoolTaskRunner(max_workers=os.cpu_count())


def _may_pass(task: Task[..., Any], run: TaskRun, state: State[Any]) -> bool:
    return may_pass(state.data)


def as_task(function: Callable[..., Any], name: str) -> Task[..., Any]:
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
def ingest_sessions(
    workspace: str, sessions: list[str], subject_prefix: str = "", copy_files: bool = False
) -> IngestReport:
    """Take sessions into a workspace.

    Args:
        workspace: its address.
        sessions: folders with a ``session.json``.
        subject_prefix: put before every subject's id.
        copy_files: keep a copy of the raw files in the workspace.
    """
    opened = open_workspace(workspace)
    with hold_ingest(opened):
        write_schema(opened)
        roots = [Path(session).absolute() for session in sessions]
        looks = [look_at_session(opened, root, subject_prefix, copy=copy_files) for root in roots]
        for look in looks:
            if look.fault is None:
                remember_session(opened, look)
        log = RunLog(opened, flow_run.id or "")
        report = take_in_pending(opened, looks, log)
        write_rejected(opened, take_snapshot(opened))
        patiently(log.write, opened.url)
        return report


@flow(name="bring-up-to-date", persist_result=False, task_runner=_THREADS)
def bring_up_to_date(
    workspace: str,
    until: str | None = None,
    workers: int | None = None,
    steps: str = REAL_STEPS,
    dask: str | None = None,
    wait_seconds: float = 0.0,
) -> dict[str, dict[str, float]]:
    """Look at the workspace's sessions again, then do whatever is stale.

    Args:
        workspace: its address.
        until: the last step to do; all of them when None.
        workers: processes for scans; as many as there are cores when None.
        steps: where the table of steps is found, ``MODULE:NAME``.
        dask: address of a Dask scheduler whose workers do the steps over scans, or ``local`` for a cluster of
            ``workers`` processes on this machine.
        wait_seconds: how long to wait for another run of the same workspace.

    Returns:
        Results, seconds and bytes by step.

    Raises:
        NphmError: a step failed in a way that speaks against the run. What does not depend on it has been done.
    """
    opened = open_workspace(workspace, load_steps(steps))
    log = RunLog(opened, flow_run.id or "")
    with hold_ingest(opened):
        write_schema(opened)
        take_in_pending(opened, look_again(opened), log)
        if log.done:
            patiently(log.write, opened.url)
    if until != "ingest":
        count = workers or os.cpu_count() or 1
        what = f"a run until {until or 'the end'}"
        with hold(opened.store, "run", what, run=log.run, wait_seconds=wait_seconds) as lock, ExitStack() as stack:
            opened.store.sweep()
            elsewhere = stack.enter_context(cluster(dask, count)) if dask else None
            _do_what_is_stale(opened, until, count, steps, log, lock, elsewhere)
    return log.cost()


@contextmanager
def hold_ingest(workspace: Workspace) -> Iterator[Lock]:
    """Be the only one who takes sessions in."""
    with hold(workspace.store, "ingest", "taking sessions in", wait_seconds=INGEST_WAIT_SECONDS) as lock:
        yield lock


def take_in_pending(workspace: Workspace, looks: list[SessionLook], log: RunLog) -> IngestReport:
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
                began = time.perf_counter()
                outcomes[str(found.scan.folder)] = taken = take_scan(workspace, found)
                if isinstance(taken, Refusal):
                    verdict, reasons = "refused", [taken.line]
                else:
                    verdict, reasons = taken.verdict, taken.reasons
                if verdict == "rejected":
                    progress.say(f"rejected: {'; '.join(reasons)}")
                outcome = Outcome("ingest", key, "compute", found.why, verdict, tuple(reasons))
                session = found.scan.session["session_id"]
                log.add(Done(outcome, round(time.perf_counter() - began, 3)), session)
                progress.update("ingest", len(outcomes))

        RunTags().add(by_key, {found.scan.session["session_id"] for look in looks for found in look.pending})
        task = as_task(ingest_scan, "ingest")
        futures = {task.submit(key): Action("ingest", key, "compute", found[0].why) for key, found in by_key.items()}
        failures = _gather(futures, lambda action, done: None, lambda action, error: None)
        progress.finish("ingest")
        if failures:
            settle_looks(workspace, looks, outcomes)
            raise failures[0]
    return settle_looks(workspace, looks, outcomes)


def _do_what_is_stale(
    workspace: Workspace,
    until: str | None,
    count: int,
    steps: str,
    log: RunLog,
    lock: Lock,
    elsewhere: TaskRunner[Any] | None,
) -> None:
    progress = PROGRESS.get() or SilentProgress()
    cores = os.cpu_count() or 1
    done: dict[str, int] = {}
    tried: set[Action] = set()
    ended: set[Action] = set()
    failures: list[NphmError] = []
    run_tags = RunTags()
    with ExitStack() as stack:
        # Left last: its tasks end once the workers that they wait for have been ended.
        here = stack.enter_context(ThreadPoolTaskRunner[Done](max_workers=count))
        # A scan's worker has one thread, so that the bytes do not depend on the number of workers.
        scans = stack.enter_context(Workers(count, 1, new_log("scans"), steps))
        models = stack.enter_context(Workers(1, cores, new_log("models"), steps))

        def finish(action: Action, finished: Done) -> None:
            step = finished.outcome.step
            ended.add(action)
            log.add(finished, _session_of(snapshot, action.key))
            if finished.outcome.verdict == "rejected":
                progress.say(f"rejected: {finished.outcome.key} at {step}: {'; '.join(finished.outcome.reasons)}")
            done[step] = done.get(step, 0) + 1
            if workspace.steps[step].scope == "scan":
                progress.update(step, done[step])

        def execute_here(step: str, key: str) -> Done:
            spec = workspace.steps[step]

            def hear(part: int, total: int, note: str) -> None:
                if spec.scope == "model":
                    progress.update(step, part, note, total)

            pool = models if spec.scope == "model" else scans
            return pool.call(workspace.url, step, key, hear, spec.limit_minutes)

        while True:
            snapshot = patiently(lambda: take_snapshot(workspace), workspace.url)
            actions = plan(snapshot, until)
            wave = _next_wave(actions, tried)
            lock.check()
            if not wave:
                failures += [_undone(action) for action in actions if action in ended]
                break
            step = wave[0].step
            whole = workspace.steps[step].scope == "model"
            if step not in done:
                done[step] = 0
                progress.start(step, sum(a.step == step for a in actions), "step" if whole else "scan")
            if whole:
                scans.rest()
            runner: TaskRunner[Any] = here
            task = as_task(execute_here, step)
            told = {"step": step}
            if elsewhere is not None and not whole:
                runner, task = elsewhere, as_task(execute_there, step)
                told |= {"workspace": workspace.url, "steps": steps}
            if not whole:
                keys = [action.key for action in wave]
                run_tags.add(keys, (_session_of(snapshot, key) for key in keys))
            futures = {runner.submit(task, told | {"key": action.key}): action for action in wave}
            failures += _gather(futures, finish, log.add_failure)
            tried.update(wave)
            patiently(log.write, workspace.url)
            if not any(action.step == step for action in actions if action not in tried):
                progress.finish(step)
        patiently(lambda: log.write_metrics(snapshot, actions), workspace.url)
    if failures:
        more = f" ({len(failures)} such failures)" if len(failures) > 1 else ""
        raise StepError(f"{failures[0]}{more}")


def _session_of(snapshot: Snapshot, key: str) -> str:
    """The session that a scan came with; empty for a model."""
    taken = snapshot.manifest("ingest", key)
    return "" if taken is None else str(taken.extra("session_id"))


def _undone(action: Action) -> StepError:
    """The failure where a worker found fresh, or left, what the planner still finds stale."""
    what = f"{action.step} of {action.key}"
    remedy = "let the run and all its workers use one version of the program"
    return StepError(one_line("is to be done again right after it was done", what, action.why, remedy))


def _next_wave(actions: list[Action], tried: set[Action]) -> list[Action]:
    """The actions that are ready, of the first step that has some; a failed one is not tried twice in a run."""
    ready = [action for action in actions if action.ready and action not in tried]
    return [action for action in ready if action.step == ready[0].step]


def _gather(
    futures: Mapping[PrefectFuture[Any], Action],
    on_done: Callable[[Action, Any], None],
    on_failure: Callable[[Action, str], None],
) -> list[NphmError]:
    """Hear each task's end as it comes, and return what failed.

    Raises:
        ConfigError: the configuration is wrong, so the run stops at once.
        StoreError: the store can't be used, so it does as well.
    """
    failures: list[NphmError] = []
    for future in as_completed(list(futures)):
        action = futures[future]
        try:
            on_done(action, future.result())
        except (ConfigError, StoreError):
            raise
        except NphmError as error:
            failures.append(error)
            on_failure(action, str(error))
        except OSError as error:
            raise store_error(f"{action.step} of {action.key}", str(error), error.errno) from error
    return failures
