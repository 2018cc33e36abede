import json
from pathlib import Path

import numpy as np
import open3d as o3d
import pytest
from PIL import Image

from pipeline.rig import RigConfig, simulate
from registration.procedural_expressions import EXPRESSIONS
from registration.procedural_head import head_template
from storage.errors import ConfigError
from storage.ply import read_ply

SMALL = {"views": 3, "width": 96, "height": 128}


def small(**changes: object) -> RigConfig:
    return RigConfig.model_validate(SMALL | changes)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def studio(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("rig") / "studio"
    simulate(out, 1, 2, 7, small())
    return out


def test_the_same_seed_gives_the_same_bytes(studio: Path, tmp_path: Path) -> None:
    told: list[str] = []
    simulate(tmp_path, 1, 2, 7, small(), told.append)
    assert contents(tmp_path) == contents(studio)
    assert told == ["001/neutral_open", "001/neutral"]
    simulate(tmp_path / "other", 1, 1, 8, small())
    assert (
        contents(tmp_path / "other" / "session")["001/neutral_open/depth/000.png"]
        != contents(studio / "session")["001/neutral_open/depth/000.png"]
    )


def test_writes_a_session_of_depth_frames(studio: Path) -> None:
    note = json.loads((studio / "session/session.json").read_text())
    assert note["schema_version"] == 1
    assert note["layout"] == "depth_frames"
    assert note["canonical_expression"] == "neutral_open"
    assert note["subjects"][0]["expressions"] == ["neutral_open", "neutral"]
    told = json.loads((studio / "session/001/neutral/transforms.json").read_text())
    assert len(told["frames"]) == 3
    depth = np.asarray(Image.open(studio / "session/001/neutral" / told["frames"][0]["depth_file_path"]))
    assert depth.dtype == np.uint16
    assert depth.shape == (told["h"], told["w"]) == (128, 96)


def test_depth_lies_on_the_true_surface(studio: Path) -> None:
    scan, truth = studio / "session/001/neutral", np.load(studio / "truth/001/neutral.npz")
    told = json.loads((scan / "transforms.json").read_text())
    depth = np.asarray(Image.open(scan / "depth/000.png")) * told["depth_unit_scale_factor"] * 1000
    v, u = np.nonzero((depth > 0) & (depth < 700))
    z = depth[v, u]
    camera = np.stack([(u + 0.5 - told["cx"]) / told["fl_x"] * z, -(v + 0.5 - told["cy"]) / told["fl_y"] * z, -z], 1)
    pose = truth["cameras"][0]
    points = camera @ pose[:3, :3].T + pose[:3, 3]
    scene = o3d.t.geometry.RaycastingScene()
    scene.add_triangles(truth["surface_vertices"], truth["surface_faces"].astype(np.uint32))
    gap = scene.compute_distance(points.astype(np.float32)).numpy()
    on_head = points[:, 1] > truth["vertices"][:, 1].min() + 60.0  # above the shoulders
    assert np.median(gap[on_head]) < 0.1
    assert np.percentile(gap[on_head], 90) < 0.5
    off = np.array(told["frames"][0]["transform_matrix"])[:3, 3] * 1000 - pose[:3, 3]
    assert 0.01 < np.linalg.norm(off) < 2.0


def test_truth_is_in_the_templates_vertices(studio: Path) -> None:
    truth = np.load(studio / "truth/001/neutral_open.npz")
    template = head_template()
    n = len(template.mesh.vertices)
    assert truth["vertices"].shape == (n, 3)
    np.testing.assert_array_equal(truth["landmarks"], truth["vertices"][template.landmarks])
    np.testing.assert_array_equal(truth["surface_vertices"][:n], truth["vertices"])
    np.testing.assert_array_equal(truth["face_mask"], template.face_mask)
    assert truth["vertex_views"].shape == (n,)
    assert len(truth["surface_faces"]) == len(truth["surface_part"]) == len(truth["surface_views"])
    assert set(np.unique(truth["surface_part"])) == {0, 1, 2}
    R = truth["head_to_world"][:3, :3]
    np.testing.assert_allclose(R @ R.T, np.eye(3), atol=1e-12)
    skull = (template.mesh.vertices[:, 1] > 40) & (template.mesh.vertices[:, 2] < 0)
    rigid = [np.load(studio / f"truth/001/{e}.npz") for e in ("neutral", "neutral_open")]
    heads = [np.linalg.solve(t["head_to_world"], np.c_[t["vertices"], np.ones(n)].T).T[skull] for t in rigid]
    np.testing.assert_allclose(heads[0], heads[1], atol=0.3)


def test_the_head_does_not_depend_on_rig_or_layout(studio: Path, tmp_path: Path) -> None:
    config = small(profile="phone", layout="view_clouds", unit="cm")
    session = simulate(tmp_path, 1, ["neutral"], 7, config)
    here, there = np.load(tmp_path / "truth/001/neutral.npz"), np.load(studio / "truth/001/neutral.npz")
    np.testing.assert_array_equal(here["vertices"], there["vertices"])
    cloud, _ = read_ply((session / "001/neutral/views/000.ply").read_bytes(), "000.ply")
    assert set(cloud) == {"x", "y", "z", "red", "green", "blue"}
    assert 50 < np.linalg.norm(here["cameras"][0][:3, 3]) / 10 < 80
    assert np.median(np.linalg.norm(np.stack([cloud[a] for a in "xyz"], 1), axis=1)) < 60  # centimetres


def test_a_fused_mesh_holds_what_was_seen(tmp_path: Path) -> None:
    session = simulate(tmp_path, 1, ["smile"], 7, small(layout="fused_mesh", world="any"))
    _, faces = read_ply((session / "001/smile/scan.ply").read_bytes(), "scan.ply")
    truth = np.load(tmp_path / "truth/001/smile.npz")
    assert len(faces) == (truth["surface_views"] > 0).sum()
    assert json.loads((session / "session.json").read_text())["canonical_expression"] == "smile"


def test_a_session_grows(studio: Path, tmp_path: Path) -> None:
    simulate(tmp_path, 1, ["neutral_open"], 7, small())
    simulate(tmp_path, 1, ["neutral"], 7, small())
    assert contents(tmp_path) == contents(studio)


def test_a_stopped_call_goes_on(studio: Path, tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(key: str) -> None:
        raise StoppedError(key)

    with pytest.raises(StoppedError, match="001/neutral_open"):
        simulate(tmp_path, 1, 2, 7, small(), stop)
    assert not (tmp_path / "session/session.json").exists()
    first = (tmp_path / "truth/001/neutral_open.npz").stat().st_mtime_ns
    simulate(tmp_path, 1, 2, 7, small())
    assert (tmp_path / "truth/001/neutral_open.npz").stat().st_mtime_ns == first
    assert contents(tmp_path) == contents(studio)


def test_another_rig_is_kept_out(studio: Path) -> None:
    with pytest.raises(ConfigError, match="seed 7, not 8"):
        simulate(studio, 1, 2, 8, small())
    with pytest.raises(ConfigError, match="profile studio, not phone"):
        simulate(studio, 1, 2, 7, small(profile="phone"))


def test_what_can_not_be_simulated_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="has no expression 'yawn'"):
        simulate(tmp_path, 1, ["yawn"], 0, small())
    with pytest.raises(ConfigError, match="no expression"):
        simulate(tmp_path, 1, 0, 0, small())
    with pytest.raises(ConfigError, match=f"100 expressions; ask for at most {len(EXPRESSIONS)}"):
        simulate(tmp_path, 1, 100, 0, small())
    with pytest.raises(ConfigError, match="0 subjects"):
        simulate(tmp_path, 0, 1, 0, small())
