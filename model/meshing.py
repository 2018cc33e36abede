"""The zero level of a signed distance as a mesh, evaluated only near the surface.

The cells that the surface passes come from ``model.sparse_lattice``. They are meshed in slabs of bounded memory; slabs
share a layer of lattice points, whose vertices are the same from both sides and are welded. So there are no seams, and
the surface is the one of the dense lattice.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from skimage.measure import marching_cubes

from model.sparse_lattice import Crossings, Distance, find_crossings
from registration.mesh import Mesh

_SLAB_POINTS = 1 << 25
_OUTSIDE = np.float32(1e-12)
"""What a lattice point on the surface counts as, so that all its cells take it for outside."""


def extract(
    distance: Distance,
    low_mm: NDArray[np.floating],
    high_mm: NDArray[np.floating],
    resolution: int,
    plane: NDArray[np.floating] | None = None,
) -> Mesh:
    """Mesh the zero level inside a box, and on the positive side of a plane where there is one.

    Args:
        distance: the field; see ``model.sparse_lattice`` for how steep it may be.
        low_mm, high_mm: (3,) corners of the box; it is widened to whole coarse cells.
        resolution: cells along the longest edge.
        plane: (4,) as in ``clip``.

    Returns:
        Every piece of the surface within the box; open where it leaves the box, and cut along the plane. Faces are
        counter-clockwise seen from the field's positive side.
    """
    mesh = mesh_crossings(find_crossings(distance, low_mm, high_mm, resolution, plane))
    return mesh if plane is None else clip(mesh, plane)


def mesh_crossings(crossings: Crossings, slab_points: int = _SLAB_POINTS) -> Mesh:
    """Marching cubes over the crossed cells.

    Args:
        crossings: the cells, with the field's values at their corners.
        slab_points: lattice points that are held at once.
    """
    if not len(crossings.cell):
        return Mesh.of(np.zeros((0, 3)), np.zeros((0, 3)))
    low, high = crossings.cell.min(0), crossings.cell.max(0) + 1
    layers = max(1, slab_points // int(np.prod(high[1:] - low[1:] + 1)) - 1)
    vertices, faces, count = [], [], 0
    seam: dict[tuple[float, float], int] = {}
    for start in range(int(low[0]), int(high[0]), layers):
        first = np.array([start, low[1], low[2]])
        last = np.array([min(start + layers, high[0]), high[1], high[2]])
        part = _mesh_slab(crossings, first, last)
        if part is None:
            continue
        place, corners = part
        number = np.full(len(place), -1)
        for own in np.flatnonzero(place[:, 0] == start):
            number[own] = seam.get((place[own, 1], place[own, 2]), -1)
        fresh = number < 0
        number[fresh] = count + np.arange(fresh.sum())
        count += int(fresh.sum())
        vertices.append(place[fresh])
        faces.append(number[corners])
        seam = {(place[own, 1], place[own, 2]): int(number[own]) for own in np.flatnonzero(place[:, 0] == last[0])}
    place, corners = _without_points(np.concatenate(vertices), np.concatenate(faces))
    return Mesh.of(crossings.low + place * crossings.step, corners)


def _without_points(
    place: NDArray[np.float64], faces: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Join the vertices of triangles' edges that have no length, which a lattice point on the surface makes."""
    on_point = (place == np.rint(place)).all(1)
    faces_there = faces[on_point[faces].sum(1) > 1] if on_point.any() else faces[:0]
    edges = np.concatenate([faces_there[:, [0, 1]], faces_there[:, [1, 2]], faces_there[:, [2, 0]]])
    a, b = edges[(place[edges[:, 0]] == place[edges[:, 1]]).all(1)].T
    if not len(a):
        return place, faces
    joined = coo_array((np.ones(len(a), bool), (a, b)), (len(place), len(place)))
    _, group = connected_components(joined, directed=False)
    _, first = np.unique(group, return_index=True)
    faces = group[faces].astype(np.int64)
    area = (faces != np.roll(faces, 1, axis=1)).all(1)
    return place[first], faces[area]


def _mesh_slab(
    crossings: Crossings, first: NDArray[np.int64], last: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]] | None:
    """Vertices (n, 3) in unit cells of the whole lattice and faces (m, 3) of a slab; None where nothing passes it."""
    cell = crossings.cell[(crossings.cell[:, 0] >= first[0]) & (crossings.cell[:, 0] < last[0])]
    if not len(cell):
        return None
    chosen = (crossings.point[:, 0] >= first[0]) & (crossings.point[:, 0] <= last[0])
    values = np.ones(last - first + 1, np.float32)
    values[tuple((crossings.point[chosen] - first).T)] = crossings.value[chosen]
    values[values == 0] = _OUTSIDE
    mask = np.zeros(values.shape, bool)
    mask[tuple((cell - first + 1).T)] = True
    place, faces, _, _ = marching_cubes(values, 0.0, mask=mask, gradient_direction="descent")
    return place.astype(np.float64) + first, faces.astype(np.int64)


def clip(mesh: Mesh, plane: NDArray[np.floating]) -> Mesh:
    """Keep what lies on the positive side of a plane, triangles across it cut along it.

    Args:
        mesh: positions and faces; other columns are dropped.
        plane: (4,) with ``plane[:3] @ x + plane[3] >= 0`` on the side that stays.
    """
    height = mesh.vertices.astype(np.float64) @ np.asarray(plane[:3], np.float64) + float(plane[3])
    keep = height >= 0
    kept = keep[mesh.faces].sum(1)
    crossing = mesh.faces[(kept > 0) & (kept < 3)].astype(np.int64)
    kept_crossing = keep[crossing].sum(1)
    odd = np.where(kept_crossing == 1, keep[crossing].argmax(1), (~keep[crossing]).argmax(1))
    a, b, c = (np.take_along_axis(crossing, ((odd + turn) % 3)[:, None], 1)[:, 0] for turn in range(3))
    pairs = np.sort(np.stack([np.stack([a, b], 1), np.stack([a, c], 1)], 1), axis=2)
    edges, index = np.unique(pairs.reshape(-1, 2), axis=0, return_inverse=True)
    share = height[edges[:, 0]] / (height[edges[:, 0]] - height[edges[:, 1]])
    start, stop = mesh.vertices[edges[:, 0]].astype(np.float64), mesh.vertices[edges[:, 1]].astype(np.float64)
    cut = start + share[:, None] * (stop - start)
    ab, ac = (len(mesh.vertices) + index.reshape(-1, 2)).T
    tip = kept_crossing == 1
    faces = np.concatenate(
        [
            mesh.faces[kept == 3],
            np.stack([a, ab, ac], 1)[tip],
            np.stack([ab, b, c], 1)[~tip],
            np.stack([ab, c, ac], 1)[~tip],
        ]
    )
    whole = Mesh.of(np.concatenate([mesh.vertices, cut.astype(np.float32)]), faces)
    return whole.select_faces(np.ones(len(faces), bool))
