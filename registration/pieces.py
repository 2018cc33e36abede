"""Connected pieces of a mesh: which belong to the head, which are crumbs, which guessed patches are small enough."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_matrix
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from registration.mesh import Mesh, face_areas

CRUMB_SHARE = 0.01
"""Smaller pieces of a head, by area over the largest one's, are crumbs: a hundredth of a head is a ball of 2 cm."""


@dataclass(frozen=True)
class Pieces:
    """A mesh split into the head and what floats around it.

    Attributes:
        kept: (n,) mask of the vertices that belong to the head.
        loose_kept: number of separate pieces among the kept ones, the largest not counted.
        dropped: number of pieces dropped.
        dropped_share: their share of the whole area.
    """

    kept: NDArray[np.bool_]
    loose_kept: int
    dropped: int
    dropped_share: float


def vertex_pieces(mesh: Mesh, among: NDArray[np.bool_] | None = None) -> NDArray[np.int64]:
    """The connected piece (n,) of each vertex; with a mask, only edges between its vertices connect."""
    n = len(mesh.vertices)
    a, b = mesh.faces[:, [0, 1, 2]].ravel(), mesh.faces[:, [1, 2, 0]].ravel()
    if among is not None:
        both = among[a] & among[b]
        a, b = a[both], b[both]
    graph = coo_matrix((np.ones(len(a), np.int8), (a, b)), (n, n))
    return np.asarray(connected_components(graph, directed=False)[1], np.int64)


def split_pieces(mesh: Mesh, least_area_mm2: float, gap_mm: float) -> Pieces:
    """Keep the largest piece and every other that is no crumb and lies close to it.

    Args:
        mesh: mm.
        least_area_mm2: smaller pieces are dropped.
        gap_mm: pieces whose nearest vertex is further from the largest piece are dropped.
    """
    label = vertex_pieces(mesh)
    area = _piece_areas(mesh, label)
    main = int(area.argmax())
    tree = cKDTree(mesh.vertices[label == main])
    kept = label == main
    loose = dropped = 0
    lost_mm2 = 0.0
    for piece in np.flatnonzero(area > 0):
        if piece == main:
            continue
        if area[piece] >= least_area_mm2:
            members = label == piece
            distance, _ = tree.query(mesh.vertices[members], distance_upper_bound=gap_mm)
            if np.isfinite(distance).any():
                kept |= members
                loose += 1
                continue
        dropped += 1
        lost_mm2 += float(area[piece])
    return Pieces(kept, loose, dropped, lost_mm2 / float(area.sum()))


def without_crumbs(mesh: Mesh) -> Mesh:
    """Without the pieces that are small beside the largest one; cavities are pieces too."""
    label = vertex_pieces(mesh)
    area = _piece_areas(mesh, label)
    crumb = area < CRUMB_SHARE * area.max()
    return mesh.select_vertices(~crumb[label]) if crumb.any() else mesh


def _piece_areas(mesh: Mesh, label: NDArray[np.int64]) -> NDArray[np.float64]:
    """The area of each piece, by its label; one piece of none for a mesh without vertices."""
    areas = face_areas(mesh.vertices, mesh.faces)
    return np.asarray(np.bincount(label[mesh.faces[:, 0]], areas, minlength=label.max(initial=0) + 1), np.float64)


def small_patches(mesh: Mesh, guessed: NDArray[np.bool_], widest_mm: float) -> NDArray[np.bool_]:
    """Mask (n,) of the guessed vertices whose connected patch is at most so wide."""
    label = vertex_pieces(mesh, guessed)
    low = np.full((label.max() + 1, 3), np.inf)
    high = -low
    np.minimum.at(low, label[guessed], mesh.vertices[guessed])
    np.maximum.at(high, label[guessed], mesh.vertices[guessed])
    wide = np.linalg.norm(np.where(high >= low, high - low, 0.0), axis=1)
    return guessed & (wide <= widest_mm)[label]
