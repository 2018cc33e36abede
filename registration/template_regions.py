"""Regions, mirror map and throat of a template, found from its shape and its 68 landmarks."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from registration.template import REGIONS
from storage.errors import ConfigError, one_line

FACE, SCALP, EARS, NECK, LIPS, EYES = (
    REGIONS.index(name) for name in ("face", "scalp", "ears", "neck", "lips", "eyes")
)

LEAST_IN_BAND = 12
"""So many vertices about the throat's height are enough to span its plane."""


def mirror_map(vertices_mm: NDArray[np.floating], tolerance_mm: float = 1.0) -> NDArray[np.int32] | None:
    """Find each vertex's mirror image across x = 0.

    Args:
        vertices_mm: (n, 3) head frame.
        tolerance_mm: furthest allowed distance between a vertex's image and the vertex found.

    Returns:
        (n,) int32, an involution; vertices on the middle line name themselves. None where the template isn't symmetric
        vertex by vertex.
    """
    vertices = np.asarray(vertices_mm, np.float64)
    distance, mirror = (np.atleast_1d(x) for x in cKDTree(vertices).query(vertices * [-1.0, 1.0, 1.0]))
    if distance.max() > tolerance_mm or (mirror[mirror] != np.arange(len(vertices))).any():
        return None
    return mirror.astype(np.int32)


def mirror_closest(vertices_mm: NDArray[np.floating]) -> NDArray[np.int32]:
    """For a template that isn't symmetric vertex by vertex: the nearest vertex to each mirror image (n,) int32."""
    vertices = np.asarray(vertices_mm, np.float64)
    return np.atleast_1d(cKDTree(vertices).query(vertices * [-1.0, 1.0, 1.0])[1]).astype(np.int32)


def find_regions(
    vertices_mm: NDArray[np.floating], landmarks_mm: NDArray[np.floating], face_mask: NDArray[np.bool_]
) -> NDArray[np.uint8]:
    """Name the region of each vertex.

    Lips and eyes lie within the outlines of their landmarks seen from the front; the neck lies below the jaw line and
    its continuation to the nape; ears lie in an oval behind the jaw's ends; the face is what the mask adds; the rest is
    scalp.

    Args:
        vertices_mm: (n, 3) head frame.
        landmarks_mm: (68, 3) head frame.
        face_mask: (n,) brow to chin.

    Returns:
        (n,) uint8 index into ``registration.template.REGIONS``.
    """
    v, lm = np.asarray(vertices_mm, np.float64), np.asarray(landmarks_mm, np.float64)
    region = np.full(len(v), SCALP, np.uint8)
    region[v[:, 1] < _neck_line_y(v[:, 2], lm)] = NECK
    region[_ears(v, lm)] = EARS
    region[face_mask] = FACE
    for outline, kind, grow in ((lm[48:60], LIPS, 1.06), (lm[36:42], EYES, 1.5), (lm[42:48], EYES, 1.5)):
        middle = outline.mean(0)
        wide = middle + (outline - middle) * [grow, grow if kind == LIPS else 1.4 * grow, 1.0]
        near = v[:, 2] > outline[:, 2].min() - 22.0
        region[near & _inside(wide[:, :2], v[:, :2])] = kind
    return region


def find_throat(vertices_mm: NDArray[np.floating], height_mm: float = -98.0) -> NDArray[np.int32]:
    """Choose three vertices of the neck that span a level plane.

    Args:
        vertices_mm: (n, 3) head frame.
        height_mm: y of the wanted plane.

    Returns:
        (3,) int32: in front, behind on the head's left, behind on its right; their winding's normal points up.
    """
    v = np.asarray(vertices_mm, np.float64)
    away = np.abs(v[:, 1] - height_mm)
    # A coarse mesh has few vertices at one height: the band widens until it holds some all around.
    bands = (np.flatnonzero(away < half_mm) for half_mm in (8.0, 14.0, 20.0))
    band = next((b for b in bands if len(b) >= LEAST_IN_BAND), np.zeros(0, np.int64))
    if not len(band):
        raise ConfigError(
            one_line(f"has no neck at y = {height_mm:g} mm", "template", "", "give a template with a neck")
        )
    ring = v[band]
    reach = np.linalg.norm(ring[:, [0, 2]] - np.median(ring[:, [0, 2]], 0), axis=1).max()
    level = 4.0 * np.abs(ring[:, 1] - height_mm)
    front = ring[:, 2] - level - np.abs(ring[:, 0])
    depth = -ring[:, 2] - level - 0.02 * reach
    left = depth - np.abs(ring[:, 0] - 35.0)
    right = depth - np.abs(ring[:, 0] + 35.0)
    return band[[front.argmax(), left.argmax(), right.argmax()]].astype(np.int32)


def throat_plane(vertices_mm: NDArray[np.floating], throat: NDArray[np.integer]) -> NDArray[np.float64]:
    """Plane (4,) through the throat's three vertices with n.x + d >= 0 on the head's side."""
    a, b, c = np.asarray(vertices_mm, np.float64)[throat]
    normal = np.cross(b - a, c - a)
    normal /= np.linalg.norm(normal)
    normal *= np.sign(normal[1])
    return np.append(normal, -normal @ a)


def _neck_line_y(z: NDArray[np.float64], lm: NDArray[np.float64]) -> NDArray[np.float64]:
    jaw = 0.5 * (lm[2:9] + lm[14:7:-1])  # both sides of the jaw, from below the ear to the chin
    along = np.maximum.accumulate(jaw[:, 2])
    nape_y = jaw[0, 1] - 30.0
    return np.interp(
        z, np.concatenate([[jaw[0, 2] - 10.0], along + 1e-6 * np.arange(7)]), np.append(nape_y, jaw[:, 1] + 2.0)
    )


def _ears(v: NDArray[np.float64], lm: NDArray[np.float64]) -> NDArray[np.bool_]:
    temple = 0.5 * (lm[0] * [-1, 1, 1] + lm[16])
    y, z = v[:, 1] - temple[1] + 28.0, v[:, 2] - temple[2] + 35.0
    return (np.abs(v[:, 0]) > 0.8 * temple[0]) & ((y / 33.0) ** 2 + (z / 23.0) ** 2 < 1.0)


def _inside(outline: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.bool_]:
    """Which points (n, 2) lie inside a closed outline (k, 2), by the even-odd rule."""
    a, b = outline, np.roll(outline, -1, 0)
    x, y = points[:, :1], points[:, 1:]
    crosses = (a[:, 1] > y) != (b[:, 1] > y)
    rise = np.where(b[:, 1] == a[:, 1], 1.0, b[:, 1] - a[:, 1])
    at = a[:, 0] + (y - a[:, 1]) * (b[:, 0] - a[:, 0]) / rise
    return (crosses & (x < at)).sum(1) % 2 == 1
