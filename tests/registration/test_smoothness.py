"""Smooth fields have the size and range they were asked for; the solver equals a dense one."""

import numpy as np
import pytest
import scipy.sparse as sp
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from registration.smoothness import SymmetricSolver, cotangent_laplacian, field_precision, mesh_solver


@pytest.fixture(scope="module")
def ball():
    mesh = trimesh.creation.icosphere(subdivisions=4, radius=100.0)
    return np.asarray(mesh.vertices), np.asarray(mesh.faces)


def test_laplacian_of_a_constant_and_of_a_coordinate(ball):
    vertices, faces = ball
    laplacian, area = cotangent_laplacian(vertices, faces)
    assert np.abs(laplacian @ np.ones(len(vertices))).max() < 1e-9
    assert area.sum() == pytest.approx(4 * np.pi * 100**2, rel=0.01)
    eigenvalue = (vertices[:, 0] @ (laplacian @ vertices[:, 0])) / (vertices[:, 0] ** 2 @ area)
    assert eigenvalue == pytest.approx(2 / 100**2, rel=0.02)  # first spherical harmonic


@pytest.mark.parametrize(("spread_mm", "range_mm"), [(1.0, 40.0), (0.3, 60.0)])
def test_field_has_its_spread_and_range(ball, spread_mm, range_mm):
    vertices, faces = ball
    precision = field_precision(*cotangent_laplacian(vertices, faces), spread_mm, range_mm)
    column = np.zeros(len(vertices))
    column[7] = 1.0
    covariance = SymmetricSolver(precision).factor(precision).solve(column)
    distance = np.linalg.norm(vertices - vertices[7], axis=1)
    at_range = np.abs(distance - range_mm).argmin()
    assert np.sqrt(covariance[7]) == pytest.approx(spread_mm, rel=0.1)
    assert covariance[at_range] / covariance[7] == pytest.approx(0.13, abs=0.05)


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31))
def test_solver_equals_dense(seed):
    rng = np.random.default_rng(seed)
    pattern = sp.random(40, 40, 0.1, random_state=rng)
    structure = sp.csc_matrix(pattern @ pattern.T + sp.eye(40))
    matrix = sp.csc_matrix(structure + sp.diags(rng.uniform(0.1, 5, 40)))
    right = rng.normal(size=(40, 3))
    solver = SymmetricSolver(structure)
    assert np.allclose(solver.factor(matrix).solve(right), np.linalg.solve(matrix.toarray(), right))
    assert np.allclose(solver.factor(matrix).solve(right[:, 0]), np.linalg.solve(matrix.toarray(), right[:, 0]))


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 2**31))
def test_a_factor_solves_matrices_near_its_own(seed):
    rng = np.random.default_rng(seed)
    pattern = sp.random(40, 40, 0.1, random_state=rng)
    structure = sp.csc_matrix(pattern @ pattern.T + sp.eye(40))
    first, second = (sp.csc_matrix(structure + sp.diags(rng.uniform(0.1, 5, 40))) for _ in range(2))
    right = rng.normal(size=(40, 3))
    right[:, 1] = 0
    found = SymmetricSolver(structure).factor(first).solve_near(second, right, np.zeros_like(right), 1e-10)
    assert np.allclose(found, np.linalg.solve(second.toarray(), right), atol=1e-8)


def test_mesh_solver_serves_a_field_among_some_vertices(ball):
    vertices, faces = ball
    free = np.flatnonzero(vertices[:, 2] > 0)
    precision = field_precision(*cotangent_laplacian(vertices, faces), 1.0, 40.0)[free][:, free]
    right = np.random.default_rng(0).normal(size=(len(free), 3))
    found = mesh_solver(faces, len(vertices), free).factor(precision).solve(right)
    assert np.allclose(precision @ found, right)
    assert mesh_solver(faces, len(vertices), free) is mesh_solver(faces.copy(), len(vertices), free.copy())
    assert mesh_solver(faces, len(vertices), free[1:]) is not mesh_solver(faces, len(vertices), free)
