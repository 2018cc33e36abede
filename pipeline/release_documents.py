"""The documents of a release: its manifest, its scans, its splits. ``nphm schema`` prints their JSON schemas."""

from __future__ import annotations

import re
from typing import Any, Literal, TypeVar

from pydantic import Field, ValidationError

from pipeline.release_config import Part
from storage.digest import canonical_json, digest_json
from storage.errors import ConfigError, StorageConflict, one_line
from storage.frozen import Frozen, first_fault
from storage.manifest import Output
from storage.store import Store

MANIFEST_PATH = "manifest.json"
SCANS_PATH = "scans.json"
SPLITS_PATH = "splits.json"
CROISSANT_PATH = "croissant.json"
DATASHEET_PATH = "DATASHEET.md"
TEMPLATE_PATH = "template.npz"
UNFINISHED_PATH = "unfinished.json"
"""Stands in a release while it is built, so that a rerun knows the folder for its own."""

Split = Literal["train", "held_out"]
MAX_DOCUMENT_BYTES = 512 * 1024**2
D = TypeVar("D", bound="_Document")
_VERSION = r"^(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)\.(0|[1-9][0-9]*)$"


class _Document(Frozen):
    def to_bytes(self) -> bytes:
        """Encode as JSON. Equal documents, same bytes."""
        return self.model_dump_json(indent=1).encode() + b"\n"


class MadeBy(_Document):
    """What some of the release's files were made by."""

    step: str
    step_version: int
    config_digest: str
    config: dict[str, Any] = Field(description="the step's resolved configuration")
    results: int = Field(description="how many of the release's results were made so")


class ReleaseManifest(_Document):
    """``manifest.json``, written last: what belongs to the release, down to the last byte.

    No date, host or path stands in it: the same workspace gives the same bytes.
    """

    schema_version: Literal[1] = 1
    name: str
    version: str = Field(pattern=_VERSION, description="MAJOR.MINOR.PATCH")
    parts: tuple[Part, ...]
    template_sha256: str = Field(description="digest of template.npz, whose vertex order the registrations have")
    model: str | None = Field(default=None, description="the model's name in the workspace, or None without a model")
    made_by: tuple[MadeBy, ...] = Field(description="every configuration that went in, by step")
    files: tuple[Output, ...] = Field(description="every file of the release but this one, sorted by path")


class ReleasedScan(_Document):
    """One scan of a release. ``subject`` is a pseudonym, and ``key`` is made of it."""

    key: str = Field(description="SUBJECT/EXPRESSION")
    subject: str
    expression: str
    canonical: bool = Field(description="whether it is the subject's canonical scan")
    split: Split
    licence: str
    consent_scope: tuple[str, ...] = Field(description="what the person agreed to")
    rig: str = Field(description="pseudonym of the rig")
    layout: str = Field(description="how the scan was captured: depth_frames, view_clouds or fused_mesh")
    hair: str | None = None
    beard: bool | None = None
    glasses: bool | None = None
    parts: tuple[Part, ...] = Field(description="what the release holds of the scan")
    figures: dict[str, dict[str, Any]] = Field(description="quality figures by part, units in their names")


class LeftOut(_Document):
    """A scan that may not be released, and why. ``key`` is pseudonymous in a release."""

    key: str
    reason: str


class ReleasedScans(_Document):
    """``scans.json``: the scans of a release, and those that are not in it."""

    schema_version: Literal[1] = 1
    scans: tuple[ReleasedScan, ...] = Field(description="sorted by key")
    left_out: tuple[LeftOut, ...] = Field(description="scans without licence or without consent for release")
    not_accepted: dict[str, int] = Field(description="scans with licence and consent that a step rejected, by step")


class ReleasedSplits(_Document):
    """``splits.json``: which subjects train and which are held out. A subject never changes sides in later versions."""

    schema_version: Literal[1] = 1
    train: tuple[str, ...]
    held_out: tuple[str, ...]

    def by_subject(self) -> dict[str, Split]:
        """The split of each subject; of one in both, the latter."""
        sides: dict[str, Split] = dict.fromkeys(self.train, "train")
        return sides | dict.fromkeys(self.held_out, "held_out")


class BuiltRelease(_Document):
    """``WS/releases/VERSION-DIGEST.json``: a release that was built from a workspace, one record a place that it was
    built to. It names no subject's id.
    """

    schema_version: Literal[1] = 1
    name: str
    version: str
    place: str = Field(description="where it was built")
    manifest_sha256: str
    parts: tuple[Part, ...]
    subjects: dict[str, Split] = Field(description="split by pseudonym")
    model_subjects: tuple[str, ...] = Field(default=(), description="pseudonyms that the model was trained on")

    @property
    def path(self) -> str:
        """Where the record lies in a workspace."""
        return f"{BUILT_FOLDER}/{self.version}-{digest_json([self.manifest_sha256, self.place])[:12]}.json"


BUILT_FOLDER = "releases"


def parse_version(version: str) -> tuple[int, int, int] | None:
    """Major, minor and patch, or None where the text is no version."""
    match = re.fullmatch(_VERSION.strip("^$"), version)
    return (int(match[1]), int(match[2]), int(match[3])) if match else None


def list_built(store: Store) -> list[BuiltRelease]:
    """The releases that were built from a workspace, by version and place."""
    built = [
        BuiltRelease.model_validate_json(data) for data in store.get_many(store.list(BUILT_FOLDER)) if data is not None
    ]
    return sorted(built, key=lambda release: (parse_version(release.version) or (0, 0, 0), release.place))


def read_document(kind: type[D], store: Store, path: str) -> D:
    """Read a document of a release.

    Raises:
        FileNotFoundError: there is none.
        StorageConflict: it is too large or not as this version knows it.
    """
    return parse_document(kind, bounded(store, path), f"{store.url}/{path}")


def bounded(store: Store, path: str) -> bytes:
    """Read a document of a release, whatever kind it is.

    Raises:
        FileNotFoundError: there is none.
        StorageConflict: it is too large.
    """
    found = store.stat(path)
    if found is not None and found.bytes > MAX_DOCUMENT_BYTES:
        why = f"{found.bytes} bytes, at most {MAX_DOCUMENT_BYTES} are read"
        raise StorageConflict(one_line("is too large", f"{store.url}/{path}", why, "copy the release again"))
    return store.get(path)


def parse_document(kind: type[D], data: bytes, where: str) -> D:
    """Decode a document of a release.

    Raises:
        StorageConflict: it is not as this version knows it.
    """
    try:
        return kind.model_validate_json(data)
    except ValidationError as error:
        why = first_fault(error, "JSON")
        raise StorageConflict(one_line("does not fit its schema", where, why, "copy the release again")) from error


def unfinished_note(name: str, version: str) -> bytes:
    """What stands in ``unfinished.json``."""
    return canonical_json({"name": name, "version": version})


def holds_release(store: Store) -> bool:
    """Whether a finished release lies in a store."""
    return store.exists(MANIFEST_PATH)


def no_release(store: Store) -> ConfigError:
    """The error of a reader who finds none."""
    remedy = "build it again" if store.exists(UNFINISHED_PATH) else "check the path"
    return ConfigError(one_line("is no release", store.url, f"no {MANIFEST_PATH}", remedy))
