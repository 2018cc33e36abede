"""A capture session as a capture team hands it over: session.json, and the scans that it names."""

from __future__ import annotations

import os
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from pipeline.keys import is_safe_name
from registration.views import Layout
from storage.digest import canonical_json
from storage.errors import ConfigError, ScanRejected, one_line
from storage.jsonfile import MAX_JSON_BYTES, read_json
from storage.manifest import plain

NOTE = "session.json"
MAX_SUBJECTS = 20_000
MAX_SCANS = 100_000
MAX_NOTE_BYTES = 64 * 1024
"""Of what a session tells beside its subjects, and of what it tells of one: it is kept with each scan."""
MM_PER_UNIT = {"mm": 1.0, "cm": 10.0, "m": 1000.0}


class Consent(BaseModel):
    """What a person agreed to."""

    model_config = ConfigDict(extra="allow", frozen=True)

    given: bool
    scope: list[str] = []
    date: str | None = None


class SubjectNote(BaseModel):
    """What a session tells of one subject. Further keys are kept."""

    model_config = ConfigDict(extra="allow", frozen=True)

    id: str
    expressions: list[str] = Field(max_length=1000)
    hair: str | None = None
    licence: str | None = None
    consent: Consent | None = None
    beard: bool | None = None
    glasses: bool | None = None


class Session(BaseModel):
    """``session.json``. Further keys are kept."""

    model_config = ConfigDict(extra="allow", frozen=True)

    schema_version: Literal[1]
    session_id: str = Field(min_length=1, max_length=200)
    captured_at: str
    rig: str
    layout: Layout
    unit: Literal["mm", "cm", "m"] = "mm"
    canonical_expression: str
    licence: str | None = None
    landmarks: str | None = Field(
        default=None, max_length=200, description="file with landmarks, in the folder of each scan that has some"
    )
    subjects: list[SubjectNote] = Field(max_length=MAX_SUBJECTS)

    @field_validator("captured_at")
    @classmethod
    def _is_a_time(cls, told: str) -> str:
        try:
            datetime.fromisoformat(told)
        except ValueError:
            raise ValueError("should be a time as in 2026-01-31T10:00:00Z") from None
        return told


@dataclass(frozen=True)
class FoundScan:
    """One scan of a session, not yet read.

    Attributes:
        key: SUBJECT/EXPRESSION, with the prefix that was asked for.
        folder: of the scan.
        root: of the session; nothing outside it is read.
        session: what ``session.json`` tells of the session, its subjects left out.
        subject: what it tells of the subject.
    """

    key: str
    folder: Path
    root: Path
    session: dict[str, Any]
    subject: dict[str, Any]

    @property
    def layout(self) -> Layout:
        """How the scan was handed over."""
        layout: Layout = self.session["layout"]
        return layout

    @property
    def name(self) -> str:
        """The scan's folder as messages name it: relative to the session."""
        return f"{self.folder.parent.name}/{self.folder.name}"


@dataclass(frozen=True)
class Refusal:
    """A scan that could not be given a place of its own in the workspace.

    Attributes:
        key: as told.
        line: what is wrong, where, why, and what to do.
        content: digest of its content, where it was read.
        noted: whether the workspace may keep this; of a subject that was withdrawn it keeps nothing.
    """

    key: str
    line: str
    content: str = ""
    noted: bool = True


def read_session(root: Path) -> Session:
    """Read and check ``session.json``.

    Raises:
        ScanRejected: it is missing, no JSON, or not as this version knows it.
    """
    file = root / NOTE
    if not os.path.isfile(file):
        folder = os.path.isdir(root)
        remedy = "give the folder that holds it" if os.path.exists(root) else "check the path"
        why = "" if folder else "it is a file" if os.path.exists(root) else "no such folder"
        raise ScanRejected(one_line(f"no {NOTE} found", str(root), why, remedy))
    try:
        with file.open("rb") as opened:
            data = opened.read(min(os.fstat(opened.fileno()).st_size, MAX_JSON_BYTES) + 1)
    except OSError as error:
        raise ScanRejected(
            one_line("can't be read", str(file), str(error.strerror), "check its permissions")
        ) from error
    told = read_json(data, str(file))
    if type(told.get("schema_version")) is not int or told["schema_version"] != 1:
        found = repr(told["schema_version"])[:80] if "schema_version" in told else "none"
        why = f"found {found}, known is 1"
        raise ScanRejected(one_line("schema_version is not known", str(file), why, "export with schema_version 1"))
    try:
        session = Session.model_validate(told)
    except ValidationError as error:
        first = error.errors()[0]
        at = ".".join(str(part) for part in first["loc"])
        found = repr(first["input"])[:80]
        message = first["msg"].removeprefix("Value error, ")
        what = "field required" if first["type"] == "missing" else f"{message[:1].lower()}{message[1:]}, found {found}"
        raise ScanRejected(one_line(f"{at}: {what}", str(file), "", "correct this key")) from error
    if sum(len(subject.expressions) for subject in session.subjects) > MAX_SCANS:
        raise ScanRejected(one_line("names too many scans", str(file), f"over {MAX_SCANS}", "split the session"))
    notes = [
        session.model_dump(mode="json", exclude={"subjects"}),
        *(s.model_dump(mode="json") for s in session.subjects),
    ]
    if max(len(canonical_json(plain(note))) for note in notes) > MAX_NOTE_BYTES:
        why = f"over {MAX_NOTE_BYTES} bytes of the session as a whole, or of one subject"
        raise ScanRejected(one_line("tells too much", str(file), why, "keep long notes in files of their own"))
    return session


