"""A template in one picture: its regions, landmarks, anchors and mirror map from all sides."""

from __future__ import annotations

import colorsys

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
LANDMARK_COLOR, MIDDLE_COLOR, THROAT_COLOR = (255, 255, 255), (30, 30, 40), (200, 40, 200)
OUTSIDE_COLOR = (205, 205, 210)
CHECK_MM = 20.0
"""Side of the squares that show the mirror map."""
Dots = tuple[NDArray[np.integer], tuple[int, int, int], float]
"""Vertices to be marked, the colour, and the radius in mm."""


def template_sheet(template: Template, size: int = 420) -> Picture:
    """Two rows from the front, half profile, side and back.

    Above, regions in colours, landmarks white, throat magenta, anchors large: a pair's two in one colour, those in the
    middle dark. Below, the mirror map: squares laid out on the head's left and carried to its right by the map, so that
    a wrong map shows as a torn pattern; grey is outside of the face mask.
    """
    v = template.mesh.vertices
    pairs = template.anchor_pairs
    dots: list[Dots] = [(template.landmarks, LANDMARK_COLOR, 1.2), (template.throat, THROAT_COLOR, 3.2)]
    dots += [(template.anchors[2 * pair : 2 * pair + 2], _hue(pair / pairs), 3.0) for pair in range(pairs)]
    dots.append((template.anchors[2 * pairs :], MIDDLE_COLOR, 3.0))
    marked = _with_dots(Mesh.of(v, template.mesh.faces, REGION_COLORS[template.regions]), dots)
    mirrored = Mesh.of(v, template.mesh.faces, _mirror_colors(template))
    extent = 1.05 * float(np.ptp(v[:, 1:], axis=0).max())
    views = (FRONT, 40.0, LEFT, BACK)
    rows = [[render(mesh, azimuth, size=size, extent_mm=extent) for azimuth in views] for mesh in (marked, mirrored)]
    sides = ["front", "half profile", "left", "back"]
    return sheet(rows, [sides, [f"mirror map, {side}" for side in sides]])


def _mirror_colors(template: Template) -> NDArray[np.uint8]:
    v = template.mesh.vertices
    own = np.where(v[:, 0] >= 0, np.arange(len(v)), template.mirror)
    around, up = v[own, 0] - v[own, 2], v[own, 1]
    square = (np.floor(around / CHECK_MM) + np.floor(up / CHECK_MM)).astype(np.int64) % 2
    colors = np.where(square[:, None] == 0, np.array((236, 200, 120)), np.array((70, 110, 160))).astype(np.float64)
    outside = ~template.face_mask
    colors[outside] = 0.35 * colors[outside] + 0.65 * np.array(OUTSIDE_COLOR)
    return colors.astype(np.uint8)


def _hue(share: float) -> tuple[int, int, int]:
    r, g, b = colorsys.hsv_to_rgb(share, 0.75, 0.85)
    return round(255 * r), round(255 * g), round(255 * b)


def _with_dots(mesh: Mesh, dots: list[Dots]) -> Mesh:
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
