"""Pictures of what was sampled, for people who look before they train."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.sample_format import DeformationSamples, IdentitySamples
from registration.pictures import LEFT, REGION_COLORS, Picture, heat_colors, sheet, signed_colors, splat
from registration.template import REGIONS

_UNSEEN = np.array([215, 215, 220], np.uint8)
_SLAB_MM = 3.0
_MOST_POINTS = 60_000


def picture_identity(samples: IdentitySamples, size: int = 384) -> Picture:
    """Two cuts through the signed distances and two views of the surface samples by region; pale where not seen."""
    points = np.concatenate([samples.near, samples.space])
    sdf = np.concatenate([samples.near_sdf, samples.space_sdf])
    middle = _middle(samples.surface)
    side = np.abs(points[:, 0] - middle[0]) < _SLAB_MM
    front = np.abs(points[:, 2] - middle[2]) < _SLAB_MM
    extent_mm = 1.4 * float(np.ptp(samples.surface, axis=0).max())
    surface = samples.surface[:_MOST_POINTS]
    colors = REGION_COLORS[samples.region[:_MOST_POINTS]]
    colors = np.where(samples.observed[:_MOST_POINTS, None], colors, (colors.astype(int) + 2 * _UNSEEN) // 3)
    colors = _lit(colors, samples.normal[:_MOST_POINTS])
    row = [
        splat(points[side], signed_colors(sdf[side], 30.0), LEFT, size, middle, extent_mm, 3),
        splat(points[front], signed_colors(sdf[front], 30.0), 0.0, size, middle, extent_mm, 3),
        splat(surface, colors, 20.0, size, middle, extent_mm, 2),
        splat(surface, colors, LEFT, size, middle, extent_mm, 2),
    ]
    captions = ["signed distance, cut from the left (30 mm)", "signed distance, cut from the front"]
    return sheet([row], [[*captions, "surface samples: " + ", ".join(REGIONS), "from the left"]])


def picture_deformation(samples: DeformationSamples, size: int = 384) -> Picture:
    """The pairs in canonical space and posed, coloured by motion and by weight."""
    canonical, posed = samples.canonical[:_MOST_POINTS], samples.posed[:_MOST_POINTS]
    motion = np.linalg.norm(posed - canonical, axis=1)
    middle = _middle(canonical)
    extent_mm = 1.15 * float(np.ptp(canonical, axis=0).max())
    heat = heat_colors(motion, 15.0)
    row = [
        splat(canonical, heat, 25.0, size, middle, extent_mm, 2),
        splat(posed, heat, 25.0, size, middle, extent_mm, 2),
        splat(canonical, heat, LEFT, size, middle, extent_mm, 2),
        splat(canonical, heat_colors(1 - samples.weight[:_MOST_POINTS], 1.0), 25.0, size, middle, extent_mm, 2),
    ]
    return sheet([row], [["canonical, motion 0 to 15 mm", "posed", "canonical from the left", "weight: blue 1, red 0"]])


def _middle(points: NDArray[np.float32]) -> list[float]:
    return [float(v) for v in 0.5 * (points.min(0) + points.max(0))]


def _lit(colors: NDArray, normal: NDArray[np.float32]) -> NDArray[np.uint8]:
    light = 0.45 + 0.55 * np.clip(normal @ np.array([0.3, 0.4, 0.86]), 0, 1)
    return np.asarray(colors * light[:, None], np.uint8)
