"""Build a release from a workspace: gathered, renamed, written with its manifest last, and remembered."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count

from pipeline.croissant import describe_release
from pipeline.models import latest_model, model_figures
from pipeline.planner import plan
from pipeline.pseudonyms import Pseudonyms
from pipeline.release_config import PARTS, Part
from pipeline.release_contents import STEP_OF_PART, Content, ReleaseContents, gather
from pipeline.release_documents import (
    CROISSANT_PATH,
    DATASHEET_PATH,
    MANIFEST_PATH,
    UNFINISHED_PATH,
    BuiltRelease,
    LeftOut,
    ReleaseManifest,
    Split,
    list_built,
    parse_version,
    read_document,
    unfinished_note,
)
from pipeline.release_leaks import LeakCheck
from pipeline.release_words import write_datasheet
from pipeline.snapshot import Snapshot, take_snapshot
from pipeline.withdrawn_codes import learned_from_withdrawn
from pipeline.workspace import Workspace
from storage.digest import digest_bytes
from storage.errors import ConfigError, one_line
from storage.lock import hold
from storage.manifest import Output, describe
from storage.store import Store, open_store

_WRITERS = 4
"""Files on their way at once; each is held in memory whole."""

Tell = Callable[[int, int], None]


@dataclass(frozen=True)
class BuildResult:
    """What building a release came to.

    Attributes:
        manifest: of the release.
        record: what the workspace remembers of it.
        scans: keys of the scans in it, pseudonymous.
        left_out: scans without the right to be released, by the workspace's own keys.
        stale: results in the workspace that today's configuration would make anew.
        unchanged: the release was there already, with the same bytes.
        model_subjects_left_out: people that the model was trained on whose codes are not in the release.
        other_places: where the same version was built with other content.
    """

    manifest: ReleaseManifest
    record: BuiltRelease
    scans: tuple[str, ...]
    left_out: tuple[LeftOut, ...]
    stale: int
    unchanged: bool
    model_subjects_left_out: int
    other_places: tuple[str, ...]


def build_release(
    workspace: Workspace,
    version: str | None,
    target: Store | None,
    parts: Sequence[Part] | None = None,
    model: str | None = None,
    tell: Tell = lambda done, total: None,
    *,
    run: str = "",
    wait_seconds: float = 0.0,
) -> BuildResult:
    """Build a release. A build that was killed goes on where it was; nothing counts before the manifest is there.

    No run changes the workspace meanwhile.

    Args:
        workspace: where from.
        version: MAJOR.MINOR.PATCH; None: the next minor one after the last release.
        target: an empty folder or bucket, or one that an unfinished build of the same version left; None: beside the
            workspace.
        parts: what to put in; None: everything, the model if one is promoted.
        model: which model; None: the promoted one.
        tell: hears how many files of how many are done.
        run: the engine's id of the run.
        wait_seconds: how long to wait for a run of the workspace.

    Raises:
        ConfigError: the version is none, the target holds something else or lies in the workspace, nothing may be
            released, or a person would change sides within a major version.
        StorageConflict: a run is under way in the workspace, or a file of it is damaged or would name a subject.
    """
    if version is not None and parse_version(version) is None:
        raise ConfigError(one_line("is no version", repr(version), "", "write it as MAJOR.MINOR.PATCH, such as 1.2.0"))
    with hold(workspace.store, "run", "building a release", run=run, wait_seconds=wait_seconds):
        version = version or _next_version(workspace)
        target = target or open_store(f"{workspace.url}-releases/{version}")
        return _build(workspace, version, target, parts, model, tell)


def _build(
    workspace: Workspace, version: str, target: Store, parts: Sequence[Part] | None, model: str | None, tell: Tell
) -> BuildResult:
    chosen, name = _choose(workspace, parts, model)
    standing = _look_at_target(workspace, target, version)
    book = take_snapshot(workspace)
    contents = gather(workspace, book, Pseudonyms.of(workspace.store), chosen, name)
    _hold_sides(workspace, version, contents)
    writer = _Writer(target, LeakCheck(book), write=standing is None, tell=tell, total=len(contents.files) + 2)
    if standing is None:
        target.put(UNFINISHED_PATH, unfinished_note(workspace.config.release.name, version))
    manifest = _write_files(workspace, version, contents, name, writer)
    if standing is not None and standing != manifest:
        why = f"{version} stands there with other content"
        raise ConfigError(one_line("a version never changes", target.url, why, "raise the version"))
    record = BuiltRelease(
        name=manifest.name,
        version=version,
        place=target.url,
        manifest_sha256=digest_bytes(manifest.to_bytes()),
        parts=contents.parts,
        subjects=contents.splits.by_subject(),
        model_subjects=contents.model_subjects,
    )
    others = [built.place for built in list_built(workspace.store) if _clashes(built, record)]
    workspace.store.put(record.path, record.to_bytes())  # first: no release may be out of which nobody knows
    _publish(target, manifest, write=standing is None)
    return BuildResult(
        manifest,
        record,
        tuple(scan.key for scan in contents.scans.scans),
        contents.left_out,
        _stale(book, contents.parts),
        standing is not None,
        contents.model_subjects_left_out,
        tuple(others),
    )


def _next_version(workspace: Workspace) -> str:
    built = [version for each in list_built(workspace.store) if (version := parse_version(each.version)) is not None]
    if not built:
        return "1.0.0"
    major, minor, _ = max(built)
    return f"{major}.{minor + 1}.0"


def _write_files(
    workspace: Workspace, version: str, contents: ReleaseContents, model: str | None, writer: _Writer
) -> ReleaseManifest:
    """Write everything but the manifest, which is returned: data first, then the pages that describe them."""
    config = workspace.config.release
    files = writer.put_all(contents.files)
    published = config.published or (contents.captured[-1] if contents.captured else "1970")
    figures = model_figures(workspace, model) if model is not None else {}
    sheet = write_datasheet(config, version, published, contents, figures)
    files.append(writer.put(Content(DATASHEET_PATH, lambda: sheet)))
    files.sort(key=lambda file: file.path)
    metadata = describe_release(config, version, published, contents.scans, files)
    files.append(writer.put(Content(CROISSANT_PATH, lambda: metadata)))
    return ReleaseManifest(
        name=config.name,
        version=version,
        parts=contents.parts,
        template_sha256=workspace.template_digest(),
        model=contents.model,
        made_by=contents.made_by,
        files=tuple(sorted(files, key=lambda file: file.path)),
    )


def _choose(workspace: Workspace, parts: Sequence[Part] | None, model: str | None) -> tuple[list[Part], str | None]:
    """The parts, and the model's name where it is one of them."""
    wanted = list(PARTS if parts is None else dict.fromkeys(parts))
    if "model" not in wanted:
        if model is not None:
            raise ConfigError(one_line("is not asked for", f"model {model}", "", "name 'model' among the parts too"))
        return wanted, None
    if model is None:
        latest = latest_model(workspace)
        model = latest.name if latest is not None else None
    trained = workspace.manifest("train", model) if model is not None and "train" in workspace.steps else None
    if trained is not None and learned_from_withdrawn(trained):
        why = "it was trained on somebody who was withdrawn since, and weights can't forget"
        remedy = "promote a model that was trained anew, or leave the model out with --parts"
        raise ConfigError(one_line("may not be released", f"model {model}", why, remedy))
    if trained is not None and trained.accepted:
        return wanted, model
    if parts is None and model is None:
        return [part for part in wanted if part != "model"], None
    why = "; ".join(trained.reasons) if trained else "no such model" if model else "none is promoted"
    remedy = "see 'nphm models list', or leave the model out with --parts"
    raise ConfigError(one_line("has no model to release", workspace.url, f"{model or 'model'}: {why}", remedy))


