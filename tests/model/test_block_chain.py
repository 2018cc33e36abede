"""Elimination along a chain of blocks, against the whole matrix."""

import numpy as np
import pytest

from model.block_chain import BlockChain


def _chain(count: int, size: int, tied: set[int], seed: int = 0):
    """Diagonal blocks and couplings of a positive matrix, and the matrix."""
    rng = np.random.default_rng(seed)
    roots = rng.normal(size=(count, size, size))
    diagonal = [root @ root.T + 3 * size * np.eye(size) for root in roots]
    couplings = [rng.normal(size=(size, size)) if place in tied else None for place in range(count - 1)]
    whole = np.zeros((count * size, count * size))
    for place, block in enumerate(diagonal):
        at = slice(place * size, (place + 1) * size)
        whole[at, at] = block
        if place < count - 1 and couplings[place] is not None:
            after = slice((place + 1) * size, (place + 2) * size)
            whole[at, after], whole[after, at] = couplings[place], couplings[place].T
    return diagonal, couplings, whole


@pytest.mark.parametrize(("count", "tied"), [(1, set()), (5, set(range(4))), (5, {1, 3}), (4, set())])
def test_equals_the_whole_matrix(count, tied):
    diagonal, couplings, whole = _chain(count, 3, tied)
    chain = BlockChain.of(diagonal, couplings)
    right = np.random.default_rng(1).normal(size=(count, 3, 4))
    np.testing.assert_allclose(
        np.concatenate(chain.solve(list(right))), np.linalg.solve(whole, right.reshape(-1, 4)), atol=1e-12
    )
    inverse = np.linalg.inv(whole)
    for place, block in enumerate(chain.inverse_blocks()):
        at = slice(3 * place, 3 * place + 3)
        np.testing.assert_allclose(block, inverse[at, at], atol=1e-12)
