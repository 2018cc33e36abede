"""From raw depth images to a sub-pixel surface: noise, edges and a local quadratic fit around each pixel.

Everything later works on the fitted views: depth and its slope at each pixel, the surface normal, and a weight that
tells how well the fit is conditioned. A pixel that its own neighbours do not support (a flying pixel) drops out here.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numba
import numpy as np
from numpy.typing import NDArray

from registration.views import DepthView, Intrinsics, pixel_rays

A = TypeVar("A")
B = TypeVar("B")

SMALLEST_NOISE_MM = 0.03
"""Rounding of 16-bit depth to 0.1 mm has this spread."""

MAX_DEPTH_SLOPE = 6.0
"""Depth step over sideways step beyond which two neighbouring pixels are taken as two surfaces (about 80 degrees)."""


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
    """Spread of the depth noise, from second differences along the rows, robust against edges and curvature.

    Args:
        depth_mm: (h, w), 0 where there is no return.

    Returns:
        A standard deviation in mm; at least that of the rounding.
    """
    left, middle, right = depth_mm[:, :-2], depth_mm[:, 1:-1], depth_mm[:, 2:]
    full = (left > 0) & (middle > 0) & (right > 0)
    bend = (left - 2 * middle + right)[full]
    bend = bend[np.abs(bend) < 20]
    if bend.size < 100:
        return SMALLEST_NOISE_MM
    return max(SMALLEST_NOISE_MM, float(1.4826 * np.median(np.abs(bend)) / np.sqrt(6.0)))


def fit_radius(noise_mm: float, pixel_mm: float) -> int:
    """Window radius in pixels: wide enough to average the noise, never wider than about 6 mm on the surface."""
    if noise_mm < 0.05:
        radius = 2
    elif noise_mm < 0.25:
        radius = 3
    elif noise_mm < 0.8:
        radius = 4
    else:
        radius = 5
    return int(np.clip(radius, 1, max(1, round(6.0 / pixel_mm))))


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
            radius,
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
        np.concatenate([part[2].reshape(-1, 3) for part in parts]).astype(np.float32),
        np.concatenate([part[3].ravel() for part in parts]),
        np.concatenate([part[4] for part in parts]) if colored else None,
        np.array([part[6] for part in parts]),
    )


def _pixel_size_mm(view: DepthView, region: NDArray[np.bool_]) -> float:
    depth = view.depth_mm[region]
    depth = depth[depth > 0]
    return float(np.median(depth)) / view.intrinsics.fx if len(depth) else 1.0


def _normals(view: DepthView, u: NDArray, v: NDArray, depth: NDArray, slope: NDArray) -> NDArray[np.float64]:
    """Unit normals (h, w, 3) towards the camera, from the cross product of the two tangents."""
    camera = view.intrinsics
    x, y = pixel_rays(camera, u, v)
    z = depth.astype(np.float64)
    if any(camera.distortion):
        step = 0.5
        x1, y1 = pixel_rays(camera, u + step, v)
        x2, y2 = pixel_rays(camera, u, v + step)
        xu, yu, xv, yv = (x1 - x) / step, (y1 - y) / step, (x2 - x) / step, (y2 - y) / step
    else:
        zero_step = np.zeros_like(x)
        xu, yu, xv, yv = zero_step + 1 / camera.fx, zero_step, zero_step, zero_step + 1 / camera.fy
    ray = np.stack([x, y, np.ones_like(x)], -1)
    zero = np.zeros_like(z)
    along_u = slope[..., :1] * ray + np.stack([z * xu, z * yu, zero], -1)
    along_v = slope[..., 1:] * ray + np.stack([z * xv, z * yv, zero], -1)
    normal = np.cross(along_v, along_u)
    length = np.linalg.norm(normal, axis=-1, keepdims=True)
    return np.divide(normal, length, out=np.zeros_like(normal), where=(length > 1e-12) & (z[..., None] > 0))


@numba.njit(cache=True, nogil=True)
def _solve_spd(H, b):  # type: ignore[no-untyped-def]
    """Cholesky in place: ``b`` becomes the solution; returns the inverse's first entry, negative if not definite."""
    n = len(b)
    for j in range(n):
        for k in range(j):
            for i in range(j, n):
                H[i, j] -= H[i, k] * H[j, k]
        if H[j, j] < 1e-9:
            return -1.0
        root = np.sqrt(H[j, j])
        for i in range(j, n):
            H[i, j] /= root
    for i in range(n):
        for k in range(i):
            b[i] -= H[i, k] * b[k]
        b[i] /= H[i, i]
    for i in range(n - 1, -1, -1):
        for k in range(i + 1, n):
            b[i] -= H[k, i] * b[k]
        b[i] /= H[i, i]
    # The squared first column of the inverse factor gives the centre's variance.
    total = 0.0
    column = np.zeros(n)
    for i in range(n):
        value = 1.0 if i == 0 else 0.0
        for k in range(i):
            value -= H[i, k] * column[k]
        column[i] = value / H[i, i]
        total += column[i] * column[i]
    return total