def _look_at_target(workspace: Workspace, target: Store, version: str) -> ReleaseManifest | None:
    """The finished release that stands at the target, or None where one may be written.

    Raises:
        ConfigError: something else stands there, or the target lies in the workspace.
    """
    if f"{target.url}/".startswith(f"{workspace.url}/"):
        remedy = "choose a place outside the workspace"
        raise ConfigError(one_line("lies in the workspace", target.url, "a release is to leave it", remedy))
    name = workspace.config.release.name
    there = target.list()
    remedy = "choose an empty folder"
    if MANIFEST_PATH in there:
        standing = read_document(ReleaseManifest, target, MANIFEST_PATH)
        if (standing.name, standing.version) != (name, version):
            why = f"{standing.name} {standing.version}"
            raise ConfigError(one_line("holds another release", target.url, why, remedy))
        return standing
    if UNFINISHED_PATH in there:
        if target.get(UNFINISHED_PATH) != unfinished_note(name, version):
            raise ConfigError(one_line("holds another unfinished release", target.url, "", remedy))
    elif there:
        raise ConfigError(one_line("is not empty", target.url, f"it holds {there[0]}", remedy))
    return None


class _Writer:
    """Puts files into a release, each looked over for names first."""

    def __init__(self, target: Store, leaks: LeakCheck, *, write: bool, tell: Tell, total: int) -> None:
        self._target, self._leaks, self._write = target, leaks, write
        self._tell, self._total, self._done = tell, total, count(1)
        self._there = target.stats() if write else {}

    def put_all(self, files: Sequence[Content]) -> list[Output]:
        with ThreadPoolExecutor(_WRITERS) as pool:
            return list(pool.map(self.put, files))

    def put(self, content: Content) -> Output:
        data = content.make()
        self._leaks.check(content.path, data)
        if self._write and not self._stands(content.path, data):
            self._target.put(content.path, data)
        self._tell(next(self._done), self._total)
        return describe(content.path, data)

    def _stands(self, path: str, data: bytes) -> bool:
        """Whether an earlier, unfinished build has put the file already."""
        found = self._there.get(path)
        return found is not None and found.bytes == len(data) and self._target.get(path) == data


