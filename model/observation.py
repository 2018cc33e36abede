"""What a head is fitted to, and what a fit gives back, whatever the model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from registration.mesh import Mesh


@dataclass(frozen=True)
class Observation:
    """A cloud of one person with one expression, in a head frame that is right to some millimetres and degrees.

    Attributes:
        name: for messages.
        points_mm: (n, 3) told head frame.
        normals: (n, 3) unit, out of the surface, zero where unknown; or None.
        rays_mm: (r, 2, 3) sensor and what it saw, of the head or beside it, where the sensor's place is known.
        box_mm: (2, 3) where a head may be: outside it rays tell nothing; everywhere by default.
        T_world_from_told: (4, 4) where the told head frame lies in a world that consecutive frames share.
    """

    name: str
    points_mm: NDArray[np.float64]
    normals: NDArray[np.float64] | None = None
    rays_mm: NDArray[np.float64] | None = None
    box_mm: NDArray[np.float64] | None = None
    T_world_from_told: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class FittedHead:
    """A complete head that fits one observation.

    Attributes:
        mesh: told head frame, mm.
        T_told_from_head: (4, 4) float64, rigid: the correction of the told head frame.
        residual_mm: (n,) distance of each observed point that was used to the fitted surface.
        regions: those that the method models at all, of the ones that are compared; None means every one.
    """

    mesh: Mesh
    T_told_from_head: NDArray[np.float64]
    residual_mm: NDArray[np.float64]
    regions: tuple[str, ...] | None = None


class HeadFitter(Protocol):
    """A way to fit a complete head to partial clouds; what is compared in an evaluation."""

    @property
    def name(self) -> str:
        """What tables call it."""
        ...

    def fit(self, observations: Sequence[Observation], seed: int) -> tuple[FittedHead, ...]:
        """Fit one identity and an expression an observation. Same observations and seed, same result."""
        ...


def small_rigid(twist: NDArray[np.floating]) -> NDArray[np.float64]:
    """The rigid transform (4, 4) of a rotation vector in radians (first 3) and a translation in mm (last 3)."""
    T = np.eye(4)
    T[:3, :3] = Rotation.from_rotvec(np.asarray(twist[:3], np.float64)).as_matrix()
    T[:3, 3] = twist[3:]
    return T


def rigid_twist(T: NDArray[np.floating]) -> NDArray[np.float64]:
    """The twist (6,) of a rigid transform (4, 4), as ``small_rigid`` takes it."""
    return np.r_[Rotation.from_matrix(T[:3, :3]).as_rotvec(), T[:3, 3]]
