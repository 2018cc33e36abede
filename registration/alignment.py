"""Find the head in a scan: a rigid alignment from any rotation and any position, without landmarks.

Three stages, each keeping fewer candidates:

1. for several hundred rotations spread evenly over SO(3), correlate the scan's field of surface normals with the
   template's, over all translations at once (by FFT), so that a body, a chair or a wall does not shift the start;
2. refine the best by trimmed point-to-plane iterations, the template towards the scan;
3. let the survivors adapt to the person in more and more shape modes, and judge each by the share of the face that
   finds surface of the right direction near itself.

The last number tells the right basin from the back of the head or a chair; a scan without a head is not accepted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from registration.mesh import sample_surface, transform_points, vertex_normals
from registration.shape_modes import expression_modes, identity_modes
from registration.template import REGIONS, Template

ROTATIONS = 720
"""Rotations of the coarse search; neighbours are about 24 degrees apart."""
CELLS = 80_000
"""Size of the coarse grid; its cells are at least ``MIN_CELL_MM`` wide."""
MIN_CELL_MM = 11.0
MAX_CELL_MM = 30.0
SETTLING_MODES = 60
"""Identity modes in which the last candidates adapt: faces far from the mean need them to score as heads do."""
SETTLING_GATES_MM = (8.0, 8.0, 7.0, 7.0, 6.0, 6.0, 5.0, 5.0, 5.0, 5.0)
ACCEPT_SHARE = 0.42
"""Least agreement with a head.

