"""Who the project's own head is: named parameters, each a linear field over the neutral head, and an own relief."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from registration.mesh import vertex_normals
from registration.procedural_ears import ear_coordinates
from registration.procedural_neutral import neutral_head
from registration.procedural_surface import EYE_MM, MOUTH_Y_MM

Field = NDArray[np.float64]

LIMIT = 2.2
"""Parameters are drawn with a spread of 0.9 and held within this."""
UNIT = 1.3
"""What one unit of a parameter is, in the fields as they are written below."""


@lru_cache(maxsize=1)
def identity_modes() -> dict[str, Field]:
    """Offset (n, 3) in mm at one unit of each named parameter."""
    grid, v = neutral_head()
    modes = {name: UNIT * field(v) for name, field in _FIELDS.items()}
    for offset in modes.values():  # closed lips stay closed
        together = 0.5 * (offset[grid.mouth.upper] + offset[grid.mouth.lower])
        offset[grid.mouth.upper] = offset[grid.mouth.lower] = together
    return modes


def sample_identity(rng: np.random.Generator) -> dict[str, float]:
    """Draw the parameters of a person."""
    draws = np.clip(rng.normal(0.0, 0.9, len(_FIELDS)), -LIMIT, LIMIT)
    return {name: float(value) for name, value in zip(_FIELDS, draws, strict=True)}


def identity_vertices(parameters: Mapping[str, float]) -> Field:
    """Positions (n, 3) of a person at rest, lips closed, without a relief of one's own."""
    modes = identity_modes()
    return neutral_head()[1] + sum((value * modes[name] for name, value in parameters.items()), 0.0)


def own_relief(vertices: Field, rng: np.random.Generator, strength_mm: float = 0.5) -> Field:
    """Offsets (n, 3) that no parameter holds: a smooth asymmetric relief along the normals, none on lids and lips.

    Args:
        vertices: (n, 3) the person at rest.
        rng: the person's stream.
        strength_mm: standard deviation of the coarse part (90 mm waves); a fifth of it again in 40 mm waves.
    """
    grid, rest = neutral_head()
    height = strength_mm * (smooth_noise(vertices, rng, 90.0) + 0.2 * smooth_noise(vertices, rng, 40.0))
    near_eye = np.linalg.norm((_sided(rest) - EYE_MM) / [17.0, 12.0, 25.0], axis=1)
    near_mouth = np.linalg.norm((rest - [0, MOUTH_Y_MM, 108]) / [30.0, 13.0, 30.0], axis=1)
    calm = np.clip(np.minimum(near_eye, near_mouth) - 0.9, 0.0, 1.0)
    return vertex_normals(vertices, grid.faces) * (height * calm)[:, None]


def smooth_noise(points: Field, rng: np.random.Generator, wave_mm: float) -> Field:
    """Noise (n,) over space with zero mean, unit spread and waves of about ``wave_mm``: a sum of 32 cosines."""
    waves = rng.normal(size=(32, 3)) / wave_mm
    phase = rng.uniform(0.0, 2 * np.pi, 32)
    return np.cos(2 * np.pi * points @ waves.T + phase).sum(1) / 4.0


def _sided(v: Field) -> Field:
    return np.column_stack([np.abs(v[:, 0]), v[:, 1:]])


def _blob(v: Field, centre: tuple[float, float, float] | Field, spread: tuple[float, float, float] | float) -> Field:
    """Bell (n,) around a place on both sides of the head; ``spread`` is its standard deviation per axis."""
    return np.exp(-0.5 * (((_sided(v) - np.asarray(centre)) / spread) ** 2).sum(1))


def _above(x: Field, start: float, stop: float) -> Field:
    t = np.clip((x - start) / (stop - start), 0.0, 1.0)
    return t * t * (3 - 2 * t)


def _vector(x: Field | float = 0.0, y: Field | float = 0.0, z: Field | float = 0.0) -> Field:
    return np.stack(np.broadcast_arrays(*(np.asarray(c, float) for c in (x, y, z))), -1)


