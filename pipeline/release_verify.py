"""Verify a release: every file against the manifest, the documents against their schemas, the splits against people."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import count
from typing import Any

from pipeline.croissant import find_faults
from pipeline.pseudonyms import is_pseudonym
from pipeline.release_contents import KEY_ATTRIBUTES, MODEL_FOLDER
from pipeline.release_documents import (
    CROISSANT_PATH,
    DATASHEET_PATH,
    MANIFEST_PATH,
    SCANS_PATH,
    SPLITS_PATH,
    TEMPLATE_PATH,
    ReleasedScans,
    ReleasedSplits,
    ReleaseManifest,
    bounded,
    holds_release,
    no_release,
    parse_document,
    read_document,
)
from pipeline.release_rights import covers_release
from pipeline.sample_format import SAMPLES_ROOT
from storage.errors import ConfigError, ScanRejected, StorageConflict, one_line
from storage.jsonfile import read_json
from storage.manifest import Output
from storage.store import Store, check_path

_READERS = 4
_PIECE_BYTES = 8 * 1024**2
_NEEDED = (SCANS_PATH, SPLITS_PATH, CROISSANT_PATH, DATASHEET_PATH, TEMPLATE_PATH)
_FOLDERS = {"clean": "clean", "registrations": "registrations", "samples": SAMPLES_ROOT}


@dataclass(frozen=True)
class Verification:
    """What verifying a release found.

    Attributes:
        name, version: of the release; empty where its manifest can't be read.
        files, bytes: that were held against the manifest.
        faults: a line for each thing that is wrong; empty if the release is sound.
    """

    name: str
    version: str
    files: int
    bytes: int
    faults: tuple[str, ...]


def verify_release(store: Store, tell: Callable[[int, int], None] = lambda done, total: None) -> Verification:
    """Verify a release. Every byte is read.

    Args:
        store: where it lies.
        tell: hears how many files of how many are done.

    Raises:
        ConfigError: nothing at all lies there.
    """
    if not holds_release(store):
        if not store.list():
            raise ConfigError(one_line("is no release", store.url, "nothing lies there", "check the path"))
        return Verification("", "", 0, 0, (str(no_release(store)),))
    try:
        manifest = read_document(ReleaseManifest, store, MANIFEST_PATH)
    except StorageConflict as error:
        return Verification("", "", 0, 0, (str(error),))
    faults = list(_faulty_paths(manifest))
    sound = [file for file in manifest.files if not _path_fault(file.path)]
    done = count(1)

    def check(file: Output) -> str | None:
        fault = _file_fault(store, file)
        tell(next(done), len(sound))
        return fault

    with ThreadPoolExecutor(_READERS) as pool:
        faults += [fault for fault in pool.map(check, sound) if fault is not None]
    listed = {file.path for file in manifest.files} | {MANIFEST_PATH}
    faults += [f"{path}: is not in the manifest" for path in store.list() if path not in listed]
    faults += [f"{path}: is not listed in the manifest, which needs it" for path in _NEEDED if path not in listed]
    if not faults:  # what a damaged document says proves nothing
        faults += _document_faults(store, manifest)
    return Verification(manifest.name, manifest.version, len(sound), sum(file.bytes for file in sound), tuple(faults))


def _faulty_paths(manifest: ReleaseManifest) -> Iterator[str]:
    seen: set[str] = set()
    for file in manifest.files:
        fault = _path_fault(file.path) or ("listed twice" if file.path in seen else "")
        seen.add(file.path)
        if fault:
            yield f"{file.path!r}: {fault}"


def _path_fault(path: str) -> str:
    try:
        check_path(path)
    except StorageConflict:
        return "leads out of the release"
    return "is the manifest itself" if path == MANIFEST_PATH else ""


def _file_fault(store: Store, file: Output) -> str | None:
    try:
        found = store.stat(file.path)
        if found is None:
            return f"{file.path}: is missing"
        if found.bytes != file.bytes:
            return f"{file.path}: has {found.bytes} bytes, the manifest says {file.bytes}"
        if _digest(store, file) != file.sha256:
            return f"{file.path}: its bytes differ from the manifest's digest"
    except StorageConflict as error:
        return str(error)
    except FileNotFoundError:
        return f"{file.path}: is missing"
    return None


def _digest(store: Store, file: Output) -> str:
    """SHA-256 of a file, read in pieces: a release comes from outside, and may hold a file of any size."""
    digest = hashlib.sha256()
    for start in range(0, file.bytes, _PIECE_BYTES):
        digest.update(store.get_range(file.path, start, min(start + _PIECE_BYTES, file.bytes)))
    return digest.hexdigest()


def _document_faults(store: Store, manifest: ReleaseManifest) -> Iterator[str]:
    try:
        scans = parse_document(ReleasedScans, bounded(store, SCANS_PATH), SCANS_PATH)
        splits = parse_document(ReleasedSplits, bounded(store, SPLITS_PATH), SPLITS_PATH)
    except StorageConflict as error:
        yield str(error)
        return
    try:
        croissant = read_json(bounded(store, CROISSANT_PATH), CROISSANT_PATH)
    except (StorageConflict, ScanRejected) as error:
        yield str(error)
    else:
        yield from (f"{CROISSANT_PATH}: {fault}" for fault in find_faults(croissant))
        yield from _other_digests(croissant, manifest)
    digest = next(file.sha256 for file in manifest.files if file.path == TEMPLATE_PATH)
    if digest != manifest.template_sha256:
        yield f"{TEMPLATE_PATH}: is not the template that the manifest names"
    yield from _split_faults(scans, splits)
    yield from _scan_faults(scans, manifest)
    yield from _group_faults(store, scans)
    if manifest.model is not None:
        yield from _model_faults(store, scans, splits)


def _other_digests(croissant: Mapping[str, Any], manifest: ReleaseManifest) -> Iterator[str]:
    digests = {file.path: file.sha256 for file in manifest.files}
    nodes = croissant.get("distribution")
    for node in nodes if isinstance(nodes, list) else []:
        if not isinstance(node, dict) or "sha256" not in node:
            continue
        url = node.get("contentUrl")
        if not isinstance(url, str) or node["sha256"] != digests.get(url):
            yield f"{CROISSANT_PATH}: {str(url)[:200]} has another digest than in the manifest"


def _split_faults(scans: ReleasedScans, splits: ReleasedSplits) -> Iterator[str]:
    both = sorted(set(splits.train) & set(splits.held_out))
    yield from (f"{SPLITS_PATH}: {subject} is both trained on and held out" for subject in both)
    sides = splits.by_subject()
    for scan in scans.scans:
        if sides.get(scan.subject) != scan.split:
            yield f"{SCANS_PATH}: {scan.key} is on side {scan.split}, its subject on {sides.get(scan.subject)}"
    lone = sorted(set(sides) - {scan.subject for scan in scans.scans})
    yield from (f"{SPLITS_PATH}: {subject} has no scan" for subject in lone)


def _scan_faults(scans: ReleasedScans, manifest: ReleaseManifest) -> Iterator[str]:
    folders: dict[str, set[str]] = {part: set() for part in _FOLDERS}
    for file in manifest.files:
        top, *rest = file.path.split("/")
        for part, folder in _FOLDERS.items():
            if top == folder and len(rest) > 2:
                folders[part].add("/".join(rest[:2]))
    told: dict[str, set[str]] = {part: {s.key for s in scans.scans if part in s.parts} for part in _FOLDERS}
    for part in _FOLDERS:
        yield from (f"{part}/{key}: is promised, but not there" for key in sorted(told[part] - folders[part]))
        yield from (f"{part}/{key}: is there, but no scan" for key in sorted(folders[part] - told[part]))
    keys = [scan.key for scan in scans.scans]
    if len(set(keys)) != len(keys):
        yield f"{SCANS_PATH}: lists a scan twice"
    for scan in scans.scans:
        if scan.key != f"{scan.subject}/{scan.expression}" or not is_pseudonym(scan.subject):
            yield f"{SCANS_PATH}: {scan.key!r} is not made of a pseudonym and an expression"
        if not scan.licence.strip():
            yield f"{SCANS_PATH}: {scan.key} has no licence"
        if not covers_release(scan.consent_scope):
            yield f"{SCANS_PATH}: {scan.key} has no consent for release"


def _group_faults(store: Store, scans: ReleasedScans) -> Iterator[str]:
    """What a group of samples says of its scan may name nobody else."""
    for scan in scans.scans:
        path = f"{SAMPLES_ROOT}/{scan.key}/zarr.json"
        if "samples" not in scan.parts:
            continue
        try:
            told = read_json(bounded(store, path), path)["attributes"]
            named = {name: told[name] for name in KEY_ATTRIBUTES if name in told}
        except (ScanRejected, KeyError, TypeError, FileNotFoundError) as error:
            yield f"{path}: can't be read ({error})"
            continue
        for name, key in named.items():
            if str(key).partition("/")[0] != scan.subject or (name == "key" and key != scan.key):
                yield f"{path}: its {name} names {key!r}, which is not the scan's"


def _model_faults(store: Store, scans: ReleasedScans, splits: ReleasedSplits) -> Iterator[str]:
    path = f"{MODEL_FOLDER}/config.json"
    try:
        told = read_json(bounded(store, path), path)
        subjects, keys = ({str(name) for name in told[part]} for part in ("subjects", "scans"))
    except (ScanRejected, KeyError, TypeError, FileNotFoundError) as error:
        yield f"{path}: can't be read ({error})"
        return
    yield from (f"{path}: knows {name}, who is not on the train side" for name in sorted(subjects - set(splits.train)))
    strangers = sorted(keys - {scan.key for scan in scans.scans})
    yield from (f"{path}: knows {key}, which is no scan of the release" for key in strangers)
