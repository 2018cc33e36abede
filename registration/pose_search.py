"""Every pose at once: for rotations spread over SO(3), fields of normals correlated over all translations by FFT."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft
from scipy.ndimage import gaussian_filter
from scipy.spatial.transform import Rotation

from registration.search_model import Candidate, SearchModel, ThinScan

ROTATIONS = 720
"""Rotations of the coarse search; neighbours are about 24 degrees apart."""
CELLS = 50_000
"""Size of the coarse grid; its cells are between these widths."""
MIN_CELL_MM = 20.0
MAX_CELL_MM = 30.0
MOST_CELLS = 300_000
"""Where what may be a head reaches so far that cells of ``MAX_CELL_MM`` would be more, they are wider after all."""
MARGIN_MM = 90.0


def even_rotations(count: int) -> NDArray[np.float64]:
    """Rotations spread evenly over SO(3) by super-Fibonacci spirals (Alexa, CVPR 2022).

    Returns:
        (count, 3, 3) float64.
    """
    phi, psi = np.sqrt(2.0), 1.533751168755204288118041
    s = np.arange(count) + 0.5
    t = s / count
    r, big = np.sqrt(t), np.sqrt(1 - t)
    alpha, beta = 2 * np.pi * s / phi, 2 * np.pi * s / psi
    quaternion = np.stack([r * np.sin(alpha), r * np.cos(alpha), big * np.sin(beta), big * np.cos(beta)], 1)
    return np.asarray(Rotation.from_quat(quaternion).as_matrix())


def correlate(scan: ThinScan, model: SearchModel, keep: int = 48) -> list[Candidate]:
    """The best rotations and translations, the best first.

    Args:
        scan: what may be a head, thinned to about 5 mm.
        keep: how many candidates.
    """
    low, high = scan.points.min(0) - MARGIN_MM, scan.points.max(0) + MARGIN_MM
    volume = float(np.prod(high - low))
    cell = float(np.clip(np.cbrt(volume / CELLS), MIN_CELL_MM, MAX_CELL_MM))
    cell = max(cell, float(np.cbrt(volume / MOST_CELLS)))
    shape = tuple(fft.next_fast_len(int(n), real=True) for n in np.ceil((high - low) / cell))
    index = np.floor((scan.points - low) / cell).astype(np.int64)
    flat = (index[:, 0] * shape[1] + index[:, 1]) * shape[2] + index[:, 2]
    field = np.stack(
        [np.bincount(flat, scan.normals[:, i], minlength=int(np.prod(shape))).reshape(shape) for i in range(3)]
    )
    length = np.asarray(np.linalg.norm(field, axis=0))
    field = field * np.divide(1.0, length, out=np.zeros_like(length), where=length > 0.5)
    field = np.stack([gaussian_filter(channel, 8.0 / cell + 0.3, mode="constant") for channel in field])
    spectrum = fft.rfftn(field.astype(np.float32), axes=(1, 2, 3))
    found: list[tuple[float, int, NDArray]] = []
    rotations = even_rotations(ROTATIONS)
    total = model.weights.sum()
    for r, R in enumerate(rotations):
        where = np.floor(model.points @ R.T / cell).astype(np.int64) % shape
        flat = (where[:, 0] * shape[1] + where[:, 1]) * shape[2] + where[:, 2]
        turned = (model.normals @ R.T) * model.weights[:, None]
        splat = np.stack([np.bincount(flat, turned[:, i], minlength=int(np.prod(shape))) for i in range(3)])
        product = spectrum * np.conj(fft.rfftn(splat.reshape(3, *shape).astype(np.float32), axes=(1, 2, 3)))
        score = fft.irfftn(product.sum(0), shape)
        for _ in range(2):
            peak = np.array(np.unravel_index(score.argmax(), shape))
            found.append((float(score[tuple(peak)]) / total, r, low + peak * cell + 0.0))
            reach = int(np.ceil(40 / cell))
            around = np.ix_(*[(np.arange(p - reach, p + reach + 1)) % n for p, n in zip(peak, shape, strict=True)])
            score[around] = -np.inf
    found.sort(key=lambda item: -item[0])
    out = []
    for score_, r, t in found[:keep]:
        T = np.eye(4)
        T[:3, :3], T[:3, 3] = rotations[r], t
        out.append(Candidate(T, np.zeros(len(model.basis)), score_))
    return out
