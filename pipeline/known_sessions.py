"""Where the sessions that a workspace knows lie: ``sessions/NAME.json``, by which every run looks at them again."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.keys import is_safe_name, subject_of
from pipeline.session import find_scans, read_session
from storage.digest import canonical_json, digest_json
from storage.errors import ScanRejected
from storage.store import Store

FOLDER = "sessions"


@dataclass(frozen=True)
class Place:
    """Where a session lies, and how it is taken in from there.

    Attributes:
        root: the folder with ``session.json``.
        subject_prefix: put before every subject's id.
        copy: whether raw files are copied into the workspace.
    """

    root: Path
    subject_prefix: str = ""
    copy: bool = False


def session_path(session_id: str) -> str:
    """Where a session's note lies."""
    name = session_id if is_safe_name(session_id) else digest_json(session_id)[:16]
    return f"{FOLDER}/{name}.json"


def remember_place(store: Store, session_id: str, place: Place) -> None:
    """Note one more place of a session, or how it is taken in from there now."""
    path = session_path(session_id)
    try:
        note = json.loads(store.get(path))
    except FileNotFoundError:
        note = {"session_id": session_id, "places": []}
    told = {"root": str(place.root), "subject_prefix": place.subject_prefix, "copy": place.copy}
    here = (told["root"], told["subject_prefix"])
    others = [p for p in note["places"] if (p["root"], p["subject_prefix"]) != here]
    note["places"] = sorted([*others, told], key=lambda p: (p["root"], p["subject_prefix"]))
    store.put(path, canonical_json(note))


def known_places(store: Store) -> Iterator[Place]:
    """Every place of every session."""
    for path in store.list(FOLDER):
        for place in json.loads(store.get(path))["places"]:
            yield Place(Path(place["root"]), place["subject_prefix"], place["copy"])


def raw_folders(store: Store, subject: str) -> tuple[set[str], set[str]]:
    """The folders with a subject's raw scans in known sessions, and a line for each session that can't be read now."""
    folders: set[str] = set()
    unread: set[str] = set()
    for place in known_places(store):
        try:
            scans, _ = find_scans(place.root, read_session(place.root), place.subject_prefix)
        except ScanRejected as fault:
            unread.add(str(fault))
            continue
        folders |= {str(scan.folder) for scan in scans if subject_of(scan.key) == subject and scan.folder.is_dir()}
    return folders, unread
