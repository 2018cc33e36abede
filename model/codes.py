"""Codes of an auto-decoder: one line a subject or scan, learnt with the networks."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor, nn

from model.config import IdentityConfig
from storage.errors import ConfigError, one_line


@dataclass(frozen=True)
class IdentityLayout:
    """Order of an identity code: the global part, each anchor's local part in the anchors' order, the background's.

    Attributes:
        global_dim, local_dim: entries of the parts.
        anchors: K.
        pairs: mirrored pairs, first and interleaved.
    """

    global_dim: int
    local_dim: int
    anchors: int
    pairs: int

    @classmethod
    def of(cls, config: IdentityConfig, anchors: int, pairs: int) -> IdentityLayout:
        """The layout that a config means for so many anchors."""
        return cls(config.global_dim, config.local_dim, anchors, pairs)

    @property
    def size(self) -> int:
        """Entries of a code."""
        return self.global_dim + (self.anchors + 1) * self.local_dim

    def split(self, z_id: Tensor) -> tuple[Tensor, Tensor]:
        """(B, size) to the global part (B, global_dim) and the local ones (B, K + 1, local_dim), background last."""
        local = z_id[:, self.global_dim :].reshape(len(z_id), self.anchors + 1, self.local_dim)
        return z_id[:, : self.global_dim], local

    @property
    def part(self) -> NDArray[np.int64]:
        """(size,) the part that each entry belongs to: 0 the global one, k + 1 anchor k's, K + 1 the background's."""
        local = np.repeat(np.arange(self.anchors + 1) + 1, self.local_dim)
        return np.concatenate([np.zeros(self.global_dim, np.int64), local])

    def slice_of_local(self, anchor: int) -> slice:
        """Where the local part of an anchor lies in a code; ``anchor`` K is the background."""
        start = self.global_dim + anchor * self.local_dim
        return slice(start, start + self.local_dim)


class CodeBook(nn.Module):
    """A table of codes.

    Args:
        count: lines.
        size: entries of a code.
        spread: standard deviation of an entry times the root of ``size`` at the start.
        generator: where the start is drawn from.
    """

    def __init__(self, count: int, size: int, spread: float, generator: torch.Generator) -> None:
        super().__init__()
        start = torch.randn(count, size, generator=generator) * (spread / size**0.5)
        self.codes = nn.Parameter(start)

    def forward(self, index: Tensor) -> Tensor:
        """(B,) int64 to (B, size); the gradient is sparse, so that only these lines are moved by a step."""
        return torch.nn.functional.embedding(index, self.codes, sparse=True)

    def mixed(self, index: Tensor, share: Tensor, part: Tensor) -> Tensor:
        """Codes mixed part by part.

        Args:
            index: (B, n) int64 lines.
            share: (B, n, parts) of each line in every part.
            part: (size,) int64 the part of each entry.

        Returns:
            (B, size); the gradient is sparse.
        """
        return (self(index) * share.index_select(2, part)).sum(1)


def code_of(told: str | ArrayLike, names: Sequence[str], codes: NDArray[np.float32], kind: str) -> NDArray[np.float32]:
    """The code (D,) of a name; a code is checked and passed through.

    Args:
        told: a name, or a code.
        names, codes: (n,) names and (n, D) their codes.
        kind: what the names are of, for messages.

    Raises:
        ConfigError: no such name, or a code of another length.
    """
    if isinstance(told, str):
        if told not in names:
            known = ", ".join(list(names)[:6]) + (", ..." if len(names) > 6 else "")
            near = difflib.get_close_matches(told, names, n=3)
            remedy = f"did you mean {' or '.join(near)}?" if near else "name one of these"
            raise ConfigError(one_line(f"no such {kind} in the model", told, f"it has {known}", remedy))
        return np.asarray(codes[names.index(told)], np.float32)
    code = np.asarray(told, np.float32)
    if code.shape != codes.shape[1:]:
        why = f"shape {code.shape}, the model's are {codes.shape[1:]}"
        raise ConfigError(one_line(f"is no {kind} code of this model", "code", why, "use this model's own codes"))
    return code
