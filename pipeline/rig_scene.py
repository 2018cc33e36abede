"""What stands before the simulated rig: a person in layers, and the body, chair and wall around."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from registration.mesh import Mesh
from registration.procedural_expressions import EXPRESSIONS, eyeballs, posed
from registration.procedural_hair import HAIR_STYLES, grow_hair
from registration.procedural_head import Person, draw_person, head_template
from registration.procedural_neutral import neutral_head

Field = NDArray[np.float64]
Hair = Literal["any", "none", "buzz", "short", "bun", "long", "curly"]

Piece = tuple[Field, NDArray[np.int32], int, Field]
"""Vertices, faces, part, and albedo per vertex."""

SKIN, HAIR, INSIDE = 0, 1, 2
"""Parts of the seen surface, as numbered in a capture's truth."""
_SKIN_TONES = np.array([[134, 92, 68], [92, 62, 46], [178, 128, 98], [214, 168, 138], [236, 196, 172]], np.float64)
_HAIR_TONES = np.array(
    [[40, 30, 26], [58, 44, 34], [120, 116, 112], [92, 64, 42], [126, 90, 56], [116, 60, 36]], np.float64
)
_IRIS_TONES = np.array([[64, 42, 28], [84, 56, 34], [96, 110, 84], [96, 124, 150]], np.float64)


@dataclass(frozen=True)
class Sitter:
    """A simulated person with what doesn't change between scans.

    Attributes:
        person: shape at rest.
        hair_style: one of ``HAIR_STYLES``, or ``none``.
        hair: its surface in the head frame, mm, or None.
        skin_tone, hair_tone, iris_tone: (3,) sRGB, 0 to 255.
    """

    person: Person
    hair_style: str
    hair: Mesh | None
    skin_tone: Field
    hair_tone: Field
    iris_tone: Field


@dataclass(frozen=True)
class Layers:
    """The whole surface of a sitter in one expression, head frame, mm.

    Attributes:
        skin: (n, 3) the template's vertices.
        vertices, faces: every layer, the skin's vertices first.
        part: per face, 0 skin, 1 hair, 2 eyes and inside of the mouth.
        albedo: (v, 3) sRGB per vertex, 0 to 255.
    """

    skin: Field
    vertices: Field
    faces: NDArray[np.int32]
    part: NDArray[np.uint8]
    albedo: Field


def draw_sitter(rng: np.random.Generator, hair: Hair = "any") -> Sitter:
    """Draw a person with hair and colours."""
    person = draw_person(rng)
    drawn = str(rng.choice(HAIR_STYLES))
    style = drawn if hair == "any" else hair
    skin = int(rng.integers(len(_SKIN_TONES)))
    fair = 3 if skin < 3 else 0  # fair hair and eyes go with fair skin
    hair_tones, iris_tones = _HAIR_TONES[: len(_HAIR_TONES) - fair], _IRIS_TONES[: 2 if fair else None]
    picks = (_SKIN_TONES[skin], hair_tones[rng.integers(len(hair_tones))], iris_tones[rng.integers(len(iris_tones))])
    tones = [tone * rng.uniform(0.92, 1.06) for tone in picks]
    grown = None if style == "none" else grow_hair(person.rest, style, rng)
    return Sitter(person, style, grown, *tones)


def sitter_layers(sitter: Sitter, expression: str, gain: float) -> Layers:
    """Pose a sitter: skin, hair, eyeballs, teeth and the back of the mouth."""
    template = head_template()
    skin = sitter.person.vertices(expression, gain)
    pieces: list[Piece] = [(skin, template.mesh.faces, SKIN, _skin_albedo(sitter))]
    if sitter.hair is not None:
        locks = np.tile(sitter.hair_tone, (len(sitter.hair.vertices), 1))
        pieces.append((sitter.hair.vertices.astype(np.float64), sitter.hair.faces, HAIR, locks))
    grid, _ = neutral_head()
    for slit, centre, radius in zip((grid.right_eye, grid.left_eye), *eyeballs(sitter.person.rest), strict=True):
        pieces.append((*_eyeball(centre, radius), INSIDE, _eye_albedo(sitter.iris_tone)))
        pieces.append(_bag(skin[slit.rings[-1]], centre, np.array([206.0, 150.0, 140.0])))
    jaw = {name: gain * amount for name, amount in EXPRESSIONS[expression].items() if name.startswith("jaw")}
    pieces += _mouth_inside(sitter.person.rest, skin, jaw)
    return _joined(skin, pieces)


