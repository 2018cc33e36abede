"""Complete a partly known signed distance grid to a closed head, and tell what of it is a guess.

Known voxels keep their values exactly. Elsewhere a coarse indicator function decides: the solution of a Poisson
equation whose right side is the divergence of the seen surface's normals (Kazhdan's surface reconstruction, here by a
cosine transform). Its mirror condition at the lower end of the grid carries the neck straight on, so that the
closure below is flat. A smooth correction takes the guess over into the known values at the rim of a hole.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import gaussian_filter
from skimage.measure import marching_cubes

from registration.compiled import compiled
from registration.depth import FittedViews
from registration.fusion import Grid, views_from_grid
from registration.mesh import Mesh, face_areas, face_normals
from registration.pieces import vertex_pieces
from registration.view_lookup import nearest_pixel

FAR_MM = 80.0
"""How far beyond the grid the indicator function is solved for, except below the head."""
COARSE_MM = 4.0
"""Cells of the indicator function, about."""
CORRECTION_REACH_MM = 5.0
"""How far the known values bend the guess beside them."""
EMPTY_GAP_MM = 12.0
"""A coarse cell is empty where two views look past it by more than this."""


def forget_pieces(values: NDArray[np.float32], surface: Mesh, kept: NDArray[np.bool_], grid: Grid) -> None:
    """Make the voxels around the dropped vertices of a surface unknown again, those around its kept ones left alone."""
    cells = np.round(surface.vertices / grid.voxel_mm).astype(np.int64)
    drop = np.zeros(values.shape, bool)
    set_around(drop, cells[~kept], 4, True)
    set_around(drop, cells[kept], 2, False)
    values[drop] = np.nan


@compiled
def set_around(mask, cells, reach, value):  # type: ignore[no-untyped-def]
    """Set a mask in a cube around each cell."""
    nx, ny, nz = mask.shape
    for c in range(len(cells)):
        for i in range(max(0, cells[c, 0] - reach), min(nx, cells[c, 0] + reach + 1)):
            for j in range(max(0, cells[c, 1] - reach), min(ny, cells[c, 1] + reach + 1)):
                for k in range(max(0, cells[c, 2] - reach), min(nz, cells[c, 2] + reach + 1)):
                    mask[i, j, k] = value


def complete(
    values: NDArray[np.float32], seen: Mesh, grid: Grid, views: FittedViews | None, truncation_mm: float
) -> Mesh:
    """Close the surface.

    Args:
        values: known distances, NaN elsewhere; the grid's second axis points up the head.
        seen: the surface within the known voxels, grid frame in mm, without what floats around it.
        grid: of the values.
        views: to tell empty space; None where no view is known.
        truncation_mm: of the known distances.

    Returns:
        A watertight surface, grid frame in mm; vertex attribute ``guessed`` uint8.
    """
    factor = max(1, round(COARSE_MM / grid.voxel_mm))
    padded = tuple(-(-n // factor) for n in grid.shape)
    cell_mm = factor * grid.voxel_mm
    coarse = _indicator_distance(seen, padded, cell_mm, grid.voxel_mm)
    if views is not None:
        M = views_from_grid(views, grid)
        votes = count_empty(coarse < 0, cell_mm, grid.voxel_mm, M, views.cameras, views.layout, views.depth_mm)
        coarse = np.where(votes >= 2, np.maximum(coarse, 0.5 * cell_mm), coarse)
    correction = _correction(values, coarse, factor, padded, cell_mm, truncation_mm)
    guess = filled_up(values, coarse + correction, factor, 2.0 * truncation_mm)
    vertices, faces, _, _ = marching_cubes(guess, 0.0, gradient_direction="descent")
    vertices = vertices - 1.0
    known = np.isfinite(values)
    closed = Mesh.of(vertices * grid.voxel_mm, faces, guessed=(~_between_known(vertices, known)).astype(np.uint8))
    return _seen_pieces(closed)


def _between_known(vertices: NDArray, known: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """Whether both ends of the grid edge on which each vertex (in voxels) lies are known."""
    top = np.array(known.shape) - 1
    inside = ((vertices >= 0) & (vertices <= top)).all(1)
    low = np.clip(np.floor(vertices).astype(np.int64), 0, top)
    high = np.clip(np.ceil(vertices).astype(np.int64), 0, top)
    return np.asarray(inside & known[tuple(low.T)] & known[tuple(high.T)])


def _seen_pieces(mesh: Mesh, least: int = 50) -> Mesh:
    """Without the pieces that are nothing but a guess."""
    label = vertex_pieces(mesh)
    seen = np.bincount(label, mesh.attributes["guessed"] == 0)
    return mesh.select_faces((seen >= least)[label[mesh.faces[:, 0]]])


def _indicator_distance(seen: Mesh, shape: tuple[int, ...], cell_mm: float, voxel_mm: float) -> NDArray[np.float64]:
    """A smooth function (coarse cells) that is about the signed distance near the seen surface."""
    corner = seen.vertices[seen.faces].astype(np.float64)
    centre = corner.mean(1)
    flow = face_normals(seen.vertices, seen.faces) * face_areas(seen.vertices, seen.faces)[:, None]
    # Cell i covers the voxels i*factor ... ; its middle in mm:
    position = (centre + 0.5 * voxel_mm) / cell_mm - 0.5
    # The mirrors at the other five ends must stand far off, or an opening near one would be carried on into it.
    far = int(np.ceil(FAR_MM / cell_mm))
    before = np.array([far, 0, far])
    position += before
    inner = shape
    shape = tuple(fft.next_fast_len(n + far + b, real=True) for n, b in zip(inner, before.tolist(), strict=True))
    field = splat(position, flow, shape) / cell_mm**3
    field = np.stack([gaussian_filter(channel, 0.8, mode="nearest") for channel in field])
    # The indicator falls from inside to outside against the normals: laplace(chi) = -div(n delta).
    divergence = np.sum([_mirrored_slope(field[a], a) for a in range(3)], axis=0) / cell_mm
    spectrum = fft.dctn(-divergence, type=2)
    eigen = [(2 * np.cos(np.pi * np.arange(n) / n) - 2) / cell_mm**2 for n in shape]
    laplace = eigen[0][:, None, None] + eigen[1][None, :, None] + eigen[2][None, None, :]
    laplace[0, 0, 0] = 1.0
    spectrum /= laplace
    spectrum[0, 0, 0] = 0.0
    chi = np.asarray(fft.idctn(spectrum, type=2))
    at = np.clip(np.round(position).astype(int), 0, np.array(shape) - 1)
    level = float(np.median(chi[tuple(at.T)]))
    # Across the smoothed step the indicator falls by about one over three cells.
    chi = chi[tuple(slice(b, b + n) for b, n in zip(before.tolist(), inner, strict=True))]
    return (level - chi) * 3.0 * cell_mm


def _mirrored_slope(flow: NDArray, axis: int) -> NDArray[np.float64]:
    """Central difference along an axis where the scene, and with it the flow's sign, is mirrored at both ends."""
    moved = np.moveaxis(flow, axis, 0)
    ends = np.concatenate([-moved[:1], moved, -moved[-1:]])
    return np.moveaxis(0.5 * (ends[2:] - ends[:-2]), 0, axis)


