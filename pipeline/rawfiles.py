"""The raw files of one scan, read within bounds from the session's folder or from what ingest recorded of them."""

from __future__ import annotations

import os
import re
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path

from storage.digest import digest_bytes
from storage.errors import ScanRejected, StorageConflict, one_line
from storage.manifest import Manifest, read_output
from storage.store import Store

MAX_FILE_BYTES = 1024**3
MAX_SCAN_BYTES = 4 * 1024**3
MAX_PATH_LENGTH = 400
_REMEDY = "copy the scan again"
_DRIVE = re.compile(r"[A-Za-z]:")


class RawFiles(ABC):
    """Files of a scan by their path relative to the scan's folder.

    Attributes:
        name: the scan's folder as messages name it.
    """

    name: str

    @abstractmethod
    def listed(self, folder: str, ending: str) -> list[str]:
        """Paths of the files with an ending directly in a folder ('' is the scan's own), sorted; no hidden ones."""

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
            names = [name for name in os.listdir(self.folder / folder) if not name.startswith(".")]
        except (FileNotFoundError, NotADirectoryError):
            return []
        except OSError as error:
            remedy = "check its permissions"
            raise ScanRejected(one_line("can't be listed", self.where(folder), str(error.strerror), remedy)) from error
        return sorted(f"{folder}/{name}".lstrip("/") for name in names if name.lower().endswith(ending))

    def read(self, path: str, max_bytes: int = MAX_FILE_BYTES) -> bytes:
        where = self.where(path)
        file = self._inside(path)
        if not os.path.isfile(file):
            why, remedy = self._instead(path)
            raise ScanRejected(one_line("is missing", where, why, remedy))
        size = os.stat(file).st_size
        if size == 0:
            raise ScanRejected(one_line("is empty", where, "0 bytes", _REMEDY))
        if size > max_bytes:
            why = f"{size} bytes, at most {max_bytes} are read"
            raise ScanRejected(one_line("is too large", where, why, "export the scan again"))
        total = size + sum(self.sizes.values()) - self.sizes.get(path, 0)
        if total > MAX_SCAN_BYTES:
            why = f"{total} bytes up to this file, at most {MAX_SCAN_BYTES} are read"
            raise ScanRejected(one_line("scan is too large", where, why, "export it with fewer or smaller views"))
        try:
            with open(file, "rb") as opened:
                data = opened.read(size + 1)
        except OSError as error:
            raise ScanRejected(
                one_line("can't be read", where, str(error.strerror), "check its permissions")
            ) from error
        if len(data) != size:
            why = f"{len(data)} bytes instead of {size}"
            raise ScanRejected(one_line("changed while it was read", where, why, "ingest it once it is wholly copied"))
        self.digests[path] = digest_bytes(data)
        self.sizes[path] = len(data)
        return data

    def _inside(self, path: str) -> str:
        if len(path) > MAX_PATH_LENGTH:
            why = f"{len(path)} characters, at most {MAX_PATH_LENGTH} are read"
            raise ScanRejected(one_line("path is too long", self.where(path[:80]), why, "rename the file"))
        parts = path.replace("\\", "/").split("/")
        climbs = "\0" in path or not parts[0] or _DRIVE.match(path) is not None or ".." in parts
        real = "" if climbs else os.path.realpath(self.folder / path)
        if not _is_within(real, self.root):
            why = "it climbs out" if climbs else "a link leads out of it"
            remedy = "keep every file of a scan inside the scan's folder"
            raise ScanRejected(one_line("path leaves the session", self.where(path), why, remedy))
        return real

    def _instead(self, path: str) -> tuple[str, str]:
        """Why a file is missing, and what to do: often its name is there, written in another way."""
        folder, _, name = path.rpartition("/")
        for there in self.listed(folder, ""):
            if _plain_name(there) == _plain_name(path):
                found = there.rpartition("/")[2]
                return f"there is {found!r} instead of {name!r}", "let both names be the same, letter by letter"
        return "no such file", _REMEDY


def _plain_name(name: str) -> str:
    """A name without what operating systems change on the way: case, and how accents are composed."""
    return unicodedata.normalize("NFC", name).casefold()


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
        try:
            with open(file, "rb") as opened:
                data = opened.read(min(os.fstat(opened.fileno()).st_size, max_bytes) + 1)
        except OSError as error:
            why = f"{error.strerror}, scan {self.manifest.key}"
            raise StorageConflict(
                one_line("raw file can't be read", str(file), why, "check its permissions")
            ) from error
        if digest_bytes(data) != told[path]:
            why = f"scan {self.manifest.key}"
            raise StorageConflict(
                one_line("raw file was changed after ingest", str(file), why, "ingest the session again")
            )
        return data
