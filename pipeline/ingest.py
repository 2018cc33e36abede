"""Take capture sessions into a workspace: every file validated and known by its digest, nothing taken twice."""

from __future__ import annotations

import json
import logging
import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.capture import read_capture
from pipeline.keys import is_safe_name, subjects_of
from pipeline.known_sessions import Place, known_places, remember_place, session_path
from pipeline.rawfiles import IngestedFiles, SessionFiles
from pipeline.scan_landmarks import told_landmarks
from pipeline.session import NOTE, FoundScan, Refusal, find_scans, read_session
from pipeline.splits import PATH as SPLITS_PATH
from pipeline.splits import draw_splits
from pipeline.tombstones import Withdrawn
from pipeline.workspace import Workspace
from registration.landmarks import Landmarks
from registration.views import Capture
from storage.digest import canonical_json, digest_json
from storage.errors import ScanRejected, StorageConflict, one_line
from storage.manifest import Manifest

log = logging.getLogger(__name__)

STEP_VERSION = 2
_LOOKS = ".cache/looks.json"


@dataclass(frozen=True)
class Pending:
    """A scan that has to be read: why, and the look of its files on disk when that was found out."""

    scan: FoundScan
    why: str
    look: str
    copy: bool = False


@dataclass
class SessionLook:
    """What one look at a session's folder found, without reading any raw file that looks as it did before.

    Attributes:
        session_id: as told.
        root: the session's folder.
        subject_prefix: put before every subject's id.
        copy: whether raw files are copied into the workspace.
        pending: scans to read.
        unchanged: keys of the accepted scans that are as they were.
        still_rejected: the reason by key of those that are as they were when they were rejected.
        refused: scans that have no place in the workspace, and why.
        gone: a line for each scan that was taken in and is no longer there, or no longer named.
        fault: why the session as a whole can't be read, or None.
    """

    session_id: str
    root: Path
    subject_prefix: str = ""
    copy: bool = False
    pending: list[Pending] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    still_rejected: dict[str, str] = field(default_factory=dict)
    refused: list[Refusal] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    fault: str | None = None


@dataclass
class IngestReport:
    """What taking sessions in came to.

    Attributes:
        accepted: keys of the scans that were read and can be used.
        rejected: keys of those that can't, whether read now or before; their manifests hold the reasons.
        unchanged: keys of the accepted scans that are as they were.
        still_rejected: the reason by key of the rejected scans that were not read again.
        refused: scans that were given no place, and why.
        gone: a line for each scan that stays as it was taken in, although its session no longer has it.
        faults: a line for each session that could not be read at all.
    """

    accepted: list[str] = field(default_factory=list)
    rejected: list[str] = field(default_factory=list)
    unchanged: list[str] = field(default_factory=list)
    still_rejected: dict[str, str] = field(default_factory=dict)
    refused: list[Refusal] = field(default_factory=list)
    gone: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def judge_ingest(figures: Mapping[str, Any], thresholds: object) -> list[str]:
    """Nothing: what ingest finds against a scan is a fault, not a matter of thresholds."""
    return []


def ingest_session(
    workspace: Workspace, session: Path, subject_prefix: str = "", *, copy: bool = False
) -> IngestReport:
    """Take a session into the workspace and remember it for later looks.

    Args:
        workspace: where to.
        session: the folder with ``session.json``.
        subject_prefix: put before every subject's id, for a studio whose ids clash with another's.
        copy: keep a copy of the raw files in the workspace; otherwise they are referenced where they lie.
    """
    root = Path(os.path.abspath(session))
    look = look_at_session(workspace, root, subject_prefix, copy=copy)
    if look.fault is None:
        remember_session(workspace, look)
    return take_in(workspace, [look])


def look_again(workspace: Workspace) -> list[SessionLook]:
    """Look at every session that the workspace knows. Nothing is written."""
    return [
        look_at_session(workspace, place.root, place.subject_prefix, copy=place.copy)
        for place in known_places(workspace.store)
    ]


