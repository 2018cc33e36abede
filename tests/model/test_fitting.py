from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from model.bound_fields import Places
from model.code_prior import CodePrior, expression_prior, farthest_codes, identity_prior, mirrored_entries
from model.codes import IdentityLayout
from model.fit_config import FitConfig
from model.fitting import FittedCodes, fit_codes, surface_spread_mm
from model.observation import Observation, small_rigid
from model.posterior import Posterior
from model.root_finding import find_canonical, implicit_canonical, posed_jacobian, safe_inverse
from model.units import to_mm, to_units
from registration.mesh import transform_points

RADII_MM = np.array([75.0, 110.0, 95.0])


class Ellipsoids:
    """Heads that are ellipsoids with a nose; the expression drops and widens the lower half."""

    device = torch.device("cpu")

    def bind(self, identity: Tensor, expression: Tensor) -> "BoundEllipsoids":
        return BoundEllipsoids(identity, expression)


@dataclass
class BoundEllipsoids:
    identity: Tensor
    expression: Tensor

    def sdf(self, points: Tensor) -> Tensor:
        radii = torch.tensor(to_units(RADII_MM), dtype=torch.float32) * torch.exp(0.1 * self.identity[:, :3])
        away = points - torch.tensor([0.0, 0.0, to_units(100.0)])
        nose = to_units(12.0) * (1 + self.identity[:, 3]) * torch.exp(-(away**2).sum(1) / to_units(25.0) ** 2)
        scaled = (points / radii).norm(dim=1)
        return (scaled - 1) * scaled / (points / radii**2).norm(dim=1).clamp_min(1e-6) - nose

    def displacement(self, points: Tensor) -> Tensor:
        low = torch.sigmoid(-points[:, 1] / to_units(20.0))
        drop = to_units(10.0) * self.expression[:, 0] * low
        wide = 0.1 * self.expression[:, 1] * low * points[:, 0]
        return torch.stack([wide, -drop, torch.zeros_like(drop)], 1)

    def canonical(self, posed: Tensor, start: Tensor | None = None) -> Places:
        roots = find_canonical(self.displacement, posed, start)
        return Places(roots.canonical, roots.converged)

    def posed(self, canonical: Tensor) -> Places:
        return Places(canonical + self.displacement(canonical), torch.ones(len(canonical), dtype=torch.bool))

    def distance(self, posed: Tensor, canonical: Tensor) -> Tensor:
        inverse = safe_inverse(posed_jacobian(self.displacement, canonical))
        reposed = canonical + self.displacement(canonical)
        return self.sdf(implicit_canonical(canonical, reposed, posed, inverse))


PRIOR_Z = CodePrior(np.zeros(4), np.eye(4))
PRIOR_E = CodePrior(np.zeros(2), np.eye(2))
CONFIG = FitConfig(points=800, noise_mm=0.3)


def cloud(identity: list[float], expression: list[float], count: int = 1500, seed: int = 0) -> np.ndarray:
    """Points (n, 3) on the posed surface, mm: directions are pushed to the zero level, then deformed."""
    fields = Ellipsoids().bind(torch.tensor([identity]), torch.tensor([expression]))
    rng = np.random.default_rng(seed)
    direction = rng.normal(size=(count, 3))
    direction[:, 2] = np.abs(direction[:, 2])
    x = torch.tensor(to_units(direction / np.linalg.norm(direction, axis=1, keepdims=True) * 100), dtype=torch.float32)
    for _ in range(60):
        x = x * (1 - fields.sdf(x) / x.norm(dim=1))[:, None]
    return to_mm(fields.posed(x).place.double().numpy())


def fit(*clouds: np.ndarray, config: FitConfig = CONFIG, seed: int = 0) -> FittedCodes:
    observations = [Observation(f"cloud {i}", points) for i, points in enumerate(clouds)]
    return fit_codes(Ellipsoids(), PRIOR_Z, PRIOR_E, observations, config, seed)


def test_finds_identity_and_expression_of_one_view() -> None:
    fitted = fit(cloud([0.8, -0.5, 0.6, 0.7], [1.2, -0.8]))
    assert np.nanmedian(fitted.residual_mm[0]) < 0.1
    np.testing.assert_allclose(fitted.identity, [0.8, -0.5, 0.6, 0.7], atol=0.2)
    np.testing.assert_allclose(fitted.expressions[0], [1.2, -0.8], atol=0.2)


def test_expressions_of_one_person_share_their_identity() -> None:
    expressions = [[1.5, 0.5], [0.0, 0.0], [-0.5, -1.0]]
    clouds = [cloud([0.8, -0.5, 0.6, 0.7], e, seed=i) for i, e in enumerate(expressions)]
    fitted = fit(*clouds)
    assert len(fitted.expressions) == len(fitted.residual_mm) == 3
    np.testing.assert_allclose(fitted.identity, [0.8, -0.5, 0.6, 0.7], atol=0.15)
    np.testing.assert_allclose(np.stack(fitted.expressions), expressions, atol=0.2)


def test_finds_a_wrong_pose() -> None:
    wrong = small_rigid(np.array([0.03, -0.05, 0.02, 3.0, -4.0, 2.0]))
    fitted = fit(transform_points(wrong, cloud([0.5, -0.5, 0.3, 0.5], [0.5, 0.3])))
    assert np.nanmedian(fitted.residual_mm[0]) < 0.1
    points = cloud([0.5, -0.5, 0.3, 0.5], [0.5, 0.3])
    moved = transform_points(fitted.T_told_from_head[0], points) - transform_points(wrong, points)
    assert np.median(np.linalg.norm(moved, axis=1)) < 2.0


