"""What goes into a release: every file under its pseudonymous name, gathered from a workspace."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from pipeline.inputs import canonical_key
from pipeline.keys import subject_of
from pipeline.pseudonyms import Pseudonyms
from pipeline.release_config import PARTS, Part
from pipeline.release_documents import (
    SCANS_PATH,
    SPLITS_PATH,
    TEMPLATE_PATH,
    LeftOut,
    MadeBy,
    ReleasedScan,
    ReleasedScans,
    ReleasedSplits,
)
from pipeline.release_rights import Rights, rights_of
from pipeline.sample_format import SAMPLES_ROOT
from pipeline.snapshot import Snapshot
from pipeline.tombstones import Withdrawn
from pipeline.workspace import Workspace
from storage.digest import canonical_json
from storage.errors import ConfigError, one_line
from storage.manifest import Manifest
from storage.ply import without_comments
from storage.shards import group_metadata

STEP_OF_PART: Mapping[Part, str] = {
    "clean": "clean",
    "registrations": "register",
    "samples": "sample",
    "model": "train",
}
_MESHES = {"clean": ("mesh.ply", "watertight.ply"), "registrations": ("mesh.ply", "frame.json")}
MODEL_FOLDER = "model"
MODEL_FILES = ("model.safetensors", "codes.safetensors", "config.json", "template.npz", "metrics.json")
KEY_ATTRIBUTES = ("key", "canonical_key")
"""Attributes of a Zarr group whose values are scans' keys."""


@dataclass(frozen=True)
class Content:
    """One file of a release that is yet to be written.

    Attributes:
        path: in the release.
        make: reads and renames it; the same bytes each time.
    """

    path: str
    make: Callable[[], bytes]


@dataclass
class ReleaseContents:
    """All that a release will hold, beside what describes it.

    Attributes:
        parts: what it holds, of ``PARTS``.
        scans: the document ``scans.json``.
        splits: the document ``splits.json``.
        made_by: the configurations that went in.
        files: everything to be written, sorted by path.
        left_out: scans without the right to be released, by their own keys: for the workspace's owner alone.
        model: the model's name, or None.
        model_subjects: pseudonyms of all subjects that the model was trained on.
        model_subjects_left_out: how many of them are not in the release, whose codes are left out of the model.
        captured: the years in which the sessions of the released scans took place.
    """

    parts: tuple[Part, ...]
    scans: ReleasedScans
    splits: ReleasedSplits
    made_by: tuple[MadeBy, ...] = ()
    files: list[Content] = field(default_factory=list)
    left_out: tuple[LeftOut, ...] = ()
    model: str | None = None
    model_subjects: tuple[str, ...] = ()
    model_subjects_left_out: int = 0
    captured: tuple[str, ...] = ()


def gather(
    workspace: Workspace, book: Snapshot, names: Pseudonyms, parts: Sequence[Part], model: str | None
) -> ReleaseContents:
    """Decide what a release holds.

    Args:
        workspace: where from.
        book: its manifests.
        names: its pseudonyms.
        parts: what is asked for.
        model: the model's name, where the model is asked for.

    Raises:
        ConfigError: nothing may be released, or the model's subjects contradict the splits.
        StorageConflict: a file of the workspace is damaged.
    """
    terms, left_out = _sort_by_rights(workspace, book)
    scan_parts = [part for part in parts if part != "model"]
    made: dict[str, dict[Part, Manifest]] = {
        key: {part: found for part in scan_parts if (found := _accepted(book, part, key)) is not None} for key in terms
    }
    trained = book.manifest("train", model) if model is not None else None
    coded = _Codes.read(workspace, trained) if trained is not None else _Codes()
    released = [key for key in terms if made[key] or key in coded.scans]
    if not released:
        why = "; ".join(f"{reason}: {count}" for reason, count in _tally(left_out)) or "no step has accepted a scan"
        raise ConfigError(one_line("nothing may be released", workspace.url, why, "see 'nphm release build --help'"))
    sides = {names.subject(subject_of(key)): book.split(subject_of(key)) for key in released}
    contents = ReleaseContents(
        parts=tuple(part for part in PARTS if part in parts),
        scans=ReleasedScans(
            scans=tuple(sorted((_told(book, names, k, terms[k], made[k]) for k in released), key=lambda s: s.key)),
            left_out=_renamed(left_out, names),
            not_accepted=_not_accepted(book, terms),
        ),
        splits=ReleasedSplits(
            train=tuple(sorted(name for name, side in sides.items() if side == "train")),
            held_out=tuple(sorted(name for name, side in sides.items() if side == "held_out")),
        ),
        left_out=tuple(left_out),
        captured=tuple(sorted({_year(book, key) for key in released} - {""})),
    )
    for key in released:
        for part, manifest in made[key].items():
            contents.files += _files_of_scan(workspace, names, part, manifest)
    if "samples" in parts:
        contents.files += _groups(names.subject(subject_of(key)) for key in released if "samples" in made[key])
    used = [manifest for key in released for manifest in made[key].values()]
    if trained is not None:
        used.append(trained)
        _add_model(workspace, names, contents, trained, coded, released)
    contents.made_by = _made_by(used)
    contents.files += [
        Content(SCANS_PATH, contents.scans.to_bytes),
        Content(SPLITS_PATH, contents.splits.to_bytes),
        Content(TEMPLATE_PATH, workspace.template_bytes),
    ]
    contents.files.sort(key=lambda content: content.path)
    return contents


