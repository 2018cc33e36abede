"""How much of a head was seen: of all directions from its middle, and of its face."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from registration.mesh import Mesh, sample_surface, transform_points, unit
from registration.template import Template

POINTS = 40_000
"""Drawn on the surface: about 2 mm apart on a head."""


def coverage(mesh: Mesh, T_world_from_head: NDArray, template: Template) -> dict[str, float]:
    """Share of the directions from the middle of the head, and of the template's face, that have observed surface.

    Directions more than 40 degrees downwards belong to the neck and don't count.
    """
    seen_vertex = mesh.attributes["observed"] > 0
    observed = mesh.select_faces(np.asarray(seen_vertex[mesh.faces].all(1)))
    if len(observed.faces) == 0:
        return {"coverage": 0.0, "face_coverage": 0.0}
    # Points spread evenly over the surface find it whatever the size of its triangles.
    points, _, _ = sample_surface(observed, POINTS, np.random.default_rng(0))
    head = transform_points(np.linalg.inv(T_world_from_head), points)
    middle = np.array([0.0, 30.0, 10.0])
    i = np.arange(2000) + 0.5
    y, turn = 1 - 2 * i / 2000, np.pi * (1 + 5**0.5) * i
    ring = np.sqrt(1 - y * y)
    directions = np.stack([ring * np.cos(turn), y, ring * np.sin(turn)], 1)[y > -0.64]
    distance, _ = cKDTree(unit(head - middle)).query(directions, distance_upper_bound=0.06)
    face = template.mesh.vertices[template.face_mask][::8]
    near, _ = cKDTree(head).query(face, distance_upper_bound=12.0)
    return {
        "coverage": float(np.isfinite(distance).mean()),
        "face_coverage": float(np.isfinite(near).mean()),
    }