def surroundings(low_mm: float, rng: np.random.Generator, furniture: bool) -> Mesh:
    """The body under a neck that ends at ``low_mm``, on demand a chair back and a wall; head frame before it moves."""
    shoulders, faces = _sphere(24, 40)
    body = shoulders * [215.0, 70.0, 110.0] + [0.0, low_mm - 38.0, -22.0]
    parts = [(body, faces)]
    chair_z, wall_z = -200.0 - rng.uniform(0, 40), -900.0 - rng.uniform(0, 200)
    if furniture:
        parts.append(_box((-190.0, low_mm - 330.0, chair_z - 20.0), (190.0, low_mm + 60.0, chair_z)))
        parts.append(_box((-1500.0, -1200.0, wall_z - 10.0), (1500.0, 1300.0, wall_z)))
    count = np.cumsum([0] + [len(v) for v, _ in parts])
    return Mesh.of(
        np.concatenate([v for v, _ in parts]), np.concatenate([f + k for (_, f), k in zip(parts, count, strict=False)])
    )


def _skin_albedo(sitter: Sitter) -> Field:
    template = head_template()
    rest, lm = template.mesh.vertices.astype(np.float64), template.mesh.vertices[template.landmarks].astype(np.float64)
    albedo = np.tile(sitter.skin_tone, (len(rest), 1))
    albedo *= 1.0 - _lip_tint(rest, lm)[:, None] * [0.14, 0.38, 0.38]
    cheek = np.exp(-0.5 * (((np.column_stack([np.abs(rest[:, 0]), rest[:, 1:]]) - [42, -8, 78]) / 16.0) ** 2).sum(1))
    albedo *= 1.0 - cheek[:, None] * [0.0, 0.10, 0.10]
    brow_line = np.concatenate([np.linspace(lm[k], lm[k + 1], 8) for k in (*range(17, 21), *range(22, 26))])
    gap = np.linalg.norm(rest[:, None] - brow_line[None], axis=2).min(1)
    brow = np.clip((5.0 - gap) / 2.0, 0.0, 1.0)[:, None] * 0.8
    return albedo * (1 - brow) + sitter.hair_tone * brow


def _lip_tint(rest: Field, lm: Field) -> Field:
    """1 on the red of the lips (n,), fading over its border."""
    high, low = lm[48:55], lm[[48, 59, 58, 57, 56, 55, 54]]
    inside = np.minimum(
        np.interp(rest[:, 0], high[:, 0], high[:, 1]) - rest[:, 1],
        rest[:, 1] - np.interp(rest[:, 0], low[:, 0], low[:, 1]),
    )
    near = (np.abs(rest[:, 0]) < lm[54, 0]) & (rest[:, 2] > lm[48, 2] - 12.0)
    return np.clip(inside / 2.0 + 0.4, 0.0, 1.0) * near


def _eyeball(centre: Field, radius: float) -> tuple[Field, NDArray[np.int32]]:
    unit, faces = _sphere(20, 28)
    return unit[:, [0, 2, 1]] * [1, 1, -1] * radius + centre, faces


def _eye_albedo(iris: Field) -> Field:
    unit, _ = _sphere(20, 28)
    off_axis = np.degrees(np.arccos(np.clip(-unit[:, 1], -1, 1)))
    albedo = np.tile(np.array([236.0, 232.0, 226.0]), (len(unit), 1))
    albedo[off_axis < 30] = iris
    albedo[off_axis < 13] = 12.0
    return albedo


