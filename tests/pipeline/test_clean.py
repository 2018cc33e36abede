from dataclasses import replace

import numpy as np
import pytest

from pipeline.clean import clean_scan
from pipeline.clean_config import CleanConfig, CleanThresholds, judge_clean
from registration.mesh import Mesh, boundary_vertices, mesh_to_ply, transform_points
from registration.procedural_head import head_template
from registration.surface import SurfaceIndex
from registration.views import Capture
from storage.errors import ScanRejected
from tests.registration.mesh_rig import camera_poses, see, shaken


@pytest.fixture(scope="module")
def capture() -> Capture:
    """The template itself, seen by 9 small views whose poses are told wrongly."""
    true = camera_poses(9, target=(0, 0, 30))
    views = see(head_template().mesh, true, noise_mm=0.1, width=200, height=160)
    told = shaken(true, 1.0, 0.2)
    numbered = (np.full((160, 200, 3), k, np.uint8) for k in range(9))
    placed = zip(views, told, numbered, strict=True)
    return Capture("s/e", "depth_frames", tuple(replace(v, T_world_from_camera=T, color=c) for v, T, c in placed))


class _Knowing:
    """Tells where the true landmarks are in the picture whose number stands in its colour."""

    def detect(self, color):
        T = camera_poses(9, target=(0, 0, 30))[int(color[0, 0, 0])]
        template = head_template()
        seen = transform_points(np.linalg.inv(T), template.mesh.vertices[template.landmarks])
        lens = see(head_template().mesh, [T], width=200, height=160)[0].intrinsics
        at = seen[:, :2] / seen[:, 2:] * [lens.fx, lens.fy] + [lens.cx, lens.cy]
        return np.column_stack([at, np.ones(68)])


@pytest.fixture(scope="module")
def cleaned(capture):
    return clean_scan(capture, head_template(), CleanConfig(), detector=_Knowing())


def test_landmarks_of_colour_frames_come_with_the_scan(cleaned):
    template = head_template()
    found = transform_points(np.linalg.inv(cleaned.T_world_from_head), cleaned.landmarks.points_mm)
    away = np.linalg.norm(found - template.mesh.vertices[template.landmarks], axis=1)[cleaned.landmarks.known]
    assert len(away) >= 6  # few of these small views face the face
    assert np.median(away) < 3.0  # hidden ones are told too, and the search places the head to a millimetre or two


def test_the_surface_is_the_heads(cleaned):
    head = transform_points(np.linalg.inv(cleaned.T_world_from_head), cleaned.mesh.vertices)
    above = head[:, 1] > -90
    distance = SurfaceIndex(head_template().mesh).closest(head[above]).distance_mm
    assert np.median(np.abs(distance)) < 1.0  # the head's place is that of the search, good to a millimetre or two
    assert cleaned.figures["coverage"] > 0.8
    assert cleaned.figures["pose_residual_mm"] < 0.3
    assert judge_clean(cleaned.figures, CleanThresholds()) == []


def test_the_companion_is_closed_and_the_mesh_carries_its_confidence(cleaned):
    assert not boundary_vertices(cleaned.watertight.faces, len(cleaned.watertight.vertices)).any()
    columns = cleaned.mesh.attributes
    assert {name: columns[name].dtype.str[1:] for name in ("views", "spread_mm", "observed")} == {
        "views": "u1",
        "spread_mm": "f4",
        "observed": "u1",
    }
    assert (columns["views"][columns["observed"] > 0] >= 1).all()
    assert (columns["views"][columns["observed"] == 0] == 0).all()


def test_same_input_same_bytes_whatever_the_threads(capture, cleaned):
    again = clean_scan(capture, head_template(), CleanConfig(), threads=2)
    assert mesh_to_ply(again.mesh) == mesh_to_ply(cleaned.mesh)
    assert mesh_to_ply(again.watertight) == mesh_to_ply(cleaned.watertight)
    assert again.picture.tobytes() == cleaned.picture.tobytes()
    assert again.confidence.tobytes() == cleaned.confidence.tobytes()


def test_views_out_of_place_or_empty_are_left_out_and_named(capture):
    views = list(capture.depth_views)
    wrong = views[3].T_world_from_camera.copy()
    wrong[0, 3] += 300
    views[3] = replace(views[3], T_world_from_camera=wrong)
    views[7] = replace(views[7], depth_mm=np.zeros_like(views[7].depth_mm))
    scan = clean_scan(replace(capture, depth_views=tuple(views)), head_template(), CleanConfig())
    assert scan.left_out[0] == "007: no depth"
    assert scan.left_out[1].startswith("003: disagrees with all other views")
    assert len(scan.left_out) == 2
    assert scan.figures["views_used"] == 7


def test_a_chair_is_no_head():
    chair = Mesh.of(
        np.array([[x, y, z] for x in (-190, 190) for y in (-210, 210) for z in (-10, 10)]),
        [
            [0, 1, 3],
            [0, 3, 2],
            [4, 6, 7],
            [4, 7, 5],
            [0, 4, 5],
            [0, 5, 1],
            [2, 3, 7],
            [2, 7, 6],
            [0, 2, 6],
            [0, 6, 4],
            [1, 5, 7],
            [1, 7, 3],
        ],
    )
    views = see(chair, camera_poses(9), width=200, height=160)
    with pytest.raises(ScanRejected, match=r"s/e: no head \("):
        clean_scan(Capture("s/e", "depth_frames", views), head_template(), CleanConfig())


def test_a_fused_mesh_keeps_its_own_surface():
    template = head_template()
    turn = np.array([[0.0, 0, 1, 5], [1, 0, 0, -7], [0, 1, 0, 30], [0, 0, 0, 1]])
    told = template.mesh.transformed(turn)
    scan = clean_scan(Capture("s/e", "fused_mesh", mesh=told), template, CleanConfig())
    assert not boundary_vertices(scan.watertight.faces, len(scan.watertight.vertices)).any()
    back = transform_points(np.linalg.inv(turn), scan.mesh.vertices)
    assert np.abs(back[:, None, :1] - template.mesh.vertices[None, :5, :1]).min() >= 0
    assert judge_clean(scan.figures, CleanThresholds()) == []
    np.testing.assert_allclose(scan.T_world_from_head, turn, atol=3.0)


def test_verdicts_name_figure_and_limit():
    figures = {
        "views": 10,
        "views_used": 4,
        "coverage": 0.4,
        "face_coverage": 0.9,
        "spread_median_mm": 3.0,
        "pose_shift_median_mm": 1.0,
        "floating_share": 0.5,
    }
    reasons = judge_clean(figures, CleanThresholds())
    assert reasons == [
        "6 of 10 views were left out, at most 50% may be",
        "only 40% of the head's directions were seen, at least 60% are wanted",
        "the views disagree by 3.00 mm in the median, at most 2 mm are allowed",
        "50% of the surface floated and was dropped, at most 30% may",
    ]
