"""Normals of clouds that came without."""

from __future__ import annotations

import numpy as np
import open3d as o3d
from numpy.typing import NDArray
from scipy.spatial import cKDTree

_FEWEST = 30


def estimate_normals(points: NDArray[np.floating], neighbours: int = 20) -> NDArray[np.float64]:
    """Unit normals (n, 3) of a cloud in any unit, all to one side of the surface, which ought to be the outside.

    Neighbouring planes are made to agree; then all are turned to where most of the surface looks away from its own
    middle. A cloud of another shape than a head's may come out inside out.

    Args:
        points: (n, 3); fewer than 30 get zeros.
        neighbours: points to which each plane is fitted.
    """
    if len(points) < _FEWEST:
        return np.zeros((len(points), 3))
    cloud = o3d.geometry.PointCloud(o3d.utility.Vector3dVector(np.asarray(points, np.float64)))
    cloud.estimate_normals(o3d.geometry.KDTreeSearchParamKNN(neighbours))
    cloud.orient_normals_consistent_tangent_plane(neighbours)
    normals = np.asarray(cloud.normals).copy()
    away = points - np.mean(points, 0)
    outwards = np.einsum("nc,nc->n", normals, away) / np.maximum(np.linalg.norm(away, axis=1), 1e-12)
    return normals if outwards.sum() >= 0 else -normals


def agree_nearby(points: NDArray[np.floating], normals: NDArray[np.floating], neighbours: int = 6) -> float:
    """Share of neighbouring points whose normals (n, 3) look to one side; about a half where sides are mixed.

    Of neighbours whose planes differ by more than 60 degrees nothing is known; 1 where there are no others.
    """
    if len(points) <= neighbours:
        return 1.0
    nearest = np.asarray(cKDTree(points).query(points, k=neighbours + 1)[1])[:, 1:]
    cosine = np.einsum("nc,nkc->nk", normals, normals[nearest])
    told = np.abs(cosine) > 0.5
    return float(np.mean(cosine[told] > 0)) if told.any() else 1.0
