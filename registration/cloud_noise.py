"""How noisy a cloud is, told by itself: what its points are off smooth patches through their neighbours."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.stats import chi2

NEIGHBOURS = 12
QUARTILE = 0.25
_TERMS = 6


def cloud_noise_mm(points: NDArray[np.floating]) -> float:
    """Standard deviation of the points' noise across the surface, in their unit.

    A quadratic patch is fitted to each point and its neighbours. Noise is everywhere: the lower quartile over all
    patches of what is left, over its degrees of freedom, does not see the places where the surface bends more than a
    patch can, nor things of many layers and edges. Relief as fine as the points are apart is taken for noise.

    Args:
        points: (n, 3); 0 for fewer than two patches' worth.
    """
    if len(points) < 2 * NEIGHBOURS:
        return 0.0
    at = np.asarray(points, np.float64)
    patch = at[np.asarray(cKDTree(at).query(at, k=NEIGHBOURS)[1])]
    away = patch - patch.mean(1, keepdims=True)
    axes = np.linalg.svd(away, full_matrices=False)[2]  # the last one across the patch
    u, v, height = np.moveaxis(np.einsum("nkc,nac->nka", away, axes), 2, 0)
    size = np.maximum(np.abs(np.stack([u, v])).max((0, 2)), 1e-12)[:, None]
    u, v = u / size, v / size
    terms = np.stack([np.ones_like(u), u, v, u * u, u * v, v * v], 2)
    basis = np.linalg.svd(terms, full_matrices=False)[0]
    left = height - np.einsum("nkt,nt->nk", basis, np.einsum("nkt,nk->nt", basis, height))
    freedom = NEIGHBOURS - _TERMS
    return float(np.sqrt(np.quantile((left**2).sum(1), QUARTILE) / chi2.ppf(QUARTILE, freedom)))
