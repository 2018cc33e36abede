"""Broken input: each fault is one line that names file, fault and remedy, and the other scans go through."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.ingest import ingest_session, load_capture
from storage.ply import write_ply


def lines_of(workspace, session, **options):
    """The report of ingesting a session, and the line of its one rejected scan."""
    report = ingest_session(workspace, session, **options)
    assert report.accepted == ["001/neutral"]
    assert report.rejected == ["001/smile"]
    [line] = workspace.manifest("ingest", "001/smile").reasons
    assert "\n" not in line
    assert load_capture(workspace, "001/neutral").depth_views
    return line


def edit(scan: Path, change) -> None:
    file = scan / "transforms.json"
    told = json.loads(file.read_text())
    change(told)
    file.write_text(json.dumps(told))


@pytest.fixture
def session(make_session) -> Path:
    return make_session()


@pytest.fixture
def scan(session) -> Path:
    return session / "001/smile"


def test_no_session_json(workspace, session):
    (session / "session.json").unlink()
    report = ingest_session(workspace, session)
    assert report.faults == [f"{session}: no session.json found; give the folder that holds it"]


def test_no_folder(workspace, tmp_path):
    report = ingest_session(workspace, tmp_path / "nowhere")
    assert report.faults == [f"{tmp_path}/nowhere: no session.json found (no such folder); check the path"]


def test_wrong_schema_version(workspace, make_session):
    session = make_session(schema_version=7)
    report = ingest_session(workspace, session)
    why = "found 7, known is 1"
    assert report.faults == [
        f"{session}/session.json: schema_version is not known ({why}); export with schema_version 1"
    ]


def test_wrong_schema(workspace, make_session):
    session = make_session(layout="depth_frames", rig=None)
    report = ingest_session(workspace, session)
    what = "rig: input should be a valid string, found None"
    assert report.faults == [f"{session}/session.json: {what}; correct this key"]


def test_truncated_png(workspace, session, scan):
    file = scan / "depth/002.png"
    data = file.read_bytes()
    file.write_bytes(data[: len(data) // 2])
    line = lines_of(workspace, session)
    assert line.startswith("001/smile/depth/002.png: image is damaged (")
    assert line.endswith("; copy it again")


def test_nan_pose(workspace, session, scan):
    edit(scan, lambda told: told["frames"][1]["transform_matrix"][0].__setitem__(3, float("nan")))
    assert lines_of(workspace, session) == (
        "001/smile/transforms.json frame 1: transform_matrix is not finite (it holds NaN or infinity); "
        "correct transforms.json or export the scan again"
    )


def test_missing_depth_file(workspace, session, scan):
    (scan / "depth/003.png").unlink()
    assert lines_of(workspace, session) == "001/smile/depth/003.png: is missing (no such file); copy the scan again"


def test_frame_without_depth(workspace, session, scan):
    edit(scan, lambda told: told["frames"][4].pop("depth_file_path"))
    assert lines_of(workspace, session) == (
        "001/smile/transforms.json frame 4: has no depth (no depth_file_path); export the scan with its depth images"
    )


@pytest.mark.parametrize(("factor", "found", "fits"), [(1000, "319.1", "0.0001"), (0.001, "0.0003191", "0.0001")])
def test_depth_unit_wrong_by_1000(workspace, session, scan, factor, found, fits):
    edit(scan, lambda told: told.__setitem__("depth_unit_scale_factor", 1e-4 * factor))
    assert lines_of(workspace, session) == (
        "001/smile/transforms.json: depth_unit_scale_factor does not fit a head rig "
        f"(median depth {found} m, expected 0.15 to 4 m); a scale of {fits} instead of {1e-4 * factor:.6g} would fit"
    )


def test_one_view_only(workspace, session, scan):
    edit(scan, lambda told: told.__setitem__("frames", told["frames"][:1]))
    assert lines_of(workspace, session) == (
        "001/smile/transforms.json: one view only (1 frame, at least 3 are needed); capture the head from more sides"
    )


@pytest.mark.parametrize("path", ["../../../secret.png", "/etc/passwd", "depth/../../../../x.png", "..\\x.png"])
def test_path_that_climbs_out(workspace, session, scan, path):
    edit(scan, lambda told: told["frames"][0].__setitem__("depth_file_path", path))
    assert lines_of(workspace, session) == (
        f"001/smile/{path}: path leaves the session (it climbs out); keep every file of a scan inside the scan's folder"
    )


@pytest.mark.parametrize("what", ["file", "folder", "scan"])
def test_link_that_leads_out(workspace, session, scan, tmp_path, what):
    at = {"file": scan / "depth/000.png", "folder": scan / "depth", "scan": scan}[what]
    at.rename(tmp_path / "outside")
    at.symlink_to(tmp_path / "outside")
    assert "path leaves the session (a link leads out of it)" in lines_of(workspace, session)


@pytest.mark.parametrize("name", ["../../evil", "a/b", "", "a b", ".hidden", "x" * 90, "A@2"])
def test_subject_of_another_name(workspace, session, name):
    note = json.loads((session / "session.json").read_text())
    note["subjects"].append({"id": name, "expressions": ["neutral"]})
    (session / "session.json").write_text(json.dumps(note))
    report = ingest_session(workspace, session)
    assert report.accepted == ["001/neutral", "001/smile"]
    [refused] = report.refused
    assert "may not be called" in refused.line
    assert "\n" not in refused.line


def test_missing_scan(workspace, make_session):
    session = make_session()
    (session / "001/smile").rename(session / "001/elsewhere")
    assert lines_of(workspace, session) == (
        "001/smile: folder of the scan is missing (session.json names it); copy the scan again"
    )


def test_depth_of_another_size(workspace, session, scan):
    edit(scan, lambda told: told["frames"][2].update(w=64, h=48))
    assert lines_of(workspace, session) == (
        "001/smile/depth/002.png: depth image has another size than told (32x24, told are 64x48); "
        "correct w and h in transforms.json, or export the frame again"
    )


def test_depth_of_eight_bits(workspace, session, scan):
    Image.new("L", (32, 24)).save(scan / "depth/000.png")
    assert "depth image is not 16 bit greyscale (mode L)" in lines_of(workspace, session)


def test_color_of_another_size(workspace, session, scan):
    Image.new("RGB", (64, 48)).save(scan / "color/001.jpg")
    assert lines_of(workspace, session).startswith(
        "001/smile/color/001.jpg: colour image has another size than told (64x48, told are 32x24)"
    )


@pytest.mark.parametrize("value", [0.0, -30.0])
def test_focal_length(workspace, session, scan, value):
    edit(scan, lambda told: told.__setitem__("fl_x", value))
    assert f"focal length is not positive (fl_x {value:g}, fl_y 30)" in lines_of(workspace, session)


def test_mirrored_pose(workspace, session, scan):
    def mirror(told):
        for row in told["frames"][3]["transform_matrix"][:3]:
            row[0] = -row[0]

    edit(scan, mirror)
    assert "frame 3: transform_matrix is mirrored (its determinant is negative)" in lines_of(workspace, session)


def test_transposed_pose(workspace, session, scan):
    def transpose(told):
        frame = told["frames"][3]
        frame["transform_matrix"] = np.transpose(frame["transform_matrix"]).tolist()

    edit(scan, transpose)
    assert "frame 3: transform_matrix is transposed (the translation stands in the last row)" in lines_of(
        workspace, session
    )


def test_scaled_pose(workspace, session, scan):
    def scale(told):
        for row in told["frames"][0]["transform_matrix"][:3]:
            row[:3] = [2 * value for value in row[:3]]

    edit(scan, scale)
    assert "transform_matrix is scaled (by 2)" in lines_of(workspace, session)


def test_poses_of_opencv_axes(workspace, session, scan):
    def flip(told):
        for frame in told["frames"]:
            for row in frame["transform_matrix"][:3]:
                row[1], row[2] = -row[1], -row[2]

    edit(scan, flip)
    assert "transform_matrix has other camera axes (the cameras look away from each other's sight)" in lines_of(
        workspace, session
    )


def test_poses_in_mm(workspace, session, scan):
    def to_mm(told):
        for frame in told["frames"]:
            for row in frame["transform_matrix"][:3]:
                row[3] *= 1000

    edit(scan, to_mm)
    assert "poses and depth differ in unit" in lines_of(workspace, session)


def test_identical_views(workspace, session, scan):
    def same(told):
        for frame in told["frames"]:
            frame["transform_matrix"] = told["frames"][0]["transform_matrix"]

    edit(scan, same)
    assert "all views are the same (5 frames within 0 mm)" in lines_of(workspace, session)


@pytest.mark.parametrize(("count", "what"), [(3, "too many of the depth images are empty"), (5, "every depth image")])
def test_empty_frames(workspace, session, scan, count, what):
    for i in range(count):
        Image.fromarray(np.zeros((24, 32), np.uint16)).save(scan / f"depth/{i:03d}.png")
    line = lines_of(workspace, session)
    assert what in line
    assert f"({count} of 5 have fewer than 50 points)" in line or count == 5


def test_a_single_empty_frame_is_left_out(workspace, session, scan):
    Image.fromarray(np.zeros((24, 32), np.uint16)).save(scan / "depth/000.png")
    report = ingest_session(workspace, session)
    assert report.rejected == []
    assert len(load_capture(workspace, "001/smile").depth_views) == 4


@pytest.mark.parametrize("content", [b"", b"\0" * 100, b"[1, 2]", b"{" * 100_000])
def test_transforms_that_are_no_json(workspace, session, scan, content):
    (scan / "transforms.json").write_bytes(content)
    assert lines_of(workspace, session).startswith("001/smile/transforms.json: ")


def test_empty_cloud(workspace, make_session):
    session = make_session(layout="view_clouds")
    for i in range(3):
        empty = {axis: np.zeros(0, np.float32) for axis in "xyz"}
        (session / f"001/smile/views/{i:03d}.ply").write_bytes(write_ply(empty))
    report = ingest_session(workspace, session)
    assert report.accepted == ["001/neutral"]
    assert workspace.manifest("ingest", "001/smile").reasons == [
        "001/smile/views/000.ply: too many of the clouds are empty (3 of 5 have fewer than 50 points); "
        "check the sensors, then export or capture the scan again"
    ]


@pytest.mark.parametrize(("layout", "name"), [("view_clouds", "views"), ("fused_mesh", "scan.ply")])
def test_wrong_unit(workspace, make_session, layout, name):
    session = make_session(layout=layout, unit="m")
    note = json.loads((session / "session.json").read_text())
    (session / "session.json").write_text(json.dumps(note | {"unit": "mm"}))
    report = ingest_session(workspace, session)
    assert report.rejected == ["001/neutral", "001/smile"]
    [line] = workspace.manifest("ingest", "001/smile").reasons
    assert line.startswith(f"001/smile/{name}: unit mm does not fit a head (0.1")
    assert line.endswith("mm across, expected 120 to 3000 mm); unit m would fit in session.json")


def test_ply_that_promises_billions(workspace, make_session):
    session = make_session(layout="fused_mesh")
    head = b"ply\nformat binary_little_endian 1.0\nelement vertex 4000000000\nproperty float x\nend_header\n"
    (session / "001/smile/scan.ply").write_bytes(head)
    report = ingest_session(workspace, session)
    assert report.accepted == ["001/neutral"]
    [line] = workspace.manifest("ingest", "001/smile").reasons
    assert line.startswith("001/smile/scan.ply: PLY header is not believable (4000000000 elements promised")


def test_huge_file_is_not_read(workspace, make_session):
    session = make_session(layout="fused_mesh")
    with (session / "001/smile/scan.ply").open("wb") as file:
        file.truncate(3 * 1024**3)
    report = ingest_session(workspace, session)
    assert report.accepted == ["001/neutral"]
    [line] = workspace.manifest("ingest", "001/smile").reasons
    assert line.startswith("001/smile/scan.ply: is too large (3221225472 bytes, at most 2147483648 are read)")