def take_in(workspace: Workspace, looks: list[SessionLook]) -> IngestReport:
    """Read every scan that a look found pending, one after another, and draw the splits of new subjects."""
    outcomes = {}
    for look in looks:
        for pending in look.pending:
            outcomes[str(pending.scan.folder)] = take_scan(workspace, pending)
    return settle_looks(workspace, looks, outcomes)


def look_at_session(workspace: Workspace, root: Path, subject_prefix: str = "", *, copy: bool = False) -> SessionLook:
    """List a session's scans and tell those to be read from those that look as they did. Nothing is written."""
    try:
        session = read_session(root)
    except ScanRejected as error:
        return SessionLook("", root, subject_prefix, fault=str(error))
    look = SessionLook(session.session_id, root, subject_prefix, copy)
    scans, look.refused = find_scans(root, session, subject_prefix)
    looks = _read_looks(workspace)
    withdrawn = Withdrawn(workspace.store)
    for scan in scans:
        if why_not := withdrawn.refusal(scan.key):
            look.refused.append(Refusal(scan.key, why_not, noted=False))
            continue
        manifest = workspace.manifest("ingest", scan.key)
        ours = manifest is not None and manifest.accepted and manifest.extra("source") == str(scan.folder)
        if ours and not os.path.isdir(scan.folder):
            look.gone.append(_gone(scan.key, f"folder {scan.folder} is not there"))
            continue
        now = _look_of(workspace, scan)
        known = looks.get(str(scan.folder))
        if known is None or known["look"] != now:
            why = "never read" if known is None else "its files changed"
            look.pending.append(Pending(scan, why, now, copy))
        elif manifest is not None and manifest.extra("content_digest") == known["content"]:
            if manifest.accepted:
                look.unchanged.append(scan.key)
            else:
                look.still_rejected[scan.key] = "; ".join(manifest.reasons)
        elif manifest is not None and manifest.extra("source") != str(scan.folder):
            look.refused.append(_conflict(scan, manifest))
        else:
            look.pending.append(Pending(scan, "its manifest is gone", now, copy))
    look.gone += _no_longer_named(workspace, root, subject_prefix, {str(scan.folder) for scan in scans}, looks)
    return look


def _no_longer_named(
    workspace: Workspace, root: Path, subject_prefix: str, named: set[str], looks: Mapping[str, Mapping[str, str]]
) -> list[str]:
    """A line for each scan that was taken in from a session whose ``session.json`` named it once."""
    lines = []
    for folder in sorted(set(looks) - named):
        subject, _, expression = os.path.relpath(folder, root).partition(os.sep)
        key = f"{subject_prefix}{subject}/{expression}"
        if is_safe_name(subject) and is_safe_name(expression):
            manifest = workspace.manifest("ingest", key)
            if manifest is not None and manifest.accepted and manifest.extra("source") == folder:
                lines.append(_gone(key, f"{root / NOTE} no longer names it"))
    return lines


def _gone(key: str, why: str) -> str:
    remedy = "bring it back, or leave it out with 'nphm judge'"
    return one_line("is kept as it was taken in", key, why, remedy)


def take_scan(workspace: Workspace, pending: Pending) -> Manifest | Refusal:
    """Read, check and record one scan.

    Returns:
        Its manifest, accepted or rejected; or the refusal, where another session's scan has its key and other content.
    """
    scan = pending.scan
    existing = workspace.manifest("ingest", scan.key)
    result = _read_scan(workspace, scan, pending.copy)
    content = result["extra"]["content_digest"]
    if why_not := Withdrawn(workspace.store).refusal(scan.key, content):
        return Refusal(scan.key, why_not, noted=False)
    if existing is not None and existing.extra("source") != str(scan.folder):
        if existing.extra("content_digest") != content:
            return _conflict(scan, existing, content)
        if Path(existing.extra("source")).is_dir():
            return existing
    made = workspace.commit("ingest", scan.key, **result)
    log.info("%s: ingest %s", scan.key, made.verdict)
    return made


