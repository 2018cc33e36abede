"""A linear 3D morphable model of identity and expression (BFM- and FLAME-like), fitted to the same clouds as ours."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model.fit_config import PcaConfig
from model.observation import FittedHead, Observation, small_rigid
from registration.mesh import Mesh, face_normals, transform_points
from registration.surface import SurfaceIndex

_POSE = 6


@dataclass(frozen=True)
class PcaHead:
    """Mean head, identity modes and expression modes over one topology; coefficients have unit spread.

    Attributes:
        mean_mm: (n, 3) the mean canonical head, head frame.
        identity_basis: (I, n, 3) mm a unit.
        expression_basis: (E, n, 3) mm a unit, offsets from the canonical expression.
        faces: (m, 3) int32.
        config: of its training and fitting.
    """

    mean_mm: NDArray[np.float64]
    identity_basis: NDArray[np.float64]
    expression_basis: NDArray[np.float64]
    faces: NDArray[np.int32]
    config: PcaConfig

    @property
    def name(self) -> str:
        """What tables call it."""
        return "pca"

    def vertices(self, identity: NDArray[np.floating], expression: NDArray[np.floating]) -> NDArray[np.float64]:
        """Vertices (n, 3) of one head, head frame, mm."""
        return (
            self.mean_mm
            + np.tensordot(identity, self.identity_basis, 1)
            + np.tensordot(expression, self.expression_basis, 1)
        )

    def fit(self, observations: Sequence[Observation], seed: int) -> tuple[FittedHead, ...]:
        """Fit one identity, and an expression and a small rigid correction an observation.

        Alternates closest points with a ridge over trimmed point-to-plane distances. Nothing is drawn; the seed is
        part of the interface.
        """
        identity = np.zeros(len(self.identity_basis))
        expressions = [np.zeros(len(self.expression_basis)) for _ in observations]
        twists = [np.zeros(_POSE) for _ in observations]
        reaches = np.geomspace(self.config.first_reach_mm, self.config.last_reach_mm, self.config.iterations)
        for reach in reaches:
            blocks = [
                self._equations(observation, identity, expression, twist, float(reach))
                for observation, expression, twist in zip(observations, expressions, twists, strict=True)
            ]
            identity, expressions, twists = self._solve(blocks)
        fitted = []
        for observation, expression, twist in zip(observations, expressions, twists, strict=True):
            T_told_from_head = np.asarray(np.linalg.inv(small_rigid(twist)), np.float64)
            mesh = Mesh.of(transform_points(T_told_from_head, self.vertices(identity, expression)), self.faces)
            residual = SurfaceIndex(mesh).closest(observation.points_mm).distance_mm
            fitted.append(FittedHead(mesh, T_told_from_head, np.asarray(residual, np.float64)))
        return tuple(fitted)

    def _equations(
        self,
        observation: Observation,
        identity: NDArray[np.float64],
        expression: NDArray[np.float64],
        twist: NDArray[np.float64],
        reach_mm: float,
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Rows (r, I + E + 6) and targets (r,) in mm: what the points ask of the coefficients and of the twist."""
        T_head_from_told = small_rigid(twist)
        mesh = Mesh.of(self.vertices(identity, expression), self.faces)
        points = transform_points(T_head_from_told, observation.points_mm)
        nearest = SurfaceIndex(mesh).closest(points)
        normal = face_normals(mesh.vertices, mesh.faces)[nearest.faces]
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
        points, normal, corner, bary = points[keep], normal[keep], self.faces[nearest.faces[keep]], nearest.bary[keep]
        rows = [self._along(basis, corner, bary, normal) for basis in (self.identity_basis, self.expression_basis)]
        # moving the points by a twist (w, t) changes n . p by (p x n) . w + n . t, against the model's own change
        rows.append(-np.concatenate([np.cross(points, normal), normal], 1))
        matrix = np.concatenate(rows, 1)
        return matrix, signed[keep] + matrix @ np.concatenate([identity, expression, twist])

    @staticmethod
    def _along(
        basis: NDArray[np.float64], corner: NDArray[np.int32], bary: NDArray[np.float64], normal: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Modes (r, modes) at points on the mesh, along their normals."""
        return np.einsum("mrkc,rk,rc->rm", basis[:, corner], bary, normal, optimize=True)

    def _solve(
        self, blocks: Sequence[tuple[NDArray[np.float64], NDArray[np.float64]]]
    ) -> tuple[NDArray[np.float64], list[NDArray[np.float64]], list[NDArray[np.float64]]]:
        """Ridge over the shared identity and each observation's expression and twist."""
        I, E = len(self.identity_basis), len(self.expression_basis)
        size = I + len(blocks) * (E + _POSE)
        noise = self.config.noise_mm**2
        spread = np.concatenate(
            [np.ones(E), np.full(3, np.radians(self.config.rotation_deg)), np.full(3, self.config.translation_mm)]
        )
        A = np.diag(np.concatenate([np.ones(I), *[spread**-2.0] * len(blocks)]) * noise)
        b = np.zeros(size)
        for j, (rows, target) in enumerate(blocks):
            own = np.concatenate([np.arange(I), I + j * (E + _POSE) + np.arange(E + _POSE)])
            A[np.ix_(own, own)] += rows.T @ rows
            b[own] += rows.T @ target
        x = np.asarray(np.linalg.solve(A, b), np.float64)
        per = x[I:].reshape(len(blocks), E + _POSE)
        return x[:I], [row[:E] for row in per], [row[E:] for row in per]


def train_pca(
    canonical_mm: Sequence[NDArray[np.floating]],
    offsets_mm: Sequence[NDArray[np.floating]],
    faces: NDArray[np.int32],
    mirror: NDArray[np.int32],
    config: PcaConfig,
) -> PcaHead:
    """Principal components of registered heads.

    Args:
        canonical_mm: (n, 3) each, the training subjects' canonical registrations, head frame.
        offsets_mm: (n, 3) each, registrations of other expressions less their subject's canonical one.
        faces: (m, 3) of the topology.
        mirror: (n,) vertex on the other side.
        config: modes kept.

    Raises:
        ValueError: no canonical registration.
    """
    if not canonical_mm:
        raise ValueError("no canonical registration to train on")
    heads = _with_mirrored(canonical_mm, mirror, config.mirror)
    offsets = _with_mirrored(offsets_mm, mirror, config.mirror)
    mean = heads.mean(0)
    return PcaHead(
        mean,
        _modes(heads - mean, config.identity_modes, max(len(heads) - 1, 1)),
        _modes(offsets, config.expression_modes, max(len(offsets), 1)),
        faces,
        config,
    )


def _with_mirrored(
    shapes: Sequence[NDArray[np.floating]], mirror: NDArray[np.int32], wanted: bool
) -> NDArray[np.float64]:
    stack = np.asarray(shapes, np.float64).reshape(len(shapes), len(mirror), 3)
    return np.concatenate([stack, stack[:, mirror] * [-1, 1, 1]]) if wanted and len(stack) else stack


def _modes(shapes: NDArray[np.float64], count: int, degrees: int) -> NDArray[np.float64]:
    """Principal modes (at most ``count``, n, 3) scaled to one unit of spread."""
    if len(shapes) == 0:
        return np.zeros((0, shapes.shape[1], 3))
    _, values, directions = np.linalg.svd(shapes.reshape(len(shapes), -1), full_matrices=False)
    keep = min(count, int(np.count_nonzero(values > 1e-6 * max(values[0], 1e-12))))
    modes = directions[:keep] * (values[:keep, None] / np.sqrt(degrees))
    return modes.reshape(keep, *shapes.shape[1:])
