"""The template's head brought onto sparse points: pose and shape modes by robust least squares, point to template.

A search that goes from the template to the scan needs a scan dense enough to have normals of its own. Here each point
of the scan looks for its place on the template instead, which has normals everywhere: 250 noisy points of one view are
enough, and nothing that was not seen pulls.

How surely the points are a face is told by what the face explains beyond a smooth rival: a quadric (ellipsoid, cone,
cylinder, plane or a pair of planes) fitted to the same points. Balls, torsos, tables and backs of heads are quadrics
nearly as well as they are faces; the relief of a face is none.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from registration.cloud_noise import cloud_noise_mm
from registration.mesh import transform_points, vertex_normals
from registration.shape_modes import expression_modes, identity_modes, people_modes
from registration.template import REGIONS, Template

FEW_MODES = 60
"""A template with fewer identity modes than this gets general smooth ones beside them."""
EXPRESSION_MODES, IDENTITY_MODES = 10, 80
COVERED_REGIONS = {"scalp": 0.1, "neck": 0.3}
LATERAL_MM = 9.0
"""A point further than this sideways from every vertex lies beyond the template's edge."""
RANKING_SCALE_MM = 4.0
MODEL_NOISE_MM = 2.0
"""What points of a head are off a shape of few modes, beside their own noise."""
RIVAL_REACH_MM = 15.0
"""A point further off than this counts as so far, in the comparison with the rival."""
LEAST_FACE_POINTS = 40
MOST_NOISE_MM = 2.0
"""Noise beyond this is no excuse for a face that is not found."""


@dataclass(frozen=True)
class PointModel:
    """A template as points look for their places on it.

    Attributes:
        vertices, normals: (n, 3) float64, head frame, mm.
        modes: (k, n, 3) float32, each of unit spread: expressions first.
        face: (n,) bool.
        weights: (n,) how much points there count: hair hides the scalp, clothes the neck.
    """

    vertices: NDArray[np.float64]
    normals: NDArray[np.float64]
    modes: NDArray[np.float32]
    face: NDArray[np.bool_]
    weights: NDArray[np.float64]

    @classmethod
    def of(cls, template: Template) -> PointModel:
        """Gather a template's modes; general ones where it has few."""
        identity = identity_modes(template, IDENTITY_MODES)
        if len(template.identity_basis) < FEW_MODES:
            identity = np.concatenate([identity, people_modes(template)])
        modes = np.concatenate([expression_modes(template, EXPRESSION_MODES), identity]).astype(np.float32)
        mesh = template.mesh
        normals = vertex_normals(mesh.vertices, mesh.faces)
        weights = np.array([COVERED_REGIONS.get(name, 1.0) for name in REGIONS])[template.regions]
        return cls(mesh.vertices.astype(np.float64), normals, modes, template.face_mask, weights)

    def every(self, step: int) -> PointModel:
        """Every ``step``-th vertex of it."""
        modes = np.ascontiguousarray(self.modes[:, ::step])
        return PointModel(self.vertices[::step], self.normals[::step], modes, self.face[::step], self.weights[::step])

    def shape(self, coefficients: NDArray[np.float64]) -> NDArray[np.float64]:
        """Vertices (n, 3) for the first modes' coefficients."""
        flat = self.modes[: len(coefficients)].reshape(len(coefficients), self.vertices.size)
        return np.asarray(self.vertices + (coefficients.astype(np.float32) @ flat).reshape(-1, 3))


@dataclass(frozen=True)
class PointFit:
    """The template's head on m points.

    Attributes:
        T_world_from_head: (4, 4) float64 rigid, mm.
        coefficients: of the modes used.
        cost: 0 to 1, mean robust loss over all points; one that is far off costs 1.
        distance_mm: (m,) of each point along the normal of its place, signed; inf where it has none.
        on_face: (m,) bool, whether that place lies on the face.
    """

    T_world_from_head: NDArray[np.float64]
    coefficients: NDArray[np.float64]
    cost: float
    distance_mm: NDArray[np.float64]
    on_face: NDArray[np.bool_]

    def over(self, share: float) -> PointFit:
        """The same where these points are a share of all, and the others lie far off."""
        return replace(self, cost=1 - share * (1 - self.cost))


