"""The stored rows of scans, read in blocks within a bound on memory, and shuffled without end."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import gcd
from typing import Any, Protocol, TypeVar

import numpy as np
from numpy.typing import NDArray

from pipeline.row_decoding import Walk
from pipeline.sample_blocks import GROUP_BLOCKS, rows_of_block
from pipeline.sample_format import (
    COLUMNS,
    SAMPLES_ROOT,
    SETS,
    DeformationSamples,
    IdentitySamples,
    Raw,
    quantise_samples,
    row_bytes,
)
from storage.shards import CHUNK_ROWS, GroupReader, StoredFile
from storage.store import Store

D = TypeVar("D")


class ScanSource(Protocol):
    """Stored rows of one scan's sample sets (``surface``, ``near``, ``space``, ``pairs`` or ``color``)."""

    def rows(self, part: str) -> int:
        """How many rows a set has."""

    def read(self, part: str, start: int, stop: int) -> Raw:
        """Stored values of some rows of a set, by column."""

    def anchors_mm(self) -> NDArray[np.float32]:
        """(K, 3) the anchors of the subject, head frame."""


class ShardSource:
    """Rows of a scan's shards, read when they are wanted and checked then.

    Args:
        store: the workspace's store.
        key: SUBJECT/EXPRESSION.
        files: the group's objects as the sample step's manifest lists them.
    """

    def __init__(self, store: Store, key: str, files: Mapping[str, StoredFile]) -> None:
        self._group = GroupReader(store, f"{SAMPLES_ROOT}/{key}", files, COLUMNS)

    def rows(self, part: str) -> int:
        return int(self._group.attributes["rows"].get(part, 0))

    def read(self, part: str, start: int, stop: int) -> Raw:
        return {name: self._group.read(name, start, stop) for name in SETS[part]}

    def anchors_mm(self) -> NDArray[np.float32]:
        return self._group.read("anchors").astype(np.float32)


class MemorySource:
    """Rows of samples that lie in memory, quantised as the shards are.

    Args:
        samples: identity samples, deformation samples, or both, of one scan.
    """

    def __init__(self, *samples: IdentitySamples | DeformationSamples) -> None:
        self._stored: dict[str, NDArray] = {}
        for one in samples:
            self._stored |= quantise_samples(one, "samples in memory")

    def rows(self, part: str) -> int:
        return len(self._stored.get(SETS[part][0], ()))

    def read(self, part: str, start: int, stop: int) -> Raw:
        return {name: self._stored[name][start:stop] for name in SETS[part]}

    def anchors_mm(self) -> NDArray[np.float32]:
        anchors: NDArray[np.float32] = self._stored["anchors"]
        return anchors


