"""How far open the mouth is: judged from the scan's side, for a lower lip that no part of the head meets costs nothing.

A fit asks whether the head's places are found in the scan. A head with its mouth closed over an open one finds them
all: its lips lie on the upper lip, its chin on the chin. What is left over is in the scan.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from registration.mesh import Mesh, transform_points
from registration.point_order import cell_numbers
from registration.surface import SurfaceIndex
from registration.template import REGIONS, Template

CELL_MM = 4.0
REACH_MM = 25.0
"""What of the scan is further from the head says nothing of its mouth."""
ROBUST_MM = 2.0
"""At this distance a place of the scan is half explained."""
LEAST_COSINE = 0.5
"""Of the angle between the normals: what is turned further is not explained at all."""


def lower_face(template: Template) -> NDArray[np.bool_]:
    """Mask (n,) of the face below the nose."""
    below = template.mesh.vertices[:, 1] < template.mesh.vertices[template.landmarks[33], 1]
    return np.asarray((template.face_mask & below) | (template.regions == REGIONS.index("lips")))


def places_of_lower_face(
    scan: SurfaceIndex, T_scan_from_head: NDArray[np.floating], template: Template
) -> NDArray[np.int64]:
    """Vertices (p,) of the scan about the lower face, one a cell.

    Args:
        scan: in any frame, mm.
        T_scan_from_head: (4, 4) where the head is, to about ``REACH_MM``.
    """
    points = transform_points(np.linalg.inv(T_scan_from_head), scan.vertices)
    around = template.mesh.vertices[lower_face(template)]
    near = ((points > around.min(0) - REACH_MM) & (points < around.max(0) + REACH_MM)).all(1)
    members = np.flatnonzero(near)
    if not len(members):
        return members
    _, first = np.unique(cell_numbers(points[members], CELL_MM), return_index=True)
    return members[first]


def left_over(
    scan: SurfaceIndex,
    places: NDArray[np.int64],
    T_scan_from_head: NDArray[np.floating],
    vertices_head_mm: NDArray[np.floating],
    template: Template,
) -> float:
    """How much of the scan's lower face a head leaves unexplained, 0 to 1.

    Args:
        scan: in any frame, mm.
        places: (p,) of its vertices (``places_of_lower_face``).
        T_scan_from_head: (4, 4) rigid.
        vertices_head_mm: (n, 3) the template's vertices as fitted so far, head frame.
    """
    T = np.linalg.inv(T_scan_from_head)
    head = SurfaceIndex(Mesh.of(vertices_head_mm, template.mesh.faces), scan.threads)
    found = head.closest(transform_points(T, scan.vertices[places]))
    nearest = template.mesh.faces[found.faces][np.arange(len(places)), found.bary.argmax(1)]
    told = lower_face(template)[nearest] & (found.distance_mm < REACH_MM)
    told &= ~head.on_boundary(found.faces, found.bary)  # teeth and tongue, seen through the opening
    if not told.any():
        return 1.0
    facing = (head.normals_at(found.faces, found.bary) * (scan.normals[places] @ T[:3, :3].T)).sum(1)
    agree = np.clip((facing - LEAST_COSINE) / (1 - LEAST_COSINE) * 2, 0, 1)
    explained = agree * ROBUST_MM**2 / (ROBUST_MM**2 + found.distance_mm**2)
    return float(1 - explained[told].mean())