def fit_points(
    points_mm: NDArray[np.floating],
    model: PointModel,
    T_world_from_head: NDArray[np.floating],
    scales_mm: tuple[float, ...],
    modes: int,
    coefficients: NDArray[np.float64] | None = None,
    noise_mm: float = MODEL_NOISE_MM,
) -> PointFit:
    """Fit pose and the first modes, one robust (Geman-McClure) step a scale.

    Args:
        points_mm: (m, 3) world.
        model: the head.
        T_world_from_head: (4, 4) where to start.
        scales_mm: what the kernel forgives, a step each; a place is looked for within three of them.
        modes: how many bend.
        coefficients: of the modes to start with; none by default.
        noise_mm: expected distance of a point from the bent template.
    """
    T = np.linalg.inv(np.asarray(T_world_from_head, np.float64))
    c = np.zeros(modes)
    if coefficients is not None:
        c[: len(coefficients)] = coefficients[:modes]
    for scale in scales_mm:
        points, place, distance = _places(points_mm, model, T, c, 3 * scale)
        hit = np.flatnonzero(np.isfinite(distance))
        if len(hit) < 20:
            break
        r, normal, at = distance[hit], model.normals[place[hit]], points[hit]
        weight = model.weights[place[hit]] * (scale**2 / (scale**2 + r**2)) ** 2 / (noise_mm**2 + (0.3 * scale) ** 2)
        centre = at.mean(0)
        bent = np.einsum("kmc,mc->mk", model.modes[:modes, place[hit]], normal.astype(np.float32))
        A = np.concatenate([np.cross(at - centre, normal), normal, -bent], 1)
        prior = np.concatenate([np.full(3, 1e-3 * weight.sum()), np.full(3, 1e-6 * weight.sum()), np.ones(modes)])
        H = A.T @ (A * weight[:, None]) + np.diag(prior)
        g = -A.T @ (weight * r)
        g[6:] -= c
        move = np.linalg.solve(H, g)
        D = np.eye(4)
        D[:3, :3] = Rotation.from_rotvec(move[:3]).as_matrix()
        D[:3, 3] = centre + move[3:6] - D[:3, :3] @ centre
        T = D @ T
        c = np.clip(c + move[6:], -3, 3)
    _, place, distance = _places(points_mm, model, T, c, 3 * max(scales_mm[-1], RANKING_SCALE_MM))
    square = np.minimum(distance, 1e6) ** 2 / RANKING_SCALE_MM**2
    cost = float((square / (1 + square)).mean())
    return PointFit(
        np.asarray(np.linalg.inv(T), np.float64), c, cost, distance, model.face[place] & np.isfinite(distance)
    )


def _places(
    points_mm: NDArray[np.floating], model: PointModel, T: NDArray, c: NDArray, within_mm: float
) -> tuple[NDArray, NDArray, NDArray]:
    """Points in the head frame, the nearest vertex of each, and the distance along its normal, inf where too far."""
    shape, points = model.shape(c), transform_points(T, points_mm)
    apart, place = cKDTree(shape).query(points, distance_upper_bound=within_mm + LATERAL_MM)
    missing = ~np.isfinite(apart)
    place = np.where(missing, 0, place)
    away = points - shape[place]
    distance = np.einsum("mc,mc->m", away, model.normals[place])
    lateral = np.sqrt(np.maximum((away**2).sum(1) - distance**2, 0.0))
    missing |= (lateral > LATERAL_MM) | (np.abs(distance) > within_mm)
    return points, place, np.where(missing, np.inf, distance)


def face_evidence(points_mm: NDArray[np.floating], fit: PointFit) -> float:
    """Share of the points' misfit to a quadric that the face explains: 0.8 and more for faces, 0 for smooth things.

    Args:
        points_mm: (m, 3) those of the fit.
    """
    face = np.asarray(points_mm, np.float64)[fit.on_face]
    return relief_explained(face, fit.distance_mm[fit.on_face], cloud_noise_mm(face))


def relief_explained(points_mm: NDArray[np.float64], distance_mm: NDArray[np.float64], noise: float = 0.0) -> float:
    """How much nearer a head is to points on its face than the best quadric, as a share of the quadric's squares.

    Noise lies in both and no shape explains it, so that its square is taken off both first: else the noisier a face is,
    the less of it could be explained. It never stands for more than a half of what the head leaves, since what only
    resembles a face leaves relief that may look like noise, too.

    Args:
        points_mm: (m, 3) points on the face, any frame.
        distance_mm: (m,) their distances to the head.
        noise: standard deviation of the points across the surface, mm; ``MOST_NOISE_MM`` is the most that counts.
    """
    if len(points_mm) < LEAST_FACE_POINTS:
        return 0.0
    rival = quadric_distance(points_mm)
    ours, theirs = (np.minimum(np.square(d), RIVAL_REACH_MM**2).mean() for d in (distance_mm, rival))
    in_both = min(min(noise, MOST_NOISE_MM) ** 2, 0.5 * ours)
    return float(1 - (ours - in_both) / max(theirs - in_both, 1e-9))


def quadric_distance(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Distance (m,) of points (m, 3) to the quadric fitted to them, to first order; robust (Taubin, reweighted)."""
    middle = points.mean(0)
    size = float(np.sqrt(((points - middle) ** 2).sum(1).mean()))
    x, y, z = ((points - middle) / size).T
    one, nil = np.ones_like(x), np.zeros_like(x)
    value = np.stack([one, x, y, z, x * x, y * y, z * z, x * y, y * z, z * x], 1)
    slope = np.stack(
        [
            np.stack([nil, one, nil, nil, 2 * x, nil, nil, y, nil, z], 1),
            np.stack([nil, nil, one, nil, nil, 2 * y, nil, x, z, nil], 1),
            np.stack([nil, nil, nil, one, nil, nil, 2 * z, nil, y, x], 1),
        ]
    )
    weight = np.ones(len(points))
    distance = np.zeros(len(points))
    for _ in range(8):
        spread = value.T @ (value * weight[:, None]) + 1e-9 * np.eye(10)
        size_of = np.einsum("cmi,cmj,m->ij", slope, slope, weight) + 1e-9 * np.eye(10)
        coefficients = eigh(spread, size_of, subset_by_index=[0, 0])[1][:, 0]
        gradient = np.linalg.norm(slope @ coefficients, axis=0)
        distance = size * (value @ coefficients) / np.maximum(gradient, 1e-6)
        scale = max(2.0 * float(np.median(np.abs(distance))), 0.5)
        weight = (scale**2 / (scale**2 + distance**2)) ** 2
    return np.asarray(distance)
