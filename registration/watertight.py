"""Complete a partly known signed distance grid to a closed head, and tell what of it is a guess.

Known voxels keep their values exactly. Elsewhere a coarse indicator function decides: the solution of a Poisson
equation whose right side is the divergence of the seen surface's normals (Kazhdan's surface reconstruction, here by a
cosine transform). Its mirror condition at the lower end of the grid carries the neck straight on, so that the
closure below is flat. A smooth correction takes the guess over into the known values at the rim of a hole.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import gaussian_filter
from skimage.measure import marching_cubes

from registration.depth import FittedViews
from registration.fusion import Grid, look_up, views_from_grid
from registration.mesh import Mesh, face_areas, face_normals
from registration.pieces import vertex_pieces

COARSE_MM = 4.0
"""Cells of the indicator function, about."""
CORRECTION_REACH_MM = 5.0
"""How far the known values bend the guess beside them."""
EMPTY_GAP_MM = 12.0
"""A coarse cell is empty where two views look past it by more than this."""


def forget_pieces(values: NDArray[np.float32], surface: Mesh, kept: NDArray[np.bool_], grid: Grid) -> None:
    """Make the voxels around the dropped vertices of a surface unknown again, those around its kept ones left alone."""
    drop = np.zeros(values.shape, bool)
    for mask, mark in ((~kept, True), (kept, False)):
        cells = np.round(surface.vertices[mask] / grid.voxel_mm).astype(np.int64)
        flat = np.unique(np.ravel_multi_index(tuple(np.clip(cells, 0, np.array(values.shape) - 1).T), values.shape))
        cells = np.stack(np.unravel_index(flat, values.shape), 1)
        reach = 4 if mark else 2
        for offset in np.ndindex(2 * reach + 1, 2 * reach + 1, 2 * reach + 1):
            index = np.clip(cells + (np.array(offset) - reach), 0, np.array(values.shape) - 1)
            if mark:
                drop[tuple(index.T)] = True
            else:
                inside = drop[tuple(index.T)]
                drop[tuple(index[inside].T)] = False
    values[drop] = np.nan


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
        votes = count_empty(
            coarse < 0, cell_mm, grid.voxel_mm, M, views.cameras, views.layout, views.depth_mm, views.slope
        )
        coarse = np.where(votes >= 2, np.maximum(coarse, 0.5 * cell_mm), coarse)
    correction = _correction(values, coarse, factor, padded, cell_mm, truncation_mm)
    guess = _upsampled((coarse + correction).astype(np.float32), factor, grid.shape)
    np.clip(guess, -2 * truncation_mm, 2 * truncation_mm, out=guess)
    known = np.isfinite(values)
    guess[known] = values[known]
    guess[guess == 0] = 1e-6
    vertices, faces, _, _ = marching_cubes(
        np.pad(guess, 1, constant_values=np.float32(0.5 * grid.voxel_mm)), 0.0, gradient_direction="descent"
    )
    vertices = vertices - 1.0
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
    field = np.stack([_splat(position, flow[:, a], shape) for a in range(3)]) / cell_mm**3
    field = np.stack([gaussian_filter(channel, 0.8, mode="nearest") for channel in field])
    # The indicator falls from inside to outside against the normals: laplace(chi) = -div(n delta).
    divergence = sum(_mirrored_slope(field[a], a) for a in range(3)) / cell_mm
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
    return (level - chi) * 3.0 * cell_mm


def _mirrored_slope(flow: NDArray, axis: int) -> NDArray[np.float64]:
    """Central difference along an axis where the scene, and with it the flow's sign, is mirrored at both ends."""
    moved = np.moveaxis(flow, axis, 0)
    ends = np.concatenate([-moved[:1], moved, -moved[-1:]])
    return np.moveaxis(0.5 * (ends[2:] - ends[:-2]), 0, axis)


def _splat(position: NDArray, value: NDArray, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Trilinear deposit of values at positions (in cells) on a grid."""
    base = np.floor(position).astype(np.int64)
    part = position - base
    out = np.zeros(int(np.prod(shape)))
    for corner in np.ndindex(2, 2, 2):
        index = np.clip(base + corner, 0, np.array(shape) - 1)
        weight = np.prod(np.where(corner, part, 1 - part), axis=1)
        out += np.bincount(np.ravel_multi_index(tuple(index.T), shape), value * weight, minlength=len(out))
    return out.reshape(shape)


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


def _upsampled(coarse: NDArray[np.float32], factor: int, shape: tuple[int, ...]) -> NDArray[np.float32]:
    """Trilinear values of the coarse cells at the voxels."""
    if factor == 1:
        return coarse[: shape[0], : shape[1], : shape[2]].copy()
    fine = coarse
    for axis in range(3):
        where = np.clip((np.arange(shape[axis]) + 0.5) / factor - 0.5, 0, coarse.shape[axis] - 1)
        low = np.minimum(np.floor(where).astype(int), coarse.shape[axis] - 2)
        part = (where - low).astype(np.float32).reshape([-1 if a == axis else 1 for a in range(3)])
        fine = np.take(fine, low, axis) * (1 - part) + np.take(fine, low + 1, axis) * part
    return np.ascontiguousarray(fine, np.float32)


@numba.njit(cache=True, nogil=True)
def count_empty(wanted, cell_mm, voxel_mm, M, cameras, layout, depth_mm, slope):  # type: ignore[no-untyped-def]
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
                    depth, _ = look_up(cameras[v], layout[v], depth_mm, slope, cx, cy, cz)
                    if abs(depth) - cz > EMPTY_GAP_MM and votes[i, j, k] < 255:
                        votes[i, j, k] += 1
    return votes
