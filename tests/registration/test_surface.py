"""Closest points and rays agree with brute force and with trimesh."""

import numpy as np
import pytest
import trimesh

from registration.mesh import Mesh
from registration.surface import SurfaceIndex


@pytest.fixture
def ball():
    mesh = trimesh.creation.icosphere(subdivisions=2, radius=50.0)
    return Mesh.of(mesh.vertices, mesh.faces)


def test_closest_agrees_with_brute_force(ball):
    points = np.random.default_rng(0).normal(0, 60, (200, 3))
    found = SurfaceIndex(ball).closest(points)
    place, distance, _ = trimesh.proximity.closest_point_naive(trimesh.Trimesh(ball.vertices, ball.faces), points)
    assert np.allclose(found.distance_mm, distance, atol=1e-3)
    assert np.allclose(found.points, place, atol=1e-2)


def test_bary_and_faces_name_the_point(ball):
    found = SurfaceIndex(ball).closest(np.random.default_rng(1).normal(0, 60, (50, 3)))
    rebuilt = np.einsum("nk,nkc->nc", found.bary, ball.vertices[ball.faces[found.faces]].astype(float))
    assert np.allclose(rebuilt, found.points, atol=1e-9)
    assert np.allclose(found.bary.sum(1), 1)


def test_rays(ball):
    index = SurfaceIndex(ball)
    directions = np.random.default_rng(2).normal(size=(50, 3))
    found = index.cast(np.zeros((50, 3)), directions)
    assert np.all((found.distance_mm > 48) & (found.distance_mm <= 50.01))
    away = index.cast(np.full((1, 3), 100.0), np.ones((1, 3)))
    assert np.isinf(away.distance_mm[0])


def test_boundary_is_known(ball):
    half = ball.select_vertices(ball.vertices[:, 2] > 0)
    index = SurfaceIndex(half)
    beyond = index.closest(np.array([[60.0, 0, -40], [0, 0, 60.0]]))
    assert index.on_boundary(beyond.faces, beyond.bary).tolist() == [True, False]


def test_cloud_is_refused():
    with pytest.raises(ValueError, match="faces"):
        SurfaceIndex(Mesh.of(np.zeros((3, 3)), np.zeros((0, 3))))
