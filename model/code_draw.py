"""New codes drawn from the distribution of the trained ones: people and expressions that were never seen."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from model.code_prior import mirrored_entries
from model.codes import IdentityLayout

SPREAD = 0.85
"""Share of the trained codes' spread that codes are drawn with (the authors' own sampling)."""


def draw_identity(
    codes: NDArray[np.floating], layout: IdentityLayout, rng: np.random.Generator, spread: float = SPREAD
) -> NDArray[np.float32]:
    """A code (D,) of a new person, from those (S, D) of the trained ones and of their mirror images."""
    return _draw(np.concatenate([codes, codes[:, mirrored_entries(layout)]]), len(codes), rng, spread)


def draw_expression(
    codes: NDArray[np.floating], rng: np.random.Generator, spread: float = SPREAD
) -> NDArray[np.float32]:
    """A code (E,) of a new expression, from those (T, E) of the trained scans."""
    return _draw(codes, len(codes), rng, spread)


def _draw(
    codes: NDArray[np.floating], count: int, rng: np.random.Generator, spread: float, shrinkage: float = 4.0
) -> NDArray[np.float32]:
    """From a Gaussian whose covariance is the codes' own, drawn towards its diagonal.

    The codes' own covariance keeps the parts of a head together that go together, but knows no more directions than
    there are codes; the diagonal, which counts for as much as ``shrinkage`` further codes, knows all, each by itself.
    """
    mean = codes.mean(0, dtype=np.float64)
    away = codes - mean
    own = rng.standard_normal(len(codes)) @ away / np.sqrt(len(codes))
    apart = rng.standard_normal(codes.shape[1]) * away.std(0)
    share = shrinkage / (count + shrinkage)
    return np.asarray(mean + spread * (np.sqrt(1 - share) * own + np.sqrt(share) * apart), np.float32)
