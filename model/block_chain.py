"""Symmetric positive systems of blocks that touch no others than their neighbours: unknowns of consecutive frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Block = NDArray[np.float64]


@dataclass(frozen=True)
class BlockChain:
    """A block-tridiagonal matrix, factored by block elimination from the first block on.

    Attributes:
        pivots: (f, f) each: what is left of a diagonal block once those before it are eliminated.
        couplings: (f, f) each, one fewer: the block right of each diagonal one, or None where there is none.
        carried: (f, f) each, one fewer: pivot^-1 coupling, or None likewise.
    """

    pivots: tuple[Block, ...]
    couplings: tuple[Block | None, ...]
    carried: tuple[Block | None, ...]

    @classmethod
    def of(cls, diagonal: Sequence[Block], couplings: Sequence[Block | None]) -> BlockChain:
        """Factor a matrix of n diagonal blocks and the n - 1 blocks right of them; those below are their mirror.

        Raises:
            numpy.linalg.LinAlgError: it is singular.
        """
        pivots: list[Block] = [diagonal[0]]
        carried: list[Block | None] = []
        for block, coupling in zip(diagonal[1:], couplings, strict=True):
            through = None if coupling is None else _solved(pivots[-1], coupling)
            carried.append(through)
            pivots.append(block if coupling is None or through is None else block - coupling.T @ through)
        return cls(tuple(pivots), tuple(couplings), tuple(carried))

    def solve(self, right: Sequence[NDArray[np.float64]]) -> list[NDArray[np.float64]]:
        """The blocks x (f, k) of the solution of H x = right, each right side (f, k) or (f,)."""
        forward = [right[0]]
        for side, through in zip(right[1:], self.carried, strict=True):
            forward.append(side if through is None else side - through.T @ forward[-1])
        solution = [_solved(self.pivots[-1], forward[-1])]
        for place in range(len(self.pivots) - 2, -1, -1):
            own, through = _solved(self.pivots[place], forward[place]), self.carried[place]
            solution.append(own if through is None else own - through @ solution[-1])
        return solution[::-1]

    def inverse_blocks(self) -> list[Block]:
        """The diagonal blocks (f, f) of the inverse: the covariance of each block's unknowns."""
        blocks = [np.asarray(np.linalg.inv(self.pivots[-1]), np.float64)]
        for place in range(len(self.pivots) - 2, -1, -1):
            own, through = np.asarray(np.linalg.inv(self.pivots[place]), np.float64), self.carried[place]
            blocks.append(own if through is None else own + through @ blocks[-1] @ through.T)
        return blocks[::-1]


def _solved(A: Block, right: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(np.linalg.solve(A, right), np.float64)
