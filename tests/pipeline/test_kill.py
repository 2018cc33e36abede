"""A run killed at any moment, run again, ends in the bytes of an undisturbed run."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

from pipeline.config import PipelineConfig, config_to_toml
from pipeline.opening import CONFIG_PATH
from storage.store import LocalStore

RUNNER = """
    import importlib.util, sys
    from pathlib import Path
    spec = importlib.util.spec_from_file_location("fakes", sys.argv[1])
    fakes = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(fakes)
    from pipeline.execute import execute
    from pipeline.ingest import ingest_session
    from pipeline.opening import open_workspace
    from pipeline.planner import plan
    from pipeline.rejected import write_rejected
    from pipeline.snapshot import take_snapshot

    url, session = sys.argv[2:]
    workspace = open_workspace(url, fakes.FAKE_STEPS)
    workspace.store.sweep()
    print("up", flush=True)
    ingest_session(workspace, Path(session), copy=True)
    while ready := [action for action in plan(take_snapshot(workspace)) if action.ready]:
        for action in ready:
            execute(url, action.step, action.key, fakes.FAKE_STEPS)
    write_rejected(workspace, take_snapshot(workspace))
    print("done", flush=True)
"""


def start(workspace: Path, session: Path) -> subprocess.Popen:
    fakes = Path(__file__).with_name("conftest.py")
    command = [sys.executable, "-c", textwrap.dedent(RUNNER), str(fakes), str(workspace), str(session)]
    root = Path(__file__).parents[2]
    env = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env, cwd=root)


def finish(process: subprocess.Popen) -> None:
    out, _ = process.communicate(timeout=120)
    assert process.returncode == 0
    assert out.endswith("done\n")


def tree(workspace: Path) -> dict[str, bytes]:
    return {path: (workspace / path).read_bytes() for path in LocalStore(workspace).list() if path[0] != "."}


def test_killed_at_five_moments_and_run_again(tmp_path, make_session):
    session = make_session(subjects={"001": ["neutral", "smile", "angry"], "002": ["smile", "neutral"]})
    (session / "001/angry/depth/002.png").write_bytes(b"")
    for name in ("calm", "killed"):
        LocalStore(tmp_path / name).put(CONFIG_PATH, config_to_toml(PipelineConfig(preset="demo")))
        LocalStore(tmp_path / name).put("template.npz", b"template")
    calm = start(tmp_path / "calm", session)
    assert calm.stdout.readline() == "up\n"
    began = time.monotonic()
    finish(calm)
    whole = time.monotonic() - began
    for share in (0.03, 0.15, 0.4, 0.3, 0.2):
        killed = start(tmp_path / "killed", session)
        assert killed.stdout.readline() == "up\n"
        time.sleep(share * whole)
        killed.send_signal(signal.SIGKILL)
        killed.communicate()
    finish(start(tmp_path / "killed", session))
    assert tree(tmp_path / "killed") == tree(tmp_path / "calm")
    assert not list((tmp_path / "killed/.tmp").iterdir())