def test_a_kept_pose_stays() -> None:
    config = CONFIG.model_copy(update={"rotation_deg": 0.0, "translation_mm": 0.0})
    fitted = fit(cloud([0.5, -0.5, 0.3, 0.5], [0.5, 0.3]), config=config)
    np.testing.assert_array_equal(fitted.T_told_from_head[0], np.eye(4))


def test_clutter_does_not_bend_the_head() -> None:
    points = cloud([0.8, -0.5, 0.6, 0.7], [1.2, -0.8])
    clutter = np.random.default_rng(1).uniform([-150, -150, 100], [150, 150, 250], (300, 3))
    fitted = fit(np.concatenate([points, clutter]))
    np.testing.assert_allclose(fitted.identity, [0.8, -0.5, 0.6, 0.7], atol=0.25)


def test_same_seed_same_codes_and_no_points_no_news() -> None:
    points = cloud([0.8, -0.5, 0.6, 0.7], [1.2, -0.8])
    first, second = fit(points, seed=3), fit(points, seed=3)
    assert first.identity.tobytes() == second.identity.tobytes()
    far = fit(points + 400.0)
    assert np.isfinite(far.identity).all()


def test_priors_know_the_mirror() -> None:
    layout = IdentityLayout(global_dim=2, local_dim=3, anchors=5, pairs=2)
    assert layout.size == 20
    rng = np.random.default_rng(0)
    codes = rng.normal(size=(6, 20))
    swap = mirrored_entries(layout)
    codes[:, 2:14] = 0.5 * (codes + codes[:, swap])[:, 2:14] + 0.05 * codes[:, 2:14]  # nearly symmetric people
    prior = identity_prior(codes, layout)
    np.testing.assert_allclose(prior.mean, prior.mean[swap])
    code = rng.normal(size=20)
    assert prior.cost(code) == pytest.approx(prior.cost(code[swap]))
    lopsided, even = prior.mean.copy(), prior.mean.copy()
    lopsided[2:5] += 0.5
    lopsided[5:8] -= 0.5
    even[2:8] += 0.5
    assert prior.cost(lopsided) > 5 * prior.cost(even)
    assert np.linalg.eigvalsh(prior.precision).min() > 0


def test_expression_prior_has_the_spread_of_its_codes() -> None:
    codes = np.random.default_rng(0).normal(size=(400, 3)) * [1.0, 2.0, 0.5] + [0, 1, 0]
    prior = expression_prior(codes)
    np.testing.assert_allclose(1 / np.sqrt(np.diag(prior.precision)), [1.0, 2.0, 0.5], rtol=0.15)
    assert prior.cost(prior.mean) == 0


def test_starts_are_far_from_each_other() -> None:
    rng = np.random.default_rng(0)
    corners = np.array([[3.0, 0], [0, 3], [-3, 0]])
    codes = np.concatenate([corner + 0.1 * rng.normal(size=(10, 2)) for corner in corners])
    starts = farthest_codes(codes, expression_prior(codes), 4)
    assert len(starts) == 4
    np.testing.assert_allclose(starts[0], codes.mean(0))
    nearest = np.linalg.norm(starts[1:, None] - corners, axis=2).argmin(1)
    assert sorted(nearest) == [0, 1, 2]
    assert len(farthest_codes(np.zeros((5, 2)), PRIOR_E, 4)) == 1


def test_a_far_expression_is_found_from_its_neighbour() -> None:
    points = cloud([0.2, 0.0, 0.0, 0.0], [6.0, 0.0])  # the lower half dropped by 60 mm
    starts = np.array([[0.0, 0.0], [5.0, 0.0], [-5.0, 0.0]])
    fitted = fit_codes(
        Ellipsoids(),
        PRIOR_Z,
        CodePrior(np.zeros(2), 0.1 * np.eye(2)),
        [Observation("cloud", points)],
        CONFIG,
        0,
        starts,
    )
    np.testing.assert_allclose(fitted.expressions[0], [6.0, 0.0], atol=0.5)


def test_spread_is_small_where_points_are_and_grows_where_none_are() -> None:
    points = cloud([0.8, -0.5, 0.6, 0.7], [1.2, -0.8])
    nose, back = points[points[:, 2].argmax()][None], np.array([[0.0, 30.0, -95.0]])
    front = fit(points[points[:, 1] > 0])  # the lower half, which the expression moves, was not seen
    chin = points[points[:, 1].argmin()][None]
    at = {name: surface_spread_mm(Ellipsoids(), front, 0, p)[0] for name, p in (("nose", nose), ("chin", chin))}
    assert at["nose"] < CONFIG.noise_mm  # many points tell more than one
    assert at["chin"] > 5 * at["nose"]
    more = fit(points)
    assert surface_spread_mm(Ellipsoids(), more, 0, chin)[0] < at["chin"]
    assert np.isfinite(surface_spread_mm(Ellipsoids(), more, 0, back)).all()


def test_posterior_is_the_inverse_of_the_whole_hessian() -> None:
    rng = np.random.default_rng(0)
    root = rng.normal(size=(7, 7))
    hessian = root @ root.T + np.eye(7)
    A, B, C = hessian[:4, :4], hessian[:4, 4:], hessian[4:, 4:]
    by_identity = np.linalg.solve(C, B.T)
    identity = np.linalg.inv(A - B @ by_identity)
    posterior = Posterior(identity, np.linalg.inv(C), by_identity, np.ones(3, bool))
    J = rng.normal(size=(5, 7))
    slow = np.sqrt(np.diag(J @ np.linalg.inv(hessian) @ J.T))
    np.testing.assert_allclose(posterior.spread(J[:, :4], J[:, 4:]), slow)
