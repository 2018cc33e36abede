"""Runs on the real engine, with steps that write a few bytes each."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from flows.progress import LineProgress
from flows.run import bring_up_to, take_sessions_in
from pipeline.config import preset_config
from pipeline.execute import execute_in
from pipeline.inbox import MARKER
from pipeline.ingest import ingest_session
from pipeline.opening import create_workspace, open_workspace
from pipeline.planner import plan
from pipeline.snapshot import take_snapshot
from registration.procedural_head import head_template
from storage.lock import hold
from storage.store import open_store
from tests.flows.conftest import REPOSITORY, SMALL_STEPS
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


@pytest.fixture(scope="module")
def server(engine_home) -> Iterator[str]:
    """An engine's server that several runs report to."""
    code = "from flows.engine import engine\nwith engine() as url: print(url, flush=True); input()"
    command = [sys.executable, "-c", code]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    holder = subprocess.Popen(command, text=True, env=engine_home, cwd=REPOSITORY, **pipes)
    assert holder.stdout is not None
    yield holder.stdout.readline().strip()
    holder.communicate("\n")


@pytest.fixture
def scans(workspace, session) -> str:
    """A workspace with 4 scans taken in."""
    ingest_session(open_workspace(workspace), session)
    return workspace


@pytest.fixture
def run(engine_home, scans, server):
    """A function that brings the workspace up to date, in a process of its own, and returns what that printed."""

    def call(until: str = "train", **environment: str) -> dict:
        command = [sys.executable, "-c", RUN, scans, until, SMALL_STEPS]
        env = engine_home | {"PREFECT_API_URL": server} | environment
        done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=REPOSITORY, timeout=300)
        told = json.loads(done.stdout) if done.returncode == 0 else {}
        return told | {"status": done.returncode, "heard": done.stderr}

    return call


def digests(workspace: str) -> dict[str, str]:
    """The bytes of every result, by step and key."""
    store = open_workspace(workspace, STEPS).store
    paths = [path for spec in STEPS.values() for path in store.list(spec.folder) if spec.name != "ingest"]
    return {path: store.get(path).hex() for path in paths if path != "models/latest.json"}


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
    store = open_workspace(workspace).store
    log, lines = store.list("runs")
    assert json.loads(store.get(log))["cost"]["clean"]["results"] == 4
    told = [json.loads(line) for line in store.get(lines).splitlines()]
    assert [line["step"] for line in told] == ["clean"] * 4 + ["register"] * 4 + ["train"]
    assert {(line["key"], line["session"]) for line in told[:8]} == {
        (key, "balls") for key in ("001/neutral", "001/smile", "002/neutral", "002/smile")
    }
    assert b'nphm_results{step="clean",verdict="accepted"} 4\n' in store.get("metrics.prom")
    assert store.list("locks") == []


def test_a_workspace_has_one_run_at_a_time(run, workspace):
    with hold(open_workspace(workspace).store, "run", "a test"):
        told = run()
    assert told["status"] == 1
    assert "is in use (a test by process" in told["heard"]


@pytest.mark.parametrize(
    ("address", "what", "status"),
    [
        ("nonsense", "is no address of a Dask scheduler", 2),
        ("tcp://127.0.0.1:1", "is no Dask scheduler that answers", 1),
    ],
)
def test_a_dask_scheduler_that_does_not_answer_is_named(scans, engine_home, server, address, what, status):
    code = "import sys; from flows.cli import main; main(['clean', '-w', sys.argv[1], '--dask', sys.argv[2]])"
    command = [sys.executable, "-c", code, scans, address]
    env = engine_home | {"PREFECT_API_URL": server}
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=REPOSITORY)
    assert done.returncode == status
    assert done.stderr.startswith(f"nphm: {address}: {what}"), done.stderr
    assert len(done.stderr.splitlines()) == 1


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


def test_workers_of_another_version_are_told_and_the_run_does_not_end_as_done(run, workspace):
    told = run(until="clean", SMALL_STEP_VERSION_OF_THE_RUN="2")
    assert told["status"] == 1
    assert "is to be done again right after it was done (step version 1 -> 2)" in told["heard"]
    assert told["heard"].splitlines()[-1].endswith("one version of the program (4 such failures)")


def test_a_full_disk_stops_the_run_at_once(run, workspace):
    told = run(SMALL_STEP_FINDS_NO_ROOM="clean 001/neutral", SMALL_STEP_SECONDS="2")
    assert told["status"] == 1
    last = told["heard"].splitlines()[-1]
    assert "clean of 001/neutral: could not read or write" in last
    assert "No space left on device" in last
    # Nothing more is begun; what was under way may have ended.
    made = take_snapshot(open_workspace(workspace, STEPS)).manifests
    assert len([key for step, key in made if step == "clean"]) < 3


