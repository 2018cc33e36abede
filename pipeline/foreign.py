"""Foreign data sets, in the folder trees that they ship in, as sessions: linked where possible, never changed."""

from __future__ import annotations

import json
import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from pipeline.session import NOTE
from storage.bounded import read_bounded
from storage.errors import ConfigError, ScanRejected, one_line
from storage.jsonfile import MAX_JSON_BYTES, read_json

ForeignLayout = Literal["nphm", "facescape"]

_NEUTRALS = "neutrals_open.json"
_COPY_NEUTRALS = "copy it from the NPHM repository's dataset/"
_FACESCAPE_SCAN = re.compile(r"([1-9][0-9]?)_([a-z_]+)\.(obj|ply)")


@dataclass(frozen=True)
class ForeignScan:
    """One scan of a foreign data set.

    Attributes:
        subject, expression: as the session will call them.
        file: a PLY or OBJ file.
    """

    subject: str
    expression: str
    file: Path


@dataclass(frozen=True)
class _Kind:
    canonical: str
    rig: str
    licence: str


_KINDS: dict[ForeignLayout, _Kind] = {
    "nphm": _Kind("neutral_open", "Artec Eva (NPHM data set)", "NPHM data set, academic use by agreement"),
    "facescape": _Kind("neutral", "FaceScape", "FaceScape, non-commercial research by agreement"),
}


def write_session(root: Path, layout: ForeignLayout, out: Path) -> Path:
    """Lay a data set out as a session of fused meshes.

    ``nphm``: ROOT/SUBJECT/EXPRESSION/scan.ply with numbers for names, and ``neutrals_open.json``, in ROOT or beside it,
    that tells each subject's neutral with an open mouth. ``facescape``: ROOT/SUBJECT/models_reg/N_NAME.obj or
    ROOT/SUBJECT/N_NAME.ply. Both are in mm.

    Args:
        root: the data set's folder; it is read alone.
        layout: which data set.
        out: the session's folder. What lies there already stays unless its source has changed, so a call
            that was stopped goes on.

    Returns:
        ``out``.

    Raises:
        ConfigError: the folder holds no such data set.
    """
    scans = list(_nphm(root) if layout == "nphm" else _facescape(root))
    if not scans:
        wanted = "SUBJECT/EXPRESSION/scan.ply" if layout == "nphm" else "SUBJECT/models_reg/1_neutral.obj"
        raise ConfigError(one_line(f"holds no scans of {layout}", str(root), f"looked for {wanted}", "check the path"))
    newest = 0.0
    for scan in scans:
        target = out / scan.subject / scan.expression / f"scan{scan.file.suffix.lower()}"
        told = scan.file.stat()
        newest = max(newest, told.st_mtime)
        if not _is_as_told(target, told):
            _link(scan.file, target)
    _write_note(out, layout, scans, newest)
    return out


def _nphm(root: Path) -> Iterator[ForeignScan]:
    neutrals = _neutrals(root)
    for file in sorted(root.glob("*/*/scan.ply")):
        subject, expression = file.parts[-3], file.parts[-2]
        if not (subject.isdecimal() and expression.isdecimal()):
            continue
        canonical = neutrals.get(int(subject)) == int(expression)
        yield ForeignScan(subject, _KINDS["nphm"].canonical if canonical else expression, file)


def _neutrals(root: Path) -> dict[int, int]:
    """The expression of each subject's neutral with an open mouth."""
    for file in (root / _NEUTRALS, root.parent / _NEUTRALS):
        if file.is_file():
            try:
                told = read_json(read_bounded(file, MAX_JSON_BYTES), str(file))
                return {int(subject): int(str(expression)) for subject, expression in told.items()}
            except ScanRejected as error:
                raise ConfigError(str(error)) from error
            except ValueError as error:
                why = f"{error}; each subject's number has an expression's"
                raise ConfigError(one_line("tells no neutrals", str(file), why, _COPY_NEUTRALS)) from error
    why = "it tells which scan of a subject is the neutral with an open mouth"
    raise ConfigError(one_line(f"{_NEUTRALS} is missing", str(root), why, _COPY_NEUTRALS))


def _facescape(root: Path) -> Iterator[ForeignScan]:
    for pattern in ("*/models_reg/*.obj", "*/*.ply"):
        for file in sorted(root.glob(pattern)):
            named = _FACESCAPE_SCAN.fullmatch(file.name)
            subject = file.relative_to(root).parts[0]
            if named is not None and subject.isdecimal():
                yield ForeignScan(subject, named[2], file)


def _is_as_told(target: Path, told: os.stat_result) -> bool:
    """Whether a file is there with the size and time of its source; links and copies have both."""
    if not target.exists():
        return False
    found = target.stat()
    return (found.st_size, found.st_mtime_ns) == (told.st_size, told.st_mtime_ns)


def _link(source: Path, target: Path) -> None:
    """The same file under another name; a copy where the file system can't."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = target.with_name(target.name + ".part")
    part.unlink(missing_ok=True)
    try:
        os.link(source.resolve(), part)
    except OSError:
        shutil.copy2(source, part)
    part.replace(target)


def _write_note(out: Path, layout: ForeignLayout, scans: list[ForeignScan], newest: float) -> None:
    kind = _KINDS[layout]
    subjects: dict[str, list[str]] = {}
    for scan in scans:
        if scan.expression not in subjects.setdefault(scan.subject, []):
            subjects[scan.subject].append(scan.expression)
    note = {
        "schema_version": 1,
        "session_id": f"{layout}-{out.name}",
        "captured_at": datetime.fromtimestamp(int(newest), UTC).isoformat(),
        "rig": kind.rig,
        "layout": "fused_mesh",
        "unit": "mm",
        "canonical_expression": kind.canonical,
        "licence": kind.licence,
        "subjects": [{"id": subject, "expressions": names} for subject, names in sorted(subjects.items())],
    }
    part = out / f"{NOTE}.part"
    part.write_text(json.dumps(note, indent=1) + "\n")
    part.replace(out / NOTE)
