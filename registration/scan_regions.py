"""Which region of the head a point of a scan belongs to, from the template registered to it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from registration.mesh import Mesh
from registration.surface import SurfaceIndex
from registration.template import REGIONS, Template

_HAIR, _WORN = REGIONS.index("hair"), REGIONS.index("worn")
_FACE, _EYES = REGIONS.index("face"), REGIONS.index("eyes")
_BROWS, _NOSE_TIP = slice(17, 27), 30


@dataclass(frozen=True)
class PointRegions:
    """Regions of n points.

    Attributes:
        region: (n,) uint8 index into ``REGIONS``.
        face: (n,) bool, on the skin of the face.
        standoff_mm: (n,) float32, how far the point stands out from the registered skin, negative beneath it.
    """

    region: NDArray[np.uint8]
    face: NDArray[np.bool_]
    standoff_mm: NDArray[np.float32]


def find_scan_regions(
    points_head_mm: NDArray[np.floating], registration: Mesh, template: Template, standoff_mm: float
) -> PointRegions:
    """Give each point the region of the nearest registered skin, or hair or worn where it stands out from that.

    What stands out between brows and nose tip in front of the face is worn (glasses); all else that stands out is hair,
    beards included.

    Args:
        points_head_mm: (n, 3) head frame.
        registration: the template registered to the scan, head frame, mm.
        template: of that registration.
        standoff_mm: a point that stands out further than this is not skin.
    """
    index = SurfaceIndex(registration)
    foot = index.closest(points_head_mm)
    corner = registration.faces[foot.faces]
    nearest = corner[np.arange(len(corner)), foot.bary.argmax(1)]
    away = np.asarray(points_head_mm, np.float64) - foot.points
    outward = np.einsum("nc,nc->n", away, index.normals_at(foot.faces, foot.bary)) >= 0
    out = np.where(outward, foot.distance_mm, -foot.distance_mm)
    region = template.regions[nearest].copy()
    face = template.face_mask[nearest] & (np.abs(out) <= standoff_mm)
    height = registration.vertices[template.landmarks, 1]
    before_eyes = (points_head_mm[:, 1] < height[_BROWS].max()) & (points_head_mm[:, 1] > height[_NOSE_TIP])
    before_eyes &= (region == _FACE) | (region == _EYES)
    stands_out = out > standoff_mm
    region[stands_out] = np.where(before_eyes[stands_out], _WORN, _HAIR)
    return PointRegions(region, face, out.astype(np.float32))
