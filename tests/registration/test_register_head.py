"""People of the embedded head, posed and turned, get their own vertices back."""

from dataclasses import replace

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from registration.alignment import align_head
from registration.basis_fit import FINE, BasisFit, LinearModel, Misfit, fit_basis
from registration.fit_vertices import carriers, following, stable
from registration.mesh import Mesh, transform_points, vertex_normals
from registration.nonrigid import AFTER_BASIS, Level, follow_surface
from registration.procedural_head import draw_person, head_template
from registration.register_head import Registration, register_canonical, register_expression, throat_plane
from registration.surface import SurfaceIndex
from storage.errors import ScanRejected


def _turned(seed: int) -> np.ndarray:
    T = np.eye(4)
    T[:3, :3] = Rotation.random(random_state=seed).as_matrix()
    T[:3, 3] = np.random.default_rng(seed).normal(0, 200, 3)
    return T


def _scan(person, expression: str, T: np.ndarray, gain: float = 0.9) -> tuple[Mesh, np.ndarray]:
    true = transform_points(T, person.vertices(expression, gain))
    return Mesh.of(true, head_template().mesh.faces), true


@pytest.fixture(scope="module")
def person():
    return draw_person(np.random.default_rng(3))


@pytest.fixture(scope="module")
def canonical(person):
    clean, true = _scan(person, "neutral_open", _turned(1))
    return register_canonical(clean, head_template()), true


def _face_error(registration, true):
    found = transform_points(registration.T_world_from_head, registration.vertices_head_mm)
    return np.median(np.linalg.norm(found - true, axis=1)[head_template().face_mask])


def test_canonical_meets_its_own_vertices(canonical):
    registration, true = canonical
    assert _face_error(registration, true) < 1.0
    assert registration.figures["face_residual_median_mm"] < 0.1
    assert registration.figures["flipped_share"] < 0.01


def test_expression_meets_its_own_vertices_and_the_same_skull(person, canonical):
    clean, true = _scan(person, "smile", _turned(2))
    registration = register_expression(clean, canonical[0], head_template())
    assert _face_error(registration, true) < 1.0
    assert registration.figures["skull_disagreement_mm"] < 0.3
    still = stable(head_template())
    apart = np.linalg.norm(registration.vertices_head_mm - canonical[0].vertices_head_mm, axis=1)[still]
    assert np.median(apart) < 0.5


def test_lips_go_further_than_the_templates_motions(person, canonical):
    """No motion of the own template makes lips so narrow and pushes them so far forward."""
    template = head_template()
    open_mouth = person.vertices("neutral_open", 0.9)
    from_lips = open_mouth - open_mouth[template.landmarks[48:60]].mean(0)
    away = np.linalg.norm(from_lips * [0.6, 1.0, 0.6], axis=1)[:, None]
    forward = np.exp(-0.5 * (away / 12.0) ** 2) * [0.0, 0.0, 10.0]
    narrow = np.exp(-0.5 * (away / 18.0) ** 2) * from_lips * [-0.6, 0.48, 0.0]
    true = open_mouth + forward + narrow
    found = register_expression(Mesh.of(true, template.mesh.faces), canonical[0], template)
    placed = transform_points(found.T_world_from_head, found.vertices_head_mm)
    assert np.linalg.norm(placed - true, axis=1)[template.landmarks[48:68]].mean() < 1.7
    assert len(found.expression) == len(template.expression_basis)


def test_another_person_has_another_skull(canonical):
    clean, _ = _scan(draw_person(np.random.default_rng(11)), "neutral", _turned(4))
    registration = register_expression(clean, canonical[0], head_template())
    assert registration.figures["skull_disagreement_mm"] > 0.5


def test_a_head_that_the_mean_does_not_find_is_found_by_the_persons_own():
    template = head_template()
    nothing = np.zeros((0, len(template.mesh.vertices), 3), np.float32)
    bare = replace(template, name="bare", identity_basis=nothing, expression_basis=nothing, expression_names=())
    person = draw_person(np.random.default_rng(15))
    rare = 1.5 * (person.vertices("neutral") - template.mesh.vertices)  # so much further from the mean than the person
    canonical, funnel = (person.vertices(name, 0.9) + rare for name in ("neutral_open", "funnel"))
    scan = Mesh.of(funnel, template.mesh.faces)
    assert not align_head(scan.vertices, vertex_normals(scan.vertices, scan.faces), bare, start=np.eye(4)).accepted
    seen = np.ones(len(funnel), bool)
    plane = throat_plane(canonical, template)
    known = Registration(canonical, np.eye(4), np.zeros(len(funnel)), seen, plane, np.zeros(1))
    found = register_expression(scan, known, bare)
    assert _face_error(found, funnel) < 2.5


