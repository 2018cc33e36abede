"""Linear 3D morphable models of the head: modes of identity and expression over one topology, and a jaw that turns."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

JAW_ANGLES = 3
_STEP_RAD = 1e-4


@dataclass(frozen=True)
class Jaw:
    """A joint that turns the lower part of the head, as FLAME's does.

    Attributes:
        weights: (n,) from 0 to 1, how far each vertex goes along.
        hinge: (k,) vertices whose mean, on a person's rest shape, carries the joint.
        offset_mm: (3,) the joint from there, head frame.
        mean_rad: (3,) rotation vector of coefficients 0.
        spread_rad: (3,) what a coefficient of 1 adds to it.
    """

    weights: NDArray[np.float64]
    hinge: NDArray[np.int64]
    offset_mm: NDArray[np.float64]
    mean_rad: NDArray[np.float64]
    spread_rad: NDArray[np.float64]

    def joint_mm(self, rest_mm: NDArray[np.floating]) -> NDArray[np.float64]:
        """The joint (3,) of a rest shape (n, 3)."""
        return np.asarray(rest_mm[self.hinge].mean(0) + self.offset_mm)

    def turn(self, angles: NDArray[np.floating]) -> NDArray[np.float64]:
        """The rotation (3, 3) of coefficients (3,)."""
        return np.asarray(Rotation.from_rotvec(self.mean_rad + self.spread_rad * angles).as_matrix())

    def slopes(self, angles: NDArray[np.floating]) -> NDArray[np.float64]:
        """Derivatives (3, 3, 3) of the rotation by each coefficient, by central differences."""
        steps = _STEP_RAD * np.eye(JAW_ANGLES)
        return np.stack([(self.turn(angles + step) - self.turn(angles - step)) / (2 * _STEP_RAD) for step in steps])


@dataclass(frozen=True)
class LinearHead:
    """Mean head and modes; coefficients have unit spread. The jaw turns what the modes have shaped.

    A head's own coefficients, beside its person's identity, are those of the expression modes and then the jaw's.

    Attributes:
        name: what tables call it.
        mean_mm: (n, 3) the mean canonical head, head frame.
        identity_basis: (I, n, 3) mm a unit.
        expression_basis: (E, n, 3) mm a unit, offsets from the canonical expression.
        faces: (m, 3) int32.
        jaw: None where nothing turns.
    """

    name: str
    mean_mm: NDArray[np.float64]
    identity_basis: NDArray[np.float64]
    expression_basis: NDArray[np.float64]
    faces: NDArray[np.int32]
    jaw: Jaw | None = None

    @property
    def own(self) -> int:
        """Number of a head's own coefficients."""
        return len(self.expression_basis) + (0 if self.jaw is None else JAW_ANGLES)

    def vertices(self, identity: NDArray[np.floating], own: NDArray[np.floating]) -> NDArray[np.float64]:
        """Vertices (n, 3) of one head, head frame, mm."""
        rest, shaped = self._shapes(identity, own)
        if self.jaw is None:
            return shaped
        bend = self.jaw.turn(own[-JAW_ANGLES:]) - np.eye(3)
        return shaped + self.jaw.weights[:, None] * ((shaped - self.jaw.joint_mm(rest)) @ bend.T)

    def tangents(
        self, identity: NDArray[np.floating], own: NDArray[np.floating]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Derivatives of the vertices by identity (I, n, 3) and by own coefficients (own, n, 3), mm a unit."""
        if self.jaw is None:
            return self.identity_basis, self.expression_basis
        rest, shaped = self._shapes(identity, own)
        weights, angles = self.jaw.weights[:, None], own[-JAW_ANGLES:]
        bend = self.jaw.turn(angles) - np.eye(3)
        moved = self.identity_basis[:, self.jaw.hinge].mean(1, keepdims=True)
        by_identity = self.identity_basis + weights * ((self.identity_basis - moved) @ bend.T)
        by_expression = self.expression_basis + weights * (self.expression_basis @ bend.T)
        arm = shaped - self.jaw.joint_mm(rest)
        by_angle = weights * (arm @ self.jaw.slopes(angles).transpose(0, 2, 1))
        return by_identity, np.concatenate([by_expression, by_angle])

    def _shapes(
        self, identity: NDArray[np.floating], own: NDArray[np.floating]
    ) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """A person's rest shape, and the same with the expression; no jaw turned yet."""
        rest = self.mean_mm + np.tensordot(identity, self.identity_basis, 1)
        return rest, rest + np.tensordot(own[: len(self.expression_basis)], self.expression_basis, 1)
