"""The simulated depth camera: where it stands, what it sees, and how it errs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import open3d as o3d
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

Field = NDArray[np.float64]

REFERENCE_MM = 600.0
"""Distance at which noise and field of view are told."""
FURTHEST_MM = 1500.0
EDGE_MM = 8.0
"""A step in depth between neighbours that counts as an edge."""


@dataclass(frozen=True)
class Profile:
    """How a rig errs.

    Attributes:
        views: cameras around the head.
        noise_mm: standard deviation of a pixel's depth at 600 mm, growing with the square of the distance; half as much
            again varies slowly over the picture.
        pose_error_mm, pose_error_deg: standard deviations per axis of the told camera poses.
        floating_share: of the pixels at edges, how many float between the two surfaces.
        grazing_deg: no return where the surface turns away further.
        holes: expected number of holes a view.
        clutter: a chair and a wall behind the head.
    """

    views: int
    noise_mm: float
    pose_error_mm: float
    pose_error_deg: float
    floating_share: float
    grazing_deg: float
    holes: float
    clutter: bool


PROFILES = {
    "studio": Profile(24, 0.10, 0.3, 0.05, 0.05, 82.0, 1.0, True),
    "handheld": Profile(18, 0.45, 2.0, 0.40, 0.25, 75.0, 4.0, True),
    "phone": Profile(14, 1.20, 4.0, 0.80, 0.40, 70.0, 8.0, True),
    "perfect": Profile(32, 0.0, 0.0, 0.0, 0.0, 89.0, 0.0, False),
}


@dataclass(frozen=True)
class Lens:
    """Picture size in pixels and the focal length that makes ``field_mm`` at 600 mm fill the picture's height."""

    width: int
    height: int
    field_mm: float

    @property
    def focal_px(self) -> float:
        """Focal length in pixels, the same along both axes."""
        return self.height * REFERENCE_MM / self.field_mm


@dataclass(frozen=True)
class Stage:
    """All that cameras can see, in the world, mm.

    Attributes:
        scene: ready for ray casting.
        faces: (m, 3) int32 of the scene.
        albedo: (v, 3) sRGB per vertex.
    """

    scene: o3d.t.geometry.RaycastingScene
    faces: NDArray[np.int32]
    albedo: Field


def set_stage(vertices: Field, faces: NDArray[np.int32], albedo: Field) -> Stage:
    """Prepare a surface for the cameras."""
    scene = o3d.t.geometry.RaycastingScene(nthreads=1)
    scene.add_triangles(_tensor(vertices.astype(np.float32)), _tensor(faces.astype(np.uint32)))
    return Stage(scene, faces, albedo)


def place_cameras(target: Field, views: int, rng: np.random.Generator) -> list[Field]:
    """Poses (4, 4), camera to world, OpenGL axes: a ring of three heights, denser in front of the face (at +z)."""
    poses = []
    for i in range(views):
        turn = 2 * np.pi * (i + 0.5) / views
        azimuth = turn - 0.35 * np.sin(turn) + rng.normal(0, 0.03)
        elevation = np.radians((-16.0, 6.0, 30.0)[i % 3] + rng.normal(0, 2.0))
        eye = rng.uniform(570.0, 640.0) * np.array(
            [np.sin(azimuth) * np.cos(elevation), np.sin(elevation), np.cos(azimuth) * np.cos(elevation)]
        )
        back = eye / np.linalg.norm(eye)
        right = np.cross([0.0, 1.0, 0.0], back)
        right /= np.linalg.norm(right)
        pose = np.eye(4)
        pose[:3, :3] = np.stack([right, np.cross(back, right), back], 1)
        pose[:3, 3] = target + eye
        poses.append(pose)
    return poses


def tell_wrongly(pose: Field, profile: Profile, rng: np.random.Generator) -> Field:
    """The pose that the rig's calibration tells for a true one."""
    told = pose.copy()
    slip = rng.normal(0.0, 1.0, 6)
    told[:3, :3] = pose[:3, :3] @ Rotation.from_rotvec(np.radians(profile.pose_error_deg) * slip[:3]).as_matrix()
    told[:3, 3] += profile.pose_error_mm * slip[3:]
    return told


