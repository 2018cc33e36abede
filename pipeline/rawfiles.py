"""The raw files of one scan, read within bounds from the session's folder or from what ingest recorded of them."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from storage.digest import digest_bytes
from storage.errors import ScanRejected, StorageConflict, one_line
from storage.manifest import Manifest, read_output
from storage.store import Store

MAX_FILE_BYTES = 2 * 1024**3
_REMEDY = "copy the scan again"


class RawFiles(ABC):
    """Files of a scan by their path relative to the scan's folder.

    Attributes:
        name: the scan's folder as messages name it.
    """

    name: str

    @abstractmethod
    def listed(self, folder: str, ending: str) -> list[str]:
        """Paths of the files with an ending directly in a folder ('' is the scan's own), sorted."""

    @abstractmethod
    def read(self, path: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
        """Read one file.

        Raises:
            ScanRejected: it is missing, empty, larger than ``max_bytes``, or lies outside the session.
        """

    def where(self, path: str) -> str:
        """A file's name in messages."""
        return f"{self.name}/{path}"


class SessionFiles(RawFiles):
    """Files as a session hands them over. Remembers the digest of each file that was read.

    Args:
        root: the session's folder; nothing outside it is read, links included.
        folder: the scan's folder.
        name: the scan's folder as messages name it.
    """

    def __init__(self, root: Path, folder: Path, name: str) -> None:
        self.root = os.path.realpath(root)
        self.folder = folder
        self.name = name
        self.digests: dict[str, str] = {}
        self.sizes: dict[str, int] = {}

    def listed(self, folder: str, ending: str) -> list[str]:
        self._inside(folder or ".")
        try:
            names = [entry.name for entry in os.scandir(self.folder / folder)]
        except (FileNotFoundError, NotADirectoryError):
            return []
        return sorted(f"{folder}/{name}".lstrip("/") for name in names if name.lower().endswith(ending))

    def read(self, path: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
        where = self.where(path)
        file = self._inside(path)
        if not os.path.isfile(file):
            raise ScanRejected(one_line("is missing", where, "no such file", _REMEDY))
        size = os.stat(file).st_size
        if size == 0:
            raise ScanRejected(one_line("is empty", where, "0 bytes", _REMEDY))
        if size > max_bytes:
            why = f"{size} bytes, at most {max_bytes} are read"
            raise ScanRejected(one_line("is too large", where, why, "export the scan again"))
        try:
            with open(file, "rb") as opened:
                data = opened.read(max_bytes)
        except OSError as error:
            raise ScanRejected(
                one_line("can't be read", where, str(error.strerror), "check its permissions")
            ) from error
        self.digests[path] = digest_bytes(data)
        self.sizes[path] = len(data)
        return data

    def _inside(self, path: str) -> str:
        climbs = "\0" in path or os.path.isabs(path) or ".." in path.replace("\\", "/").split("/")
        real = "" if climbs else os.path.realpath(self.folder / path)
        if not _is_within(real, self.root):
            why = "it climbs out" if climbs else "a link leads out of it"
            remedy = "keep every file of a scan inside the scan's folder"
            raise ScanRejected(one_line("path leaves the session", self.where(path), why, remedy))
        return real


def _is_within(real: str, root: str) -> bool:
    return real == root or real.startswith(root.rstrip("/") + "/")


class IngestedFiles(RawFiles):
    """Files as ingest recorded them, each held against its digest.

    Args:
        store: the workspace's, for scans that were copied into it.
        manifest: of ingest.
    """

    def __init__(self, store: Store, manifest: Manifest) -> None:
        self.store = store
        self.manifest = manifest
        self.name = manifest.key

    def listed(self, folder: str, ending: str) -> list[str]:
        return sorted(
            path for path in self.manifest.inputs if path.rpartition("/")[0] == folder and path.lower().endswith(ending)
        )

    def read(self, path: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
        if path in self.manifest.outputs:
            return read_output(self.store, self.manifest, path)
        told: Mapping[str, str] = self.manifest.inputs
        file = Path(str(self.manifest.extra("source"))) / path
        if path not in told or not file.is_file():
            remedy = "bring the session back, or ingest it again from where it lies now"
            raise StorageConflict(one_line("raw file is gone", str(file), f"scan {self.manifest.key}", remedy))
        data = file.read_bytes()
        if digest_bytes(data) != told[path]:
            why = f"scan {self.manifest.key}"
            raise StorageConflict(
                one_line("raw file was changed after ingest", str(file), why, "ingest the session again")
            )
        return data
