import numpy as np
import open3d as o3d
import pytest

from model.baselines import PcaHead, train_pca
from model.fit_config import PcaConfig
from model.observation import Observation, small_rigid
from registration.mesh import Mesh, sample_surface, transform_points, vertex_normals


def shape(identity: np.ndarray, expression: np.ndarray) -> np.ndarray:
    """An ellipsoid with a nose that grows, and a lower half that drops."""
    ball = o3d.geometry.TriangleMesh.create_sphere(1.0, 40)
    v = np.asarray(ball.vertices)
    nose = np.exp(-((v - [0, 0, 1]) ** 2).sum(1) / 0.05)
    out = v * [75 + 6 * identity[0], 110 + 8 * identity[1], 95.0]
    out[:, 2] += (12 + 4 * identity[2]) * nose
    out[:, 1] -= 8 * expression[0] / (1 + np.exp(v[:, 1] / 0.15))
    out[:, 0] *= 1 + 0.08 * expression[1] * (v[:, 1] < 0)
    return out


BALL = o3d.geometry.TriangleMesh.create_sphere(1.0, 40)
FACES = np.asarray(BALL.triangles).astype(np.int32)
_V = np.asarray(BALL.vertices)
MIRROR = np.array([np.linalg.norm(_V - v * [-1, 1, 1], axis=1).argmin() for v in _V], np.int32)


@pytest.fixture(scope="module")
def pca() -> PcaHead:
    rng = np.random.default_rng(0)
    people = [rng.normal(size=3) for _ in range(12)]
    still = np.zeros(2)
    canonical = [shape(z, still) for z in people]
    offsets = [shape(z, e) - shape(z, still) for z in people for e in rng.normal(size=(3, 2))]
    return train_pca(canonical, offsets, FACES, MIRROR, PcaConfig(noise_mm=0.3))


def front(identity: np.ndarray, expression: np.ndarray, count: int = 2500, seed: int = 0) -> tuple[np.ndarray, ...]:
    mesh = Mesh.of(shape(identity, expression), FACES)
    points, face, bary = sample_surface(mesh, count, np.random.default_rng(seed))
    normals = np.einsum("nk,nkc->nc", bary, vertex_normals(mesh.vertices, mesh.faces)[FACES[face]])
    keep = points[:, 2] > 0
    return points[keep], normals[keep]


def test_modes_hold_what_the_people_differ_in(pca: PcaHead) -> None:
    assert len(pca.identity_basis) == 3
    rebuilt = pca.vertices(np.zeros(3), np.zeros(len(pca.expression_basis)))
    np.testing.assert_allclose(rebuilt, pca.mean_mm)
    away = shape(np.array([1.0, -1.0, 0.5]), np.zeros(2)) - pca.mean_mm
    modes = pca.identity_basis.reshape(3, -1)
    coefficients = np.linalg.lstsq(modes.T, away.ravel(), rcond=None)[0]
    np.testing.assert_allclose(coefficients @ modes, away.ravel(), atol=1e-6)
    assert np.abs(coefficients).max() < 3  # spreads are units


def test_fits_one_view_with_a_wrong_pose(pca: PcaHead) -> None:
    identity, expression = np.array([1.0, -1.0, 0.8]), np.array([1.0, -0.5])
    points, normals = front(identity, expression)
    wrong = small_rigid(np.array([0.02, -0.03, 0.01, 2.0, -3.0, 1.0]))
    observation = Observation("view", transform_points(wrong, points), normals @ wrong[:3, :3].T)
    (head,) = pca.fit([observation], seed=0)
    assert np.median(head.residual_mm) < 0.3
    true = transform_points(wrong, shape(identity, expression))
    assert np.linalg.norm(head.mesh.vertices - true, axis=1).mean() < 2.5


def test_expressions_share_the_identity_and_outliers_are_trimmed(pca: PcaHead) -> None:
    identity = np.array([1.0, -1.0, 0.8])
    observations = []
    for seed, expression in enumerate(([1.0, -0.5], [-1.0, 0.5], [0.0, 0.0])):
        points, normals = front(identity, np.array(expression), seed=seed)
        clutter = np.random.default_rng(seed).uniform([-100, -100, 120], [100, 100, 200], (200, 3))
        told = np.concatenate([normals, np.zeros_like(clutter)])
        observations.append(Observation(str(seed), np.concatenate([points, clutter]), told))
    heads = pca.fit(observations, seed=0)
    for head, expression in zip(heads, ([1.0, -0.5], [-1.0, 0.5], [0.0, 0.0]), strict=True):
        true = shape(identity, np.array(expression))
        assert np.linalg.norm(head.mesh.vertices - true, axis=1).mean() < 2.0


def test_one_person_and_no_expressions_still_make_a_model() -> None:
    head = shape(np.zeros(3), np.zeros(2))
    pca = train_pca([head], [], FACES, MIRROR, PcaConfig())
    points, normals = front(np.zeros(3), np.zeros(2))
    (fitted,) = pca.fit([Observation("view", points + [1.0, 0, 0], normals)], seed=0)
    assert np.isfinite(fitted.mesh.vertices).all()
    with pytest.raises(ValueError, match="no canonical"):
        train_pca([], [], FACES, MIRROR, PcaConfig())
