"""Hair for the project's own head: geometry of its own over the scalp, no part of the template."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from registration.mesh import Mesh, edges, unit, vertex_normals
from registration.procedural_ears import ear_coordinates
from registration.procedural_identity import smooth_noise
from registration.procedural_neutral import bare_head, neutral_head

Field = NDArray[np.float64]

HAIR_STYLES = ("buzz", "short", "bun", "long", "curly")
_THICKNESS_MM = {"buzz": 2.0, "short": 9.0, "bun": 6.0, "long": 15.0, "curly": 21.0}
_ROUGHNESS_MM = {"buzz": 0.15, "short": 0.8, "bun": 0.4, "long": 0.8, "curly": 2.2}


def grow_hair(rest: Field, style: str, rng: np.random.Generator) -> Mesh:
    """Grow hair on a person.

    Args:
        rest: (n, 3) positions of the person in the template's topology, head frame, mm.
        style: one of ``HAIR_STYLES``.
        rng: the person's stream; hairline, thickness and locks are drawn from it.

    Returns:
        An open surface in the head frame, mm, whose edges dip under the skin.
    """
    grid, bare = bare_head()
    base = rest - (neutral_head()[1] - bare)
    is_skin = np.ones(grid.count, bool)
    for slit in (grid.mouth, grid.right_eye, grid.left_eye):
        is_skin[slit.rings] = False
    faces = grid.faces[is_skin[grid.faces].all(1)]
    hairline = rng.uniform(88.0, 100.0)
    nape = rng.uniform(-48.0, -30.0) if style != "long" else rng.uniform(-112.0, -92.0)
    covered = _cover(bare, style, hairline, nape)
    normal = vertex_normals(base, grid.faces)
    v, n, cover, faces = _refined(base, normal, covered, faces)
    n = unit(n)
    full = np.clip(cover, 0.0, 1.0)
    thick = _THICKNESS_MM[style] * (1.0 + 0.15 * smooth_noise(v, rng, 60.0)) + _ROUGHNESS_MM[style] * smooth_noise(
        v, rng, 18.0
    )
    lift = full * np.maximum(thick, 0.6) - (1.0 - full) * 3.0
    out = v + n * lift[:, None]
    if style == "long":
        out = _fall(out, v, full, rng)
    keep = np.all((cover > -0.6)[faces], axis=1)
    hair = Mesh.of(out, faces).select_faces(keep)
    return _with_knot(hair, rest, rng) if style == "bun" else hair


def _cover(v: Field, style: str, hairline: float, nape: float) -> Field:
    """How far inside the hair each vertex lies (n,): 1 and more is full, 0 is the hair's edge."""
    x, y, z = np.abs(v[:, 0]), v[:, 1], v[:, 2]
    to_back = np.clip((62.0 - z) / 62.0, 0.0, 1.0)  # 0 at the forehead, 1 from the ears on
    temple = 14.0 * np.exp(-(((x - 48.0) / 14.0) ** 2)) * (z > 20)
    edge = (hairline + temple) * (1 - to_back) + nape * to_back
    inside = (y - edge) / 13.0
    front_of_ear = np.clip((z - 22.0) / 8.0, 0.0, 1.0)
    inside = np.minimum(inside, (y - 34.0 * front_of_ear - nape * (1 - front_of_ear)) / 9.0)
    if style != "long":
        inside = np.minimum(inside, (ear_coordinates(v)[2] - 1.10) * 2.5)
    return np.clip(inside, -3.0, 1.6)


def _fall(out: Field, scalp: Field, full: Field, rng: np.random.Generator) -> Field:
    """Long hair hangs straight from the widest part of the head instead of following the neck."""
    axis_z = -22.0
    below = np.clip((25.0 - scalp[:, 1]) / 60.0, 0.0, 1.0) * full
    q = out[:, [0, 2]] - [0.0, axis_z]
    radius = np.maximum(np.linalg.norm(q, axis=1), 1e-6)
    behind = np.clip((40.0 - out[:, 2]) / 40.0, 0.0, 1.0)
    wide = (84.0 + 2.0 * smooth_noise(scalp * [1, 0.15, 1], rng, 25.0)) * behind + radius * (1 - behind)
    grown = radius + below * np.maximum(wide - radius, 0.0)
    fallen = out.copy()
    fallen[:, [0, 2]] = q * (grown / radius)[:, None] + [0.0, axis_z]
    return fallen


def _refined(
    v: Field, n: Field, cover: Field, faces: NDArray[np.int32]
) -> tuple[Field, Field, Field, NDArray[np.int32]]:
    """Split every triangle of the hair in four, so that locks have room."""
    faces = faces[(cover > -1.5)[faces].all(1)]
    pairs = edges(faces)
    key = pairs[:, 0] * len(v) + pairs[:, 1]

    def middle(a: NDArray, b: NDArray) -> NDArray:
        low, high = np.minimum(a, b).astype(np.int64), np.maximum(a, b)
        return len(v) + np.searchsorted(key, low * len(v) + high)

    a, b, c = faces.T
    ab, bc, ca = middle(a, b), middle(b, c), middle(c, a)
    split = np.concatenate([np.stack(t, 1) for t in ((a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca))])
    halves = [np.concatenate([column, 0.5 * (column[pairs[:, 0]] + column[pairs[:, 1]])]) for column in (v, n, cover)]
    return halves[0], halves[1], halves[2], split.astype(np.int32)


def _with_knot(hair: Mesh, rest: Field, rng: np.random.Generator) -> Mesh:
    """Add the bun: a rough ball behind the crown."""
    turns, rows = 40, 20
    t = np.linspace(0, 2 * np.pi, turns, endpoint=False)
    s = np.linspace(0, np.pi, rows)
    unit = np.stack(
        np.broadcast_arrays(np.sin(s)[:, None] * np.cos(t), np.cos(s)[:, None], np.sin(s)[:, None] * np.sin(t)), -1
    )
    unit = unit.reshape(-1, 3)
    radius = rng.uniform(26.0, 36.0) * (1.0 + 0.04 * smooth_noise(unit * 30.0, rng, 15.0))
    skull = rest[rest[:, 1] > 20.0]
    top, back = skull[skull[:, 1].argmax()], skull[skull[:, 2].argmin()]
    ball = unit * radius[:, None] + 0.5 * (top + back) * [0.0, 1.0, 1.0] + [0.0, 6.0, -22.0]
    i, j = np.meshgrid(np.arange(rows - 1), np.arange(turns), indexing="ij")
    a, b = i * turns + j, i * turns + (j + 1) % turns
    quads = np.stack([a, b, b + turns, a + turns], -1).reshape(-1, 4)
    faces = np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]) + len(hair.vertices)
    return Mesh.of(np.concatenate([hair.vertices, ball]), np.concatenate([hair.faces, faces]))
