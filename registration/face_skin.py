"""Which points lie on the skin of the face, by the template registered to it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from registration.surface import SurfaceIndex
from registration.template import Template


def on_face_skin(
    points_head_mm: NDArray[np.floating], registration: SurfaceIndex, template: Template, standoff_mm: float
) -> NDArray[np.bool_]:
    """Whether each of n points lies on the face, brow to chin, no further from the registered skin than it may.

    Args:
        points_head_mm: (n, 3) head frame.
        registration: the template registered to the scan, head frame, mm.
        template: of that registration.
        standoff_mm: what is further off is hair, worn, or the inside of the mouth.
    """
    foot = registration.closest(points_head_mm)
    corner = registration.mesh.faces[foot.faces]
    nearest = corner[np.arange(len(corner)), foot.bary.argmax(1)]
    return np.asarray(template.face_mask[nearest] & (foot.distance_mm <= standoff_mm))
