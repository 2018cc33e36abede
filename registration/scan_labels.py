"""What each part of a scan is: skin, hair or a worn thing, told by a head that lies on it.

Three things speak against skin: standing out from the fitted head, relief finer than skin has (measured against the
fitted head, so that a misfit that is smooth doesn't count), and another colour than the face has. None decides alone
where it means little: lips, lids and ears are full of relief, and brows have another colour.

The scan is thinned to cells for this; what a cell is, its vertices are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from registration.mesh import Mesh, transform_points, unit
from registration.point_order import cell_numbers
from registration.surface import SurfaceIndex
from registration.template import REGIONS, Template

CELL_MM = 3.0
NEAR_MM = 7.0
"""Cells within this distance are judged together."""
OUT_MM = 3.0
"""Standing out so far, beyond ``SLACK_MM``, is enough not to be skin."""
SLACK_MM = 0.5
ROUGHNESS = 0.22
"""Spread of the normals against the fitted head's, radians, that is enough not to be skin."""
RELIEF = {"lips": 4.0, "eyes": 4.0, "ears": 4.0, "face": 1.0, "scalp": 1.0, "neck": 1.5}
"""How many times more relief the skin of a region has, or the fit leaves there."""
COLOR_SHARE, COLOR_SHARE_SCALP = 0.6, 1.2
"""The most that colour can say, where 1 is enough not to be skin: hair cropped close stands out by nothing else."""
MOST_OUT_MM = {"lips": 6.0, "eyes": 6.0, "ears": 12.0}
"""Regions where the fit may be off by more than elsewhere: standing out less than this says nothing there."""
NOSTRIL_MM = 12.0
"""So far around the landmarks under the nose its skin is taken for as rough as a lid's."""
INSIDE_OUT_MM = 4.0
"""What is seen through an opening of the template, eyeballs and the inside of the mouth, comes out no further."""
FAR_MM = 60.0
"""What is further from the fitted head has no region of it."""
PIECE_CELLS = 8
"""Smaller pieces of hair or worn things are taken for skin, and smaller holes in them for theirs."""

_HAIR, _WORN = REGIONS.index("hair"), REGIONS.index("worn")
_FACE, _EYES, _LIPS, _NECK, _SCALP = (REGIONS.index(name) for name in ("face", "eyes", "lips", "neck", "scalp"))


@dataclass(frozen=True)
class ScanLabels:
    """Labels of the v vertices of a scan.

    Attributes:
        region: (v,) uint8 index into ``REGIONS``: that of the skin it is, or hair or worn.
        skin: (v,) bool; eyeballs and the inside of the mouth are none, whatever their region.
    """

    region: NDArray[np.uint8]
    skin: NDArray[np.bool_]


def label_scan(
    scan: SurfaceIndex,
    T_scan_from_head: NDArray[np.floating],
    vertices_head_mm: NDArray[np.floating],
    template: Template,
) -> ScanLabels:
    """Tell skin from hair and worn things.

    Args:
        scan: in any frame, mm.
        T_scan_from_head: (4, 4) rigid.
        vertices_head_mm: (n, 3) the template's vertices as fitted so far, head frame.
    """
    T_head_from_scan = np.linalg.inv(T_scan_from_head)
    cell, points, normals = _cells(
        transform_points(T_head_from_scan, scan.vertices), scan.normals @ np.asarray(T_head_from_scan)[:3, :3].T
    )
    head = SurfaceIndex(Mesh.of(vertices_head_mm, template.mesh.faces), scan.threads)
    foot = head.closest(points)
    below = head.normals_at(foot.faces, foot.bary)
    corner = template.mesh.faces[foot.faces]
    nearest = corner[np.arange(len(corner)), foot.bary.argmax(1)]
    region = template.regions[nearest].copy()
    away = points - foot.points
    out = (away * below).sum(1)
    out = np.where(foot.distance_mm > np.abs(out) + 2.0, np.sign(out) * foot.distance_mm, out)
    inside = head.on_boundary(foot.faces, foot.bary) & (region != _NECK) & (away[:, 2] < INSIDE_OUT_MM)
    near = _neighbours(points, NEAR_MM)
    relief, most_out = (column[nearest] for column in _tolerance(template))
    against = _against_skin(near, out, normals - below, relief, most_out)
    if scan.mesh.colors is not None:
        against += _other_color(_cell_means(cell, scan.mesh.colors.astype(np.float64)), near, against, region)
    # Eyeballs, teeth and lips differ from the face in colour and relief alike: there only standing out counts.
    other = _cleaned(near, near @ against > 1.0) & ~(((region == _EYES) | (region == _LIPS)) & (out < most_out))
    other &= (foot.distance_mm < FAR_MM) & ~inside
    region[other] = np.where(_worn(points, near, other, region, vertices_head_mm, template)[other], _WORN, _HAIR)
    return ScanLabels(region[cell], ~(other | inside)[cell])


