import numpy as np
import pytest

from registration.mesh import boundary_vertices, edges, face_normals
from registration.procedural_expressions import EXPRESSIONS, MOTIONS, eyeballs, posed
from registration.procedural_hair import HAIR_STYLES, grow_hair
from registration.procedural_head import draw_person, head_template
from registration.procedural_identity import identity_modes, identity_vertices, sample_identity
from registration.procedural_neutral import neutral_head
from registration.procedural_surface import head_distance
from registration.template import REGIONS

FLIP = np.array([-1.0, 1.0, 1.0])


def test_is_mirror_symmetric_in_shape_and_cut() -> None:
    grid, v = neutral_head()
    np.testing.assert_allclose(v[grid.mirror] * FLIP, v, atol=1e-9)
    np.testing.assert_array_equal(grid.mirror[grid.mirror], np.arange(grid.count))
    own = {tuple(sorted(face)) for face in grid.faces.tolist()}
    assert own == {tuple(sorted(face)) for face in grid.mirror[grid.faces].tolist()}


def test_is_one_oriented_surface_with_four_openings() -> None:
    grid, v = neutral_head()
    directed = grid.faces[:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    assert len(np.unique(directed, axis=0)) == len(directed)
    euler = grid.count - len(edges(grid.faces)) + len(grid.faces)
    assert euler == 2 - 4  # neck, mouth, two eyes
    open_edge = boundary_vertices(grid.faces, grid.count)
    linings = np.concatenate([s.rings[-1] for s in (grid.mouth, grid.right_eye, grid.left_eye)])
    assert set(np.flatnonzero(open_edge)) == set(linings.tolist()) | set(grid.grid[0].tolist())
    outwards = (face_normals(v, grid.faces) * (v[grid.faces].mean(1) - [0, 20, 0])).sum(1)
    assert (outwards > 0).mean() > 0.93


def test_lies_on_its_closed_form_but_for_ears_and_openings() -> None:
    template = head_template()
    plain = template.face_mask & (template.regions == REGIONS.index("face"))
    assert np.abs(head_distance(template.mesh.vertices[plain].astype(float))).max() < 0.5


def test_has_an_adult_size() -> None:
    template = head_template()
    v, lm = template.mesh.vertices, template.mesh.vertices[template.landmarks]
    no_ears = v[(template.regions != REGIONS.index("ears")) & (v[:, 1] > 48)]
    assert 140 < np.ptp(no_ears[:, 0]) < 165
    assert 180 < np.ptp(no_ears[:, 2][np.abs(no_ears[:, 0]) < 20]) < 205
    assert 205 < v[:, 1].max() - lm[8, 1] < 235
    assert 58 < np.linalg.norm(lm[36:42].mean(0) - lm[42:48].mean(0)) < 68


def test_landmarks_are_in_the_usual_order() -> None:
    template = head_template()
    lm = template.mesh.vertices[template.landmarks]
    swap = np.concatenate(
        [np.arange(16, -1, -1), np.arange(26, 16, -1), [27, 28, 29, 30, 35, 34, 33, 32, 31]]
        + [[45, 44, 43, 42, 47, 46, 39, 38, 37, 36, 41, 40]]
        + [[54, 53, 52, 51, 50, 49, 48, 59, 58, 57, 56, 55], [64, 63, 62, 61, 60, 67, 66, 65]]
    )
    np.testing.assert_array_equal(template.landmarks[swap], template.mirror[template.landmarks])
    assert len(set(template.landmarks.tolist())) == 68
    assert (np.diff(lm[:17, 0]) > 0).all()
    assert (lm[[37, 38, 43, 44], 1] > lm[[41, 40, 47, 46], 1] + 5).all()
    assert lm[30, 2] == pytest.approx(template.mesh.vertices[:, 2].max(), abs=1.0)
    assert (lm[[50, 52], 1] > lm[51, 1]).all()  # Cupid's bow


def test_every_region_is_there() -> None:
    template = head_template()
    assert set(np.unique(template.regions)) == set(range(6))
    assert (template.regions[template.mirror] == template.regions).mean() > 0.99
    assert (template.face_mask[template.mirror] == template.face_mask).all()


def test_mouth_opens_and_lids_close() -> None:
    template = head_template()
    rest = template.mesh.vertices.astype(float)
    gap = {e: _gap(posed(rest, EXPRESSIONS[e]), template.landmarks, 62, 66) for e in ("neutral", "neutral_open")}
    wide = _gap(posed(rest, EXPRESSIONS["jaw_open_wide"]), template.landmarks, 62, 66)
    assert gap["neutral"] < 0.5 < 6.0 < gap["neutral_open"] < 16.0 < 25.0 < wide < 45.0
    closed = posed(rest, EXPRESSIONS["eyes_closed"])
    for up, low in ((37, 41), (38, 40), (43, 47), (44, 46)):
        assert _gap(rest, template.landmarks, up, low) > 5.0
        assert _gap(closed, template.landmarks, up, low) < 1.0


def _gap(v: np.ndarray, landmarks: np.ndarray, up: int, low: int) -> float:
    return float(np.linalg.norm(v[landmarks[up]] - v[landmarks[low]]))


def test_eyeballs_stay_behind_the_lids() -> None:
    for seed in range(6):
        person = draw_person(np.random.default_rng(seed))
        for expression in ("neutral", "eyes_closed", "smile"):
            v = person.vertices(expression)
            for centre, radius in zip(*eyeballs(person.rest), strict=True):
                near = np.linalg.norm(v - centre, axis=1)
                assert near.min() > radius - 0.6
                assert 9.0 < radius <= 12.2


def test_the_skull_rests_in_every_expression() -> None:
    template = head_template()
    rest = template.mesh.vertices.astype(float)
    still = (template.regions == REGIONS.index("scalp")) & (rest[:, 2] < 20) & (rest[:, 1] > 20)
    for name, amounts in EXPRESSIONS.items():
        moved = np.linalg.norm(posed(rest, amounts) - rest, axis=1)
        assert moved[still].max() < 0.35, name
        assert name == "neutral" or moved.max() > 2.0, name
    assert len(EXPRESSIONS) >= 8
    assert next(iter(EXPRESSIONS)) == "neutral_open"
    assert all(set(amounts) <= set(MOTIONS) for amounts in EXPRESSIONS.values())


def test_identity_is_linear_and_people_differ_beyond_it() -> None:
    template = head_template()
    rest = neutral_head()[1]
    parameters = sample_identity(np.random.default_rng(4))
    assert len(parameters) >= 20
    linear = rest + np.tensordot(list(parameters.values()), template.identity_basis, 1)
    np.testing.assert_allclose(identity_vertices(parameters), linear, atol=1e-3)
    person = draw_person(np.random.default_rng(4))
    own = person.rest - identity_vertices(person.parameters)
    basis = np.stack(list(identity_modes().values())).reshape(len(parameters), -1).T
    left = own.ravel() - basis @ np.linalg.lstsq(basis, own.ravel(), rcond=None)[0]
    assert 0.15 < np.linalg.norm(left.reshape(-1, 3), axis=1).mean() < 1.5


def test_the_same_seed_is_the_same_person() -> None:
    one, two = (draw_person(np.random.default_rng(9)) for _ in range(2))
    np.testing.assert_array_equal(one.rest, two.rest)
    assert not np.array_equal(one.rest, draw_person(np.random.default_rng(10)).rest)


@pytest.mark.parametrize("style", HAIR_STYLES)
def test_hair_covers_the_crown_and_leaves_the_face(style: str) -> None:
    person = draw_person(np.random.default_rng(2))
    hair = grow_hair(person.rest, style, np.random.default_rng(3))
    assert hair.vertices[:, 1].max() > person.rest[:, 1].max()
    front = hair.vertices[hair.vertices[:, 2] > 85]
    assert len(front) == 0 or front[:, 1].min() > 60.0
    again = grow_hair(person.rest, style, np.random.default_rng(3))
    np.testing.assert_array_equal(hair.vertices, again.vertices)
