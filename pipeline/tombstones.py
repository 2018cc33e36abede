"""Tombstones: that a person took consent back, kept without the id, so that ingest refuses the scans for good."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from pipeline.pseudonyms import PRIVATE, Pseudonyms
from storage.errors import one_line
from storage.frozen import Frozen
from storage.store import Store

FOLDER = f"{PRIVATE}/withdrawn"
_CONTENTS = f"{PRIVATE}/withdrawn_contents"


class Tombstone(Frozen):
    """All that a workspace keeps of a withdrawn subject: no id, no key, no path."""

    schema_version: Literal[1] = 1
    subject_digest: str = Field(description="keyed digest of the subject's id")
    pseudonym: str = Field(description="the subject's name in releases")
    reason: str = Field(description="why, in the words of who withdrew the subject")
    withdrawn_on: str = Field(description="ISO 8601 date")
    models: tuple[str, ...] = Field(default=(), description="models that were trained on the subject's scans")
    releases: tuple[str, ...] = Field(default=(), description="releases that hold the subject: version and place")
    finished: bool = Field(default=False, description="whether everything of the subject is gone")


def tombstone_path(names: Pseudonyms, subject: str) -> str:
    """Where a subject's tombstone lies."""
    return f"{FOLDER}/{names.digest('withdrawn', subject)}.json"


def read_tombstone(store: Store, subject: str) -> Tombstone | None:
    """A subject's tombstone, or None where the subject was not withdrawn."""
    names = Pseudonyms.known(store)
    if names is None:
        return None
    try:
        return Tombstone.model_validate_json(store.get(tombstone_path(names, subject)))
    except FileNotFoundError:
        return None


def put_tombstone(store: Store, names: Pseudonyms, subject: str, tombstone: Tombstone) -> None:
    """Keep a tombstone."""
    store.put(tombstone_path(names, subject), tombstone.model_dump_json(indent=1).encode() + b"\n")


def list_tombstones(store: Store) -> list[Tombstone]:
    """All tombstones of a workspace, by their digests."""
    return [Tombstone.model_validate_json(data) for data in store.get_many(store.list(FOLDER)) if data is not None]


def bar_content(store: Store, names: Pseudonyms, content_digest: str) -> None:
    """Refuse a raw scan from now on, under whatever id it may come."""
    store.put(_content_path(names, content_digest), b"withdrawn\n")


class Withdrawn:
    """Which scans a workspace refuses, as it stands now.

    Args:
        store: the workspace's.
    """

    def __init__(self, store: Store) -> None:
        self._names = Pseudonyms.known(store)
        self._barred = set(store.list(FOLDER)) | set(store.list(_CONTENTS)) if self._names else set()

    def refusal(self, key: str, content_digest: str | None = None) -> str | None:
        """Why a scan may not be taken in, in one line, or None.

        Args:
            key: SUBJECT/EXPRESSION.
            content_digest: of the raw scan, where it is known.
        """
        if self._names is None or not self._barred:
            return None
        remedy = "leave it out of the session"
        if tombstone_path(self._names, key.partition("/")[0]) in self._barred:
            return one_line("is refused", key, "the subject was withdrawn from this workspace", remedy)
        if content_digest is not None and _content_path(self._names, content_digest) in self._barred:
            return one_line("is refused", key, "the same scan was withdrawn from this workspace", remedy)
        return None


def _content_path(names: Pseudonyms, content_digest: str) -> str:
    return f"{_CONTENTS}/{names.digest('content', content_digest)}"
