"""Learn linear heads from registrations: like BFM, like FLAME, or with modes alone; or take FLAME as it is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from model.fit_config import PcaConfig
from model.jaw import learn_jaw
from model.linear_head import LinearHead
from registration.flame import FULL_EXPRESSION
from registration.template import Template
from storage.errors import ConfigError, one_line

LinearName = Literal["pca", "bfm", "flame"]


@dataclass(frozen=True)
class RegisteredHeads:
    """The training subjects' registrations.

    Attributes:
        template: of the registrations, n vertices.
        canonical_mm: (S, n, 3) canonical heads, head frame.
        posed_mm: (T, n, 3) the same people's other expressions.
        subject: (T,) whose each one is, a place in ``canonical_mm``.
    """

    template: Template
    canonical_mm: NDArray[np.float64]
    posed_mm: NDArray[np.float64]
    subject: NDArray[np.int64]

    @classmethod
    def of(
        cls, template: Template, canonical_mm: Sequence[NDArray], posed_mm: Sequence[NDArray], subject: Sequence[int]
    ) -> RegisteredHeads:
        """From lists of vertices.

        Raises:
            ConfigError: no canonical head.
        """
        if not canonical_mm:
            why = "no canonical registration of a training subject was accepted"
            raise ConfigError(one_line("nothing to train on", "linear heads", why, "see why in rejected.jsonl"))
        n = len(template.mesh.vertices)
        heads, posed = (np.asarray(one, np.float64).reshape(len(one), n, 3) for one in (canonical_mm, posed_mm))
        return cls(template, heads, posed, np.asarray(subject, np.int64).reshape(len(posed)))

    def with_mirrored(self) -> RegisteredHeads:
        """The same heads and their mirror images."""
        mirror = self.template.mirror

        def both(heads: NDArray[np.float64]) -> NDArray[np.float64]:
            return np.concatenate([heads, heads[:, mirror] * [-1, 1, 1]])

        subject = np.concatenate([self.subject, self.subject + len(self.canonical_mm)])
        return RegisteredHeads(self.template, both(self.canonical_mm), both(self.posed_mm), subject)


def train_linear(name: LinearName, heads: RegisteredHeads, config: PcaConfig) -> LinearHead:
    """Principal components of registered heads.

    ``bfm`` knows identity alone, as the Basel Face Model does; ``pca`` adds modes of what expressions change;
    ``flame`` first takes the jaw's turn out of them, which then has a joint.
    """
    heads = heads.with_mirrored() if config.mirror else heads
    mean = heads.canonical_mm.mean(0)
    identity = _modes(heads.canonical_mm - mean, config.identity_modes, max(len(heads.canonical_mm) - 1, 1))
    posed, jaw = heads.posed_mm, None
    if name == "flame":
        jaw, posed = learn_jaw(heads.template, heads.canonical_mm, posed, heads.subject)
    offsets = posed - heads.canonical_mm[heads.subject]
    expressions = _modes(offsets, 0 if name == "bfm" else config.expression_modes, max(len(offsets), 1))
    return LinearHead(name, mean, identity, expressions, heads.template.mesh.faces, jaw)


def flame_head(template: Template, config: PcaConfig) -> LinearHead:
    """A FLAME file's own modes, as ``registration.flame.import_flame`` gives them; its jaw turns as linear modes."""
    return LinearHead(
        "flame",
        template.mesh.vertices.astype(np.float64),
        template.identity_basis[: config.identity_modes].astype(np.float64),
        template.expression_basis.astype(np.float64) / FULL_EXPRESSION,
        template.mesh.faces,
    )


def _modes(shapes: NDArray[np.float64], count: int, degrees: int) -> NDArray[np.float64]:
    """Principal modes (at most ``count``, n, 3) scaled to one unit of spread."""
    if len(shapes) == 0:
        return np.zeros((0, shapes.shape[1], 3))
    _, values, directions = np.linalg.svd(shapes.reshape(len(shapes), -1), full_matrices=False)
    keep = min(count, int(np.count_nonzero(values > 1e-6 * max(values[0], 1e-12))))
    modes = directions[:keep] * (values[:keep, None] / np.sqrt(degrees))
    return np.asarray(modes.reshape(keep, *shapes.shape[1:]))