class BlockCache:
    """Blocks of stored rows, the least recently used dropped once there are too many bytes.

    A walk takes the blocks of a group one after the other, so a read fetches as many of them as leave room for as many
    of every scan.
    """

    def __init__(self, sources: Sequence[ScanSource], parts: Iterable[str], limit_bytes: int) -> None:
        self._sources, self._limit = sources, limit_bytes
        one_of_each = len(sources) * sum(CHUNK_ROWS * row_bytes(part) for part in parts)
        self._span = min(max(1, limit_bytes // max(one_of_each, 1)), GROUP_BLOCKS)
        self._held: OrderedDict[tuple[int, str, int], Raw] = OrderedDict()
        self._bytes = 0

    def block(self, scan: int, part: str, number: int) -> Raw:
        """The rows of a block of a scan's samples."""
        source = self._sources[scan]
        group = number // GROUP_BLOCKS * GROUP_BLOCKS
        first = group + (number - group) // self._span * self._span
        key = (scan, part, first)
        if key in self._held:
            self._held.move_to_end(key)
        else:
            last = min(first + self._span, group + GROUP_BLOCKS)
            self._hold(key, source.read(part, first * CHUNK_ROWS, min(last * CHUNK_ROWS, source.rows(part))))
        rows = slice((number - first) * CHUNK_ROWS, (number - first + 1) * CHUNK_ROWS)
        return {name: column[rows] for name, column in self._held[key].items()}

    def _hold(self, key: tuple[int, str, int], block: Raw) -> None:
        self._held[key] = block
        self._bytes += _bytes(block)
        while self._bytes > self._limit and len(self._held) > 1:
            _, dropped = self._held.popitem(last=False)
            self._bytes -= _bytes(dropped)


def _bytes(raw: Raw) -> int:
    return sum(array.nbytes for array in raw.values())


class Shuffler:
    """The endless shuffled stream of each scan's rows, addressed by position.

    Rows lie in the shards in random order, so any fixed stretch is a random draw. A walk of random stride through a
    block puts other rows together in each pass and needs no memory.
    """

    def __init__(self, sources: Sequence[ScanSource], seed: int, cache: BlockCache) -> None:
        self._sources, self._seed, self._cache = sources, seed, cache
        self._drawn: OrderedDict[tuple[int, ...], Any] = OrderedDict()

    def order(self, count: int, *words: int) -> NDArray[np.int64]:
        """The permutation of ``count`` things that belongs to some words."""
        return self._kept((0, count, *words), lambda rng: rng.permutation(count))

    def _walk(self, count: int, *words: int) -> Walk:
        """The walk through ``count`` rows that belongs to some words."""
        return self._kept((1, count, *words), lambda rng: Walk(int(rng.integers(count)), _stride(rng, count)))

    def _kept(self, words: tuple[int, ...], draw: Callable[[np.random.Generator], D]) -> D:
        if words not in self._drawn:
            self._drawn[words] = draw(np.random.default_rng([self._seed, *words]))
            while len(self._drawn) > 12 * len(self._sources) + 64:
                self._drawn.popitem(last=False)
        drawn: D = self._drawn[words]
        return drawn

    def take(self, scan: int, part: str, start: int, count: int) -> Iterator[tuple[Raw, Walk, int]]:
        """Rows ``start`` to ``start + count`` of a scan's stream: blocks, the walk through each, and how far it goes.

        Each pass has its own order of the groups of blocks, and its own stride through each block.
        """
        rows = self._sources[scan].rows(part)
        word = _PARTS.index(part)
        while count:
            turn, at = divmod(start, rows)
            number, inside = self._place(rows, at, scan, word, turn)
            length = rows_of_block(rows, number)
            taken = min(count, length - inside)
            first, stride = self._walk(length, scan, word, turn, number)
            yield self._cache.block(scan, part, number), Walk((first + stride * inside) % length, stride), taken
            start += taken
            count -= taken

    def _place(self, rows: int, at: int, *words: int) -> tuple[int, int]:
        """The block, and the row in it, of a place in a pass."""
        order, ends = self._kept((2, rows, *words), lambda rng: _group_walk(rng, rows))
        turn = int(ends.searchsorted(at, side="right"))
        inside = at - (int(ends[turn - 1]) if turn else 0)
        return int(order[turn]) * GROUP_BLOCKS + inside // CHUNK_ROWS, inside % CHUNK_ROWS


def _group_walk(rng: np.random.Generator, rows: int) -> NDArray[np.int64]:
    """Groups of blocks in random order, and the rows passed at the end of each: (2, groups)."""
    group_rows = GROUP_BLOCKS * CHUNK_ROWS
    order = rng.permutation(-(-rows // group_rows))
    return np.stack([order, np.cumsum(np.minimum(group_rows, rows - order * group_rows))])


def _stride(rng: np.random.Generator, count: int) -> int:
    """A random stride that visits every one of ``count`` rows: one without a common divisor."""
    while True:
        stride = int(rng.integers(1, max(count, 2)))
        if gcd(stride, count) == 1:
            return stride


_PARTS = ("surface", "near", "space", "pairs", "color")
