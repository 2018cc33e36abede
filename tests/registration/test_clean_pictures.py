import numpy as np

from registration.clean_pictures import FILLED, SIZE, clean_sheet, confidence_map, nearest_points, painted
from tests.registration.mesh_rig import sphere


def confident_ball(observed):
    ball = sphere(60.0)
    n = len(ball.vertices)
    ball.attributes.update(
        views=np.where(observed(ball.vertices), 9, 0).astype(np.uint8),
        spread_mm=np.zeros(n, np.float32),
        observed=observed(ball.vertices).astype(np.uint8),
    )
    return ball


def magenta(picture):
    """Pixels of the hue in which what was filled in is drawn, whatever the light."""
    r, g, b = (picture[..., c].astype(float) for c in range(3))
    light = r / FILLED[0]
    return (light > 0.15) & (np.abs(g - light * FILLED[1]) < 3) & (np.abs(b - light * FILLED[2]) < 3)


def test_the_nearest_point_is_shown():
    points = np.array([[0.0, 20.0, 0.0], [0.0, 20.0, 50.0]])
    front, back = nearest_points(points, 0.0), nearest_points(points, 180.0)
    assert front[front >= 0].tolist() == [1]
    assert back[back >= 0].tolist() == [0]
    above = nearest_points(points, 0.0, 90.0)
    assert sorted(above[above >= 0].tolist()) == [0, 1]
    picture = painted(front, np.array([[255, 0, 0], [0, 255, 0]], np.uint8))
    np.testing.assert_array_equal(picture[front == 1], [[0, 255, 0]])


def test_what_is_filled_in_stands_out_from_its_own_side_alone():
    mesh = confident_ball(lambda v: v[:, 2] < 20)  # a cap in front is filled in
    picture = confidence_map(mesh, np.eye(4))
    front, back = picture[:SIZE, :SIZE], picture[:SIZE, 2 * SIZE : 3 * SIZE]
    assert magenta(front).mean() > 0.02
    assert not magenta(back).any()


def test_the_sheet_names_the_views_that_were_left_out():
    mesh = confident_ball(lambda v: v[:, 2] < 100)
    away = mesh.vertices / 60.0
    plain, named = (clean_sheet(mesh.vertices, away, None, mesh, np.eye(4), out) for out in ((), ("003: no depth",)))
    assert named.shape[0] > plain.shape[0]
    np.testing.assert_array_equal(named[: len(plain)], plain)
    assert (named[len(plain) :] != named[-1, -1]).any()
