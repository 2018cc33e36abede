"""Linear heads on ellipsoid people whose modes, and whose jaw, are known."""

from __future__ import annotations

import numpy as np
import open3d as o3d
import pytest
from scipy.spatial.transform import Rotation

from model.fit_config import PcaConfig
from model.jaw import learn_jaw
from model.linear_fitter import LinearFitter
from model.linear_head import Jaw, LinearHead
from model.linear_training import RegisteredHeads, flame_head, train_linear
from model.observation import Observation, small_rigid
from registration.flame import FULL_EXPRESSION
from registration.mesh import Mesh, sample_surface, transform_points, vertex_normals
from registration.template import REGIONS, Template
from storage.errors import ConfigError

BALL = o3d.geometry.TriangleMesh.create_sphere(1.0, 40)
FACES = np.asarray(BALL.triangles).astype(np.int32)
_V = np.asarray(BALL.vertices)
MIRROR = np.array([np.linalg.norm(_V - v * [-1, 1, 1], axis=1).argmin() for v in _V], np.int32)
CONFIG = PcaConfig(noise_mm=0.3)


def shape(identity: np.ndarray, expression: np.ndarray) -> np.ndarray:
    """An ellipsoid with a nose that grows, and a lower half that drops."""
    v = _V
    nose = np.exp(-((v - [0, 0, 1]) ** 2).sum(1) / 0.05)
    out = v * [75 + 6 * identity[0], 110 + 8 * identity[1], 95.0]
    out[:, 2] += (12 + 4 * identity[2]) * nose
    out[:, 1] -= 8 * expression[0] / (1 + np.exp(v[:, 1] / 0.15))
    out[:, 0] *= 1 + 0.08 * expression[1] * (v[:, 1] < 0)
    return out


def _template() -> Template:
    """The ball with landmarks before the ears, on the chin and at the mouth's corners."""
    mesh = Mesh.of(shape(np.zeros(3), np.zeros(2)), FACES)
    places = {0: [-1, 0, 0], 16: [1, 0, 0], 48: [-0.4, -0.35, 0.85], 54: [0.4, -0.35, 0.85]}
    places |= {mark: [0.1 * (mark - 8), -0.75, 0.65] for mark in range(6, 11)}
    landmarks = np.zeros(68, np.int32)
    for mark, place in places.items():
        landmarks[mark] = np.linalg.norm(_V - place, axis=1).argmin()
    n, none = len(_V), np.zeros((0, len(_V), 3), np.float32)
    return Template(
        "ball", mesh, landmarks, np.zeros(2, np.int32), 1, np.full(n, REGIONS.index("face"), np.uint8),
        np.ones(n, bool), MIRROR, np.arange(3, dtype=np.int32), none, none,
    )  # fmt: skip


TEMPLATE = _template()


def _people(count: int = 12, expressions: int = 3) -> RegisteredHeads:
    rng = np.random.default_rng(0)
    people = [rng.normal(size=3) for _ in range(count)]
    still = np.zeros(2)
    told = [(place, e) for place in range(count) for e in rng.normal(size=(expressions, 2))]
    return RegisteredHeads.of(
        TEMPLATE,
        [shape(z, still) for z in people],
        [shape(people[place], e) for place, e in told],
        [place for place, _ in told],
    )


@pytest.fixture(scope="module")
def pca() -> LinearHead:
    return train_linear("pca", _people(), CONFIG)


