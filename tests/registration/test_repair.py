import numpy as np

from registration.mesh import Mesh
from registration.pieces import small_patches, split_pieces
from registration.repair import is_sound, repair
from tests.registration.mesh_rig import sphere


def test_a_sound_mesh_stays_as_it_is():
    ball = sphere(resolution=10)
    assert is_sound(ball)
    assert repair(ball) is ball


def test_doubled_faces_fins_and_equal_vertices_go_and_columns_follow():
    ball = sphere(resolution=10)
    n = len(ball.vertices)
    a, b, c = ball.faces[40]
    vertices = np.concatenate([ball.vertices, ball.vertices[[a]], 2 * ball.vertices[[b]]])
    faces = np.concatenate([ball.faces, ball.faces[:3], [[n, b, c], [a, b, n + 1], [a, a, b]]])
    number = np.arange(n + 2, dtype=np.int32)
    spoiled = Mesh.of(vertices, faces, np.full((n + 2, 3), 7), number=number)
    assert not is_sound(spoiled)
    fixed = repair(spoiled)
    assert is_sound(fixed)
    assert len(fixed.vertices) <= n + 1  # either the fin or the face beside it goes
    np.testing.assert_allclose(fixed.vertices, vertices[fixed.attributes["number"]], atol=1e-5)
    assert repair(spoiled).vertices.tobytes() == fixed.vertices.tobytes()


def test_keeps_near_pieces_and_drops_crumbs_and_far_ones():
    parts = [sphere(100, 20), sphere(6, 6), sphere(30, 10), sphere(0.5, 4)]
    shift = [(0, 0, 0), (110, 0, 0), (300, 0, 0), (102, 20, 0)]
    vertices = np.concatenate([p.vertices + np.array(s) for p, s in zip(parts, shift, strict=True)])
    starts = np.cumsum([0] + [len(p.vertices) for p in parts])
    mesh = Mesh.of(vertices, np.concatenate([p.faces + k for p, k in zip(parts, starts, strict=False)]))
    pieces = split_pieces(mesh, 60.0, 15.0)
    assert (pieces.loose_kept, pieces.dropped) == (1, 2)
    assert pieces.kept[: starts[2]].all()
    assert not pieces.kept[starts[2] :].any()


def test_only_small_guessed_patches_are_kept():
    ball = sphere(100, 60)
    top = ball.vertices[:, 1] > 95
    side = np.linalg.norm(ball.vertices - [100, 0, 0], axis=1) < 8
    assert (small_patches(ball, top | side, 30.0) == side).all()
