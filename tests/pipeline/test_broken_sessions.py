"""Broken input: each fault is one line that names file, fault and remedy, and the other scans go through."""

from __future__ import annotations

import json
import shutil
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.ingest import ingest_session, load_capture
from storage.errors import ConfigError
from storage.ply import read_ply, write_ply


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


def test_no_schema_version(workspace, make_session):
    session = make_session()
    note = session / "session.json"
    told = json.loads(note.read_text())
    note.write_text(json.dumps({key: value for key, value in told.items() if key != "schema_version"}))
    report = ingest_session(workspace, session)
    why = "found none, known is 1"
    assert report.faults == [f"{note}: schema_version is not known ({why}); export with schema_version 1"]


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


@pytest.mark.parametrize(
    "path", ["../../../secret.png", "/etc/passwd", "depth/../../../../x.png", "C:/x.png", "../x.png"]
)
def test_path_that_climbs_out(workspace, session, scan, path):
    edit(scan, lambda told: told["frames"][0].__setitem__("depth_file_path", path))
    assert lines_of(workspace, session) == (
        f"001/smile/{path}: path leaves the session (it climbs out); keep every file of a scan inside the scan's folder"
    )


def test_windows_separators(workspace, session, scan):
    def to_windows(told):
        for frame in told["frames"]:
            for name in ("file_path", "depth_file_path"):
                frame[name] = frame[name].replace("/", "\\")

    edit(scan, to_windows)
    assert ingest_session(workspace, session).rejected == []
    assert all(view.color is not None for view in load_capture(workspace, "001/smile").depth_views)
    edit(scan, lambda told: told["frames"][0].__setitem__("depth_file_path", "..\\x.png"))
    ingest_session(workspace, session)
    assert "../x.png: path leaves the session" in workspace.manifest("ingest", "001/smile").reasons[0]


@pytest.mark.parametrize(
    ("told", "there"), [("depth/002.PNG", "002.png"), ("depth/Tiefe\u00e4.png", "Tiefea\u0308.png")]
)
def test_a_name_that_is_spelt_otherwise(workspace, session, scan, told, there):
    (scan / "depth/002.png").rename(scan / "depth" / there)
    edit(scan, lambda all_told: all_told["frames"][2].__setitem__("depth_file_path", told))
    line = lines_of(workspace, session)
    assert "is missing (there is " in line
    assert line.endswith("let both names be the same, letter by letter")


@pytest.mark.parametrize("what", ["file", "folder", "scan"])
def test_link_that_leads_out(workspace, session, scan, tmp_path, what):
    at = {"file": scan / "depth/000.png", "folder": scan / "depth", "scan": scan}[what]
    at.rename(tmp_path / "outside")
    at.symlink_to(tmp_path / "outside")
    assert "path leaves the session (a link leads out of it)" in lines_of(workspace, session)


@pytest.mark.parametrize("name", ["../../evil", "a/b", "", "a b", ".hidden", "x" * 90, "A@2", "A@1"])
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
    assert "depth image is not 16 bit greyscale (it holds 8 bit grey)" in lines_of(workspace, session)


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
    assert line.startswith("001/smile/scan.ply: is too large (3221225472 bytes, at most 1073741824 are read)")


def only_line(workspace, session) -> str:
    """The one line of a session whose second scan is broken, whatever the layout."""
    report = ingest_session(workspace, session)
    assert (report.accepted, report.rejected) == (["001/neutral"], ["001/smile"])
    [line] = workspace.manifest("ingest", "001/smile").reasons
    assert line.isprintable()
    assert line.startswith("001/smile")
    assert "; " in line
    return line


FILES = [
    ("depth_frames", "transforms.json"),
    ("depth_frames", "depth/001.png"),
    ("depth_frames", "color/001.jpg"),
    ("view_clouds", "views/001.ply"),
    ("fused_mesh", "scan.ply"),
    ("fused_mesh", "scan.obj"),
]


def put(session: Path, layout: str, name: str) -> Path:
    """The file of the second scan that is to be broken."""
    if name == "scan.obj":
        (session / "001/smile/scan.ply").unlink()
    return session / "001/smile" / name


@pytest.mark.parametrize(("layout", "name"), FILES)
def test_a_file_of_no_bytes(workspace, make_session, layout, name):
    session = make_session(layout=layout)
    put(session, layout, name).write_bytes(b"")
    assert only_line(workspace, session) == f"001/smile/{name}: is empty (0 bytes); copy the scan again"


@pytest.mark.parametrize(("layout", "name"), FILES)
def test_a_file_of_random_bytes(workspace, make_session, layout, name):
    session = make_session(layout=layout)
    put(session, layout, name).write_bytes(np.random.default_rng(0).bytes(20_000))
    assert only_line(workspace, session).startswith(f"001/smile/{name}: i")


