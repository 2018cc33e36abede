"""What a registration's verdict is made from: residuals by region, what was seen, and what is wrong with the mesh."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from registration.correspondence import match
from registration.crossings import crossing_faces
from registration.fit_vertices import stable
from registration.mesh import face_normals, transform_points, vertex_normals
from registration.surface import SurfaceIndex
from registration.template import REGIONS, Template

SKULL_REACH_MM = 25.0
SKULL_LEAST = 50
"""Fewer vertices of the skull than this, seen in both scans, say nothing of whether it is the same."""


def opening_faces(template: Template, region: str) -> NDArray[np.bool_]:
    """Mask (m,) of the faces around an opening that must not pass through each other: ``lips`` or ``eyes``."""
    return np.asarray((template.regions == REGIONS.index(region))[template.mesh.faces].any(1))


def region_figures(
    template: Template, residual_mm: NDArray[np.float64], observed: NDArray[np.bool_]
) -> dict[str, float | None]:
    """Share observed, and median and 95 % of the residual there, for the face and for each region."""
    region = np.array(REGIONS)[template.regions]
    out: dict[str, float | None] = {}
    for name, mask in {"face": template.face_mask, **{n: region == n for n in np.unique(region)}}.items():
        values = residual_mm[mask & observed]
        out[f"{name}_observed"] = float(observed[mask].mean())
        out[f"{name}_residual_median_mm"] = float(np.median(values)) if len(values) else None
        out[f"{name}_residual_p95_mm"] = float(np.percentile(values, 95)) if len(values) else None
    return out


def mesh_figures(
    template: Template, linear_mm: NDArray[np.float64], vertices_mm: NDArray[np.float64]
) -> dict[str, float]:
    """Faces turned over against the linear fit, edges stretched against the template, lips and lids that cross.

    Faces that cross in the template itself are not counted: the corners of mouth and eyes often do.
    """
    faces = template.mesh.faces
    in_face = template.face_mask[faces].all(1)
    before, after = face_normals(linear_mm, faces), face_normals(vertices_mm, faces)
    edge = faces[in_face][:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    rest = np.linalg.norm(template.mesh.vertices[edge[:, 0]] - template.mesh.vertices[edge[:, 1]], axis=1)
    ratio = np.linalg.norm(vertices_mm[edge[:, 0]] - vertices_mm[edge[:, 1]], axis=1) / np.maximum(rest, 0.1)
    out = {
        "flipped_share": float(((before * after).sum(1) < 0)[in_face].mean()),
        "stretched_share": float(((ratio > 3) | (ratio < 1 / 3)).mean()),
        "moved_median_mm": float(np.median(np.linalg.norm(vertices_mm - linear_mm, axis=1)[template.face_mask])),
    }
    for name, region in (("lips", "lips"), ("lids", "eyes")):
        among = opening_faces(template, region)
        own = crossing_faces(template.mesh.vertices, faces, among)
        crossing = crossing_faces(vertices_mm, faces, among) & ~own
        out[f"{name}_crossing_share"] = float(crossing[among].mean()) if among.any() else 0.0
    return out


def apart_mm(first_mm: NDArray[np.float64], second_mm: NDArray[np.float64], template: Template) -> float:
    """Median distance between two placements (n, 3) of the face's vertices."""
    return float(np.median(np.linalg.norm(first_mm - second_mm, axis=1)[template.face_mask]))


def skull_figures(
    scan: SurfaceIndex,
    T_scan_from_head: NDArray[np.float64],
    canonical_mm: NDArray[np.float64],
    canonical_observed: NDArray[np.bool_],
    template: Template,
) -> dict[str, float | None]:
    """How far the canonical head lies from another scan where no expression moves it.

    What the other registration takes for hair counts too: on another person's scan much of the skull seems to be hair.

    Args:
        scan: the other scan.
        T_scan_from_head: (4, 4) where its registration found the head.
        canonical_mm: (n, 3) the canonical registration, head frame.
        canonical_observed: (n,) what of the template the canonical scan shows.
    """
    pick = np.flatnonzero(stable(template) & canonical_observed)
    placed = transform_points(T_scan_from_head, canonical_mm)
    outward = vertex_normals(placed, template.mesh.faces)[pick]
    found = match(scan, placed[pick], outward, SKULL_REACH_MM, 0.3)
    seen = found.weights > 0
    if seen.sum() < SKULL_LEAST:
        return {"skull_disagreement_mm": None, "skull_seen": float(seen.sum())}
    gap = ((found.points - placed[pick]) * found.normals).sum(1)[seen]
    return {"skull_disagreement_mm": float(np.median(np.abs(gap))), "skull_seen": float(seen.sum())}
