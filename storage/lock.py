"""A lock in a store: one owner at a time, known by name, and an end that comes by itself when the owner is gone.

The owner renews its note while it works. Whoever finds a note that has ended, or whose owner ran on this machine and is
dead, takes it over. Machines compare their clocks with the note's end, so they should agree to some seconds.
"""

from __future__ import annotations

import fcntl
import os
import secrets
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import obstore
from obstore.exceptions import AlreadyExistsError, PreconditionError
from pydantic import ValidationError

from storage.errors import StorageConflict, one_line
from storage.frozen import Frozen
from storage.store import SCRATCH, LocalStore, ObjectStore, Stat, Store, as_os_error

FOLDER = "locks"
TTL_SECONDS = 120.0
RENEW_SECONDS = 20.0
_RELEASED = ".cache/lock-released"
_WAIT_SECONDS = 1.0


class Owner(Frozen):
    """Who holds a lock, until when. Kept as ``locks/NAME.json``.

    Attributes:
        token: made anew for each holding.
        host, namespace, pid, born: the process; a process id means something in its own namespace alone, and may be
            used again by a process that was born later.
        what: what the lock is held for, in words.
        run: the engine's id of the run, where there is one.
        since, ends: seconds since 1970.
    """

    token: str
    host: str
    namespace: str
    pid: int
    born: str
    what: str
    run: str = ""
    since: float
    ends: float

    def gone(self, now: float) -> bool:
        """Whether the note has ended, or its owner ran here and is dead."""
        if now > self.ends:
            return True
        here = (self.host, self.namespace) == (socket.gethostname(), namespace())
        return here and born(self.pid) != self.born

    def __str__(self) -> str:
        since = time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(self.since))
        return f"{self.what} by process {self.pid} on {self.host} since {since}"


class Lock:
    """A lock that is held. See ``hold``."""

    def __init__(self, store: Store, path: str, owner: Owner) -> None:
        self._store, self._path, self.owner = store, path, owner
        self._lost = False

    def check(self) -> None:
        """Make sure that it is still held.

        Raises:
            StorageConflict: somebody took it over, since it was not renewed in time.
        """
        if self._lost:
            why = f"it was not renewed for {TTL_SECONDS:g} s"
            raise StorageConflict(one_line("was taken over by somebody else", self._path, why, "run again"))

    def renew(self) -> None:
        """Put the end off."""
        found, owner = _read(self._store, self._path)
        if found is None or owner is None or owner.token != self.owner.token:
            self._lost = True
            return
        later = self.owner.model_copy(update={"ends": time.time() + TTL_SECONDS})
        self._lost = not _swap(self._store, self._path, later.model_dump_json().encode(), found)

    def release(self) -> None:
        """Give it back, if it is still this one's."""
        _, owner = _read(self._store, self._path)
        if owner is not None and owner.token == self.owner.token:
            # Before the note goes, so that at each moment one of the two tells that somebody is, or just was, at work.
            with suppress(OSError):  # a full disk must not keep the lock
                self._store.put(_RELEASED, b"")
            self._store.delete(self._path)


@contextmanager
def hold(store: Store, name: str, what: str, *, run: str = "", wait_seconds: float = 0.0) -> Iterator[Lock]:
    """Hold a lock while the block runs; a thread renews it.

    Args:
        store: where it lies.
        name: of the lock.
        what: for what, in words; whoever finds it held is told.
        run: the engine's id of the run.
        wait_seconds: how long to wait for somebody else.

    Raises:
        StorageConflict: somebody else holds it.
    """
    lock = _acquire(store, f"{FOLDER}/{name}.json", what, run, wait_seconds)
    done = threading.Event()

    def renew() -> None:
        while not done.wait(RENEW_SECONDS):
            try:
                lock.renew()
            except OSError:
                continue  # a store that is cut off for a while; the note's end tells whether it was for too long

    thread = threading.Thread(target=renew, name=f"lock {name}", daemon=True)
    thread.start()
    try:
        yield lock
    finally:
        done.set()
        thread.join()
        lock.release()


def read_owners(store: Store) -> dict[str, Owner]:
    """Who holds which lock, those that are gone included."""
    owners = {}
    for path in store.list(FOLDER):
        _, owner = _read(store, path)
        if owner is not None:
            owners[path.removeprefix(f"{FOLDER}/").removesuffix(".json")] = owner
    return owners


def last_change(store: Store) -> float | None:
    """When a lock was last taken, renewed or given back, in seconds since 1970; None where none ever was."""
    found = [*store.stats(FOLDER).values(), store.stat(_RELEASED)]
    return max((stat.modified_ns / 1e9 for stat in found if stat is not None), default=None)


def _acquire(store: Store, path: str, what: str, run: str, wait_seconds: float) -> Lock:
    until = time.monotonic() + wait_seconds
    while True:
        found, owner = _read(store, path)
        now = time.time()
        if owner is None or owner.gone(now):
            mine = Owner(
                token=secrets.token_hex(8),
                host=socket.gethostname(),
                namespace=namespace(),
                pid=os.getpid(),
                born=born(os.getpid()),
                what=what,
                run=run,
                since=now,
                ends=now + TTL_SECONDS,
            )
            if _swap(store, path, mine.model_dump_json().encode(), found):
                return Lock(store, path, mine)
        elif time.monotonic() >= until:
            remedy = "wait until it is done, or end that process; the lock ends by itself two minutes after its owner"
            raise StorageConflict(one_line("is in use", f"{store.url}/{path}", str(owner), remedy))
        else:
            time.sleep(_WAIT_SECONDS)


def _read(store: Store, path: str) -> tuple[Stat | None, Owner | None]:
    """What lies there: its version, and the owner; a note that can't be read counts as nobody's."""
    found = store.stat(path)
    if found is None:
        return None, None
    try:
        return found, Owner.model_validate_json(store.get(path))
    except (FileNotFoundError, ValidationError):
        return found, None


def _swap(store: Store, path: str, data: bytes, version: Stat | None) -> bool:
    """Write an object if what lies there is still of that version, None being nothing; whether it was written."""
    if isinstance(store, ObjectStore):
        with as_os_error(store.url):
            try:
                if version is None:
                    obstore.put(store.remote, path, data, mode="create")
                else:
                    obstore.put(store.remote, path, data, mode={"e_tag": version.version})
            except (AlreadyExistsError, PreconditionError):
                return False
        return True
    assert isinstance(store, LocalStore)
    guard = store.root / SCRATCH / f"{path.replace('/', '.')}.guard"
    guard.parent.mkdir(parents=True, exist_ok=True)
    with guard.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if store.stat(path) != version:
            return False
        store.put(path, data)
        return True


def namespace(pid: int | None = None) -> str:
    """In which a process's id means something, this one's when None; an empty text where that can't be told."""
    try:
        return os.readlink(f"/proc/{pid or 'self'}/ns/pid")
    except OSError:
        return ""


def born(pid: int) -> str:
    """When a process began, in ticks since the machine's start, or an empty text where it is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    except (OSError, IndexError):
        return ""
    return "" if stat[0] == "Z" else stat[19]
