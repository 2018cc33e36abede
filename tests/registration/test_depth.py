import numpy as np
import pytest
from scipy.ndimage import correlate

from registration.depth import depth_noise_mm, fit_radius, fit_views, thinned
from registration.local_fit import fit_depth, window_radii
from registration.mesh import transform_points
from registration.views import DepthView, Intrinsics, pixel_rays
from tests.registration.mesh_rig import camera_poses, see, sphere


def fit(depth, radii=(3,), noise=0.05, pixel=0.9):
    height, width = depth.shape
    window = np.array([0, height, 0, width])
    return fit_depth(depth.astype(np.float32), np.ones(depth.shape, bool), window, np.array(radii), noise, pixel)


def quadric(height=30, width=40):
    v, u = np.mgrid[:height, :width].astype(float)
    return 600 + 0.2 * u - 0.1 * v + 0.004 * u * u - 0.003 * u * v + 0.002 * v * v


def test_a_quadric_is_reproduced_with_its_slopes():
    depth, slope, weight = fit(quadric())
    v, u = np.mgrid[3:27, 3:37].astype(float)
    np.testing.assert_allclose(depth[3:27, 3:37], quadric()[3:27, 3:37], atol=2e-4)
    np.testing.assert_allclose(slope[3:27, 3:37, 0], 0.2 + 0.008 * u - 0.003 * v, atol=2e-4)
    np.testing.assert_allclose(slope[3:27, 3:37, 1], -0.1 - 0.003 * u + 0.004 * v, atol=2e-4)
    np.testing.assert_allclose(weight[5:25, 5:35], 1.0, atol=0.02)


def test_agrees_with_plain_least_squares_where_nothing_is_an_outlier():
    noisy = quadric() + np.random.default_rng(0).normal(0, 0.002, (30, 40))
    depth, _, _ = fit(noisy, noise=5.0)
    b, a = np.mgrid[-3:4, -3:4].reshape(2, -1).astype(float)
    design = np.stack([np.ones_like(a), a, b, a * a, a * b, b * b], 1)
    for row, column in ((10, 12), (20, 30), (15, 5)):
        patch = noisy.astype(np.float32)[row - 3 : row + 4, column - 3 : column + 4].astype(float)
        expected = np.linalg.lstsq(design, patch.ravel(), rcond=None)[0][0]
        assert depth[row, column] == pytest.approx(expected, abs=1e-4)


def test_averages_noise_and_keeps_a_step_sharp():
    rng = np.random.default_rng(1)
    true = np.where(np.arange(60) < 30, 600.0, 640.0)[None].repeat(40, 0)
    noisy = true + rng.normal(0, 0.2, true.shape)
    depth, _, _ = fit(noisy, noise=0.2)
    seen = depth > 0
    assert seen.mean() > 0.95
    assert np.abs(depth - true)[seen].max() < 1.0
    assert np.std((depth - true)[5:35, 5:20]) < 0.5 * 0.2


def test_drops_flying_pixels():
    depth = np.full((30, 60), 600.0)
    depth[:, 30:] = 640.0
    flying = np.zeros(depth.shape, bool)
    flying[4:26:3, 29] = True
    depth[flying] = 618.0
    fitted, _, _ = fit(depth, window_radii(3))
    assert (fitted[flying] == 0).all()


def test_a_strip_too_narrow_for_a_quadric_is_kept_at_little_weight():
    depth = np.full((40, 40), 640.0)
    depth[:, 20:22] = 600.0
    fitted, _, weight = fit(depth, window_radii(5))
    np.testing.assert_allclose(fitted[:, 20:22], 600.0, atol=1e-3)
    assert 0 < weight[:, 20:22].max() < 0.5


def test_a_strip_beside_a_surface_a_little_behind_it_is_told_apart():
    depth = np.full((40, 40), 603.0)
    depth[:, 20:22] = 600.0 + 0.3 * np.arange(40)[:, None] - 6.0  # two pixels wide, leaning through the other's depth
    fitted, slope, _ = fit(depth, window_radii(3))
    strip = (slice(4, 24), slice(20, 22))
    np.testing.assert_allclose(fitted[strip], depth[strip], atol=0.1)
    np.testing.assert_allclose(slope[strip][..., 1], 0.3, atol=0.05)