def photograph(
    stage: Stage, pose: Field, lens: Lens, profile: Profile, rng: np.random.Generator
) -> tuple[Field, NDArray[np.uint8]]:
    """Take a depth picture (h, w) in mm along the optical axis, 0 without return, and a colour picture (h, w, 3)."""
    u, v = np.meshgrid(np.arange(lens.width) + 0.5, np.arange(lens.height) + 0.5)
    across, down = (u - lens.width / 2) / lens.focal_px, (v - lens.height / 2) / lens.focal_px
    rays = np.stack([across, -down, -np.ones_like(u)], -1) @ pose[:3, :3].T  # unit length along the axis
    start = np.broadcast_to(pose[:3, 3], rays.shape)
    hit = stage.scene.cast_rays(_tensor(np.concatenate([start, rays], -1).astype(np.float32)))
    true = hit["t_hit"].numpy().astype(np.float64)
    seen = np.isfinite(true)
    true[~seen] = 0.0
    normal = hit["primitive_normals"].numpy().astype(np.float64)
    facing = (
        np.abs((normal * rays).sum(-1))
        / np.linalg.norm(rays, axis=-1)
        / np.maximum(np.linalg.norm(normal, axis=-1), 1e-9)
    )
    color = np.full((lens.height, lens.width, 3), 28.0)
    corner = stage.faces[hit["primitive_ids"].numpy()[seen].astype(np.int64)]
    bary = hit["primitive_uvs"].numpy()[seen].astype(np.float64)
    weight = np.column_stack([1.0 - bary.sum(1), bary])
    color[seen] = np.einsum("nk,nkc->nc", weight, stage.albedo[corner]) * (0.25 + 0.75 * facing[seen])[:, None]
    depth = _err(true, profile, rng)
    depth[~seen | (true > FURTHEST_MM) | (facing < np.cos(np.radians(profile.grazing_deg)))] = 0.0
    for _ in range(rng.poisson(profile.holes)):
        at, radius = rng.uniform([0, 0], [lens.width, lens.height]), rng.uniform(0.008, 0.045) * lens.height
        depth[(u - at[0]) ** 2 + (v - at[1]) ** 2 < radius**2] = 0.0
    return depth, np.clip(np.round(color), 0, 255).astype(np.uint8)


def _err(true: Field, profile: Profile, rng: np.random.Generator) -> Field:
    """Noise of single pixels, slow noise, and what happens at edges."""
    spread = profile.noise_mm * (true / REFERENCE_MM) ** 2
    slow = gaussian_filter(rng.normal(0.0, 1.0, true.shape), 6.0)
    depth = true + spread * rng.normal(0.0, 1.0, true.shape) + 0.5 * spread * slow / slow.std()
    if profile.floating_share == 0.0:
        return depth
    luck, reach = rng.random(true.shape), rng.random(true.shape)
    for axis, shift in ((0, 1), (1, 1), (0, -1), (1, -1)):
        beside = np.roll(true, shift, axis)
        edge = np.abs(beside - true) > EDGE_MM
        floats = edge & (luck < profile.floating_share)
        gap = np.where(beside > 0, np.clip(beside - true, -60.0, 60.0), 25.0)
        depth[floats] = (true + reach * gap)[floats]
        depth[edge & (luck > 0.6)] = 0.0
    return depth


def count_views(
    points: Field, normals: Field, poses: list[Field], stage: Stage, grazing_deg: float
) -> NDArray[np.uint8]:
    """How many cameras see each point (n,) in free sight, from outside, below the grazing angle."""
    count = np.zeros(len(points), np.uint8)
    for pose in poses:
        way = points - pose[:3, 3]
        distance = np.linalg.norm(way, axis=1)
        way = way / distance[:, None]
        start = np.broadcast_to(pose[:3, 3], way.shape)
        hit = stage.scene.cast_rays(_tensor(np.concatenate([start, way], 1).astype(np.float32)))
        free = hit["t_hit"].numpy() > distance - 0.5
        count += (free & (-(way * normals).sum(1) > np.cos(np.radians(grazing_deg)))).astype(np.uint8)
    return count


def _tensor(array: NDArray) -> o3d.core.Tensor:
    return o3d.core.Tensor.from_numpy(np.ascontiguousarray(array))
