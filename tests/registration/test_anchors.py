import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from registration.anchors import choose_anchors, with_anchors
from registration.procedural_head import head_template
from registration.procedural_neutral import neutral_head
from storage.errors import ConfigError


@pytest.mark.parametrize(("count", "pairs"), [(16, 6), (39, 16), (65, 30), (32, 16), (7, 0)])
def test_pairs_come_first_and_mirror_one_another(count: int, pairs: int) -> None:
    template = with_anchors(head_template(), count, pairs)
    anchors = template.anchors
    assert template.anchor_pairs == pairs
    assert len(set(anchors.tolist())) == count
    right, left = anchors[: 2 * pairs : 2], anchors[1 : 2 * pairs : 2]
    np.testing.assert_array_equal(template.mirror[right], left)
    assert (template.mesh.vertices[right, 0] < 0).all()
    middle = anchors[2 * pairs :]
    np.testing.assert_array_equal(template.mirror[middle], middle)
    assert (template.mesh.vertices[anchors, 1] > -98.0).all()


def test_defaults_follow_the_paper() -> None:
    for count, pairs in ((39, 16), (65, 30), (16, 6)):
        template = with_anchors(head_template(), count)
        assert template.anchor_pairs == pairs
        right, left = template.anchors[: 2 * pairs : 2], template.anchors[1 : 2 * pairs : 2]
        np.testing.assert_array_equal(template.mirror[right], left)


def test_none_stands_in_the_openings() -> None:
    template = with_anchors(head_template(), 200, 90)
    grid, _ = neutral_head()
    linings = np.concatenate([slit.rings.ravel() for slit in (grid.mouth, grid.right_eye, grid.left_eye)])
    assert not np.isin(template.anchors, linings).any()


def test_stands_denser_on_the_face() -> None:
    template = head_template()
    place = template.mesh.vertices[template.anchors].astype(float)
    gap = np.linalg.norm(place[:, None] - place[None], axis=2) + 1e9 * np.eye(len(place))
    on_face = template.face_mask[template.anchors]
    assert on_face.sum() >= 15
    assert np.median(gap[on_face].min(1)) < 0.75 * np.median(gap[~on_face].min(1))
    assert gap.min() > 12.0


def test_too_few_vertices_are_named() -> None:
    vertices = np.array([[-1.0, 0, 0], [1.0, 0, 0], [0, 1.0, 0]])
    with pytest.raises(ConfigError, match="1 vertices on one side, 1 on the middle line"):
        choose_anchors(vertices, np.array([1, 0, 2]), np.ones(3), 5, 2)
    with pytest.raises(ConfigError, match="can't hold"):
        choose_anchors(vertices, np.array([1, 0, 2]), np.ones(3), 3, 2)


def _slow(vertices: np.ndarray, mirror: np.ndarray, pairs: int, first: int) -> list[int]:
    """Farthest points without a middle line, each distance computed anew."""
    chosen = [first, int(mirror[first])]
    while len(chosen) < 2 * pairs:
        best, widest = -1, -1.0
        for i in np.flatnonzero(vertices[:, 0] < 0):
            gap = min(np.linalg.norm(vertices[i] - vertices[j]) for j in [*chosen, mirror[i]])
            if gap > widest + 1e-12:
                best, widest = int(i), gap
        chosen += [best, int(mirror[best])]
    return chosen


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 10_000), pairs=st.integers(1, 6))
def test_agrees_with_a_slow_search(seed: int, pairs: int) -> None:
    half = np.random.default_rng(seed).normal(size=(25, 3)) * [1, 1, 1]
    half[:, 0] = -np.abs(half[:, 0]) - 0.01
    vertices = np.concatenate([half, half * [-1, 1, 1]])
    mirror = np.concatenate([np.arange(25, 50), np.arange(25)])
    fast = choose_anchors(vertices, mirror, np.ones(50), 2 * pairs, pairs)
    assert fast.tolist() == _slow(vertices, mirror, pairs, int(fast[0]))
