"""Where the local networks sit: symmetric farthest points on a template, denser on the face (paper, section 3.1)."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from registration.template import REGIONS, Template
from storage.errors import ConfigError, one_line

DEFAULT_PAIRS = {39: 16, 65: 30}
"""Mirrored pairs of the paper's two layouts; other counts take two fifths."""


def with_anchors(template: Template, count: int = 39, pairs: int | None = None) -> Template:
    """The template with this layout of anchors: a function of the template, their number and their pairs alone.

    None stands below the throat or in the openings of mouth and eyes; see ``choose_anchors``.

    Args:
        template: with face mask, regions, mirror map, throat and landmarks.
        count: number of anchors K.
        pairs: number of mirrored pairs P; by default 16 of 39, 30 of 65, else two fifths.

    Raises:
        ConfigError: the template has too few vertices for the layout.
    """
    pairs = DEFAULT_PAIRS.get(count, (2 * count) // 5) if pairs is None else pairs
    v = template.mesh.vertices.astype(np.float64)
    region = template.regions
    inside = ~template.face_mask & np.isin(region, [REGIONS.index("lips"), REGIONS.index("eyes")])
    lips_back_mm = v[template.landmarks[48:60], 2].min()
    inside |= (region == REGIONS.index("lips")) & (v[:, 2] < lips_back_mm)
    throat_mm = float(v[template.throat, 1].mean())
    density = anchor_density(v, template.face_mask, throat_mm, inside)
    return replace(template, anchors=choose_anchors(v, template.mirror, density, count, pairs), anchor_pairs=pairs)


def choose_anchors(
    vertices_mm: NDArray[np.floating],
    mirror: NDArray[np.integer],
    density: NDArray[np.floating],
    count: int,
    pairs: int,
) -> NDArray[np.int32]:
    """Choose anchors by symmetric farthest points.

    Distances are stretched by the density, so where it is 2 the anchors stand twice as close. A pair counts as two
    points and keeps its distance from its own mirror image, so that pairs don't crowd the middle line.

    Args:
        vertices_mm: (n, 3) positions of a symmetric template.
        mirror: (n,) the vertex on the other side; its own on the middle line.
        density: (n,) relative density of anchors; 0 where none may stand.
        count: number of anchors K.
        pairs: number of mirrored pairs P.

    Returns:
        (K,) int32 vertices: pairs first and interleaved (the one at -x, then its mirror image), then the middle ones.

    Raises:
        ConfigError: the template has too few vertices of a kind for the layout.
    """
    middle = count - 2 * pairs
    if count < 1 or pairs < 0 or middle < 0:
        raise ConfigError(one_line(f"{count} anchors can't hold {pairs} pairs", "anchors", "", "ask for fewer pairs"))
    vertices = np.asarray(vertices_mm, np.float64)
    own = mirror == np.arange(len(vertices))
    sided = np.flatnonzero((vertices[:, 0] < 0) & ~own & (density > 0))
    centre = np.flatnonzero(own & (density > 0))
    if len(sided) < pairs or len(centre) < middle:
        found = f"{len(sided)} vertices on one side, {len(centre)} on the middle line"
        raise ConfigError(one_line("has too few vertices for its anchors", "template", found, "ask for fewer anchors"))
    candidates = np.concatenate([sided, centre])
    places, weight = vertices[candidates], np.asarray(density, np.float64)[candidates]
    is_pair = np.arange(len(candidates)) < len(sided)
    self_gap = np.full(len(candidates), np.inf)
    self_gap[is_pair] = np.linalg.norm(places[is_pair] - vertices[mirror[sided]], axis=1)
    gap = self_gap.copy()
    chosen: dict[bool, list[int]] = {True: [], False: []}
    left = {True: pairs, False: middle}
    for step in range(pairs + middle):
        allowed = np.where(is_pair, left[True] > 0, left[False] > 0)
        if step == 0:  # the densest place furthest to the front: on a face, about the tip of the nose
            allowed &= ~is_pair if middle else is_pair
            score = np.where(allowed, weight * 1e6 + places[:, 2], -np.inf)
        else:
            score = np.where(allowed, gap * weight, -np.inf)
        best = int(score.argmax())
        kind = bool(is_pair[best])
        chosen[kind].append(int(candidates[best]))
        left[kind] -= 1
        for vertex in {int(candidates[best]), int(mirror[candidates[best]])}:
            gap = np.minimum(gap, np.linalg.norm(places - vertices[vertex], axis=1))
    interleaved = [vertex for one in chosen[True] for vertex in (one, int(mirror[one]))]
    return np.array(interleaved + chosen[False], np.int32)


def anchor_density(
    vertices_mm: NDArray[np.floating],
    face_mask: NDArray[np.bool_],
    throat_height_mm: float,
    excluded: NDArray[np.bool_] | None = None,
    face_density: float = 2.0,
) -> NDArray[np.float64]:
    """Density for ``choose_anchors``: ``face_density`` on the face, 1 elsewhere on the head, 0 below the throat.

    Args:
        vertices_mm: (n, 3) head frame.
        face_mask: (n,) the face.
        throat_height_mm: no anchor stands below this y.
        excluded: (n,) further vertices without anchors, such as the inside of the mouth.
        face_density: how much denser anchors stand on the face.
    """
    density = np.where(face_mask, face_density, 1.0)
    density[vertices_mm[:, 1] < throat_height_mm] = 0.0
    if excluded is not None:
        density[excluded] = 0.0
    return density