def test_a_run_killed_in_each_step_goes_on_to_the_undisturbed_bytes(scans, engine_home, tmp_path):
    undisturbed = create_workspace(str(tmp_path / "other"), preset_config("demo"), head_template())
    undisturbed = open_workspace(undisturbed.url, STEPS)
    ingest_session(undisturbed, tmp_path / "session")
    while actions := [action for action in plan(take_snapshot(undisturbed)) if action.ready]:
        for action in actions:
            execute_in(undisturbed, action.step, action.key)

    command = [sys.executable, "-c", RUN, scans, "train", SMALL_STEPS]
    for step in ("clean", "register", "train"):
        env = engine_home | {"SMALL_STEP_SECONDS": "1"}
        killed = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env, cwd=REPOSITORY)
        assert killed.stderr is not None
        assert any(line.startswith(f"{step}: ") and "to do" in line for line in killed.stderr)
        time.sleep(1.3)
        children = Path(f"/proc/{killed.pid}/task/{killed.pid}/children").read_text().split()
        assert children
        os.kill(killed.pid, signal.SIGKILL)
        killed.wait()
        assert not _left_after(children, seconds=15)
    done = subprocess.run(command, capture_output=True, text=True, env=engine_home, cwd=REPOSITORY, timeout=300)
    assert done.returncode == 0, done.stderr
    assert digests(scans) == digests(undisturbed.url)


def _left_after(pids: list[str], seconds: float) -> list[str]:
    """The processes that neither server nor worker may leave behind."""
    until = time.monotonic() + seconds
    while (left := [pid for pid in pids if Path(f"/proc/{pid}").exists()]) and time.monotonic() < until:
        time.sleep(0.05)
    return left


def test_interrupting_ends_in_one_line(scans, engine_home, server):
    command = [sys.executable, "-c", "from flows.cli import main; main()", "run", "-w", scans, "--until", "clean"]
    env = engine_home | {"PREFECT_API_URL": server}
    stopped = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env=env, cwd=REPOSITORY)
    assert stopped.stderr is not None
    heard = stopped.stderr.readline()
    assert heard.startswith("clean: 4 scans to do")
    stopped.send_signal(signal.SIGINT)
    rest = stopped.stderr.read()
    assert stopped.wait(60) == 130, rest
    assert rest.splitlines()[-1] == "nphm: stopped; the same command goes on where this one was"
    assert "Traceback" not in rest


def test_a_run_whose_process_is_gone_is_marked_as_crashed(scans, engine_home, server):
    # The folder that a relative path starts from is the run's own secret, and the other workspace is not looked at.
    code = """
import os, sys, time
from datetime import timedelta
from prefect.client.orchestration import get_client
from prefect.states import Running
from flows.process import bring_up_to_date
from flows.sweeping import sweep
from pipeline.opening import open_workspace
from storage.lock import hold
from storage.store import open_store
grace = timedelta(seconds=3)
def begin(workspace):
    return client.create_flow_run(bring_up_to_date, parameters={"workspace": workspace}, state=Running())
with get_client(sync_client=True) as client:
    run = begin(sys.argv[1])
    others = [begin(path) for path in (os.path.relpath(sys.argv[1]), sys.argv[1] + "-other", "")]
    time.sleep(3.1)
    with hold(open_workspace(sys.argv[1]).store, "run", "a test"):
        print("HELD", sweep(sys.argv[1], timedelta(0)).runs)
    print("BETWEEN TWO LOCKS", sweep(sys.argv[1], grace).runs)
    time.sleep(3.1)
    young = begin(sys.argv[1])
    print("GONE", sweep(sys.argv[1], grace).runs == [run.name], client.read_flow_run(run.id).state.type.value)
    print("LEFT", {client.read_flow_run(each.id).state.type.value for each in [young, *others]})
"""
    env = engine_home | {"PREFECT_API_URL": server}
    command = [sys.executable, "-c", code, scans]
    done = subprocess.run(command, capture_output=True, text=True, env=env, cwd=REPOSITORY)
    told = ["HELD []", "BETWEEN TWO LOCKS []", "GONE True CRASHED", "LEFT {'RUNNING'}"]
    assert done.stdout.splitlines() == told, done.stderr


