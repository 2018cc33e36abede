import io

import numpy as np
import pytest
from PIL import Image

from registration.mesh import Mesh
from registration.pictures import BACKGROUND, LEFT, heat_colors, render, sheet, signed_colors, splat, to_png

RED, BLUE = np.array([[200, 0, 0]], np.uint8), np.array([[0, 0, 200]], np.uint8)


def _square(z_mm: float) -> Mesh:
    corners = [[-50, -50, z_mm], [50, -50, z_mm], [50, 50, z_mm], [-50, 50, z_mm]]
    return Mesh.of(corners, [[0, 1, 2], [0, 2, 3]])


def test_a_square_fills_its_share_of_the_picture() -> None:
    picture = render(_square(0), size=100, extent_mm=200)
    drawn = (picture != BACKGROUND).any(2)
    assert drawn.mean() == pytest.approx(0.25, abs=0.02)
    assert drawn[50, 50]
    assert not drawn[10, 10]
    assert not (render(_square(0), LEFT, size=100, extent_mm=200) != BACKGROUND).any(2)[:, :40].any()


def test_an_empty_mesh_is_an_empty_picture() -> None:
    assert (render(Mesh.of(np.zeros((0, 3)), np.zeros((0, 3))), size=20) == BACKGROUND).all()


def test_of_two_points_the_nearer_is_seen() -> None:
    points = np.array([[0, 0, 10], [0, 0, -10]], np.float32)
    colors = np.concatenate([RED, BLUE])
    assert (splat(points, colors, size=51, dot=1)[25, 25] == RED).all()
    assert (splat(points, colors, 180.0, size=51, dot=1)[25, 25] == BLUE).all()
    assert (splat(np.array([[1e4, 0, 0]]), RED, size=51) == BACKGROUND).all()


def test_heat_runs_from_blue_to_red_and_is_grey_where_unknown() -> None:
    colors = heat_colors(np.array([0.0, 5.0, 99.0, np.nan]), 2.0, np.array([False, False, False, True]))
    assert colors[0, 2] > colors[0, 0]
    assert (colors[1] == colors[2]).all()
    assert colors[2, 0] > colors[2, 2]
    assert (colors[3] == 170).all()


def test_signed_colours_are_white_at_zero() -> None:
    inside, surface, outside = signed_colors(np.array([-9.0, 0.0, 9.0]), 3.0).astype(int)
    assert inside[2] > inside[0]
    assert surface.min() > 240
    assert outside[0] > outside[2]


def test_a_sheet_holds_all_pictures_and_captions() -> None:
    picture = np.full((30, 30, 3), 9, np.uint8)
    joined = sheet([[picture, picture], [picture]], [["one", "two"], ["three"]])
    assert joined.shape == (2 * 48, 60, 3)
    assert (joined[:30, 30:60] == 9).all()
    with Image.open(io.BytesIO(to_png(joined))) as read:
        assert np.array_equal(np.asarray(read), joined)
