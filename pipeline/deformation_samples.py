"""Samples for the deformation field: material points in canonical space and in a scan's expression."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.sample_config import DeformationSampleConfig
from pipeline.sample_format import DeformationSamples
from registration.mesh import Mesh, sample_surface
from registration.surface import SurfaceIndex
from registration.template import REGIONS, Template

_SCALP, _HAIR = REGIONS.index("scalp"), REGIONS.index("hair")
_LOOSE = [REGIONS.index(name) for name in ("scalp", "neck", "ears")]


@dataclass(frozen=True)
class SampledDeformation:
    """What sampling a scan's motion gave.

    Attributes:
        samples: rows in random order.
        figures: shares and counts, for the verdict.
    """

    samples: DeformationSamples
    figures: dict[str, Any]


def sample_deformation(
    canonical: Mesh,
    posed: Mesh,
    template: Template,
    throat_plane: NDArray[np.floating],
    config: DeformationSampleConfig,
    seed: int,
) -> SampledDeformation:
    """Sample canonical-to-posed pairs (section 3.3 of the paper: supervision of the deformation field).

    A point of one registration goes to the other by its barycentric coordinates, with the same offset along the normal
    of both. Half of the points are drawn by the area of each. Further out the motion of the foot is carried along its
    normal unturned, as far as that foot stays the nearest: hair and neck move smoothly with what they grow on.

    Args:
        canonical: the subject's canonical registration, head frame, mm; per-vertex ``observed`` and ``residual_mm``
            where known.
        posed: the scan's registration, of the same topology; the canonical one itself gives pairs that do not move.
        template: of both.
        throat_plane: (4,) head frame; what has n.x + d >= 0 in canonical space is kept.
        config: number of pairs, spreads, reach and weights.
        seed: of the draws; same inputs and seed, same samples.
    """
    rng = np.random.default_rng(seed)
    start, end = SurfaceIndex(canonical), SurfaceIndex(posed)
    further = round(config.pairs * config.extension_share)
    density = config.density.by_code()[template.regions[canonical.faces]].mean(1)
    face, bary = _draw(canonical, posed, config.pairs - further, density, rng)
    spread = np.where(np.arange(len(face)) % 2 == 0, *config.spreads_mm)
    offset = (rng.normal(size=len(face)) * spread)[:, None]
    ends = [i.interpolate(i.vertices, face, bary) + offset * i.normals_at(face, bary) for i in (start, end)]
    weight = np.minimum(*(_confidence(i, face, bary, config) for i in (start, end)))
    region = _nearest_region(canonical, template, face, bary)

    far_face, far_bary = _draw(canonical, posed, further, np.ones(len(density)), rng)
    far_region = _nearest_region(canonical, template, far_face, far_bary)
    reach = np.where(np.isin(far_region, _LOOSE), config.extension_reach_mm, config.face_extension_reach_mm)
    height = -config.inward_reach_mm + rng.random(further) * (reach + config.inward_reach_mm)
    foot = start.interpolate(start.vertices, far_face, far_bary)
    far = foot + height[:, None] * start.normals_at(far_face, far_bary)
    far_posed = far + end.interpolate(end.vertices, far_face, far_bary) - foot
    own = start.closest(far).distance_mm >= 0.95 * np.abs(height)
    far_weight = np.minimum(*(_confidence(i, far_face, far_bary, config) for i in (start, end)))
    far_region[(far_region == _SCALP) & (height > config.spreads_mm[0])] = _HAIR

    columns = [
        np.concatenate([near, beyond[own]])
        for near, beyond in (
            (ends[0], far),
            (ends[1], far_posed),
            (region, far_region),
            (weight, far_weight * config.extension_weight),
        )
    ]
    plane = np.asarray(throat_plane, np.float64)
    kept = np.flatnonzero(columns[0] @ plane[:3] + plane[3] >= 0)
    order = rng.permutation(kept)
    samples = DeformationSamples(
        canonical=columns[0][order].astype(np.float32),
        posed=columns[1][order].astype(np.float32),
        region=columns[2][order].astype(np.uint8),
        weight=columns[3][order].astype(np.float32),
    )
    return SampledDeformation(samples, _figures(samples, float(own.mean()) if further else 1.0))


def _draw(
    canonical: Mesh, posed: Mesh, count: int, density: NDArray[np.float64], rng: np.random.Generator
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Faces and barycentric coordinates, half drawn by the area of each mesh."""
    half = count // 2
    _, face_a, bary_a = sample_surface(canonical, half, rng, density)
    _, face_b, bary_b = sample_surface(posed, count - half, rng, density)
    return np.concatenate([face_a, face_b]), np.concatenate([bary_a, bary_b])


def _confidence(
    index: SurfaceIndex, face: NDArray[np.int64], bary: NDArray[np.float64], config: DeformationSampleConfig
) -> NDArray[np.float64]:
    """(n,) from 0 to 1: high where the registration lies close to what was seen."""
    attributes = index.mesh.attributes
    vertex = np.ones(len(index.mesh.vertices))
    if "residual_mm" in attributes:
        residual = np.nan_to_num(np.asarray(attributes["residual_mm"], np.float64), nan=0.0)
        vertex = np.exp(-np.abs(residual) / config.residual_scale_mm)
    if "observed" in attributes:
        vertex = np.where(np.asarray(attributes["observed"]) != 0, vertex, config.unobserved_weight)
    return index.interpolate(vertex, face, bary)


def _nearest_region(
    mesh: Mesh, template: Template, face: NDArray[np.int64], bary: NDArray[np.float64]
) -> NDArray[np.uint8]:
    corner = mesh.faces[face]
    return template.regions[corner[np.arange(len(face)), bary.argmax(1)]].astype(np.uint8)


def _figures(samples: DeformationSamples, own_share: float) -> dict[str, Any]:
    moved = np.linalg.norm(samples.posed - samples.canonical, axis=1)
    return {
        "pair_count": len(samples.canonical),
        "pair_weight_mean": round(float(samples.weight.mean()), 4),
        "motion_median_mm": round(float(np.median(moved)), 4),
        "motion_p95_mm": round(float(np.percentile(moved, 95)), 4),
        "extension_kept_share": round(own_share, 4),
    }