@pytest.mark.parametrize(("layout", "name"), FILES)
def test_a_file_of_three_gigabytes_is_not_read(workspace, make_session, layout, name):
    session = make_session(layout=layout)
    with put(session, layout, name).open("wb") as file:
        file.truncate(3 * 1024**3)
    tracemalloc.start()
    line = only_line(workspace, session)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert line.startswith(f"001/smile/{name}: is too large (3221225472 bytes, at most ")
    assert peak < 20e6


def test_a_session_file_of_three_gigabytes_is_not_read(workspace, session):
    with (session / "session.json").open("wb") as file:
        file.truncate(3 * 1024**3)
    tracemalloc.start()
    [fault] = ingest_session(workspace, session).faults
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert fault.startswith(f"{session}/session.json: JSON file is too large")
    assert peak < 60e6


def test_a_picture_bomb_takes_no_memory(workspace, session, scan):
    Image.new("I;16", (8000, 8001)).save(scan / "depth/002.png")
    edit(scan, lambda told: told["frames"][2].update(w=8000, h=8001, cx=4000, cy=4000, fl_x=7000, fl_y=7000))
    assert lines_of(workspace, session).startswith("001/smile/depth/002.png: image is too large (8000x8001")


def test_one_large_picture_named_often_takes_no_memory(workspace, session, scan):
    def many(told):
        told.update(w=7000, h=7000, cx=3500, cy=3500, fl_x=7000, fl_y=7000)
        told["frames"] = told["frames"] * 20

    edit(scan, many)
    assert lines_of(workspace, session) == (
        "001/smile/transforms.json: frames are too large "
        "(4900000000 pixels in 100 frames, at most 400000000 are read); export fewer or smaller frames"
    )


def test_all_depth_images_the_same(workspace, session, scan):
    for i in range(1, 5):
        shutil.copy(scan / "depth/000.png", scan / f"depth/{i:03d}.png")
    assert lines_of(workspace, session) == (
        "001/smile/depth: all views are the same (5 depth images of 1 different content); "
        "export each view's own depth image"
    )


def test_all_clouds_the_same(workspace, make_session):
    session = make_session(layout="view_clouds")
    for i in range(1, 5):
        shutil.copy(session / "001/smile/views/000.ply", session / f"001/smile/views/{i:03d}.ply")
    assert "001/smile/views: all views are the same (5 clouds of 1 different content)" in only_line(workspace, session)


def test_hidden_files_are_no_views(workspace, make_session):
    session = make_session(layout="view_clouds")
    (session / "001/smile/views/._000.ply").write_bytes(b"what another system leaves beside a file")
    assert ingest_session(workspace, session).rejected == []


def change_poses(scan: Path, change) -> None:
    def edit_all(told):
        for frame in told["frames"]:
            frame["transform_matrix"] = change(np.array(frame["transform_matrix"])).tolist()

    edit(scan, edit_all)


def turned_rotation(pose):
    pose[:3, :3] = pose[:3, :3].T
    return pose


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (np.linalg.inv, "transform_matrix is world to camera"),
        (lambda pose: np.linalg.inv(pose @ np.diag([1.0, -1, -1, 1])), "transform_matrix is world to camera"),
        (turned_rotation, "transform_matrix is transposed"),
        (lambda pose: pose + np.diag([0, 0, 0, 1e-3]), "transform_matrix is no rigid motion"),
        (lambda pose: pose * [[1e300], [1], [1], [1]], "transform_matrix is not believable"),
        (lambda pose: pose[:2], "transform_matrix is not 4x4"),
        (lambda pose: pose * np.inf, "transform_matrix is not finite"),
        (lambda pose: pose * 0, "transform_matrix is no rigid motion"),
    ],
)
def test_poses_told_in_another_way(workspace, session, scan, change, what):
    with np.errstate(all="ignore"):
        change_poses(scan, change)
    assert what in lines_of(workspace, session)