def test_throat_plane_keeps_the_head():
    template = head_template()
    plane = throat_plane(template.mesh.vertices, template)
    side = template.mesh.vertices @ plane[:3] + plane[3]
    assert np.linalg.norm(plane[:3]) == pytest.approx(1.0)
    assert (side[template.face_mask] > 0).mean() > 0.98


def test_wrong_unit_is_named(person):
    clean, _ = _scan(person, "neutral", np.diag([0.1, 0.1, 0.1, 1.0]))
    with pytest.raises(ScanRejected, match="ten times larger"):
        register_canonical(clean, head_template())


def test_basis_fit_recovers_known_coefficients():
    template = head_template()
    basis = np.ascontiguousarray(template.identity_basis[:6])
    one = np.ones(6)
    model = LinearModel(
        template.mesh.vertices.astype(float), template.mesh.faces, basis, 0 * one, one, -3 * one, 3 * one
    )
    told = np.array([0.8, -0.5, 0.3, 0.0, -1.0, 0.6])
    scan = SurfaceIndex(Mesh.of(model.shape(told), template.mesh.faces))
    pick = carriers(template, 2.0)
    misfit = Misfit.over(model.vertices, pick, following(template), 0.1, 30.0, 0.1)
    start = BasisFit(np.eye(4), np.zeros(6), np.zeros(len(pick)), 1.0)
    fit = fit_basis(scan, model, misfit, start, FINE)
    assert np.abs(fit.coefficients - told).max() < 0.1


def test_one_step_equals_the_dense_solution():
    """On a plane the matches do not depend on the step, so one level is one linear system."""
    x, y = np.meshgrid(np.arange(8.0) * 5, np.arange(8.0) * 5)
    vertices = np.stack([x.ravel(), y.ravel(), 0 * x.ravel()], 1)
    i = (np.arange(7)[:, None] * 8 + np.arange(7)).ravel()
    faces = np.concatenate([np.stack([i, i + 1, i + 9], 1), np.stack([i, i + 9, i + 8], 1)]).astype(np.int32)
    assert vertex_normals(vertices, faces)[0, 2] > 0
    scan = SurfaceIndex(Mesh.of(vertices * [4, 4, 1] + [-60, -60, 0.4], faces))
    level = Level(0.5, 20.0, 1, 5.0, 1e6, 0.1)
    ones = np.ones(len(vertices))
    moved = follow_surface(scan, vertices, faces, ones, ones, [level])

    from registration.smoothness import cotangent_laplacian, field_precision

    precision = field_precision(*cotangent_laplacian(vertices, faces), 0.5, 20.0).toarray()
    dense = np.linalg.solve(precision + np.eye(64) / 0.1**2, 0.4 * ones / 0.1**2)
    assert np.allclose(moved[:, 2], dense, atol=1e-5)
    assert np.allclose(moved[:, :2], vertices[:, :2], atol=1e-5)


def test_what_follows_by_nothing_stays(person):
    template = head_template()
    true = person.vertices("neutral")
    follows = following(template)
    follows[true[:, 0] > 0] = 0
    scan = SurfaceIndex(Mesh.of(true + [0.0, 0.0, 0.3], template.mesh.faces))
    moved = follow_surface(scan, true, template.mesh.faces, follows, np.ones(len(true)), AFTER_BASIS)
    away = np.linalg.norm(moved - true, axis=1)
    assert away[follows == 0].max() == 0
    assert np.median(away[(true[:, 0] < -10) & template.face_mask]) > 0.1


def test_unseen_part_follows_the_linear_shape(person):
    template = head_template()
    true = person.vertices("neutral")
    half = Mesh.of(true, template.mesh.faces).select_vertices(true[:, 0] > -5)
    moved = follow_surface(
        SurfaceIndex(half), true, template.mesh.faces, following(template), np.ones(len(true)), AFTER_BASIS
    )
    hidden = true[:, 0] < -40
    assert np.linalg.norm(moved - true, axis=1)[hidden].max() < 0.1
