"""Samples for the identity field: on the clean surface, near it, and in the space around, with signed distances.

Points with colour, where they are wanted and the scan has colour, are a set of their own.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.sample_blocks import Drawn, Rows, draw_blocks, drawn_until, rows_of_block
from pipeline.sample_config import IdentitySampleConfig
from registration.face_skin import on_face_skin
from registration.mesh import Mesh, face_areas, unit, vertex_normals
from registration.point_order import morton_order
from registration.signed_distance import SignedDistanceField
from registration.surface import SurfaceIndex
from registration.template import REGIONS, Template
from storage.errors import ScanRejected, one_line

IDENTITY_PARTS = ("surface", "near", "space")
"""The sets of every scan that is sampled for the identity field."""

_HAIR, _WORN = REGIONS.index("hair"), REGIONS.index("worn")


class IdentitySampler:
    """Draws the samples of one scan (section 3.2 of the paper: surface, near and free-space points).

    Nothing below the throat plane is drawn, nor a near or space point on whose side scan and companion disagree.

    Args:
        clean: the cleaned scan, world frame, mm; per-vertex ``observed`` where known.
        scan_region: (v,) region of each vertex of the cleaned scan, skin, hair and worn things told apart.
        watertight: its closed companion, world frame, mm; per-vertex ``guessed``.
        registration: the template registered to it, head frame, mm.
        template: of the registration.
        throat_plane: (4,) head frame; what has n.x + d >= 0 is kept.
        T_world_from_head: (4, 4) rigid.
        config: numbers of points, spreads and densities.
        seed: of the draws; same inputs and seed, same samples.

    Raises:
        ScanRejected: nothing of the scan lies above the throat plane.
    """

    def __init__(
        self,
        clean: Mesh,
        scan_region: NDArray[np.uint8],
        watertight: Mesh,
        registration: Mesh,
        template: Template,
        throat_plane: NDArray[np.floating],
        T_world_from_head: NDArray[np.floating],
        config: IdentitySampleConfig,
        seed: int,
    ) -> None:
        T_head_from_world = np.linalg.inv(T_world_from_head)
        self._scan = clean.transformed(T_head_from_world)
        self._field = SignedDistanceField(
            self._scan, watertight.transformed(T_head_from_world), config.companion_off_mm, threads=1
        )
        self._region = scan_region
        self._registration, self._template = SurfaceIndex(registration), template
        self._plane = np.asarray(throat_plane, np.float64)
        self._config, self._seed = config, seed
        self._normals = vertex_normals(self._scan.vertices, self._scan.faces)
        self._cumulative = np.cumsum(face_areas(self._scan.vertices, self._scan.faces) * self._density())
        if not self._cumulative[-1] > 0:
            why = "nothing of the scan lies above the throat plane"
            raise ScanRejected(one_line("gives no identity samples", "sampling", why, "check its registration"))

    @property
    def anchors_mm(self) -> NDArray[np.float32]:
        """(K, 3) the subject's anchors, head frame."""
        return self._registration.mesh.vertices[self._template.anchors]

    def rows(self, part: str) -> int:
        """How many rows a set has: ``surface``, ``near``, ``space`` or ``color``."""
        if part == "color" and self._scan.colors is None:
            return 0
        return int(getattr(self._config, f"{part}_points"))

    def draw(self, part: str, blocks: Sequence[int]) -> Drawn:
        """Rows of some blocks of a set, head frame, mm, float32.

        ``surface``: surface, normal, region, face, observed. ``near`` and ``space``: the points under the set's name,
        with ``_sdf`` and ``_observed`` added to it. ``color``: colored, color (uint8 sRGB), observed places alone.

        Raises:
            ScanRejected: too few points can be drawn.
        """
        lengths = {block: rows_of_block(self.rows(part), block) for block in blocks}
        if part == "surface":
            return draw_blocks(self._seed, part, lengths, self._on_surface, self._labelled)
        if part == "color":
            return draw_blocks(self._seed, part, lengths, self._on_surface, self._colored)
        candidates = self._near if part == "near" else self._in_space
        return draw_blocks(self._seed, part, lengths, candidates, lambda rows: self._measured(part, rows["points"]))

    def _density(self) -> NDArray[np.float64]:
        """(m,) density of each triangle; none wholly below the throat."""
        above = self._above(self._scan.vertices)[self._scan.faces].any(1)
        by_vertex = self._config.density.by_code()[self._region]
        return np.asarray(by_vertex[self._scan.faces].mean(1) * above)

    def _above(self, points: NDArray[np.floating]) -> NDArray[np.bool_]:
        return np.asarray(points @ self._plane[:3] + self._plane[3] >= 0)

    def _drawn(self, rng: np.random.Generator, count: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """Triangles, sorted, and barycentric coordinates in them."""
        places = np.sort(rng.random(count)) * self._cumulative[-1]
        face = np.searchsorted(self._cumulative, places, side="right").clip(0, len(self._cumulative) - 1)
        r, s = np.sqrt(rng.random(count)), rng.random(count)
        return face, np.stack([1 - r, r * (1 - s), r * s], 1)

    def _points(self, face: NDArray[np.int64], bary: NDArray[np.float64]) -> NDArray[np.float64]:
        corner = self._scan.vertices[self._scan.faces[face]].astype(np.float64)
        return np.einsum("nk,nkc->nc", bary, corner)

    def _on_surface(self, rng: np.random.Generator, count: int) -> Rows:
        def draw(rng: np.random.Generator, count: int) -> tuple[Rows, NDArray[np.bool_]]:
            face, bary = self._drawn(rng, count)
            points = self._points(face, bary)
            return {"points": points, "triangle": face, "bary": bary}, self._above(points)

        return drawn_until(rng, count, draw)

    def _near(self, rng: np.random.Generator, count: int) -> Rows:
        def draw(rng: np.random.Generator, count: int) -> tuple[Rows, NDArray[np.bool_]]:
            points = self._points(*self._drawn(rng, count))
            spread = np.where(np.arange(count) % 2 == 0, *self._config.near_spreads_mm)
            points += rng.normal(size=points.shape) * spread[:, None]
            return {"points": points.astype(np.float32)}, self._above(points)

        return drawn_until(rng, count, draw)

    def _in_space(self, rng: np.random.Generator, count: int) -> Rows:
        def draw(rng: np.random.Generator, count: int) -> tuple[Rows, NDArray[np.bool_]]:
            points = rng.uniform(self._config.space_low_mm, self._config.space_high_mm, (count, 3))
            return {"points": points.astype(np.float32)}, self._above(points)

        return drawn_until(rng, count, draw)

    def _labelled(self, rows: Rows) -> tuple[Rows, NDArray[np.bool_]]:
        """Interpolated unit normals, regions, and whether the rig saw the place."""
        points, face, bary = rows["points"], rows["triangle"], rows["bary"]
        corner = self._scan.faces[face]
        normal = unit(np.einsum("nk,nkc->nc", bary, self._normals[corner]))
        seen = self._seen(corner)
        region = self._region[corner[np.arange(len(points)), bary.argmax(1)]]
        order = morton_order(points)
        on_face = np.empty(len(points), bool)
        on_face[order] = on_face_skin(points[order], self._registration, self._template, self._config.standoff_mm)
        on_face &= (region != _HAIR) & (region != _WORN)
        labelled = {
            "surface": points.astype(np.float32),
            "normal": normal.astype(np.float32),
            "region": region,
            "face": on_face,
            "observed": seen,
        }
        return labelled, np.ones(len(points), bool)

    def _colored(self, rows: Rows) -> tuple[Rows, NDArray[np.bool_]]:
        """Interpolated colours; a place that was filled in has none of its own."""
        assert self._scan.colors is not None
        corner = self._scan.faces[rows["triangle"]]
        color = np.einsum("nk,nkc->nc", rows["bary"], self._scan.colors[corner])
        colored = {"colored": rows["points"].astype(np.float32), "color": np.rint(color).astype(np.uint8)}
        return colored, self._seen(corner)

    def _seen(self, corner: NDArray[np.int32]) -> NDArray[np.bool_]:
        """Whether the rig saw most corners (n, 3) of a triangle."""
        observed = self._scan.attributes.get("observed")
        return np.ones(len(corner), bool) if observed is None else (observed[corner] != 0).sum(1) >= 2

    def _measured(self, part: str, points: NDArray[np.float32]) -> tuple[Rows, NDArray[np.bool_]]:
        found = self._field.query(points)
        return {part: points, f"{part}_sdf": found.distance_mm, f"{part}_observed": found.observed}, ~found.disputed


def identity_figures(surface: Rows, near: Drawn, space: Rows) -> dict[str, Any]:
    """Shares for the verdict, over some rows of each set."""
    region, face, seen = surface["region"], surface["face"], surface["observed"]
    shares: Mapping[str, float] = {name: float((region == code).mean()) for code, name in enumerate(REGIONS)}
    return {
        "region_shares": {name: round(share, 4) for name, share in shares.items()},
        "face_share": round(float(face.mean()), 4),
        "face_observed_share": round(float(seen[face].mean()), 4) if face.any() else 0.0,
        "observed_share": round(float(seen.mean()), 4),
        "near_observed_share": round(float(near.rows["near_observed"].mean()), 4),
        "near_disputed_share": round(near.refused_share, 5),
        "space_inside_share": round(float((space["space_sdf"] < 0).mean()), 4),
    }
