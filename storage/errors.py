"""The project's error root and its few kinds.

A message is one line that says what is wrong, where, why, and what to do next.
"""

from __future__ import annotations


class NphmError(Exception):
    """Root of every error that the project raises on purpose."""


class ScanRejected(NphmError):
    """A scan's data can't be used. It is recorded with this reason and the run goes on."""


class ConfigError(NphmError):
    """The configuration or the command is wrong. The run stops at once."""


class StorageConflict(NphmError):
    """Two contents claim one key, or a stored artefact is not what its manifest says."""


MAX_PART = 500
"""Longest part of a message: names and values from anywhere may be of any length."""


def one_line(what: str, where: str, why: str, remedy: str) -> str:
    """Compose the one line that reaches a user.

    >>> one_line("depth image is truncated", "S/001/smile/depth/003.png", "12 of 40 kB", "copy it again")
    'S/001/smile/depth/003.png: depth image is truncated (12 of 40 kB); copy it again'
    """
    what, where, why = (f"{part[:MAX_PART]}..." if len(part) > MAX_PART else part for part in (what, where, why))
    detail = f" ({why})" if why else ""
    line = " ".join(f"{where}: {what}{detail}; {remedy}".split())
    return "".join(c if c.isprintable() else "?" for c in line)  # names from anywhere must not steer a terminal