def find_scans(root: Path, session: Session, subject_prefix: str = "") -> tuple[list[FoundScan], list[Refusal]]:
    """List the scans of a session: those it names, and their retakes that lie beside them.

    Args:
        root: the session's folder.
        subject_prefix: put before every subject's id.

    Raises:
        ConfigError: no subject may be called so.

    Returns:
        The scans, sorted by key, the canonical expression of each subject first; and those whose names can't be used.
    """
    if subject_prefix and not is_safe_name(subject_prefix):
        why = "allowed are 1 to 64 of A-Z a-z 0-9 . _ -"
        raise ConfigError(one_line("is no prefix for subjects", repr(subject_prefix), why, "choose another one"))
    about = plain(session.model_dump(mode="json", exclude={"subjects"}, exclude_none=True))
    found: list[FoundScan] = []
    refused: list[Refusal] = []
    notes: dict[str, dict[str, Any]] = {}
    named: set[str] = set()
    for subject in session.subjects:
        subject_id = subject_prefix + subject.id
        folder = root / subject.id
        told = plain(subject.model_dump(mode="json", exclude={"expressions", "id"}, exclude_none=True))
        if not is_safe_name(subject_id) or not is_safe_name(subject.id) or "@" in subject_id:
            refused.append(Refusal(subject_id, _unsafe(root, "subject", subject_id)))
            continue
        if notes.setdefault(subject.id, told) != told:
            remedy = "tell of each subject once"
            line = one_line(f"subject {subject.id} stands twice", str(root / NOTE), "with differing notes", remedy)
            refused.append(Refusal(subject_id, line))
            continue
        retakes, strays = _retakes(folder, subject.expressions)
        for stray in strays:
            line = one_line(
                "is a retake of no expression", f"{folder / stray}", "", f"name {stray.split('@')[0]} in {NOTE}"
            )
            refused.append(Refusal(f"{subject_id}/{stray}", line))
        for expression in [*dict.fromkeys(subject.expressions), *retakes]:
            key = f"{subject_id}/{expression}"
            if key in named:
                continue
            named.add(key)
            if is_safe_name(expression):
                found.append(FoundScan(key, folder / expression, root, about, told))
            else:
                refused.append(Refusal(key, _unsafe(root, f"expression of subject {subject.id}", expression)))
    canonical = session.canonical_expression
    found.sort(key=lambda scan: (scan.key.split("/")[0], scan.key.split("/")[1] != canonical, scan.key))
    return found, refused


def _retakes(folder: Path, expressions: list[str]) -> tuple[list[str], list[str]]:
    """Retakes beside the scans that a session names: those of its expressions, and those of others."""
    try:
        there = sorted(entry.name for entry in os.scandir(folder) if "@" in entry.name and entry.is_dir())
    except OSError:
        return [], []  # reading its scans tells what is wrong with it
    new = [name for name in there if name not in expressions]
    known = [name for name in new if name.split("@")[0] in expressions]
    return known, [name for name in new if name not in known]


def _unsafe(root: Path, what: str, name: str) -> str:
    climbs = ".." in name or "/" in name or "\\" in name
    why = (
        "it climbs out of the session"
        if climbs
        else "allowed are 1 to 64 of A-Z a-z 0-9 . _ -, and @2 to @99 for retakes"
    )
    remedy = "rename it in session.json and on disk"
    return one_line(f"{what} may not be called {name[:80]!r}", str(root / NOTE), why, remedy)
