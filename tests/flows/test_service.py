"""The service as docs/operations.md sets it up: server, pool and two workers, every deployment run by them.

Left out of the usual tests, as it takes a minute: ``pytest -m service``.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from pipeline.inbox import MARKER
from pipeline.models import latest_model
from pipeline.opening import CONFIG_PATH, open_workspace
from pipeline.release_verify import verify_release
from pipeline.snapshot import take_snapshot
from storage.store import open_store
from tests.flows.conftest import REPOSITORY, SMALL_STEPS, commit_cleaned, write_session
from tests.flows.small_steps import STEPS

pytestmark = pytest.mark.service

RUN = """
import json, sys
from prefect.deployments import run_deployment
run = run_deployment(sys.argv[1], parameters=json.loads(sys.argv[2]), timeout=240, poll_interval=0.5, as_subflow=False)
print(json.dumps([run.state.type.value, run.state.message]))
"""
RUNS = """
import json, sys
from prefect.client.orchestration import get_client
with get_client(sync_client=True) as client:
    runs = client.read_flow_runs()
    print(json.dumps([[run.name, client.read_flow(run.flow_id).name, run.state.type.value, run.tags] for run in runs]))
"""


@pytest.fixture(params=["sqlite", "postgres"])
def database(request) -> str:
    if request.param == "postgres" and shutil.which("postgres") is None:
        pytest.skip("PostgreSQL is not installed (Debian: apt-get install postgresql)")
    return request.param


@pytest.fixture
def heard() -> Iterator[list[dict[str, Any]]]:
    """What is posted to the notification hook; the first entry holds its address."""
    told: list[dict[str, Any]] = []

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            told.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(204)
            self.end_headers()

        def log_message(self, *args: Any) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        told.append({"url": f"http://127.0.0.1:{server.server_port}/"})
        yield told
        server.shutdown()


@pytest.fixture
def service(database, workspace, tmp_path, engine_home) -> Iterator[Callable[..., Any]]:
    """A function that runs Python with words against the served API, and returns what it printed as JSON."""
    home = Path(tempfile.mkdtemp(prefix="nphm-service-"))
    home.chmod(0o755)
    inbox = tmp_path / "inbox"
    inbox.mkdir()
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    # The engine of these tests, should the checkout have no .venv of its own.
    path = f"{Path(sys.executable).parent}:{engine_home['PATH']}"
    env = engine_home | {"NPHM_WORKSPACE": workspace, "NPHM_INBOX": str(inbox), "PATH": path}
    command = ["deploy/serve.sh", "--port", str(port), "--home", str(home), "--workers", "2"]
    command += ["--postgres"] if database == "postgres" else []
    serving = subprocess.Popen(command, cwd=REPOSITORY, env=env, stdout=subprocess.PIPE, text=True)
    assert serving.stdout is not None
    line = serving.stdout.readline()
    assert line.startswith("serving:"), line
    own = env | {"PREFECT_API_URL": f"http://127.0.0.1:{port}/api", "PREFECT_HOME": str(home / "prefect")}

    def call(code: str, *words: str) -> Any:
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, env=own, cwd=REPOSITORY, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    yield call
    serving.send_signal(signal.SIGTERM)
    serving.wait(60)
    shutil.rmtree(home, ignore_errors=True)


def test_every_deployment_is_run_by_the_workers(service, workspace, heard, tmp_path):
    def run(name: str, **parameters: Any) -> tuple[str, str]:
        told = {"workspace": workspace, **parameters}
        state, message = service(RUN, f"{name}/{name}", json.dumps(told))
        return state, message

    opened = open_workspace(workspace, STEPS)
    config = opened.store.get(CONFIG_PATH).decode().replace('notify_url = ""', f'notify_url = "{heard[0]["url"]}"')
    opened.store.put(CONFIG_PATH, config.replace("min_new_subjects = 5", "min_new_subjects = 1").encode())
    inbox = tmp_path / "inbox"
    write_session(inbox / "first", consent={"given": True, "scope": ["release"]})

    # An upload without a marker is waited for; with one it is taken in, once.
    assert run("watch", inbox=str(inbox), then="")[0] == "COMPLETED"
    (inbox / "first" / MARKER).touch()
    assert run("watch", inbox=str(inbox), then="")[0] == "COMPLETED"
    assert run("watch", inbox=str(inbox), then="")[0] == "COMPLETED"
    until = time.monotonic() + 120
    while len(open_workspace(workspace).scans()) < 4 and time.monotonic() < until:
        time.sleep(0.5)
    assert len(open_workspace(workspace).scans()) == 4

    assert run("process", steps=SMALL_STEPS, workers=2)[0] == "COMPLETED"
    assert {key for step, key in take_snapshot(opened).manifests if step == "register"} == set(opened.scans())

    small = {"steps": SMALL_STEPS, "functions": "tests.flows.small_retraining"}
    assert run("retrain", **small)[0] == "COMPLETED"
    first = latest_model(opened)
    assert first is not None
    assert run("retrain", **small)[0] == "COMPLETED"  # nobody is new
    assert latest_model(opened) == first
    assert run("retrain", force=True, **small)[0] == "COMPLETED"
    assert heard[-1]["event"] == "promoted"

    state, _ = run("release", version="1")
    assert (state, heard[-1]["event"]) == ("FAILED", "run-failed")
    assert "is no version" in heard[-1]["text"]
    commit_cleaned(workspace, opened.scans())  # the small steps make nothing that may be released
    assert run("release", parts=["clean"])[0] == "COMPLETED"
    assert verify_release(open_store(f"{workspace}-releases/1.0.0")).faults == ()
    assert run("sweep")[0] == "COMPLETED"

    runs = service(RUNS)
    by_flow: dict[str, list[Any]] = {}
    for name, flow, state, tags in runs:
        by_flow.setdefault(flow, []).append((name, state, tags))
    assert len(by_flow["ingest-session"]) == 1
    assert "session:first" in by_flow["ingest-session"][0][2]
    assert os.path.exists(f"{workspace}/metrics.prom")
