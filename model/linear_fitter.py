"""Fit a linear head to partial clouds: closest points and ridge least squares in turn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.fit_config import PcaConfig
from model.linear_head import LinearHead
from model.observation import FittedHead, Observation, small_rigid
from registration.mesh import Mesh, face_normals, transform_points
from registration.surface import SurfaceIndex

_POSE = 6
_Rows = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class LinearFitter:
    """Fits a linear head; satisfies ``model.observation.HeadFitter``."""

    head: LinearHead
    config: PcaConfig

    @property
    def name(self) -> str:
        """What tables call it."""
        return self.head.name

    def fit(self, observations: Sequence[Observation], seed: int) -> tuple[FittedHead, ...]:
        """Fit one identity, and an observation's own coefficients and a small rigid correction of each.

        Alternates closest points with a ridge over trimmed point-to-plane distances, linear in the coefficients about
        where they stand. Nothing is drawn; the seed is part of the interface.
        """
        identity = np.zeros(len(self.head.identity_basis))
        owns = [np.zeros(self.head.own) for _ in observations]
        twists = [np.zeros(_POSE) for _ in observations]
        reaches = np.geomspace(self.config.first_reach_mm, self.config.last_reach_mm, self.config.iterations)
        for reach in reaches:
            blocks = [
                self._equations(observation, identity, own, twist, float(reach))
                for observation, own, twist in zip(observations, owns, twists, strict=True)
            ]
            identity, owns, twists = self._solve(blocks)
        fitted = []
        for observation, own, twist in zip(observations, owns, twists, strict=True):
            T_told_from_head = np.asarray(np.linalg.inv(small_rigid(twist)), np.float64)
            vertices = transform_points(T_told_from_head, self.head.vertices(identity, own))
            mesh = Mesh.of(vertices, self.head.faces)
            residual = SurfaceIndex(mesh).closest(observation.points_mm).distance_mm
            fitted.append(FittedHead(mesh, T_told_from_head, np.asarray(residual, np.float64)))
        return tuple(fitted)

    def _equations(
        self,
        observation: Observation,
        identity: NDArray[np.float64],
        own: NDArray[np.float64],
        twist: NDArray[np.float64],
        reach_mm: float,
    ) -> _Rows:
        """Rows (r, I + own + 6) and targets (r,) in mm: what the points ask of the coefficients and of the twist."""
        T_head_from_told = small_rigid(twist)
        faces = self.head.faces
        mesh = Mesh.of(self.head.vertices(identity, own), faces)
        points = transform_points(T_head_from_told, observation.points_mm)
        nearest = SurfaceIndex(mesh).closest(points)
        normal = face_normals(mesh.vertices, faces)[nearest.faces]
        keep = nearest.distance_mm < reach_mm
        if observation.normals is not None:
            seen = observation.normals @ T_head_from_told[:3, :3].T
            unknown = np.abs(seen).sum(1) == 0
            keep &= unknown | (np.einsum("nc,nc->n", seen, normal) > self.config.normal_cosine)
        signed = np.einsum("nc,nc->n", points - nearest.points, normal)
        # where the closest point lies on a border, the way to it is not the normal: such points only pull sideways
        keep &= np.abs(signed) > 0.7 * nearest.distance_mm - 1e-3
        spread = 1.4826 * np.median(np.abs(signed[keep])) if keep.any() else 0.0
        keep &= np.abs(signed) <= max(self.config.trim_spreads * spread, 1.0)
        points, normal, corner, bary = points[keep], normal[keep], faces[nearest.faces[keep]], nearest.bary[keep]
        rows = [_along(tangent, corner, bary, normal) for tangent in self.head.tangents(identity, own)]
        # moving the points by a twist (w, t) changes n . p by (p x n) . w + n . t, against the model's own change
        rows.append(-np.concatenate([np.cross(points, normal), normal], 1))
        matrix = np.concatenate(rows, 1)
        return matrix, signed[keep] + matrix @ np.concatenate([identity, own, twist])

    def _solve(
        self, blocks: Sequence[_Rows]
    ) -> tuple[NDArray[np.float64], list[NDArray[np.float64]], list[NDArray[np.float64]]]:
        """Ridge over the shared identity and each observation's own coefficients and twist."""
        I, own = len(self.head.identity_basis), self.head.own
        size = I + len(blocks) * (own + _POSE)
        noise = self.config.noise_mm**2
        spread = np.concatenate(
            [np.ones(own), np.full(3, np.radians(self.config.rotation_deg)), np.full(3, self.config.translation_mm)]
        )
        A = np.diag(np.concatenate([np.ones(I), *[spread**-2.0] * len(blocks)]) * noise)
        b = np.zeros(size)
        for j, (rows, target) in enumerate(blocks):
            mine = np.concatenate([np.arange(I), I + j * (own + _POSE) + np.arange(own + _POSE)])
            A[np.ix_(mine, mine)] += rows.T @ rows
            b[mine] += rows.T @ target
        x = np.asarray(np.linalg.solve(A, b), np.float64)
        per = x[I:].reshape(len(blocks), own + _POSE)
        return x[:I], [row[:own] for row in per], [row[own:] for row in per]


def _along(
    tangent: NDArray[np.float64], corner: NDArray[np.int32], bary: NDArray[np.float64], normal: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Tangents (r, modes) at points on the mesh, along their normals."""
    return np.einsum("mrkc,rk,rc->rm", tangent[:, corner], bary, normal, optimize=True)
