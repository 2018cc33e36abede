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


def fit(
    *clouds: np.ndarray | Observation, config: FitConfig = CONFIG, seed: int = 0, sequence: bool = False
) -> FittedCodes:
    observations = [c if isinstance(c, Observation) else Observation(f"cloud {i}", c) for i, c in enumerate(clouds)]
    return fit_codes(Ellipsoids(), PRIOR_Z, PRIOR_E, observations, config, seed, sequence=sequence)


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
    anchors_mm = np.array([[-40, 0, 0], [42, 1, 0], [-30, 30, 0], [27, 30, 2], [0, 0, 50]])
    prior = identity_prior(codes, layout, anchors_mm)
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


def test_rays_that_pass_a_head_say_where_it_ends() -> None:
    narrow = [-2.0, 0.0, 0.0, 0.0]  # 61 mm to each side instead of 75
    points = cloud(narrow, [0.0, 0.0])
    points = points[np.abs(points[:, 0]) < 15]  # the middle of the face says little of the width
    points = points + np.random.default_rng(3).normal(scale=1.5, size=(len(points), 1)) * [0, 0, 1]
    eye = np.array([0.0, 0.0, 3000.0])
    rng = np.random.default_rng(2)
    behind = np.stack([rng.uniform(-140, 140, 1500), rng.uniform(0, 60, 1500), np.full(1500, -300.0)], 1)
    # the ray's own place where it passes the head's middle plane decides whether it hits
    at_middle = eye + (behind - eye) * (3000.0 / 3300.0)
    radii = RADII_MM * np.exp(0.1 * np.array(narrow[:3]))
    passes = ((at_middle[:, :2] / radii[:2]) ** 2).sum(1) > 1.02
    seen = np.concatenate([points, behind[passes]])
    rays = np.stack([np.broadcast_to(eye, seen.shape), seen], 1)
    box = np.array([[-150.0, -150.0, -150.0], [150.0, 150.0, 150.0]])
    width = {}
    for name, count in (("with", 1500), ("without", 0)):
        config = CONFIG.model_copy(update={"ray_points": count, "noise_mm": 1.5, "ray_spread_mm": 1.0})
        width[name] = fit(Observation("front", points, None, rays, box), config=config).identity[0]
    assert abs(width["with"] + 2.0) < 0.5
    assert abs(width["with"] + 2.0) < 0.5 * abs(width["without"] + 2.0)


def test_rays_that_end_on_a_head_do_not_dent_it() -> None:
    points = cloud([0.8, -0.5, 0.6, 0.7], [1.2, -0.8])
    rays = np.stack([np.broadcast_to([0.0, 0.0, 600.0], points.shape), points], 1)
    fitted = fit(Observation("front", points, None, rays))
    np.testing.assert_allclose(fitted.identity, [0.8, -0.5, 0.6, 0.7], atol=0.2)


def test_a_wrong_scale_is_found_where_it_is_asked_for() -> None:
    points = cloud([0.0, 0.0, 0.0, 0.0], [0.0, 0.0]) / 1.05
    stiff = CodePrior(np.zeros(4), 1e6 * np.eye(4))
    left = {}
    for share, scale in ((0.05, 1.05), (0.0, 1.0)):
        config = CONFIG.model_copy(update={"scale_share": share})
        fitted = fit_codes(Ellipsoids(), stiff, PRIOR_E, [Observation("small", points)], config)
        assert fitted.scales[0] == pytest.approx(scale, abs=0.003)
        left[scale] = np.nanmedian(fitted.residual_mm[0])
    assert left[1.05] < 0.03
    assert left[1.0] > 0.3


def _frames(count: int = 9, points: int = 6) -> tuple[list[np.ndarray], np.ndarray]:
    """Few noisy points a frame of a head that opens its mouth slowly."""
    opening = np.stack([1.5 * np.sin(np.linspace(0, np.pi, count)), np.linspace(-0.5, 0.5, count)], 1)
    rng = np.random.default_rng(8)
    clouds = []
    for number, expression in enumerate(opening):
        exact = cloud([0.5, 0.0, 0.3, 0.4], list(expression), points, seed=number)
        clouds.append(exact + rng.normal(scale=1.5, size=exact.shape))
    return clouds, opening


def test_a_sequence_has_a_smooth_track_and_is_nearer_to_the_truth() -> None:
    clouds, true = _frames()
    config = CONFIG.model_copy(update={"noise_mm": 1.5, "last_scale_mm": 4.0, "expression_step": 0.5})
    tracks = {tied: np.stack(fit(*clouds, config=config, sequence=tied).expressions) for tied in (True, False)}
    rough = {tied: np.square(np.diff(track, n=2, axis=0)).sum() for tied, track in tracks.items()}
    off = {tied: np.sqrt(np.square(track - true).mean()) for tied, track in tracks.items()}
    assert rough[True] < 0.2 * rough[False]
    assert off[True] < 0.9 * off[False]


def test_a_sequence_does_not_care_in_which_frames_its_poses_are_told() -> None:
    clouds, _ = _frames(4, 200)
    told = [small_rigid(np.array([0.01 * k, -0.02 * k, 0.01, 2.0 * k, -1.0, 1.0 * k])) for k in range(4)]
    moved = [
        Observation(str(k), transform_points(np.linalg.inv(T), points), T_world_from_told=T)
        for k, (T, points) in enumerate(zip(told, clouds, strict=True))
    ]
    config = CONFIG.model_copy(update={"iterations": 20, "rotation_deg": 20.0, "translation_mm": 50.0})
    plain, other = fit(*clouds, config=config, sequence=True), fit(*moved, config=config, sequence=True)
    np.testing.assert_allclose(np.stack(other.expressions), np.stack(plain.expressions), atol=0.08)
    for k in range(4):
        np.testing.assert_allclose(told[k] @ other.T_told_from_head[k], plain.T_told_from_head[k], atol=0.5)


def test_points_weigh_by_the_noise_that_they_tell_of(monkeypatch: pytest.MonkeyPatch) -> None:
    true = [0.6, -0.4, 0.3, 0.5]
    off: dict[str, list[float]] = {"told": [], "ignored": []}
    for name in off:
        if name == "ignored":
            monkeypatch.setattr("model.fit_cloud.cloud_noise_mm", lambda points: 0.0)
        for seed in range(4):
            exact = cloud(true, [0.0, 0.0], 150, seed)
            noisy = exact + np.random.default_rng(seed).normal(scale=3.0, size=exact.shape)
            off[name].append(float(np.abs(fit(noisy, config=CONFIG).identity - true).mean()))
    assert np.mean(off["told"]) < 0.8 * np.mean(off["ignored"])
