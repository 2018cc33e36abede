"""Points as a camera would see them on a mesh: single-view clouds to fit to, and samples to compare surfaces on.

Sampling what cameras see, not the mesh itself, leaves hidden layers (the inside of a mouth, the back of a hair shell)
out of every comparison.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from registration.mesh import Mesh
from registration.surface import SurfaceIndex
from registration.views import Intrinsics
from storage.errors import ScanRejected, one_line

FIT_DISTANCE_MM = 650.0
FIT_CAMERA = Intrinsics(1000, 1000, 1500.0, 1500.0, 500.0, 500.0)
EVALUATION_DISTANCE_MM = 600.0
EVALUATION_CAMERA = Intrinsics(960, 1280, 2440.0, 2440.0, 480.0, 640.0)
EVALUATION_VIEWS = 10
GRAZING_COSINE = 0.01
_CANDIDATE_DIRECTIONS = 500


@dataclass(frozen=True)
class RenderedPoints:
    """Points on a surface as cameras saw them.

    Attributes:
        points_mm: (n, 3) float64, in the mesh's frame.
        normals: (n, 3) float64 unit, interpolated from the vertices, turned towards the camera.
        eye_mm: (n, 3) float64 position of the camera that saw each point.
    """

    points_mm: NDArray[np.float64]
    normals: NDArray[np.float64]
    eye_mm: NDArray[np.float64]

    def select(self, keep: NDArray) -> RenderedPoints:
        """Some of the points, by mask or index."""
        return RenderedPoints(self.points_mm[keep], self.normals[keep], self.eye_mm[keep])


def fibonacci_directions(count: int) -> NDArray[np.float64]:
    """Evenly spread unit directions (count, 3) on a sphere, from the lower pole (-y) to the upper, neither included."""
    step = np.arange(count)
    y = (2 * step + 1) / count - 1
    radius = np.sqrt(1 - y**2)
    angle = step * np.pi * (3 - np.sqrt(5))
    return np.stack([radius * np.cos(angle), y, radius * np.sin(angle)], 1)


def frontal_direction(rng: np.random.Generator) -> NDArray[np.float64]:
    """A random Fibonacci direction (3,) from before the face: 0.6 < z < 0.9 and |y| < 0.55, head frame."""
    directions = fibonacci_directions(_CANDIDATE_DIRECTIONS)
    frontal = (directions[:, 2] > 0.6) & (directions[:, 2] < 0.9) & (np.abs(directions[:, 1]) < 0.55)
    return directions[frontal][rng.integers(np.count_nonzero(frontal))]


def above_plane(points: NDArray[np.floating], plane: NDArray[np.floating] | None) -> NDArray[np.bool_]:
    """Mask (n,) of the points with n.x + d >= 0; all where there is no plane (4,)."""
    if plane is None:
        return np.ones(len(points), bool)
    return np.asarray(points @ np.asarray(plane)[:3] + plane[3] >= 0)


def render_points(mesh: Mesh, eye_mm: NDArray[np.floating], camera: Intrinsics, scale: float = 1.0) -> RenderedPoints:
    """Look at the origin of the mesh's frame from one place and back-project every pixel's depth.

    Args:
        mesh: in the head frame, mm.
        eye_mm: (3,) where the camera stands; +y is up in the picture.
        camera: pinhole; its distortion is not used.
        scale: resolution as a share of the camera's own, for quicker renders of the same field of view.

    Returns:
        One point a pixel that hits the mesh from a side that is not grazing (ray . normal < -0.01), row by row.
        Back faces of an open mesh are seen through the hole in front of them and dropped by the same test.
    """
    if len(mesh.faces) == 0:
        return RenderedPoints(*(np.zeros((0, 3)) for _ in range(3)))
    eye = np.asarray(eye_mm, np.float64)
    forward = -eye / np.linalg.norm(eye)
    right = np.cross(forward, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    down = np.cross(forward, right)
    width, height = round(camera.width * scale), round(camera.height * scale)
    u = ((np.arange(width) + 0.5) * camera.width / width - camera.cx) / camera.fx
    v = ((np.arange(height) + 0.5) * camera.height / height - camera.cy) / camera.fy
    rays = forward + u[None, :, None] * right + v[:, None, None] * down
    rays = (rays / np.linalg.norm(rays, axis=2, keepdims=True)).reshape(-1, 3)
    surface = SurfaceIndex(mesh)
    hit = surface.cast(np.broadcast_to(eye, rays.shape), rays)
    seen = np.isfinite(hit.distance_mm)
    normals = surface.normals_at(hit.faces[seen], hit.bary[seen])
    facing = np.einsum("nc,nc->n", rays[seen], normals) < -GRAZING_COSINE
    points = hit.points[seen][facing]
    return RenderedPoints(points, normals[facing], np.broadcast_to(eye, points.shape).copy())


def single_view_cloud(
    mesh: Mesh,
    throat_plane: NDArray[np.floating] | None,
    count: int,
    rng: np.random.Generator,
    direction: NDArray[np.floating] | None = None,
    noise_mm: float = 0.0,
    where: str = "scan",
) -> RenderedPoints:
    """What one depth camera before the face sees of a head (the paper's fitting input).

    Args:
        mesh: in the head frame, mm.
        throat_plane: (4,) head frame; what lies under it is cut.
        count: points drawn, with replacement.
        rng: draws the direction and the points.
        direction: (3,) unit, towards the camera; a random frontal one by default.
        noise_mm: standard deviation of Gaussian noise along the view rays.
        where: the scan's name, for the message.

    Raises:
        ScanRejected: the camera sees nothing above the throat.
    """
    towards = frontal_direction(rng) if direction is None else np.asarray(direction, np.float64)
    seen = render_points(mesh, FIT_DISTANCE_MM * towards, FIT_CAMERA)
    seen = seen.select(above_plane(seen.points_mm, throat_plane))
    if len(seen.points_mm) == 0:
        raise ScanRejected(
            one_line("no view to fit to", where, "the camera sees nothing above the throat", "look at the clean mesh")
        )
    return with_noise(seen.select(rng.integers(len(seen.points_mm), size=count)), noise_mm, rng)


def with_noise(seen: RenderedPoints, noise_mm: float, rng: np.random.Generator) -> RenderedPoints:
    """Move points along the rays that saw them, by Gaussian noise of a standard deviation in mm."""
    if noise_mm == 0:
        return seen
    ray = seen.points_mm - seen.eye_mm
    ray /= np.linalg.norm(ray, axis=1, keepdims=True)
    noise = noise_mm * rng.normal(size=(len(ray), 1))
    return RenderedPoints(seen.points_mm + noise * ray, seen.normals, seen.eye_mm)


def visible_samples(
    mesh: Mesh,
    throat_plane: NDArray[np.floating] | None,
    count: int,
    rng: np.random.Generator,
    scale: float = 1.0,
) -> RenderedPoints:
    """Samples on what ten cameras around the head see of it (the paper's evaluation samples).

    Args:
        mesh: in the head frame, mm.
        throat_plane: (4,) head frame; what lies under it is cut.
        count: points drawn, with replacement; fewer only when nothing is seen (then none).
        rng: draws the points.
        scale: resolution of the renders as a share of 960 x 1280.
    """
    # the two outermost of twelve look along the poles, from where a head has no surface of interest
    directions = fibonacci_directions(EVALUATION_VIEWS + 2)[1:-1]
    views = [render_points(mesh, EVALUATION_DISTANCE_MM * d, EVALUATION_CAMERA, scale) for d in directions]
    seen = RenderedPoints(
        np.concatenate([view.points_mm for view in views]),
        np.concatenate([view.normals for view in views]),
        np.concatenate([view.eye_mm for view in views]),
    )
    seen = seen.select(above_plane(seen.points_mm, throat_plane))
    return seen.select(rng.integers(len(seen.points_mm), size=count)) if len(seen.points_mm) else seen
