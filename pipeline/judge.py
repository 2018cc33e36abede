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
    key = _known(workspace, key)
    if not reason.strip() or not by.strip():
        raise ConfigError(one_line("a judgement needs its reason and its author", key, "", "give --reason and --by"))
    word = Judgement(verdict=verdict, reason=reason.strip(), by=by.strip())
    workspace.store.put(judgement_path(key), word.model_dump_json(indent=1).encode())
    return word


def accepts_nothing(workspace: Workspace, key: str) -> bool:
    """Whether nothing could be computed of a scan, so that a word that accepts it has no effect."""
    made = (workspace.manifest(step, key) for step in ("ingest", "clean", "register"))
    return any(manifest is not None and not manifest.accepted and bool(manifest.faults) for manifest in made)


def forget_judgement(workspace: Workspace, key: str) -> None:
    """Take a person's word back; the next run rewrites the verdicts that it changed.

    Raises:
        ConfigError: the workspace has no such scan, or nobody has judged it.
    """
    key = _known(workspace, key)
    if workspace.judgement(key) is None:
        raise ConfigError(one_line("was judged by nobody", key, workspace.url, "there is nothing to take back"))
    workspace.store.delete(judgement_path(key))


def _known(workspace: Workspace, key: str) -> str:
    """The key of a scan that was taken in."""
    subject = ScanKey.parse(key).subject
    known = workspace.scans_of(subject)
    if str(ScanKey.parse(key)) not in known:
        why = f"subject {subject} has {', '.join(known)}" if known else f"there is no subject {subject}"
        raise ConfigError(one_line("is no scan of this workspace", key, why, "see the folders of its ingest/"))
    return key
