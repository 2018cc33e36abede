from dataclasses import replace

import numpy as np
import pytest

from registration.depth import fit_views
from registration.pose_refinement import overlapping_pairs, refine_poses, sample_points
from tests.registration.mesh_rig import camera_poses, see, shaken, sphere


def fitted_with_errors(position_mm, angle_deg, count=10, noise_mm=0.05, move=None):
    true = camera_poses(count)
    views = see(sphere(bumps_mm=5.0, resolution=60), true, noise_mm=noise_mm)
    told = shaken(true, position_mm, angle_deg)
    if move is not None:
        told[move[0]] = move[1] @ told[move[0]]
    views = [replace(view, T_world_from_camera=T) for view, T in zip(views, told, strict=True)]
    return true, fit_views(views, [view.depth_mm > 0 for view in views])


def disagreement_mm(poses, true):
    """How far the views' pictures of one set of points lie apart."""
    points = np.random.default_rng(0).normal(0, 60, (40, 3))
    relative = poses @ np.linalg.inv(true)
    seen = np.einsum("vab,nb->vna", relative[:, :3, :3], points) + relative[:, None, :3, 3]
    return np.linalg.norm(seen - seen.mean(0), axis=-1).mean(1)


@pytest.mark.parametrize(("position_mm", "angle_deg", "limit_mm"), [(0.3, 0.05, 0.2), (3.0, 0.5, 0.2)])
def test_brings_shaken_views_together(position_mm, angle_deg, limit_mm):
    true, views = fitted_with_errors(position_mm, angle_deg)
    before = disagreement_mm(views.T_world_from_camera, true).max()
    found = refine_poses(views, np.zeros(3))
    assert found.left_out == ()
    assert disagreement_mm(found.T_world_from_camera, true).max() < min(limit_mm, 0.3 * before)


def test_right_poses_stay_where_they_are():
    true, views = fitted_with_errors(0.0, 0.0, noise_mm=0.0)
    found = refine_poses(views, np.zeros(3))
    assert found.shift_mm.max() < 0.15
    assert found.turn_deg.max() < 0.1
    assert disagreement_mm(found.T_world_from_camera, true).max() < 0.2


def _turn(degrees):
    T = np.eye(4)
    a = np.radians(degrees)
    T[:3, :3] = [[np.cos(a), 0, np.sin(a)], [0, 1, 0], [-np.sin(a), 0, np.cos(a)]]
    return T


def _shift(mm):
    T = np.eye(4)
    T[0, 3] = mm
    return T


@pytest.mark.parametrize("move", [_shift(300.0), _turn(20.0)], ids=["moved 300 mm", "turned 20 degrees"])
def test_a_view_out_of_place_is_left_out_alone(move):
    true, views = fitted_with_errors(0.3, 0.05, move=(4, move))
    found = refine_poses(views, np.zeros(3))
    assert found.left_out == (4,)
    others = [v for v in range(10) if v != 4]
    assert disagreement_mm(found.T_world_from_camera[others], true[others]).max() < 0.2


def test_a_view_told_30_mm_wrong_does_not_drag_the_world_along():
    true, views = fitted_with_errors(0.3, 0.05, move=(4, _shift(30.0)))
    found = refine_poses(views, np.zeros(3))
    assert found.left_out == ()
    points = np.random.default_rng(0).normal(0, 60, (40, 3))
    relative = found.T_world_from_camera @ np.linalg.inv(true)
    seen = np.einsum("vab,nb->vna", relative[:, :3, :3], points) + relative[:, None, :3, 3]
    away_mm = np.linalg.norm(seen.mean(0) - points, axis=1)
    assert away_mm.mean() < 0.5


def test_views_of_opposite_sides_are_no_pair():
    _, views = fitted_with_errors(0.3, 0.05, count=12)
    samples = [sample_points(views, v, 800) for v in range(12)]
    pairs = overlapping_pairs(views, views.T_world_from_camera, ~np.eye(12, dtype=bool), samples, np.zeros(3), 40.0, 1)
    eyes = views.T_world_from_camera[:, :3, 3]
    eyes = eyes / np.linalg.norm(eyes, axis=1, keepdims=True)
    apart_deg = np.degrees(np.arccos(np.clip(eyes @ eyes.T, -1, 1)))
    assert pairs[(apart_deg > 1) & (apart_deg < 90)].all()
    assert (apart_deg > 155).any()
    assert not pairs[apart_deg > 155].any()


def test_threads_change_nothing():
    _, views = fitted_with_errors(2.0, 0.4, count=6)
    one, two = (refine_poses(views, np.zeros(3), threads=n) for n in (1, 2))
    assert one.T_world_from_camera.tobytes() == two.T_world_from_camera.tobytes()
