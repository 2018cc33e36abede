"""Read a release: a few lines for whoever receives one.

    from pipeline.release import open_release

    release = open_release("heads-1.2.0")
    for key in release.scans("train"):
        mesh = release.clean(key)

Every file is held against the manifest as it is read.
"""

from __future__ import annotations

import json
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pipeline.release_config import Part
from pipeline.release_contents import MODEL_FILES, MODEL_FOLDER
from pipeline.release_documents import (
    MANIFEST_PATH,
    SCANS_PATH,
    SPLITS_PATH,
    TEMPLATE_PATH,
    ReleasedScan,
    ReleasedScans,
    ReleasedSplits,
    ReleaseManifest,
    Split,
    holds_release,
    no_release,
    parse_document,
    read_document,
)
from pipeline.sample_format import SAMPLES_ROOT
from pipeline.scan_rows import ShardSource
from registration.mesh import Mesh, mesh_from_ply
from registration.template import Template
from storage.digest import digest_bytes
from storage.errors import ConfigError, StorageConflict, one_line
from storage.store import Store, open_store

if TYPE_CHECKING:
    from model.head_model import HeadModel

_MAX_FILE_BYTES = 1024**3


def open_release(place: str | Path) -> Release:
    """Open a release in a folder or a bucket (``s3://...``).

    Raises:
        ConfigError: there is none.
        StorageConflict: its manifest is damaged.
    """
    return Release(open_store(str(place)))


class Release:
    """A released data set, read on demand.

    Args:
        store: where it lies.

    Attributes:
        manifest: what belongs to it.

    Raises:
        ConfigError: there is none.
        StorageConflict: its manifest is damaged.
    """

    def __init__(self, store: Store) -> None:
        if not holds_release(store):
            raise no_release(store)
        self.store = store
        self.manifest = read_document(ReleaseManifest, store, MANIFEST_PATH)
        self._files = {file.path: file for file in self.manifest.files}

    @property
    def version(self) -> str:
        """MAJOR.MINOR.PATCH."""
        return self.manifest.version

    @cached_property
    def about(self) -> dict[str, ReleasedScan]:
        """What is known of each scan, by key."""
        told = parse_document(ReleasedScans, self.read(SCANS_PATH), SCANS_PATH)
        return {scan.key: scan for scan in told.scans}

    @cached_property
    def splits(self) -> ReleasedSplits:
        """The subjects that train and those that are held out."""
        return parse_document(ReleasedSplits, self.read(SPLITS_PATH), SPLITS_PATH)

    def scans(self, split: Split | None = None, part: Part | None = None) -> list[str]:
        """Keys of the scans, sorted; of one split alone, or of those alone of which the release holds a part."""
        return [
            key
            for key, scan in self.about.items()
            if (split is None or scan.split == split) and (part is None or part in scan.parts)
        ]

    def clean(self, key: str, *, watertight: bool = False) -> Mesh:
        """A cleaned scan, or its closed companion: the capture's own frame, mm.

        Raises:
            ConfigError: the release does not hold it.
            StorageConflict: it is damaged.
        """
        return self._mesh(f"clean/{key}/{'watertight' if watertight else 'mesh'}.ply")

    def registration(self, key: str) -> Mesh:
        """The template's vertices in a scan: head frame, mm.

        Raises:
            ConfigError: the release does not hold it.
            StorageConflict: it is damaged.
        """
        return self._mesh(f"registrations/{key}/mesh.ply")

    def frame(self, key: str) -> dict[str, Any]:
        """``T_world_from_head`` (4x4) and ``throat_plane`` (4) of a registered scan, mm.

        Raises:
            ConfigError: the release does not hold it.
            StorageConflict: it is damaged.
        """
        told: dict[str, Any] = json.loads(self.read(f"registrations/{key}/frame.json"))
        return told

    def samples(self, key: str) -> ShardSource:
        """A scan's training samples, as ``pipeline.batches`` takes them: head frame, mm.

        Raises:
            ConfigError: the release does not hold them.
            StorageConflict: they are damaged.
        """
        root = f"{SAMPLES_ROOT}/{key}/"
        files = {path: file for path, file in self._files.items() if path.startswith(root)}
        if not files:
            raise self._absent(root)
        return ShardSource(self.store, key, files)

    def model(self, device: str = "cpu") -> HeadModel:
        """The model, with the codes of the released people and scans under their pseudonyms.

        Raises:
            ConfigError: the release has no model.
            StorageConflict: it is damaged.
        """
        from model.head_model import HeadModel  # torch: loaded where a model is wanted alone

        files = {name: f"{MODEL_FOLDER}/{name}" for name in MODEL_FILES}
        read = {name: self.read(path) for name, path in files.items() if path in self._files}
        if not read:
            raise self._absent(MODEL_FOLDER)
        return HeadModel.from_files(read, device, f"{self.store.url}/{MODEL_FOLDER}")

    def template(self) -> Template:
        """The template, whose vertex order the registrations have."""
        return Template.from_bytes(self.read(TEMPLATE_PATH), TEMPLATE_PATH)

    def read(self, path: str) -> bytes:
        """A file of the release.

        Raises:
            ConfigError: the release has no such file.
            StorageConflict: it is missing, damaged or too large.
        """
        file = self._files.get(path)
        if file is None:
            raise self._absent(path)
        where, remedy = f"{self.store.url}/{path}", "copy the release again; 'nphm release verify' lists all damage"
        found = self.store.stat(path)
        if found is None:
            raise StorageConflict(one_line("is missing", where, "", remedy))
        if found.bytes != file.bytes:
            why = f"{found.bytes} bytes, the manifest says {file.bytes}"
            raise StorageConflict(one_line("is damaged", where, why, remedy))
        if found.bytes > _MAX_FILE_BYTES:
            why = f"{found.bytes} bytes, at most {_MAX_FILE_BYTES} are read"
            raise StorageConflict(one_line("is too large", where, why, "get the release from where it was made"))
        data = self.store.get_range(path, 0, file.bytes)
        if digest_bytes(data) != file.sha256:
            raise StorageConflict(one_line("is damaged", where, "its digest is not the manifest's", remedy))
        return data

    def _mesh(self, path: str) -> Mesh:
        return mesh_from_ply(self.read(path), path)

    def _absent(self, path: str) -> ConfigError:
        why = f"its parts are {', '.join(self.manifest.parts)}"
        return ConfigError(one_line(f"does not hold {path}", self.store.url, why, "'scans()' lists what it holds"))
