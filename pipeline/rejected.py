"""WS/rejected.jsonl: a line for each rejected scan, derived from the manifests."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import Field

from pipeline.inputs import Book
from pipeline.workspace import Workspace
from storage.digest import canonical_json
from storage.frozen import Frozen

PATH = "rejected.jsonl"


class RejectedScan(Frozen):
    """A line of ``rejected.jsonl``."""

    key: str = Field(description="SUBJECT/EXPRESSION, as the session names it")
    step: str = Field(description="that rejected it")
    reason: str = Field(description="why, what to do included")
    file: str = Field(description="the report, or the note of the session, that says so")


_SESSIONS = "sessions"


def is_refusal(line: Mapping[str, Any]) -> bool:
    """Whether a line of the list is of a scan that has no place in the workspace: only its session tells of it."""
    return line["file"].startswith(f"{_SESSIONS}/")


def list_rejected(book: Book) -> Iterator[dict[str, Any]]:
    """Every rejected scan once, at the step that rejected it: key, step, reason, and the manifest that says so."""
    for key in book.scans():
        for spec in book.steps.values():
            manifest = book.manifest(spec.name, key) if spec.scope == "scan" else None
            if manifest is not None and not manifest.accepted:
                reason = "; ".join(manifest.reasons)
                yield _line(key, spec.name, reason, spec.manifest_path(key))
                break


def write_rejected(workspace: Workspace, book: Book) -> list[dict[str, Any]]:
    """Write the list anew: the rejected scans, and those that found no place in the workspace at all.

    Args:
        workspace: where to.
        book: the workspace's manifests as they stand, best a fresh snapshot.

    Returns:
        The list.
    """
    rejected = list(list_rejected(book))
    for path in workspace.store.list(_SESSIONS):
        refused = json.loads(workspace.store.get(path)).get("refused", [])
        rejected += [_line(r["key"], "ingest", r["line"], path) for r in refused]
    data = b"".join(canonical_json(line) + b"\n" for line in rejected)
    try:
        unchanged = workspace.store.get(PATH) == data
    except FileNotFoundError:
        unchanged = False
    if not unchanged:
        workspace.store.put(PATH, data)
    return rejected


def _line(key: str, step: str, reason: str, file: str) -> dict[str, Any]:
    return RejectedScan(key=key, step=step, reason=reason, file=file).model_dump()