def _tolerance(template: Template) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """How many times more relief each vertex (n,) may show, and how far it may stand out, and be skin."""
    relief = np.array([RELIEF.get(name, 1.0) for name in REGIONS])[template.regions]
    most_out = np.array([MOST_OUT_MM.get(name, 0.0) for name in REGIONS])[template.regions]
    under_nose = template.mesh.vertices[template.landmarks[31:36]]
    distance, _ = cKDTree(under_nose).query(template.mesh.vertices)
    nostril = np.clip(2.0 - distance / NOSTRIL_MM, 0, 1)  # full within, fading out over as much again
    relief = np.maximum(relief, 1 + nostril * (RELIEF["eyes"] - 1))
    return relief, np.maximum(most_out, nostril * MOST_OUT_MM["eyes"])


def _cells(points: NDArray, normals: NDArray) -> tuple[NDArray[np.int64], NDArray[np.float64], NDArray[np.float64]]:
    """The cell (v,) of each vertex, and mean point and unit normal of each cell."""
    # Surfaces that lie back to back, such as hair over skin, are kept apart by the side that they face.
    axis = np.abs(normals).argmax(1)
    side = 2 * axis + (normals[np.arange(len(normals)), axis] > 0)
    _, cell = np.unique(cell_numbers(points, CELL_MM) * 6 + side, return_inverse=True)
    return cell, _cell_means(cell, points), unit(_cell_means(cell, normals))


def _cell_means(cell: NDArray[np.int64], values: NDArray[np.float64]) -> NDArray[np.float64]:
    times = np.bincount(cell)
    return np.stack([np.bincount(cell, column) for column in values.T], 1) / times[:, None]


def _neighbours(points: NDArray[np.float64], reach_mm: float) -> sp.csr_matrix:
    """(c, c) shares of each cell's neighbourhood; rows sum to 1."""
    pairs = cKDTree(points).query_pairs(reach_mm, output_type="ndarray")
    n = len(points)
    one = sp.coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (n, n))
    link = sp.csr_matrix(one + one.T + sp.eye(n))
    return sp.csr_matrix(sp.diags(1.0 / np.asarray(link.sum(1)).ravel()) @ link)


def _against_skin(
    near: sp.csr_matrix,
    out_mm: NDArray[np.float64],
    turned: NDArray[np.float64],
    relief: NDArray[np.float64],
    most_out_mm: NDArray[np.float64],
) -> NDArray[np.float64]:
    """How much speaks against skin by place and relief (c,)."""
    mean = near @ turned
    rough = np.sqrt(np.maximum(near @ np.square(turned).sum(1) - np.square(mean).sum(1), 0))
    outside = np.maximum(near @ out_mm - SLACK_MM, 0)
    outside[out_mm < most_out_mm] = 0
    return outside / OUT_MM + np.where(out_mm > -1.0, rough, 0) / (ROUGHNESS * relief)


def _other_color(
    colors: NDArray[np.float64], near: sp.csr_matrix, against: NDArray[np.float64], region: NDArray[np.uint8]
) -> NDArray[np.float64]:
    """How much colour speaks against skin (c,), 0 where it is the face's own."""
    colors = near @ colors
    light = colors.sum(1, keepdims=True)
    told = np.concatenate([colors / np.maximum(light, 1.0), light / 765.0 * 0.3], 1)
    face = (region == _FACE) & (against < 0.5)
    if face.sum() < 200:
        return np.zeros(len(told))
    middle = np.median(told[face], axis=0)
    spread = 1.5 * np.median(np.abs(told[face] - middle), axis=0) + 0.01
    apart = np.sqrt(np.square((told - middle) / spread).sum(1))
    most = np.where(region == _SCALP, COLOR_SHARE_SCALP, COLOR_SHARE)
    return np.asarray(most * np.clip((apart - 3.0) / 3.0, 0, 1))


def _cleaned(near: sp.csr_matrix, other: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Small patches of what is no skin become skin, then small patches of skin become the other."""
    out = other.copy()
    for value in (True, False):
        members = np.flatnonzero(out == value)
        _, piece = connected_components(near[members][:, members], directed=False)
        small = np.bincount(piece, minlength=1) < PIECE_CELLS
        out[members[small[piece]]] = not value
    return out


def _worn(
    points: NDArray[np.float64],
    near: sp.csr_matrix,
    other: NDArray[np.bool_],
    region: NDArray[np.uint8],
    vertices: NDArray[np.floating],
    template: Template,
) -> NDArray[np.bool_]:
    """Which of the cells that are no skin belong to glasses: in front of the eyes, and what goes back from there."""
    mark = np.asarray(vertices, np.float64)[template.landmarks]
    eyes, ears = mark[36:48], mark[[0, 16]]
    height = points[:, 1] - eyes[:, 1].mean()
    before = other & (np.abs(height) < 25.0) & ((region == _FACE) | (region == _EYES))
    before &= (points[:, 1] < mark[17:27, 1].max() + 4) & (points[:, 2] > eyes[:, 2].min() - 10)
    if before.sum() < PIECE_CELLS:
        return np.zeros(len(points), bool)
    level = np.median(height[before])
    strip = other & (np.abs(height - level) < 16.0) & (points[:, 2] > ears[:, 2].min() - 25.0)
    strip |= before
    members = np.flatnonzero(strip)
    _, piece = connected_components(near[members][:, members], directed=False)
    out = np.zeros(len(points), bool)
    out[members[np.isin(piece, np.unique(piece[before[members]]))]] = True
    return out
