"""A new model takes the last one's place unless it is worse by more than chance."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.execute import execute_in
from pipeline.ingest import ingest_session
from pipeline.inputs import model_name
from pipeline.planner import plan
from pipeline.promotion import compare, new_subjects
from pipeline.snapshot import take_snapshot


def errors(rng: np.random.Generator, shift: float = 0.0, people: int = 12) -> dict[str, float | None]:
    return {
        f"{person:03d}/e{scan}": float(1.5 + shift + 0.02 * rng.normal())
        for person in range(people)
        for scan in range(5)
    }


def test_the_same_and_the_better_are_promoted_the_worse_is_not():
    rng = np.random.default_rng(0)
    last = errors(rng)
    assert compare(last, last, 0.0).promote
    assert compare(errors(rng, -0.1), last, 0.0).promote
    worse = compare(errors(rng, 0.1), last, 0.0)
    assert not worse.promote
    assert worse.difference_mm == pytest.approx(0.1, abs=0.02)
    assert worse.why.startswith("0.")
    assert compare(errors(rng, 0.1), last, 0.5).promote


def test_the_noise_counts_people_and_not_scans():
    """An analytic case: each person's scans err by the same, so ten scans of one tell no more than one."""
    rng = np.random.default_rng(1)
    shift = rng.normal(size=9)
    one = compare({f"{p}/a": 2 + shift[p] for p in range(9)}, {f"{p}/a": 2.0 for p in range(9)}, 0.0)
    ten = compare(
        {f"{p}/{s}": 2 + shift[p] for p in range(9) for s in range(10)},
        {f"{p}/{s}": 2.0 for p in range(9) for s in range(10)},
        0.0,
    )
    assert one.noise_mm == pytest.approx(2 * shift.std(ddof=1) / 3)
    assert ten.noise_mm == pytest.approx(one.noise_mm)


def test_chance_alone_is_seldom_taken_for_worse():
    rng = np.random.default_rng(2)
    refused = sum(not compare(errors(rng), errors(rng), 0.0).promote for _ in range(200))
    assert refused <= 14  # one side of two standard errors: 2.3 %, a little more with 12 people


def test_failed_fits_speak_against_the_new_model():
    rng = np.random.default_rng(3)
    last = errors(rng)
    new = errors(rng, -0.2) | {"000/e0": None}
    assert not compare(new, last, 0.0).promote
    assert compare(last, new, 1.0).promote
    assert not compare(dict.fromkeys(last), last, 0.0).promote
    assert compare({}, last, 0.0).why == "no scan of the held-out set could be compared"


def test_new_subjects(workspace, make_session):
    ingest_session(workspace, make_session(subjects={"001": ["neutral", "smile"]}))
    while ready := [action for action in plan(take_snapshot(workspace)) if action.ready]:
        for action in ready:
            execute_in(workspace, action.step, action.key)
    last = model_name(workspace)
    assert new_subjects(take_snapshot(workspace), last) == []
    session = make_session(subjects={"001": ["neutral"], "002": ["neutral"], "003": ["smile"], "004": ["neutral"]})
    ingest_session(workspace, session)
    splits = workspace.config.splits.model_copy(update={"held_out_ids": ("004",)})
    workspace.config = workspace.config.model_copy(update={"splits": splits})
    while ready := [action for action in plan(take_snapshot(workspace), "sample") if action.ready]:
        for action in ready:
            execute_in(workspace, action.step, action.key)
    assert new_subjects(take_snapshot(workspace), last) == ["002"]
