"""A template in one picture: its regions, landmarks and anchors from all sides."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from registration.mesh import Mesh
from registration.pictures import BACK, FRONT, LEFT, Picture, render, sheet
from registration.template import Template

REGION_COLORS = np.array(
    [
        (226, 184, 156), (128, 138, 172), (232, 182, 92), (156, 190, 156),
        (204, 84, 92), (88, 146, 200), (90, 70, 60), (60, 60, 60),
    ],
    np.uint8,
)  # fmt: skip
"""Colour of each region in the order of ``REGIONS``."""
LANDMARK_COLOR, ANCHOR_COLOR, THROAT_COLOR = (255, 255, 255), (30, 30, 40), (200, 40, 200)


def template_sheet(template: Template, size: int = 420) -> Picture:
    """Front, half profile, side and back: regions in colours, anchors dark, landmarks white, throat magenta."""
    v = template.mesh.vertices
    marked = _with_dots(
        Mesh.of(v, template.mesh.faces, REGION_COLORS[template.regions]),
        [
            (template.landmarks, LANDMARK_COLOR, 1.2),
            (template.anchors, ANCHOR_COLOR, 2.6),
            (template.throat, THROAT_COLOR, 3.2),
        ],
    )
    extent = 1.05 * float(np.ptp(v[:, 1:], axis=0).max())
    views = (FRONT, 40.0, LEFT, BACK)
    titles = ["front", "half profile", "left", "back"]
    return sheet([[render(marked, azimuth, size=size, extent_mm=extent) for azimuth in views]], [titles])


def _with_dots(mesh: Mesh, dots: list[tuple[NDArray[np.integer], tuple[int, int, int], float]]) -> Mesh:
    corner = np.array([[1, 0, 0], [-1, 0, 0], [0, 1, 0], [0, -1, 0], [0, 0, 1], [0, 0, -1]], float)
    octahedron = np.array([[0, 2, 4], [2, 1, 4], [1, 3, 4], [3, 0, 4], [2, 0, 5], [1, 2, 5], [3, 1, 5], [0, 3, 5]])
    vertices, faces = [mesh.vertices], [mesh.faces]
    colors = [np.zeros((len(mesh.vertices), 3), np.uint8) if mesh.colors is None else mesh.colors]
    count = len(mesh.vertices)
    for index, color, radius in dots:
        for i in index:
            vertices.append(mesh.vertices[i] + radius * corner)
            faces.append(octahedron + count)
            colors.append(np.tile(np.array(color, np.uint8), (6, 1)))
            count += 6
    return Mesh.of(np.concatenate(vertices), np.concatenate(faces), np.concatenate(colors))
