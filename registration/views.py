"""What a capture is once it is read: depth views, clouds or a fused mesh, all in mm."""

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
        mesh: for ``fused_mesh``: world frame, mm.
    """

    key: str
    layout: Layout
    depth_views: tuple[DepthView, ...] = ()
    clouds: tuple[Mesh, ...] = ()
    mesh: Mesh | None = None
