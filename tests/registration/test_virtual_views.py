import numpy as np
import pytest

from registration.mesh import Mesh, transform_points
from registration.views import DepthView, pixel_rays
from registration.virtual_views import camera_from_raster, views_from_clouds, views_of_mesh
from tests.registration.mesh_rig import camera_poses, see, sphere


def cloud_of(view: DepthView, T: np.ndarray | None = None) -> Mesh:
    row, column = np.nonzero(view.depth_mm)
    z = view.depth_mm[row, column].astype(float)
    x, y = pixel_rays(view.intrinsics, column + 0.5, row + 0.5)
    points = transform_points(view.T_world_from_camera if T is None else T, np.stack([x * z, y * z, z], 1))
    return Mesh.of(points, np.zeros((0, 3)), view.color[row, column])


@pytest.mark.parametrize("noise_mm", [0.0, 0.5])
def test_the_camera_follows_from_points_in_the_order_of_its_pixels(noise_mm):
    view = see(sphere(bumps_mm=6.0, resolution=80), camera_poses(5), width=320, height=240, noise_mm=noise_mm)[1]
    camera, T = camera_from_raster(cloud_of(view).vertices.astype(float))
    assert camera.fx == pytest.approx(view.intrinsics.fx, rel=2e-4)
    assert camera.fy == pytest.approx(view.intrinsics.fy, rel=2e-4)
    np.testing.assert_allclose(T, view.T_world_from_camera, atol=0.15)


def test_points_in_another_order_have_no_camera_but_still_a_view():
    views = see(sphere(bumps_mm=6.0), camera_poses(4), width=200, height=160)
    rng = np.random.default_rng(0)
    clouds = [cloud_of(view) for view in views]
    mixed = [Mesh.of(c.vertices[p], c.faces, c.colors[p]) for c in clouds for p in [rng.permutation(len(c.vertices))]]
    assert camera_from_raster(mixed[0].vertices.astype(float)) is None
    for cloud, view in zip(mixed, views_from_clouds(mixed), strict=True):
        kept = (view.depth_mm > 0).sum()
        assert kept > 0.5 * len(cloud.vertices)


def test_a_mesh_is_seen_from_all_sides():
    views = views_of_mesh(sphere(resolution=30), np.zeros(3), count=8, pixel_mm=4.0, radius_mm=140)
    for v in range(8):
        depth = views.depth_mm[views.pixels(v)]
        _, height, width = views.layout[v]
        row, column = np.nonzero(depth.reshape(height, width) > 0)
        flat = views.pixels(v).start + row * width + column
        z = views.depth_mm[flat]
        fx, fy, cx, cy = views.cameras[v, :4]
        local = np.stack([(column + 0.5 - cx) / fx * z, (row + 0.5 - cy) / fy * z, z], 1)
        world = transform_points(views.T_world_from_camera[v], local)
        assert np.abs(np.linalg.norm(world, axis=1) - 100).max() < 0.7
        normal = views.normal[flat] @ views.T_world_from_camera[v][:3, :3].T
        assert ((normal * world).sum(1) > 0).all()
