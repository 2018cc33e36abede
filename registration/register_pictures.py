"""The overlay of a registration on its scan, and where it fits how well."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from registration.mesh import Mesh
from registration.pictures import FRONT, LEFT, REGION_COLORS, RIGHT, Picture, heat_colors, render, sheet
from registration.register_head import Registration
from registration.template import Template

RESIDUAL_SHOWN_MM = 1.0
_SIDES = ((FRONT, "front"), (0.5 * LEFT, "left"), (0.5 * RIGHT, "right"))
_CENTRE_MM = (0.0, 10.0, 20.0)


def overlay_sheet(clean: Mesh, registration: Registration, template: Template) -> Picture:
    """Scan, registration, the template's wires over the scan, residuals, the scan's regions, each from three sides."""
    scan = clean.transformed(np.linalg.inv(registration.T_world_from_head))
    head = Mesh.of(registration.vertices_head_mm, template.mesh.faces)
    heat = heat_colors(registration.residual_mm, RESIDUAL_SHOWN_MM, ~registration.observed)
    regions = REGION_COLORS[registration.scan_region]
    rows, titles = [], []
    for azimuth, name in _SIDES:
        over = render(scan, azimuth, centre_mm=_CENTRE_MM)
        wires = _wires(head, azimuth, over.shape[0])
        over = np.where(wires[..., None], (0.65 * over + [7, 21, 56]).astype(np.uint8), over)
        rows.append(
            [
                render(scan, azimuth, centre_mm=_CENTRE_MM),
                render(head, azimuth, centre_mm=_CENTRE_MM),
                over,
                render(head, azimuth, centre_mm=_CENTRE_MM, colors=heat),
                render(scan, azimuth, centre_mm=_CENTRE_MM, colors=regions),
            ]
        )
        titles.append(
            [
                f"scan, {name}",
                "registered template",
                "template's edges on the scan",
                f"distance, red from {RESIDUAL_SHOWN_MM:g} mm",
                "regions: hair brown, worn violet",
            ]
        )
    return sheet(rows, titles)


def _wires(head: Mesh, azimuth_deg: float, size: int, extent_mm: float = 320.0) -> NDArray[np.bool_]:
    """Mask (size, size) of the edges of the faces that look at the eye, as ``pictures.render`` would place them."""
    a = np.radians(azimuth_deg)
    back, right = np.array([np.sin(a), 0.0, np.cos(a)]), np.array([np.cos(a), 0.0, -np.sin(a)])
    vertices = head.vertices.astype(np.float64) - _CENTRE_MM
    corner = vertices[head.faces]
    toward = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0]) @ back > 0
    faces = head.faces[toward]
    u, v = vertices @ right, vertices[:, 1]
    mask = np.zeros((size, size), bool)
    for share in np.linspace(0, 1, 12):
        for i, j in ((0, 1), (1, 2), (2, 0)):
            x = u[faces[:, i]] * (1 - share) + u[faces[:, j]] * share
            y = v[faces[:, i]] * (1 - share) + v[faces[:, j]] * share
            column = np.floor((x / extent_mm + 0.5) * size).astype(int)
            row = np.floor((0.5 - y / extent_mm) * size).astype(int)
            inside = (column >= 0) & (column < size) & (row >= 0) & (row < size)
            mask[row[inside], column[inside]] = True
    return mask
