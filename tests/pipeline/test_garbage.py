"""What nothing refers to is found and deleted, and nothing else is."""

from __future__ import annotations

import shutil

from pipeline.execute import execute_in
from pipeline.garbage import collect_garbage, find_garbage
from pipeline.ingest import ingest_session
from pipeline.inputs import model_name
from pipeline.models import promote_first
from pipeline.planner import plan
from pipeline.snapshot import take_snapshot
from pipeline.workspace import Workspace


def bring_up_to_date(workspace) -> None:
    while ready := [action for action in plan(take_snapshot(workspace)) if action.ready]:
        for action in ready:
            execute_in(workspace, action.step, action.key)


def test_only_what_nothing_refers_to_goes(workspace, make_session):
    session = make_session(subjects={"001": ["neutral", "smile"], "002": ["neutral"]})
    ingest_session(workspace, session, copy=True)
    bring_up_to_date(workspace)
    promote_first(workspace, model_name(workspace))
    assert find_garbage(workspace) == []
    store = workspace.store
    before = {path: store.get(path) for path in store.list()}
    litter = {
        "clean/001/smile/half.ply": "no manifest names it",
        "clean/009/smile/mesh.ply": "no manifest names it",
        "samples.zarr/009/smile/c/0": "no manifest names it",
        "models/cut-off/model.safetensors": "no manifest names it",
        f"checkpoints/{model_name(workspace)}/ab/1": "its model is finished",
        "checkpoints/of-old/ab/1": "of a training that today's data and settings no longer call for",
    }
    for path in litter:
        store.put(path, b"x")
    store.put("samples.zarr/zarr.json", b"{}")
    store.put("notes/mine.txt", b"x")
    store.put("checkpoints/mine.txt", b"x")
    assert {garbage.path: garbage.why for garbage in find_garbage(workspace)} == litter
    assert {garbage.path for garbage in collect_garbage(workspace)} == set(litter)
    assert {path: store.get(path) for path in store.list()} == before | {
        "samples.zarr/zarr.json": b"{}", "notes/mine.txt": b"x", "checkpoints/mine.txt": b"x"
    }  # fmt: skip


def test_checkpoints_of_a_model_that_is_trained_anew_under_its_name_stay(workspace, make_session):
    named = workspace.config.model_copy(update={"model_name": "heads"})
    workspace = Workspace(workspace.store, named, workspace.steps)
    ingest_session(workspace, make_session())
    bring_up_to_date(workspace)
    workspace.store.put("checkpoints/heads/ab/1", b"x")
    assert [garbage.why for garbage in find_garbage(workspace)] == ["its model is finished"]
    ingest_session(workspace, make_session(subjects={"001": ["neutral", "smile", "grin"]}))
    while ready := [action for action in plan(take_snapshot(workspace), "sample") if action.ready]:
        for action in ready:
            execute_in(workspace, action.step, action.key)
    assert find_garbage(workspace) == []  # the training was cut off, and goes on from here
    bring_up_to_date(workspace)
    assert [garbage.path for garbage in find_garbage(workspace)] == ["checkpoints/heads/ab/1"]


def test_results_of_a_scan_that_is_gone(workspace, make_session):
    ingest_session(workspace, make_session(subjects={"001": ["neutral", "smile"]}))
    bring_up_to_date(workspace)
    shutil.rmtree(workspace.store.root / "ingest/001/smile")
    gone = {garbage.path for garbage in collect_garbage(workspace)}
    assert {path.rpartition("/")[0] for path in gone} == {
        "clean/001/smile", "registrations/001/smile", "samples/001/smile"
    }  # fmt: skip
    assert ("clean", "001/smile") not in take_snapshot(workspace).manifests
