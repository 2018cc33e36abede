"""Sessions come in once, grow, and never overwrite each other."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest

from pipeline.ingest import ingest_session, load_capture, look_again, look_at_session, take_in
from registration.views import DepthView, pixel_rays
from storage.errors import ConfigError, StorageConflict
from storage.ply import write_ply
from storage.store import LocalStore


def world_points(view: DepthView) -> np.ndarray:
    rows, columns = np.nonzero(view.depth_mm)
    x, y = pixel_rays(view.intrinsics, columns + 0.5, rows + 0.5)
    z = view.depth_mm[rows, columns]
    T = view.T_world_from_camera
    return np.stack([x * z, y * z, z], 1) @ T[:3, :3].T + T[:3, 3]


def tree(workspace) -> dict[str, bytes]:
    return {path: workspace.store.get(path) for path in workspace.store.list() if not path.startswith(".cache")}


@pytest.mark.parametrize("unit", ["mm", "cm", "m"])
@pytest.mark.parametrize("layout", ["depth_frames", "view_clouds", "fused_mesh"])
def test_every_layout_comes_in_millimetres(workspace, make_session, layout, unit):
    session = make_session(layout=layout, unit=unit)
    report = ingest_session(workspace, session)
    assert report.accepted == ["001/neutral", "001/smile"]
    capture = load_capture(workspace, "001/smile")
    if layout == "depth_frames":
        points = np.concatenate([world_points(view) for view in capture.depth_views])
    elif layout == "view_clouds":
        points = np.concatenate([cloud.vertices for cloud in capture.clouds])
    else:
        points = capture.mesh.vertices
    assert np.abs(np.linalg.norm(points, axis=1) - 100).max() < 0.2


def test_what_the_session_tells_is_kept(workspace, make_session):
    ingest_session(workspace, make_session())
    manifest = workspace.manifest("ingest", "001/neutral")
    assert manifest.extra("consent") == {"given": True, "scope": ["research"], "date": "2026-01-01"}
    assert manifest.extra("licence") == "CC0"
    assert manifest.extra("session_id") == "id-session"
    assert manifest.extra("rig") == "ball"
    assert manifest.extra("told_of_session")["room"] == "B12"
    assert manifest.extra("told_of_subject") == {"hair": "none", "age": 40}
    assert set(manifest.inputs) == {"transforms.json"} | {
        f"{folder}/{i:03d}.{ending}" for i in range(5) for folder, ending in (("depth", "png"), ("color", "jpg"))
    }


def test_the_same_session_again_changes_nothing(workspace, make_session):
    session = make_session()
    ingest_session(workspace, session)
    before = tree(workspace)
    report = ingest_session(workspace, session)
    assert (report.accepted, report.unchanged) == ([], ["001/neutral", "001/smile"])
    assert tree(workspace) == before


def test_a_look_without_cache_comes_to_the_same(workspace, make_session):
    session = make_session()
    ingest_session(workspace, session)
    before = tree(workspace)
    workspace.store.delete(".cache/looks.json")
    ingest_session(workspace, session)
    assert tree(workspace) == before


def test_a_session_that_grew_adds_only_what_is_new(workspace, make_session):
    ingest_session(workspace, make_session())
    make_session(subjects={"001": ["neutral", "smile", "smile@2"], "002": ["neutral"]})
    [look] = look_again(workspace)
    assert [pending.scan.key for pending in look.pending] == ["001/smile@2", "002/neutral"]
    report = take_in(workspace, [look])
    assert report.accepted == ["001/smile@2", "002/neutral"]
    assert report.unchanged == ["001/neutral", "001/smile"]


def test_a_retake_of_nothing_and_a_first_retake_are_refused(workspace, make_session):
    session = make_session()
    for name in ("frown@2", "smile@1"):
        shutil.copytree(session / "001/smile", session / "001" / name)
    report = ingest_session(workspace, session)
    assert report.accepted == ["001/neutral", "001/smile"]
    assert {refusal.key: refusal.line.split(": ", 1)[1].split(" (")[0] for refusal in report.refused} == {
        "001/frown@2": "is a retake of no expression; name frown in session.json",
        "001/smile@1": "expression of subject 001 may not be called 'smile@1'",
    }


def test_changed_files_are_read_again(workspace, make_session):
    session = make_session()
    ingest_session(workspace, session)
    before = workspace.manifest("ingest", "001/smile").extra("content_digest")
    shutil.copy(session / "001/neutral/depth/000.png", session / "001/smile/depth/000.png")
    with pytest.raises(StorageConflict, match="raw file was changed after ingest"):
        load_capture(workspace, "001/smile")
    report = ingest_session(workspace, session)
    assert (report.accepted, report.unchanged) == (["001/smile"], ["001/neutral"])
    assert workspace.manifest("ingest", "001/smile").extra("content_digest") != before


def test_a_mended_scan_is_accepted(workspace, make_session):
    session = make_session()
    file = session / "001/smile/depth/000.png"
    whole = file.read_bytes()
    file.write_bytes(whole[:50])
    assert ingest_session(workspace, session).rejected == ["001/smile"]
    again = ingest_session(workspace, session)
    assert (again.accepted, again.unchanged, again.rejected) == ([], ["001/neutral"], ["001/smile"])
    assert again.still_rejected["001/smile"].startswith("001/smile/depth/000.png: image is damaged")
    with pytest.raises(ConfigError, match="no accepted result of ingest"):
        load_capture(workspace, "001/smile")
    file.write_bytes(whole)
    assert ingest_session(workspace, session).accepted == ["001/smile"]


def test_a_key_that_is_taken(workspace, make_session):
    ingest_session(workspace, make_session("first"))
    before = tree(workspace)
    second = make_session("second", {"001": ["smile"], "003": ["neutral"]}, seed=1)
    for _ in range(2):
        report = ingest_session(workspace, second)
        [refused] = report.refused
        assert refused.key == "001/smile"
        assert all(told in refused.line for told in ("id-first", "id-second", "--subject-prefix"))
        assert workspace.manifest("ingest", "003/neutral").accepted
        assert workspace.store.get("ingest/001/smile/report.json") == before["ingest/001/smile/report.json"]
    report = ingest_session(workspace, second, "b-")
    assert report.accepted == ["b-001/smile", "b-003/neutral"]


def test_the_same_scans_at_another_place_change_nothing(workspace, make_session, tmp_path):
    session = make_session()
    ingest_session(workspace, session)
    before = workspace.store.get("ingest/001/smile/report.json")
    shutil.copytree(session, tmp_path / "copy")
    report = ingest_session(workspace, tmp_path / "copy")
    assert report.refused == []
    assert workspace.store.get("ingest/001/smile/report.json") == before


def test_a_session_that_moved(workspace, make_session, tmp_path):
    session = make_session()
    ingest_session(workspace, session)
    before = workspace.manifest("ingest", "001/smile")
    session.rename(tmp_path / "moved")
    [look] = look_again(workspace)
    assert "no such folder" in look.fault
    ingest_session(workspace, tmp_path / "moved")
    after = workspace.manifest("ingest", "001/smile")
    assert after.extra("content_digest") == before.extra("content_digest")
    assert load_capture(workspace, "001/smile").depth_views


def test_a_scan_whose_folder_vanished_is_kept(workspace, make_session):
    session = make_session()
    ingest_session(workspace, session)
    before = tree(workspace)
    (session / "001/smile").rename(session / "001/elsewhere")
    report = ingest_session(workspace, session)
    assert (report.unchanged, report.rejected) == (["001/neutral"], [])
    assert report.gone == [
        f"001/smile: is kept as it was taken in (folder {session}/001/smile is not there); "
        "bring it back, or leave it out with 'nphm judge'"
    ]
    assert tree(workspace) == before
    (session / "001/elsewhere").rename(session / "001/smile")
    assert ingest_session(workspace, session).unchanged == ["001/neutral", "001/smile"]


def test_a_session_that_shrank_says_so(workspace, make_session):
    session = make_session()
    ingest_session(workspace, session)
    make_session(subjects={"001": ["neutral"]})
    report = ingest_session(workspace, session)
    assert (report.unchanged, report.rejected) == (["001/neutral"], [])
    assert report.gone == [
        f"001/smile: is kept as it was taken in ({session}/session.json no longer names it); "
        "bring it back, or leave it out with 'nphm judge'"
    ]
    assert workspace.manifest("ingest", "001/smile").accepted


def test_a_vanished_file_is_named(workspace, make_session):
    session = make_session()
    ingest_session(workspace, session)
    file = session / "001/smile/depth/001.png"
    whole = file.read_bytes()
    file.unlink()
    assert ingest_session(workspace, session).rejected == ["001/smile"]
    assert workspace.manifest("ingest", "001/smile").reasons == [
        "001/smile/depth/001.png: is missing (no such file); copy the scan again"
    ]
    file.write_bytes(whole)
    assert ingest_session(workspace, session).accepted == ["001/smile"]


def test_a_file_behind_a_link_is_watched(workspace, make_session):
    session = make_session()
    file = session / "001/smile/depth/001.png"
    (session / "shared").mkdir()
    file.rename(session / "shared/one.png")
    file.symlink_to(session / "shared/one.png")
    ingest_session(workspace, session)
    before = workspace.manifest("ingest", "001/smile").extra("content_digest")
    shutil.copy(session / "001/smile/depth/002.png", session / "shared/one.png")
    assert ingest_session(workspace, session).accepted == ["001/smile"]
    assert workspace.manifest("ingest", "001/smile").extra("content_digest") != before


def test_the_same_content_elsewhere_counts_as_unchanged(workspace, make_session, tmp_path):
    session = make_session()
    ingest_session(workspace, session)
    shutil.copytree(session, tmp_path / "copy")
    report = ingest_session(workspace, tmp_path / "copy")
    assert (report.accepted, report.unchanged) == ([], ["001/neutral", "001/smile"])


def test_clouds_keep_their_names(workspace, make_session):
    session = make_session(layout="view_clouds")
    views = session / "001/smile/views"
    (views / "001.ply").rename(views / "left.ply")
    (views / "000.ply").write_bytes(write_ply({axis: np.zeros(0, np.float32) for axis in "xyz"}))
    ingest_session(workspace, session)
    assert load_capture(workspace, "001/smile").cloud_names == ("002", "003", "004", "left")


def test_copied_scans_outlive_their_session(workspace, make_session):
    session = make_session()
    ingest_session(workspace, session, copy=True)
    shutil.rmtree(session)
    assert len(load_capture(workspace, "001/smile").depth_views) == 5
    assert workspace.store.exists("ingest/001/smile/depth/000.png")


def test_nothing_is_written_outside_the_workspace(workspace, make_session, tmp_path):
    session = make_session()
    outside = LocalStore(session).stats()
    ingest_session(workspace, session)
    assert LocalStore(session).stats() == outside


def test_splits_are_drawn_once(workspace, make_session):
    ingest_session(workspace, make_session("a", {f"{i:03d}": ["neutral"] for i in range(10)}))
    first = workspace.kept_splits()
    assert sorted(first.values()) == ["held_out"] + ["train"] * 9
    ingest_session(workspace, make_session("b", {f"{i:03d}": ["neutral"] for i in range(10, 20)}))
    second = workspace.kept_splits()
    assert {subject: second[subject] for subject in first} == first
    assert list(second.values()).count("held_out") == 2


def test_a_look_reads_no_raw_file(workspace, make_session, monkeypatch):
    session = make_session()
    ingest_session(workspace, session)

    def no_read(*_):
        raise AssertionError("a raw file was read")

    monkeypatch.setattr("pipeline.rawfiles.SessionFiles.read", no_read)
    assert look_at_session(workspace, session).pending == []


def test_another_limit_looks_anew(workspace, make_session):
    session = make_session()
    ingest_session(workspace, session)
    strict = workspace.config.ingest.model_copy(update={"min_views": 6})
    workspace.config = workspace.config.model_copy(update={"ingest": strict})
    assert ingest_session(workspace, session).rejected == ["001/neutral", "001/smile"]


def test_lens_and_intrinsics_of_each_frame(workspace, make_session):
    session = make_session()
    file = session / "001/smile/transforms.json"
    told = json.loads(file.read_text())
    for name in ("fl_x", "fl_y", "cx", "cy", "w", "h"):
        value = told.pop(name)
        for frame in told["frames"]:
            frame[name] = value
    told["frames"][2] |= {"k1": 0.1, "k2": 0.02, "k3": 0.003, "p1": 0.001, "p2": 0.002, "fl_x": 31.0}
    file.write_text(json.dumps(told))
    ingest_session(workspace, session)
    views = load_capture(workspace, "001/smile").depth_views
    assert views[2].intrinsics.distortion == (0.1, 0.02, 0.001, 0.002, 0.003)
    assert [view.intrinsics.fx for view in views] == [30.0, 30.0, 31.0, 30.0, 30.0]
