"""Random training batches over many scans, from shards or from memory.

Every batch is a function of the seed and its number alone: subjects come in an order drawn anew each epoch, and the
n-th visit to a scan takes the n-th stretch of that scan's points, whose blocks and whose walk through a block are drawn
anew each pass. So the state is one number, a resumed run sees the same batches bit for bit, and reading ahead changes
nothing.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from pipeline.row_decoding import empty_rows, take_rows
from pipeline.sample_format import DeformationSamples, IdentitySamples
from pipeline.scan_rows import BlockCache, MemorySource, ScanSource, Shuffler
from storage.digest import digest_json
from storage.errors import ConfigError, one_line

CACHE_MIB = 256
"""How much of the stored (quantised) samples a loader keeps in memory; a training has two loaders."""

Batch = dict[str, NDArray]
Prepare = Callable[[Batch], Batch]
"""Turns a batch into another, in the thread that reads ahead: for instance into arrays in pinned memory for a GPU."""


class NumberedBatches(ABC):
    """Endless batches by their numbers, read ahead; where the iteration stands is one of these.

    Args:
        digest: of what the batches depend on.
        ahead: batches read ahead in a thread of their own; 0 reads when asked.
    """

    def __init__(self, digest: str, ahead: int) -> None:
        self._digest, self._ahead = digest, ahead
        self._step = 0
        self._worker: ThreadPoolExecutor | None = None
        self._coming: deque[Future[Batch]] = deque()

    @abstractmethod
    def batch_at(self, step: int) -> Batch:
        """The batch of a number."""

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
            ConfigError: the state belongs to other data, settings or another seed.
        """
        if state["digest"] != self._digest:
            why = "its data, counts, batch size or seed differ"
            raise ConfigError(one_line("is of other batches", "loader state", why, "start training anew"))
        self.close()
        self._step = int(state["step"])


