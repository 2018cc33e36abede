"""How fast batches are read from shards, beside a memory map that hands out the same rows."""

from __future__ import annotations

import shutil
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from benchmarks.storage_bench import Bench, Row, cpu_seconds, group_of, simulated, source_of
from pipeline.batches import IdentityBatches, IdentityCounts
from pipeline.row_decoding import Walk, decode_rows
from pipeline.sample_blocks import GROUP_BLOCKS
from pipeline.sample_format import SETS
from pipeline.scan_rows import BlockCache, Shuffler
from storage.shards import CHUNK_ROWS
from storage.store import LocalStore


def measure_reading(bench: Bench) -> Row:
    """Batches of 32 subjects x 1,000 points, over a float32 memory map that hands out the same rows."""
    subjects, rows, points, batch = (32, 20_000, 1000, 32) if bench.quick else (64, 150_000, 1000, 32)
    stored = {name: column for name, column in simulated(bench, rows).items() if name in (*SETS["surface"], "anchors")}
    store = LocalStore(bench.fresh("reading"))
    path = bench.folder / "reading.f32"
    plain = np.memmap(path, np.float32, "w+", shape=(subjects, rows, 8))
    sources = []
    for subject in range(subjects):
        sources.append(source_of(store, subject, group_of(stored, subject)))
        decoded = decode_rows("surface", sources[-1].read("surface", 0, rows))
        plain[subject, :, :3], plain[subject, :, 3:6] = decoded["surface"], decoded["normal"]
        plain[subject, :, 6], plain[subject, :, 7] = decoded["region"], decoded["observed"]
    plain.flush()
    plain = np.memmap(path, np.float32, "r", shape=(subjects, rows, 8))
    np.asarray(plain).sum()  # warm
    numbers = [_RowNumbers(rows)] * subjects
    counts = IdentityCounts(points, 0, 0)
    batches = IdentityBatches(sources, counts, batch, seed=5, ahead=0)
    steps = subjects * min(GROUP_BLOCKS * CHUNK_ROWS, rows) // points // batch + 1  # until a group of each is used up
    shuffler = Shuffler(numbers, 5, BlockCache(numbers, ["surface"], 2**28))  # type: ignore[arg-type]
    taken = []
    for step in range(steps):
        scans, visits = batches._drawn(step)
        each = zip(scans, visits, strict=True)
        picked = [[rows_taken(*one) for one in shuffler.take(s, "surface", v * points, points)] for s, v in each]
        taken.append((scans, [np.concatenate(p) for p in picked]))
    last: dict[str, NDArray] = {}

    def theirs() -> None:
        for scans, picks in taken:
            out = np.empty((batch, points, 8), np.float32)
            for place, (scan, pick) in enumerate(zip(scans, picks, strict=True)):
                out[place] = plain[scan][pick]
        last["plain"] = out

    def ours() -> None:
        fresh = IdentityBatches(sources, counts, batch, seed=5, ahead=0)  # with nothing decoded
        for _ in range(steps):
            made = next(fresh)
        last["own"] = made["surface"]

    rounds = [[cpu_seconds(work, 1) for work in (theirs, ours)] for _ in range(2 if bench.quick else 5)]
    plain_s, own_s = (min(seconds) for seconds in zip(*rounds, strict=True))
    assert np.array_equal(last["own"], last["plain"][..., :3])
    path.unlink()
    shutil.rmtree(store.root)
    return {"read_speed": plain_s / own_s, "read_ms": 1e3 * own_s / steps, "memmap_ms": 1e3 * plain_s / steps}


def rows_taken(block: Mapping[str, NDArray], walk: Walk, count: int) -> NDArray[np.int64]:
    """Numbers of the rows that a walk takes."""
    return np.asarray(block["row"][(walk.row + walk.stride * np.arange(count)) % len(block["row"])])


class _RowNumbers:
    """Tells which rows a loader takes: each column holds the rows' numbers."""

    def __init__(self, rows: int) -> None:
        self._rows = rows

    def rows(self, part: str) -> int:
        return self._rows

    def read(self, part: str, start: int, stop: int) -> dict[str, NDArray]:
        return {"row": np.arange(start, stop)}

    def anchors_mm(self) -> NDArray[np.float32]:
        return np.zeros((1, 3), np.float32)
