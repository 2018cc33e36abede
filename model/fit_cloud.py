"""One observation under a fit: its points and unknowns, and what each of its residuals asks of the codes.

A point should lie on the surface; one whose told normal looks elsewhere does not count. Where the sensor's place was
told, nothing lies between it and what it saw.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation
from torch import Tensor

from model.bound_fields import Fields
from model.fit_config import FitConfig
from model.observation import Observation
from model.units import to_mm, to_units
from registration.cloud_noise import cloud_noise_mm

POSE = 7
"""Rotation vector in radians, translation in mm, logarithm of the scale: head from told."""
_POINTS_AT_ONCE = 1024
_NOISE_REACH = 2.0
_RAY_GAP_MM = 4.0
"""So close before a seen point its noise may lie within the head."""
_RAY_REACH_MM = 10.0
"""Rays that go deeper into the head than this count for little: they may be stray, or end in its hair."""


@dataclass
class Places:
    """Places of one observation at which the field is asked.

    Attributes:
        told_mm: (n, 3) told head frame.
        canonical: where they came from last, the next start.
    """

    told_mm: NDArray[np.float64]
    canonical: Tensor | None = None


@dataclass
class Cloud:
    """One observation and its current unknowns.

    Attributes:
        points: what should lie on the surface.
        normals: (n, 3) of the points, told head frame; zero where unknown; or None.
        expression: (E,).
        pose: (7,) as in ``POSE``.
        noise_mm: standard deviation of the points, as they tell it themselves.
        before: places between the sensor and what it saw.
    """

    points: Places
    normals: NDArray[np.float64] | None
    expression: NDArray[np.float64]
    pose: NDArray[np.float64]
    noise_mm: float = 0.0
    before: Places = field(default_factory=lambda: Places(np.zeros((0, 3))))

    @classmethod
    def drawn(
        cls, observation: Observation, expression: NDArray[np.float64], config: FitConfig, rng: np.random.Generator
    ) -> Cloud:
        """As many of an observation's points and rays as are to be used."""
        points = np.asarray(observation.points_mm, np.float64)
        normals = None if observation.normals is None else np.asarray(observation.normals, np.float64)
        pick = _some(len(points), config.points, rng)
        told = None if normals is None else normals[pick]
        cloud = cls(Places(points[pick]), told, expression.copy(), np.zeros(POSE), cloud_noise_mm(points[pick]))
        if observation.rays_mm is not None and config.ray_points:
            cloud.before = Places(_along(observation.rays_mm, observation.box_mm, config.ray_points, rng))
        return cloud

    def few(self, most: int, rng: np.random.Generator) -> Cloud:
        """At most so many of the points, and nothing else."""
        pick = _some(len(self.points.told_mm), most, rng)
        normals = None if self.normals is None else self.normals[pick]
        points = Places(self.points.told_mm[pick])
        return Cloud(points, normals, self.expression.copy(), self.pose.copy(), self.noise_mm)

    def started(self, expression: NDArray[np.float64]) -> Cloud:
        """The same with an expression, and the pose as told."""
        points = Places(self.points.told_mm)
        return replace(self, points=points, expression=expression.copy(), pose=np.zeros(POSE))

    @property
    def R_head_from_told(self) -> NDArray[np.float64]:
        """(3, 3)."""
        return np.asarray(Rotation.from_rotvec(self.pose[:3]).as_matrix(), np.float64)

    @property
    def scale(self) -> float:
        """How many times larger than told the scan is."""
        return float(np.exp(self.pose[6]))

    def in_head(self, told_mm: NDArray[np.float64]) -> NDArray[np.float64]:
        """Places (n, 3) of the told head frame in the head frame."""
        return np.asarray(self.scale * told_mm @ self.R_head_from_told.T + self.pose[3:6])


