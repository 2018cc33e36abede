"""Finished uploads in a folder or bucket, told by a marker that is written last or by their coming to rest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.session import NOTE
from storage.digest import digest_json
from storage.store import Stat

MARKER = "upload.complete"


@dataclass(frozen=True)
class Seen:
    """How a session looked, and since when it has looked so.

    Attributes:
        look: digest of its files' names, sizes and versions.
        since: seconds since 1970.
        taken: the look with which it was handed on; empty before.
    """

    look: str
    since: float
    taken: str = ""


@dataclass(frozen=True)
class InboxLook:
    """What one look at an inbox found.

    Attributes:
        finished: sessions to hand on, by folder; each with its look.
        waiting: folders that are still being uploaded.
        seen: what to remember for the next look.
    """

    finished: dict[str, str] = field(default_factory=dict)
    waiting: list[str] = field(default_factory=list)
    seen: dict[str, Seen] = field(default_factory=dict)


def look_at_inbox(stats: Mapping[str, Stat], known: Mapping[str, Seen], now: float, settle_seconds: float) -> InboxLook:
    """Tell which sessions are wholly there and were not handed on as they are now.

    Args:
        stats: every object of the inbox; a session is a folder with ``session.json``, at any depth.
        known: what the last look said to remember.
        now: seconds since 1970.
        settle_seconds: how long a session without a marker must look the same.
    """
    roots = sorted(path[: -len(NOTE) - 1] for path in stats if path.endswith(f"/{NOTE}"))
    found = InboxLook()
    for root in roots:
        files = [[path, stat.bytes, stat.version] for path, stat in stats.items() if path.startswith(f"{root}/")]
        look = digest_json(sorted(files))
        before = known.get(root, Seen(look, now))
        seen = Seen(look, before.since if before.look == look else now, before.taken)
        marked = f"{root}/{MARKER}" in stats
        if look != seen.taken and (marked or now - seen.since >= settle_seconds):
            found.finished[root] = look
        elif look != seen.taken:
            found.waiting.append(root)
        found.seen[root] = seen
    return found
