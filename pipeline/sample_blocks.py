"""Samples drawn block by block, each block from a generator of its own.

A block's rows depend on the seed, the set and the block's number alone, so that a set can be drawn whole and stored, or
one block at a time when training wants it, with the same result.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.errors import ScanRejected, one_line
from storage.shards import CHUNK_ROWS

GROUP_BLOCKS = 8
"""Blocks that follow each other in a loader's walk: what is worth reading, or drawing, at once."""

Rows = Mapping[str, NDArray]
"""Columns of equal length by name, as a batch holds them."""

_MOST_ROUNDS = 50


@dataclass(frozen=True)
class Drawn:
    """Rows of some blocks.

    Attributes:
        rows: block after block, in random order within each.
        refused_share: share of the candidates that were tested and not taken.
    """

    rows: Rows
    refused_share: float


def block_count(rows: int) -> int:
    """Blocks that a set of so many rows has."""
    return -(-rows // CHUNK_ROWS)


def rows_of_block(rows: int, block: int) -> int:
    """Rows of one block: ``CHUNK_ROWS``, or what is left in the last one."""
    return min(CHUNK_ROWS, rows - block * CHUNK_ROWS)


def draw_blocks(
    seed: int,
    part: str,
    lengths: Mapping[int, int],
    candidates: Callable[[np.random.Generator, int], Rows],
    tested: Callable[[Rows], tuple[Rows, NDArray[np.bool_]]],
) -> Drawn:
    """Draw some blocks, all their candidates tested together; those refused are drawn anew until each block is full.

    Args:
        seed: of the scan.
        part: name of the set.
        lengths: rows by the block's number.
        candidates: draws so many rows from a generator.
        tested: completes joined candidates to rows, and tells which of them are taken.

    Raises:
        ScanRejected: nearly all candidates are refused.
    """
    word = int.from_bytes(part.encode(), "little")
    generators = {block: np.random.default_rng([seed, word, block]) for block in lengths}
    missing = dict(lengths)
    taken: dict[int, list[Rows]] = {block: [] for block in lengths}
    asked = refused = 0
    for _ in range(_MOST_ROUNDS):
        open_ = [block for block, count in missing.items() if count]
        if not open_:
            break
        drawn = [candidates(generators[block], missing[block]) for block in open_]
        rows, good = tested(join_rows(drawn))
        asked, refused = asked + len(good), refused + int((~good).sum())
        start = 0
        for block in open_:
            stop = start + missing[block]
            keep = start + np.flatnonzero(good[start:stop])
            taken[block].append({name: column[keep] for name, column in rows.items()})
            missing[block] -= len(keep)
            start = stop
    if any(missing.values()):
        why = f"{refused} of {asked} candidates were refused"
        raise ScanRejected(one_line(f"gives too few {part} samples", "sampling", why, "check its registration"))
    shuffled = []
    for block, pieces in taken.items():
        order = generators[block].permutation(lengths[block])
        shuffled.append({name: column[order] for name, column in join_rows(pieces).items()})
    return Drawn(join_rows(shuffled), refused / max(asked, 1))


def join_rows(pieces: Sequence[Rows]) -> Rows:
    """Pieces one after the other."""
    if len(pieces) == 1:
        return pieces[0]
    return {name: np.concatenate([piece[name] for piece in pieces]) for name in pieces[0]}


def drawn_until(
    rng: np.random.Generator, count: int, draw: Callable[[np.random.Generator, int], tuple[Rows, NDArray[np.bool_]]]
) -> Rows:
    """Draw again and again until ``count`` rows pass a cheap test of their own.

    Raises:
        ScanRejected: hardly any does.
    """
    pieces, have = [], 0
    for _ in range(_MOST_ROUNDS):
        rows, good = draw(rng, count)
        keep = np.flatnonzero(good)[: count - have]
        pieces.append({name: column[keep] for name, column in rows.items()})
        have += len(keep)
        if have == count:
            return join_rows(pieces)
    why = "nearly nothing of it lies above the throat plane"
    raise ScanRejected(one_line("gives too few samples", "sampling", why, "check its registration"))