def _publish(target: Store, manifest: ReleaseManifest, write: bool) -> None:
    """Put the manifest, which makes the release valid, unless it stands; leave nothing that an earlier build left."""
    if write:
        kept = {file.path for file in manifest.files} | {MANIFEST_PATH, UNFINISHED_PATH}
        for stray in target.list():
            if stray not in kept:
                target.delete(stray)
        target.put(MANIFEST_PATH, manifest.to_bytes())
    target.delete(UNFINISHED_PATH)


def _hold_sides(workspace: Workspace, version: str, contents: ReleaseContents) -> None:
    """Nobody changes between training and held out within a major version: models out there rely on it."""
    version_now = parse_version(version)
    sides: dict[str, Split] = contents.splits.by_subject()
    for built in list_built(workspace.store):
        before = parse_version(built.version)
        if before is None or version_now is None or before[0] != version_now[0]:
            continue
        moved = sorted(name for name, side in built.subjects.items() if sides.get(name, side) != side)
        if moved:
            why = f"{len(moved)} people, {moved[0]} first, were on the other side in {built.version}"
            remedy = "set the splits back in pipeline.toml, or raise the major version"
            raise ConfigError(one_line("would move people between the splits", workspace.url, why, remedy))


def _clashes(built: BuiltRelease, record: BuiltRelease) -> bool:
    same = (built.name, built.version) == (record.name, record.version)
    return same and built.manifest_sha256 != record.manifest_sha256


def _stale(book: Snapshot, parts: Sequence[Part]) -> int:
    steps = {STEP_OF_PART[part] for part in parts}
    return sum(action.step in steps and book.manifest(action.step, action.key) is not None for action in plan(book))