@numba.njit(cache=True, nogil=True)
def fit_depth(depth_mm, region, window, radius, noise_mm, pixel_mm):  # type: ignore[no-untyped-def]
    """Fit depth(u, v) around each pixel: a plane to tell the pixel's own surface apart, then a weighted quadric.

    Args:
        depth_mm: (H, W) float32, 0 = no return.
        region: (H, W) bool, where a fit is wanted.
        window: (4,) int64 first and last+1 row, first and last+1 column of the output.
        radius: of the square patch, pixels.
        noise_mm: spread of the depth noise.
        pixel_mm: width of a pixel on the surface.

    Returns:
        Fitted depth (h, w), slopes per pixel (h, w, 2), weight (h, w): the variance of a full patch's centre over
        that of this pixel's. Zero where the pixel has no support.
    """
    height, width = depth_mm.shape
    r0, r1, c0, c1 = window
    fitted = np.zeros((r1 - r0, c1 - c0), np.float32)
    slope = np.zeros((r1 - r0, c1 - c0, 2), np.float32)
    weight = np.zeros((r1 - r0, c1 - c0), np.float32)
    size = (2 * radius + 1) ** 2
    need = max(6, int(0.35 * size))
    us, vs, ds = np.empty(size), np.empty(size), np.empty(size)
    m2 = m4 = m22 = 0.0
    for a in range(-radius, radius + 1):
        for b in range(-radius, radius + 1):
            m2 += a * a
            m4 += a * a * a * a
            m22 += a * a * b * b
    full = 1.0 / (size - 2.0 * m2 * m2 / (m4 + m22))
    soft = 4.0 * noise_mm + 0.1 * pixel_mm
    H = np.zeros((6, 6))
    p = np.zeros(6)
    q = np.zeros(6)
    for r in range(r0, r1):
        for c in range(c0, c1):
            z0 = np.float64(depth_mm[r, c])
            if z0 <= 0 or not region[r, c]:
                continue
            n = 0
            s1 = su = sv = suu = suv = svv = sz = suz = svz = 0.0
            for a in range(max(-radius, -r), min(radius, height - 1 - r) + 1):
                for b in range(max(-radius, -c), min(radius, width - 1 - c) + 1):
                    z = np.float64(depth_mm[r + a, c + b])
                    if z <= 0:
                        continue
                    d = z - z0
                    reach = np.sqrt(np.float64(a * a + b * b)) * pixel_mm
                    if abs(d) > MAX_DEPTH_SLOPE * reach + 6.0 * noise_mm:
                        continue
                    us[n], vs[n], ds[n] = b, a, d
                    n += 1
                    # This first plane leans on the depths nearest to the centre's own.
                    w = 1.0 / (1.0 + (d / (1.5 * reach + pixel_mm + 3.0 * noise_mm)) ** 2)
                    s1 += w
                    su += w * b
                    sv += w * a
                    suu += w * b * b
                    suv += w * a * b
                    svv += w * a * a
                    sz += w * d
                    suz += w * b * d
                    svz += w * a * d
            if n < need:
                continue
            k00 = suu * svv - suv * suv
            k01 = suv * sv - su * svv
            k02 = su * suv - suu * sv
            k12 = su * sv - s1 * suv
            det = s1 * k00 + su * k01 + sv * k02
            if det < 1e-6:
                continue
            q[:] = 0.0
            q[0] = (k00 * sz + k01 * suz + k02 * svz) / det
            q[1] = (k01 * sz + (s1 * svv - sv * sv) * suz + k12 * svz) / det
            q[2] = (k02 * sz + k12 * suz + (s1 * suu - su * su) * svz) / det
            variance = -1.0
            support = 0.0
            for turn in range(2):
                H[:] = 0.0
                p[:] = 0.0
                support = 0.0
                least = 1.0
                for k in range(n):
                    u, v, d = us[k], vs[k], ds[k]
                    uu, uv, vv = u * u, u * v, v * v
                    res = d - q[0] - q[1] * u - q[2] * v - q[3] * uu - q[4] * uv - q[5] * vv
                    scale = soft + 0.06 * pixel_mm * (uu + vv) if turn == 0 else soft
                    w = 1.0 / (1.0 + (res / scale) ** 2)
                    w *= w
                    support += w
                    least = min(least, w)
                    H[0, 0] += w
                    H[1, 0] += w * u
                    H[2, 0] += w * v
                    H[1, 1] += w * uu
                    H[2, 1] += w * uv
                    H[2, 2] += w * vv
                    H[3, 1] += w * uu * u
                    H[3, 2] += w * uu * v
                    H[4, 2] += w * u * vv
                    H[5, 2] += w * vv * v
                    H[3, 3] += w * uu * uu
                    H[4, 3] += w * uu * uv
                    H[4, 4] += w * uu * vv
                    H[5, 4] += w * uv * vv
                    H[5, 5] += w * vv * vv
                    wd = w * d
                    p[0] += wd
                    p[1] += wd * u
                    p[2] += wd * v
                    p[3] += wd * uu
                    p[4] += wd * uv
                    p[5] += wd * vv
                H[3, 0], H[4, 0], H[5, 0] = H[1, 1], H[2, 1], H[2, 2]
                H[4, 1], H[5, 1], H[5, 3] = H[3, 2], H[4, 2], H[4, 4]
                if support < need:
                    variance = -1.0
                    break
                variance = _solve_spd(H, p)
                if variance < 0:
                    break
                q[:] = p
                if least > 0.8:
                    break  # nothing stands out, a second turn would change nothing
            # The pixel itself must lie on the surface that its neighbours describe.
            if variance <= 0 or abs(q[0]) > 2.0 * soft:
                continue
            fitted[r - r0, c - c0] = z0 + q[0]
            slope[r - r0, c - c0, 0] = q[1]
            slope[r - r0, c - c0, 1] = q[2]
            weight[r - r0, c - c0] = min(1.0, full / variance)
    return fitted, slope, weight
