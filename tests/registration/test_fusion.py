import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from registration.depth import fit_views
from registration.fusion import extract_surface, first_agreeing, fuse, grid_for_box, robust_mean
from registration.mesh import boundary_vertices, face_normals, vertex_normals
from registration.observation import observe
from registration.watertight import complete
from tests.registration.mesh_rig import camera_poses, see, sphere


def fused_sphere(noise_mm=0.0, threads=1, voxel_mm=3.0):
    views = see(sphere(resolution=80), camera_poses(12), noise_mm=noise_mm)
    fitted = fit_views(views, [view.depth_mm > 0 for view in views])
    grid = grid_for_box(np.eye(4), np.full(3, -120.0), np.full(3, 120.0), voxel_mm)
    values, grid = fuse(fitted, grid, 3 * voxel_mm, 0.15, threads)
    return fitted, values, grid


def test_a_sphere_comes_back():
    _, values, grid = fused_sphere()
    mesh = extract_surface(values, grid)
    world = mesh.transformed(grid.T_world_from_grid)
    radius = np.linalg.norm(world.vertices, axis=1)
    assert np.median(np.abs(radius - 100)) < 0.06
    assert np.percentile(np.abs(radius - 100), 99) < 0.6
    outward = (face_normals(world.vertices, world.faces) * world.vertices[world.faces].mean(1)).sum(1)
    assert (outward > 0).mean() > 0.999


def test_distances_are_true_near_the_surface():
    _, values, grid = fused_sphere()
    index = np.argwhere(np.abs(values) < 4.0)
    points = index * grid.voxel_mm + grid.T_world_from_grid[:3, 3]
    error = values[tuple(index.T)] - (np.linalg.norm(points, axis=1) - 100)
    assert np.median(np.abs(error)) < 0.1


def test_vertices_know_their_views_and_spread():
    views, values, grid = fused_sphere(noise_mm=0.3)
    mesh = extract_surface(values, grid)
    seen = observe(views, grid, mesh.vertices, vertex_normals(mesh.vertices, mesh.faces), 9.0)
    assert 3 <= np.median(seen.views) <= 12
    assert 0.02 < np.median(seen.spread_mm) < 0.4
    np.testing.assert_array_equal(np.median(seen.color[seen.views > 0], axis=0), (90, 120, 150))


def test_the_last_of_many_views_counts_as_the_first():
    poses = camera_poses(12)
    front, back = poses[0], poses[6]
    views = see(sphere(), np.stack([front] * 270 + [back] * 3), width=40, height=30)
    fitted = fit_views(views, [view.depth_mm > 0 for view in views])
    values, grid = fuse(fitted, grid_for_box(np.eye(4), np.full(3, -120.0), np.full(3, 120.0), 6.0), 18.0, 0.15)
    mesh = extract_surface(values, grid)
    seen = observe(fitted, grid, mesh.vertices, vertex_normals(mesh.vertices, mesh.faces), 18.0)
    toward_back = mesh.transformed(grid.T_world_from_grid).vertices @ back[:3, 3] > 0
    assert toward_back.mean() > 0.3
    assert (seen.views[toward_back] > 0).mean() > 0.5


def test_threads_change_nothing():
    assert fused_sphere(0.2, 1)[1].tobytes() == fused_sphere(0.2, 2)[1].tobytes()


def test_two_views_that_look_into_a_gap_are_known_from_a_stray_one():
    rising = np.array([-1.9, -1.85, -1.8, -1.2, 1.0, 1.05])
    assert first_agreeing(rising, 6, 0.3) == 4
    assert first_agreeing(rising[:5], 5, 0.3) == 5
    assert first_agreeing(np.array([-1.9, 0.6, 1.0]), 3, 0.3) == 3


def test_the_closed_surface_has_no_edge_and_is_marked_where_it_guesses():
    _, values, grid = fused_sphere()
    # Forget a cap on top: the closure has to guess it.
    y = np.arange(values.shape[1]) * grid.voxel_mm + grid.T_world_from_grid[1, 3]
    values[:, y > 70] = np.nan
    closed = complete(values, extract_surface(values, grid), grid, None, 9.0)
    assert not boundary_vertices(closed.faces, len(closed.vertices)).any()
    world = closed.transformed(grid.T_world_from_grid).vertices
    guessed = closed.attributes["guessed"] > 0
    assert guessed[world[:, 1] > 76].all()
    assert not guessed[np.abs(world[:, 1]) < 60].any()
    assert 70 < world[:, 1].max() < 115


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.floats(-0.05, 0.05), st.floats(0.1, 1.0)), min_size=3, max_size=12), st.floats(2.0, 3.0))
def test_one_stray_view_does_not_move_the_mean(observations, stray):
    d, w = (np.array(column) for column in zip(*observations, strict=True))
    clean, _, _ = robust_mean(d.copy(), w.copy(), len(d), 0.3)
    light = 0.4 * w.sum()
    d2, w2 = np.append(d, stray), np.append(w, light)
    moved, _, _ = robust_mean(d2.copy(), w2.copy(), len(d2), 0.3)
    assert abs(moved - clean) < 0.08
    assert d.min() - 1e-9 <= clean <= d.max() + 1e-9
