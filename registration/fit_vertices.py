"""Which template vertices take part in a fit, and how much: lips densely, hair hardly, eyelids with care."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from registration.template import REGIONS, Template

CELL_MM = {"face": 6.0, "lips": 3.0, "eyes": 3.5, "ears": 7.0, "scalp": 13.0, "neck": 10.0}
"""Spacing of the vertices that carry a basis fit."""
FOLLOWS = {"face": 1.0, "lips": 1.0, "eyes": 0.6, "ears": 0.5, "scalp": 0.15, "neck": 0.4}
"""How much each region follows the scan; hair hides the scalp, collars the neck."""
SOFTNESS = {"face": 1.0, "lips": 0.5, "eyes": 0.5, "ears": 0.7, "scalp": 1.0, "neck": 1.0}
"""Factor on the displacement that a region may take beyond the linear fit."""


def _by_region(template: Template, table: dict[str, float], other: float) -> NDArray[np.float64]:
    return np.array([table.get(name, other) for name in REGIONS])[template.regions]


def following(template: Template) -> NDArray[np.float64]:
    """Weight (n,) from 0 to 1 of each vertex in a fit."""
    return _by_region(template, FOLLOWS, 0.2)


def moving(template: Template) -> NDArray[np.float64]:
    """Weight (n,) from 0 to 1 of each vertex that may differ between the scans of one person; 0 on the skull."""
    return _by_region(template, {**FOLLOWS, "scalp": 0.0, "ears": 0.0}, 0.2)


def softness(template: Template) -> NDArray[np.float64]:
    """Factor (n,) on the displacement that each vertex may take beyond the linear fit."""
    return _by_region(template, SOFTNESS, 1.0)


def carriers(template: Template, coarser: float) -> NDArray[np.int64]:
    """Vertices (s,) spread over the head, dense where features are small; one a cell of ``CELL_MM`` times a factor."""
    out = []
    for code, name in enumerate(REGIONS):
        members = np.flatnonzero(template.regions == code)
        if len(members):
            cell = np.floor(template.mesh.vertices[members] / (CELL_MM.get(name, 12.0) * coarser)).astype(np.int64)
            _, first = np.unique(cell, axis=0, return_index=True)
            out.append(members[first])
    return np.sort(np.concatenate(out))


def stable(template: Template, most_mm: float = 0.6) -> NDArray[np.bool_]:
    """Mask (n,) of what no expression moves: forehead, bridge of the nose, ears, skull."""
    region = np.array(REGIONS)[template.regions]
    mark = template.mesh.vertices[template.landmarks]
    if len(template.expression_basis):
        still = np.linalg.norm(template.expression_basis, axis=2).max(0) < most_mm
    else:
        still = template.mesh.vertices[:, 1] > mark[17:27, 1].max() + 15
        still |= region == "ears"
    return np.asarray(still & (template.mesh.vertices[:, 1] > mark[48:68, 1].min()) & (region != "neck"))