@dataclass(frozen=True)
class Rows:
    """Residuals of one kind, what they weigh, and how they change with the unknowns.

    Attributes:
        residual: (r,).
        by_identity: (r, D).
        by_own: (r, E + 7), by expression, then pose.
        weight: (r,) inverse variance times what the robust kernel leaves.
        cost: what these residuals add.
    """

    residual: NDArray[np.float64]
    by_identity: NDArray[np.float64]
    by_own: NDArray[np.float64]
    weight: NDArray[np.float64]
    cost: float


@dataclass(frozen=True)
class _Asked:
    """Signed distances (n,) at places, mm, their derivatives, and which were found."""

    distance: NDArray[np.float64]
    by_identity: NDArray[np.float64]
    by_own: NDArray[np.float64]
    slope: NDArray[np.float64]
    found: NDArray[np.bool_]


def linearised(
    fields: Fields, identity: NDArray[np.float64], cloud: Cloud, config: FitConfig, scale_mm: float
) -> list[Rows]:
    """All residuals of an observation at the current codes.

    Args:
        fields: the trained fields.
        identity: (D,).
        cloud: the observation; its starts for the next time are moved on.
        config: spreads.
        scale_mm: the distance that the robust kernel forgives.
    """
    at = _ask(fields, identity, cloud, cloud.points)
    valid = at.found.copy()
    if cloud.normals is not None:
        told = cloud.normals @ cloud.R_head_from_told.T
        length = np.linalg.norm(at.slope, axis=1) * np.linalg.norm(told, axis=1)
        valid &= (length == 0) | (np.einsum("nc,nc->n", told, at.slope) > config.normal_cosine * length)
    # the scan's own noise comes on top of what no code explains, and no point is a stray for being as noisy as they are
    noise, reach = float(np.hypot(config.noise_mm, cloud.noise_mm)), max(scale_mm, _NOISE_REACH * cloud.noise_mm)
    rows = [_weighted(at.distance, at.by_identity, at.by_own, valid, noise, reach)]
    if len(cloud.before.told_mm):
        ray = _ask(fields, identity, cloud, cloud.before)
        inside = ray.found & (ray.distance < 0)
        depth = np.where(inside, ray.distance, 0.0)
        # places without an answer or outside the head ask nothing, and cost nothing
        free = np.ones_like(inside)
        some = _weighted(depth, ray.by_identity, ray.by_own, free, config.ray_spread_mm, _RAY_REACH_MM)
        rows.append(replace(some, weight=np.where(inside, some.weight, 0.0)))
    return rows


def _weighted(
    residual: NDArray[np.float64],
    by_identity: NDArray[np.float64],
    by_own: NDArray[np.float64],
    valid: NDArray[np.bool_],
    spread: float,
    reach: float,
) -> Rows:
    """Residuals under a Geman-McClure kernel, all in one unit.

    A residual that is not valid counts for nothing in a step and costs as much as one that is infinitely far.
    """
    square = (residual / reach) ** 2
    weight = np.where(valid, spread**-2.0 / (1 + square) ** 2, 0.0)
    robust = np.where(valid, square / (1 + square), 1.0)
    return Rows(residual, by_identity, by_own, weight, float((reach / spread) ** 2 * robust.sum()))


def _ask(fields: Fields, identity: NDArray[np.float64], cloud: Cloud, places: Places) -> _Asked:
    posed_mm = cloud.in_head(places.told_mm)
    posed = to_units(as_tensor(posed_mm, fields.device))
    z, e = as_tensor(identity, fields.device)[None], as_tensor(cloud.expression, fields.device)[None]
    with torch.no_grad():
        came_from = fields.bind(z, e).canonical(posed, places.canonical)
    places.canonical = came_from.place
    distance, by_z, by_e, slope = derivatives(fields, z, e, came_from.place, posed)
    found = came_from.found.cpu().numpy() & np.isfinite(distance)
    own = np.concatenate([by_e, by_pose(posed_mm, slope, cloud.pose)], 1)
    return _Asked(distance, by_z, own, slope, found)


