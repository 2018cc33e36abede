"""What nothing in a workspace refers to: left by runs that were cut off, or by scans and models that are gone."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from pipeline.checkpoints import FOLDER as CHECKPOINTS
from pipeline.inputs import model_name
from pipeline.planner import decide
from pipeline.sample_format import SAMPLES_ROOT
from pipeline.snapshot import Snapshot, take_snapshot
from pipeline.workspace import Workspace
from storage.manifest import withdraw
from storage.store import Stat

_REPORT = "/report.json"


@dataclass(frozen=True)
class Garbage:
    """One object that may go.

    Attributes:
        path: where it lies.
        bytes: its size.
        why: why nothing needs it.
    """

    path: str
    bytes: int
    why: str


def find_garbage(workspace: Workspace) -> list[Garbage]:
    """List what nothing refers to, sorted by path. Nothing is changed.

    Only the folders of steps, their samples and checkpoints are looked at: whatever else lies in a workspace is not
    ours to judge. While a run is under way, what it is about to publish looks like garbage.
    """
    book = take_snapshot(workspace)
    stats = workspace.store.stats()
    return sorted(_find(book, stats), key=lambda garbage: garbage.path)


def collect_garbage(workspace: Workspace) -> list[Garbage]:
    """Delete what nothing refers to. Nobody else may be writing.

    Returns:
        What was deleted.
    """
    found = find_garbage(workspace)
    # A manifest goes before what it vouches for, as everywhere.
    for garbage in sorted(found, key=lambda garbage: not garbage.path.endswith(_REPORT)):
        if garbage.path.endswith(_REPORT):
            withdraw(workspace.store, garbage.path, own_folder=False)
        workspace.store.delete(garbage.path)
    return found


def _find(book: Snapshot, stats: Mapping[str, Stat]) -> Iterator[Garbage]:
    known = set(book.scans())
    orphans = {place for place in book.manifests if _is_orphan(book, place, known)}
    vouched = {
        output.path for place, manifest in book.manifests.items() if place not in orphans
        for output in manifest.outputs.values()
    }  # fmt: skip
    folders = {spec.folder: spec for spec in book.steps.values()}
    for path, stat in stats.items():
        folder, _, rest = path.partition("/")
        if path in vouched or not rest:
            continue
        spec = folders.get(folder)
        if spec is not None:
            key = rest.rpartition("/")[0] if rest.endswith(_REPORT) else ""
            if (spec.name, key) in orphans:
                yield Garbage(path, stat.bytes, "its scan or model is gone")
            elif (spec.name, key) not in book.manifests and rest.count("/") >= (2 if spec.scope == "scan" else 1):
                yield Garbage(path, stat.bytes, "no manifest names it")
        elif folder == SAMPLES_ROOT and rest.count("/") >= 2:
            yield Garbage(path, stat.bytes, "no manifest names it")
        elif folder == CHECKPOINTS:
            name, _, below = rest.partition("/")
            part = below.partition("/")[0]
            if not part or _is_under_way(book, name, part):
                continue
            if book.manifest("train", name) is not None:
                yield Garbage(path, stat.bytes, "its model is finished")
            elif "train" in book.steps and name != model_name(book):
                yield Garbage(path, stat.bytes, "of a training that today's data and settings no longer call for")


def _is_under_way(book: Snapshot, model: str, part: str) -> bool:
    """Whether what is kept belongs to something that the settings ask for and that has not ended.

    A result that is to be made anew under its old name stands until the new one is published.
    """
    if part in book.config.baselines.methods:
        return _is_to_be_made(book, "baselines", model)
    if part == "protocols":
        return bool(book.config.protocols.names) and _is_to_be_made(book, part, model)
    # Of the other models, each was trained once, of what the workspace held then.
    return "train" in book.steps and model == model_name(book) and _is_to_be_made(book, "train", model)


def _is_to_be_made(book: Snapshot, step: str, model: str) -> bool:
    if book.manifest(step, model) is None:
        return True
    action = decide(book, book.steps[step], model)
    return action is not None and action.kind == "compute"


def _is_orphan(book: Snapshot, place: tuple[str, str], known: set[str]) -> bool:
    """Whether a result belongs to a scan or model that the workspace no longer has."""
    step, key = place
    spec = book.steps[step]
    if spec.scope == "scan":
        return key not in known
    return any(need.over == "model" for need in spec.needs) and book.manifest("train", key) is None
