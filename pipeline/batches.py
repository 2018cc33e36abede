"""Random training batches over many scans, from shards or from memory.

Every batch is a function of the seed and its number alone: subjects come in an order drawn anew each epoch, and the
n-th visit to a scan takes the n-th stretch of that scan's points, whose blocks and whose walk through a block are drawn
anew each pass. So the state is one number, a resumed run sees the same batches bit for bit, and reading ahead changes
nothing.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import gcd
from typing import Any, Protocol, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.sample_format import (
    COLUMNS,
    DECODERS,
    SAMPLES_ROOT,
    DeformationSamples,
    IdentitySamples,
    Raw,
    quantise_samples,
    row_bytes,
)
from storage.digest import digest_json
from storage.errors import ConfigError, one_line
from storage.shards import CHUNK_ROWS, GroupReader, StoredFile
from storage.store import Store

CACHE_MIB = 512
"""How much of the stored (quantised) samples a loader keeps in memory."""

Batch = dict[str, NDArray]


class ScanSource(Protocol):
    """Stored rows of one scan's sample sets (``surface``, ``near``, ``space`` or ``pairs``)."""

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
        return {name: self._group.read(name, start, stop) for name in DECODERS[part][0]}

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
        return len(self._stored.get(DECODERS[part][0][0], ()))

    def read(self, part: str, start: int, stop: int) -> Raw:
        return {name: self._stored[name][start:stop] for name in DECODERS[part][0]}

    def anchors_mm(self) -> NDArray[np.float32]:
        anchors: NDArray[np.float32] = self._stored["anchors"]
        return anchors


