"""Samples for the identity field: on the clean surface, near it, and in the space around, with signed distances."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.sample_config import IdentitySampleConfig
from pipeline.sample_format import IdentitySamples
from registration.mesh import Mesh, sample_surface, vertex_normals
from registration.scan_regions import PointRegions, find_scan_regions
from registration.signed_distance import SignedDistanceField, SignedDistances
from registration.template import REGIONS, Template

_DENSITY_CELL_MM = 2.0


@dataclass(frozen=True)
class SampledIdentity:
    """What sampling a canonical scan gave.

    Attributes:
        samples: rows in random order.
        figures: shares and counts, for the verdict.
    """

    samples: IdentitySamples
    figures: dict[str, Any]


def sample_identity(
    clean: Mesh,
    watertight: Mesh,
    registration: Mesh,
    template: Template,
    throat_plane: NDArray[np.floating],
    T_world_from_head: NDArray[np.floating],
    config: IdentitySampleConfig,
    seed: int,
) -> SampledIdentity:
    """Sample a canonical scan (section 3.2 of the paper: surface, near and free-space points of the identity field).

    Nothing below the throat plane is kept, nor a near or space point on whose side the scan and its companion disagree.

    Args:
        clean: the cleaned scan, world frame, mm; per-vertex ``observed`` where known.
        watertight: its closed companion, world frame, mm; per-vertex ``guessed``.
        registration: the template registered to it, head frame, mm.
        template: of the registration.
        throat_plane: (4,) head frame; what has n.x + d >= 0 is kept.
        T_world_from_head: (4, 4) rigid.
        config: numbers of points, spreads and densities.
        seed: of the draws; same inputs and seed, same samples.
    """
    T_head_from_world = np.linalg.inv(T_world_from_head)
    scan, companion = clean.transformed(T_head_from_world), watertight.transformed(T_head_from_world)
    rng = np.random.default_rng(seed)
    field = SignedDistanceField(scan, companion, config.companion_off_mm, threads=1)
    density = _face_density(scan, registration, template, throat_plane, config)
    surface, normal, seen = _draw_surface(scan, config.surface_points, density, rng)
    kept = _above(surface, throat_plane)
    surface, normal, seen = surface[kept], normal[kept], seen[kept]
    where = find_scan_regions(surface, registration, template, config.standoff_mm)
    near, near_found, near_disputed = _near(scan, field, density, throat_plane, config, rng)
    space = rng.uniform(config.space_low_mm, config.space_high_mm, (config.space_points, 3)).astype(np.float32)
    space = space[_above(space, throat_plane)]
    space, space_found, _ = _undisputed(space, field.query(space))
    on, around, out = (rng.permutation(len(rows)) for rows in (surface, near, space))
    samples = IdentitySamples(
        surface=surface[on],
        normal=normal[on],
        region=where.region[on],
        face=where.face[on],
        observed=seen[on],
        near=near[around],
        near_sdf=near_found.distance_mm[around],
        near_observed=near_found.observed[around],
        space=space[out],
        space_sdf=space_found.distance_mm[out],
        space_observed=space_found.observed[out],
        anchors=registration.vertices[template.anchors],
    )
    return SampledIdentity(samples, _figures(samples, where, near_disputed))


def _above(points: NDArray, throat_plane: NDArray[np.floating]) -> NDArray[np.bool_]:
    plane = np.asarray(throat_plane, np.float64)
    return np.asarray(points @ plane[:3] + plane[3] >= 0)


def _face_density(
    scan: Mesh,
    registration: Mesh,
    template: Template,
    throat_plane: NDArray[np.floating],
    config: IdentitySampleConfig,
) -> NDArray[np.float64]:
    """(m,) density of each triangle, found once for each small cell of space; none wholly below the throat."""
    corner = scan.vertices[scan.faces]
    cell = np.floor(corner.mean(1) / _DENSITY_CELL_MM).astype(np.int64)
    cell -= cell.min(0)
    _, first, which = np.unique(np.ravel_multi_index(tuple(cell.T), tuple(cell.max(0) + 1)), True, True)
    region = find_scan_regions(corner[first].mean(1), registration, template, config.standoff_mm).region[which]
    above = _above(corner.reshape(-1, 3), throat_plane).reshape(-1, 3).any(1)
    return np.asarray(config.density.by_code()[region] * above)


def _draw_surface(
    scan: Mesh, count: int, density: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Points, their interpolated unit normals, and whether they were seen."""
    points, face, bary = sample_surface(scan, count, rng, density)
    corner = scan.faces[face]
    normal = np.einsum("nk,nkc->nc", bary, vertex_normals(scan.vertices, scan.faces)[corner])
    normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 1e-12)
    observed = scan.attributes.get("observed")
    seen = np.ones(count, bool) if observed is None else (observed[corner] != 0).sum(1) >= 2
    return points.astype(np.float32), normal.astype(np.float32), seen


def _near(
    scan: Mesh,
    field: SignedDistanceField,
    density: NDArray[np.float64],
    throat_plane: NDArray[np.floating],
    config: IdentitySampleConfig,
    rng: np.random.Generator,
) -> tuple[NDArray[np.float32], SignedDistances, float]:
    points, _, _ = sample_surface(scan, config.near_points, rng, density)
    spread = np.where(np.arange(config.near_points) % 2 == 0, *config.near_spreads_mm)
    points += rng.normal(size=points.shape) * spread[:, None]
    near = points[_above(points, throat_plane)].astype(np.float32)
    return _undisputed(near, field.query(near))


def _undisputed(
    points: NDArray[np.float32], found: SignedDistances
) -> tuple[NDArray[np.float32], SignedDistances, float]:
    """The points whose side is agreed upon, and the share that was left out."""
    keep = ~found.disputed
    kept = SignedDistances(found.distance_mm[keep], found.observed[keep], found.disputed[keep])
    return points[keep], kept, float(found.disputed.mean()) if len(points) else 0.0


def _figures(samples: IdentitySamples, where: PointRegions, disputed: float) -> dict[str, Any]:
    shares: Mapping[str, float] = {
        name: float((samples.region == code).mean()) for code, name in enumerate(REGIONS) if len(samples.region)
    }
    return {
        "surface_count": len(samples.surface),
        "near_count": len(samples.near),
        "space_count": len(samples.space),
        "region_shares": {name: round(share, 4) for name, share in shares.items()},
        "face_share": round(float(samples.face.mean()), 4),
        "face_observed_share": round(float(samples.observed[samples.face].mean()), 4) if samples.face.any() else 0.0,
        "observed_share": round(float(samples.observed.mean()), 4),
        "near_observed_share": round(float(samples.near_observed.mean()), 4),
        "near_disputed_share": round(disputed, 5),
        "space_inside_share": round(float((samples.space_sdf < 0).mean()), 4),
        "face_standoff_median_mm": round(float(np.median(np.abs(where.standoff_mm[where.face]))), 4)
        if where.face.any()
        else None,
    }
