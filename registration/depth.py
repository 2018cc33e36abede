"""From raw depth images to a sub-pixel surface: noise, edges and a local quadratic fit around each pixel.

Everything later works on the fitted views: depth and its slope at each pixel, the surface normal, and a weight that
tells how well the fit is conditioned. A pixel that its own neighbours do not support (a flying pixel) drops out here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from registration.compiled import compiled
from registration.local_fit import fit_depth, window_radii
from registration.views import DepthView, Intrinsics, pixel_rays

A = TypeVar("A")
B = TypeVar("B")

SMALLEST_NOISE_MM = 0.03
"""No sensor is trusted beyond this."""
ROUNDING_STRIDE = 7
"""So many pixels from one to the next by which the step of the rounding is told."""


@dataclass(frozen=True)
class FittedViews:
    """The parts of all views that show the region of interest, packed one after another.

    Attributes:
        names: (V) the frames' names.
        cameras: (V, 9) float64, see ``Intrinsics.as_row``; the principal point is that of the cut-out window.
        T_world_from_camera: (V, 4, 4) float64, mm.
        layout: (V, 3) int64: first pixel, height and width of each view's window.
        depth_mm: (P,) float32 fitted depth along the optical axis. 0 where nothing is known; negative where the view
            looked past the region of interest, at something that far away.
        slope: (P, 2) float32 change of the fitted depth per pixel in u and v.
        normal: (P, 3) float32 unit normal towards the camera, camera frame.
        weight: (P,) float32 quality of the fit: 1 in the middle of a smooth frontal patch, small at edges.
        color: (P, 3) uint8 or None.
        noise_mm: (V,) measured depth noise of each view.
    """

    names: tuple[str, ...]
    cameras: NDArray[np.float64]
    T_world_from_camera: NDArray[np.float64]
    layout: NDArray[np.int64]
    depth_mm: NDArray[np.float32]
    slope: NDArray[np.float32]
    normal: NDArray[np.float32]
    weight: NDArray[np.float32]
    color: NDArray[np.uint8] | None
    noise_mm: NDArray[np.float64]

    def with_poses(self, T_world_from_camera: NDArray[np.float64]) -> FittedViews:
        """The same views from other poses (V, 4, 4)."""
        return replace(self, T_world_from_camera=T_world_from_camera)

    def pixels(self, view: int) -> slice:
        """Where a view's pixels lie in the packed columns."""
        first, height, width = self.layout[view]
        return slice(int(first), int(first + height * width))

    def select(self, keep: Sequence[int]) -> FittedViews:
        """Keep some views, in the given order."""
        if list(keep) == list(range(len(self.names))):
            return self
        pixels = np.concatenate([np.arange(self.pixels(v).start, self.pixels(v).stop) for v in keep])
        layout = self.layout[list(keep)].copy()
        layout[:, 0] = np.concatenate([[0], np.cumsum(layout[:, 1] * layout[:, 2])[:-1]])
        return FittedViews(
            tuple(self.names[v] for v in keep),
            self.cameras[list(keep)],
            self.T_world_from_camera[list(keep)],
            layout,
            self.depth_mm[pixels],
            self.slope[pixels],
            self.normal[pixels],
            self.weight[pixels],
            None if self.color is None else self.color[pixels],
            self.noise_mm[list(keep)],
        )


def in_threads(function: Callable[[A], B], items: Sequence[A], threads: int) -> list[B]:
    """Map over items in order; the compiled kernels release the interpreter's lock, so threads help."""
    if threads <= 1 or len(items) <= 1:
        return [function(item) for item in items]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(function, items))


def thinned(view: DepthView, stride: int) -> DepthView:
    """Every ``stride``-th pixel of a view in both directions, its camera adapted."""
    if stride <= 1:
        return view
    offset = stride // 2
    depth = np.ascontiguousarray(view.depth_mm[offset::stride, offset::stride])
    color = None if view.color is None else np.ascontiguousarray(view.color[offset::stride, offset::stride])
    told = view.intrinsics
    camera = Intrinsics(
        depth.shape[1],
        depth.shape[0],
        told.fx / stride,
        told.fy / stride,
        (told.cx - offset - 0.5) / stride + 0.5,
        (told.cy - offset - 0.5) / stride + 0.5,
        told.distortion,
    )
    return replace(view, depth_mm=depth, color=color, intrinsics=camera)


def depth_noise_mm(depth_mm: NDArray[np.floating]) -> float:
    """Spread of the depth noise, from fourth differences along the rows: curvature and its change drop out of them, and
    they spread wide enough for depth that is rounded more coarsely than it is noisy.

    Args:
        depth_mm: (h, w), 0 where there is no return.

    Returns:
        A standard deviation in mm, robust against edges; at least that of the depth's own rounding.
    """
    levels = np.unique(depth_mm[depth_mm > 0][::ROUNDING_STRIDE]).astype(np.float64)
    rounding = float(np.median(np.diff(levels))) / np.sqrt(12.0) if len(levels) > 1 else 0.0
    least = max(SMALLEST_NOISE_MM, rounding)
    width = max(0, depth_mm.shape[1] - 4)
    columns = [depth_mm[:, k:][:, :width] for k in range(5)]
    full = np.all([column > 0 for column in columns], axis=0)
    bend = sum(factor * column[full] for factor, column in zip((1, -4, 6, -4, 1), columns, strict=True))
    if np.size(bend) < 100:
        return least
    return max(least, float(1.4826 * np.median(np.abs(bend)) / np.sqrt(70.0)))