def _sort_by_rights(workspace: Workspace, book: Snapshot) -> tuple[dict[str, Rights], list[LeftOut]]:
    terms: dict[str, Rights] = {}
    left_out = []
    withdrawn = Withdrawn(workspace.store)
    for key in book.scans():
        ingested = book.manifest("ingest", key)
        assert ingested is not None, f"{key} was taken in"
        rights = rights_of(ingested)
        refusal = "the subject was withdrawn" if withdrawn.refusal(key) else rights.refusal
        if refusal is None:
            terms[key] = rights
        else:
            left_out.append(LeftOut(key=key, reason=refusal))
    return terms, left_out


def _accepted(book: Snapshot, part: Part, key: str) -> Manifest | None:
    manifest = book.manifest(STEP_OF_PART[part], key)
    if manifest is None or not manifest.accepted:
        return None
    root = f"{SAMPLES_ROOT}/{key}/"  # samples may also be drawn as they are wanted, and then nothing is stored
    stored = part != "samples" or any(output.path.startswith(root) for output in manifest.outputs.values())
    return manifest if stored else None


def _not_accepted(book: Snapshot, terms: Iterable[str]) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for key in terms:
        for step in ("ingest", "clean", "register", "sample"):
            manifest = book.manifest(step, key)
            if manifest is not None and not manifest.accepted:
                counts[step] += 1
                break
    return dict(sorted(counts.items()))


def _told(book: Snapshot, names: Pseudonyms, key: str, rights: Rights, made: Mapping[Part, Manifest]) -> ReleasedScan:
    ingested = book.manifest("ingest", key)
    assert ingested is not None, f"{key} was taken in"
    subject, _, expression = key.partition("/")
    person = ingested.extra("told_of_subject")
    worn = {name: person.get(name) if isinstance(person.get(name), bool) else None for name in ("beard", "glasses")}
    hair = person.get("hair")
    return ReleasedScan(
        key=names.scan(key),
        subject=names.subject(subject),
        expression=expression,
        canonical=key == canonical_key(book, subject),
        split="held_out" if book.split(subject) == "held_out" else "train",
        licence=rights.licence,
        consent_scope=rights.scope,
        rig=names.rig(str(ingested.extra("rig"))),
        layout=str(ingested.extra("layout")),
        hair=hair if isinstance(hair, str) else None,
        beard=worn["beard"],
        glasses=worn["glasses"],
        parts=tuple(made),
        figures={part: manifest.figures for part, manifest in made.items()},
    )


def _year(book: Snapshot, key: str) -> str:
    ingested = book.manifest("ingest", key)
    told = ingested.extra("told_of_session") if ingested is not None else {}
    return str(told.get("captured_at", ""))[:4]


def _renamed(left_out: Iterable[LeftOut], names: Pseudonyms) -> tuple[LeftOut, ...]:
    renamed = (LeftOut(key=names.scan(one.key), reason=one.reason) for one in left_out)
    return tuple(sorted(renamed, key=lambda one: one.key))


def _tally(left_out: Iterable[LeftOut]) -> list[tuple[str, int]]:
    return sorted(Counter(one.reason for one in left_out).items())


