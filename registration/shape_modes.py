"""A few ways in which heads differ, for any template: used where a scan must be met before its details are."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from registration.template import Template

JAW_ANGLE_DEG = 16.0
"""How far a unit of the jaw mode turns the chin about the ears."""


def identity_modes(template: Template, count: int) -> NDArray[np.float64]:
    """The template's first identity modes, or general ones where it has none.

    Returns:
        (modes, n, 3) mm per unit of a coefficient with unit spread.
    """
    if len(template.identity_basis):
        return template.identity_basis[:count].astype(np.float64)
    return proportion_modes(template.mesh.vertices)[:count]


def expression_modes(template: Template, count: int) -> NDArray[np.float64]:
    """The main directions of the template's expressions, or an opening jaw where it has none.

    Returns:
        (modes, n, 3) mm; a unit is about one full expression, of either sign.
    """
    if not len(template.expression_basis):
        return jaw_mode(template)[None]
    flat = template.expression_basis.reshape(len(template.expression_basis), -1).astype(np.float64)
    value, vector = np.linalg.eigh(flat @ flat.T)
    order = np.argsort(-value)[:count]
    main = (vector[:, order].T @ flat).reshape(len(order), -1, 3)
    sign = np.sign(vector[np.abs(vector[:, order]).argmax(0), order])
    return np.asarray(main * sign[:, None, None])


def proportion_modes(points_mm: NDArray[np.floating]) -> NDArray[np.float64]:
    """Width, height and depth of a head, and how they change from bottom to top and back to front.

    Args:
        points_mm: (n, 3) head frame.

    Returns:
        (10, n, 3) mm, each about a person's spread, symmetric about the middle.
    """
    x, y, z = (np.asarray(points_mm, np.float64) / 100.0).T
    nil = np.zeros_like(x)
    fields = (
        (x, nil, nil), (nil, y, nil), (nil, nil, z), (x * y, nil, nil), (x * z, nil, nil),
        (nil, y * z, nil), (nil, nil, y * z), (nil, nil, x * x), (nil, nil, y * y), (nil, y * y, nil),
    )  # fmt: skip
    return 5.0 * np.stack([np.stack(field, 1) for field in fields])


def jaw_mode(template: Template) -> NDArray[np.float64]:
    """The lower face turned down about an axis through the ears.

    Returns:
        (n, 3) mm at ``JAW_ANGLE_DEG``.
    """
    vertices = template.mesh.vertices.astype(np.float64)
    mark = vertices[template.landmarks]
    pivot = 0.5 * (mark[0] + mark[16])
    seam, chin = 0.25 * (mark[60] + mark[64] + mark[62] + mark[66]), mark[8]

    def elevation(points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Angle below the horizon seen from the ears."""
        return np.arctan2(pivot[1] - points[..., 1], np.maximum(points[..., 2] - pivot[2], 5.0))

    low, high = elevation(seam), elevation(chin)
    below = elevation(vertices)
    depth = np.clip((vertices[:, 2] - pivot[2]) / (0.6 * (chin[2] - pivot[2])), 0, 1)
    under = np.clip(1 - (mark[8, 1] - 12 - vertices[:, 1]) / 30.0, 0, 1)
    weight = np.clip((below - low) / (0.25 * (high - low)), 0, 1) * depth * under
    angle = np.radians(JAW_ANGLE_DEG) * weight
    arm = vertices - pivot
    y = arm[:, 1] * np.cos(angle) - arm[:, 2] * np.sin(angle)
    z = arm[:, 1] * np.sin(angle) + arm[:, 2] * np.cos(angle)
    return np.stack([np.zeros_like(y), y - arm[:, 1], z - arm[:, 2]], 1)


def jaw_direction(template: Template, count: int) -> NDArray[np.float64]:
    """Expression coefficients (count,) that open the mouth fully: the one mode that parts the inner lips most."""
    out = np.zeros(count)
    if not len(template.expression_basis):
        out[0] = 1.0
        return out
    above, below = template.landmarks[62], template.landmarks[66]
    opening = template.expression_basis[:, above, 1] - template.expression_basis[:, below, 1]
    out[int(np.argmax(opening))] = 1.0
    return out