def settle_looks(
    workspace: Workspace, looks: list[SessionLook], outcomes: Mapping[str, Manifest | Refusal]
) -> IngestReport:
    """Remember how the files looked that were read, draw the splits of new subjects, and sum up.

    Args:
        outcomes: what ``take_scan`` returned, by the scan's folder.
    """
    report = IngestReport()
    seen = _read_looks(workspace)
    before = dict(seen)
    for look in looks:
        if look.fault is not None:
            report.faults.append(look.fault)
        report.unchanged += look.unchanged
        report.rejected += look.still_rejected
        report.still_rejected |= look.still_rejected
        report.refused += look.refused
        report.gone += look.gone
        for pending in look.pending:
            source = str(pending.scan.folder)
            outcome = outcomes.get(source)
            if isinstance(outcome, Refusal):
                report.refused.append(outcome)
                if outcome.noted:
                    seen[source] = {"look": pending.look, "content": outcome.content}
            elif outcome is not None and outcome.extra("source") != source:  # another place has the same content
                report.unchanged.append(outcome.key)
                seen[source] = {"look": pending.look, "content": outcome.extra("content_digest")}
            elif outcome is not None:
                (report.accepted if outcome.accepted else report.rejected).append(outcome.key)
                seen[source] = {"look": pending.look, "content": outcome.extra("content_digest")}
    if seen != before:
        workspace.store.put(_LOOKS, canonical_json(seen))
    _note_refusals(workspace, looks, outcomes)
    _keep_splits(workspace)
    return report


def load_capture(workspace: Workspace, key: str) -> Capture:
    """Read a scan that was taken in, every file held against its digest.

    Raises:
        ScanRejected: it was rejected when it was taken in.
        StorageConflict: a raw file is gone or was changed since.
    """
    manifest = workspace.accepted("ingest", key)
    files = IngestedFiles(workspace.store, manifest)
    told = manifest.extra
    return read_capture(files, key, told("layout"), told("unit"), workspace.config.ingest).capture


def load_landmarks(workspace: Workspace, key: str) -> Landmarks | None:
    """The landmarks that were told beside a scan, world frame, mm; None where there are none.

    Raises:
        ScanRejected: the scan was rejected when it was taken in.
        StorageConflict: the file is gone or was changed since.
    """
    manifest = workspace.accepted("ingest", key)
    named = (manifest.extra("told_of_session") or {}).get("landmarks")
    return told_landmarks(IngestedFiles(workspace.store, manifest), manifest.extra("unit"), named)


def _read_scan(workspace: Workspace, scan: FoundScan, copy: bool) -> dict[str, Any]:
    """What to commit for a scan: its files' digests, figures, faults, and all that the session tells of it."""
    files = SessionFiles(scan.root, scan.folder, scan.name)
    figures: dict[str, Any] = {}
    faults: list[str] = []
    try:
        if not scan.folder.is_dir():
            why = "session.json names it"
            raise ScanRejected(one_line("folder of the scan is missing", scan.name, why, "copy the scan again"))
        figures = read_capture(files, scan.key, scan.layout, scan.session["unit"], workspace.config.ingest).figures
        landmarks = told_landmarks(files, scan.session["unit"], scan.session.get("landmarks"))
        if landmarks is not None:
            figures = figures | {"landmarks": len(landmarks.known)}
    except ScanRejected as fault:
        faults = [str(fault)]
    inputs = {} if faults else dict(sorted(files.digests.items()))
    outputs = {path: files.read(path) for path in inputs} if copy else {}
    if inputs and dict(sorted(files.digests.items())) != inputs:
        remedy = "ingest it again once it is wholly copied"
        raise StorageConflict(one_line("changed while it was read", scan.name, str(scan.root), remedy))
    content = {"files": inputs, "faults": faults, "layout": scan.layout, "unit": scan.session["unit"]}
    own = {name: scan.subject[name] for name in ("licence", "consent") if name in scan.subject}
    told = scan.session | own
    named = ("session_id", "rig", "layout", "unit", "canonical_expression", "licence", "consent")
    extra: dict[str, Any] = {name: told.get(name) for name in named}
    extra |= {
        "source": str(scan.folder),
        "content_digest": digest_json(content),
        "told_of_session": {name: value for name, value in scan.session.items() if name not in named},
        "told_of_subject": {name: value for name, value in scan.subject.items() if name not in named},
    }
    return {"inputs": inputs, "outputs": outputs, "figures": figures, "faults": faults, "extra": extra}


