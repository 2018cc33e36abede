"""Find the head among body, chair and wall, and say which part of the world belongs to it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from registration.alignment import Alignment, align_head
from registration.compiled import compiled
from registration.depth import FittedViews
from registration.mesh import transform_points
from registration.template import Template
from registration.views import DepthView, camera_of, pixel_rays
from storage.errors import ScanRejected, one_line

SEARCH_RADIUS_MM = 330.0
"""A head whose middle is 100 mm off the point that the cameras look at still lies wholly within this ball."""
MARGIN_MM = 12.0
"""Depth pixels up to this far outside the box take part in the fit and in the refinement of poses."""


def looked_at(views: Sequence[DepthView]) -> NDArray[np.float64]:
    """The point (3,) nearest to all optical axes, world mm, held near the median depths where the axes are parallel."""
    H, b = np.zeros((3, 3)), np.zeros(3)
    for view in views:
        origin, axis = view.T_world_from_camera[:3, 3], view.T_world_from_camera[:3, 2]
        across = np.eye(3) - np.outer(axis, axis)
        H += across
        b += across @ origin
        depth = view.depth_mm[view.depth_mm > 0]
        if len(depth):
            along = np.outer(axis, axis) * 1e-2
            near = float(np.percentile(depth, 20))
            H += along
            b += along @ (origin + near * axis)
    return np.asarray(np.linalg.solve(H + 1e-12 * np.eye(3), b), np.float64)


def ball_region(view: DepthView, centre_mm: NDArray, radius_mm: float) -> NDArray[np.bool_]:
    """Mask (h, w) of the pixels whose depth falls into a ball of the world."""
    mask = view.depth_mm > 0
    world = _mask_points(view, mask)
    mask[mask] = ((world - centre_mm) ** 2).sum(1) < radius_mm**2
    return mask


def oriented_points(views: FittedViews, keep: Sequence[int]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """All well fitted points of some views: positions (n, 3) and normals (n, 3) out of the surface, world frame, mm."""
    points, normals = [np.zeros((0, 3))], [np.zeros((0, 3))]
    for v in keep:
        _, height, width = views.layout[v]
        pixels = views.pixels(v)
        row, column = np.nonzero(views.weight[pixels].reshape(height, width) > 0.2)
        flat = pixels.start + row * width + column
        z = views.depth_mm[flat].astype(np.float64)
        x, y = pixel_rays(camera_of(views.cameras[v]), column + 0.5, row + 0.5)
        T = views.T_world_from_camera[v]
        points.append(transform_points(T, np.stack([x * z, y * z, z], 1)))
        normals.append(views.normal[flat] @ T[:3, :3].T)
    return np.concatenate(points), np.concatenate(normals)


def find_head(
    points_mm: NDArray[np.floating], normals: NDArray[np.floating], template: Template, where: str, seed: int = 0
) -> Alignment:
    """Align the template's head with points of the scan.

    Raises:
        ScanRejected: there is no head, or nothing to look for it in.
    """
    if len(points_mm) < 500:
        raise ScanRejected(
            one_line("too few depth points where the cameras look", where, f"{len(points_mm)}", "check the frames")
        )
    return accepted_head(align_head(points_mm, normals, template, seed), where)


def accepted_head(found: Alignment, where: str) -> Alignment:
    """The alignment, if there is a head.

    Raises:
        ScanRejected: there is none, or there are two.
    """
    if not found.accepted:
        raise ScanRejected(one_line("no head", where, found.reason, "capture it again or leave it out"))
    if found.second_head_mm is not None:
        why = f"they are {found.second_head_mm:.0f} mm apart"
        remedy = "capture one person at a time, or cut the other head away"
        raise ScanRejected(one_line("two heads", where, why, remedy))
    return found


def in_box(
    points_mm: NDArray[np.floating],
    T_world_from_head: NDArray,
    low_mm: NDArray,
    high_mm: NDArray,
    margin_mm: float = 0.0,
) -> NDArray[np.bool_]:
    """Mask (n,) of world points within a box of the head frame."""
    head = transform_points(np.linalg.inv(T_world_from_head), points_mm)
    return np.asarray(((head > np.asarray(low_mm) - margin_mm) & (head < np.asarray(high_mm) + margin_mm)).all(1))


def head_region(
    view: DepthView, T_world_from_head: NDArray, low_mm: NDArray, high_mm: NDArray, margin_mm: float = MARGIN_MM
) -> NDArray[np.bool_]:
    """Mask (h, w) of the pixels whose depth falls into the head's box."""
    row, column = np.mgrid[: view.intrinsics.height, : view.intrinsics.width]
    x, y = pixel_rays(view.intrinsics, column + 0.5, row + 0.5)
    T = np.linalg.inv(T_world_from_head) @ view.T_world_from_camera
    low, high = np.asarray(low_mm, np.float64) - margin_mm, np.asarray(high_mm, np.float64) + margin_mm
    return np.asarray(pixels_in_box(view.depth_mm, x, y, T, low, high))


@compiled
def pixels_in_box(depth_mm, x, y, T_box_from_camera, low_mm, high_mm):  # type: ignore[no-untyped-def]
    """Mask (h, w) of the pixels whose depth falls into a box; x, y (h, w) are the pixels' rays (x/z, y/z)."""
    T = T_box_from_camera
    mask = np.zeros(depth_mm.shape, np.bool_)
    for r in range(depth_mm.shape[0]):
        for c in range(depth_mm.shape[1]):
            z = np.float64(depth_mm[r, c])
            inside = z > 0
            for a in range(3):
                p = (T[a, 0] * x[r, c] + T[a, 1] * y[r, c] + T[a, 2]) * z + T[a, 3]
                inside = inside and low_mm[a] < p < high_mm[a]
            mask[r, c] = inside
    return mask


def _mask_points(view: DepthView, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    rows, columns = np.nonzero(mask)
    z = view.depth_mm[rows, columns].astype(np.float64)
    x, y = pixel_rays(view.intrinsics, columns + 0.5, rows + 0.5)
    return transform_points(view.T_world_from_camera, np.stack([x * z, y * z, z], 1))
