"""A lock has one owner, ends by itself, and is taken over from the dead."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from obstore.store import MemoryStore

from storage import lock
from storage.errors import StorageConflict
from storage.lock import hold, last_change, read_owners
from storage.store import LocalStore, ObjectStore, Store


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path) -> Store:
    return LocalStore(tmp_path) if request.param == "local" else ObjectStore(MemoryStore(), "memory://")


def test_one_owner_at_a_time(store):
    with hold(store, "run", "a test"):
        assert read_owners(store)["run"].what == "a test"
        with pytest.raises(StorageConflict, match=r"is in use \(a test by process"), hold(store, "run", "another"):
            pass
        with hold(store, "ingest", "another lock"):
            pass
    assert read_owners(store) == {}
    with hold(store, "run", "another"):
        pass


def test_many_at_once_and_each_alone(store):
    inside: list[int] = []
    most: list[int] = []

    def work() -> None:
        with hold(store, "run", "counting", wait_seconds=60):
            inside.append(1)
            most.append(len(inside))
            time.sleep(0.01)
            inside.pop()

    lock._WAIT_SECONDS, before = 0.002, lock._WAIT_SECONDS
    threads = [threading.Thread(target=work) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    lock._WAIT_SECONDS = before
    assert most == [1] * 6


def test_a_lock_that_ended_is_taken_over_and_its_owner_told(store, monkeypatch):
    monkeypatch.setattr(lock, "TTL_SECONDS", -1.0)
    with hold(store, "run", "the first") as first:
        monkeypatch.setattr(lock, "TTL_SECONDS", 60.0)
        with hold(store, "run", "the second"):
            first.renew()
            with pytest.raises(StorageConflict, match="taken over"):
                first.check()
            assert read_owners(store)["run"].what == "the second"


def test_a_lock_that_is_renewed_does_not_end(store, monkeypatch):
    monkeypatch.setattr(lock, "TTL_SECONDS", 3.0)
    monkeypatch.setattr(lock, "RENEW_SECONDS", 0.05)
    with hold(store, "run", "long work") as held:
        ended = held.owner.ends
        time.sleep(0.5)
        held.check()
        assert read_owners(store)["run"].ends > ended


def test_the_lock_of_a_killed_process_is_free_at_once(tmp_path):
    code = (
        "import os, sys; from storage.lock import hold; from storage.store import LocalStore\n"
        "with hold(LocalStore(sys.argv[1]), 'run', 'x'): os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], cwd=Path(__file__).parents[2])
    assert killed.returncode == -9
    assert set(read_owners(LocalStore(tmp_path))) == {"run"}
    with hold(LocalStore(tmp_path), "run", "after"):
        pass


def test_a_note_that_cant_be_read_is_nobodys(store):
    store.put("locks/run.json", b"{")
    assert read_owners(store) == {}
    with hold(store, "run", "after"):
        assert read_owners(store)["run"].what == "after"


def test_when_a_lock_last_changed_is_known_after_it_is_given_back(store):
    assert last_change(store) is None
    with hold(store, "run", "a test"):
        taken = last_change(store)
    given_back = last_change(store)
    assert taken is not None
    assert given_back is not None
    assert abs(time.time() - taken) < 60
    assert given_back >= taken