class _Batches(NumberedBatches):
    """What all batches of samples share: order of scans, and how their points are taken."""

    def __init__(
        self,
        sources: Sequence[ScanSource],
        counts: Mapping[str, int],
        batch: int,
        seed: int,
        cache_mib: int = CACHE_MIB,
        ahead: int = 2,
        prepare: Prepare | None = None,
    ) -> None:
        self._sources = list(sources)
        self._prepare = prepare
        self._counts = {part: count for part, count in counts.items() if count > 0}
        self._batch = batch
        if not self._sources:
            raise ConfigError(one_line("no scan to draw batches from", "training", "", "accept scans or add subjects"))
        for number, source in enumerate(self._sources):
            empty = [part for part in self._counts if source.rows(part) == 0]
            if empty:
                where = f"scan {number} of {len(self._sources)}"
                raise ConfigError(one_line(f"has no {empty[0]} samples", where, "", "run the sample step again"))
        cache = BlockCache(self._sources, self._counts, cache_mib * 2**20)
        self._shuffler = Shuffler(self._sources, seed, cache)
        rows = [[source.rows(part) for part in self._counts] for source in self._sources]
        super().__init__(digest_json({"seed": seed, "batch": batch, "counts": self._counts, "rows": rows}), ahead)

    def batch_at(self, step: int) -> Batch:
        """The batch of a step; the same for the same step, whatever came before."""
        scans, visits = self._drawn(step)
        decoded = {part: empty_rows(part, self._batch * count) for part, count in self._counts.items()}
        for place, (scan, visit) in enumerate(zip(scans, visits, strict=True)):
            for part, count in self._counts.items():  # all of a scan at once: it may be drawn from its meshes
                at = place * count
                for block, walk, taken in self._shuffler.take(scan, part, visit * count, count):
                    take_rows(part, block, walk, decoded[part], at, at + taken)
                    at += taken
        batch = self._labelled(np.array(scans, np.int64))
        for part, count in self._counts.items():
            for name, values in decoded[part].items():
                batch[name] = values.reshape(self._batch, count, *values.shape[1:])
        return batch if self._prepare is None else self._prepare(batch)

    def _drawn(self, step: int) -> tuple[list[int], list[int]]:
        total = len(self._sources)
        places = range(step * self._batch, (step + 1) * self._batch)
        epochs = [place // total for place in places]
        scans = [int(self._shuffler.order(total, e)[p % total]) for p, e in zip(places, epochs, strict=True)]
        return scans, epochs

    @abstractmethod
    def _labelled(self, scans: NDArray[np.int64]) -> Batch:
        """What a batch says of its scans beside their points."""


@dataclass(frozen=True)
class IdentityCounts:
    """Points a subject and batch: on the surface, near it, and in space."""

    surface: int = 800
    near: int = 800
    space: int = 100

    def by_part(self) -> dict[str, int]:
        """The counts by the sets' names."""
        return {"surface": self.surface, "near": self.near, "space": self.space}


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
        prepare: turns each batch into what is handed out, in that thread.

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
        prepare: Prepare | None = None,
    ) -> None:
        super().__init__(sources, counts.by_part(), batch, seed, cache_mib, ahead, prepare)
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
    ``pair_region`` (B, P) uint8, ``weight`` (B, P) from 0 to 1; float32, mm, head frame. Where posed samples are asked
    for, it has their columns as ``IdentityBatches`` names them. An epoch shows each scan once.

    Args:
        sources: one a scan, in the order of the scans' codes.
        subjects: (scans,) the subject of each scan, its place among the subjects' codes.
        count: P, pairs a scan and batch.
        posed: samples of the posed head a scan and batch, which every scan must have then.
        batch: B, scans a batch.
        seed, cache_mib, ahead, prepare: as in ``IdentityBatches``.

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
        prepare: Prepare | None = None,
        posed: IdentityCounts = IdentityCounts(0, 0, 0),
    ) -> None:
        super().__init__(sources, {"pairs": count, **posed.by_part()}, batch, seed, cache_mib, ahead, prepare)
        if len(subjects) != len(self._sources):
            why = f"{len(subjects)} subjects for {len(self._sources)} scans"
            raise ConfigError(one_line("subjects and scans disagree", "deformation batches", why, "give one a scan"))
        self._subjects = np.asarray(subjects, np.int64)
        self.keypoints_mm: NDArray[np.float32] | None = None
        """(scans, k, 3) places on the posed heads; where they are set, batches have them as ``keypoints``."""

    @classmethod
    def in_memory(
        cls, samples: Sequence[DeformationSamples], subjects: Sequence[int], **settings: Any
    ) -> DeformationBatches:
        """Batches over pairs that lie in memory, one set a scan."""
        return cls([MemorySource(one) for one in samples], subjects, **settings)

    def _labelled(self, scans: NDArray[np.int64]) -> Batch:
        told = {"scan": scans, "subject": self._subjects[scans]}
        return told if self.keypoints_mm is None else told | {"keypoints": self.keypoints_mm[scans]}


class ColorBatches(_Batches):
    """Endless batches for the colour field.

    A batch is ``subject`` (B,) int64, ``colored`` (B, P, 3) float32 points, mm, head frame, and ``color`` (B, P, 3)
    uint8 sRGB. An epoch shows each subject with colour once.

    Args:
        sources: one a subject that has colour.
        subjects: the place of each among the subjects' codes.
        count: P, points a subject and batch.
        batch: B, subjects a batch.
        seed, prepare: as in ``IdentityBatches``.

    Raises:
        ConfigError: no subject, or one without coloured samples.
    """

    def __init__(
        self,
        sources: Sequence[ScanSource],
        subjects: Sequence[int],
        count: int = 1000,
        batch: int = 8,
        seed: int = 0,
        prepare: Prepare | None = None,
    ) -> None:
        super().__init__(sources, {"color": count}, batch, seed, prepare=prepare)
        self._subjects = np.asarray(subjects, np.int64)

    def _labelled(self, scans: NDArray[np.int64]) -> Batch:
        return {"subject": self._subjects[scans]}
