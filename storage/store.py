"""The one artefact store: a local folder or an S3-compatible bucket behind the same few verbs."""

from __future__ import annotations

import errno
import os
import secrets
import socket
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import obstore
from obstore.exceptions import BaseError

from storage.errors import ConfigError, StorageConflict, one_line

SCRATCH = ".tmp"
"""Where a local store keeps what is not yet, or never, one of its objects."""

_REQUESTS = 32
_PIECE_BYTES = 8 * 1024**2


class Stat(NamedTuple):
    """What a store knows of an object without reading it.

    Attributes:
        bytes: its size.
        version: changes whenever the object is written anew (time and inode on disk, entity tag in a bucket).
        modified_ns: when it was last written, in nanoseconds since 1970.
    """

    bytes: int
    version: str
    modified_ns: int


def check_path(path: str) -> str:
    """Return a store path that can't leave the store: relative, '/'-separated, without '.' and '..'.

    Raises:
        StorageConflict: the path could climb out.
    """
    parts = path.split("/")
    if any(part in ("", ".", "..") for part in parts) or "\\" in path or "\0" in path or parts[0] == SCRATCH:
        raise StorageConflict(one_line("is no path in a store", repr(path), "", "use a relative path without '..'"))
    return path


class Store(ABC):
    """Objects under '/'-separated paths. ``put`` is atomic: a reader sees the old bytes or the new, never a part."""

    url: str

    @abstractmethod
    def get(self, path: str) -> bytes:
        """Read a whole object.

        Raises:
            FileNotFoundError: there is none.
        """

    @abstractmethod
    def pieces(self, path: str) -> Iterator[bytes]:
        """Read a whole object in pieces, for objects that may not fit into memory.

        Raises:
            FileNotFoundError: there is none.
        """

    @abstractmethod
    def get_range(self, path: str, start: int, stop: int) -> bytes:
        """Read bytes ``start`` to ``stop`` of an object; fewer where it ends before.

        Raises:
            FileNotFoundError: there is no such object.
        """

    @abstractmethod
    def put(self, path: str, data: bytes) -> None:
        """Write a whole object, atomically and durably."""

    @abstractmethod
    def delete(self, path: str) -> None:
        """Remove an object; one that is not there is no error."""

    @abstractmethod
    def stat(self, path: str) -> Stat | None:
        """Size and version of an object, or None where there is none."""

    @abstractmethod
    def stats(self, folder: str = "") -> dict[str, Stat]:
        """Size and version of every object under a folder, by path, sorted."""

    def list(self, folder: str = "") -> list[str]:
        """The paths of all objects under a folder, sorted."""
        return list(self.stats(folder))

    def get_many(self, paths: Iterable[str]) -> Iterator[bytes | None]:
        """Read objects in the order of their paths; None where there is none, as one may go after it was listed."""
        return map(self._get_if_there, paths)

    def _get_if_there(self, path: str) -> bytes | None:
        try:
            return self.get(path)
        except FileNotFoundError:
            return None

    def exists(self, path: str) -> bool:
        """Whether there is an object."""
        return self.stat(path) is not None

    @contextmanager
    def local_path(self, path: str) -> Iterator[Path]:
        """A real file with the object's bytes, to be read only, for libraries that want a file name.

        Raises:
            FileNotFoundError: there is no such object.
        """
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / path.rsplit("/", 1)[-1]
            with file.open("wb") as out:
                out.writelines(self.pieces(path))
            yield file

    def sweep(self) -> int:
        """Remove what killed writers left behind; returns how many files that were."""
        return 0

    def prune(self, folder: str = "") -> int:
        """Remove the empty folders that deletions left under a folder, itself included; returns how many that were.

        Nobody may write there meanwhile. A bucket has no folders.
        """
        return 0


