"""A few ways in which heads differ, for any template: used where a scan must be met before its details are."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import scipy.sparse as sp
import scipy.sparse.linalg as spla
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.distance import cdist

from registration.smoothness import cotangent_laplacian
from registration.template import Template, once_a_template

JAW_ANGLE_DEG = 26.0
"""How far a unit of the jaw mode turns the chin about the ears."""
PEOPLE_MODES, MOTION_MODES = 200, 99
PEOPLE_SCALES = ((4.0, 70.0), (1.5, 30.0), (0.7, 15.0))
"""Standard deviations and ranges, mm, in which heads of different people differ."""
MOTION_SCALES = ((4.0, 40.0), (2.5, 20.0), (1.2, 10.0))
"""The same for the faces that one person makes, beside the opening of the jaw."""


def identity_modes(template: Template, count: int) -> NDArray[np.float64]:
    """The template's first identity modes, or general ones where it has none.

    Returns:
        (modes, n, 3) mm per unit of a coefficient with unit spread.
    """
    if len(template.identity_basis):
        return template.identity_basis[:count].astype(np.float64)
    return proportion_modes(template.mesh.vertices)[:count]


def expression_modes(template: Template, count: int) -> NDArray[np.float64]:
    """The main directions of the template's expressions, or an opening jaw where it has none.

    Returns:
        (modes, n, 3) mm; a unit is about one full expression, of either sign.
    """
    if not len(template.expression_basis):
        return jaw_mode(template)[None]
    flat = template.expression_basis.reshape(len(template.expression_basis), -1).astype(np.float64)
    value, vector = np.linalg.eigh(flat @ flat.T)
    order = np.argsort(-value)[:count]
    main = (vector[:, order].T @ flat).reshape(len(order), -1, 3)
    sign = np.sign(vector[np.abs(vector[:, order]).argmax(0), order])
    return np.asarray(main * sign[:, None, None])


def proportion_modes(points_mm: NDArray[np.floating]) -> NDArray[np.float64]:
    """Width, height and depth of a head, and how they change from bottom to top and back to front.

    Args:
        points_mm: (n, 3) head frame.

    Returns:
        (10, n, 3) mm, each about a person's spread, symmetric about the middle.
    """
    x, y, z = (np.asarray(points_mm, np.float64) / 100.0).T
    nil = np.zeros_like(x)
    fields = (
        (x, nil, nil), (nil, y, nil), (nil, nil, z), (x * y, nil, nil), (x * z, nil, nil),
        (nil, y * z, nil), (nil, nil, y * z), (nil, nil, x * x), (nil, nil, y * y), (nil, y * y, nil),
    )  # fmt: skip
    return 5.0 * np.stack([np.stack(field, 1) for field in fields])


@once_a_template
def jaw_mode(template: Template) -> NDArray[np.float64]:
    """The lower face turned down about an axis through the ears; the lips part where the mesh is slit.

    How much each vertex follows is a harmonic function on the mesh: all at the chin and the lower lip, none above the
    nose, behind the ears, on the neck and the upper lip. It jumps across the slit of the mouth by itself.

    Returns:
        (n, 3) mm at ``JAW_ANGLE_DEG``.
    """
    vertices = template.mesh.vertices.astype(np.float64)
    mark = template.landmarks
    pivot = 0.5 * (vertices[mark[0]] + vertices[mark[16]])
    fixed = (vertices[:, 1] > vertices[mark[33], 1]) | (vertices[:, 2] < pivot[2])
    fixed |= vertices[:, 1] < vertices[mark[8], 1] - 35.0
    fixed[mark[[50, 51, 52, 61, 62, 63]]] = True
    value = np.zeros(len(vertices))
    follows = mark[[6, 7, 8, 9, 10, 56, 57, 58, 65, 66, 67]]
    fixed[follows], value[follows] = True, 1.0
    laplacian, area = cotangent_laplacian(vertices, template.mesh.faces)
    free = ~fixed
    inner = laplacian[free][:, free] + sp.diags(1e-9 * area[free])
    value[free] = spla.spsolve(sp.csc_matrix(inner), -laplacian[free][:, fixed] @ value[fixed])
    weight = np.clip(value, 0, 1)
    angle = np.radians(JAW_ANGLE_DEG) * weight * weight * (3 - 2 * weight)
    arm = vertices - pivot
    y = arm[:, 1] * np.cos(angle) - arm[:, 2] * np.sin(angle)
    z = arm[:, 1] * np.sin(angle) + arm[:, 2] * np.cos(angle)
    return np.stack([np.zeros_like(y), y - arm[:, 1], z - arm[:, 2]], 1)


def smooth_modes(
    places_mm: NDArray[np.floating],
    scales: Sequence[tuple[float, float]],
    count: int,
    asymmetry: float,
    controls: int = 500,
) -> NDArray[np.float64]:
    """Main modes of a random smooth deformation that is nearly symmetric (a Gaussian process morphable model).

    Args:
        places_mm: (n, 3) where each vertex stands for the purpose of being near to others; symmetric about x = 0.
        scales: (standard deviation, range) in mm of the fields that add up to the deformation.
        count: how many modes.
        asymmetry: standard deviation of what the two sides don't share, as a share of what they do.
        controls: points that the kernel is expanded on (Nystrom).

    Returns:
        (count, n, 3) mm per unit of a coefficient with unit spread, the strongest first.
    """
    places = np.asarray(places_mm, np.float64)
    control = _spread(places, controls)
    mirrored = control * [-1.0, 1.0, 1.0]

    def kernel(square: NDArray[np.floating]) -> NDArray[np.floating]:
        return np.asarray(sum(spread**2 * np.exp(-0.5 / reach**2 * square) for spread, reach in scales))

    # What is only multiplied later needs no double precision; what is decomposed does.
    near, across = (kernel(cdist(places, to, "sqeuclidean").astype(np.float32)) for to in (control, mirrored))
    near_control, across_control = (kernel(cdist(control, to, "sqeuclidean")) for to in (control, mirrored))
    fields: dict[int, NDArray[np.float64]] = {}
    for sign in (1, -1):
        value, vector = np.linalg.eigh(0.5 * (near_control + sign * across_control))
        kept = np.argsort(-value)[:count]
        kept = kept[value[kept] > 1e-6 * value.max()]
        spread = (0.5 * vector[:, kept] / np.sqrt(value[kept])).astype(np.float32)
        fields[sign] = np.asarray((near + sign * across) @ spread, np.float64)
    modes = []
    for axis in range(3):
        for sign in (1, -1):
            share = 1.0 if (axis == 0) == (sign == -1) else asymmetry
            modes += [(axis, share * column) for column in fields[sign].T]
    strength = np.array([np.square(column).sum() for _, column in modes])
    out = np.zeros((min(count, len(modes)), len(places), 3))
    for k, index in enumerate(np.argsort(-strength, kind="stable")[: len(out)]):
        axis, column = modes[index]
        out[k, :, axis] = column
    return out


@once_a_template
def people_modes(template: Template) -> NDArray[np.float32]:
    """Smooth modes (``PEOPLE_MODES``, n, 3) in which people may differ from a template that has no identity modes.

    Places are taken with the mouth open, so that the lips move apart.
    """
    places = template.mesh.vertices + jaw_mode(template)
    return smooth_modes(places, PEOPLE_SCALES, PEOPLE_MODES, asymmetry=0.15).astype(np.float32)


@once_a_template
def motion_modes(template: Template) -> NDArray[np.float32]:
    """Smooth modes of the face (``MOTION_MODES``, n, 3) in which expressions may differ from those of a template."""
    jaw = jaw_mode(template)
    mark = template.mesh.vertices[template.landmarks[[*range(3, 14), *range(17, 68)]]]
    distance, _ = cKDTree(mark).query(template.mesh.vertices)
    reach = np.clip((50.0 - distance) / 35.0, 0, 1)
    smooth = smooth_modes(template.mesh.vertices + jaw, MOTION_SCALES, MOTION_MODES, asymmetry=0.6)
    return np.asarray(smooth * (reach * reach * (3 - 2 * reach))[:, None], np.float32)


def _spread(points: NDArray[np.float64], count: int) -> NDArray[np.float64]:
    """So many of the points, each as far as can be from those before it."""
    chosen = np.zeros(min(count, len(points)), np.int64)
    distance = np.full(len(points), np.inf)
    for k in range(1, len(chosen)):
        distance = np.minimum(distance, np.square(points - points[chosen[k - 1]]).sum(1))
        chosen[k] = distance.argmax()
    return points[chosen]


def jaw_direction(template: Template, count: int) -> NDArray[np.float64]:
    """Expression coefficients (count,) that open the mouth fully: the one mode that parts the inner lips most."""
    out = np.zeros(count)
    if not len(template.expression_basis):
        out[0] = 1.0
        return out
    above, below = template.landmarks[62], template.landmarks[66]
    opening = template.expression_basis[:, above, 1] - template.expression_basis[:, below, 1]
    out[int(np.argmax(opening))] = 1.0
    return out
