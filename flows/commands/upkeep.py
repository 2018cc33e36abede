"""Verbs that keep things in order: what may be deleted, and whether all that a run needs is there."""

from __future__ import annotations

from dataclasses import asdict
from typing import Annotated

from cyclopts import Parameter

from flows.commands import Workspace
from flows.console import PLAIN, Exit, Output, Reply

_MOST_LINES = 50


def gc(
    *,
    workspace: Workspace,
    delete: Annotated[bool, Parameter(negative=(), help="Delete it; without this, it is listed alone.")] = False,
    output: Output = PLAIN,
) -> Reply:
    """List what nothing in a workspace refers to, and delete it if asked to.

    That is what runs left that were cut off, results of scans and models that are gone, and old checkpoints.

    For example:

        nphm gc -w heads --delete
    """
    from pipeline.garbage import collect_garbage, find_garbage
    from pipeline.opening import open_workspace
    from storage.lock import hold

    opened = open_workspace(workspace)
    if delete:
        with hold(opened.store, "ingest", "gc"), hold(opened.store, "run", "gc"):
            found = collect_garbage(opened)
            opened.store.sweep()
    else:
        found = find_garbage(opened)
    megabytes = sum(garbage.bytes for garbage in found) / 1e6
    lines = [f"{garbage.path}: {garbage.why}" for garbage in found[:_MOST_LINES]]
    if len(found) > _MOST_LINES:
        lines.append(f"and {len(found) - _MOST_LINES} more; --json lists them")
    done = "deleted" if delete else "could go; 'nphm gc --delete' deletes them" if found else "could go"
    lines.append(f"{len(found)} objects, {megabytes:.1f} MB {done}")
    document = {"deleted": delete, "megabytes": round(megabytes, 3), "objects": [asdict(each) for each in found]}
    return Reply(document, tuple(lines))


def doctor(
    *,
    workspace: Annotated[
        str | None, Parameter(name=["--workspace", "-w"], help="A workspace to look at as well.")
    ] = None,
    sweep: Annotated[
        bool, Parameter(negative=(), help="End processes, and mark runs of the workspace, whose owner is gone.")
    ] = False,
    output: Output = PLAIN,
) -> Reply:
    """Check libraries, GPU, memory, disk, store, locks and server: a line each, with the remedy.

    Exits with 1 if a check failed.

    For example:

        nphm doctor -w heads
    """
    from flows.doctor import check_up

    swept = {}
    if sweep:
        from flows.sweeping import sweep as sweep_up

        swept = asdict(sweep_up(workspace))
    checks = list(check_up(workspace))
    lines = [str(check) for check in checks]
    lines += [f"swept: {what}: {found}" for what, found in swept.items() if found]
    failed = sum(check.state == "fail" for check in checks)
    lines.append(f"{failed} of {len(checks)} checks failed" if failed else "nothing that a run needs is missing")
    document = {"checks": [asdict(check) for check in checks], "swept": swept}
    return Reply(document, tuple(lines), Exit.FAILED if failed else Exit.DONE)