With a template of many identity modes heads reach 0.44 to 0.75; a ball, an ellipsoid, a cone and the back of a head
stay at or below 0.40. With few modes (the procedural head's) strangers reach 0.47 to 0.51, but the back of a head
or a cone can reach 0.46: there the verdict leans on how much of the face was seen and on the registration's residuals.
"""
REGION_WEIGHTS = {"face": 1.0, "lips": 1.0, "eyes": 0.6, "ears": 0.8, "scalp": 0.5, "neck": 0.4}


@dataclass(frozen=True)
class Alignment:
    """Where the head is.

    Attributes:
        T_world_from_head: (4, 4) float64, rigid, head mm to world mm (after ``unit_to_mm``).
        score: 0 to 1, how well the relief of the covered face is found in the scan.
        accepted: whether there is a head at all.
        reason: why not, else empty.
        unit_to_mm: the scale among the tried ones that fits.
        coefficients: of the shape modes that the search adapted, for a first guess of identity; may be empty.
    """

    T_world_from_head: NDArray[np.float64]
    score: float
    accepted: bool
    reason: str
    unit_to_mm: float
    coefficients: NDArray[np.float64]


@dataclass(frozen=True)
class _Model:
    """The template reduced to some points for the search."""

    points: NDArray[np.float64]
    normals: NDArray[np.float64]
    weights: NDArray[np.float64]
    face: NDArray[np.bool_]
    relief: NDArray[np.float64]
    basis: NDArray[np.float64]  # (modes, n, 3), each of unit spread
    few: int  # the first of them, enough to search with


@dataclass(frozen=True)
class _Scan:
    points: NDArray[np.float64]
    normals: NDArray[np.float64]
    tree: cKDTree

    def nearest(self, points: NDArray, within_mm: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Distance to and index of the nearest point; infinite where there is none so near."""
        distance, index = self.tree.query(points, distance_upper_bound=within_mm)
        return np.asarray(distance), np.asarray(index)


@dataclass
class _Candidate:
    T: NDArray[np.float64]
    coefficients: NDArray[np.float64]
    score: float = 0.0


def align_head(
    points_mm: NDArray[np.floating],
    normals: NDArray[np.floating],
    template: Template,
    seed: int = 0,
    scales: tuple[float, ...] = (1.0,),
) -> Alignment:
    """Align the template's head with a scan of any rotation and position.

    Args:
        points_mm: (n, 3) points of the scan, world frame; in mm after one of ``scales`` is applied.
        normals: (n, 3) unit normals that point out of the surface; zero where unknown.
        template: the head to look for.
        seed: of the points drawn on the template.
        scales: factors to mm that are tried, 1.0 where the unit is told.

    Returns:
        The best alignment, accepted or with the reason why it is none.
    """
    model = _reduce(template, np.random.default_rng(seed))
    best: Alignment | None = None
    for scale in scales:
        found = _align_scaled(np.asarray(points_mm, np.float64) * scale, np.asarray(normals, np.float64), model, scale)
        if best is None or found.score > best.score:
            best = found
    if best is None:
        raise ValueError("scales is empty")
    return best


def _align_scaled(points: NDArray, normals: NDArray, model: _Model, scale: float) -> Alignment:
    none = np.zeros(0)
    finite = np.isfinite(points).all(1) & np.isfinite(normals).all(1)
    points, normals = points[finite], normals[finite]
    if len(points) < 200:
        return Alignment(np.eye(4), 0.0, False, f"{len(points)} points are too few to find a head", scale, none)
    low, high = np.percentile(points, [1, 99], axis=0)
    extent = float((high - low).max())
    if not 90.0 <= extent <= 6000.0:
        reason = f"the scan is {extent:.0f} mm wide, no size for a scan of a head"
        return Alignment(np.eye(4), 0.0, False, reason, scale, none)
    scan = _thin(points, normals, 5.0)
    candidates = _correlate(scan, model)
    coarse = _thin(points, normals, 9.0)
    for candidate in candidates:
        _refine(candidate, coarse, model, gates_mm=(40, 30, 25), step=3, modes=0)
        _refine(candidate, coarse, model, gates_mm=(25, 22, 18, 15, 12, 12), step=3, modes=model.few)
        candidate.score = _agreement(candidate, coarse, model, 12.0, 40.0)
    candidates = _distinct(candidates, 14)
    for candidate in candidates:
        _refine(candidate, scan, model, gates_mm=(15, 12, 12, 10, 10, 8, 8, 6, 6), step=2, modes=model.few)
        candidate.score = _agreement(candidate, scan, model, 5.0, 28.0)
    fine = _thin(points, normals, 3.5)
    candidates = _distinct(candidates, 4)
    for candidate in candidates:
        _refine(candidate, fine, model, gates_mm=(8, 8, 6, 6, 5, 5), step=1, modes=model.few)
        candidate.score = _agreement(candidate, fine, model, 3.0, 20.0)
    candidates = _distinct(candidates, 2)
    for candidate in candidates:
        _refine(candidate, fine, model, gates_mm=SETTLING_GATES_MM, step=1, modes=len(model.basis))
        candidate.score = _agreement(candidate, fine, model, 3.0, 20.0)
    best = _distinct(candidates, 1)[0]
    score = best.score
    reason = ""
    if score < ACCEPT_SHARE:
        reason = (
            f"no head found: {score:.0%} of the face agrees with the best place in the scan, {ACCEPT_SHARE:.0%} needed"
        )
    return Alignment(best.T, score, not reason, reason, scale, best.coefficients)


def _reduce(template: Template, rng: np.random.Generator, count: int = 1600) -> _Model:
    mesh = template.mesh
    points, face, bary = sample_surface(mesh, count, rng)
    corner = mesh.faces[face]
    all_normals = vertex_normals(mesh.vertices, mesh.faces)
    normals = np.einsum("nk,nkc->nc", bary, all_normals[corner])
    normals /= np.maximum(np.linalg.norm(normals, axis=1, keepdims=True), 1e-9)
    region = template.regions[corner[np.arange(count), bary.argmax(1)]]
    table = np.array([REGION_WEIGHTS.get(name, 0.5) for name in REGIONS])
    first = [expression_modes(template, 4), identity_modes(template, 16)]
    rest = [expression_modes(template, 10)[4:], identity_modes(template, SETTLING_MODES)[16:]]
    modes = np.concatenate(first + rest)
    basis = np.einsum("nk,mnkc->mnc", bary, modes[:, corner])
    weights, in_face = table[region], np.asarray(template.face_mask[corner].all(1))
    few = sum(map(len, first))
    return _Model(points, normals, weights, in_face, in_face * _relief(points, normals), basis, few)


def _relief(points: NDArray, normals: NDArray, radius_mm: float = 40.0) -> NDArray:
    """How far each normal turns away from its surroundings': what tells a face from a ball. 0 to 1."""
    tree = cKDTree(points)
    around = np.stack([normals[near].mean(0) for near in tree.query_ball_point(points, radius_mm)])
    around /= np.maximum(np.linalg.norm(around, axis=1, keepdims=True), 1e-9)
    return np.asarray(np.clip(np.linalg.norm(normals - around, axis=1) / 0.8, 0.02, 1.0))


def _thin(points: NDArray, normals: NDArray, cell_mm: float) -> _Scan:
    """One point and normal a cell; a cell whose normals disagree keeps none."""
    key = np.floor((points - points.min(0)) / cell_mm).astype(np.int64)
    size = key.max(0) + 1
    flat = (key[:, 0] * size[1] + key[:, 1]) * size[2] + key[:, 2]
    _, index = np.unique(flat, return_inverse=True)
    times = np.bincount(index)
    point = np.stack([np.bincount(index, points[:, i]) for i in range(3)], 1) / times[:, None]
    normal = np.stack([np.bincount(index, normals[:, i]) for i in range(3)], 1) / times[:, None]
    length = np.linalg.norm(normal, axis=1)
    keep = length > 0.3
    point, normal = point[keep], normal[keep] / length[keep, None]
    return _Scan(point, normal, cKDTree(point))


def even_rotations(count: int) -> NDArray[np.float64]:
    """Rotations spread evenly over SO(3) by super-Fibonacci spirals (Alexa, CVPR 2022).

    Returns:
        (count, 3, 3) float64.
    """
    phi, psi = np.sqrt(2.0), 1.533751168755204288118041
    s = np.arange(count) + 0.5
    t = s / count
    r, big = np.sqrt(t), np.sqrt(1 - t)
    alpha, beta = 2 * np.pi * s / phi, 2 * np.pi * s / psi
    quaternion = np.stack([r * np.sin(alpha), r * np.cos(alpha), big * np.sin(beta), big * np.cos(beta)], 1)
    return np.asarray(Rotation.from_quat(quaternion).as_matrix())


def _correlate(scan: _Scan, model: _Model, keep: int = 48) -> list[_Candidate]:
    """The best rotations and translations by correlating fields of normals."""
    margin = 90.0
    low, high = scan.points.min(0) - margin, scan.points.max(0) + margin
    cell = float(np.clip(np.cbrt(np.prod(high - low) / CELLS), MIN_CELL_MM, MAX_CELL_MM))
    shape = tuple(fft.next_fast_len(int(n), real=True) for n in np.ceil((high - low) / cell))
    index = np.floor((scan.points - low) / cell).astype(np.int64)
    flat = (index[:, 0] * shape[1] + index[:, 1]) * shape[2] + index[:, 2]
    field = np.stack(
        [np.bincount(flat, scan.normals[:, i], minlength=int(np.prod(shape))).reshape(shape) for i in range(3)]
    )
    length = np.asarray(np.linalg.norm(field, axis=0))
    field = field * np.divide(1.0, length, out=np.zeros_like(length), where=length > 0.5)
    field = np.stack([gaussian_filter(channel, 8.0 / cell + 0.3, mode="constant") for channel in field])
    spectrum = fft.rfftn(field.astype(np.float32), axes=(1, 2, 3))
    found: list[tuple[float, int, NDArray]] = []
    rotations = even_rotations(ROTATIONS)
    total = model.weights.sum()
    for r, R in enumerate(rotations):
        where = np.floor(model.points @ R.T / cell).astype(np.int64) % shape
        flat = (where[:, 0] * shape[1] + where[:, 1]) * shape[2] + where[:, 2]
        turned = (model.normals @ R.T) * model.weights[:, None]
        splat = np.stack([np.bincount(flat, turned[:, i], minlength=int(np.prod(shape))) for i in range(3)])
        product = spectrum * np.conj(fft.rfftn(splat.reshape(3, *shape).astype(np.float32), axes=(1, 2, 3)))
        score = fft.irfftn(product.sum(0), shape)
        for _ in range(2):
            peak = np.array(np.unravel_index(score.argmax(), shape))
            found.append((float(score[tuple(peak)]) / total, r, low + peak * cell + 0.0))
            reach = int(np.ceil(40 / cell))
            around = np.ix_(*[(np.arange(p - reach, p + reach + 1)) % n for p, n in zip(peak, shape, strict=True)])
            score[around] = -np.inf
    found.sort(key=lambda item: -item[0])
    out = []
    for score_, r, t in found[:keep]:
        T = np.eye(4)
        T[:3, :3], T[:3, 3] = rotations[r], t
        out.append(_Candidate(T, np.zeros(len(model.basis)), score_))
    return out


def _posed(candidate: _Candidate, model: _Model) -> tuple[NDArray, NDArray]:
    shaped = model.points + np.tensordot(candidate.coefficients, model.basis, 1)
    return transform_points(candidate.T, shaped), model.normals @ candidate.T[:3, :3].T


def _refine(
    candidate: _Candidate, scan: _Scan, model: _Model, gates_mm: tuple[float, ...], step: int, modes: int
) -> None:
    """Trimmed point-to-plane iterations with normal gate; pose, and the first shape modes with a unit prior."""
    pick = slice(None, None, step)
    weight0 = model.weights[pick]
    for gate in gates_mm:
        points, normals = (a[pick] for a in _posed(candidate, model))
        distance, nearest = scan.nearest(points, gate)
        hit = np.flatnonzero(np.isfinite(distance))
        target, target_normal = scan.points[nearest[hit]], scan.normals[nearest[hit]]
        agree = (target_normal * normals[hit]).sum(1)
        good = agree > 0.4
        hit, target, target_normal = hit[good], target[good], target_normal[good]
        if len(hit) < 30:
            return
        weight = weight0[hit] * agree[good]
        residual = ((target - points[hit]) * target_normal).sum(1)
        scale = gate / 3
        weight = weight * (scale**2 / (scale**2 + residual**2)) ** 2
        centre = points[hit].mean(0)
        columns = [np.cross(points[hit] - centre, target_normal), target_normal]
        if modes:
            bent = model.basis[:modes, pick][:, hit] @ candidate.T[:3, :3].T
            columns.append(np.einsum("mnc,nc->nm", bent, target_normal))
        A = np.concatenate(columns, 1)
        H = A.T @ (A * weight[:, None])
        g = A.T @ (residual * weight)
        prior = np.zeros(A.shape[1])
        prior[:3], prior[3:6] = 1e-3 * np.trace(H[:3, :3]) + 1e-9, 1e-4 * weight.sum()  # planes leave some free
        if modes:
            strength = 4.0 * weight.sum() / 100.0
            prior[6:] = strength
            g[6:] -= strength * candidate.coefficients[:modes]
        move = np.linalg.solve(H + np.diag(prior), g)
        D = np.eye(4)
        D[:3, :3] = Rotation.from_rotvec(move[:3]).as_matrix()
        D[:3, 3] = centre + move[3:6] - D[:3, :3] @ centre
        candidate.T = D @ candidate.T
        if modes:
            candidate.coefficients[:modes] = np.clip(candidate.coefficients[:modes] + move[6:], -3, 3)


def _agreement(candidate: _Candidate, scan: _Scan, model: _Model, gate_mm: float, angle_deg: float) -> float:
    """How well the face's relief is found in the scan, 0 to 1, and the share of the face that the scan covers.

    Only covered points vote, so a view from one side can win; those that tell a face from a ball have more weight.
    """
    points, normals = _posed(candidate, model)
    points, normals, relief = points[model.face], normals[model.face], model.relief[model.face]
    distance, nearest = scan.nearest(points, 20.0)
    hit = np.isfinite(distance)
    agree = np.zeros(len(points))
    where = nearest[hit]
    gap = ((scan.points[where] - points[hit]) * scan.normals[where]).sum(1)
    facing = (scan.normals[where] * normals[hit]).sum(1)
    angle = np.degrees(np.arccos(np.clip(facing, -1, 1)))
    agree[hit] = np.exp(-0.5 * (gap / gate_mm) ** 2 - 0.5 * (angle / angle_deg) ** 2)
    covered = distance < 12.0
    share = float(covered.mean())
    found = float((agree * relief)[covered].sum() / max(relief[covered].sum(), 1e-9))
    return found * min(1.0, share / 0.45)


def _distinct(candidates: list[_Candidate], keep: int) -> list[_Candidate]:
    """The best candidates, without near repeats of a better one."""
    out: list[_Candidate] = []
    for candidate in sorted(candidates, key=lambda c: -c.score):
        repeat = False
        for other in out:
            cos = 0.5 * (np.trace(candidate.T[:3, :3].T @ other.T[:3, :3]) - 1)
            repeat |= bool(cos > np.cos(np.radians(8)) and np.linalg.norm(candidate.T[:3, 3] - other.T[:3, 3]) < 8)
        if not repeat:
            out.append(candidate)
        if len(out) == keep:
            break
    return out
