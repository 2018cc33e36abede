"""Look for the head in a scan from anywhere, and gather what the scan tells about it in the found head frame."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from model.observation import Observation
from registration.alignment import Alignment
from registration.mesh import Mesh, transform_points, vertex_normals
from registration.point_search import search_points
from registration.rendered_points import above_plane
from registration.surface import SurfaceIndex
from registration.template import Template
from storage.errors import ConfigError, one_line

if TYPE_CHECKING:
    from model.head_model import HeadModel
    from pipeline.fit import ScanFitConfig

Facing = Literal["told", "turned", "ignored", "none"]
"""What became of a scan's normals: used as told, used the other way round, left out, or there were none."""

_ORIENTED_SHARE = 0.7
"""So many normals must look the same way, out of the head or into it, to be believed."""
_FACING_REACH_MM = 20.0
_MOST_RAYS = 20_000


@dataclass(frozen=True)
class FoundHead:
    """A scan whose head was looked for.

    Attributes:
        points: (n, 3) thinned, in the scan's frame and unit.
        normals: (n, 3) unit, zero where unknown; or None.
        sensors: (n, 3) where each point was seen from, in the scan's frame and unit; or None.
        alignment: where the head is, if there is one.
    """

    points: NDArray[np.float64]
    normals: NDArray[np.float64] | None
    sensors: NDArray[np.float64] | None
    alignment: Alignment

    @property
    def unit_to_mm(self) -> float:
        """As found."""
        return self.alignment.unit_to_mm


def find_head(
    cloud: Mesh, sensors: ArrayLike | None, template: Template, config: ScanFitConfig, seed: int
) -> FoundHead:
    """Thin a cloud and look for the head in it.

    Args:
        cloud: in its own frame and unit.
        sensors: (3,) or (n, 3) where it was seen from, likewise.
        template: the head to look for.
        config: how many points, and which units.
        seed: of what is drawn.

    Raises:
        ConfigError: the sensors are neither one place nor one a point.
    """
    points = cloud.vertices.astype(np.float64)
    known, eyes = _normals(cloud), _sensors(sensors, len(points))
    pick = np.flatnonzero(np.isfinite(points).all(1))
    if len(pick) > config.alignment_points:
        pick = np.sort(np.random.default_rng(seed).choice(pick, config.alignment_points, replace=False))
    points = points[pick]
    told = None if known is None else known[pick]
    alignment = search_points(points, told, template, seed, config.units_to_mm)
    return FoundHead(points, told, None if eyes is None else eyes[pick], alignment)


def observe(name: str, scan: FoundHead, head: HeadModel, config: ScanFitConfig) -> tuple[Observation, Facing]:
    """The points where the model's heads lie, in the found head frame; shoulders and furniture stay behind.

    Rays of all points are kept: those that pass the head tell where it is not.
    """
    T_world_from_head, unit = scan.alignment.T_world_from_head, scan.unit_to_mm
    T_head_from_world = np.linalg.inv(T_world_from_head)
    points = transform_points(T_head_from_world, scan.points * unit)
    box = np.array([head.box_mm[0] - config.margin_mm, head.box_mm[1] + config.margin_mm])
    inside = ((points >= box[0]) & (points <= box[1])).all(1) & above_plane(points, head.throat_plane)
    normals: NDArray[np.float64] | None = None
    facing: Facing = "none"
    if scan.normals is not None:
        turned = scan.normals @ T_head_from_world[:3, :3].T
        normals, facing = oriented_normals(points[inside], turned[inside], head.template)
    rays = None
    if scan.sensors is not None:
        some = slice(None, None, max(1, len(points) // _MOST_RAYS))
        rays = np.stack([transform_points(T_head_from_world, scan.sensors * unit)[some], points[some]], 1)
    return Observation(name, points[inside], normals, rays, box, T_world_from_head), facing


def oriented_normals(
    points_head_mm: NDArray[np.float64], normals: NDArray[np.float64], template: Template
) -> tuple[NDArray[np.float64] | None, Facing]:
    """Normals (n, 3) out of the head, or None where they do not agree on a side; and what became of them.

    Scanners and exporters differ in which way normals look. Most of them say which way it is, held against the template
    that lies about there.
    """
    near = SurfaceIndex(template.mesh).closest(points_head_mm)
    out = SurfaceIndex(template.mesh).normals_at(near.faces, near.bary)
    cosine = np.einsum("nc,nc->n", normals, out)
    asked = cosine[(near.distance_mm < _FACING_REACH_MM) & (np.abs(cosine) > 0.5)]
    if len(asked) == 0:
        return None, "ignored"
    outwards = float(np.mean(asked > 0))
    if outwards >= _ORIENTED_SHARE:
        return normals, "told"
    return (-normals, "turned") if outwards <= 1 - _ORIENTED_SHARE else (None, "ignored")


def _normals(cloud: Mesh) -> NDArray[np.float64] | None:
    if len(cloud.faces):
        return vertex_normals(cloud.vertices, cloud.faces)
    if not {"nx", "ny", "nz"} <= set(cloud.attributes):
        return None
    told = np.stack([cloud.attributes[name] for name in ("nx", "ny", "nz")], 1).astype(np.float64)
    told[~np.isfinite(told).all(1)] = 0.0
    length = np.linalg.norm(told, axis=1, keepdims=True)
    # columns that some exporters write and never fill tell nothing
    return told / np.maximum(length, 1e-12) if np.mean(length > 0) > 0.5 else None


def _sensors(told: ArrayLike | None, count: int) -> NDArray[np.float64] | None:
    if told is None:
        return None
    places = np.asarray(told, np.float64)
    if places.shape not in ((3,), (count, 3)) or not np.isfinite(places).all():
        why = f"shape {places.shape} for {count} points"
        raise ConfigError(one_line("need the sensor's place", "fit", why, "tell one finite place, or one a point"))
    return np.broadcast_to(places, (count, 3))
