"""Codes of an auto-decoder: one line a subject or scan, learnt with the networks."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from model.config import IdentityConfig


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
