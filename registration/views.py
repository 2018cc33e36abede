"""What a capture is once it is read: depth views, clouds or a fused mesh, all in mm; and its cameras' geometry."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from registration.mesh import Mesh

Layout = Literal["depth_frames", "view_clouds", "fused_mesh"]


@dataclass(frozen=True)
class Intrinsics:
    """A pinhole camera with lens distortion. Pixel centres lie at +0.5.

    Attributes:
        width, height: image size in pixels.
        fx, fy, cx, cy: focal lengths and principal point in pixels.
        distortion: Brown's radial and tangential terms (k1, k2, p1, p2, k3).
    """

    width: int
    height: int
    fx: float
    fy: float
    cx: float
    cy: float
    distortion: tuple[float, float, float, float, float] = (0.0, 0.0, 0.0, 0.0, 0.0)

    def as_row(self) -> NDArray[np.float64]:
        """(9,) fx, fy, cx, cy, k1, k2, p1, p2, k3: the form that the compiled kernels take."""
        return np.array([self.fx, self.fy, self.cx, self.cy, *self.distortion])


@dataclass(frozen=True)
class DepthView:
    """One depth image with its told camera.

    Attributes:
        name: the frame's name in its session, for messages.
        depth_mm: (h, w) float32 along the optical axis, 0 where nothing came back.
        color: (h, w, 3) uint8 sRGB, or None.
        intrinsics: of the depth image; the colour image shares them.
        T_world_from_camera: (4, 4) float64, rigid, mm; camera axes x right, y down, z forward.
    """

    name: str
    depth_mm: NDArray[np.float32]
    color: NDArray[np.uint8] | None
    intrinsics: Intrinsics
    T_world_from_camera: NDArray[np.float64]


@dataclass(frozen=True)
class Capture:
    """One scan as it came from the rig. Which field is filled depends on the layout.

    Attributes:
        key: SUBJECT/EXPRESSION, for messages.
        layout: how the scan was handed over.
        depth_views: for ``depth_frames``.
        clouds: for ``view_clouds``: one cloud a view, world frame, mm.
        cloud_names: their names in the session, for messages.
        mesh: for ``fused_mesh``: world frame, mm.
    """

    key: str
    layout: Layout
    depth_views: tuple[DepthView, ...] = ()
    clouds: tuple[Mesh, ...] = ()
    cloud_names: tuple[str, ...] = ()
    mesh: Mesh | None = None


def distort(x: NDArray, y: NDArray, terms: tuple[float, ...]) -> tuple[NDArray, NDArray]:
    """Apply Brown's lens distortion to normalised image coordinates (x/z, y/z) of any shape."""
    k1, k2, p1, p2, k3 = terms
    r2 = x * x + y * y
    radial = 1 + r2 * (k1 + r2 * (k2 + r2 * k3))
    return (
        x * radial + 2 * p1 * x * y + p2 * (r2 + 2 * x * x),
        y * radial + p1 * (r2 + 2 * y * y) + 2 * p2 * x * y,
    )


def pixel_rays(
    camera: Intrinsics, u: NDArray[np.floating], v: NDArray[np.floating]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Normalised coordinates (x/z, y/z) of image positions in pixels, the lens distortion taken out.

    Newton's method on a numerical Jacobian; exact to rounding for distortions that do not fold within the image.
    """
    target_x = (np.asarray(u, np.float64) - camera.cx) / camera.fx
    target_y = (np.asarray(v, np.float64) - camera.cy) / camera.fy
    terms = camera.distortion
    if not any(terms):
        return target_x, target_y
    x, y = target_x.copy(), target_y.copy()
    h = 1e-6
    for _ in range(8):
        dx, dy = distort(x, y, terms)
        ax, ay = distort(x + h, y, terms)
        bx, by = distort(x, y + h, terms)
        xx, yx, xy, yy = (ax - dx) / h, (ay - dy) / h, (bx - dx) / h, (by - dy) / h
        det = xx * yy - xy * yx
        rx, ry = target_x - dx, target_y - dy
        x += (yy * rx - xy * ry) / det
        y += (xx * ry - yx * rx) / det
    return x, y


def camera_of(row: NDArray[np.floating]) -> Intrinsics:
    """The camera of a kernel's row (9,), see ``Intrinsics.as_row``; its image size is not known there."""
    fx, fy, cx, cy, k1, k2, p1, p2, k3 = (float(value) for value in row)
    return Intrinsics(0, 0, fx, fy, cx, cy, (k1, k2, p1, p2, k3))