def _outwards(v: Field, weight: Field, mm: float) -> Field:
    return vertex_normals(v, neutral_head()[0].faces) * (weight * mm)[:, None]


def _side(v: Field) -> Field:
    """Sign of x, soft in the middle."""
    return np.tanh(v[:, 0] / 4.0)


def _eye(v: Field) -> Field:
    """1 over lids and socket, falling off around them."""
    r = np.linalg.norm((_sided(v) - EYE_MM) / [21.0, 15.0, 40.0], axis=1)
    return 1.0 - _above(r, 0.9, 1.9)


def _nose(v: Field) -> Field:
    """1 at the tip and wings, falling off towards cheeks and brow."""
    return _above(v[:, 2], 96, 112) * _blob(v, (0, 0, 118), (14, 16, 30))


def _ear(v: Field) -> Field:
    return 1.0 - _above(ear_coordinates(v)[2], 0.85, 1.25)


def _ear_scaled(v: Field) -> Field:
    up, back, _ = ear_coordinates(v)
    return _vector(y=3.0 * up * _ear(v), z=-2.0 * back * _ear(v))


def _ear_turned(v: Field) -> Field:
    _, back, radius = ear_coordinates(v)
    lift = np.clip(back + 0.9, 0, 2) * _above(1.0 - np.where(np.isfinite(radius), radius, 2.0), 0.0, 0.25)
    return _vector(x=1.9 * lift * _side(v), z=0.6 * lift)


def _eye_tilted(v: Field) -> Field:
    q = _sided(v) - EYE_MM
    return _vector(y=0.06 * q[:, 0] * _eye(v))


def _eye_scaled(v: Field) -> Field:
    q = (_sided(v) - EYE_MM) * (0.035 * _eye(v) * _above(np.abs(v[:, 0]), 2, 14))[:, None]
    return q * np.column_stack([np.sign(v[:, 0]), np.ones_like(v[:, :2])])


def _nose_turned_up(v: Field) -> Field:
    w = _nose(v)
    return _vector(y=1.8 * w * np.clip((v[:, 2] - 100) / 28, 0, 1.1), z=-0.05 * (v[:, 1] - 4) * w)


def _in_front(v: Field) -> Field:
    return _above(v[:, 2], -5, 45)


def _head(v: Field) -> Field:
    """1 on the head, 0 towards the lower end of the neck."""
    return _above(v[:, 1], -130, -70)


