import math

import numpy as np
import open3d as o3d
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial import cKDTree

from model.metrics import bootstrap_interval, compare_surfaces, f_score, in_region, ratio_interval
from registration.mesh import Mesh, sample_surface, vertex_normals
from registration.rendered_points import RenderedPoints


def sphere(radius: float, resolution: int = 60) -> Mesh:
    ball = o3d.geometry.TriangleMesh.create_sphere(radius, resolution)
    return Mesh.of(np.asarray(ball.vertices), np.asarray(ball.triangles))


def samples(mesh: Mesh, count: int, seed: int) -> RenderedPoints:
    points, face, bary = sample_surface(mesh, count, np.random.default_rng(seed))
    normals = np.einsum("nk,nkc->nc", bary, vertex_normals(mesh.vertices, mesh.faces)[mesh.faces[face]])
    return RenderedPoints(points, normals / np.linalg.norm(normals, axis=1, keepdims=True), np.zeros_like(points))


def test_two_spheres() -> None:
    small, large = sphere(50.0), sphere(53.0)
    error = compare_surfaces(small, samples(small, 20000, 0), large, samples(large, 20000, 1))
    assert error.point_to_triangle_mm == pytest.approx(3.0, abs=0.05)
    assert error.accuracy_median_mm == pytest.approx(3.0, abs=0.05)
    assert error.completeness_p95_mm == pytest.approx(3.0, abs=0.1)
    # the nearest of samples about 0.6 mm apart lies a little farther than the surface
    assert 3.0 < error.chamfer_l1_mm < 3.2
    assert error.chamfer_l2_mm2 == pytest.approx(error.chamfer_l1_mm**2, rel=0.05)
    assert error.normal_consistency > 0.999
    assert error.f_score == {1.0: 0.0, 5.0: 1.0, 10.0: 1.0, 20.0: 1.0}
    assert all(math.isfinite(value) for value in error.as_figures().values())
    assert set(error.as_figures()) >= {"f_score_1mm", "f_score_20mm", "chamfer_l1_mm"}


def test_equal_surfaces_have_the_sampling_floor_alone() -> None:
    ball = sphere(50.0)
    error = compare_surfaces(ball, samples(ball, 10000, 0), ball, samples(ball, 10000, 1))
    assert error.point_to_triangle_mm < 1e-4
    floor = 0.5 * math.sqrt(4 * math.pi * 50.0**2 / 10000)
    assert error.chamfer_l1_mm == pytest.approx(floor, rel=0.1)


def test_against_a_slow_chamfer() -> None:
    a, b = sphere(40.0, 8), sphere(45.0, 10)
    p, q = samples(a, 200, 0), samples(b, 300, 1)
    distance = np.linalg.norm(p.points_mm[:, None] - q.points_mm[None], axis=2)
    error = compare_surfaces(a, p, b, q)
    assert error.chamfer_l1_mm == pytest.approx(0.5 * (distance.min(0).mean() + distance.min(1).mean()))
    assert error.chamfer_l2_mm2 == pytest.approx(0.5 * ((distance.min(0) ** 2).mean() + (distance.min(1) ** 2).mean()))
    assert cKDTree(q.points_mm).query(p.points_mm)[0].mean() == pytest.approx(distance.min(1).mean())


def test_nothing_to_compare_is_a_failure_to_be_counted() -> None:
    ball = sphere(50.0)
    nothing = RenderedPoints(*(np.zeros((0, 3)) for _ in range(3)))
    with pytest.raises(ValueError, match="0 predicted"):
        compare_surfaces(ball, nothing, ball, samples(ball, 100, 0))


@given(st.floats(0, 1), st.floats(0, 1))
@settings(max_examples=50)
def test_f_score_is_never_nan_and_lies_between(precision: float, recall: float) -> None:
    score = f_score(precision, recall)
    assert 0 <= score <= 1
    assert min(precision, recall) - 1e-9 <= score + 1e-9 or min(precision, recall) == 0
    assert score <= max(precision, recall) + 1e-9


def test_region_goes_by_the_nearest_triangle() -> None:
    corners = [[0, 0, 0], [100, 0, 0], [100, 100, 0], [0, 100, 0], [200, 0, 0], [200, 100, 0]]
    strip = Mesh.of(corners, [[0, 1, 2], [0, 2, 3], [1, 4, 5], [1, 5, 2]])
    left = np.array([True, True, True, True, False, False])
    points = np.array([[50.0, 50, 4], [50, 50, 6], [-8, 50, 0], [-12, 50, 0], [150, 50, 0], [50, 50, 18]])
    assert in_region(points, strip, left, 10, 5).tolist() == [True, False, True, False, False, False]
    assert in_region(points, strip, left, 20).tolist() == [True, True, True, True, False, True]
    assert in_region(np.zeros((0, 3)), strip, left, 10).shape == (0,)


def test_bootstrap_covers_the_mean_and_is_seeded() -> None:
    rng = np.random.default_rng(0)
    values = {str(i): list(rng.normal(1.0, 0.1, 4)) for i in range(20)}
    low, high = bootstrap_interval(values, np.random.default_rng(1))
    assert low < np.mean([v for row in values.values() for v in row]) < high
    assert (low, high) == bootstrap_interval(values, np.random.default_rng(1))
    assert bootstrap_interval({"one": [2.0]}, np.random.default_rng(0)) == (2.0, 2.0)


def test_a_ratio_of_paired_methods_is_surer_than_either() -> None:
    rng = np.random.default_rng(0)
    hard = np.exp(rng.normal(size=12))  # people differ by far more than methods do
    theirs = {str(i): [float(h), float(1.1 * h)] for i, h in enumerate(hard)}
    ours = {subject: [0.5 * value for value in values] for subject, values in theirs.items()}
    assert ratio_interval(ours, theirs, np.random.default_rng(1)) == pytest.approx((0.5, 0.5))
    low, high = bootstrap_interval(theirs, np.random.default_rng(1))
    assert high > 1.5 * low
    noisy = {subject: [value * rng.uniform(0.8, 1.2) for value in values] for subject, values in ours.items()}
    low, high = ratio_interval(noisy, theirs, np.random.default_rng(1))
    assert 0.4 < low < 0.5 < high < 0.6
    with pytest.raises(ValueError, match="other subjects"):
        ratio_interval(ours, {"x": [1.0]}, np.random.default_rng(1))