def test_the_engine_is_told_where_a_workspace_lies_wherever_it_is_read(scans, session, tmp_path, monkeypatch):
    told = []
    monkeypatch.setattr("flows.run.engine", nullcontext)
    monkeypatch.setattr("flows.run.quiet_engine", lambda: None)
    monkeypatch.setattr("flows.process.bring_up_to_date", lambda url, *rest: told.append(url) or {})
    monkeypatch.setattr("flows.process.ingest_sessions", lambda url, *rest: told.append(url))
    monkeypatch.chdir(tmp_path)
    bring_up_to("ws", "train", LineProgress(), steps=SMALL_STEPS)
    (session / "001/smile/scan.ply").rename(session / "001/smile/other.ply")  # something to look at again
    take_sessions_in("ws", [session], "", LineProgress())
    assert told == [scans, scans]


@pytest.fixture
def uploads(session, monkeypatch) -> Iterator[dict[str, str]]:
    """The environment of whoever watches a bucket ``uploads`` that holds a finished upload, ``today``."""
    running = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    host, port = running.get_host_and_port()
    env = {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}",
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "somebody",
        "AWS_SECRET_ACCESS_KEY": "secret",
        "AWS_REGION": "us-east-1",
    }
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    boto3.client("s3", endpoint_url=env["AWS_ENDPOINT_URL"], region_name="us-east-1").create_bucket(Bucket="uploads")
    bucket = open_store("s3://uploads")
    for file in session.rglob("*.*"):
        bucket.put(f"today/{file.relative_to(session)}", file.read_bytes())
    bucket.put(f"today/{MARKER}", b"")
    yield env
    running.stop()


def test_the_deployments_load_and_run(scans, session, engine_home, server, uploads, tmp_path):
    code = """
import sys
from flows.deployments import ingest_session, process, release, retrain, watch
from pipeline.opening import open_workspace
from storage.errors import StorageConflict
from storage.lock import hold
functions = "tests.flows.small_retraining"
print("INGESTED", ingest_session(sys.argv[1], sys.argv[2]))
print("PROCESSED", process(sys.argv[1], 2, sys.argv[3])["steps"])
print("RETRAINED", retrain(sys.argv[1], 2, sys.argv[3], functions=functions)["why"])
print("FORCED", retrain(sys.argv[1], 2, sys.argv[3], True, functions))
with hold(open_workspace(sys.argv[1]).store, "run", "a test"):
    try:
        release(sys.argv[1], wait_minutes=0)
    except StorageConflict as error:
        print("RELEASE", error)
print("WATCHED", watch(sys.argv[1], "s3://uploads", sys.argv[4], then=""))
print("AGAIN", watch(sys.argv[1], "s3://uploads", sys.argv[4], then=""))
"""
    env = engine_home | uploads | {"PREFECT_API_URL": server, "NPHM_WORKSPACE": scans, "NPHM_INBOX": "inbox"}
    env |= {"SMALL_MODEL_IS_WORSE": "1"}

    def call(*command: str) -> str:
        done = subprocess.run([sys.executable, *command], capture_output=True, text=True, env=env, cwd=REPOSITORY)
        assert done.returncode == 0, done.stderr + done.stdout
        return done.stdout

    call("-m", "prefect", "work-pool", "create", "nphm", "--type", "process")
    call("-m", "prefect", "--no-prompt", "deploy", "--all")
    with urllib.request.urlopen(urllib.request.Request(f"{server}/deployments/filter", method="POST")) as response:
        deployed = {each["name"]: each["parameters"]["workspace"] for each in json.load(response)}
    names = ("watch", "ingest-session", "process", "retrain", "release", "sweep")
    assert deployed == dict.fromkeys(names, scans)

    said = call("-c", code, scans, str(session), SMALL_STEPS, str(tmp_path / "landing"))
    wanted = json.dumps({"flow_runs": {"tags": {"all_": ["subject:002", "session:balls"]}}}).encode()
    request = urllib.request.Request(f"{server}/flow_runs/filter", wanted, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as response:
        tagged = [run for run in json.load(response) if run["parameters"]["workspace"] == scans]
    assert len(tagged) == 2  # the run of the deployment, and its part that did the steps
    assert "RELEASE " in said
    assert "is in use (a test by process" in said[said.index("RELEASE ") :]
    watched = said[said.index("WATCHED") :].splitlines()
    assert watched[:2] == [f"WATCHED ['{tmp_path}/landing/today']", "AGAIN []"]
    assert (tmp_path / "landing/today/001/smile/scan.ply").read_bytes() == (session / "001/smile/scan.ply").read_bytes()
    assert "INGESTED {'accepted': 0, 'rejected': 0, 'unchanged': 4, 'refused': 0}" in said
    assert "PROCESSED [" in said
    assert "RETRAINED 0 new subjects since demo-" in said
    assert "'promoted': False" in said[said.index("FORCED") :]
    assert take_snapshot(open_workspace(scans, STEPS)).manifests.keys() >= {("register", "002/smile")}
