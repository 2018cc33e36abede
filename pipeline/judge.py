"""A person's word over a scan's verdict, kept with its author."""

from __future__ import annotations

from typing import Literal

from pipeline.keys import ScanKey
from pipeline.workspace import Workspace, judgement_path
from storage.errors import ConfigError, one_line
from storage.manifest import Judgement


def record_judgement(
    workspace: Workspace, key: str, verdict: Literal["accept", "reject"], *, reason: str, by: str
) -> Judgement:
    """Keep a person's word over a scan. It survives recomputation; the next run rewrites the verdicts that it changes.

    ``accept`` stands over the thresholds of cleaning and registration, not over what could not be computed. ``reject``
    takes the scan out of what follows registration.

    Raises:
        ConfigError: the workspace has no such scan, or reason or author are empty.
    """
    key = str(ScanKey.parse(key))
    if workspace.manifest("ingest", key) is None:
        raise ConfigError(one_line("is no scan of this workspace", key, workspace.url, "'nphm status' lists the scans"))
    if not reason.strip() or not by.strip():
        raise ConfigError(one_line("a judgement needs its reason and its author", key, "", "give --reason and --by"))
    word = Judgement(verdict=verdict, reason=reason.strip(), by=by.strip())
    workspace.store.put(judgement_path(key), word.model_dump_json(indent=1).encode())
    return word


def forget_judgement(workspace: Workspace, key: str) -> None:
    """Take a person's word back; one that was not there is no error."""
    workspace.store.delete(judgement_path(str(ScanKey.parse(key))))