def front(vertices: np.ndarray, count: int = 2500, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    mesh = Mesh.of(vertices, FACES)
    points, face, bary = sample_surface(mesh, count, np.random.default_rng(seed))
    normals = np.einsum("nk,nkc->nc", bary, vertex_normals(mesh.vertices, mesh.faces)[FACES[face]])
    keep = points[:, 2] > 0
    return points[keep], normals[keep]


def test_modes_hold_what_the_people_differ_in(pca: LinearHead) -> None:
    assert len(pca.identity_basis) == 3
    np.testing.assert_allclose(pca.vertices(np.zeros(3), np.zeros(pca.own)), pca.mean_mm)
    away = shape(np.array([1.0, -1.0, 0.5]), np.zeros(2)) - pca.mean_mm
    modes = pca.identity_basis.reshape(3, -1)
    coefficients = np.linalg.lstsq(modes.T, away.ravel(), rcond=None)[0]
    np.testing.assert_allclose(coefficients @ modes, away.ravel(), atol=1e-6)
    assert np.abs(coefficients).max() < 3  # spreads are units


def test_fits_one_view_with_a_wrong_pose(pca: LinearHead) -> None:
    true = shape(np.array([1.0, -1.0, 0.8]), np.array([1.0, -0.5]))
    points, normals = front(true)
    wrong = small_rigid(np.array([0.02, -0.03, 0.01, 2.0, -3.0, 1.0]))
    observation = Observation("view", transform_points(wrong, points), normals @ wrong[:3, :3].T)
    (head,) = LinearFitter(pca, CONFIG).fit([observation], seed=0)
    assert np.median(head.residual_mm) < 0.3
    assert np.linalg.norm(head.mesh.vertices - transform_points(wrong, true), axis=1).mean() < 2.5


def test_expressions_share_the_identity_and_outliers_are_trimmed(pca: LinearHead) -> None:
    expressions = ([1.0, -0.5], [-1.0, 0.5], [0.0, 0.0])
    true = [shape(np.array([1.0, -1.0, 0.8]), np.array(one)) for one in expressions]
    observations = []
    for seed, vertices in enumerate(true):
        points, normals = front(vertices, seed=seed)
        clutter = np.random.default_rng(seed).uniform([-100, -100, 120], [100, 100, 200], (200, 3))
        told = np.concatenate([normals, np.zeros_like(clutter)])
        observations.append(Observation(str(seed), np.concatenate([points, clutter]), told))
    for head, vertices in zip(LinearFitter(pca, CONFIG).fit(observations, seed=0), true, strict=True):
        assert np.linalg.norm(head.mesh.vertices - vertices, axis=1).mean() < 2.0


def test_identity_alone_has_no_expression_to_give() -> None:
    bfm = train_linear("bfm", _people(), CONFIG)
    assert bfm.own == 0
    neutral, dropped = (shape(np.zeros(3), np.array(one)) for one in ([0.0, 0.0], [2.0, 0.0]))
    far = []
    for vertices in (neutral, dropped):
        points, normals = front(vertices)
        (head,) = LinearFitter(bfm, CONFIG).fit([Observation("view", points, normals)], seed=0)
        far.append(np.linalg.norm(head.mesh.vertices - vertices, axis=1).mean())
    assert far[0] < 1.0
    assert far[1] > 3 * far[0]


def test_one_person_and_no_expressions_still_make_a_model() -> None:
    head = shape(np.zeros(3), np.zeros(2))
    for name in ("pca", "bfm", "flame"):
        made = train_linear(name, RegisteredHeads.of(TEMPLATE, [head], [], []), CONFIG)  # type: ignore[arg-type]
        points, normals = front(head)
        (fitted,) = LinearFitter(made, CONFIG).fit([Observation("view", points + [1.0, 0, 0], normals)], seed=0)
        assert np.isfinite(fitted.mesh.vertices).all()
    with pytest.raises(ConfigError, match="no canonical"):
        RegisteredHeads.of(TEMPLATE, [], [], [])


WEIGHTS = 1 / (1 + np.exp((_V[:, 1] + 0.35 * _V[:, 2]) / 0.04))
"""A jaw below the line from before the ears to the mouth's corners."""
OPEN_DEG = (12.0, 25.0, -4.0, 18.0, 8.0)


def _opened(vertices: np.ndarray, degrees: float) -> np.ndarray:
    joint = vertices[TEMPLATE.landmarks[[0, 16]]].mean(0) + [0, -5.0, 4.0]
    bend = Rotation.from_euler("x", degrees, degrees=True).as_matrix() - np.eye(3)
    return np.asarray(vertices + WEIGHTS[:, None] * ((vertices - joint) @ bend.T))


def _jawed_people() -> RegisteredHeads:
    rng = np.random.default_rng(1)
    people = [shape(rng.normal(size=3), np.zeros(2)) for _ in range(6)]
    told = [(place, degrees) for place in range(6) for degrees in OPEN_DEG]
    return RegisteredHeads.of(
        TEMPLATE, people, [_opened(people[place], one) for place, one in told], [place for place, _ in told]
    )


def test_a_jaw_is_found_again() -> None:
    heads = _jawed_people()
    jaw, closed = learn_jaw(TEMPLATE, heads.canonical_mm, heads.posed_mm, heads.subject)
    np.testing.assert_allclose(jaw.offset_mm[1:], [-5.0, 4.0], atol=2.0)  # drawn a little towards the landmarks
    assert np.abs(jaw.weights - WEIGHTS).mean() < 0.03
    told = np.radians([*OPEN_DEG * 6, *[0.0] * 6])
    np.testing.assert_allclose([jaw.mean_rad[0], jaw.spread_rad[0]], [told.mean(), told.std()], rtol=0.05)
    left = np.linalg.norm(closed - heads.canonical_mm[heads.subject], axis=2).mean()
    moved = np.linalg.norm(heads.posed_mm - heads.canonical_mm[heads.subject], axis=2).mean()
    assert left < 0.15 * moved


def test_a_jaw_opens_further_than_modes_follow() -> None:
    heads = _jawed_people()
    true = _opened(shape(np.array([0.5, 0.5, -0.5]), np.zeros(2)), 40.0)
    points, normals = front(true)
    far = {}
    for name in ("pca", "flame"):
        fitter = LinearFitter(train_linear(name, heads, CONFIG), CONFIG)  # type: ignore[arg-type]
        (head,) = fitter.fit([Observation("view", points, normals)], seed=0)
        far[name] = np.linalg.norm(head.mesh.vertices - true, axis=1)[_V[:, 2] > 0].mean()
    assert far["flame"] < 1.0
    assert far["flame"] < far["pca"]


def test_tangents_are_the_derivatives_of_the_vertices() -> None:
    rng = np.random.default_rng(2)
    jaw = Jaw(WEIGHTS, TEMPLATE.landmarks[[0, 16]], np.array([0, -5.0, 4.0]), np.array([0.1, 0, 0]), np.full(3, 0.2))
    n = len(_V)
    head = LinearHead("x", shape(np.zeros(3), np.zeros(2)), rng.normal(size=(2, n, 3)), rng.normal(size=(3, n, 3)),
                      FACES, jaw)  # fmt: skip
    z, own = rng.normal(size=2), rng.normal(size=6)
    by_z, by_own = head.tangents(z, own)
    for tangent, place in ((by_z, 0), (by_own, 1)):
        for entry, slope in enumerate(tangent):
            step = [np.zeros(2), np.zeros(6)]
            step[place][entry] = 1e-3
            after, before = (head.vertices(z + sign * step[0], own + sign * step[1]) for sign in (1, -1))
            np.testing.assert_allclose(slope, (after - before) / 2e-3, atol=1e-3)


def test_a_flame_file_gives_its_own_modes() -> None:
    rng = np.random.default_rng(3)
    n = len(_V)
    modes = rng.normal(size=(5, n, 3)).astype(np.float32)
    told = Template(**{**vars(TEMPLATE), "identity_basis": modes[:3], "expression_basis": modes[3:]})
    head = flame_head(told, PcaConfig(identity_modes=2))
    moved = head.vertices(np.array([0.0, 1.0]), np.array([FULL_EXPRESSION, 0.0])) - TEMPLATE.mesh.vertices
    np.testing.assert_allclose(moved, modes[1] + modes[3], rtol=1e-5, atol=1e-4)
