"""How scans, subjects and models are named."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from storage.errors import ConfigError, one_line

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}(@([2-9]|[1-9][0-9]))?")


def is_safe_name(name: str) -> bool:
    """Whether a subject, expression or model may be called so: letters, digits, ``._-``, and ``@2`` for a retake."""
    return _NAME.fullmatch(name) is not None and ".." not in name


class ScanKey(NamedTuple):
    """A scan's key, written SUBJECT/EXPRESSION."""

    subject: str
    expression: str

    @classmethod
    def parse(cls, text: str) -> ScanKey:
        """Read a key.

        Raises:
            ConfigError: the text is no key.
        """
        subject, _, expression = text.partition("/")
        if not (is_safe_name(subject) and is_safe_name(expression)):
            raise ConfigError(one_line("is no scan key", repr(text), "", "write it as SUBJECT/EXPRESSION"))
        return cls(subject, expression)

    def __str__(self) -> str:
        return f"{self.subject}/{self.expression}"


def subject_of(key: str) -> str:
    """The subject in SUBJECT/EXPRESSION."""
    return key.partition("/")[0]


def subjects_of(keys: Iterable[str]) -> list[str]:
    """The subjects of scans, each once, sorted."""
    return sorted({subject_of(key) for key in keys})


def take_of(key: str) -> tuple[str, int]:
    """The expression in SUBJECT/EXPRESSION without its retake's number, and the number (1 for the first take)."""
    name, _, number = key.partition("/")[2].partition("@")
    return name, int(number or 1)
