"""Faces that pass through others are found, and taken apart again."""

import numpy as np

from registration.crossings import crossing_faces, uncross


def _crosses_by_hand(a, b):
    """Whether an edge of one triangle passes through the other, by signed volumes, one edge at a time."""

    def volume(p, q, r, s):
        return np.linalg.det(np.stack([q - p, r - p, s - p]))

    for first, second in ((a, b), (b, a)):
        for i in range(3):
            p, q = first[i], first[(i + 1) % 3]
            if volume(p, *second) * volume(q, *second) >= 0:
                continue
            sides = [volume(p, q, second[j], second[(j + 1) % 3]) for j in range(3)]
            if min(sides) > 0 or max(sides) < 0:
                return True
    return False


def test_a_pierced_triangle_and_its_piercer_are_named():
    flat = [[0, 0, 0], [4, 0, 0], [0, 4, 0]]
    through = [[1, 1, -1], [1, 1, 1], [9, 9, 1]]
    above = [[0, 0, 1], [4, 0, 1], [0, 4, 1]]
    vertices = np.array(flat + through + above, float)
    faces = np.arange(9).reshape(3, 3)
    assert crossing_faces(vertices[:6], faces[:2], np.ones(2, bool)).all()
    assert not crossing_faces(vertices[[0, 1, 2, 6, 7, 8]], faces[:2], np.ones(2, bool)).any()
    assert not crossing_faces(vertices[:6], faces[:2], np.array([True, False])).any()


def test_neighbours_never_cross():
    vertices = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0.2, 0.2, 1]], float)
    faces = np.array([[0, 1, 2], [0, 3, 1], [1, 3, 2], [2, 3, 0]])
    assert not crossing_faces(vertices, faces, np.ones(4, bool)).any()


def test_random_soup_agrees_with_every_pair_by_hand():
    rng = np.random.default_rng(0)
    centre = rng.uniform(0, 6, (50, 1, 3))
    corner = centre + rng.normal(size=(50, 3, 3)) * rng.choice([0.4, 2.0], (50, 1, 1), p=[0.9, 0.1])
    found = crossing_faces(corner.reshape(-1, 3), np.arange(150).reshape(50, 3), np.ones(50, bool))
    wanted = np.zeros(50, bool)
    for i in range(50):
        for j in range(i):
            if _crosses_by_hand(corner[i], corner[j]):
                wanted[[i, j]] = True
    assert 5 < wanted.sum() < 50
    assert np.array_equal(found, wanted)


def _sheet(z):
    x, y = np.meshgrid(np.arange(12.0), np.arange(12.0))
    return np.stack([x.ravel(), y.ravel(), np.full(144, z)], 1)


def test_uncrossing_stays_near_and_leaves_the_rest_alone():
    i = (np.arange(11)[:, None] * 12 + np.arange(11)).ravel()
    faces = np.concatenate([np.stack([i, i + 1, i + 13], 1), np.stack([i, i + 13, i + 12], 1)])
    faces = np.concatenate([faces, faces + 144]).astype(np.int32)
    safe = np.concatenate([_sheet(0.0), _sheet(1.0) + [0.3, 0.4, 0.0]])
    bent = safe.copy()
    dent = np.hypot(safe[:, 0] - 3, safe[:, 1] - 3) < 1.5
    bent[dent & (safe[:, 2] > 0.5), 2] = -0.3
    among = np.ones(len(faces), bool)
    assert crossing_faces(bent, faces, among).any()
    mended = uncross(bent, safe, faces, among, np.zeros(len(faces), bool))
    assert not crossing_faces(mended, faces, among).any()
    far = np.hypot(safe[:, 0] - 3, safe[:, 1] - 3) > 8
    assert np.array_equal(mended[far], bent[far])