_FIELDS: dict[str, Callable[[Field], Field]] = {
    "head_width": lambda v: _vector(x=0.030 * v[:, 0] * _head(v)),
    "head_height": lambda v: _vector(y=0.045 * np.maximum(v[:, 1] - 30, 0) ** 1.15 / 2.0),
    "head_length": lambda v: _vector(z=0.045 * np.minimum(v[:, 2] - 20, 0) * _above(v[:, 1], -60, 20)),
    "crown_peak": lambda v: _vector(y=3.0 * _blob(v, (0, 140, -20), (60, 40, 60))),
    "occiput": lambda v: _vector(z=-3.0 * _blob(v, (0, 40, -90), (45, 38, 45))),
    "forehead_slope": lambda v: _vector(z=-0.06 * np.maximum(v[:, 1] - 52, 0) * _in_front(v)),
    "forehead_width": lambda v: _vector(x=0.035 * v[:, 0] * _blob(v, (0, 75, 60), (200, 26, 45))),
    "brow_ridge": lambda v: _vector(z=1.8 * _blob(v, (24, 51, 98), (24, 7, 25))),
    "brow_height": lambda v: _vector(y=1.5 * _blob(v, (32, 51, 90), (30, 8, 30))),
    "face_width": lambda v: _vector(x=0.030 * v[:, 0] * _in_front(v) * _blob(v, (0, 0, 60), (200, 42, 200))),
    "face_length": lambda v: _vector(y=-0.045 * (_above(v[:, 1], -90, 33) - 1.0) * -110.0 * _in_front(v)),
    "midface_depth": lambda v: _vector(z=1.6 * _blob(v, (0, -5, 110), (35, 28, 60))),
    "cheekbones": lambda v: _outwards(v, _blob(v, (50, 9, 68), (15, 11, 22)), 2.0),
    "cheek_fullness": lambda v: _outwards(v, _blob(v, (42, -24, 68), (16, 18, 26)), 2.6),
    "jaw_width": lambda v: _vector(x=0.045 * v[:, 0] * _blob(v, (0, -42, 45), (200, 24, 45))),
    "jaw_drop": lambda v: _vector(y=-2.4 * _blob(v, (48, -38, 30), (18, 18, 30))),
    "chin_length": lambda v: _vector(y=-2.6 * _blob(v, (0, -72, 90), (26, 13, 26))),
    "chin_forward": lambda v: _vector(z=2.4 * _blob(v, (0, -66, 100), (20, 14, 30))),
    "chin_width": lambda v: _vector(x=0.09 * v[:, 0] * _blob(v, (0, -66, 90), (30, 12, 26))),
    "chin_cleft": lambda v: _outwards(v, _blob(v, (0, -66, 106), (3.0, 7, 12)), -0.7),
    "nose_length": lambda v: _vector(y=-1.8 * _blob(v, (0, -3, 118), (15, 12, 26))),
    "nose_width": lambda v: _vector(x=0.085 * v[:, 0] * _blob(v, (0, -4, 112), (18, 10, 24))),
    "nose_depth": lambda v: _vector(z=2.2 * _nose(v)),
    "nose_bridge": lambda v: _vector(z=1.5 * _blob(v, (0, 26, 112), (8, 12, 20))),
    "nose_bridge_width": lambda v: _vector(x=0.10 * v[:, 0] * _blob(v, (0, 22, 108), (12, 14, 18))),
    "nose_hump": lambda v: _vector(z=1.2 * _blob(v, (0, 18, 118), (7, 6, 20))),
    "nose_turned_up": _nose_turned_up,
    "nose_tip_round": lambda v: _outwards(v, _blob(v, (3, 3, 126), (9, 8, 12)), 0.9),
    "mouth_width": lambda v: _vector(x=0.055 * v[:, 0] * _blob(v, (0, MOUTH_Y_MM, 105), (26, 13, 24))),
    "mouth_height": lambda v: _vector(y=1.5 * _blob(v, (0, MOUTH_Y_MM, 105), (30, 12, 30))),
    "mouth_forward": lambda v: _vector(z=1.6 * _blob(v, (0, MOUTH_Y_MM, 105), (26, 14, 24))),
    "upper_lip": lambda v: _vector(
        y=0.9 * _blob(v, (0, -28.5, 113), (18, 2.8, 14)), z=0.7 * _blob(v, (0, -31, 113), (18, 4.0, 14))
    ),
    "lower_lip": lambda v: _vector(
        y=-1.0 * _blob(v, (0, -45, 112), (16, 3.2, 14)), z=0.8 * _blob(v, (0, -42, 113), (16, 4.0, 14))
    ),
    "eye_spacing": lambda v: _vector(x=1.3 * _side(v) * _eye(v)),
    "eye_height": lambda v: _vector(y=1.1 * _eye(v)),
    "eye_depth": lambda v: _vector(z=-1.1 * _eye(v)),
    "eye_size": _eye_scaled,
    "eye_tilt": _eye_tilted,
    "ear_size": _ear_scaled,
    "ear_angle": _ear_turned,
    "ear_height": lambda v: _vector(y=2.2 * _ear(v)),
    "neck_width": lambda v: _vector(x=0.055 * v[:, 0], z=0.045 * (v[:, 2] + 25)) * _above(-v[:, 1], 50, 95)[:, None],
}
