"""Depth views of what came without any: clouds whose cameras were not told, and meshes that were fused elsewhere.

A view cloud was a pinhole depth image once. Where its points still stand in the order of the pixels, the camera
follows from them alone: the points of an image row lie in a plane through the camera's centre, all these planes share
a line, and along a row the directions advance in equal steps. Depth noise moves points along their own rays and
leaves all of this exact. A cloud in any other order is looked at from an estimated place instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import open3d as o3d
from numpy.typing import NDArray

from registration.depth import FittedViews
from registration.mesh import Mesh, face_normals, transform_points
from registration.views import DepthView, Intrinsics

LATTICE_TOLERANCE_PX = 0.15
"""A recovered camera must bring the points this near to pixel centres, in the mean."""
GUESSED_DISTANCE_MM = 600.0
MAX_PIXELS = 4096
"""A recovered image wider or higher than this is no image."""


def views_from_clouds(clouds: Sequence[Mesh], names: Sequence[str] = ()) -> tuple[DepthView, ...]:
    """Depth views of clouds, world frame in mm; named by their place in the sequence where no names are given."""
    middle = np.median(np.concatenate([cloud.vertices[::50] for cloud in clouds if len(cloud.vertices)]), axis=0)
    views = []
    for index, cloud in enumerate(clouds):
        if len(cloud.vertices) == 0:
            continue
        found = camera_from_raster(cloud.vertices.astype(np.float64))
        camera, T = found if found is not None else _guessed_camera(cloud, middle)
        views.append(_rendered(names[index] if names else f"{index:03d}", cloud, camera, T))
    return tuple(views)


def _rendered(name: str, cloud: Mesh, camera: Intrinsics, T_world_from_camera: NDArray) -> DepthView:
    """Put each point into its pixel, the nearest where several meet."""
    points = transform_points(np.linalg.inv(T_world_from_camera), cloud.vertices)
    points_ok = points[:, 2] > 1.0
    z = np.where(points_ok, points[:, 2], 1.0)
    column = np.floor(camera.fx * points[:, 0] / z + camera.cx).astype(np.int64)
    row = np.floor(camera.fy * points[:, 1] / z + camera.cy).astype(np.int64)
    inside = points_ok & (column >= 0) & (row >= 0) & (column < camera.width) & (row < camera.height)
    order = np.flatnonzero(inside)
    order = order[np.argsort(-z[order], kind="stable")]
    depth = np.zeros((camera.height, camera.width), np.float32)
    depth[row[order], column[order]] = z[order]
    color = None
    if cloud.colors is not None:
        color = np.zeros((camera.height, camera.width, 3), np.uint8)
        color[row[order], column[order]] = cloud.colors[order]
    return DepthView(name, depth, color, camera, T_world_from_camera)


def camera_from_raster(points: NDArray[np.float64]) -> tuple[Intrinsics, NDArray[np.float64]] | None:
    """Recover the pinhole camera of points that stand in the order of its pixels, row by row.

    Args:
        points: (n, 3) world mm.

    Returns:
        Camera and T_world_from_camera, or None where the points don't stand in such an order.
    """
    runs = _row_runs(points)
    if len(runs) < 20:
        return None
    centre = points.mean(0)
    planes = [_row_plane(points[first:last] - centre) for first, last in runs]
    good = [k for k, (_, _, spread, off) in enumerate(planes) if spread > 3.0 and off < 0.02]
    if len(good) < 20:
        return None
    # All planes hold the line through the camera's centre along its x axis.
    normal = np.stack([planes[k][0] for k in good])
    offset = np.array([planes[k][1] for k in good])
    weight = np.array([planes[k][2] for k in good])
    for _ in range(3):
        moment = (normal * weight[:, None]).T @ normal
        values, vectors = np.linalg.eigh(moment)
        if values[1] < 1e-6 * values[2]:
            return None
        along = vectors[:, 0]
        across = vectors[:, 1:]
        place = across @ np.linalg.solve(across.T @ moment @ across, across.T @ (normal.T @ (weight * offset)))
        miss = np.abs(normal @ place - offset)
        weight = np.array([planes[k][2] for k in good]) / (1 + (miss / (1e-6 + 2 * np.median(miss))) ** 2) ** 2
    steps = np.concatenate([np.diff(points[first:last], axis=0) for first, last in runs])
    if np.median(steps @ along) < 0:
        along = -along
    # Along a row (x - t) / rho advances in equal steps, with rho the distance from the line.
    second, scale = [], []
    for first, last in runs:
        local = points[first:last] - centre - place
        x = local @ along
        rho = np.linalg.norm(local - x[:, None] * along, axis=1)
        second.append(np.stack([np.diff(1 / rho, 2), np.diff(x / rho, 2)], 1))
        scale.append(np.median(np.diff(x / rho)))
    bend = np.concatenate(second)
    step = float(np.median(scale))
    use = np.abs(bend[:, 1]) < 0.4 * step
    t = 0.0
    for gate in (0.4, 0.05, 0.01):
        t = float((bend[use, 0] @ bend[use, 1]) / max(bend[use, 0] @ bend[use, 0], 1e-300))
        use = np.abs(bend[:, 1] - t * bend[:, 0]) < gate * step
        if use.sum() < 200:
            return None
    eye = place + t * along
    # The step of each row, 1 / k = cos(phi - phi0) / f, tells the optical axis and the focal length.
    ahead = -eye - (-eye @ along) * along
    ahead /= np.linalg.norm(ahead)
    down = np.cross(ahead, along)
    rows = []
    for first, last in runs:
        local = points[first:last] - centre - eye
        x, a, b = local @ along, local @ ahead, local @ down
        advance = np.diff(x / np.hypot(a, b))
        typical = np.median(advance)
        advance = advance[np.abs(advance - typical) < 0.1 * typical]
        rows.append((np.arctan2(b, a).mean(), advance.mean() if len(advance) else np.nan, len(advance)))
    table = np.array([row for row in rows if row[2] >= 10])
    if len(table) < 20:
        return None
    design = np.stack([np.cos(table[:, 0]), np.sin(table[:, 0])], 1)
    heft = np.sqrt(table[:, 2])
    for _ in range(5):
        solution, *_ = np.linalg.lstsq(design * heft[:, None], table[:, 1] * heft, rcond=None)
        miss = np.abs(design @ solution - table[:, 1])
        heft = np.sqrt(table[:, 2]) / (1 + (miss / (1e-12 + 3 * np.median(miss))) ** 2)
    tilt = float(np.arctan2(solution[1], solution[0]))
    focal_x = float(1 / np.hypot(*solution))
    forward = np.cos(tilt) * ahead + np.sin(tilt) * down
    T = np.eye(4)
    T[:3, :3] = np.stack([along, np.cross(forward, along), forward], 1)
    T[:3, 3] = eye + centre
    local = (points - T[:3, 3]) @ T[:3, :3]
    if (local[:, 2] <= 0).any():
        return None
    x, y = local[:, 0] / local[:, 2], local[:, 1] / local[:, 2]
    focal_y = _lattice_scale(np.array([np.median(y[first:last]) for first, last in runs]), focal_x)
    u, v = focal_x * x, focal_y * y
    shift_u, miss_u = _lattice_shift(u)
    shift_v, miss_v = _lattice_shift(v)
    if max(miss_u, miss_v) > LATTICE_TOLERANCE_PX:
        return None
    cx = shift_u - np.floor((u + shift_u).min())
    cy = shift_v - np.floor((v + shift_v).min())
    width, height = int((u + cx).max()) + 1, int((v + cy).max()) + 1
    if max(width, height) > MAX_PIXELS:
        return None
    return Intrinsics(width, height, focal_x, focal_y, float(cx), float(cy)), T


def _row_runs(points: NDArray[np.float64], least: int = 25) -> list[tuple[int, int]]:
    """Stretches [first, last) of points that follow each other closely."""
    gap = np.linalg.norm(np.diff(points, axis=0), axis=1)
    limit = 5.0 * float(np.median(gap))
    ends = np.flatnonzero(gap > limit) + 1
    bounds = np.concatenate([[0], ends, [len(points)]])
    return [(int(a), int(b)) for a, b in pairwise(bounds) if b - a >= least]


def _row_plane(points: NDArray[np.float64]) -> tuple[NDArray[np.float64], float, float, float]:
    """Normal and offset of the plane through a run, how far the run spreads within it, and how far out of it."""
    middle = points.mean(0)
    _, values, vectors = np.linalg.svd(points - middle, full_matrices=False)
    root = np.sqrt(len(points))
    return vectors[2], float(vectors[2] @ middle), float(values[1] / root), float(values[2] / root)


def _lattice_scale(y: NDArray[np.float64], guess: float) -> float:
    """Focal length that brings the rows onto whole numbers, near a guess."""
    rows = np.sort(y) * guess
    gaps = np.diff(rows)
    gaps = gaps[(gaps > 0.5) & (gaps < 1.5)]
    return guess / float(np.median(gaps)) if len(gaps) >= 10 else guess


def _lattice_shift(u: NDArray[np.float64]) -> tuple[float, float]:
    """What to add so that positions fall on pixel centres (+0.5), and how far they miss them in the mean."""
    phase = np.exp(2j * np.pi * u).mean()
    shift = 0.5 - np.angle(phase) / (2 * np.pi)
    off = (u + shift) % 1.0 - 0.5
    return float(shift), float(np.abs(off).mean())


def _guessed_camera(cloud: Mesh, middle: NDArray) -> tuple[Intrinsics, NDArray[np.float64]]:
    """A camera in front of a cloud: a view sees the near half of the head, so its points lean towards it."""
    points = cloud.vertices.astype(np.float64)
    near = points[np.linalg.norm(points - middle, axis=1) < 150.0]
    lean = (near if len(near) > 100 else points).mean(0) - middle
    back = lean / max(np.linalg.norm(lean), 1e-9)
    side = np.cross(np.eye(3)[np.abs(back).argmin()], back)
    side /= np.linalg.norm(side)
    T = np.eye(4)
    T[:3, :3] = np.stack([side, np.cross(-back, side), -back], 1)
    T[:3, 3] = middle + GUESSED_DISTANCE_MM * back
    local = transform_points(np.linalg.inv(T), points)
    local = local[(local[:, 2] > 100.0) & (local[:, 2] < 2 * GUESSED_DISTANCE_MM)]
    # About one point a pixel.
    spacing = float(np.median(np.linalg.norm(np.diff(points, axis=0), axis=1)))
    focal = GUESSED_DISTANCE_MM / float(np.clip(1.3 * spacing, 0.5, 4.0))
    half = np.percentile(np.abs(local[:, :2] / local[:, 2:]), 99.5, axis=0) * focal + 2 if len(local) else np.ones(2)
    width, height = (int(min(2 * h, MAX_PIXELS)) for h in half)
    return Intrinsics(width, height, focal, focal, width / 2, height / 2), T


def views_of_mesh(
    mesh: Mesh, centre_mm: NDArray, count: int = 26, pixel_mm: float = 1.2, radius_mm: float = 240.0
) -> FittedViews:
    """Look at a mesh from all around, without noise: exact planes at every pixel.

    Args:
        mesh: world frame, mm; faces counter-clockwise from outside.
        centre_mm: (3,) what the cameras look at.
        count: of cameras, spread evenly over the sphere.
        pixel_mm: width of a pixel at the centre.
        radius_mm: of what must be in the picture.
    """
    scene = o3d.t.geometry.RaycastingScene(1)
    faces = o3d.core.Tensor.from_numpy(mesh.faces.astype(np.uint32))
    scene.add_triangles(o3d.core.Tensor.from_numpy(mesh.vertices), faces)
    normals = face_normals(mesh.vertices, mesh.faces)
    distance = 700.0
    focal = distance / pixel_mm
    size = int(2 * radius_mm / pixel_mm)
    camera = Intrinsics(size, size, focal, focal, size / 2, size / 2)
    step = (np.arange(size) + 0.5 - size / 2) / focal
    x, y = np.meshgrid(step, step)
    rays = np.stack([x, y, np.ones_like(x)], -1)
    poses: list[NDArray] = []
    depths: list[NDArray] = []
    slopes: list[NDArray] = []
    facing: list[NDArray] = []
    for k in range(count):
        height = 1 - 2 * (k + 0.5) / count
        turn = np.pi * (1 + 5**0.5) * k
        back = np.array([np.sqrt(1 - height**2) * np.cos(turn), height, np.sqrt(1 - height**2) * np.sin(turn)])
        side = np.cross(np.eye(3)[np.abs(back).argmin()], back)
        side /= np.linalg.norm(side)
        T = np.eye(4)
        T[:3, :3] = np.stack([side, np.cross(-back, side), -back], 1)
        T[:3, 3] = np.asarray(centre_mm, np.float64) + distance * back
        world = rays @ T[:3, :3].T
        cast = np.concatenate([np.broadcast_to(T[:3, 3], world.shape), world], -1).astype(np.float32)
        hit = scene.cast_rays(o3d.core.Tensor.from_numpy(cast), nthreads=1)
        z = hit["t_hit"].numpy().astype(np.float64)
        seen = np.isfinite(z)
        normal = np.zeros(rays.shape)
        normal[seen] = normals[hit["primitive_ids"].numpy()[seen].astype(np.int64)] @ T[:3, :3]
        lean = (normal * rays).sum(-1)
        front = seen & (lean < -1e-3)
        safe = np.where(front, lean, -1.0)
        slope = -(np.where(front, z, 0.0)[..., None] * normal[..., :2] / focal) / safe[..., None]
        depth = np.where(front, z, 0.0)
        depth[~seen] = -2.0 * distance
        poses.append(T)
        depths.append(depth.ravel())
        slopes.append(np.where(front[..., None], slope, 0.0).reshape(-1, 2))
        facing.append(normal.reshape(-1, 3))
    packed = np.concatenate(facing).astype(np.float32)
    return FittedViews(
        tuple(f"{k:03d}" for k in range(count)),
        np.repeat(camera.as_row()[None], count, 0),
        np.stack(poses),
        np.column_stack([np.arange(count) * size * size, np.full(count, size), np.full(count, size)]).astype(np.int64),
        np.asarray(np.concatenate(depths), np.float32),
        np.concatenate(slopes).astype(np.float32),
        packed,
        np.clip(-packed[:, 2], 0.05, 1.0).astype(np.float32),
        None,
        np.full(count, 0.05),
    )
