"""Runs on the real engine, with steps that write a few bytes each."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.opening import open_workspace
from pipeline.snapshot import take_snapshot
from tests.flows.conftest import REPOSITORY, SMALL_STEPS, write_session
from tests.flows.small_steps import STEPS

pytestmark = pytest.mark.engine

RUN = """
import json, sys
from flows.progress import LineProgress
from flows.run import bring_up_to
result = bring_up_to(sys.argv[1], sys.argv[2], LineProgress(), 2, sys.argv[3])
print(json.dumps({"cost": result.cost, "rejected": result.rejected, "lines": result.reply(False).lines,
                  "engine": "prefect" in sys.modules}))
"""


@pytest.fixture
def run(engine_home, workspace, session, nphm):
    """A function that brings the workspace up to date, in a process of its own, and returns what that printed."""
    assert nphm("ingest", session, "-w", workspace).returncode == 0

    def call(until: str = "train", **environment: str) -> dict:
        command = [sys.executable, "-c", RUN, workspace, until, SMALL_STEPS]
        env = engine_home | environment
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=REPOSITORY, timeout=300)
        told = json.loads(done.stdout) if done.returncode == 0 else {}
        return told | {"status": done.returncode, "heard": done.stderr}

    return call


def digests(workspace: str) -> dict[str, str]:
    """The bytes of every result, by step and key."""
    store = open_workspace(workspace, STEPS).store
    return {
        path: store.get(path).hex() for folder in ("clean", "registrations", "models") for path in store.list(folder)
    }


def test_a_run_does_all_and_a_second_one_nothing(run, workspace):
    first = run()
    assert first["status"] == 0, first["heard"]
    assert {step: cost["results"] for step, cost in first["cost"].items()} == {"clean": 4, "register": 4, "train": 1}
    assert "train: done in" in first["heard"]
    made = digests(workspace)
    second = run()
    assert second["cost"] == {}
    assert not second["engine"]
    assert digests(workspace) == made
    assert json.loads(open_workspace(workspace).store.get("models/latest.json"))["name"].startswith("demo-")
    (log,) = open_workspace(workspace).store.list("runs")
    assert json.loads(open_workspace(workspace).store.get(log))["cost"]["clean"]["results"] == 4


def test_a_rejected_scan_is_told_and_the_others_go_on(run, workspace):
    told = run(SMALL_STEP_REJECTS="clean 001/smile")
    assert told["status"] == 0
    assert told["cost"]["register"]["results"] == 3
    assert [line["key"] for line in told["rejected"]] == ["001/smile"]
    assert told["lines"][-1] == "3 of 4 scans usable, 1 rejected"
    assert "rejected: 001/smile at clean" in told["heard"]


def test_a_fault_in_one_scan_lets_the_others_go_on_and_is_told_at_the_end(run, workspace):
    told = run(SMALL_STEP_BREAKS="clean 002/smile")
    assert told["status"] == 1
    assert "clean of 002/smile: failed by a fault of the program" in told["heard"]
    made = take_snapshot(open_workspace(workspace, STEPS)).manifests
    assert {key for step, key in made if step == "clean"} == {"001/neutral", "001/smile", "002/neutral"}
    assert run()["cost"]["clean"]["results"] == 1


def test_a_session_that_grew_adds_only_what_is_new(run, workspace, session):
    run()
    note = json.loads((session / "session.json").read_text())
    more = write_session(session.parent / "more", 3)
    (more / "003").rename(session / "003")
    note["subjects"].append({"id": "003", "hair": "none", "expressions": ["neutral", "smile"]})
    (session / "session.json").write_text(json.dumps(note))
    assert run()["cost"]["clean"]["results"] == 2


@pytest.mark.parametrize("step", ["clean", "register", "train"])
def test_a_run_killed_in_a_step_goes_on_to_the_undisturbed_bytes(step, run, workspace, engine_home, tmp_path):
    command = [sys.executable, "-c", RUN, workspace, "train", SMALL_STEPS]
    env = engine_home | {"SMALL_STEP_SECONDS": "0.5"}
    killed = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env, cwd=REPOSITORY)
    assert killed.stderr is not None
    for line in killed.stderr:
        if line.startswith(f"{step}: ") and "to do" in line:
            break
    time.sleep(0.6)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert run()["status"] == 0
    made = digests(workspace)
    open_workspace(workspace).store.delete("models/latest.json")
    for path in made:
        open_workspace(workspace).store.delete(path)
    assert run()["status"] == 0
    assert digests(workspace) == made


def test_interrupting_ends_in_one_line(run, workspace, engine_home):
    command = [sys.executable, "-c", "from flows.cli import main; main()", "run", "-w", workspace, "--until", "clean"]
    stopped = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=engine_home, cwd=REPOSITORY)
    assert stopped.stderr is not None
    heard = stopped.stderr.readline()
    assert heard.startswith("clean: 4 scans to do")
    stopped.send_signal(signal.SIGINT)
    rest = stopped.stderr.read()
    assert stopped.wait(60) == 130
    assert rest.splitlines()[-1] == "nphm: stopped; the same command goes on where this one was"
    assert "Traceback" not in rest


def test_no_server_outlives_a_killed_run(run, workspace, engine_home):
    code = RUN + "\n" + "import time; time.sleep(60)"
    parent = subprocess.Popen(
        [sys.executable, "-c", code, workspace, "train", SMALL_STEPS],
        stdout=subprocess.PIPE,
        text=True,
        env=engine_home,
        cwd=REPOSITORY,
    )
    assert parent.stdout is not None
    parent.stdout.readline()
    children = Path(f"/proc/{parent.pid}/task/{parent.pid}/children").read_text().split()
    assert children
    parent.kill()
    parent.wait()
    parent.stdout.close()
    until = time.monotonic() + 15
    while any(Path(f"/proc/{child}").exists() for child in children) and time.monotonic() < until:
        time.sleep(0.05)
    assert not [child for child in children if Path(f"/proc/{child}").exists()]


def test_the_deployments_load_and_run(run, workspace, session, engine_home):
    code = """
import os, subprocess, sys
from flows.engine import engine, quiet_engine
quiet_engine()
with engine() as url:
    env = os.environ | {"PREFECT_API_URL": url, "NPHM_WORKSPACE": sys.argv[1]}
    prefect = [sys.executable, "-m", "prefect"]
    subprocess.run([*prefect, "work-pool", "create", "nphm", "--type", "process"], env=env, check=True)
    subprocess.run([*prefect, "--no-prompt", "deploy", "--all"], env=env, check=True)
    subprocess.run([*prefect, "deployment", "ls"], env=env, check=True)
    from flows.deployments import ingest_session, process, retrain
    print("INGESTED", ingest_session(sys.argv[1], sys.argv[2]))
    print("PROCESSED", process(sys.argv[1], 2, sys.argv[3])["cost"].keys())
    print("RETRAINED", retrain(sys.argv[1], 2, sys.argv[3])["cost"].keys())
"""
    command = [sys.executable, "-c", code, workspace, str(session), SMALL_STEPS]
    done = subprocess.run(command, capture_output=True, text=True, env=engine_home, cwd=REPOSITORY, timeout=300)
    assert done.returncode == 0, done.stderr + done.stdout
    for name in ("ingest-session/ingest-session", "process/process", "retrain/retrain"):
        assert name in re.sub(r"\s", "", done.stdout)
    assert "INGESTED {'accepted': 0, 'rejected': 0, 'unchanged': 4, 'refused': 0}" in done.stdout
    assert "RETRAINED" in done.stdout
