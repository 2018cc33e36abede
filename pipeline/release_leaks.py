"""A last look at what leaves the house: no file of a release may name a subject or session by its own id."""

from __future__ import annotations

import re
from itertools import pairwise

from pipeline.keys import is_safe_name, subject_of, take_of
from pipeline.snapshot import Snapshot
from storage.errors import StorageConflict, one_line
from storage.ply import MAX_HEADER_BYTES

_TEXT = (".json", ".md", ".jsonl", ".csv", ".txt")
_LEAST_WORD = 5
_NAMES = re.compile(r"[A-Za-z0-9._@-]+(?:/[A-Za-z0-9._@-]+)*")


class LeakCheck:
    """Knows the ids that a release must not show.

    Ids that can't be told from ordinary words or numbers are looked for where they would stand as part of a key, the
    others anywhere.

    Args:
        book: the workspace's manifests.
    """

    def __init__(self, book: Snapshot) -> None:
        self._keys = set(book.scans())
        subjects = {subject_of(key) for key in self._keys}
        expressions = {name for key in self._keys for name in (key.partition("/")[2], take_of(key)[0])}
        ingested = (book.manifest("ingest", key) for key in book.scans())
        sessions = {str(manifest.extra("session_id")) for manifest in ingested if manifest is not None}
        telling = {name for name in subjects | sessions if _is_telling(name)} - expressions
        self._words = {name for name in telling if is_safe_name(name)}
        self._phrases = sorted(telling - self._words)

    def check(self, path: str, data: bytes) -> None:
        """Look a file over.

        Raises:
            StorageConflict: it names a subject or a session.
        """
        for where, text in (("its path", path), ("it", _readable(path, data).decode(errors="replace"))):
            found = self._found(text)
            if found is not None:
                remedy = "take the id out of the session's or the configuration's words, then build again"
                why = f"{where} holds {found!r}"
                raise StorageConflict(one_line("would name a subject or session", path, why, remedy))

    def _found(self, text: str) -> str | None:
        for match in _NAMES.finditer(text):
            names = [name.strip(".") for name in match[0].split("/")]
            for name in names:
                if name in self._words:
                    return name
            for pair in pairwise(names):
                if "/".join(pair) in self._keys:
                    return "/".join(pair)
        return next((phrase for phrase in self._phrases if phrase in text), None)


def _readable(path: str, data: bytes) -> bytes:
    """What of a file holds words: all of a text, the header of a mesh or of tensors."""
    if path.endswith(_TEXT):
        return data
    if path.endswith(".ply"):
        return data[: max(data.find(b"end_header", 0, MAX_HEADER_BYTES), 0)]
    if path.endswith(".safetensors"):
        return data[8 : 8 + int.from_bytes(data[:8], "little")]
    return b""


def _is_telling(name: str) -> bool:
    """Whether a name can be told from ordinary words and numbers."""
    if name.isdecimal():
        return name.startswith("0") and len(name) > 1
    if not is_safe_name(name):
        return len(name) >= _LEAST_WORD
    plain_word = name.isalpha() and (name.islower() or name.istitle())
    return len(name) >= (_LEAST_WORD if plain_word else 3)
