"""Refine all camera poses together: projective point-to-plane over all pairs of views that overlap.

A Gauss-Newton step over the 6 degrees of freedom of every view, all pairs at once, with the told poses as a prior. The
work grows with the pairs that overlap: a pair that shows different sides of the head drops out after a look at a
few points. A view that cannot be brought into agreement with the others is named, never silently kept.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from registration.compiled import compiled
from registration.depth import FittedViews, in_threads
from registration.view_lookup import project
from registration.views import camera_of, pixel_rays

FIRST_GATE_MM = 40.0
"""Largest gap between two views' surfaces that the first iterations still try to close."""
FACING_COS = 0.6
"""Two views' normals must agree this well for their points to be the same surface."""
LOOK_POINTS = 120
"""Points of a view by which it is told which other views show the same side at all."""
LEAST_OVERLAP = 60
"""A pair of views with fewer points in common, of both together, says too little to be kept."""
CORRELATION = 30.0
"""Neighbouring residuals share their errors; so many of them count as one against the prior."""

FAR_CHANGE = 3.0
"""A told pose that is wrong by so many times the median of all counts a quarter."""
LEAST_CHANGE = 0.03
"""Changes smaller than this share of the prior's spread are all alike."""


@dataclass(frozen=True)
class RefinedPoses:
    """What the refinement found.

    Attributes:
        T_world_from_camera: (V, 4, 4) float64.
        shift_mm: (V,) how far each camera's centre moved from its told place, the common motion of all taken out.
        turn_deg: (V,) how far it turned, likewise.
        agreement: (V,) share of a view's overlapping points that lie on the others' surface.
        residual_mm: (V,) median distance of those to it.
        left_out: indices of the views that disagree with all others.
        iterations: Gauss-Newton steps taken.
    """

    T_world_from_camera: NDArray[np.float64]
    shift_mm: NDArray[np.float64]
    turn_deg: NDArray[np.float64]
    agreement: NDArray[np.float64]
    residual_mm: NDArray[np.float64]
    left_out: tuple[int, ...]
    iterations: int


def refine_poses(
    views: FittedViews,
    centre_mm: NDArray[np.floating],
    *,
    position_sigma_mm: float = 4.0,
    angle_sigma_deg: float = 0.8,
    points_per_view: int = 2500,
    max_iterations: int = 40,
    agreement_min: float = 0.35,
    start: NDArray[np.floating] | None = None,
    gate_mm: float = FIRST_GATE_MM,
    threads: int = 1,
) -> RefinedPoses:
    """Bring all views into agreement.

    Args:
        views: fitted views with their told poses.
        centre_mm: (3,) about the middle of the scene; rotations are taken around it.
        position_sigma_mm, angle_sigma_deg: how wrong a told pose may well be (the prior's spread per axis).
        points_per_view: how many points of each view are held against the others.
        max_iterations: of Gauss-Newton.
        agreement_min: a view with a smaller agreement is left out.
        start: (V, 4, 4) poses to begin from, for instance of a coarser refinement; the told ones otherwise.
        gate_mm: largest gap between two views' surfaces that the first iterations still try to close.
        threads: how many views at a time; the result does not depend on it.
    """
    told = np.asarray(views.T_world_from_camera, np.float64)
    centre = np.asarray(centre_mm, np.float64)
    samples = [sample_points(views, v, points_per_view) for v in range(len(told))]
    begin = told if start is None else np.asarray(start, np.float64)
    keep = np.ones(len(told), bool)
    iterations = 0
    while True:
        poses, statistics, steps = _settle(
            views,
            told,
            begin,
            keep,
            samples,
            centre,
            position_sigma_mm,
            angle_sigma_deg,
            max_iterations,
            gate_mm,
            threads,
        )
        iterations += steps
        agreement, residual = _agreement(statistics, keep)
        shift, turn = _pose_change(told, poses, keep, centre)
        excess = np.maximum(shift / (8 * position_sigma_mm), turn / (8 * angle_sigma_deg))
        bad = keep & ((agreement < agreement_min) | (excess > 1))
        if not bad.any() or keep.sum() <= 2:
            break
        # One at a time, the worst first: a bad view also spoils the agreement of its neighbours.
        badness = np.where(bad, (1 - agreement) + excess, -np.inf)
        keep[int(badness.argmax())] = False
    left_out = tuple(int(v) for v in np.flatnonzero(~keep))
    return RefinedPoses(poses, shift, turn, agreement, residual, left_out, iterations)


