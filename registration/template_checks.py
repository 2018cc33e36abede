"""Hold a template against what a head's template must be like: figures, and what is doubtful in words."""

from __future__ import annotations

from typing import Any

import numpy as np

from registration.landmarks import MIRRORED
from registration.template import REGIONS, Template

MAX_ASYMMETRY_MM = 6.0
"""Median distance of a template's landmarks from the mirror images of their partners."""
MAX_MIRROR_MM = 10.0
"""95 % of the distances of the face's vertices from the mirror images of their partners."""
FACE_AREA_MM2 = (18_000.0, 60_000.0)
"""Believable areas of a face, brow to chin."""


def template_figures(template: Template) -> dict[str, Any]:
    """What can be counted and measured of a template, lengths in mm."""
    v = template.mesh.vertices.astype(np.float64)
    marks = v[template.landmarks]
    apart = np.linalg.norm(v[template.mirror] * [-1.0, 1.0, 1.0] - v, axis=1)
    compared = apart[template.face_mask] if template.face_mask.any() else apart
    corners = v[template.mesh.faces[template.face_mask[template.mesh.faces].all(1)]]
    area = 0.5 * np.linalg.norm(np.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0]), axis=1).sum()
    away = np.linalg.norm(marks - marks[MIRRORED] * [-1.0, 1.0, 1.0], axis=1)
    return {
        "vertices": len(v),
        "faces": len(template.mesh.faces),
        "identity_modes": len(template.identity_basis),
        "expression_modes": len(template.expression_basis),
        "anchors": len(template.anchors),
        "anchor_pairs": template.anchor_pairs,
        "regions": {name: int((template.regions == code).sum()) for code, name in enumerate(REGIONS[:6])},
        "face_area_mm2": round(float(area), 1),
        "landmark_asymmetry_mm": round(float(np.median(away)), 3),
        "mirror_p95_mm": round(float(np.percentile(compared, 95)), 3),
        "mirror_is_exact": bool((template.mirror[template.mirror] == np.arange(len(v))).all()),
    }


def template_doubts(template: Template) -> list[str]:
    """What is doubtful in a template, a line each; empty if nothing is."""
    v = template.mesh.vertices.astype(np.float64)
    marks, figures = v[template.landmarks], template_figures(template)
    region = np.array(REGIONS)[template.regions]
    doubts = []
    if len(set(template.landmarks.tolist())) < len(template.landmarks):
        doubts.append("several landmarks share one vertex: the mesh is coarse there, or they are wrong")
    if figures["landmark_asymmetry_mm"] > MAX_ASYMMETRY_MM:
        off = figures["landmark_asymmetry_mm"]
        doubts.append(f"the landmarks of the two sides lie {off:.1f} mm from one another's images in the median")
    if not marks[[37, 38, 43, 44], 1].mean() > marks[[41, 40, 47, 46], 1].mean():
        doubts.append("the upper lids' landmarks lie below the lower lids'")
    if not marks[27, 1] > marks[33, 1] > marks[51, 1] > marks[57, 1] > marks[8, 1]:
        doubts.append("bridge, nose, lips and chin don't follow one another downwards")
    if (region[template.landmarks[48:68]] != "lips").mean() > 0.3:
        doubts.append("the landmarks of the mouth lie outside of the lips")
    bare = [name for name in ("face", "lips", "eyes", "ears", "neck") if not (region == name).any()]
    if bare:
        doubts.append(f"no vertex belongs to {', '.join(bare)}")
    low, high = FACE_AREA_MM2
    if not low < figures["face_area_mm2"] < high:
        doubts.append(
            f"the face covers {figures['face_area_mm2'] / 100:.0f} cm2, {low / 100:g} to {high / 100:g} expected"
        )
    if figures["mirror_p95_mm"] > MAX_MIRROR_MM:
        doubts.append(f"the face's vertices lie up to {figures['mirror_p95_mm']:.1f} mm from their partners' images")
    if not template.face_mask[template.landmarks[30]]:
        doubts.append("the tip of the nose lies outside of the face")
    return doubts
