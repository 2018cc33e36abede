"""The doctor's lines, and what it sweeps."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import suppress

import pytest

from flows import doctor, sweeping
from flows.doctor import check_up, orphans
from flows.sweeping import sweep
from storage.lock import hold
from storage.store import LocalStore
from tests.flows.conftest import REPOSITORY


@pytest.fixture(autouse=True)
def no_probes(monkeypatch):
    """Loading the large libraries takes seconds, and is not what is tested here."""
    monkeypatch.setattr(doctor, "_PROBES", {"json": ("import json; print('1.0')", "")})


def found(url: str | None) -> dict[str, doctor.Check]:
    return {check.name: check for check in check_up(url)}


def test_a_good_workspace(workspace):
    checks = found(workspace)
    assert {name: check.state for name, check in checks.items() if check.state == "fail"} == {}
    assert str(checks["json"]) == "ok   json: 1.0"
    assert "writes and reads" in checks["store"].found
    assert ".cache/doctor" not in LocalStore(workspace).list()


def test_what_is_wrong_is_named_with_its_remedy(workspace, tmp_path, monkeypatch):
    monkeypatch.setattr(doctor, "_PROBES", {"nothing": ("import nothing_of_that_name", "install it")})
    monkeypatch.setattr(doctor, "LEAST_FREE_BYTES", 10**18)
    monkeypatch.setattr(doctor, "MOST_HISTORY_BYTES", -1)
    with hold(LocalStore(workspace), "run", "a test"):
        checks = found(workspace)
    assert checks["nothing"].state == "fail"
    assert str(checks["nothing"]).endswith("; install it")
    assert checks["disk"].state == "warn"
    assert (checks["history"].state, bool(checks["history"].remedy)) == ("warn", True)
    assert checks["lock run"].found.startswith("held for a test by process")
    assert "is no workspace" in found(str(tmp_path / "none"))["workspace"].found


def test_a_store_that_may_not_be_written_to(workspace, monkeypatch):
    def refuse(self, path, data):
        raise OSError(30, "Read-only file system", path)

    monkeypatch.setattr(LocalStore, "put", refuse)
    check = found(workspace)["store"]
    assert check.state == "fail"
    assert "Read-only file system" in check.found


@pytest.fixture
def orphan(tmp_path) -> Iterator[int]:
    """The id of a worker whose parent is gone, and that is stopped, so that it can't end itself."""
    code = (
        "import os, signal, sys; from flows.lifeline import spawn, read_line\n"
        "child = spawn('flows.worker', ['tests.flows.small_steps:STEPS'], {}, open(sys.argv[1], 'w'))\n"
        "os.kill(child.pid, signal.SIGSTOP); print(child.pid, flush=True); os.kill(os.getpid(), signal.SIGKILL)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "log")], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        parent.wait()
    yield pid
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def test_processes_without_a_parent_are_swept(orphan):
    assert orphan in orphans()
    assert orphan in sweep(None).processes
    until = time.monotonic() + 10
    while orphan in orphans() and time.monotonic() < until:
        time.sleep(0.05)
    assert orphan not in orphans()


def test_a_containers_processes_are_left_to_it(orphan, monkeypatch):
    monkeypatch.setattr(doctor, "namespace", lambda pid=None: "a container's" if pid == orphan else "the host's")
    assert orphan not in orphans()


def test_a_process_that_ends_by_itself_before_it_is_swept(monkeypatch):
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    monkeypatch.setattr(sweeping, "orphans", lambda: [ended.pid])
    assert sweep(None).processes == []
