"""Sparse meshing against the dense grid, and cutting by a plane."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray
from skimage.measure import marching_cubes

from model.meshing import clip, extract, mesh_crossings
from model.sparse_lattice import Distance, find_crossings
from registration.mesh import Mesh, boundary_vertices, face_areas, sample_surface
from registration.pieces import vertex_pieces

LOW, HIGH = np.array([-100.0, -120.0, -110.0]), np.array([100.0, 120.0, 110.0])


def bumpy(points: NDArray[np.float32]) -> NDArray[np.float32]:
    """A bumpy ball of about 80 mm with a hollow, and a small ball apart; not an exact distance."""
    radius = np.linalg.norm(points, axis=1)
    ball = radius - 80 + 3 * np.sin(points[:, 0] / 7) * np.sin(points[:, 1] / 9)
    shell = np.maximum(ball, 20 - np.linalg.norm(points - [20, 0, 0], axis=1))
    apart = np.linalg.norm(points - [85, 100, 90], axis=1) - 9
    return np.minimum(shell, apart).astype(np.float32)


def dense(field: Distance, low: NDArray[np.float64], step: float, cells: NDArray[np.int64]) -> Mesh:
    """The slow way: every point of the lattice."""
    index = np.stack(np.meshgrid(*[np.arange(n + 1) for n in cells], indexing="ij"), -1)
    values = field((low + index.reshape(-1, 3) * step).astype(np.float32)).reshape(cells + 1)
    values[values == 0] = 1e-12
    vertices, faces, _, _ = marching_cubes(values, 0.0, gradient_direction="descent", allow_degenerate=False)
    return Mesh.of(low + vertices * step, faces)


def same_surface(one: Mesh, other: Mesh) -> None:
    """The same triangles in the same order, which is the lattice's."""
    assert len(one.faces) == len(other.faces)
    assert np.allclose(one.vertices[one.faces], other.vertices[other.faces], atol=1e-3)


def test_sparse_surface_is_the_dense_one_and_no_point_is_asked_for_twice() -> None:
    asked: list[NDArray[np.float32]] = []

    def counted(points: NDArray[np.float32]) -> NDArray[np.float32]:
        asked.append(points)
        return bumpy(points)

    cells = np.array([80, 96, 88])
    same_surface(extract(counted, LOW, HIGH, 96), dense(bumpy, LOW, 2.5, cells))
    points = np.concatenate(asked)
    assert len(np.unique(points, axis=0)) == len(points)
    assert len(points) < 0.2 * np.prod(cells + 1)


@pytest.mark.parametrize("seed", range(4))
def test_pieces_smaller_than_a_coarse_cell_are_found(seed: int) -> None:
    """Balls and thin shells anywhere, of distances that are cut off at 25 mm as the training's are."""
    rng = np.random.default_rng(seed)
    low, high = np.zeros(3), np.array([240.0, 60.0, 60.0])
    centres = np.stack([np.linspace(20, 220, 8), *rng.uniform(15, 45, (2, 8))], 1)
    radii = rng.uniform(1.7, 10.0, 8)  # a coarse cell is 7.5 mm wide, a fine one 1.9

    def field(points: NDArray[np.float32]) -> NDArray[np.float32]:
        away = np.linalg.norm(points[:, None] - centres.astype(np.float32), axis=2) - radii
        away[:, ::2] = np.abs(away[:, ::2]) - 0.4
        return np.minimum(away.min(1), 25).astype(np.float32)

    found = extract(field, low, high, 128)
    same_surface(found, dense(field, low, 240 / 128, np.array([128, 32, 32])))
    assert len(np.unique(vertex_pieces(found))) >= 8


def test_slabs_are_welded_without_seams() -> None:
    crossings = find_crossings(bumpy, LOW, HIGH, 96)
    whole, slabs = mesh_crossings(crossings), mesh_crossings(crossings, slab_points=40_000)
    same_surface(slabs, whole)
    assert len(slabs.vertices) == len(whole.vertices)
    assert not boundary_vertices(slabs.faces, len(slabs.vertices)).any()


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


def test_nothing_far_below_the_plane_is_asked_for() -> None:
    lowest = []

    def ball(points: NDArray[np.float32]) -> NDArray[np.float32]:
        if len(lowest):  # after the coarse lattice
            lowest.append(points[:, 1].min())
        else:
            lowest.append(np.inf)
        return (np.linalg.norm(points, axis=1) - 70).astype(np.float32)

    plane = np.array([0.0, 1.0, 0.0, 20.0])
    whole = clip(extract(lambda p: (np.linalg.norm(p, axis=1) - 70).astype(np.float32), LOW, HIGH, 64), plane)
    assert len(extract(ball, LOW, HIGH, 64, plane).faces) == len(whole.faces)
    assert min(lowest) > -20 - 2 * 240 / 64 * 2


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