def _files_of_scan(workspace: Workspace, names: Pseudonyms, part: Part, manifest: Manifest) -> Iterator[Content]:
    key = names.scan(manifest.key)
    if part == "samples":
        root = f"{SAMPLES_ROOT}/{manifest.key}/"
        for name, output in manifest.outputs.items():
            if output.path.startswith(root):
                path = f"{SAMPLES_ROOT}/{key}/{output.path.removeprefix(root)}"
                yield Content(path, partial(_sample_file, workspace, names, manifest, name))
        return
    for name in _MESHES[part]:
        if name in manifest.outputs:
            yield Content(f"{part}/{key}/{name}", partial(_plain_file, workspace, manifest, name))


def _plain_file(workspace: Workspace, manifest: Manifest, name: str) -> bytes:
    data = workspace.read(manifest, name)
    return without_comments(data) if name.endswith(".ply") else data


def _sample_file(workspace: Workspace, names: Pseudonyms, manifest: Manifest, name: str) -> bytes:
    data = workspace.read(manifest, name)
    if not name.endswith("zarr.json"):
        return data
    told: dict[str, Any] = json.loads(data)
    attributes: dict[str, Any] = told.get("attributes", {})
    attributes |= {name: names.scan(attributes[name]) for name in KEY_ATTRIBUTES if name in attributes}
    return canonical_json(told)


def _groups(subjects: Iterable[str]) -> Iterator[Content]:
    """The metadata of the groups that hold the scans' groups, so that plain Zarr lists them."""
    metadata = group_metadata({"frame": "head", "units": "mm"})
    for folder in (SAMPLES_ROOT, *(f"{SAMPLES_ROOT}/{subject}" for subject in sorted(set(subjects)))):
        yield Content(f"{folder}/zarr.json", lambda: metadata)


@dataclass(frozen=True)
class _Codes:
    """Who has a code in a model."""

    subjects: tuple[str, ...] = ()
    scans: tuple[str, ...] = ()

    @classmethod
    def read(cls, workspace: Workspace, trained: Manifest) -> _Codes:
        told = json.loads(workspace.read(trained, "config.json"))
        return cls(tuple(told["subjects"]), tuple(told["scans"]))


def _add_model(
    workspace: Workspace,
    names: Pseudonyms,
    contents: ReleaseContents,
    trained: Manifest,
    coded: _Codes,
    released: Sequence[str],
) -> None:
    subjects = {subject: names.subject(subject) for subject in coded.subjects}
    mixed = sorted(subject for subject, name in subjects.items() if name in contents.splits.held_out)
    if mixed:
        why = f"it was trained on {', '.join(mixed)}, held out today"
        raise ConfigError(one_line("contradicts the splits", f"model {trained.key}", why, "train a model anew"))
    staying = {subject: name for subject, name in subjects.items() if name in contents.splits.train}
    scans = {key: names.scan(key) for key in coded.scans if key in set(released)}
    contents.model = trained.key
    contents.model_subjects = tuple(sorted(subjects.values()))
    contents.model_subjects_left_out = len(subjects) - len(staying)
    for name in MODEL_FILES:
        if name in ("config.json", "codes.safetensors"):
            make: Callable[[], bytes] = partial(_codes_file, workspace, trained, name, staying, scans)
        elif name in trained.outputs:
            make = partial(workspace.read, trained, name)
        else:
            continue
        contents.files.append(Content(f"{MODEL_FOLDER}/{name}", make))


def _codes_file(
    workspace: Workspace, trained: Manifest, name: str, subjects: Mapping[str, str], scans: Mapping[str, str]
) -> bytes:
    from model.code_rows import NamedCodes  # torch: loaded where a model goes in alone

    files = NamedCodes(workspace.read(trained, "config.json"), workspace.read(trained, "codes.safetensors"))
    kept = files.keep(subjects, scans)
    return kept.config if name == "config.json" else kept.codes


def _made_by(used: Iterable[Manifest]) -> tuple[MadeBy, ...]:
    counts: Counter[tuple[str, int, str]] = Counter()
    configs: dict[tuple[str, int, str], dict[str, Any]] = {}
    for manifest in used:
        at = (manifest.step, manifest.step_version, manifest.config_digest)
        counts[at] += 1
        configs[at] = manifest.config
    return tuple(
        MadeBy(step=at[0], step_version=at[1], config_digest=at[2], config=configs[at], results=counts[at])
        for at in sorted(counts)
    )