class LocalStore(Store):
    """A store in a folder. Objects are written beside the tree, synced and renamed into place."""

    def __init__(self, root: Path | str) -> None:
        self.root = Path(os.path.realpath(root))
        self.url = str(self.root)

    def _file(self, path: str) -> Path:
        return Path(f"{self.url}/{check_path(path)}")

    def _inside(self, path: str) -> Path:
        file = self._file(path)
        at = self.url
        for part in path.split("/"):  # what lies above the store is resolved already
            at = f"{at}/{part}"
            if os.path.islink(at) and not (real := os.path.realpath(at)).startswith(f"{self.url}{os.sep}"):
                why = f"a link leads to {real}"
                raise StorageConflict(one_line("lies outside the store", str(file), why, "remove the link"))
        return file

    def get(self, path: str) -> bytes:
        return self._inside(path).read_bytes()

    def pieces(self, path: str) -> Iterator[bytes]:
        with self._inside(path).open("rb") as file:
            while piece := file.read(_PIECE_BYTES):
                yield piece

    def get_range(self, path: str, start: int, stop: int) -> bytes:
        with self._inside(path).open("rb", buffering=0) as file:
            return os.pread(file.fileno(), max(stop - start, 0), start)

    def put(self, path: str, data: bytes) -> None:
        self.put_pieces(path, (data,))

    def put_pieces(self, path: str, pieces: Iterable[bytes]) -> None:
        """Write a whole object as its pieces come, as atomically and durably as ``put``."""
        file = self._inside(path)
        file.parent.mkdir(parents=True, exist_ok=True)
        scratch = self.root / SCRATCH
        scratch.mkdir(exist_ok=True)
        temporary = scratch / f"{socket.gethostname()}.{os.getpid()}.{secrets.token_hex(6)}"
        try:
            with temporary.open("wb") as out:
                out.writelines(pieces)
                out.flush()
                os.fsync(out.fileno())
            temporary.replace(file)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        _sync_folder(file.parent)

    def delete(self, path: str) -> None:
        file = self._inside(path)
        file.unlink(missing_ok=True)

    def stat(self, path: str) -> Stat | None:
        try:
            found = os.stat(self._file(path))
        except (FileNotFoundError, NotADirectoryError):
            return None
        return _stat_of_file(found)

    def stats(self, folder: str = "") -> dict[str, Stat]:
        found: dict[str, Stat] = {}
        waiting = [self._file(folder) if folder else self.root]
        skipped = str(self.root / SCRATCH)
        cut = len(str(self.root)) + 1
        while waiting:
            try:
                entries = os.scandir(waiting.pop())
            except (FileNotFoundError, NotADirectoryError):
                continue
            with entries:
                for entry in entries:
                    if entry.is_dir(follow_symlinks=False):
                        if entry.path != skipped:
                            waiting.append(Path(entry.path))
                    elif entry.is_file():
                        try:
                            found[entry.path[cut:]] = _stat_of_file(entry.stat())
                        except FileNotFoundError:
                            continue  # deleted since it was listed
        return dict(sorted(found.items()))

    @contextmanager
    def local_path(self, path: str) -> Iterator[Path]:
        file = self._inside(path)
        if not file.is_file():
            raise FileNotFoundError(path)
        yield file

    def sweep(self) -> int:
        swept = 0
        for file in (self.root / SCRATCH).glob(f"{socket.gethostname()}.*"):
            if not _alive(int(file.name.split(".")[-2])):
                file.unlink(missing_ok=True)
                swept += 1
        return swept

    def prune(self, folder: str = "") -> int:
        pruned = 0
        for at, _, _ in os.walk(self._inside(folder) if folder else self.root, topdown=False):
            if at in (str(self.root), str(self.root / SCRATCH)):
                continue
            try:
                os.rmdir(at)
                pruned += 1
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.ENOENT):
                    raise
        return pruned


def _stat_of_file(found: os.stat_result) -> Stat:
    version = f"{found.st_mtime_ns}.{found.st_ino}"  # a clock's tick may see two writes, but each makes a new file
    return Stat(found.st_size, version, found.st_mtime_ns)


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


class ObjectStore(Store):
    """A store in a bucket, or in memory for tests, over any store of ``obstore``.

    Args:
        remote: an ``obstore`` store, such as ``S3Store`` or ``MemoryStore``.
        url: what the store calls itself in messages and to other processes.
    """

    def __init__(self, remote: Any, url: str) -> None:
        self.remote = remote
        self.url = url

    def get(self, path: str) -> bytes:
        with as_os_error(self.url):
            return bytes(obstore.get(self.remote, check_path(path)).bytes())

    def pieces(self, path: str) -> Iterator[bytes]:
        with as_os_error(self.url):
            yield from map(bytes, obstore.get(self.remote, check_path(path)).stream(_PIECE_BYTES))

    def get_range(self, path: str, start: int, stop: int) -> bytes:
        if stop <= start:
            return b""
        with as_os_error(self.url):
            return bytes(obstore.get_range(self.remote, check_path(path), start=start, end=stop))

    def put(self, path: str, data: bytes) -> None:
        with as_os_error(self.url):
            obstore.put(self.remote, check_path(path), data)

    def delete(self, path: str) -> None:
        if self.exists(path):
            with as_os_error(self.url):
                obstore.delete(self.remote, path)

    def stat(self, path: str) -> Stat | None:
        try:
            with as_os_error(self.url):
                return _stat_of(obstore.head(self.remote, check_path(path)))
        except FileNotFoundError:
            return None

    def stats(self, folder: str = "") -> dict[str, Stat]:
        prefix = check_path(folder) if folder else None
        with as_os_error(self.url):
            found = {entry["path"]: _stat_of(entry) for batch in obstore.list(self.remote, prefix) for entry in batch}
        return dict(sorted(found.items()))

    def get_many(self, paths: Iterable[str]) -> Iterator[bytes | None]:
        with ThreadPoolExecutor(_REQUESTS) as pool:  # requests wait on the network, not on this machine
            yield from pool.map(self._get_if_there, paths)


@contextmanager
def as_os_error(url: str) -> Iterator[None]:
    """Let a bucket that does not answer, or refuses, be an error of the kind that a disk's is: it may pass."""
    try:
        yield
    except FileNotFoundError:
        raise
    except BaseError as error:
        raise OSError(f"{url}: {' '.join(str(error).split())[:300]}") from error


def _stat_of(entry: Any) -> Stat:
    modified_ns = round(entry["last_modified"].timestamp() * 1e9)
    return Stat(entry["size"], entry["e_tag"] or str(modified_ns), modified_ns)


def open_store(url: str) -> Store:
    """Open a store by a local path or ``s3://bucket/prefix``.

    Credentials, region and endpoint of a bucket come from the usual ``AWS_*`` variables.

    Raises:
        ConfigError: the URL's scheme is not known.
    """
    if url.startswith("s3://"):
        from obstore.store import S3Store

        return ObjectStore(S3Store.from_url(url), url)
    if "://" in url and not url.startswith("file://"):
        raise ConfigError(one_line("is no store", url, "", "give a folder or s3://bucket/prefix"))
    return LocalStore(url.removeprefix("file://"))
