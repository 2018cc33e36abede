from dataclasses import replace

import numpy as np

from registration.depth import fit_views
from registration.fusion import Grid
from registration.mesh import Mesh
from registration.observation import observe, settled
from tests.registration.mesh_rig import see


def look_at(eye):
    T = np.eye(4)
    ahead = -np.array(eye) / np.linalg.norm(eye)
    side = np.cross([0.0, 1.0, 0.0], ahead)
    side /= np.linalg.norm(side)
    T[:3, :3] = np.stack([side, np.cross(ahead, side), ahead], 1)
    T[:3, 3] = eye
    return T


def test_the_frontal_view_paints_more_than_the_grazing_one():
    wall = Mesh.of([[-80, -80, 0], [80, -80, 0], [80, 80, 0], [-80, 80, 0]], [[0, 1, 2], [0, 2, 3]])
    grazing = 75.0
    a = np.radians(grazing)
    frontal, flat = see(wall, np.stack([look_at([1.0, 0, 500.0]), look_at([500 * np.sin(a), 0, 500 * np.cos(a)])]))
    frontal = replace(frontal, color=np.full((120, 160, 3), (200, 0, 0), np.uint8))
    flat = replace(flat, color=np.full((120, 160, 3), (0, 0, 200), np.uint8))
    views = fit_views((frontal, flat), [view.depth_mm > 0 for view in (frontal, flat)])
    points = np.array([[0.0, 0, 0], [10, -20, 0], [-15, 12, 0]])
    seen = observe(views, Grid(np.eye(4), (8, 8, 8), 1.0), points, np.tile([0.0, 0, 1], (3, 1)), 3.0)
    assert (seen.views == 2).all()
    assert (seen.color[:, 0] > 6 * seen.color[:, 2].astype(int)).all()
    assert (seen.color[:, 2] > 0).all()
    assert (seen.spread_mm < 0.05).all()
    hidden = observe(views, Grid(np.eye(4), (8, 8, 8), 1.0), points, np.tile([0.0, 0, -1], (3, 1)), 3.0)
    assert (hidden.views == 0).all()


def test_a_surface_settles_where_it_is_seen_and_what_nobody_sees_is_a_guess():
    wall = Mesh.of([[-80, -80, 0], [80, -80, 0], [80, 80, 0], [-80, 80, 0]], [[0, 1, 2], [0, 2, 3]])
    views = see(wall, np.stack([look_at([1.0, 0, 500.0]), look_at([200.0, 0, 500.0])]))
    views = fit_views(views, [view.depth_mm > 0 for view in views])
    corners = np.array([[-20.0, -20, 0], [20, -20, 0], [20, 20, 0], [-20, 20, 0]])
    off, far = corners + [0, 0, 0.4], corners + [0, 0, -5.0]
    told = Mesh.of(
        np.concatenate([off, far, off]),
        [[0, 1, 2], [0, 2, 3], [4, 5, 6], [4, 6, 7], [8, 9, 10], [8, 10, 11]],
        guessed=np.repeat([0, 0, 1], 4).astype(np.uint8),
    )
    found = settled(told, views, Grid(np.eye(4), (8, 8, 8), 1.0), 1.5)
    seen, lost = [0, 1, 2, 3, 8, 9, 10, 11], slice(4, 8)  # what fusion had to guess and views do see is seen
    np.testing.assert_allclose(found.vertices[seen], np.concatenate([corners, corners]), atol=0.02)
    np.testing.assert_array_equal(found.vertices[lost], told.vertices[lost])
    np.testing.assert_array_equal(found.attributes["guessed"], np.repeat([0, 1, 0], 4))
    np.testing.assert_array_equal(found.attributes["views"], np.repeat([2, 0, 2], 4))
