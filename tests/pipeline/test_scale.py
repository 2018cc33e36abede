"""Thousands of scans: a plan takes seconds, a second look a millisecond a scan."""

from __future__ import annotations

import time

import pytest

from pipeline.execute import execute_in
from pipeline.ingest import ingest_session, look_again
from pipeline.planner import plan
from pipeline.snapshot import Snapshot, take_snapshot
from storage.manifest import Manifest

SUBJECTS, EXPRESSIONS = 255, 23


@pytest.fixture
def many(workspace, make_session):
    """The manifests of a workspace with one scan, for many subjects."""
    ingest_session(workspace, make_session(subjects={"001": ["neutral", "smile"]}))
    while ready := [action for action in plan(take_snapshot(workspace)) if action.ready]:
        for action in ready:
            execute_in(workspace, action.step, action.key)
    assert look_again(workspace)[0].pending == []
    one = take_snapshot(workspace)
    manifests: dict[tuple[str, str], Manifest] = {}
    for subject in range(SUBJECTS):
        for number in range(EXPRESSIONS):
            source = "001/smile" if number else "001/neutral"
            key = f"{subject:03d}/{'neutral' if number == 0 else f'e{number:02d}'}"
            for step in ("ingest", "clean", "register", "sample"):
                manifests[step, key] = one.manifests[step, source].model_copy(update={"key": key})
    return one, manifests


def test_a_plan_over_the_papers_scale(many):
    one, manifests = many
    book = Snapshot(one.config, one.steps, manifests, template_digest=one.template_digest())
    began = time.process_time()
    actions = plan(book)
    seconds = time.process_time() - began
    assert {(action.step, action.why) for action in actions} == {
        ("train", "never computed"),
        ("report", "follows train"),
    }
    assert seconds < 6
    stale = {place: m for place, m in manifests.items() if place[0] != "clean"}
    began = time.process_time()
    actions = plan(Snapshot(one.config, one.steps, stale, template_digest=one.template_digest()))
    assert len(actions) == 3 * SUBJECTS * EXPRESSIONS + 2
    assert time.process_time() - began < 6
