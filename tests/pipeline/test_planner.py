"""The planner names exactly what depends on a change, and why."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from pipeline.config import PipelineConfig
from pipeline.execute import execute_in
from pipeline.ingest import ingest_session
from pipeline.judge import forget_judgement, record_judgement
from pipeline.planner import plan
from pipeline.rejected import write_rejected
from pipeline.snapshot import take_snapshot
from storage.errors import ConfigError


def run(workspace) -> list[tuple[str, str, str]]:
    """Do what is to be done until nothing is; returns what was done."""
    done = []
    for _ in range(20):
        ready = [action for action in plan(take_snapshot(workspace)) if action.ready]
        if not ready:
            assert plan(take_snapshot(workspace)) == []
            return done
        for action in ready:
            outcome = execute_in(workspace, action.step, action.key)
            assert outcome.kind == action.kind
            done.append((outcome.step, outcome.key, outcome.kind))
    raise AssertionError("the plan never comes to its end")


@pytest.fixture
def full(workspace, make_session):
    """A workspace with everything done: subjects 001 and 002 with two expressions each, all training."""
    session = make_session(subjects={"001": ["neutral", "smile"], "002": ["neutral", "smile"]})
    ingest_session(workspace, session)
    run(workspace)
    return workspace


def why(workspace) -> dict[tuple[str, str], str]:
    return {(action.step, action.key): action.why for action in plan(take_snapshot(workspace))}


def test_what_arrives_is_followed(full):
    actions = plan(take_snapshot(full), "register", ["002/smile", "003/neutral"])
    assert {(action.step, action.key, action.why) for action in actions} == {
        ("clean", "002/smile", "follows ingest"),
        ("clean", "003/neutral", "follows ingest"),
        ("register", "002/smile", "follows clean"),
        ("register", "003/neutral", "follows clean"),
    }
    assert not any(action.ready for action in actions)


def test_the_first_plan(workspace, make_session):
    ingest_session(workspace, make_session(subjects={"001": ["smile", "neutral"]}))
    actions = plan(take_snapshot(workspace))
    assert [(a.step, a.key.split("/")[-1], a.why, a.ready) for a in actions[:6]] == [
        ("clean", "neutral", "never computed", True),
        ("clean", "smile", "never computed", True),
        ("register", "neutral", "follows clean", False),
        ("register", "smile", "follows clean", False),
        ("sample", "neutral", "follows register", False),
        ("sample", "smile", "follows register", False),
    ]
    assert [(a.step, a.why) for a in actions[6:]] == [("train", "follows sample"), ("report", "follows train")]
    assert [a.step for a in plan(take_snapshot(workspace), until="clean")] == ["clean", "clean"]


def test_a_second_run_does_nothing(full):
    assert plan(take_snapshot(full)) == []


def test_canonical_scans_are_registered_first(workspace, make_session):
    ingest_session(workspace, make_session(subjects={"001": ["angry", "neutral"]}))
    done = run(workspace)
    assert [key for step, key, _ in done if step == "register"] == ["001/neutral", "001/angry"]


def test_another_step_version(full):
    full.steps["clean"] = replace(full.steps["clean"], version=2)
    said = why(full)
    assert said["clean", "001/smile"] == "step version 1 -> 2"
    assert said["register", "001/smile"] == "follows clean"
    done = Counter((step, kind) for step, _, kind in run(full))
    assert done == {("clean", "compute"): 4}  # the same bytes came out, so nothing follows


def test_a_changed_config_names_the_field(full):
    full.config = PipelineConfig(preset="demo", seed=5)
    assert why(full)["clean", "001/smile"] == "config changed: run_seed"


def test_only_what_depends_on_a_changed_scan(full, make_session):
    session = make_session(subjects={"001": ["neutral", "smile"], "002": ["neutral", "smile"]})
    (session / "002/smile/depth/000.png").write_bytes((session / "002/neutral/depth/000.png").read_bytes())
    ingest_session(full, session)
    assert why(full)["clean", "002/smile"] == "input ingest/content changed"
    assert run(full) == [
        ("clean", "002/smile", "compute"),
        ("register", "002/smile", "compute"),
        ("sample", "002/smile", "compute"),
        ("train", full_model(full), "compute"),
        ("report", full_model(full), "compute"),
    ]


def full_model(workspace) -> str:
    from pipeline.inputs import model_name

    return model_name(workspace)


def test_a_changed_canonical_scan_reaches_the_others(full, make_session):
    session = make_session(subjects={"001": ["neutral", "smile"], "002": ["neutral", "smile"]})
    (session / "002/neutral/depth/000.png").write_bytes((session / "002/smile/depth/000.png").read_bytes())
    ingest_session(full, session)
    done = [(step, key) for step, key, _ in run(full) if "/" in key]
    assert done == [
        ("clean", "002/neutral"),
        ("register", "002/neutral"),
        ("register", "002/smile"),
        ("sample", "002/neutral"),
        ("sample", "002/smile"),
    ]


def test_a_changed_template(full):
    full.store.put(full.config.template, b"another")
    full.__dict__.pop("_template_bytes", None)
    said = why(full)
    assert ("clean", "001/smile") not in said
    assert said["register", "001/neutral"] == "input template changed"


def test_a_missing_and_a_changed_output(full):
    full.store.delete("clean/001/smile/mesh.ply")
    full.store.put("clean/002/smile/mesh.ply", full.store.get("clean/002/smile/mesh.ply")[::-1])
    said = why(full)
    assert said["clean", "001/smile"] == "clean/001/smile/mesh.ply is missing"
    assert said["clean", "002/smile"] == "clean/002/smile/mesh.ply was changed"
    assert Counter(step for step, _, _ in run(full)) == {"clean": 2}


def test_a_threshold_judges_anew_and_computes_nothing_of_its_own(full, limits):
    limits["coverage"] = 0.9
    actions = plan(take_snapshot(full), until="sample")
    assert {(a.step, a.kind) for a in actions} == {("clean", "judge"), ("register", "withdraw"), ("sample", "withdraw")}
    assert actions[0].why == "accepted -> rejected: coverage 0.8 is too low"
    mesh = full.store.stat("clean/001/smile/mesh.ply")
    run(full)
    assert full.store.stat("clean/001/smile/mesh.ply") == mesh
    assert full.manifest("register", "001/smile") is None
    assert [line["step"] for line in write_rejected(full, take_snapshot(full))] == ["clean"] * 4
    limits["coverage"] = 0.5
    run(full)
    assert full.manifest("register", "001/smile").accepted
    assert write_rejected(full, take_snapshot(full)) == []


def test_a_persons_word(full, limits):
    before = full.store.get("registrations/001/smile/report.json")
    record_judgement(full, "001/smile", "reject", reason="blinked", by="Ada")
    said = why(full)
    assert said["register", "001/smile"] == "accepted -> rejected: rejected by Ada: blinked"
    assert said["sample", "001/smile"] == "register has no accepted result any more"
    run(full)
    manifest = full.manifest("register", "001/smile")
    assert (manifest.verdict, manifest.judgement.by) == ("rejected", "Ada")
    full.steps["register"] = replace(full.steps["register"], version=2)
    run(full)
    assert full.manifest("register", "001/smile").verdict == "rejected"
    full.steps["register"] = replace(full.steps["register"], version=1)
    forget_judgement(full, "001/smile")
    run(full)
    assert full.store.get("registrations/001/smile/report.json") == before
    limits["coverage"] = 0.9
    record_judgement(full, "001/neutral", "accept", reason="good enough", by="Ada")
    run(full)
    accepted = full.manifest("clean", "001/neutral")
    assert accepted.accepted
    assert accepted.reasons == ["coverage 0.8 is too low"]
    assert full.manifest("register", "001/neutral").accepted


def test_words_that_are_none(full):
    with pytest.raises(ConfigError, match="is no scan of this workspace"):
        record_judgement(full, "009/smile", "accept", reason="r", by="b")
    with pytest.raises(ConfigError, match="needs its reason"):
        record_judgement(full, "001/smile", "accept", reason=" ", by="b")


def test_a_subject_without_its_canonical_scan(workspace, make_session):
    session = make_session(subjects={"001": ["neutral", "smile"], "002": ["smile"]})
    (session / "001/neutral/depth/000.png").write_bytes(b"")
    ingest_session(workspace, session)
    run(workspace)
    rejected = {line["key"]: line for line in write_rejected(workspace, take_snapshot(workspace))}
    assert rejected["001/neutral"]["step"] == "ingest"
    assert rejected["001/smile"]["step"] == "register"
    assert "canonical scan 001/neutral" in rejected["001/smile"]["reason"]
    assert "canonical scan None" in rejected["002/smile"]["reason"]
    make_session(subjects={"001": ["neutral", "smile"], "002": ["smile", "neutral"]})
    ingest_session(workspace, session)
    run(workspace)
    assert workspace.manifest("register", "002/smile").accepted


def test_a_retake_stands_in_for_a_rejected_canonical_scan(workspace, make_session):
    session = make_session(subjects={"001": ["neutral", "neutral@2", "smile"]})
    ingest_session(workspace, session)
    run(workspace)
    assert workspace.canonical_key("001") == "001/neutral"
    record_judgement(workspace, "001/neutral", "reject", reason="moved", by="Ada")
    assert workspace.canonical_key("001") == "001/neutral@2"
    run(workspace)
    assert workspace.manifest("register", "001/neutral@2").accepted
    assert not workspace.manifest("register", "001/neutral").accepted
    forget_judgement(workspace, "001/neutral")
    (session / "001/neutral/depth/000.png").write_bytes(b"")
    ingest_session(workspace, session)
    assert workspace.canonical_key("001") == "001/neutral@2"
    run(workspace)
    assert workspace.manifest("register", "001/smile").accepted


def test_held_out_subjects_do_not_train(full):
    splits = full.config.splits.model_copy(update={"held_out_ids": ("002",)})
    full.config = full.config.model_copy(update={"splits": splits})
    before = full_model(full)
    run(full)
    inputs = full.manifest("train", full_model(full)).inputs
    assert sorted(inputs) == ["sample/001/neutral", "sample/001/smile"]
    assert before == full_model(full)


def test_a_named_model_is_trained_anew_in_its_place(full):
    full.config = full.config.model_copy(update={"model_name": "first"})
    assert why(full)["train", "first"] == "never computed"
    run(full)
    splits = full.config.splits.model_copy(update={"held_out_ids": ("002",)})
    full.config = full.config.model_copy(update={"splits": splits})
    assert why(full)["train", "first"] == "input sample/002/neutral is gone and 1 more"
