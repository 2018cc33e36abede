"""What a fit leaves unknown: a Gaussian about the fitted codes and pose, by the curvature of the cost there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Posterior:
    """The spread of an identity's D entries and of one observation's own F unknowns (expression and pose) together.

    Its own unknowns follow the identity: ``own = -by_identity @ identity`` and, independent of that, spread ``own``.

    Attributes:
        identity: (D, D) covariance, all observations taken together.
        own: (f, f) covariance of the free own unknowns for a given identity.
        by_identity: (f, D).
        free: (F,) bool, which of its own unknowns were fitted at all.
    """

    identity: NDArray[np.float64]
    own: NDArray[np.float64]
    by_identity: NDArray[np.float64]
    free: NDArray[np.bool_]

    def spread(self, by_identity: NDArray[np.float64], by_own: NDArray[np.float64]) -> NDArray[np.float64]:
        """Standard deviation (n,) of quantities with derivatives (n, D) and (n, F): sqrt(diag(J H^-1 J^T))."""
        own = by_own[:, self.free]
        through = by_identity - own @ self.by_identity
        variance = ((through @ self.identity) * through).sum(1) + ((own @ self.own) * own).sum(1)
        return np.asarray(np.sqrt(np.maximum(variance, 0.0)))
