"""Samples for the deformation field: material points in canonical space and in a scan's expression."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.sample_blocks import Drawn, Rows, draw_blocks, drawn_until, rows_of_block
from pipeline.sample_config import DeformationSampleConfig
from registration.mesh import Mesh, face_areas
from registration.motion_extension import MotionExtension
from registration.surface import SurfaceIndex
from registration.template import REGIONS, Template

_SCALP, _HAIR = REGIONS.index("scalp"), REGIONS.index("hair")
_LOOSE = [REGIONS.index(name) for name in ("scalp", "neck", "ears")]
_INWARD_SHARE = 0.25


class DeformationSampler:
    """Draws canonical-to-posed pairs (section 3.3 of the paper: supervision of the deformation field).

    A point of one registration goes to the other by its barycentric coordinates, with the same offset along the normal
    of both. Half of the points are drawn by the area of each. Beyond these offsets the motion is extended smoothly, a
    mean over the registration that forgets detail with distance: hair, neck and what is worn follow what they rest on.

    Args:
        canonical: the subject's canonical registration, head frame, mm; per-vertex ``observed`` and ``residual_mm``
            where known.
        posed: the scan's registration, of the same topology; the canonical one itself gives pairs that do not move.
        template: of both.
        throat_plane: (4,) head frame; what has n.x + d >= 0 in canonical space is kept.
        config: number of pairs, spreads, reach and weights.
        seed: of the draws; same inputs and seed, same samples.
    """

    def __init__(
        self,
        canonical: Mesh,
        posed: Mesh,
        template: Template,
        throat_plane: NDArray[np.floating],
        config: DeformationSampleConfig,
        seed: int,
    ) -> None:
        self._start, self._end = SurfaceIndex(canonical), SurfaceIndex(posed)
        self._template, self._config, self._seed = template, config, seed
        self._plane = np.asarray(throat_plane, np.float64)
        density = config.density.by_code()[template.regions[canonical.faces]].mean(1)
        areas = [face_areas(mesh.vertices, mesh.faces) for mesh in (canonical, posed)]
        self._near_by = [np.cumsum(area * density) for area in areas]
        self._far_by = [np.cumsum(area) for area in areas]
        self._weight = np.minimum(*(vertex_confidence(mesh, config) for mesh in (canonical, posed)))
        motion = self._end.vertices - self._start.vertices
        self._beyond = MotionExtension(canonical, np.concatenate([motion, self._weight[:, None]], 1))

    def rows(self) -> int:
        """How many pairs there are."""
        return self._config.pairs

    def draw(self, blocks: Sequence[int]) -> Drawn:
        """Pairs of some blocks: ``canonical`` and ``posed`` float32 mm, ``pair_region``, ``weight`` from 0 to 1.

        Raises:
            ScanRejected: nearly everything lies below the throat plane.
        """
        lengths = {block: rows_of_block(self.rows(), block) for block in blocks}
        return draw_blocks(self._seed, "pairs", lengths, self._places, self._paired)

    def _places(self, rng: np.random.Generator, count: int) -> Rows:
        """Places on the registration and heights above it, near and further out."""
        config = self._config

        def draw(rng: np.random.Generator, count: int) -> tuple[Rows, NDArray[np.bool_]]:
            far = rng.random(count) < config.extension_share
            other = rng.random(count) < 0.5
            places = rng.random(count)
            face = np.empty(count, np.int64)
            for kind, cumulatives in ((~far, self._near_by), (far, self._far_by)):
                for mesh, cumulative in ((~other, cumulatives[0]), (other, cumulatives[1])):
                    own = kind & mesh
                    found = np.searchsorted(cumulative, places[own] * cumulative[-1], side="right")
                    face[own] = found.clip(0, len(cumulative) - 1)
            r, s = np.sqrt(rng.random(count)), rng.random(count)
            bary = np.stack([1 - r, r * (1 - s), r * s], 1)
            region = self._nearest_region(face, bary)
            near_mm = rng.normal(size=count) * np.where(rng.random(count) < 0.5, *config.spreads_mm)
            height = np.where(far, self._far_heights(region, rng), near_mm)
            points = self._lifted(self._start, face, bary, height)
            rows = {"canonical": points, "face": face, "bary": bary, "height": height, "far": far, "region": region}
            return rows, np.asarray(points @ self._plane[:3] + self._plane[3] >= 0)

        return drawn_until(rng, count, draw)

    def _far_heights(self, region: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.float64]:
        """Signed mm from where the offsets along the normals end, denser close by."""
        config = self._config
        begin = 2 * max(config.spreads_mm)
        reach = np.where(np.isin(region, _LOOSE), config.extension_reach_mm, config.face_extension_reach_mm)
        inward = rng.random(len(region)) < _INWARD_SHARE
        share = rng.random(len(region)) ** 2
        outward_mm = begin + share * np.maximum(reach - begin, 0)
        return np.where(inward, -begin - share * max(config.inward_reach_mm - begin, 0), outward_mm)

    def _paired(self, rows: Rows) -> tuple[Rows, NDArray[np.bool_]]:
        canonical, face, bary, height = rows["canonical"], rows["face"], rows["bary"], rows["height"]
        far, region = np.flatnonzero(rows["far"]), rows["region"].copy()
        posed = self._lifted(self._end, face, bary, height)
        weight = self._start.interpolate(self._weight, face, bary)
        extended = self._beyond.at(canonical[far])
        posed[far] = canonical[far] + extended[:, :3]
        weight[far] = extended[:, 3] * self._config.extension_weight
        region[far[(region[far] == _SCALP) & (height[far] > 0)]] = _HAIR
        pairs = {
            "canonical": canonical.astype(np.float32),
            "posed": posed.astype(np.float32),
            "pair_region": region,
            "weight": weight.astype(np.float32),
        }
        return pairs, np.ones(len(canonical), bool)

    def _lifted(
        self, index: SurfaceIndex, face: NDArray[np.int64], bary: NDArray[np.float64], height: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        return index.interpolate(index.vertices, face, bary) + height[:, None] * index.normals_at(face, bary)

    def _nearest_region(self, face: NDArray[np.int64], bary: NDArray[np.float64]) -> NDArray[np.uint8]:
        corner = self._start.mesh.faces[face]
        return self._template.regions[corner[np.arange(len(face)), bary.argmax(1)]].astype(np.uint8)


def vertex_confidence(mesh: Mesh, config: DeformationSampleConfig) -> NDArray[np.float64]:
    """(n,) a vertex, from 0 to 1: high where the registration lies close to what was seen."""
    attributes = mesh.attributes
    vertex = np.ones(len(mesh.vertices))
    if "residual_mm" in attributes:
        residual = np.nan_to_num(np.asarray(attributes["residual_mm"], np.float64), nan=0.0)
        vertex = np.exp(-np.abs(residual) / config.residual_scale_mm)
    if "observed" in attributes:
        vertex = np.where(np.asarray(attributes["observed"]) != 0, vertex, config.unobserved_weight)
    return vertex


def deformation_figures(pairs: Rows) -> dict[str, Any]:
    """Motion and confidence for the verdict, over some pairs."""
    moved = np.linalg.norm(pairs["posed"] - pairs["canonical"], axis=1)
    return {
        "pair_weight_mean": round(float(pairs["weight"].mean()), 4),
        "motion_median_mm": round(float(np.median(moved)), 4),
        "motion_p95_mm": round(float(np.percentile(moved, 95)), 4),
    }
