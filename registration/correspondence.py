"""Which place of a scan belongs to which vertex of the template."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from registration.surface import SurfaceIndex


@dataclass(frozen=True)
class Matches:
    """A place on the scan for each template vertex.

    Attributes:
        points: (n, 3) float64.
        normals: (n, 3) float64 the scan's, out of the surface.
        distance_mm: (n,) float64.
        weights: (n,) float64 from 0 (no match) to 1.
        unseen: (n,) bool, where the nearest place is no skin, filled in, or the scan's open edge: what is there is
            not known, so that a missing match says nothing against the fit.
    """

    points: NDArray[np.float64]
    normals: NDArray[np.float64]
    distance_mm: NDArray[np.float64]
    weights: NDArray[np.float64]
    unseen: NDArray[np.bool_]


def match(
    scan: SurfaceIndex,
    points: NDArray[np.floating],
    normals: NDArray[np.floating],
    gate_mm: float,
    least_cosine: float,
    skin: NDArray[np.bool_] | None = None,
) -> Matches:
    """Match points to the nearest place of the scan, where that is near, faces the same way, was seen and is skin.

    Args:
        points, normals: (n, 3) in the scan's frame, mm.
        gate_mm: matches further away count nothing.
        least_cosine: of the angle between the normals.
        skin: (v,) which vertices of the scan are skin; all by default.

    The column ``observed`` of the scan's mesh (0 where the surface was filled in) is respected where there is one.
    """
    found = scan.closest(points)
    normal = scan.normals_at(found.faces, found.bary)
    facing = (normal * normals).sum(1)
    weights = np.clip((facing - least_cosine) / (1 - least_cosine) * 2, 0, 1)
    weights[found.distance_mm > gate_mm] = 0
    unseen = scan.on_boundary(found.faces, found.bary)
    if "observed" in scan.mesh.attributes:
        seen = scan.interpolate(scan.mesh.attributes["observed"].astype(np.float64), found.faces, found.bary)
        unseen |= seen < 0.999
    if skin is not None:
        unseen |= scan.interpolate(skin.astype(np.float64), found.faces, found.bary) < 0.5
    weights[unseen] = 0
    return Matches(found.points, normal, found.distance_mm, weights, unseen)