def sample_points(views: FittedViews, view: int, count: int) -> NDArray[np.float64]:
    """Points and normals (n, 6) of one view in its camera's frame, on a regular lattice of its well fitted pixels."""
    pixels = views.pixels(view)
    _, height, width = views.layout[view]
    good = (views.weight[pixels].reshape(height, width) > 0.25).copy()
    stride = max(1, int(np.sqrt(good.sum() / count)))
    lattice = np.zeros_like(good)
    lattice[stride // 2 :: stride, stride // 2 :: stride] = True
    row, column = np.nonzero(good & lattice)
    flat = pixels.start + row * width + column
    z = views.depth_mm[flat].astype(np.float64)
    x, y = pixel_rays(camera_of(views.cameras[view]), column + 0.5, row + 0.5)
    return np.ascontiguousarray(np.column_stack([x * z, y * z, z, views.normal[flat]]))


def _settle(
    views: FittedViews,
    told: NDArray,
    begin: NDArray,
    keep: NDArray[np.bool_],
    samples: list[NDArray],
    centre: NDArray,
    position_sigma_mm: float,
    angle_sigma_deg: float,
    max_iterations: int,
    gate_mm: float,
    threads: int,
) -> tuple[NDArray, NDArray, int]:
    count = len(told)
    poses = begin.copy()
    active = keep[:, None] & keep[None, :] & ~np.eye(count, dtype=bool)
    active &= overlapping_pairs(views, poses, active, samples, centre, gate_mm, threads)
    noise = float(np.median(views.noise_mm))
    scale, gate = 0.25 * gate_mm, gate_mm
    statistics = np.zeros((count, count, 30))
    step = 0
    for step in range(1, max_iterations + 1):
        gather = partial(_equations, views, poses, active, samples, centre, gate, scale)
        statistics = np.stack(in_threads(gather, list(range(count)), threads))
        if step == 1:
            overlap = statistics[:, :, 29]
            active &= (overlap + overlap.T) >= LEAST_OVERLAP
        update = _solve(statistics, poses, told, keep, centre, scale, position_sigma_mm, angle_sigma_deg)
        poses = _moved(poses, update, centre)
        matched = statistics[:, :, 27].sum()
        spread = statistics[:, :, 28].sum() / max(matched, 1.0)  # mean absolute residual of the matched points
        settled = scale <= 1.05 * max(2.0 * noise, 1.5 * spread, 0.02)
        scale = float(np.clip(1.5 * spread, max(2.0 * noise, 0.02), 0.6 * scale if not settled else scale))
        gate = float(np.clip(12.0 * scale, min(2.0, gate_mm), gate_mm))
        if settled and np.abs(update[:, :3]).max() * 150.0 < 0.003 and np.abs(update[:, 3:]).max() < 0.003:
            break
    return poses, statistics, step


def overlapping_pairs(
    views: FittedViews,
    poses: NDArray,
    active: NDArray[np.bool_],
    samples: list[NDArray],
    centre: NDArray,
    gate_mm: float,
    threads: int,
) -> NDArray[np.bool_]:
    """Pairs (V, V) of views that show some of the same side, by a few points of each: what follows costs per pair."""
    few = [np.ascontiguousarray(sample[:: max(1, len(sample) // LOOK_POINTS)]) for sample in samples]
    gather = partial(_equations, views, poses, active, few, centre, gate_mm, gate_mm)
    overlap = np.stack(in_threads(gather, list(range(len(poses))), threads))[:, :, 29]
    return np.asarray((overlap + overlap.T) > 0)


def _equations(
    views: FittedViews,
    poses: NDArray,
    active: NDArray[np.bool_],
    samples: list[NDArray],
    centre: NDArray,
    gate_mm: float,
    scale_mm: float,
    view: int,
) -> NDArray[np.float64]:
    return np.asarray(
        pair_equations(
            view,
            samples[view],
            active[view],
            views.cameras,
            poses,
            views.layout,
            views.depth_mm,
            views.slope,
            views.normal,
            views.weight,
            centre,
            gate_mm,
            scale_mm,
            FACING_COS,
        )
    )


def _solve(
    statistics: NDArray,
    poses: NDArray,
    told: NDArray,
    keep: NDArray[np.bool_],
    centre: NDArray,
    scale: float,
    position_sigma_mm: float,
    angle_sigma_deg: float,
) -> NDArray[np.float64]:
    """One Gauss-Newton step: (V, 6) rotation vector and translation of each view in the world, around the centre."""
    count = len(poses)
    blocks = np.zeros((count, 6, count, 6))
    right = np.zeros((count, 6))
    lower = np.tril_indices(6)
    data = 1.0 / (scale * scale * CORRELATION)
    for i in range(count):
        for j in range(count):
            if statistics[i, j, 27] < 1:
                continue
            A = np.zeros((6, 6))
            A[lower] = statistics[i, j, :21]
            A = (A + np.tril(A, -1).T) * data
            b = statistics[i, j, 21:27] * data
            blocks[i, :, i] += A
            blocks[j, :, j] += A
            blocks[i, :, j] -= A
            blocks[j, :, i] -= A
            right[i] -= b
            right[j] += b
    error = Rotation.from_matrix(poses[:, :3, :3] @ told[:, :3, :3].transpose(0, 2, 1)).as_rotvec()
    moved = poses[:, :3, 3] - told[:, :3, 3]
    trust = _trust(error / np.radians(angle_sigma_deg), moved / position_sigma_mm, keep)
    turn_weights = trust / np.radians(angle_sigma_deg) ** 2
    move_weights = trust / position_sigma_mm**2
    for v in range(count):
        turn_weight, move_weight = turn_weights[v], move_weights[v]
        arm = poses[v, :3, 3] - centre
        J = np.zeros((3, 6))
        J[:, :3] = -_cross_matrix(arm)
        J[:, 3:] = np.eye(3)
        blocks[v, :, v] += move_weight * J.T @ J
        blocks[v, :3, v, :3] += turn_weight * np.eye(3)
        right[v] -= move_weight * J.T @ moved[v]
        right[v, :3] -= turn_weight * error[v]
        if not keep[v]:
            blocks[v, :, v] += 1e6 * np.eye(6)
    solution = np.linalg.solve(blocks.reshape(6 * count, 6 * count), right.ravel())
    return np.asarray(solution.reshape(count, 6), np.float64)


def _trust(turned: NDArray, moved: NDArray, keep: NDArray[np.bool_]) -> NDArray[np.float64]:
    """How much each told pose counts (V,), from its change (V, 3) in turn and place, in units of the prior's spread.

    The views' own depth ties them to each other alone; where the world is, only the told poses know. One that is wrong
    by far more than the others would drag all of it along.
    """
    square = (turned**2).sum(1) + (moved**2).sum(1)
    usual = max(float(np.median(square[keep])), LEAST_CHANGE**2)
    return np.asarray(1.0 / (1.0 + square / (FAR_CHANGE**2 * usual)) ** 2, np.float64)


def _cross_matrix(a: NDArray) -> NDArray[np.float64]:
    return np.array([[0, -a[2], a[1]], [a[2], 0, -a[0]], [-a[1], a[0], 0]])


def _moved(poses: NDArray, update: NDArray, centre: NDArray) -> NDArray[np.float64]:
    R = Rotation.from_rotvec(update[:, :3]).as_matrix()
    out = poses.copy()
    out[:, :3, :3] = R @ poses[:, :3, :3]
    out[:, :3, 3] = np.einsum("vab,vb->va", R, poses[:, :3, 3] - centre) + centre + update[:, 3:]
    return out


def _agreement(statistics: NDArray, keep: NDArray[np.bool_]) -> tuple[NDArray, NDArray]:
    looked = statistics[:, :, 29].sum(1) + statistics[:, :, 29].sum(0)
    agreed = statistics[:, :, 27].sum(1) + statistics[:, :, 27].sum(0)
    distance = statistics[:, :, 28].sum(1) + statistics[:, :, 28].sum(0)
    share = np.where(looked > 0, agreed / np.maximum(looked, 1), 0.0)
    return np.where(keep, share, 0.0), np.where(agreed > 0, distance / np.maximum(agreed, 1), np.inf)


def _pose_change(
    told: NDArray, poses: NDArray, keep: NDArray[np.bool_], centre: NDArray
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How far each view's picture of the centre moved, and turned, against the median of all."""
    relative = poses @ np.linalg.inv(told)
    turn = Rotation.from_matrix(relative[:, :3, :3]).as_rotvec()
    shift = relative[:, :3, :3] @ centre + relative[:, :3, 3] - centre
    turn = turn - np.median(turn[keep], axis=0)
    shift = shift - np.median(shift[keep], axis=0)
    return np.linalg.norm(shift, axis=1), np.degrees(np.linalg.norm(turn, axis=1))


@compiled
def pair_equations(  # type: ignore[no-untyped-def]
    view, sample, active, cameras, poses, layout, depth_mm, slope, normal, weight, centre, gate_mm, scale_mm, facing
):
    """Normal equations of one view's points against every other view.

    With both views moved in the world, residual r = n.(p - q) has d r/d(view) = (p x n, n) = -d r/d(other), so one 6x6
    block serves both.

    Returns:
        (V, 30): lower triangle of the block (21), right side (6), number of matches within 3 scales, the sum of
        their absolute residuals, and the number of points that fell on a surface of that view facing likewise.
    """
    count = len(poses)
    out = np.zeros((count, 30))
    J = np.empty(6)
    R = poses[view, :3, :3]
    t = poses[view, :3, 3]
    for other in range(count):
        if not active[other]:
            continue
        Q = poses[other, :3, :3]
        s = poses[other, :3, 3]
        first, height, width = layout[other]
        camera = cameras[other]
        for k in range(len(sample)):
            px = R[0, 0] * sample[k, 0] + R[0, 1] * sample[k, 1] + R[0, 2] * sample[k, 2] + t[0]
            py = R[1, 0] * sample[k, 0] + R[1, 1] * sample[k, 1] + R[1, 2] * sample[k, 2] + t[1]
            pz = R[2, 0] * sample[k, 0] + R[2, 1] * sample[k, 1] + R[2, 2] * sample[k, 2] + t[2]
            mx = R[0, 0] * sample[k, 3] + R[0, 1] * sample[k, 4] + R[0, 2] * sample[k, 5]
            my = R[1, 0] * sample[k, 3] + R[1, 1] * sample[k, 4] + R[1, 2] * sample[k, 5]
            mz = R[2, 0] * sample[k, 3] + R[2, 1] * sample[k, 4] + R[2, 2] * sample[k, 5]
            dx, dy, dz = px - s[0], py - s[1], pz - s[2]
            if mx * dx + my * dy + mz * dz > 0:
                continue  # turned away from the other camera
            cx = Q[0, 0] * dx + Q[1, 0] * dy + Q[2, 0] * dz
            cy = Q[0, 1] * dx + Q[1, 1] * dy + Q[2, 1] * dz
            cz = Q[0, 2] * dx + Q[1, 2] * dy + Q[2, 2] * dz
            if cz <= 1.0:
                continue
            u, v = project(camera, cx / cz, cy / cz)
            column, row = int(np.floor(u)), int(np.floor(v))
            if column < 0 or row < 0 or column >= width or row >= height:
                continue
            pixel = first + row * width + column
            z = np.float64(depth_mm[pixel])
            if z <= 0:
                continue
            z += slope[pixel, 0] * (u - column - 0.5) + slope[pixel, 1] * (v - row - 0.5)
            ax, ay, az = np.float64(normal[pixel, 0]), np.float64(normal[pixel, 1]), np.float64(normal[pixel, 2])
            nx = Q[0, 0] * ax + Q[0, 1] * ay + Q[0, 2] * az
            ny = Q[1, 0] * ax + Q[1, 1] * ay + Q[1, 2] * az
            nz = Q[2, 0] * ax + Q[2, 1] * ay + Q[2, 2] * az
            if nx * mx + ny * my + nz * mz < facing:
                continue
            out[other, 29] += 1.0
            gap = cz - z
            if gap > gate_mm or gap < -gate_mm:
                continue
            # The surface point lies on the same ray, so the distance is the gap along it seen from the normal.
            r = gap * (ax * cx + ay * cy + az * cz) / cz
            a = r / scale_mm
            w = 1.0 / (1.0 + a * a)
            w = w * w * weight[pixel]
            if a < 3.0 and a > -3.0:
                out[other, 27] += 1.0
                out[other, 28] += abs(r)
            qx, qy, qz = px - centre[0], py - centre[1], pz - centre[2]
            J[0], J[1], J[2] = qy * nz - qz * ny, qz * nx - qx * nz, qx * ny - qy * nx
            J[3], J[4], J[5] = nx, ny, nz
            e = 0
            for i in range(6):
                wi = w * J[i]
                out[other, 21 + i] += wi * r
                for j in range(i + 1):
                    out[other, e] += wi * J[j]
                    e += 1
    return out
