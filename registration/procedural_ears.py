"""Ears for the project's own head: an oval of the grid is raised to a tilted shell and embossed."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from registration.mesh import edges

Field = NDArray[np.float64]

EAR_MM = np.array([71.0, 7.0, -2.0])
"""Middle of the left ear's root on the side of the head."""
EAR_HALF_HEIGHT_MM = 33.0
EAR_HALF_WIDTH_MM = 21.0
LEAN_DEG = 12.0
"""How far the ear's axis leans backwards."""
RIM = 0.72
"""Where on the oval (0 in the middle, 1 at its border) the rim of the shell comes to lie."""


def ear_coordinates(v: Field) -> tuple[Field, Field, Field]:
    """Oval coordinates (n,) around the nearer ear: up, backwards (both 1 at the border), distance from the middle."""
    lean = np.radians(LEAN_DEG)
    y, z = v[:, 1] - EAR_MM[1], -(v[:, 2] - EAR_MM[2])
    up = (y * np.cos(lean) + z * np.sin(lean)) / EAR_HALF_HEIGHT_MM
    back = (z * np.cos(lean) - y * np.sin(lean)) / (EAR_HALF_WIDTH_MM * (1.0 + 0.22 * np.clip(up, -1, 1)))
    radius = np.where(np.abs(v[:, 0]) > 45.0, np.hypot(up, back), np.inf)
    return up, back, radius


def shape_ears(v: Field, faces: NDArray[np.integer]) -> None:
    """Raise both ears in place; v (n, 3) head frame, mm."""
    up, back, radius = ear_coordinates(v)
    index = np.flatnonzero(radius < 1.0)
    up, back, radius = up[index], back[index], radius[index]
    side = np.sign(v[index, 0])
    # The front half stays flush with the cheek; behind, the border is drawn under the shell.
    rear = _ease((back + 0.40) / 0.75)
    shell = np.clip(radius / RIM, 0, 1)
    under = _ease((radius - RIM) / (1 - RIM))
    lift = (2.5 + 9.0 * (back + 0.8)) * (1 - under) * (0.2 + 0.8 * rear)
    relief = _relief(up, back, shell) * (1 - under)
    v[index, 0] += side * (lift + relief)
    v[index, 2] -= (7.0 * shell**2 * (1 - under) - 2.0 * np.sin(np.pi * under)) * rear
    v[index, 1] += 2.5 * up * shell**2 * (1 - under)
    _smooth(v, faces, np.flatnonzero(ear_coordinates(v)[2] < 1.35), rounds=5)


def _smooth(v: Field, faces: NDArray[np.integer], index: NDArray[np.int64], rounds: int) -> None:
    """Draw some vertices towards the middle of their neighbours, then most of the way back, so that little shrinks."""
    pairs = edges(faces)
    half = sp.csr_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (len(v), len(v)))
    near = sp.csr_matrix(half + half.T)[index]
    degree = np.asarray(near.sum(1)).reshape(-1, 1)
    for _ in range(rounds):
        for step in (0.55, -0.50):
            v[index] += step * (np.asarray(near @ v) / degree - v[index])


def _relief(up: Field, back: Field, shell: Field) -> Field:
    """Height of helix, antihelix, bowl, tragus and lobe above the shell, mm."""
    angle = np.arctan2(up, back)  # 0 behind, 90 degrees above
    lobe = _ease((-up - 0.45) / 0.3)
    along_rim = _ease((np.cos(angle - np.radians(50.0)) + 0.55) / 0.6)  # from the front of the top around to the lobe
    helix = 3.2 * np.exp(-(((shell - 0.93) / 0.10) ** 2)) * along_rim
    scapha = -1.8 * np.exp(-(((shell - 0.72) / 0.09) ** 2)) * along_rim * (1 - lobe)
    antihelix = 2.6 * np.exp(-(((shell - 0.52) / 0.10) ** 2)) * _ease((np.cos(angle - np.radians(15)) + 0.2) / 0.6)
    bowl = -7.5 * np.exp(-(((up + 0.12) / 0.30) ** 2) - (((back + 0.12) / 0.33) ** 2))
    tragus = 4.0 * np.exp(-(((up + 0.12) / 0.14) ** 2) - (((back + 0.55) / 0.14) ** 2))
    antitragus = 2.0 * np.exp(-(((up + 0.48) / 0.10) ** 2) - (((back + 0.02) / 0.18) ** 2))
    return (helix + scapha + antihelix) * (1 - 0.7 * lobe) + bowl + tragus + antitragus + 1.0 * lobe


def _ease(x: Field) -> Field:
    x = np.clip(x, 0.0, 1.0)
    return x * x * (3 - 2 * x)
