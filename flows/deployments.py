"""What prefect.yaml deploys: watch for sessions, take one in, process what is new, train anew, release, sweep up.

Each may be called as a function. None asks for anything: what is left out is found in the workspace.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from prefect import Flow, flow, runtime
from prefect.client.schemas.objects import FlowRun, State
from prefect.deployments import run_deployment

from flows.artifacts import show_comparison, show_cost, show_session
from flows.logs import new_log
from flows.notify import notify
from flows.patience import patiently
from flows.process import bring_up_to_date, ingest_sessions
from flows.run import sum_up
from flows.runlog import RunLog
from flows.sweeping import sweep as sweep_up
from flows.worker import load_steps
from flows.workers import REAL_STEPS, Done, Workers
from pipeline.execute import Outcome
from pipeline.inbox import Seen, look_at_inbox
from pipeline.models import latest_model, promote
from pipeline.opening import open_workspace
from pipeline.planner import is_wanted
from pipeline.promotion import new_subjects
from pipeline.rejected import list_rejected
from pipeline.release_build import build_release
from pipeline.release_config import Part
from pipeline.snapshot import Snapshot, take_snapshot
from pipeline.workspace import Workspace
from storage.digest import canonical_json
from storage.errors import ConfigError, NphmError, one_line
from storage.lock import hold
from storage.store import LocalStore, open_store

WAIT_MINUTES = 360.0
"""How long a scheduled run waits for another run of its workspace."""

_INBOX_STATE = ".cache/inbox.json"


class NothingUsableError(NphmError):
    """Nothing of what came in could be used."""


def tell_failure(flow: Flow[..., Any], flow_run: FlowRun, state: State[Any]) -> None:
    """Tell whoever the workspace names that a run failed or crashed."""
    url = open_workspace(str(flow_run.parameters["workspace"])).config.service.notify_url
    notify(url, "run-failed", f"{flow.name} {flow_run.name}: {state.message}", run=str(flow_run.id))


@flow(name="ingest-session", persist_result=False, on_failure=[tell_failure], on_crashed=[tell_failure])
def ingest_session(
    workspace: str, session: str, subject_prefix: str = "", copy_files: bool = False, then: str = ""
) -> dict[str, int]:
    """Take one finished session into a workspace. Taking it in again changes nothing.

    Args:
        workspace: its address.
        session: the folder with ``session.json``.
        subject_prefix: put before every subject's id.
        copy_files: keep a copy of the raw files in the workspace.
        then: a deployment to start afterwards with the same workspace, such as ``process/process``.

    Returns:
        Scans accepted, rejected, unchanged and refused.

    Raises:
        NothingUsableError: not one scan is in the workspace after it.
    """
    report = ingest_sessions(workspace, [str(Path(session))], subject_prefix, copy_files)
    opened = open_workspace(workspace)
    book = take_snapshot(opened)
    _show_sessions(opened, book, {*report.accepted, *report.rejected})
    if not (report.accepted or report.unchanged):
        raise NothingUsableError("; ".join(report.faults) or f"{session}: no scan could be used; see rejected.jsonl")
    if then:
        run_deployment(then, parameters={"workspace": workspace}, timeout=0, as_subflow=False)
    return {name: len(getattr(report, name)) for name in ("accepted", "rejected", "unchanged", "refused")}


@flow(name="process", persist_result=False, on_failure=[tell_failure], on_crashed=[tell_failure])
def process(
    workspace: str,
    workers: int | None = None,
    steps: str = REAL_STEPS,
    dask: str | None = None,
    wait_minutes: float = WAIT_MINUTES,
) -> dict[str, Any]:
    """Clean, register and sample whatever is stale.

    Args:
        workspace: its address.
        workers: processes for scans; as many as there are cores when None.
        steps: where the table of steps is found, ``MODULE:NAME``.
        dask: address of a Dask scheduler whose workers do the steps, or ``local``.
        wait_minutes: how long to wait for another run of the workspace.

    Returns:
        How the workspace stands, as ``nphm run --json`` prints it.
    """
    opened = open_workspace(workspace, load_steps(steps))
    before = take_snapshot(opened).manifests
    cost = bring_up_to_date(workspace, "sample", workers, steps, dask, 60 * wait_minutes)
    show_cost("process", cost)
    book = take_snapshot(opened)
    _show_sessions(
        opened, book, {key for (step, key), made in book.manifests.items() if before.get((step, key)) != made}
    )
    return dict(sum_up(opened, "sample", cost, book).reply(strict=False).document)


@flow(name="retrain", persist_result=False, on_failure=[tell_failure], on_crashed=[tell_failure])
def retrain(
    workspace: str,
    workers: int | None = None,
    steps: str = REAL_STEPS,
    force: bool = False,
    functions: str = "pipeline.retraining",
    wait_minutes: float = WAIT_MINUTES,
) -> dict[str, Any]:
    """Train on from the last promoted model, once there are enough new subjects, and promote what is no worse.

    A workspace without a model gets its first one, from nothing.

    Args:
        workspace: its address.
        workers: processes for scans; as many as there are cores when None.
        steps: where the table of steps is found, ``MODULE:NAME``.
        force: train however few subjects are new.
        functions: the module with ``train_on`` and ``compare_models``.
        wait_minutes: how long to wait for another run of the workspace.

    Returns:
        ``trained``, ``promoted`` and ``why``, and what the comparison found.
    """
    opened = open_workspace(workspace, load_steps(steps))
    service = opened.config.service
    wait_seconds = 60 * wait_minutes
    last = latest_model(opened)
    if last is None:
        cost = bring_up_to_date(workspace, "report", workers, steps, None, wait_seconds)
        show_cost("retrain", cost)
        sum_up(opened, "report", cost, take_snapshot(opened))
        first = latest_model(opened)
        why = "the workspace's first model" if first else "nothing could be trained on; see rejected.jsonl"
        return {"trained": first is not None, "promoted": first is not None, "why": why}
    show_cost("retrain", bring_up_to_date(workspace, "sample", workers, steps, None, wait_seconds))
    new = new_subjects(take_snapshot(opened), last.name)
    if len(new) < service.min_new_subjects and not force:
        why = f"{len(new)} new subjects since {last.name}, {service.min_new_subjects} are waited for"
        return {"trained": False, "promoted": False, "why": why}
    with ExitStack() as stack:
        lock = stack.enter_context(
            hold(opened.store, "run", "retraining", run=runtime.flow_run.id or "", wait_seconds=wait_seconds)
        )
        pool = stack.enter_context(Workers(1, os.cpu_count() or 1, new_log("models"), steps))

        def check_lock(done: int, total: int, note: str) -> None:
            lock.check()

        log = RunLog(opened, runtime.flow_run.id or "")
        called = pool.call_function(workspace, f"{functions}:train_on", {"parent": last.name}, check_lock)
        model = Outcome.of_plain(called.result)
        log.add(Done(model, called.seconds, called.steps_per_second))
        found: dict[str, Any] = {"trained": True, "promoted": False, "new_subjects": len(new), "name": model.key}
        if model.verdict != "accepted":
            found["why"] = "; ".join(model.reasons)
        else:
            both = {"candidate": model.key, "last": last.name}
            compared = pool.call_function(workspace, f"{functions}:compare_models", both, check_lock).result
            show_comparison(compared)
            found |= compared
            steps_in_order = list(opened.steps)
            for step in steps_in_order[steps_in_order.index("train") + 1 :]:
                if is_wanted(opened, opened.steps[step]):
                    log.add(pool.call(workspace, step, model.key, check_lock))
            if compared["promote"]:
                promote(opened, model.key)
                found["promoted"] = True
        patiently(log.write, opened.url)
        show_cost("retrain-model", log.cost())
    event = "promoted" if found["promoted"] else "not-promoted"
    notify(service.notify_url, event, f"{found['name']}: {found['why']}", comparison=found)
    return found


@flow(name="release", persist_result=False, on_failure=[tell_failure], on_crashed=[tell_failure])
def release(
    workspace: str,
    version: str = "",
    out: str = "",
    parts: Sequence[Part] = (),
    model: str | None = None,
    wait_minutes: float = WAIT_MINUTES,
) -> dict[str, Any]:
    """Build a release of what may be given out.

    Args:
        workspace: its address.
        version: MAJOR.MINOR.PATCH; the next minor one after the last release when left out.
        out: an empty folder or bucket; beside the workspace when left out.
        parts: what to put in; everything when left out.
        model: the model to put in; the promoted one when left out.
        wait_minutes: how long to wait for a run of the workspace, whose results are not to change meanwhile.

    Returns:
        Version, place, digest of the manifest, scans, and how many were left out.
    """
    opened = open_workspace(workspace)
    built = build_release(
        opened,
        version or None,
        open_store(out) if out else None,
        tuple(parts) or None,
        model,
        run=runtime.flow_run.id or "",
        wait_seconds=60 * wait_minutes,
    )
    return {
        "version": built.record.version,
        "release": built.record.place,
        "manifest_sha256": built.record.manifest_sha256,
        "scans": len(built.scans),
        "left_out": len(built.left_out),
    }


@flow(name="watch", persist_result=False, on_failure=[tell_failure], on_crashed=[tell_failure])
def watch(
    workspace: str,
    inbox: str,
    landing: str = "",
    settle_seconds: float = 300.0,
    deployment: str = "ingest-session/ingest-session",
    then: str = "process/process",
) -> list[str]:
    """Look for finished uploads and start ``ingest-session`` for each, once for each content.

    Args:
        workspace: its address.
        inbox: the folder or bucket that sessions are uploaded to.
        landing: the folder that sessions of a bucket are copied to; it has to stay, as the workspace refers to it.
        settle_seconds: how long an upload without ``upload.complete`` must look the same.
        deployment: what to start for each.
        then: what that starts afterwards.

    Returns:
        The sessions' folders that were handed on.

    Raises:
        ConfigError: a bucket is watched and no landing folder is named.
    """
    opened, source = open_workspace(workspace), open_store(inbox)
    if not (isinstance(source, LocalStore) or landing):
        raise ConfigError(one_line("needs a folder to copy sessions to", inbox, "", "name one as 'landing'"))
    known = {root: Seen(**seen) for root, seen in _read_json(opened, _INBOX_STATE).items()}
    stats = patiently(source.stats, inbox)
    found = look_at_inbox(stats, known, time.time(), settle_seconds)
    handed = []
    for root, look in found.finished.items():
        folder = f"{source.url}/{root}"
        if not isinstance(source, LocalStore):
            folder = f"{landing}/{root}"
            target = LocalStore(folder)
            for path in stats:
                if path.startswith(f"{root}/"):
                    target.put_pieces(path.removeprefix(f"{root}/"), source.pieces(path))
        parameters = {"workspace": workspace, "session": folder, "then": then}
        run_deployment(
            deployment,
            parameters=parameters,
            timeout=0,
            idempotency_key=f"{workspace} {root} {look}",
            tags=[f"session:{root}"],
            as_subflow=False,
        )
        handed.append(folder)
        found.seen[root] = Seen(look, found.seen[root].since, look)
    seen = {root: vars(seen) for root, seen in found.seen.items()}
    if seen != {root: vars(before) for root, before in known.items()}:
        opened.store.put(_INBOX_STATE, canonical_json(seen))
    return handed


@flow(name="sweep", persist_result=False)
def sweep(workspace: str) -> dict[str, Any]:
    """Mark the workspace's runs whose process is gone as crashed, and end processes without a parent on this machine.

    Returns:
        What was swept.
    """
    return vars(sweep_up(workspace))


def _show_sessions(workspace: Workspace, book: Snapshot, keys: set[str]) -> None:
    """Show every session that one of these scans came with, and tell whose share of rejected scans is too high."""
    latest = latest_model(workspace)
    report = f"{workspace.url}/reports/{latest.name}/index.html" if latest else None
    of_session: dict[str, list[str]] = {}
    for key in book.scans():
        taken = book.manifest("ingest", key)
        if taken is not None:
            of_session.setdefault(str(taken.extra("session_id")), []).append(key)
    rejected = {line["key"] for line in list_rejected(book)}
    limit = workspace.config.service.most_rejected_share
    for session, own in of_session.items():
        if keys.isdisjoint(own):
            continue
        show_session(workspace, book, session, report)
        share = len(rejected.intersection(own)) / len(own)
        if share > limit:
            what = f"session {session}: {share:.0%} of {len(own)} scans were rejected, limit {limit:.0%}"
            notify(workspace.config.service.notify_url, "rejected-share", what, session=session, share=share)


def _read_json(workspace: Workspace, path: str) -> dict[str, Any]:
    try:
        told: dict[str, Any] = json.loads(workspace.store.get(path))
    except FileNotFoundError:
        return {}
    return told
