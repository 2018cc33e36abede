"""Take a person out of a workspace: all that was made of the scans goes, and ingest refuses them from then on.

A tombstone without the person's id is put first. Then each thing is removed, the scans' own ingest records last, so
that a withdrawal that was cut off finds by them what is left to do, and ends in the same state when it is repeated. Raw
files lie outside the workspace; they are forgotten and listed, never deleted.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial

from pipeline.checkpoints import FOLDER as CHECKPOINTS
from pipeline.inputs import expected_inputs, model_name
from pipeline.keys import subject_of, subjects_of
from pipeline.known_sessions import FOLDER as SESSIONS
from pipeline.known_sessions import raw_folders
from pipeline.models import LATEST_PATH, latest_model
from pipeline.pseudonyms import PRIVATE, Pseudonyms
from pipeline.release_documents import list_built
from pipeline.splits import PATH as SPLITS_PATH
from pipeline.stepspec import StepSpec
from pipeline.tombstones import Tombstone, bar_content, put_tombstone, read_tombstone
from pipeline.traces import Traces
from pipeline.withdrawn_codes import without_codes
from pipeline.workspace import Workspace
from storage.errors import ConfigError, one_line
from storage.lock import FOLDER as LOCKS
from storage.lock import hold
from storage.manifest import Manifest, read_manifest, withdraw
from storage.store import Store

_JUDGEMENTS = "judgements"


@dataclass(frozen=True)
class Removal:
    """One thing that goes, or loses what it knew of the subject.

    Attributes:
        what: kind of thing, in words.
        path: where it lies in the workspace.
        do: removes it; after half of it was done, or all, it ends in the same.
    """

    what: str
    path: str
    do: Callable[[], None]


@dataclass(frozen=True)
class Withdrawal:
    """What withdrawing a subject came to, or would come to.

    Attributes:
        subject: the id.
        pseudonym: the subject's name in releases; empty if none was ever drawn.
        removed: what went, as (kind, path).
        models: those trained on the subject's scans. Their codes of the subject go, their weights stay as they are.
        releases: those that hold the subject or such a model: name, version and place.
        raw_files: folders outside the workspace, forgotten and not deleted; of a withdrawal that is repeated, those
            that lie in a session which the workspace still knows.
        unread: a line for each known session that can't be read, where more of them may lie.
        left: texts in the workspace that name the subject still, which a person has to judge.
        again: the subject had been withdrawn before.
    """

    subject: str
    pseudonym: str
    removed: tuple[tuple[str, str], ...]
    models: tuple[str, ...]
    releases: tuple[str, ...]
    raw_files: tuple[str, ...]
    unread: tuple[str, ...] = ()
    left: tuple[str, ...] = ()
    again: bool = False


def withdraw_subject(workspace: Workspace, subject: str, *, reason: str, on: str, dry_run: bool = False) -> Withdrawal:
    """Take a subject out of a workspace for good. Repeating it completes one that was cut off.

    Args:
        workspace: where from.
        subject: the id.
        reason: why; kept in the tombstone, so it may not name the subject.
        on: ISO 8601 date, kept in the tombstone.
        dry_run: find out what would go, and write nothing.

    Raises:
        ConfigError: the workspace knows no such subject, or the reason is empty or names it.
        StorageConflict: a run is under way in the workspace, or a model is damaged.
    """
    traces = Traces(subject)
    if not reason.strip() or traces.in_text(reason):
        why = "it is kept, and the subject's id is not" if reason.strip() else "it is empty"
        raise ConfigError(one_line("is no reason that can be kept", "--reason", why, "say why, and name nobody"))
    with ExitStack() as stack:
        if not dry_run:
            for lock in ("ingest", "run"):
                stack.enter_context(hold(workspace.store, lock, "withdrawing a subject"))
        return _withdraw(workspace, traces, reason.strip(), on, dry_run)


def _withdraw(workspace: Workspace, traces: Traces, reason: str, on: str, dry_run: bool) -> Withdrawal:
    store, subject = workspace.store, traces.subject
    standing = read_tombstone(store, subject)
    ingested = [workspace.manifest("ingest", key) for key in workspace.scans() if subject_of(key) == subject]
    if not ingested and standing is None:
        known = ", ".join(subjects_of(workspace.scans())[:6]) or "none"
        raise ConfigError(one_line("is no subject of this workspace", subject, f"it has {known}", "check the id"))
    removals = list(Removals(workspace, traces))
    trained = {removal.path.split("/")[1] for removal in removals if removal.what == _CODES_OF_MODEL}
    models = tuple(sorted(trained | set(standing.models if standing else ())))
    names = Pseudonyms.known(store) if dry_run else Pseudonyms.of(store)
    pseudonym = names.subject(subject) if names is not None else ""
    releases = tuple(
        f"{built.name} {built.version} in {built.place}"
        for built in list_built(store)
        if pseudonym in built.subjects or pseudonym in built.model_subjects
    )
    found, unread = raw_folders(store, subject)
    taken_from = {str(manifest.extra("source")) for manifest in ingested if manifest is not None}
    left: tuple[str, ...] = ()
    if not dry_run and names is not None:
        tombstone = Tombstone(
            subject_digest=names.digest("withdrawn", subject),
            pseudonym=pseudonym,
            reason=standing.reason if standing else reason,
            withdrawn_on=standing.withdrawn_on if standing else on,
            models=models,
            releases=releases,
        )
        put_tombstone(store, names, subject, tombstone)
        for manifest in ingested:
            if manifest is not None and not manifest.faults:  # what could not be read has no content of its own
                bar_content(store, names, str(manifest.extra("content_digest")))
        for removal in removals:
            removal.do()
        store.sweep()
        store.prune()
        left = tuple(_still_named(workspace, traces))
        put_tombstone(store, names, subject, tombstone.model_copy(update={"finished": not left}))
    removed = tuple((removal.what, removal.path) for removal in removals)
    raw_files = tuple(sorted(found | taken_from))
    again = standing is not None
    return Withdrawal(subject, pseudonym, removed, models, releases, raw_files, tuple(sorted(unread)), left, again)


_CODES_OF_MODEL = "codes in a model"


class Removals:
    """All that is to be done for a subject, in an order in which it may be cut off anywhere."""

    def __init__(self, workspace: Workspace, traces: Traces) -> None:
        self.workspace, self.store, self.traces = workspace, workspace.store, traces
        self.subject = traces.subject

    def __iter__(self) -> Iterator[Removal]:
        steps = self.workspace.steps
        training = steps.get("train")
        if training is not None:
            yield from self._models(training)
        for spec in steps.values():
            if spec.scope == "model" and spec is not training:
                yield from self._made_of_models(spec)
        yield from self._checkpoints(training)
        for spec in reversed(list(steps.values())):
            if spec.scope == "scan" and spec.name != "ingest":
                yield from self._results(spec)
        yield from self._bearing_the_id()
        yield from self._texts()
        yield from self._results(steps["ingest"])

    def _models(self, spec: StepSpec) -> Iterator[Removal]:
        for name in self._names_in(spec.folder):
            folder, path = f"{spec.folder}/{name}", spec.manifest_path(name)
            manifest = read_manifest(self.store, path)
            config = f"{folder}/config.json"
            if manifest is None:
                if _names(self.store, self.traces, config) or not self.store.exists(config):
                    yield Removal("unfinished model", folder, partial(self._empty, folder))
            elif self._reads_subject(manifest) or _names(self.store, self.traces, config):
                without = without_codes(self.store, path, manifest, self.traces)
                yield Removal(_CODES_OF_MODEL, folder, without or partial(self._drop_model, path, name))

    def _drop_model(self, path: str, name: str) -> None:
        withdraw(self.store, path)
        latest = latest_model(self.workspace)
        if latest is not None and latest.name == name:
            self.store.delete(LATEST_PATH)

    def _made_of_models(self, spec: StepSpec) -> Iterator[Removal]:
        """Evaluations and reports that show the subject, and what a killed writer left of such. They are made anew."""
        for name in self._names_in(spec.folder):
            folder, path = f"{spec.folder}/{name}", spec.manifest_path(name)
            manifest = read_manifest(self.store, path)
            if manifest is None:
                yield Removal(f"unfinished {spec.name}", folder, partial(self._empty, folder))
            elif self._reads_subject(manifest) or any(
                _names(self.store, self.traces, path) for path in self.store.list(folder)
            ):
                yield Removal(f"{spec.name} of a model", folder, partial(withdraw, self.store, path))

    def _checkpoints(self, training: StepSpec | None) -> Iterator[Removal]:
        """Every training under way, with codes and their moments, but one that goes on as if nothing had been."""
        kept = ""
        if training is not None and not any(map(self.traces.in_text, expected_inputs(self.workspace, training, ""))):
            own = f"{CHECKPOINTS}/{model_name(self.workspace)}"
            lone = len({path.split("/")[2] for path in self.store.list(own)}) == 1
            kept = own if lone else ""
        for folder in sorted({"/".join(path.split("/")[:2]) for path in self.store.list(CHECKPOINTS)}):
            if folder != kept:
                yield Removal("checkpoints of a training", folder, partial(self._empty, folder))

    def _results(self, spec: StepSpec) -> Iterator[Removal]:
        folder = f"{spec.folder}/{self.subject}"
        if self.store.list(folder):
            yield Removal(f"results of {spec.name}", folder, partial(self._withdraw_all, folder))

    def _withdraw_all(self, folder: str) -> None:
        for path in self.store.list(folder):
            if path.endswith("/report.json"):
                withdraw(self.store, path)
        self._empty(folder)

    def _bearing_the_id(self) -> Iterator[Removal]:
        """Whatever else bears the id in its path: sample groups, judgements, caches."""
        results = tuple(f"{spec.folder}/" for spec in self.workspace.steps.values())
        roots: dict[str, Callable[[], None]] = {}
        for path in self.store.list():
            if self.traces.in_path(path) and not path.startswith(results):
                *folders, _ = path.split("/")
                if self.subject in folders:
                    root = "/".join(folders[: folders.index(self.subject) + 1])
                    roots[root] = partial(self._empty, root)
                else:
                    roots[path] = partial(self.store.delete, path)
        for root, do in sorted(roots.items(), key=lambda item: item[0]):
            yield Removal("files of the subject", root, do)

    def _texts(self) -> Iterator[Removal]:
        """Splits, sessions, logs, caches and the configuration, each without what names the subject."""
        others = {spec.folder for spec in self.workspace.steps.values()}
        untouched = {*others, PRIVATE, LOCKS, CHECKPOINTS, _JUDGEMENTS, SPLITS_PATH}
        if self.subject in self.workspace.kept_splits():
            yield Removal("split of the subject", SPLITS_PATH, self._forget_split)
        for path in self.store.list():
            if self.traces.in_path(path):
                continue
            if path.startswith(f"{SESSIONS}/") and self._is_of_subject_alone(path):
                yield Removal("session of the subject alone", path, partial(self.store.delete, path))
            elif path.partition("/")[0] not in untouched and _names(self.store, self.traces, path):
                yield Removal("lines about the subject", path, partial(self._rewrite, path))

    def _forget_split(self) -> None:
        kept = {subject: split for subject, split in self.workspace.kept_splits().items() if subject != self.subject}
        self.store.put(SPLITS_PATH, json.dumps(kept, indent=1).encode())

    def _is_of_subject_alone(self, path: str) -> bool:
        session = json.loads(self.store.get(path)).get("session_id")
        found = ((key, self.workspace.manifest("ingest", key)) for key in self.workspace.scans())
        known = {subject_of(key) for key, taken in found if taken is not None and taken.extra("session_id") == session}
        return known == {self.subject}

    def _rewrite(self, path: str) -> None:
        if not _names(self.store, self.traces, path):
            return
        left = self.traces.removed(path, self.store.get(path), "withdrawn")
        if left is None:
            self.store.delete(path)
        else:
            self.store.put(path, left)

    def _reads_subject(self, manifest: Manifest) -> bool:
        return any(map(self.traces.in_text, manifest.inputs))

    def _empty(self, folder: str) -> None:
        for path in self.store.list(folder):
            self.store.delete(path)

    def _names_in(self, folder: str) -> list[str]:
        """Names of the folders in a folder."""
        inside = (path.removeprefix(f"{folder}/").split("/") for path in self.store.list(folder))
        return sorted({parts[0] for parts in inside if len(parts) > 1})


def _names(store: Store, traces: Traces, path: str) -> bool:
    """Whether a stored text names the subject; one that is not there does not."""
    try:
        return traces.in_data(path, store.get(path))
    except FileNotFoundError:
        return False


def _still_named(workspace: Workspace, traces: Traces) -> Iterator[str]:
    """Paths and texts that name the subject; a model may bear the same name and is another thing."""
    models = {spec.folder for spec in workspace.steps.values() if spec.scope == "model"} | {CHECKPOINTS}
    for path in workspace.store.list():
        top, _, rest = path.partition("/")
        bears = traces.in_path(rest.partition("/")[2] if top in models else path)
        if bears or _names(workspace.store, traces, path):
            yield path
