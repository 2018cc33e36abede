"""The project's own head as a template, and as people who can be drawn at random."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from registration.anchors import with_anchors
from registration.mesh import Mesh
from registration.procedural_ears import ear_coordinates
from registration.procedural_expressions import EXPRESSIONS, motion_basis, posed
from registration.procedural_identity import identity_modes, identity_vertices, own_relief, sample_identity
from registration.procedural_neutral import neutral_head
from registration.procedural_topology import MOUTH_COLUMNS, MOUTH_ROW, HeadGrid, Slit
from registration.template import Template
from registration.template_regions import EARS, EYES, LIPS, find_regions, find_throat

Field = NDArray[np.float64]

# Where the landmarks of the head's left half are sought on the neutral head, mm; the right half mirrors them.
_JAW_MM = (
    (69, 34, 32), (69, 17, 32), (67, 0, 33), (63, -20, 37), (55, -40, 46),
    (43, -56, 60), (31, -67, 75), (16, -74, 92), (0, -77, 98),
)  # fmt: skip
_BROW_MM = ((57, 47, 74), (47, 52, 88), (35, 54, 97), (23, 54, 103), (11, 51, 106))
_NOSE_BACK_MM = ((0, 37, 109), (0, 26, 115), (0, 15, 124), (0, 4, 131))
_NOSE_BASE_MM = ((14, -9, 106), (7, -11, 112), (0, -13, 112))
_OUTER_LIP_MM = (
    (17, -31.0, 108),
    (6, -27.3, 113),
    (0, -28.6, 113.5),
    (0, -46.5, 111),
    (9, -45.5, 110),
    (18, -41.5, 105),
)


@lru_cache(maxsize=1)
def head_template() -> Template:
    """The embedded default template: lips closed, 42 identity and 23 expression modes; built once a process."""
    grid, rest = neutral_head()
    landmarks = _landmarks(grid, rest)
    face_mask = _face_mask(grid, rest, rest[landmarks])
    regions = find_regions(rest, rest[landmarks], face_mask)
    regions[ear_coordinates(rest)[2] < 1.0] = EARS
    regions[grid.mouth.rings] = LIPS
    for slit in (grid.right_eye, grid.left_eye):
        regions[slit.rings] = EYES
    throat = find_throat(rest)
    names, motions = motion_basis(rest)
    template = Template(
        name="procedural",
        mesh=Mesh.of(rest, grid.faces),
        landmarks=landmarks,
        anchors=np.zeros(0, np.int32),
        anchor_pairs=0,
        regions=regions,
        face_mask=face_mask,
        mirror=grid.mirror,
        throat=throat,
        identity_basis=np.stack(list(identity_modes().values())).astype(np.float32),
        expression_basis=motions.astype(np.float32),
        expression_names=names,
    )
    template = with_anchors(template)
    template.check("procedural template")
    return template


@dataclass(frozen=True)
class Person:
    """Somebody who wears the template's topology.

    Attributes:
        parameters: of the identity, by name.
        rest: (n, 3) float64 head frame, mm, lips closed, the own relief included.
    """

    parameters: dict[str, float]
    rest: Field

    def vertices(self, expression: str, gain: float = 1.0) -> Field:
        """Positions (n, 3) in a named expression, all its amounts times ``gain``."""
        return posed(self.rest, {name: gain * amount for name, amount in EXPRESSIONS[expression].items()})


def draw_person(rng: np.random.Generator, relief_mm: float = 0.5) -> Person:
    """Draw a person: parameters and a relief that no linear model of others holds."""
    parameters = sample_identity(rng)
    rest = identity_vertices(parameters)
    return Person(parameters, rest + own_relief(rest, rng, relief_mm))


def _landmarks(grid: HeadGrid, rest: Field) -> NDArray[np.int32]:
    def left(points: tuple[tuple[float, float, float], ...]) -> NDArray[np.int64]:
        gap = ((rest[None] - np.asarray(points, float)[:, None]) ** 2).sum(2)
        gap[np.ix_([p[0] == 0 for p in points], mirror != np.arange(grid.count))] = np.inf  # these stay in the middle
        return gap.argmin(1)

    mirror = grid.mirror
    jaw, brow = left(_JAW_MM), left(_BROW_MM)
    back, base = left(_NOSE_BACK_MM), left(_NOSE_BASE_MM)
    out = left(_OUTER_LIP_MM)  # 53, 52, 51 above; 57, 56, 55 below
    corner = int(grid.grid[MOUTH_ROW, MOUTH_COLUMNS + 1])
    k = len(grid.mouth.lower)
    middle, aside = k // 2, (k // 2) - 5  # 62 and 66, 63 and 65
    up, low = grid.mouth.upper, grid.mouth.lower
    outer_lip = [mirror[corner], mirror[out[0]], mirror[out[1]], out[2], out[1], out[0], corner]
    outer_lip += [out[5], out[4], out[3], mirror[out[4]], mirror[out[5]]]
    inner_lip = [grid.mouth.corners[0], up[aside], up[middle], up[k - 1 - aside]]
    inner_lip += [grid.mouth.corners[1], low[k - 1 - aside], low[middle], low[aside]]
    everything = [
        *mirror[jaw[:8]], jaw[8], *jaw[7::-1],
        *mirror[brow], *brow[::-1],
        *back, *mirror[base[:2]], base[2], *base[1::-1],
        *_eye_landmarks(grid.right_eye), *_eye_landmarks(grid.left_eye),
        *outer_lip, *inner_lip,
    ]  # fmt: skip
    return np.array(everything, np.int32)


def _eye_landmarks(slit: Slit) -> list[int]:
    k = len(slit.upper)
    one, two = round(0.3 * (k - 1)), k - 1 - round(0.3 * (k - 1))
    return [
        int(i)
        for i in (slit.corners[0], slit.upper[one], slit.upper[two], slit.corners[1], slit.lower[two], slit.lower[one])
    ]


def _face_mask(grid: HeadGrid, rest: Field, landmarks: Field) -> NDArray[np.bool_]:
    """Brow to chin: in front of the ears, up to the hairline, down to the jaw's edge; without the openings' linings."""
    jaw = landmarks[8:17]
    y, z = rest[:, 1], rest[:, 2]
    front = np.interp(y, np.append(jaw[:, 1], 96.0), np.append(jaw[:, 2], 48.0)) - 3.0
    mask = (z > front) & (y < 96.0) & (y > jaw[0, 1] - 4.0)
    mask &= ~((y < jaw[0, 1] + 4.0) & (z < jaw[0, 2] - 22.0))
    for slit in (grid.mouth, grid.right_eye, grid.left_eye):
        mask[slit.rings] = False
    return mask | mask[grid.mirror]