def by_pose(
    posed_mm: NDArray[np.floating], slope: NDArray[np.float64], pose: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Derivatives (n, 7) of distances by the pose, mm a radian, mm a mm, and mm a unit of the scale's logarithm."""
    growth = np.einsum("nc,nc->n", posed_mm - pose[3:6], slope)
    return np.concatenate([np.cross(posed_mm, slope), slope, growth[:, None]], 1)


def derivatives(
    fields: Fields, z: Tensor, e: Tensor, canonical: Tensor, posed: Tensor
) -> tuple[NDArray[np.float64], ...]:
    """Distances (n,) of posed points in mm, and their derivatives by codes (n, D), (n, E) and observed mm (n, 3)."""
    parts = [
        _derivatives(fields, z, e, canonical[part], posed[part])
        for part in torch.arange(len(posed), device=fields.device).split(_POINTS_AT_ONCE)
    ]
    distance, by_z, by_e, slope = (np.concatenate(columns) for columns in zip(*parts, strict=True))
    return distance, by_z, by_e, slope


def _derivatives(
    fields: Fields, z: Tensor, e: Tensor, canonical: Tensor, posed: Tensor
) -> tuple[NDArray[np.float64], ...]:
    """Each point gets a copy of the codes, so that one backward pass gives each point's own derivatives."""
    n = len(posed)
    z_each = z.expand(n, -1).clone().requires_grad_(True)
    e_each = e.expand(n, -1).clone().requires_grad_(True)
    observed = posed.clone().requires_grad_(True)
    sdf = fields.bind(z_each, e_each).distance(observed, canonical)
    by_z, by_e, by_observed = torch.autograd.grad(sdf.sum(), (z_each, e_each, observed))
    # a distance by a place has no unit: mm a mm is units a unit
    return as_float64(to_mm(sdf)), as_float64(to_mm(by_z)), as_float64(to_mm(by_e)), as_float64(by_observed)


def as_tensor(array: NDArray[np.floating], device: torch.device) -> Tensor:
    """Single precision, where the weights are."""
    return torch.from_numpy(np.ascontiguousarray(array, np.float32)).to(device)


def as_float64(tensor: Tensor) -> NDArray[np.float64]:
    """Double precision, on the host."""
    return tensor.detach().cpu().double().numpy()


def _some(count: int, most: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Which of so many are used: at most so many, drawn without replacement."""
    if count <= most:
        return np.arange(count)
    return np.sort(rng.choice(count, most, replace=False))


def _along(
    rays_mm: NDArray[np.floating], box_mm: NDArray[np.floating] | None, count: int, rng: np.random.Generator
) -> NDArray[np.float64]:
    """Places (count, 3) on rays (n, 2, 3) from sensor to seen point, before what was seen, each ray as likely.

    Only the stretch of a ray within the box (2, 3) counts, where a head may be; rays that miss it have none.
    """
    eye, seen = np.asarray(rays_mm, np.float64).transpose(1, 0, 2)
    way = seen - eye
    length = np.linalg.norm(way, axis=1)
    usable = length > _RAY_GAP_MM
    eye, way, length = eye[usable], way[usable] / length[usable, None], length[usable]
    near, far = np.zeros(len(eye)), length - _RAY_GAP_MM
    if box_mm is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            cuts = (np.asarray(box_mm, np.float64)[:, None] - eye) / way
        near = np.maximum(near, np.nan_to_num(cuts.min(0), nan=-np.inf).max(1))
        far = np.minimum(far, np.nan_to_num(cuts.max(0), nan=np.inf).min(1))
    crossing = np.flatnonzero(far > near)
    if len(crossing) == 0:
        return np.zeros((0, 3))
    pick = crossing[rng.integers(len(crossing), size=count)]
    at = rng.uniform(near[pick], far[pick])
    return np.asarray(eye[pick] + at[:, None] * way[pick])
