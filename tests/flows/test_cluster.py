"""Steps over scans on Dask workers in folders of their own, one of which is killed. Left out: ``pytest -m service``."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.config import preset_config
from pipeline.execute import execute_in
from pipeline.ingest import ingest_session
from pipeline.opening import create_workspace, open_workspace
from pipeline.planner import plan
from pipeline.snapshot import take_snapshot
from registration.procedural_head import head_template
from tests.flows.conftest import REPOSITORY, SMALL_STEPS, write_session
from tests.flows.small_steps import STEPS
from tests.flows.test_run import digests

pytestmark = pytest.mark.service

RUN = """
import json, sys
from flows.progress import LineProgress
from flows.run import bring_up_to
result = bring_up_to(sys.argv[1], "train", LineProgress(), 2, sys.argv[2], dask=sys.argv[3])
print(json.dumps(result.cost))
"""


@pytest.fixture
def scheduler(engine_home, tmp_path) -> Iterator[str]:
    """A Dask scheduler's address."""
    told = tmp_path / "scheduler.json"
    command = [sys.executable, "-m", "distributed.cli.dask_scheduler", "--host", "127.0.0.1", "--port", "0"]
    command += ["--no-dashboard", "--scheduler-file", str(told)]
    with subprocess.Popen(command, env=engine_home, stderr=subprocess.DEVNULL) as process:
        until = time.monotonic() + 60
        while not told.exists() and time.monotonic() < until:
            time.sleep(0.1)
        yield json.loads(told.read_text())["address"]
        process.kill()


def start_worker(scheduler: str, folder: Path, env: dict[str, str]) -> subprocess.Popen[bytes]:
    folder.mkdir()
    command = [sys.executable, "-m", "distributed.cli.dask_worker", scheduler, "--nthreads", "1", "--no-dashboard"]
    command += ["--local-directory", str(folder)]
    return subprocess.Popen(command, env=env, cwd=folder, stderr=subprocess.DEVNULL, start_new_session=True)


def test_what_a_killed_worker_was_doing_is_taken_up_by_the_other(workspace, engine_home, scheduler, tmp_path):
    session = write_session(tmp_path / "session", subjects=4)
    calm = open_workspace(create_workspace(str(tmp_path / "calm"), preset_config("demo"), head_template()).url, STEPS)
    for url in (workspace, calm.url):
        ingest_session(open_workspace(url, STEPS), session)
    while ready := [action for action in plan(take_snapshot(calm)) if action.ready]:
        for action in ready:
            execute_in(calm, action.step, action.key)

    env = engine_home | {"SMALL_STEP_SECONDS": "1"}
    workers = [start_worker(scheduler, tmp_path / name, env) for name in ("one", "two")]
    command = [sys.executable, "-c", RUN, workspace, SMALL_STEPS, scheduler]
    running = subprocess.Popen(
        command, env=env, cwd=REPOSITORY, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        until = time.monotonic() + 120
        store = open_workspace(workspace).store
        while not store.list("clean") and time.monotonic() < until:
            time.sleep(0.1)
        os.killpg(workers[0].pid, signal.SIGKILL)
        out, heard = running.communicate(timeout=240)
    finally:
        for worker in workers:
            if worker.poll() is None:
                os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()
        running.kill()
    assert running.returncode == 0, heard
    cost = json.loads(out)
    # What the killed worker had published without telling is not done again.
    assert cost["clean"]["results"] in (7, 8)
    assert (cost["register"]["results"], cost["train"]["results"]) == (8, 1)
    assert digests(workspace) == digests(calm.url)