@pytest.mark.parametrize(
    ("change", "what"),
    [
        ({"fl_x": "30,5"}, "fl_x is wrong (input should be a valid number, unable to parse string as a number, found"),
        ({"fl_x": 10**400}, "fl_x is "),
        ({"fl_x": None, "fl_y": None}, "fl_x is missing"),
        ({"fl_y": 0}, "focal length is not positive"),
        ({"fl_y": 3000}, "focal length is not believable"),
        ({"w": 10**300}, "w is wrong"),
        ({"w": -5}, "image size is not positive"),
        ({"w": [1]}, "w is wrong"),
        ({"cx": float("inf")}, "cx is not finite"),
        ({"cx": 1e9}, "principal point lies far outside the image"),
        ({"k1": -5.0}, "lens distortion is not believable"),
        ({"k1": 1e300}, "lens distortion is not believable"),
        ({"k4": 0.1}, "lens distortion k4 is not known"),
        ({"camera_model": "OPENCV_FISHEYE"}, "camera_model is not known"),
        ({"camera_model": 3}, "camera_model is wrong"),
        ({"depth_unit_scale_factor": 0}, "depth_unit_scale_factor is no positive number"),
        ({"depth_unit_scale_factor": float("nan")}, "depth_unit_scale_factor is no positive number"),
        ({"depth_unit_scale_factor": 1e300}, "depth_unit_scale_factor does not fit a head rig"),
        ({"frames": {}}, "frames is wrong"),
        ({"frames": []}, "too few views (0 frames, at least 3 are needed)"),
        ({"frames": [7]}, "frame 0: "),
        ({"frames": [{}] * 3000}, "frames is wrong"),
        ({"frames": [{"transform_matrix": "x"}]}, "frame 0: transform_matrix is wrong"),
    ],
)
def test_wrong_cameras(workspace, session, scan, change, what):
    edit(scan, lambda told: told.update(change))
    line = lines_of(workspace, session)
    assert line.startswith("001/smile/transforms.json")
    assert what in line


@pytest.mark.parametrize(
    ("layout", "told", "found"),
    [("depth_frames", "view_clouds", "transforms.json"), ("fused_mesh", "depth_frames", "scan.ply or scan.obj")],
)
def test_a_scan_of_another_layout(workspace, make_session, layout, told, found):
    session = make_session(layout=layout)
    shutil.rmtree(session / "001/neutral")
    make_session(layout=told)  # writes what is missing
    assert only_line(workspace, session) == (
        f"001/smile: scan has another layout than its session (session.json tells {told}, found is {found} "
        f"as in {layout}); put scans of layout {layout} into a session of their own"
    )


def mesh_with(session: Path, change) -> None:
    file = session / "001/smile/scan.ply"
    columns, faces = read_ply(file.read_bytes(), "x")
    file.write_bytes(write_ply(*change(columns, faces)))


def test_a_mesh_without_faces(workspace, make_session):
    session = make_session(layout="fused_mesh")
    mesh_with(session, lambda columns, faces: (columns, None))
    assert only_line(workspace, session) == (
        "001/smile/scan.ply: mesh has no faces; fuse the scan, or hand it over as view_clouds"
    )