def fit_radius(noise_mm: float, pixel_mm: float) -> int:
    """Window radius in pixels: enough of them to average the noise, never wider than about 6 mm on the surface."""
    if noise_mm < 0.05:
        radius = 2
    elif noise_mm < 0.25:
        radius = 3
    elif noise_mm < 0.8:
        radius = 4
    else:
        radius = 5
    return min(radius, max(2, round(6.0 / pixel_mm)))


def fit_views(
    views: Sequence[DepthView],
    regions: Sequence[NDArray[np.bool_]],
    threads: int = 1,
) -> FittedViews:
    """Fit the surface around every pixel of interest.

    Args:
        views: V depth views.
        regions: V masks (h, w) of the pixels of interest; the fit of these may draw on pixels outside.
        threads: how many views at a time.
    """

    def fit_one(index: int) -> tuple[Any, ...]:
        view, region = views[index], regions[index]
        rows, columns = np.flatnonzero(region.any(1)), np.flatnonzero(region.any(0))
        if len(rows) == 0:
            rows = columns = np.array([0])
        window = (slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1))
        noise = depth_noise_mm(np.where(region, view.depth_mm, 0)[window])
        pixel_mm = _pixel_size_mm(view, region)
        radius = fit_radius(noise, pixel_mm)
        depth, slope, weight = fit_depth(
            np.ascontiguousarray(view.depth_mm, np.float32),
            np.ascontiguousarray(region),
            np.array([window[0].start, window[0].stop, window[1].start, window[1].stop], np.int64),
            np.array(window_radii(radius), np.int64),
            noise,
            pixel_mm,
        )
        behind = ~region[window] & (view.depth_mm[window] > 0)
        depth[behind] = -view.depth_mm[window][behind]
        v, u = np.mgrid[window[0], window[1]] + 0.5
        normal = _normals(view, u, v, depth, slope)
        camera = view.intrinsics.as_row()
        camera[2:4] -= [window[1].start, window[0].start]
        color = None if view.color is None else view.color[window].reshape(-1, 3)
        facing = -normal[..., 2]
        weight = weight * np.clip(facing, 0.05, 1.0).astype(np.float32)
        return depth, slope, normal, weight.astype(np.float32), color, camera, np.float64(noise)

    parts = in_threads(fit_one, list(range(len(views))), threads)
    shapes = np.array([part[0].shape for part in parts], np.int64)
    first = np.concatenate([[0], np.cumsum(shapes.prod(1))[:-1]])
    colored = all(part[4] is not None for part in parts)
    return FittedViews(
        tuple(view.name for view in views),
        np.stack([part[5] for part in parts]),
        np.stack([np.asarray(view.T_world_from_camera, np.float64) for view in views]),
        np.column_stack([first, shapes]),
        np.concatenate([part[0].ravel() for part in parts]),
        np.concatenate([part[1].reshape(-1, 2) for part in parts]),
        np.concatenate([part[2].reshape(-1, 3) for part in parts]),
        np.concatenate([part[3].ravel() for part in parts]),
        np.concatenate([part[4] for part in parts]) if colored else None,
        np.array([part[6] for part in parts]),
    )


def _pixel_size_mm(view: DepthView, region: NDArray[np.bool_]) -> float:
    depth = view.depth_mm[region]
    depth = depth[depth > 0]
    return float(np.median(depth)) / view.intrinsics.fx if len(depth) else 1.0


def _normals(view: DepthView, u: NDArray, v: NDArray, depth: NDArray, slope: NDArray) -> NDArray[np.float32]:
    """Unit normals (h, w, 3) towards the camera, from the cross product of the two tangents."""
    step = 0.5
    at = [pixel_rays(view.intrinsics, u + du, v + dv) for du, dv in ((0.0, 0.0), (step, 0.0), (0.0, step))]
    (x, y), (xu, yu), (xv, yv) = at
    return np.asarray(pixel_normals(x, y, xu, yu, xv, yv, step, depth, slope))


@compiled
def pixel_normals(x, y, xu, yu, xv, yv, step, depth, slope):  # type: ignore[no-untyped-def]
    """Normals (h, w, 3), zero without depth, from the rays (x/z, y/z) of pixels and of places a step along u and v."""
    out = np.zeros((*depth.shape, 3), np.float32)
    for r in range(depth.shape[0]):
        for c in range(depth.shape[1]):
            z = np.float64(depth[r, c])
            if z <= 0:
                continue
            zu, zv = np.float64(slope[r, c, 0]), np.float64(slope[r, c, 1])
            ax, ay = zu * x[r, c] + z * (xu[r, c] - x[r, c]) / step, zu * y[r, c] + z * (yu[r, c] - y[r, c]) / step
            bx, by = zv * x[r, c] + z * (xv[r, c] - x[r, c]) / step, zv * y[r, c] + z * (yv[r, c] - y[r, c]) / step
            nx, ny, nz = by * zu - zv * ay, zv * ax - bx * zu, bx * ay - by * ax
            length = np.sqrt(nx * nx + ny * ny + nz * nz)
            if length > 1e-12:
                out[r, c, 0], out[r, c, 1], out[r, c, 2] = nx / length, ny / length, nz / length
    return out
