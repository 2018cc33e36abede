"""Sparse meshing against the dense grid, and cutting by a plane."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.measure import marching_cubes

from model.meshing import clip, extract
from registration.mesh import boundary_vertices, face_areas, sample_surface

LOW, HIGH = np.array([-100.0, -120.0, -110.0]), np.array([100.0, 120.0, 110.0])


def bumpy(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """A bumpy ball of about 80 mm with a hollow, and a small ball apart; not an exact distance."""
    radius = np.linalg.norm(points, axis=1)
    ball = radius - 80 + 3 * np.sin(points[:, 0] / 7) * np.sin(points[:, 1] / 9)
    shell = np.maximum(ball, 20 - np.linalg.norm(points - [20, 0, 0], axis=1))
    apart = np.linalg.norm(points - [85, 100, 90], axis=1) - 9
    return np.minimum(shell, apart).astype(np.float32)


def test_sparse_surface_is_the_dense_one() -> None:
    asked = 0

    def counted(points: NDArray[np.float32]) -> NDArray[np.float32]:
        nonlocal asked
        asked += len(points)
        return bumpy(points)

    mesh = extract(counted, LOW, HIGH, 96)
    step = 240 / 96
    cells = np.array([80, 96, 88])
    index = np.stack(np.meshgrid(*[np.arange(n + 1) for n in cells], indexing="ij"), -1)
    values = bumpy((LOW + index.reshape(-1, 3) * step).astype(np.float32)).reshape(cells + 1)
    vertices, faces, _, _ = marching_cubes(values, 0.0, gradient_direction="descent", allow_degenerate=False)
    dense = LOW + vertices * step
    assert len(mesh.faces) == len(faces)
    order, dense_order = np.lexsort(mesh.vertices.T), np.lexsort(dense.astype(np.float32).T)
    assert np.allclose(mesh.vertices[order], dense[dense_order], atol=1e-3)
    assert asked < 0.5 * values.size


def test_sphere_is_closed_turned_outwards_and_exact() -> None:
    mesh = extract(lambda p: (np.linalg.norm(p, axis=1) - 70).astype(np.float32), LOW, HIGH, 64)
    corner = mesh.vertices[mesh.faces].astype(np.float64)
    volume = np.einsum("ij,ij->i", corner[:, 0], np.cross(corner[:, 1], corner[:, 2])).sum() / 6
    assert not boundary_vertices(mesh.faces, len(mesh.vertices)).any()
    assert volume == pytest.approx(4 / 3 * np.pi * 70**3, rel=5e-3)
    assert np.abs(np.linalg.norm(mesh.vertices, axis=1) - 70).max() < 0.1


def test_surface_that_no_coarse_cell_sees_whole_is_followed() -> None:
    """The slope is three times too steep, so most cells look farther from the surface than they are."""
    mesh = extract(lambda p: (3 * (np.linalg.norm(p, axis=1) - 70)).astype(np.float32), LOW, HIGH, 64)
    assert not boundary_vertices(mesh.faces, len(mesh.vertices)).any()


def test_empty_box_gives_an_empty_mesh() -> None:
    assert len(extract(lambda p: np.ones(len(p), np.float32), LOW, HIGH, 32).faces) == 0


def test_clip_cuts_along_the_plane() -> None:
    mesh = extract(lambda p: (np.linalg.norm(p, axis=1) - 70).astype(np.float32), LOW, HIGH, 48)
    normal = np.array([0.1, 0.98, -0.2]) / np.linalg.norm([0.1, 0.98, -0.2])
    cut = clip(mesh, np.append(normal, 30.0))
    height = cut.vertices @ normal + 30
    open_edge = boundary_vertices(cut.faces, len(cut.vertices))
    assert height.min() > -1e-3
    assert open_edge.any()
    assert np.abs(height[open_edge]).max() < 1e-3
    cap = 2 * np.pi * 70 * (70 + 30)
    assert face_areas(cut.vertices, cut.faces).sum() == pytest.approx(cap, rel=0.01)
    points, _, _ = sample_surface(cut, 500, np.random.default_rng(0))
    assert np.abs(np.linalg.norm(points, axis=1) - 70).max() < 0.3
    assert len(clip(mesh, np.array([0.0, 1.0, 0.0, 200.0])).faces) == len(mesh.faces)
    assert len(clip(mesh, np.array([0.0, 1.0, 0.0, -200.0])).faces) == 0