@compiled
def splat(position, flow, shape):  # type: ignore[no-untyped-def]
    """Trilinear deposit of vectors (n, 3) at positions (n, 3) in cells; returns (3, ...) on the grid."""
    out = np.zeros((3, shape[0], shape[1], shape[2]))
    for p in range(len(position)):
        for e in range(8):
            w = 1.0
            i = j = k = 0
            for a in range(3):
                base = int(np.floor(position[p, a]))
                part = position[p, a] - base
                up = (e >> a) & 1
                w *= part if up else 1.0 - part
                at = min(max(base + up, 0), shape[a] - 1)
                if a == 0:
                    i = at
                elif a == 1:
                    j = at
                else:
                    k = at
            for a in range(3):
                out[a, i, j, k] += w * flow[p, a]
    return out


def _correction(
    values: NDArray[np.float32],
    coarse: NDArray,
    factor: int,
    shape: tuple[int, ...],
    cell_mm: float,
    truncation_mm: float,
) -> NDArray[np.float64]:
    """What to add to the coarse field so that it meets the known values; it fades away from them."""
    index = np.nonzero(np.abs(values) < 0.75 * truncation_mm)
    cell = tuple(i // factor for i in index)
    flat = np.ravel_multi_index(cell, shape)
    count = np.bincount(flat, minlength=int(np.prod(shape))).astype(np.float64)
    total = np.bincount(flat, values[index].astype(np.float64), minlength=len(count))
    count = count.reshape(shape)
    gap = np.where(count > 0, total.reshape(shape) / np.maximum(count, 1) - coarse, 0.0)
    gap = np.clip(gap, -1.5 * CORRECTION_REACH_MM, 1.5 * CORRECTION_REACH_MM)
    weight = (count > 0).astype(np.float64)
    sigma = CORRECTION_REACH_MM / cell_mm
    spread = gaussian_filter(weight, sigma, mode="nearest")
    return np.asarray(gaussian_filter(gap * weight, sigma, mode="nearest") / (spread + 0.03))


@compiled
def filled_up(values, coarse, factor, limit):  # type: ignore[no-untyped-def]
    """Known values, and trilinear coarse cells within limits where there are none; a border of one voxel outside."""
    nx, ny, nz = values.shape
    out = np.full((nx + 2, ny + 2, nz + 2), np.float32(0.5))
    for i in range(nx):
        a = min(max((i + 0.5) / factor - 0.5, 0.0), coarse.shape[0] - 1.0)
        i0 = min(int(a), coarse.shape[0] - 2)
        a -= i0
        for j in range(ny):
            b = min(max((j + 0.5) / factor - 0.5, 0.0), coarse.shape[1] - 1.0)
            j0 = min(int(b), coarse.shape[1] - 2)
            b -= j0
            for k in range(nz):
                value = values[i, j, k]
                if np.isnan(value):
                    c = min(max((k + 0.5) / factor - 0.5, 0.0), coarse.shape[2] - 1.0)
                    k0 = min(int(c), coarse.shape[2] - 2)
                    c -= k0
                    low = (coarse[i0, j0, k0] * (1 - c) + coarse[i0, j0, k0 + 1] * c) * (1 - b) + (
                        coarse[i0, j0 + 1, k0] * (1 - c) + coarse[i0, j0 + 1, k0 + 1] * c
                    ) * b
                    high = (coarse[i0 + 1, j0, k0] * (1 - c) + coarse[i0 + 1, j0, k0 + 1] * c) * (1 - b) + (
                        coarse[i0 + 1, j0 + 1, k0] * (1 - c) + coarse[i0 + 1, j0 + 1, k0 + 1] * c
                    ) * b
                    value = min(max(low * (1 - a) + high * a, -limit), limit)
                out[i + 1, j + 1, k + 1] = value if value != 0 else 1e-6
    return out


@compiled
def count_empty(wanted, cell_mm, voxel_mm, M, cameras, layout, depth_mm):  # type: ignore[no-untyped-def]
    """How many views look past each wanted coarse cell's middle, at something clearly behind it."""
    shape = wanted.shape
    votes = np.zeros(shape, np.uint8)
    for i in range(shape[0]):
        x = (i + 0.5) * cell_mm - 0.5 * voxel_mm
        for j in range(shape[1]):
            y = (j + 0.5) * cell_mm - 0.5 * voxel_mm
            for k in range(shape[2]):
                if not wanted[i, j, k]:
                    continue
                z = (k + 0.5) * cell_mm - 0.5 * voxel_mm
                for v in range(len(M)):
                    T = M[v]
                    cx = T[0, 0] * x + T[0, 1] * y + T[0, 2] * z + T[0, 3]
                    cy = T[1, 0] * x + T[1, 1] * y + T[1, 2] * z + T[1, 3]
                    cz = T[2, 0] * x + T[2, 1] * y + T[2, 2] * z + T[2, 3]
                    pixel, _, _ = nearest_pixel(cameras[v], layout[v], cx, cy, cz)
                    if pixel >= 0 and abs(depth_mm[pixel]) - cz > EMPTY_GAP_MM and votes[i, j, k] < 255:
                        votes[i, j, k] += 1
    return votes