def _look_of(workspace: Workspace, scan: FoundScan) -> str:
    """A digest of how a scan's files look from outside (name, size, time) and of what the session tells of it."""
    files: list[list[str | int]] = []
    folders = [str(scan.folder)]
    visited: set[str] = set()
    while folders:
        folder = folders.pop()
        real = os.path.realpath(folder)
        if real in visited:  # a link that leads back
            continue
        visited.add(real)
        try:
            names = sorted(os.listdir(folder))
        except OSError as error:  # reading it tells what is wrong
            files.append([folder, str(error.strerror)])
            continue
        for path in (os.path.join(folder, name) for name in names):
            try:
                found = os.stat(path)
            except OSError as error:
                files.append([path, str(error.strerror)])
                continue
            if stat.S_ISDIR(found.st_mode):
                folders.append(path)
            else:
                files.append([path, found.st_size, found.st_mtime_ns])
    rules = [STEP_VERSION, workspace.config.digest_of_step("ingest")]
    return digest_json([files, scan.session, scan.subject, rules])


def _conflict(scan: FoundScan, existing: Manifest, content: str = "") -> Refusal:
    told = f"session {existing.extra('session_id')} in {existing.extra('source')}"
    why = f"{told} has other content than session {scan.session['session_id']} in {scan.folder}"
    remedy = "ingest one of them with --subject-prefix, or name a retake EXPRESSION@2"
    return Refusal(scan.key, one_line("key is taken", scan.key, why, remedy), content)


def _read_looks(workspace: Workspace) -> dict[str, dict[str, str]]:
    try:
        looks: dict[str, dict[str, str]] = json.loads(workspace.store.get(_LOOKS))
    except FileNotFoundError:
        return {}
    return looks


def remember_session(workspace: Workspace, look: SessionLook) -> None:
    """Note where a session lies, so that each run looks at it again."""
    remember_place(workspace.store, look.session_id, Place(look.root, look.subject_prefix, look.copy))


def _note_refusals(workspace: Workspace, looks: list[SessionLook], outcomes: Mapping[str, Manifest | Refusal]) -> None:
    """Keep beside each session what of it found no place, for ``rejected.jsonl``."""
    by_session: dict[str, list[dict[str, str]]] = {}
    for look in looks:
        if look.fault is None:
            refused = by_session.setdefault(session_path(look.session_id), [])
            late = (outcomes.get(str(pending.scan.folder)) for pending in look.pending)
            both = [*look.refused, *(outcome for outcome in late if isinstance(outcome, Refusal))]
            refused += [{"key": refusal.key, "line": refusal.line} for refusal in both if refusal.noted]
    for path, refused in by_session.items():
        note = json.loads(workspace.store.get(path))
        if note.get("refused", []) != refused:
            workspace.store.put(path, canonical_json(note | {"refused": refused}))


def _keep_splits(workspace: Workspace) -> None:
    kept = workspace.kept_splits()
    subjects = subjects_of(workspace.scans())
    share = workspace.config.splits.held_out
    drawn = draw_splits(kept, subjects, share, workspace.config.seed)
    if drawn != kept:
        workspace.store.put(SPLITS_PATH, json.dumps(drawn, indent=1).encode())