def test_what_is_curved_too_much_for_the_wide_window_gets_a_narrow_one():
    v, u = np.mgrid[:60, :60].astype(float)
    true = 600 + 4.0 * np.cos(0.45 * u) * np.cos(0.45 * v)
    noisy = true + np.random.default_rng(0).normal(0, 0.1, true.shape)
    b, a = np.mgrid[-5:6, -5:6].reshape(2, -1).astype(float)
    design = np.stack([np.ones_like(a), a, b, a * a, a * b, b * b], 1)
    wide = correlate(noisy, np.linalg.pinv(design)[0].reshape(11, 11))
    depth, _, _ = fit(noisy, window_radii(5), noise=0.1)
    inner = (slice(6, -6), slice(6, -6))
    assert (depth[inner] > 0).all()
    error, wide_error = (np.sqrt(np.mean((one - true)[inner] ** 2)) for one in (depth, wide))
    assert error < 0.25 * wide_error


@pytest.mark.parametrize("noise", [0.1, 0.5, 1.5])
def test_measures_the_noise(noise):
    depth = quadric(120, 160) + np.random.default_rng(0).normal(0, noise, (120, 160))
    assert depth_noise_mm(depth) == pytest.approx(noise, rel=0.06)


def test_coarsely_rounded_depth_counts_as_noise():
    v, u = np.mgrid[:120, :160].astype(float)
    depth = 600 + ((u - 80) ** 2 + (v - 60) ** 2) * 0.0015  # nearly frontal: most neighbours round to the same mm
    assert depth_noise_mm(np.round(depth)) >= 0.28
    fitted, _, _ = fit(np.round(depth), window_radii(4), noise=depth_noise_mm(np.round(depth)))
    assert (fitted > 0).mean() > 0.97


@pytest.mark.parametrize(
    ("noise_mm", "pixel_mm", "radius"), [(0.03, 0.9, 2), (0.1, 0.45, 3), (1.5, 0.9, 5), (1.5, 1.5, 4), (1.5, 4.0, 2)]
)
def test_the_window_averages_the_noise_but_stays_narrow_on_the_surface(noise_mm, pixel_mm, radius):
    assert fit_radius(noise_mm, pixel_mm) == radius


def test_thinned_views_show_the_same_points():
    view = see(sphere(), camera_poses(1), distortion=(0.05, 0.01, 0.001, -0.001, 0.0))[0]
    thin = thinned(view, 3)

    def points(one: DepthView):
        row, column = np.nonzero(one.depth_mm)
        z = one.depth_mm[row, column]
        x, y = pixel_rays(one.intrinsics, column + 0.5, row + 0.5)
        return transform_points(one.T_world_from_camera, np.stack([x * z, y * z, z], 1))

    everything = {tuple(p) for p in np.round(points(view), 6)}
    assert all(tuple(p) in everything for p in np.round(points(thin), 6))


def test_packed_normals_look_at_the_camera_and_out_of_the_sphere():
    views = see(sphere(resolution=80), camera_poses(3))
    fitted = fit_views(views, [view.depth_mm > 0 for view in views])
    for v, view in enumerate(views):
        pixels = fitted.pixels(v)
        _, height, width = fitted.layout[v]
        row, column = np.nonzero(fitted.weight[pixels].reshape(height, width) > 0.5)
        flat = pixels.start + row * width + column
        camera = fitted.cameras[v]
        z = fitted.depth_mm[flat]
        x, y = pixel_rays(Intrinsics(0, 0, *camera[:4]), column + 0.5, row + 0.5)
        world = transform_points(view.T_world_from_camera, np.stack([x * z, y * z, z], 1))
        normal = fitted.normal[flat] @ view.T_world_from_camera[:3, :3].T
        assert (normal * world).sum(1).min() / 100 > 0.98
        np.testing.assert_allclose(np.linalg.norm(world, axis=1), 100, atol=0.3)


def test_threads_change_nothing():
    views = see(sphere(), camera_poses(4), noise_mm=0.1)
    regions = [view.depth_mm > 0 for view in views]
    one, two = fit_views(views, regions, threads=1), fit_views(views, regions, threads=2)
    assert one.depth_mm.tobytes() == two.depth_mm.tobytes()
    assert one.normal.tobytes() == two.normal.tobytes()
