"""What is known of each vertex of a fitted head: whether a point of the scan lies by it, and how far off it may be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

LEAST_REACH_MM = 3.0
SPACINGS = 2.5
"""A vertex this many times the points' usual spacing from the nearest one was not seen."""
CARRIERS = 2_000
NEIGHBOURS = 3


@dataclass(frozen=True)
class FitColumns:
    """Knowledge of one scan's fitted head, head frame, mm.

    Attributes:
        points: (m, 3) the scan's points on the head.
        carriers: (k, 3) places on the fitted surface at which its uncertainty is known.
        spread_mm: (k,) that uncertainty: one standard deviation along the normal.
    """

    points: NDArray[np.float64]
    carriers: NDArray[np.float64]
    spread_mm: NDArray[np.float64]

    def of(self, vertices: NDArray[np.floating]) -> dict[str, NDArray]:
        """Columns of vertices (n, 3) on the surface: ``observed`` uint8 (n,), ``uncertainty_mm`` float32 (n,)."""
        cloud = cKDTree(self.points)
        spacing = float(np.median(np.asarray(cloud.query(self.points, k=2)[0])[:, 1]))
        apart = np.asarray(cloud.query(vertices)[0])
        observed = apart <= max(LEAST_REACH_MM, SPACINGS * spacing)
        near, which = cKDTree(self.carriers).query(vertices, k=NEIGHBOURS)
        weight = 1 / np.maximum(np.asarray(near), 1e-3)
        spread = (self.spread_mm[which] * weight).sum(1) / weight.sum(1)
        return {"observed": observed.astype(np.uint8), "uncertainty_mm": spread.astype(np.float32)}


def carriers_of(vertices: NDArray[np.float64]) -> NDArray[np.float64]:
    """Vertices of a head at even steps: about 2,000, closer together than the codes let a head vary."""
    return vertices[:: max(1, len(vertices) // CARRIERS)]