def test_a_mesh_that_lost_its_faces(workspace, make_session):
    session = make_session(layout="fused_mesh")
    mesh_with(session, lambda columns, faces: (columns, faces[: len(faces) * 4 // 5]))
    assert only_line(workspace, session) == (
        "001/smile/scan.ply: mesh lacks faces (20% of its vertices belong to no face, at most 10% may); "
        "copy or export the scan again"
    )


def test_a_vertex_far_away(workspace, make_session):
    def throw(columns, faces):
        columns["x"][7] = 3e9
        return columns, faces

    session = make_session(layout="fused_mesh")
    mesh_with(session, throw)
    assert "points are too far away (a coordinate is 3e+06 m" in only_line(workspace, session)


def test_vertices_that_are_not_finite_are_left_out_and_counted(workspace, make_session):
    def spoil(columns, faces):
        columns["y"][:4] = [np.nan, np.inf, -np.inf, np.nan]
        return columns, faces

    session = make_session(layout="fused_mesh")
    mesh_with(session, spoil)
    assert ingest_session(workspace, session).rejected == []
    assert workspace.manifest("ingest", "001/smile").figures["vertices_not_finite"] == 4
    assert np.isfinite(load_capture(workspace, "001/smile").mesh.vertices).all()


def test_empty_views_are_named(workspace, session, scan):
    Image.fromarray(np.zeros((24, 32), np.uint16)).save(scan / "depth/003.png")
    ingest_session(workspace, session)
    assert workspace.manifest("ingest", "001/smile").figures["empty_views"] == ["depth/003.png"]


@pytest.mark.parametrize(
    "change",
    [
        {"subjects": None},
        {"subjects": {}},
        {"subjects": [1]},
        {"subjects": [{"id": 5, "expressions": ["a"]}]},
        {"subjects": [{"id": "001"}]},
        {"subjects": [{"id": "001", "expressions": "smile"}]},
        {"subjects": [{"id": "001", "expressions": ["x"] * 2000}]},
        {"subjects": [{"id": "001", "expressions": [], "consent": "yes"}]},
        {"subjects": [{"id": f"{i}", "expressions": []} for i in range(30_000)]},
        {"subjects": [{"id": f"{i}", "expressions": ["a"] * 999} for i in range(150)]},
        {"session_id": ""},
        {"session_id": "x" * 300},
        {"captured_at": "yesterday"},
        {"layout": "holograms"},
        {"unit": "inch"},
        {"schema_version": True},
        {"schema_version": "1"},
        {"rig": ["x"]},
        {"canonical_expression": 7},
        {"room": "x" * 100_000},
    ],
)
def test_wrong_types_in_the_session(workspace, make_session, change):
    session = make_session()
    note = json.loads((session / "session.json").read_text())
    (session / "session.json").write_text(json.dumps(note | change))
    report = ingest_session(workspace, session)
    [fault] = report.faults
    assert fault.startswith(f"{session}/session.json: ")
    assert fault.isprintable()
    assert len(fault) < 600
    assert (report.accepted, report.rejected, workspace.scans()) == ([], [], [])


def test_odd_values_in_what_is_kept(workspace, make_session):
    odd = {
        "nan": float("nan"),
        "inf": [float("inf")],
        "large": 10**400,
        "deep": [[[[[{"a": None}]]]]],
        "name": "K\u00fcche",
    }
    session = make_session(odd=odd)
    for _ in range(2):
        assert ingest_session(workspace, session).faults == []
    told = workspace.manifest("ingest", "001/smile").extra("told_of_session")["odd"]
    assert told == odd | {"nan": None, "inf": [None]}
    assert ingest_session(workspace, session).unchanged == ["001/neutral", "001/smile"]


def test_the_session_file_itself_is_no_folder(workspace, session):
    [fault] = ingest_session(workspace, session / "session.json").faults
    assert fault.endswith("no session.json found (it is a file); give the folder that holds it")


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00", b"PK\x03\x04", b"[" * 10_000, b'{"a": 1, "a": 2}', b"null"])
def test_a_session_file_that_is_no_json(workspace, session, content):
    (session / "session.json").write_bytes(content)
    [fault] = ingest_session(workspace, session).faults
    assert fault.startswith(f"{session}/session.json: ")
    assert fault.isprintable()


def test_a_scan_named_twice_is_one(workspace, make_session):
    subject = {"id": "001", "expressions": ["neutral", "smile", "smile"]}
    session = make_session(subjects_told=1)
    note = json.loads((session / "session.json").read_text())
    note["subjects"] = [subject, subject]
    (session / "session.json").write_text(json.dumps(note))
    report = ingest_session(workspace, session)
    assert (report.accepted, report.refused) == (["001/neutral", "001/smile"], [])
    note["subjects"] = [subject, subject | {"hair": "long"}]
    (session / "session.json").write_text(json.dumps(note))
    for _ in range(2):
        [refused] = ingest_session(workspace, session).refused
        assert refused.line == (
            f"{session}/session.json: subject 001 stands twice (with differing notes); tell of each subject once"
        )


def test_a_prefix_that_names_nobody(workspace, session):
    with pytest.raises(ConfigError, match=r"'\.\./': is no prefix for subjects"):
        ingest_session(workspace, session, "../")


def mutated(data: bytes, rng: np.random.Generator) -> bytes:
    """Some bytes changed, some cut out, some doubled, or the end missing."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 5))):
        at = int(rng.integers(len(changed)))
        kind = rng.integers(4)
        if kind == 0:
            changed[at] ^= 1 << int(rng.integers(8))
        elif kind == 1:
            del changed[at : at + int(rng.integers(1, 20))]
        elif kind == 2:
            changed[at:at] = changed[at : at + int(rng.integers(1, 20))]
        else:
            changed[at : at + 4] = rng.bytes(4)
        if len(changed) < 2:
            break
    return bytes(changed[: int(rng.integers(1, len(changed)))] if rng.random() < 0.1 else changed)


@pytest.mark.parametrize(("layout", "name"), [*FILES, ("depth_frames", "../../session.json")])
def test_mutated_files_are_read_or_named(workspace, make_session, layout, name):
    session = make_session(layout=layout)
    file = put(session, layout, name)
    if name == "scan.obj":
        columns, faces = read_ply((session / "001/neutral/scan.ply").read_bytes(), "x")
        rows = [f"v {x:.5f} {y:.5f} {z:.5f}" for x, y, z in zip(columns["x"], columns["y"], columns["z"], strict=True)]
        file.write_text("\n".join([*rows, *(f"f {a + 1} {b + 1} {c + 1}" for a, b, c in faces), ""]))
    whole = file.read_bytes()
    rng = np.random.default_rng(7)
    for _ in range(12):
        file.write_bytes(mutated(whole, rng))
        report = ingest_session(workspace, session)
        reasons = [reason for key in report.rejected for reason in workspace.manifest("ingest", key).reasons]
        lines = [*report.faults, *reasons, *(refusal.line for refusal in report.refused)]
        assert all(line.isprintable() and ": " in line and "; " in line for line in lines)
        if name in ("depth/001.png", "transforms.json", "scan.ply"):
            assert report.accepted in ([], ["001/neutral"], ["001/smile"], ["001/neutral", "001/smile"])
        if name == "depth/001.png":
            assert report.rejected == ["001/smile"]