def _mouth_inside(rest: Field, skin: Field, jaw: dict[str, float]) -> list[Piece]:
    """Two rows of teeth, the lower one going with the jaw, and a dark bag that closes the mouth behind them."""
    template = head_template()
    seam = rest[template.landmarks[62]]
    x = np.linspace(-1, 1, 25)
    arc = np.column_stack([16.5 * x, np.zeros(25), -11.0 * x**2]) + seam + [0.0, 0.0, -13.5]
    jaw_shift = (posed(rest, jaw) - rest)[template.landmarks[[57, 8]]].mean(0)
    out: list[Piece] = []
    for low, high, shift in ((-1.8, 7.5, np.zeros(3)), (-10.0, -2.4, jaw_shift)):
        rows = [arc + [0, low, -4], arc + [0, low, 0], arc + [0, high, 0.5], arc + [0, high, -4]]
        out.append((np.concatenate(rows) + shift, _strip(4, 25), INSIDE, np.tile([226.0, 218.0, 200.0], (100, 1))))
    loop = skin[neutral_head()[0].mouth.rings[-1]]
    out.append(_bag(loop, loop.mean(0) + [0.0, 0.0, -34.0], np.array([112.0, 44.0, 44.0])))
    return out


def _bag(loop: Field, end: Field, albedo: Field) -> Piece:
    """A bag from the last ring of an opening's lining (k, 3) to a point behind it."""
    middle = loop.mean(0)
    reach = end - middle
    rings = [loop, loop + 0.5 * reach, 0.35 * loop + 0.65 * middle + reach, np.tile(end, (len(loop), 1))]
    faces = _strip(4, len(loop), closed=True)
    return np.concatenate(rings), faces, INSIDE, np.tile(albedo, (4 * len(loop), 1))


def _strip(rows: int, length: int, closed: bool = False) -> NDArray[np.int32]:
    i, j = np.meshgrid(np.arange(rows - 1), np.arange(length if closed else length - 1), indexing="ij")
    a, b = i * length + j, i * length + (j + 1) % length
    quads = np.stack([a, b, b + length, a + length], -1).reshape(-1, 4)
    return np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]).astype(np.int32)


def _sphere(rows: int, turns: int) -> tuple[Field, NDArray[np.int32]]:
    s, t = np.linspace(0, np.pi, rows), np.linspace(0, 2 * np.pi, turns, endpoint=False)
    unit = np.stack(
        np.broadcast_arrays(np.sin(s)[:, None] * np.cos(t), -np.cos(s)[:, None], np.sin(s)[:, None] * np.sin(-t)), -1
    )
    return unit.reshape(-1, 3), _strip(rows, turns, closed=True)


def _box(low: tuple[float, float, float], high: tuple[float, float, float]) -> tuple[Field, NDArray[np.int32]]:
    corners = np.array([[(low, high)[k >> axis & 1][axis] for axis in range(3)] for k in range(8)], np.float64)
    quads = np.array([[0, 2, 3, 1], [4, 5, 7, 6], [0, 1, 5, 4], [2, 6, 7, 3], [0, 4, 6, 2], [1, 3, 7, 5]])
    return corners, np.concatenate([quads[:, [0, 1, 2]], quads[:, [0, 2, 3]]]).astype(np.int32)


def _joined(skin: Field, pieces: list[Piece]) -> Layers:
    start = np.cumsum([0] + [len(v) for v, *_ in pieces])
    return Layers(
        skin,
        np.concatenate([v for v, *_ in pieces]),
        np.concatenate([f + k for (_, f, *_), k in zip(pieces, start, strict=False)]).astype(np.int32),
        np.concatenate([np.full(len(f), part, np.uint8) for _, f, part, _ in pieces]),
        np.concatenate([a for *_, a in pieces]),
    )
