"""Where a subject is named: in paths, in texts, in JSON; and the same texts without what names it."""

from __future__ import annotations

import json
import re
from typing import Any

_GONE = object()
_LINES = (".jsonl", ".csv", ".md", ".txt", ".log", ".prom")
_TEXTS = (".json", ".toml", ".html", *_LINES)
_NAME = r"[A-Za-z0-9_-]"


class Traces:
    """What names one subject.

    An id that is a bare number or a letter or two is taken for the subject's where it stands as a whole value or before
    a slash, any other one wherever it stands as a word.

    Args:
        subject: the id.
    """

    def __init__(self, subject: str) -> None:
        self.subject = subject
        word = re.escape(subject)
        start = rf"(?<!{_NAME})(?<!{_NAME}\.)"
        whole = rf"{start}{word}(?!{_NAME}|\.{_NAME}|@[0-9])"
        plain = len(subject) <= 2 or (subject.isdecimal() and not subject.startswith("0"))
        self._named = re.compile(rf"\A{word}\Z|{start}{word}/" if plain else whole)
        self._quoted = re.compile(rf"""(?<=["']){word}(?=["'])""")

    def in_text(self, text: str) -> bool:
        """Whether a text names the subject."""
        return self._named.search(text) is not None

    def in_path(self, path: str) -> bool:
        """Whether a folder or a file bears the subject's id."""
        *folders, name = path.split("/")
        return self.subject in folders or self.subject in (name, name.rpartition(".")[0])

    def in_data(self, path: str, data: bytes) -> bool:
        """Whether a stored text names the subject; what is no text holds no names."""
        if not path.endswith(_TEXTS):
            return False
        text = data.decode(errors="replace")
        if path.endswith(".json"):
            return self._without(_parsed(text)) != _parsed(text)
        if path.endswith(".toml"):
            return self._quoted.search(text) is not None or any(self.in_text(note) for note in _comments(text))
        return self.in_text(text)

    def removed(self, path: str, data: bytes, stand_in: str) -> bytes | None:
        """A stored text without what names the subject; None where nothing would be left.

        Of JSON go the entries and the items that name it, of tables and logs the lines. In TOML, which a person wrote,
        a stand-in takes the id's place, so that a list of ids keeps its meaning.

        Args:
            path: tells the kind of text.
            data: the text.
            stand_in: put in the id's place in TOML.
        """
        text = data.decode(errors="replace")
        if path.endswith(".json"):
            left = self._without(_parsed(text))
            return None if left is _GONE else json.dumps(left, separators=(",", ":"), ensure_ascii=False).encode()
        if path.endswith(".toml"):
            lines = [self._quoted.sub(stand_in, line) for line in text.splitlines(keepends=True)]
            kept = [re.sub(r"#.*", f"# {stand_in}", x) if any(map(self.in_text, _comments(x))) else x for x in lines]
            return "".join(kept).encode()
        if not path.endswith(_LINES):
            return None
        kept = [line for line in text.splitlines(keepends=True) if not self._line_names(path, line)]
        return "".join(kept).encode() if kept else None

    def _line_names(self, path: str, line: str) -> bool:
        if path.endswith(".jsonl"):
            value = _parsed(line)
            return self._without(value) != value
        return self.in_text(line)

    def _without(self, value: Any) -> Any:
        """The value without what names the subject, or ``_GONE``."""
        if isinstance(value, str):
            return _GONE if self.in_text(value) else value
        if isinstance(value, list):
            return [left for item in value if (left := self._without(item)) is not _GONE]
        if isinstance(value, dict):
            if any(isinstance(item, str) and self.in_text(item) for item in value.values()):
                return _GONE
            kept = {name: self._without(item) for name, item in value.items() if not self.in_text(name)}
            return {name: item for name, item in kept.items() if item is not _GONE}
        return value


def _parsed(text: str) -> Any:
    """JSON decoded; what is none is taken as the text that it is."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _comments(text: str) -> list[str]:
    return [line.partition("#")[2] for line in text.splitlines() if "#" in line]
