"""Worker processes: what they answer, and that none outlives its parent."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from flows.failures import PassingError, StepError, TimeLimitError
from flows.worker import Pace
from flows.workers import Workers
from pipeline.ingest import ingest_session
from pipeline.opening import open_workspace
from storage.errors import ConfigError
from tests.flows.conftest import REPOSITORY, SMALL_STEPS


@pytest.fixture
def scans(workspace, session, monkeypatch) -> str:
    ingest_session(open_workspace(workspace), session)
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    return workspace


def hear_nothing(done: int, total: int, note: str) -> None:
    pass


def test_a_worker_executes_and_tells_how_far_it_is(scans, tmp_path):
    heard = []
    with Workers(1, 1, tmp_path / "log", SMALL_STEPS) as workers:
        done = workers.call(scans, "clean", "001/neutral", lambda *told: heard.append(told))
        again = workers.call(scans, "clean", "001/neutral", hear_nothing)
    assert (done.outcome.kind, done.outcome.verdict) == ("compute", "accepted")
    assert heard == [(0, 4, ""), (1, 4, ""), (2, 4, ""), (3, 4, "")]
    assert again.outcome.kind == "fresh"
    assert (tmp_path / "log").read_text() == ""


def test_the_pace_of_named_parts_is_told(monkeypatch):
    pace, clock = Pace(), iter([0.0, 1.0, 5.0, 6.0, 7.0, 8.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    for done, part in [(101, "stage1"), (102, "stage1"), (113, "stage1"), (114, "stage2"), (3, ""), (4, "")]:
        pace.hear(done, part)
    assert pace.steps_per_second() == {"stage1": 12 / 5}


def test_a_rejected_scan_is_an_outcome(scans, tmp_path, monkeypatch):
    monkeypatch.setenv("SMALL_STEP_REJECTS", "clean 001/smile")
    with Workers(1, 1, tmp_path / "log", SMALL_STEPS) as workers:
        outcome = workers.call(scans, "clean", "001/smile", hear_nothing).outcome
    assert outcome.verdict == "rejected"
    assert outcome.reasons == ("001/smile: is not wanted (a test); take another",)


def test_errors_of_the_project_come_back_as_they_are(tmp_path, monkeypatch):
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    with Workers(1, 1, tmp_path / "log", SMALL_STEPS) as workers, pytest.raises(ConfigError, match="is no workspace"):
        workers.call(str(tmp_path / "none"), "clean", "001/smile", hear_nothing)


def test_a_fault_of_the_program_names_the_log_and_the_next_job_goes_on(scans, tmp_path, monkeypatch):
    monkeypatch.setenv("SMALL_STEP_BREAKS", "clean 001/smile")
    with Workers(1, 1, tmp_path / "log", SMALL_STEPS) as workers:
        with pytest.raises(StepError, match=f"clean of 001/smile.*{tmp_path}/log"):
            workers.call(scans, "clean", "001/smile", hear_nothing)
        assert workers.call(scans, "clean", "001/neutral", hear_nothing).outcome.verdict == "accepted"
    assert "ZeroDivisionError" in (tmp_path / "log").read_text()


def test_a_killed_worker_may_pass(scans, tmp_path, monkeypatch):
    monkeypatch.setenv("SMALL_STEP_SECONDS", "30")
    with Workers(1, 1, tmp_path / "log", SMALL_STEPS) as workers:

        def kill(done: int, total: int, note: str) -> None:
            os.kill(workers.pids()[0], signal.SIGKILL)

        with pytest.raises(PassingError, match="SIGKILL"):
            workers.call(scans, "clean", "001/smile", kill)


def test_a_step_that_takes_too_long_is_ended_and_not_tried_again(scans, tmp_path, monkeypatch):
    monkeypatch.setenv("SMALL_STEP_SECONDS", "600")
    with Workers(1, 1, tmp_path / "log", SMALL_STEPS) as workers:
        with pytest.raises(TimeLimitError, match=r"clean of 001/smile: took too long \(0.02 minutes are its limit\)"):
            workers.call(scans, "clean", "001/smile", hear_nothing, limit_minutes=0.02)
        assert workers.pids() == []


def test_closing_ends_a_worker_in_the_middle_of_a_step(scans, tmp_path, monkeypatch):
    monkeypatch.setenv("SMALL_STEP_SECONDS", "60")
    started = threading.Event()
    errors: list[Exception] = []

    def call(workers: Workers) -> None:
        try:
            workers.call(scans, "clean", "001/smile", lambda *_: started.set())
        except PassingError as error:
            errors.append(error)

    with Workers(1, 1, tmp_path / "log", SMALL_STEPS) as workers:
        thread = threading.Thread(target=call, args=(workers,))
        thread.start()
        assert started.wait(60)
    thread.join(10)
    assert len(errors) == 1


def test_no_worker_outlives_a_killed_parent(scans, tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom flows.workers import Workers\n"
        f"w = Workers(1, 1, Path({str(tmp_path / 'log')!r}), {SMALL_STEPS!r})\n"
        "tell = lambda *_: (print(w.pids()[0]), sys.stdout.flush())\n"
        f"w.call({scans!r}, 'clean', '001/smile', tell)\n"
    )
    environment = os.environ | {"SMALL_STEP_SECONDS": "60", "PYTHONPATH": str(REPOSITORY)}
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=environment)
    assert parent.stdout is not None
    worker = int(parent.stdout.readline())
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 10
    while _runs(worker) and time.monotonic() < until:
        time.sleep(0.02)
    assert not _runs(worker)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
