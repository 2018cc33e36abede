"""Verbs over the steps: what is stale, do it, how it stands, and a person's word."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from typing import Annotated, Literal

from cyclopts import Parameter
from cyclopts.validators import Number

from flows.commands import Workspace
from flows.console import PLAIN, Exit, Output, Reply
from flows.progress import progress_for

StepName = Literal["ingest", "clean", "register", "sample", "train", "baselines", "evaluate", "protocols", "report"]
Strict = Annotated[bool, Parameter(negative=(), help="Exit with 1 if any scan was rejected.")]
WorkerCount = Annotated[
    int | None,
    Parameter(help="Worker processes; as many as there are cores when left out.", validator=Number(gte=1)),
]

DaskAddress = Annotated[
    str | None,
    Parameter(help="Address of a Dask scheduler that does the steps over scans, or 'local' for a cluster of our own."),
]


def run(
    *,
    workspace: Workspace,
    until: StepName = "report",
    strict: Strict = False,
    workers: WorkerCount = None,
    dask: DaskAddress = None,
    output: Output = PLAIN,
) -> Reply:
    """Bring a workspace up to date: look at its sessions again, then do whatever is stale, up to the report.

    A run that was stopped, even killed, goes on where it was; with nothing stale it does nothing.

    For example:

        nphm run -w heads

    Parameters
    ----------
    until
        The last step to do.
    """
    return _bring_up_to(until, workspace, strict, workers, dask, output)


def _bring_up_to(
    until: StepName, workspace: str, strict: bool, workers: int | None, dask: str | None, output: Output
) -> Reply:
    from flows.run import bring_up_to

    with progress_for(output) as progress:
        result = bring_up_to(workspace, until, progress, workers, dask=dask)
    return result.reply(strict)


def _single(step: StepName, what: str) -> Callable[..., Reply]:
    def verb(
        *,
        workspace: Workspace,
        strict: Strict = False,
        workers: WorkerCount = None,
        dask: DaskAddress = None,
        output: Output = PLAIN,
    ) -> Reply:
        return _bring_up_to(step, workspace, strict, workers, dask, output)

    verb.__name__ = step
    verb.__doc__ = f"{what}, after whatever it needs.\n\nFor example:\n\n    nphm {step} -w heads\n"
    return verb


SINGLE_STEPS = (
    _single("clean", "Fuse each scan into one surface, find the head and judge the quality"),
    _single("register", "Bring the template into each scan"),
    _single("sample", "Draw the training samples"),
    _single("train", "Train the identity field and the deformation field"),
    _single("baselines", "Train the heads to compare with that [baselines] names, by default none"),
    _single("evaluate", "Fit the held-out subjects and measure the error"),
    _single("protocols", "Measure what the protocols that [protocols] names vary, by default none"),
    _single("report", "Write the report"),
)


def plan(*, workspace: Workspace, until: StepName = "report", output: Output = PLAIN) -> Reply:
    """Tell what is stale, why, and what it will cost. Nothing is written.

    For example:

        nphm plan -w heads

    Parameters
    ----------
    until
        The last step to look at.
    """
    from pipeline.opening import open_workspace
    from pipeline.outlook import look_ahead

    outlook = look_ahead(open_workspace(workspace), until)
    lines = [f"{a.step} {a.key}: {a.kind}: {a.why}" for a in outlook.actions]
    minutes, megabytes = outlook.minutes, outlook.megabytes
    lines.append(f"{len(outlook.actions)} to do, about {minutes:.0f} minutes on 2 cores and {megabytes:.0f} MB")
    return Reply(
        {"actions": [asdict(a) for a in outlook.actions], "minutes": minutes, "megabytes": megabytes}, tuple(lines)
    )


def status(
    *,
    workspace: Workspace,
    every_byte: Annotated[bool, Parameter(negative=())] = False,
    output: Output = PLAIN,
) -> Reply:
    """Tell how each step stands: accepted, rejected and stale, with every damaged result by name; and the releases.

    Exits with 1 if anything is damaged.

    For example:

        nphm status -w heads

    Parameters
    ----------
    every_byte
        Read all results and hold them against their digests: finds what a failing disk has changed unseen.
    """
    from pipeline.opening import open_workspace
    from pipeline.outlook import look_ahead
    from pipeline.release_documents import list_built
    from pipeline.sample_groups import find_damaged_parents
    from pipeline.tombstones import list_tombstones

    opened = open_workspace(workspace)
    standing = look_ahead(opened, every_byte=every_byte).standing
    lines = ["step      accepted  rejected     stale"]
    lines += [f"{s.step:<9}{s.accepted:9}{s.rejected:10}{s.stale:10}" for s in standing]
    damaged = [line for step in standing for line in step.damaged]
    remedy = "delete it, then 'nphm run' makes it anew" if every_byte else "'nphm run' makes it anew"
    lines += [f"damaged: {line}; {remedy}" for line in damaged]
    if every_byte:
        above = find_damaged_parents(opened.store)
        damaged += above
        lines += [f"damaged: {line}; the next scan that is sampled below it puts it back" for line in above]
    releases, withdrawn = list_built(opened.store), list_tombstones(opened.store)
    lines += [f"release {one.name} {one.version}: {len(one.subjects)} people, in {one.place}" for one in releases]
    cut_off = [one.pseudonym for one in withdrawn if not one.finished]
    if withdrawn:
        lines.append(f"{len(withdrawn)} subjects were withdrawn")
    lines += [f"the withdrawal of {name} is not complete; repeat 'nphm release withdraw'" for name in cut_off]
    document = {
        "steps": [asdict(s) for s in standing],
        "damaged": damaged,
        "releases": [one.model_dump(mode="json") for one in releases],
        "withdrawn": {"subjects": len(withdrawn), "not_complete": cut_off},
    }
    return Reply(document, tuple(lines), Exit.FAILED if damaged else Exit.DONE)


def judge(
    key: Annotated[str, Parameter(name="SUBJECT/EXPRESSION")],
    verdict: Literal["accept", "reject", "withdraw"],
    /,
    *,
    reason: str,
    by: str,
    workspace: Workspace,
    output: Output = PLAIN,
) -> Reply:
    """Set a person's word over the verdict on a scan. It is kept with its author and survives reruns.

    For example:

        nphm judge 007/smile reject --reason "glasses moved" --by Ana -w heads

    Parameters
    ----------
    key
        The scan.
    verdict
        What it is to be; `withdraw` takes back what was said before.
    reason
        Why, for those who read the report.
    by
        Who says so.
    """
    from pipeline.judge import accepts_nothing, forget_judgement, record_judgement
    from pipeline.opening import open_workspace

    opened = open_workspace(workspace)
    if verdict == "withdraw":
        forget_judgement(opened, key)
        document = {"key": key, "verdict": None, "reason": reason, "by": by}
        return Reply(document, (f"{key}: no person's word stands over it; 'nphm run' redoes what depends on it",))
    word = record_judgement(opened, key, verdict, reason=reason, by=by)
    line = f"{key}: {verdict}ed by {word.by}; 'nphm run' redoes what depends on it"
    if verdict == "accept" and accepts_nothing(opened, key):
        line = f"{key}: {word.by}'s word is kept but has no effect: what could not be computed can't be accepted"
    return Reply({"key": key} | word.model_dump(mode="json"), (line,))
