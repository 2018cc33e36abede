"""Verbs over releases: build, verify, compare, and take a person out."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any, Literal

from cyclopts import App, Parameter

from flows.commands import Out, Workspace
from flows.console import PLAIN, Exit, Output, Reply
from flows.progress import progress_for

if TYPE_CHECKING:
    from pipeline.release_diff import Changes, ReleaseDiff

Place = Annotated[str, Parameter(name="DIR", help="A release: a folder, or s3://bucket/prefix.")]
PartName = Literal["clean", "registrations", "samples", "model"]

_MOST_LINES = 20

release = App(name="release", help="Build, verify and compare data-set releases; take out who takes consent back.")


@release.command
def build(
    *,
    version: str,
    out: Out,
    workspace: Workspace,
    parts: Annotated[
        tuple[PartName, ...], Parameter(consume_multiple=True, help="What to put in; everything when left out.")
    ] = (),
    model: Annotated[str | None, Parameter(help="The model to put in; the promoted one when left out.")] = None,
    output: Output = PLAIN,
) -> Reply:
    """Build a release: the same workspace gives the same bytes, people go by pseudonyms, splits stay.

    Scans without a licence or without consent for release are left out, and named here and in DATASHEET.md. A build
    that was stopped, even killed, goes on where it was.

    For example:

        nphm release build -w heads --version 1.2.0 -o heads-1.2.0

    Parameters
    ----------
    version
        MAJOR.MINOR.PATCH. People may change sides of the splits with a new major number alone.
    out
        An empty folder, or s3://bucket/prefix.
    """
    from pipeline.opening import open_workspace
    from pipeline.release_build import build_release
    from storage.store import open_store

    with _counting_files("release", output) as tell:
        built = build_release(open_workspace(workspace), version, open_store(out), parts or None, model, tell)
    size = sum(file.bytes for file in built.manifest.files)
    people, held_out = len(built.record.subjects), sum(side == "held_out" for side in built.record.subjects.values())
    document: dict[str, Any] = {
        "release": out,
        "name": built.manifest.name,
        "version": version,
        "manifest_sha256": built.record.manifest_sha256,
        "parts": built.manifest.parts,
        "model": built.manifest.model,
        "subjects": people,
        "held_out": held_out,
        "scans": list(built.scans),
        "files": len(built.manifest.files),
        "bytes": size,
        "left_out": [one.model_dump() for one in built.left_out],
        "stale": built.stale,
        "unchanged": built.unchanged,
        "model_subjects_left_out": built.model_subjects_left_out,
        "same_version_elsewhere": built.other_places,
    }
    lines = _first(f"left out {one.key}: {one.reason}" for one in built.left_out)
    if built.stale:
        lines.append(f"{built.stale} results are older than the configuration or the program; 'nphm run' renews them")
    if built.model_subjects_left_out:
        many = built.model_subjects_left_out
        lines.append(f"the model was trained on {many} people who are not in the release; their codes are left out")
    lines += [f"version {version} was built with other content in {place}" for place in built.other_places]
    if built.manifest.model is None and not parts:
        lines.append("no model is promoted, so none is in it")
    state = "is there already" if built.unchanged else "is built"
    sums = f"{len(built.scans)} scans of {people} people, {held_out} of them held out, {len(built.left_out)} left out"
    lines.append(f"{built.manifest.name} {version} {state} in {out}: {sums}; {size / 1e6:.1f} MB")
    return Reply(document, tuple(lines))


@release.command
def verify(place: Place, /, *, output: Output = PLAIN) -> Reply:
    """Hold each file of a release against its manifest, documents against schemas, splits against people.

    Exits with 1 if anything is wrong.

    For example:

        nphm release verify heads-1.2.0
    """
    from pipeline.release_verify import verify_release
    from storage.store import open_store

    with _counting_files("verify", output) as tell:
        found = verify_release(open_store(place), tell)
    lines = [*found.faults]
    if found.faults:
        lines.append(f"{place}: {len(found.faults)} faults; take the release again from where it was built")
    else:
        size = found.bytes / 1e6
        lines.append(f"{found.name} {found.version} is sound: {found.files} files, {size:.1f} MB")
    return Reply(asdict(found) | {"sound": not found.faults}, tuple(lines), Exit.FAILED if found.faults else Exit.DONE)


@release.command
def diff(
    before: Annotated[str, Parameter(name="DIR_A")],
    after: Annotated[str, Parameter(name="DIR_B")],
    /,
    *,
    output: Output = PLAIN,
) -> Reply:
    """Tell what changed from one release to another: people, scans, files, settings and figures.

    For example:

        nphm release diff heads-1.1.0 heads-1.2.0

    Parameters
    ----------
    before
        A release.
    after
        Another one, of the same workspace: pseudonyms agree there alone.
    """
    from pipeline.release import open_release
    from pipeline.release_diff import diff_releases

    found = diff_releases(open_release(before), open_release(after))
    return Reply(asdict(found) | {"same": found.same}, tuple(_told(found)))


@release.command
def withdraw(
    subject: Annotated[str, Parameter(name="SUBJECT")],
    /,
    *,
    workspace: Workspace,
    reason: str,
    dry_run: Annotated[bool, Parameter(negative=())] = False,
    output: Output = PLAIN,
) -> Reply:
    """Take a person who takes consent back out of a workspace, for good.

    Scans, samples, codes, pictures, checkpoints, cached results and log lines go; evaluations and reports are made anew
    by the next run. Raw files outside the workspace are forgotten and listed, never deleted, and so is every model and
    release that the person is in. A withdrawal that was stopped is completed by repeating it. Exits with 1 if something
    in the workspace names the person still.

    For example:

        nphm release withdraw 007 -w heads --reason "asked for it by letter"

    Parameters
    ----------
    subject
        The subject's id in the workspace.
    reason
        Kept beside a digest of the id; it may not name the person.
    dry_run
        List what would go, and write nothing.
    """
    from flows.logs import logs_naming
    from pipeline.opening import open_workspace
    from pipeline.traces import Traces
    from pipeline.withdrawal import withdraw_subject

    opened = open_workspace(workspace)
    done = withdraw_subject(opened, subject, reason=reason, on=datetime.now(UTC).date().isoformat(), dry_run=dry_run)
    logs = [str(path) for path in logs_naming(Traces(subject).in_text)]
    would = "would go" if dry_run else "gone"
    lines = [f"{would}: {what}: {path}" for what, path in done.removed]
    lines += [
        f"model trained on the person: {name}; its weights stay, 'nphm run' trains one anew" for name in done.models
    ]
    lines += [f"release that holds {done.pseudonym}: {place}; tell its receivers" for place in done.releases]
    lines += [f"raw files, for you to delete: {folder}" for folder in done.raw_files]
    lines += [f"session that may hold more raw files: {fault}" for fault in done.unread]
    lines += [f"log outside the workspace, for you to delete: {path}" for path in logs]
    lines += [f"names the person still: {path}" for path in done.left]
    if dry_run:
        lines.append(f"{subject}: {len(done.removed)} things would go; nothing was written")
    elif done.left:
        lines.append(f"{subject} is withdrawn, but {len(done.left)} files name the person still; look at them")
    else:
        lines.append(f"{subject} is withdrawn: {len(done.removed)} things are gone, and ingest refuses the scans")
    document = asdict(done) | {"logs": logs, "dry_run": dry_run}
    return Reply(document, tuple(lines), Exit.FAILED if done.left else Exit.DONE)


def _told(found: ReleaseDiff) -> list[str]:
    lines: list[str] = []
    for what, changes in (("part", found.parts), ("subject", found.subjects), ("scan", found.scans)):
        lines += _named(what, changes)
    lines += _first(f"setting {name}: {old} -> {new}" for name, (old, new) in found.config.items())
    lines += _first(f"median {f.name} of {f.part}: {_short(f.before)} -> {_short(f.after)}" for f in found.figures)
    if found.model is not None:
        lines.append(f"model {found.model[0]} -> {found.model[1]}")
    if found.same:
        return [*lines, f"{found.before} and {found.after} hold the same"]
    sums = ", ".join(
        f"{what} +{len(c.added)} -{len(c.removed)} ~{len(c.changed)}"
        for what, c in (("subjects", found.subjects), ("scans", found.scans), ("files", found.files))
    )
    return [*lines, f"{found.before} -> {found.after}: {sums}"]


def _named(what: str, changes: Changes) -> list[str]:
    told = (("new", changes.added), ("gone", changes.removed), ("changed", changes.changed))
    return [line for how, names in told for line in _first(f"{what} {how}: {name}" for name in names)]


def _short(value: float | None) -> str:
    return "none" if value is None else f"{value:.4g}"


@contextmanager
def _counting_files(step: str, output: Output) -> Iterator[Callable[[int, int], None]]:
    """Give a function that hears how many files of how many are done; a bar is shown once it is called."""
    with progress_for(output) as progress:
        started = False

        def tell(done: int, total: int) -> None:
            nonlocal started
            if not started:
                progress.start(step, total, "file")
                started = True
            progress.update(step, done)

        yield tell
        if started:
            progress.finish(step)


def _first(lines: Any) -> list[str]:
    """The first lines, and how many more there are."""
    every = list(lines)
    more = [f"and {len(every) - _MOST_LINES} more; --json lists all"] if len(every) > _MOST_LINES else []
    return every[:_MOST_LINES] + more
