"""A head is found in few noisy points of one view, by what its face explains; smooth things explain nothing."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.optimize import minimize
from scipy.spatial.transform import Rotation

from registration.cloud_noise import cloud_noise_mm
from registration.mesh import sample_surface, transform_points
from registration.point_fit import PointModel, fit_points, quadric_distance, relief_explained
from registration.point_search import search_points
from registration.procedural_head import draw_person, head_template
from registration.rendered_points import single_view_cloud

AXES_MM = np.array([75.0, 110.0, 90.0])


def _ellipsoid(count: int, seed: int = 0) -> np.ndarray:
    direction = np.random.default_rng(seed).normal(size=(count, 3))
    return AXES_MM * direction / np.linalg.norm(direction, axis=1, keepdims=True)


def _turned(seed: int) -> np.ndarray:
    T = np.eye(4)
    T[:3, :3] = Rotation.random(random_state=seed).as_matrix()
    T[:3, 3] = np.random.default_rng(seed).uniform(-500, 500, 3)
    return T


def test_points_of_a_quadric_lie_on_it():
    points = transform_points(_turned(0), _ellipsoid(300))
    assert np.abs(quadric_distance(points)).max() < 1e-3
    plane = np.random.default_rng(1).uniform(-100, 100, (300, 3)) * [1, 1, 0]
    assert np.abs(quadric_distance(plane)).max() < 1e-3


def test_distance_to_a_quadric_is_that_of_a_slow_search():
    points = np.concatenate([_ellipsoid(400), 1.04 * _ellipsoid(8, 5)])

    def nearest(point: np.ndarray) -> float:
        def away(angles: np.ndarray) -> float:
            a, b = angles
            on = AXES_MM * [np.cos(a) * np.cos(b), np.sin(a), np.cos(a) * np.sin(b)]
            return float(((on - point) ** 2).sum())

        start = point / AXES_MM / np.linalg.norm(point / AXES_MM)
        return float(np.sqrt(minimize(away, [np.arcsin(start[1]), np.arctan2(start[2], start[0])]).fun))

    slow = [nearest(point) for point in points[400:]]
    np.testing.assert_allclose(np.abs(quadric_distance(points)[400:]), slow, rtol=0.1)


def test_what_is_explained_does_not_depend_on_the_pose():
    template = head_template()
    points, _, _ = sample_surface(template.mesh, 3000, np.random.default_rng(0))
    front = points[(points[:, 2] > 60) & (np.abs(points[:, 1]) < 70)]
    off = np.random.default_rng(1).normal(size=len(front))
    explained = relief_explained(front, off)
    assert explained > 0.8
    assert relief_explained(transform_points(_turned(3), front), off) == pytest.approx(explained, abs=1e-6)
    assert relief_explained(_ellipsoid(500), np.full(500, 1.0)) < 0


@pytest.mark.parametrize("noise", [0.0, 1.5])
def test_a_cloud_tells_its_own_noise(noise):
    rng = np.random.default_rng(4)
    for points, out in (
        (_ellipsoid(400), _ellipsoid(400) / AXES_MM**2),
        (_ellipsoid(3000), _ellipsoid(3000) / AXES_MM**2),
    ):
        out = out / np.linalg.norm(out, axis=1, keepdims=True)
        told = cloud_noise_mm(points + noise * rng.normal(size=(len(points), 1)) * out)
        assert told == pytest.approx(noise, rel=0.15, abs=0.25)
    assert cloud_noise_mm(points[:20]) == 0


def test_noise_is_no_relief_that_a_face_leaves():
    template = head_template()
    points, _, _ = sample_surface(template.mesh, 3000, np.random.default_rng(0))
    front = points[(points[:, 2] > 60) & (np.abs(points[:, 1]) < 70)][:250]
    off = 1.8 * np.random.default_rng(1).normal(size=len(front))
    noisy = front + off[:, None] * [0, 0, 1]
    bare, told = relief_explained(noisy, off), relief_explained(noisy, off, 1.8)
    assert bare + 0.02 < told < 1
    # a ball is no face however noisy it is said to be: what explains no more than a quadric does stays at nothing
    ball = _ellipsoid(300) + np.random.default_rng(2).normal(scale=1.5, size=(300, 3))
    for noise in (0.0, 1.5, 9.0):
        assert relief_explained(ball, quadric_distance(ball), noise) == pytest.approx(0, abs=1e-9)
        assert relief_explained(ball, 1.2 * quadric_distance(ball), noise) < 0


def test_a_shifted_template_comes_back():
    template = head_template()
    model = PointModel.of(template)
    points, _, _ = sample_surface(template.mesh, 600, np.random.default_rng(0))
    wrong = np.eye(4)
    wrong[:3, :3], wrong[:3, 3] = Rotation.from_euler("xyz", [6, -5, 4], degrees=True).as_matrix(), [8, -6, 5]
    fit = fit_points(points, model, wrong, (15.0,) * 4 + (8.0,) * 4 + (4.0,) * 4, 0)
    np.testing.assert_allclose(fit.T_world_from_head, np.eye(4), atol=0.5)
    assert fit.cost < 0.05


@pytest.mark.parametrize("yaw_deg", [0, 75])
def test_few_noisy_points_of_one_view_in_metres(yaw_deg):
    template = head_template()
    person = template.mesh.with_vertices(draw_person(np.random.default_rng(yaw_deg)).vertices("neutral_open"))
    yaw = np.radians(yaw_deg)
    direction = np.array([np.sin(yaw), 0.1, np.cos(yaw)])
    cloud = single_view_cloud(person, None, 600, np.random.default_rng(2), direction, noise_mm=1.0)
    above = cloud.points_mm[cloud.points_mm[:, 1] > -95]
    T = _turned(yaw_deg + 4)
    found = search_points(transform_points(T, above) / 1000, None, template, 0, (1.0, 10.0, 1000.0))
    assert found.accepted, found.reason
    assert found.unit_to_mm == 1000.0
    off = np.linalg.inv(T) @ found.T_world_from_head
    assert np.degrees(Rotation.from_matrix(off[:3, :3]).magnitude()) < 10
    assert np.linalg.norm(off[:3, 3]) < 10


def test_things_and_too_few_points_are_no_head():
    template = head_template()
    found = search_points(_ellipsoid(2000), None, template)
    assert not found.accepted
    assert "relief" in found.reason
    person = template.mesh.with_vertices(draw_person(np.random.default_rng(11)).vertices("neutral_open"))
    behind, _, _ = sample_surface(person.select_vertices(person.vertices[:, 2] < -10), 2000, np.random.default_rng(0))
    assert not search_points(behind, None, template).accepted
    assert "too few" in search_points(np.full((500, 3), np.nan), None, template).reason
