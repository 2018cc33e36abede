"""A template whose modes are the principal components of earlier registrations."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from model.fit_config import PcaConfig
from model.linear_training import RegisteredHeads, train_linear
from registration.flame import FULL_EXPRESSION
from registration.mesh import Mesh
from registration.template import Template

LEAST_OPENING_MM = 2.0
"""A mode that parts the lips by less is none of the jaw."""
UPPER_LIP, LOWER_LIP = 62, 66


def learned_template(heads: RegisteredHeads, config: PcaConfig) -> Template:
    """The registrations' template with the mean head in place of its own, and with their modes.

    A coefficient of 1 is a person's spread in identity, and ``FULL_EXPRESSION`` spreads in expression, of either sign.
    Canonical heads often have their mouth open: the mean's is closed again as far as the old template's was, along the
    mode that opens it, for a registration looks for open mouths from a closed one.

    Raises:
        ConfigError: no canonical head, from ``RegisteredHeads``.
    """
    template = heads.template
    linear = train_linear("pca", heads, config)
    modes = FULL_EXPRESSION * linear.expression_basis
    opening = _gap_mm(modes, template)
    modes *= np.where(opening < 0, -1.0, 1.0)[:, None, None]
    mean = linear.mean_mm
    if len(modes) and (most := float(np.abs(opening).max())) > LEAST_OPENING_MM:
        open_by = float(_gap_mm(mean, template) - _gap_mm(template.mesh.vertices, template))
        mean = mean - np.clip(open_by / most, -1, 1) * modes[int(np.abs(opening).argmax())]
    made = replace(
        template,
        name=f"{template.name} learned",
        mesh=Mesh.of(mean, template.mesh.faces),
        identity_basis=linear.identity_basis.astype(np.float32),
        expression_basis=modes.astype(np.float32),
        expression_names=tuple(f"learned {k + 1}" for k in range(len(modes))),
        expression_low=np.full(len(modes), -1.0, np.float32),
    )
    made.check()
    return made


def _gap_mm(vertices: NDArray[np.floating], template: Template) -> NDArray[np.float64]:
    """How far the middle of the upper lip lies above the lower's, of heads or modes (..., n, 3)."""
    upper, lower = template.landmarks[[UPPER_LIP, LOWER_LIP]]
    return np.asarray(vertices[..., upper, 1] - vertices[..., lower, 1], np.float64)