class _BlockCache:
    """Blocks of stored rows, the least recently used dropped once there are too many bytes.

    A read costs about the same whatever its length, so each fetches as many blocks as leave room for those of all
    scans.
    """

    def __init__(self, sources: Sequence[ScanSource], parts: Iterable[str], limit_bytes: int) -> None:
        self._sources, self._limit = sources, limit_bytes
        one_of_each = len(sources) * sum(CHUNK_ROWS * row_bytes(part) for part in parts)
        self._span = max(1, limit_bytes // max(one_of_each, 1))
        self._held: OrderedDict[tuple[int, str, int], Raw] = OrderedDict()
        self._bytes = 0

    def block(self, scan: int, part: str, number: int) -> Raw:
        """The rows of a block of a scan's samples."""
        key = (scan, part, number)
        if key in self._held:
            self._held.move_to_end(key)
            return self._held[key]
        source = self._sources[scan]
        first = number // self._span * self._span
        start, stop = first * CHUNK_ROWS, min((first + self._span) * CHUNK_ROWS, source.rows(part))
        raw = source.read(part, start, stop)
        wanted: Raw = {}
        for place in range(-(-(stop - start) // CHUNK_ROWS)):
            rows = slice(place * CHUNK_ROWS, (place + 1) * CHUNK_ROWS)
            block = {name: column[rows].copy() for name, column in raw.items()}
            self._hold((scan, part, first + place), block)
            if first + place == number:
                wanted = block
        return wanted

    def _hold(self, key: tuple[int, str, int], block: Raw) -> None:
        if key in self._held:
            return
        self._held[key] = block
        self._bytes += _bytes(block)
        while self._bytes > self._limit and len(self._held) > 1:
            _, dropped = self._held.popitem(last=False)
            self._bytes -= _bytes(dropped)


def _bytes(raw: Raw) -> int:
    return sum(array.nbytes for array in raw.values())


class _Shuffler:
    """The endless shuffled stream of each scan's rows, addressed by position.

    Rows lie in the shards in random order, so any fixed stretch is a random draw. A walk of random stride through a
    block puts other rows together in each pass and needs no memory.
    """

    def __init__(self, sources: Sequence[ScanSource], seed: int, cache: _BlockCache) -> None:
        self._sources, self._seed, self._cache = sources, seed, cache
        self._drawn: OrderedDict[tuple[int, ...], NDArray[np.int64]] = OrderedDict()

    def order(self, count: int, *words: int) -> NDArray[np.int64]:
        """The permutation of ``count`` things that belongs to some words."""
        return self._kept((0, count, *words), lambda rng: rng.permutation(count))

    def _walk(self, count: int, *words: int) -> NDArray[np.int64]:
        """Start and stride of the walk through ``count`` rows that belongs to some words."""
        return self._kept(
            (1, count, *words), lambda rng: np.array([rng.integers(count), _stride(rng, count)], np.int64)
        )

    def _kept(
        self, words: tuple[int, ...], draw: Callable[[np.random.Generator], NDArray[np.int64]]
    ) -> NDArray[np.int64]:
        if words not in self._drawn:
            self._drawn[words] = draw(np.random.default_rng([self._seed, *words]))
            while len(self._drawn) > 12 * len(self._sources) + 64:
                self._drawn.popitem(last=False)
        return self._drawn[words]

    def take(self, scan: int, part: str, start: int, count: int) -> list[Raw]:
        """Rows ``start`` to ``start + count`` of a scan's stream, in pieces."""
        rows = self._sources[scan].rows(part)
        blocks = -(-rows // CHUNK_ROWS)
        word = _PARTS.index(part)
        pieces: list[Raw] = []
        while count:
            turn, at = divmod(start, rows)
            order = self.order(blocks, scan, word, turn)
            lengths = np.minimum(CHUNK_ROWS, rows - order * CHUNK_ROWS)
            ends = np.cumsum(lengths)
            place = int(np.searchsorted(ends, at, side="right"))
            length, number = int(lengths[place]), int(order[place])
            inside = at - int(ends[place]) + length
            taken = min(count, length - inside)
            first, stride = self._walk(length, scan, word, turn, number)
            pick = (first + stride * np.arange(inside, inside + taken)) % length
            block = self._cache.block(scan, part, number)
            pieces.append({name: column.take(pick, axis=0) for name, column in block.items()})
            start += taken
            count -= taken
        return pieces


def _stride(rng: np.random.Generator, count: int) -> int:
    """A random stride that visits every one of ``count`` rows: one without a common divisor."""
    while True:
        stride = int(rng.integers(1, max(count, 2)))
        if gcd(stride, count) == 1:
            return stride


_PARTS = ("surface", "near", "space", "pairs")


class _Batches:
    """What both kinds of batches share: order of scans, state, reading ahead."""

    def __init__(
        self,
        sources: Sequence[ScanSource],
        counts: Mapping[str, int],
        batch: int,
        seed: int,
        cache_mib: int = CACHE_MIB,
        ahead: int = 2,
    ) -> None:
        self._sources = list(sources)
        self._counts = {part: count for part, count in counts.items() if count > 0}
        self._batch = batch
        if not self._sources:
            raise ConfigError(one_line("no scan to draw batches from", "training", "", "accept scans or add subjects"))
        for number, source in enumerate(self._sources):
            empty = [part for part in self._counts if source.rows(part) == 0]
            if empty:
                where = f"scan {number} of {len(self._sources)}"
                raise ConfigError(one_line(f"has no {empty[0]} samples", where, "", "run the sample step again"))
        cache = _BlockCache(self._sources, self._counts, cache_mib * 2**20)
        self._shuffler = _Shuffler(self._sources, seed, cache)
        rows = [[source.rows(part) for part in self._counts] for source in self._sources]
        self._digest = digest_json({"seed": seed, "batch": batch, "counts": self._counts, "rows": rows})
        self._step = 0
        self._ahead = ahead
        self._worker: ThreadPoolExecutor | None = None
        self._coming: deque[Future[Batch]] = deque()

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        if not self._ahead:
            batch = self.batch_at(self._step)
        else:
            if self._worker is None:
                self._worker = ThreadPoolExecutor(1, thread_name_prefix="batches")
            while len(self._coming) < 1 + self._ahead:
                self._coming.append(self._worker.submit(self.batch_at, self._step + len(self._coming)))
            batch = self._coming.popleft().result()
        self._step += 1
        return batch

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading ahead. The batches can still be used."""
        if self._worker is not None:
            self._worker.shutdown(wait=True, cancel_futures=True)
        self._worker = None
        self._coming.clear()

    def state(self) -> dict[str, Any]:
        """Where the iteration stands, as plain values."""
        return {"step": self._step, "digest": self._digest}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from a state, bit for bit.

        Raises:
            ConfigError: the state belongs to other scans, counts or another seed.
        """
        if state["digest"] != self._digest:
            why = "its scans, counts, batch size or seed differ"
            raise ConfigError(one_line("is of other batches", "loader state", why, "start training anew"))
        self.close()
        self._step = int(state["step"])

    def batch_at(self, step: int) -> Batch:
        """The batch of a step; the same for the same step, whatever came before."""
        scans, visits = self._drawn(step)
        batch: Batch = {}
        for part, count in self._counts.items():
            pieces = [
                p for s, v in zip(scans, visits, strict=True) for p in self._shuffler.take(s, part, v * count, count)
            ]
            columns, decode = DECODERS[part]
            raw = {name: np.concatenate([piece[name] for piece in pieces]) for name in columns}
            for name, values in decode(raw).items():
                batch[name] = values.reshape(self._batch, count, *values.shape[1:])
        return self._labelled(np.array(scans, np.int64)) | batch

    def _drawn(self, step: int) -> tuple[list[int], list[int]]:
        total = len(self._sources)
        places = range(step * self._batch, (step + 1) * self._batch)
        epochs = [place // total for place in places]
        scans = [int(self._shuffler.order(total, e)[p % total]) for p, e in zip(places, epochs, strict=True)]
        return scans, epochs

    def _labelled(self, scans: NDArray[np.int64]) -> Batch:
        raise NotImplementedError


@dataclass(frozen=True)
class IdentityCounts:
    """Points a subject and batch: on the surface, near it, and in space."""

    surface: int = 800
    near: int = 800
    space: int = 100


class IdentityBatches(_Batches):
    """Endless batches for the identity field.

    A batch is ``subject`` (B,) int64 place in ``sources``, ``anchors`` (B, K, 3), ``surface`` (B, P, 3), ``normal``
    (B, P, 3), ``region`` (B, P) uint8, ``face`` and ``observed`` (B, P) bool, ``near`` (B, Q, 3), ``near_sdf`` (B, Q),
    ``near_observed`` (B, Q) bool, ``space`` (B, R, 3), ``space_sdf`` (B, R), ``space_observed`` (B, R) bool; float32,
    mm, head frame. An epoch shows each subject once.

    Args:
        sources: one a subject, in the order of the subjects' codes.
        counts: points a subject and batch.
        batch: B, subjects a batch.
        seed: of every draw.
        cache_mib: bound on the samples kept in memory.
        ahead: batches read ahead in a thread of their own; 0 reads when asked.

    Raises:
        ConfigError: no subject, or one without samples.
    """

    def __init__(
        self,
        sources: Sequence[ScanSource],
        counts: IdentityCounts = IdentityCounts(),
        batch: int = 32,
        seed: int = 0,
        cache_mib: int = CACHE_MIB,
        ahead: int = 2,
    ) -> None:
        wanted = {"surface": counts.surface, "near": counts.near, "space": counts.space}
        super().__init__(sources, wanted, batch, seed, cache_mib, ahead)
        self.anchors_mm: NDArray[np.float32] = np.stack([source.anchors_mm() for source in self._sources])

    @classmethod
    def in_memory(cls, samples: Sequence[IdentitySamples], **settings: Any) -> IdentityBatches:
        """Batches over samples that lie in memory, one a subject."""
        return cls([MemorySource(one) for one in samples], **settings)

    def _labelled(self, scans: NDArray[np.int64]) -> Batch:
        return {"subject": scans, "anchors": self.anchors_mm[scans]}


class DeformationBatches(_Batches):
    """Endless batches for the deformation field.

    A batch is ``scan`` (B,) int64 place in ``sources``, ``subject`` (B,) int64, ``canonical`` and ``posed`` (B, P, 3),
    ``pair_region`` (B, P) uint8, ``weight`` (B, P) from 0 to 1; float32, mm, head frame. An epoch shows each scan once.

    Args:
        sources: one a scan, in the order of the scans' codes.
        subjects: (scans,) the subject of each scan, its place among the subjects' codes.
        count: P, pairs a scan and batch.
        batch: B, scans a batch.
        seed, cache_mib, ahead: as in ``IdentityBatches``.

    Raises:
        ConfigError: no scan, or one without samples.
    """

    def __init__(
        self,
        sources: Sequence[ScanSource],
        subjects: Sequence[int],
        count: int = 1000,
        batch: int = 32,
        seed: int = 0,
        cache_mib: int = CACHE_MIB,
        ahead: int = 2,
    ) -> None:
        super().__init__(sources, {"pairs": count}, batch, seed, cache_mib, ahead)
        if len(subjects) != len(self._sources):
            why = f"{len(subjects)} subjects for {len(self._sources)} scans"
            raise ConfigError(one_line("subjects and scans disagree", "deformation batches", why, "give one a scan"))
        self._subjects = np.asarray(subjects, np.int64)

    @classmethod
    def in_memory(
        cls, samples: Sequence[DeformationSamples], subjects: Sequence[int], **settings: Any
    ) -> DeformationBatches:
        """Batches over pairs that lie in memory, one set a scan."""
        return cls([MemorySource(one) for one in samples], subjects, **settings)

    def _labelled(self, scans: NDArray[np.int64]) -> Batch:
        return {"scan": scans, "subject": self._subjects[scans]}
