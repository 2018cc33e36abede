"""The neural head model as something to fit to clouds."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from model.code_prior import CodePrior, expression_prior, farthest_codes, identity_prior
from model.fit_config import FitConfig
from model.fitting import FittedCodes, fit_codes, surface_spread_mm
from model.head_fields import HeadFields
from model.head_model import HeadModel
from model.observation import FittedHead, Observation
from model.threads import fixed_threads


@dataclass(frozen=True)
class NphmFitter:
    """Fits a trained head model; satisfies ``model.observation.HeadFitter``.

    Attributes:
        head: the model.
        config: of the fit.
        resolution: cells along the longest edge of the box when the fitted head is meshed.
    """

    head: HeadModel
    config: FitConfig
    resolution: int = 192

    @property
    def name(self) -> str:
        """What tables call it."""
        return "nphm"

    @cached_property
    def priors(self) -> tuple[CodePrior, CodePrior]:
        """Of identity and expression codes, from the trained ones."""
        identity = identity_prior(self.head.identity_codes, self.head.identity_field.layout, self.head.mean_anchors_mm)
        return identity, expression_prior(self.head.expression_codes)

    @cached_property
    def fields(self) -> HeadFields:
        """Both fields, their codes yet to be given."""
        return HeadFields(self.head.identity_field, self.head.deformation_field)

    def spread_mm(self, fitted: FittedCodes, place: int, points_head_mm: NDArray[np.floating]) -> NDArray[np.float64]:
        """How far the surface of one observation's head may lie off at places (n, 3) on it, one deviation (n,)."""
        with fixed_threads(self.config.threads):
            return surface_spread_mm(self.fields, fitted, place, points_head_mm)

    def codes(self, observations: Sequence[Observation], seed: int, sequence: bool = False) -> FittedCodes:
        """Fit one identity code, and an expression code and a pose correction an observation.

        In a sequence those of consecutive observations are tied.
        """
        starts = farthest_codes(self.head.expression_codes, self.priors[1], self.config.starts)
        return fit_codes(self.fields, *self.priors, observations, self.config, seed, starts, sequence)

    def fit(self, observations: Sequence[Observation], seed: int) -> tuple[FittedHead, ...]:
        """Fit, and mesh the head in each observation's expression."""
        fitted = self.codes(observations, seed)
        with fixed_threads(self.config.threads):
            heads = self.head.meshes(fitted.identity, fitted.expressions, self.resolution)
        return tuple(
            FittedHead(head.transformed(T), T, residual)
            for head, T, residual in zip(heads, fitted.T_told_from_head, fitted.residual_mm, strict=True)
        )
