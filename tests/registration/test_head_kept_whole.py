"""The cut is generous: nothing of a head, its hair or its bun is lost above the neck."""

from dataclasses import replace

import numpy as np
from scipy.spatial.transform import Rotation

from pipeline.clean_config import CleanConfig
from registration.depth import fit_views
from registration.head_crop import SEARCH_RADIUS_MM, ball_region, find_head, head_region, looked_at, oriented_points
from registration.mesh import Mesh, transform_points
from registration.procedural_head import head_template
from registration.views import pixel_rays
from tests.registration.mesh_rig import camera_poses, see, sphere


def test_a_head_with_a_bun_is_kept_whole_turned_and_far_off_the_middle_in_any_world():
    template = head_template()
    head = template.mesh
    bun = sphere(34.0)
    top = head.vertices[head.vertices[:, 1].argmax()] * 0.45 + head.vertices[head.vertices[:, 2].argmin()] * 0.55
    worn = Mesh.of(
        np.concatenate([head.vertices, bun.vertices + top + [0, 10, -20]]),
        np.concatenate([head.faces, bun.faces + len(head.vertices)]),
    )
    move = np.eye(4)
    move[:3, :3] = Rotation.from_euler("yxz", [40, -12, 8], degrees=True).as_matrix()
    move[:3, 3] = [100, 10, 0]
    turn = np.eye(4)
    turn[:3, :3] = Rotation.from_euler("zyx", [130, 50, 70], degrees=True).as_matrix()
    views = see(worn.transformed(move), camera_poses(12), noise_mm=0.2)
    views = [replace(view, T_world_from_camera=turn @ view.T_world_from_camera) for view in views]

    centre = looked_at(views)
    fitted = fit_views(views, [ball_region(view, centre, SEARCH_RADIUS_MM) for view in views])
    found = find_head(*oriented_points(fitted, range(12)), template, "s/e")
    config = CleanConfig()
    away = np.linalg.inv(turn @ move)
    for view in views:
        kept = head_region(view, found.T_world_from_head, config.box_low_mm, config.box_high_mm)
        row, column = np.nonzero((view.depth_mm > 0) & ~kept)
        z = view.depth_mm[row, column]
        x, y = pixel_rays(view.intrinsics, column + 0.5, row + 0.5)
        lost = transform_points(away @ view.T_world_from_camera, np.stack([x * z, y * z, z], 1))
        assert (lost[:, 1] < -95.0).all()
