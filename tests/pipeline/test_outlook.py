"""What a plan expects a workspace to cost."""

from __future__ import annotations

import json

import pytest

from pipeline.config import preset_config
from pipeline.ingest import ingest_session
from pipeline.opening import create_workspace, open_workspace
from pipeline.outlook import look_ahead
from pipeline.steps import STEPS
from registration.procedural_head import head_template
from tests.flows.conftest import write_session


def test_costs_are_guessed_at_first_and_then_as_the_last_runs_took(tmp_path):
    workspace = open_workspace(create_workspace(str(tmp_path / "ws"), preset_config("demo"), head_template()).url)
    ingest_session(workspace, write_session(tmp_path / "session"))
    guessed = {(a.step, a.key): a.minutes for a in look_ahead(workspace, "clean").actions}
    assert guessed == dict.fromkeys([("clean", key) for key in workspace.scans()], STEPS["clean"].minutes)

    # Two runs with two workers: 10 results in 60 s of the clock, 120 s of work.
    for number, (results, elapsed) in enumerate([(4, 20.0), (6, 40.0)]):
        cost = {"clean": {"results": results, "seconds": 2 * elapsed, "elapsed": elapsed, "bytes": 5e6 * results}}
        workspace.store.put(f"runs/2026010{number}T000000Z-host-1.json", json.dumps({"cost": cost}).encode())
    outlook = look_ahead(workspace, "clean")
    assert outlook.minutes == pytest.approx(4 * 60 / 10 / 60)
    assert outlook.megabytes == pytest.approx(4 * 5)
