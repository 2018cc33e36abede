import numpy as np
import open3d as o3d
import pytest

from registration.mesh import Mesh
from registration.rendered_points import (
    FIT_CAMERA,
    FIT_DISTANCE_MM,
    fibonacci_directions,
    frontal_direction,
    render_points,
    single_view_cloud,
    visible_samples,
)
from storage.errors import ScanRejected

RADIUS = 90.0


def sphere(radius: float = RADIUS) -> Mesh:
    ball = o3d.geometry.TriangleMesh.create_sphere(radius, 80)
    return Mesh.of(np.asarray(ball.vertices), np.asarray(ball.triangles))


def test_directions_are_even_and_unit() -> None:
    directions = fibonacci_directions(500)
    np.testing.assert_allclose(np.linalg.norm(directions, axis=1), 1)
    np.testing.assert_allclose(directions.mean(0), 0, atol=0.01)


def test_views_come_from_before_the_face() -> None:
    for seed in range(50):
        direction = frontal_direction(np.random.default_rng(seed))
        assert 0.6 < direction[2] < 0.9
        assert abs(direction[1]) < 0.55


def test_a_camera_sees_the_near_side_of_a_sphere() -> None:
    eye = FIT_DISTANCE_MM * np.array([0.0, 0.0, 1.0])
    seen = render_points(sphere(), eye, FIT_CAMERA)
    np.testing.assert_allclose(np.linalg.norm(seen.points_mm, axis=1), RADIUS, atol=0.2)
    np.testing.assert_allclose(seen.normals, seen.points_mm / RADIUS, atol=0.05)
    # the horizon of a sphere lies where the ray is a tangent
    assert seen.points_mm[:, 2].min() == pytest.approx(RADIUS**2 / FIT_DISTANCE_MM, abs=2.0)
    # pixels are 650 / 1500 mm wide at the origin; the sphere's outline is a circle of that many pixels
    outline_px = FIT_CAMERA.fx * RADIUS / np.sqrt(FIT_DISTANCE_MM**2 - RADIUS**2)
    assert len(seen.points_mm) == pytest.approx(np.pi * outline_px**2, rel=0.01)


def test_the_camera_is_upright_and_not_mirrored() -> None:
    right_up = Mesh.of([[20, 20, 0], [40, 20, 0], [40, 40, 0], [20, 40, 0]], [[0, 1, 2], [0, 2, 3]])
    seen = render_points(right_up, np.array([0.0, 0, 650]), FIT_CAMERA)
    assert len(seen.points_mm) == pytest.approx((20 * 1500 / 650) ** 2, rel=0.05)
    assert seen.points_mm.min(0) == pytest.approx([20, 20, 0], abs=0.5)


def test_back_faces_and_hidden_layers_are_not_seen() -> None:
    shell, core = sphere(90.0), sphere(60.0)
    both = Mesh.of(
        np.concatenate([shell.vertices, core.vertices]), np.concatenate([shell.faces, core.faces + len(shell.vertices)])
    )
    assert np.linalg.norm(visible_samples(both, None, 2000, np.random.default_rng(0), 0.1).points_mm, axis=1).min() > 89
    open_half = Mesh.of(shell.vertices, shell.faces[(shell.vertices[shell.faces][:, :, 2] < 0).all(1)])
    assert len(render_points(open_half, np.array([0.0, 0, 650]), FIT_CAMERA, 0.2).points_mm) == 0


def test_single_view_is_cut_seeded_and_of_the_asked_size() -> None:
    plane = np.array([0.0, 1.0, 0.0, 20.0])  # keeps y >= -20
    cloud = single_view_cloud(sphere(), plane, 2500, np.random.default_rng(5))
    again = single_view_cloud(sphere(), plane, 2500, np.random.default_rng(5))
    assert cloud.points_mm.shape == cloud.normals.shape == (2500, 3)
    assert cloud.points_mm[:, 1].min() >= -20
    np.testing.assert_array_equal(cloud.points_mm, again.points_mm)


def test_noise_lies_along_the_rays() -> None:
    front = np.array([0.0, 0.0, 1.0])
    clean = single_view_cloud(sphere(), None, 4000, np.random.default_rng(5), front)
    noisy = single_view_cloud(sphere(), None, 4000, np.random.default_rng(5), front, noise_mm=1.5)
    away = noisy.points_mm - clean.points_mm
    assert np.linalg.norm(away, axis=1).std() < 1.5
    assert np.sqrt((away**2).sum(1).mean()) == pytest.approx(1.5, rel=0.05)
    ray = clean.points_mm - clean.eye_mm
    np.testing.assert_allclose(np.cross(away, ray), 0, atol=1e-6)


def test_nothing_above_the_throat_is_rejected() -> None:
    with pytest.raises(ScanRejected, match="001/smile"):
        single_view_cloud(sphere(), np.array([0.0, 1.0, 0.0, -200.0]), 10, np.random.default_rng(0), where="001/smile")
    empty = Mesh.of(np.zeros((0, 3)), np.zeros((0, 3)))
    assert len(visible_samples(empty, None, 10, np.random.default_rng(0), 0.1).points_mm) == 0


def test_samples_cover_the_whole_head() -> None:
    seen = visible_samples(sphere(), None, 20000, np.random.default_rng(0), 0.25)
    assert len(seen.points_mm) == 20000
    for axis in range(3):
        assert seen.points_mm[:, axis].min() < -0.95 * RADIUS
        assert seen.points_mm[:, axis].max() > 0.95 * RADIUS
