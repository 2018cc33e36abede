"""A small noiseless or noisy rig for tests: depth views of a mesh by ray casting."""

from __future__ import annotations

import numpy as np
import open3d as o3d
from scipy.spatial.transform import Rotation

from registration.mesh import Mesh
from registration.views import DepthView, Intrinsics, pixel_rays


def sphere(radius: float = 100.0, resolution: int = 40, bumps_mm: float = 0.0) -> Mesh:
    """A sphere about the origin, on demand with bumps that fix its rotation."""
    ball = o3d.geometry.TriangleMesh.create_sphere(1.0, resolution)
    unit = np.asarray(ball.vertices)
    relief = np.sin(5 * unit[:, 0]) * np.cos(4 * unit[:, 1] + 1) + np.sin(6 * unit[:, 2] + 3 * unit[:, 0])
    return Mesh.of(unit * (radius + bumps_mm * relief)[:, None], np.asarray(ball.triangles))


def camera_poses(count: int, distance: float = 600.0, target: tuple[float, ...] = (0, 0, 0)) -> np.ndarray:
    """(count, 4, 4) poses around the y axis at three heights, all looking at a target."""
    poses = []
    for k in range(count):
        azimuth, elevation = 2 * np.pi * k / count, np.radians([-15, 10, 35][k % 3])
        back = np.array([np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)])
        side = np.cross([0.0, 1.0, 0.0], back)
        side /= np.linalg.norm(side)
        T = np.eye(4)
        T[:3, :3] = np.stack([side, np.cross(-back, side), -back], 1)
        T[:3, 3] = np.array(target) + distance * back
        poses.append(T)
    return np.stack(poses)


def see(
    mesh: Mesh,
    poses: np.ndarray,
    width: int = 160,
    height: int = 120,
    focal: float | None = None,
    noise_mm: float = 0.0,
    distortion: tuple[float, float, float, float, float] = (0, 0, 0, 0, 0),
    seed: int = 0,
) -> tuple[DepthView, ...]:
    """Depth views of a mesh from the given poses; noise along the rays."""
    scene = o3d.t.geometry.RaycastingScene(1)
    scene.add_triangles(o3d.core.Tensor(mesh.vertices), o3d.core.Tensor(mesh.faces.astype(np.uint32)))
    focal = 1.05 * width if focal is None else focal
    camera = Intrinsics(width, height, focal, focal, width / 2, height / 2, distortion)
    v, u = np.mgrid[:height, :width] + 0.5
    x, y = pixel_rays(camera, u, v)
    rng = np.random.default_rng(seed)
    views = []
    for k, T in enumerate(poses):
        rays = np.stack([x, y, np.ones_like(x)], -1) @ T[:3, :3].T
        cast = np.concatenate([np.broadcast_to(T[:3, 3], rays.shape), rays], -1).astype(np.float32)
        depth = scene.cast_rays(o3d.core.Tensor(cast))["t_hit"].numpy()
        depth = np.where(np.isfinite(depth), depth + rng.normal(0, 1, depth.shape) * noise_mm, 0).astype(np.float32)
        color = np.full((height, width, 3), (90, 120, 150), np.uint8)
        views.append(DepthView(f"{k:03d}", depth, color, camera, T))
    return tuple(views)


def shaken(poses: np.ndarray, position_mm: float, angle_deg: float, seed: int = 0) -> np.ndarray:
    """Poses with errors of the given spread per axis."""
    rng = np.random.default_rng(seed)
    out = poses.copy()
    for T in out:
        T[:3, :3] = T[:3, :3] @ Rotation.from_rotvec(np.radians(rng.normal(0, angle_deg, 3))).as_matrix()
        T[:3, 3] += rng.normal(0, position_mm, 3)
    return out
