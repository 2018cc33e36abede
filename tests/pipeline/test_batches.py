import threading
from pathlib import Path

import numpy as np
import pytest

from pipeline.batches import DeformationBatches, IdentityBatches, IdentityCounts
from pipeline.row_decoding import decode_rows
from pipeline.sample_blocks import GROUP_BLOCKS
from pipeline.sample_format import (
    SAMPLES_ROOT,
    DeformationSamples,
    IdentitySamples,
    encode_samples,
    quantise_samples,
)
from pipeline.scan_rows import MemorySource, ShardSource
from storage.digest import digest_bytes
from storage.errors import ConfigError
from storage.manifest import Output
from storage.shards import CHUNK_ROWS
from storage.store import LocalStore


def _identity(seed: int, surface: int = 500, near: int = 300, space: int = 70) -> IdentitySamples:
    rng = np.random.default_rng(seed)

    def points(count: int) -> np.ndarray:
        return rng.uniform(-150, 150, (count, 3)).astype(np.float32)

    normal = rng.normal(size=(surface, 3))
    normal /= np.linalg.norm(normal, axis=1, keepdims=True)
    position = points(surface)
    position[:, 0] = np.arange(surface) * 0.01 - 200  # tells rows apart
    return IdentitySamples(
        surface=position,
        normal=normal.astype(np.float32),
        region=rng.integers(0, 8, surface).astype(np.uint8),
        face=rng.random(surface) < 0.5,
        observed=rng.random(surface) < 0.9,
        near=points(near),
        near_sdf=rng.uniform(-30, 30, near).astype(np.float32),
        near_observed=rng.random(near) < 0.9,
        space=points(space),
        space_sdf=rng.uniform(-80, 200, space).astype(np.float32),
        space_observed=rng.random(space) < 0.9,
        anchors=points(39),
    )


def _pairs(seed: int, count: int = 400) -> DeformationSamples:
    rng = np.random.default_rng(seed)
    canonical = rng.uniform(-150, 150, (count, 3)).astype(np.float32)
    return DeformationSamples(
        canonical=canonical,
        posed=canonical + rng.normal(0, 5, (count, 3)).astype(np.float32),
        region=rng.integers(0, 8, count).astype(np.uint8),
        weight=rng.random(count).astype(np.float32),
    )


COUNTS = IdentityCounts(surface=60, near=40, space=10)


def _same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> bool:
    return one.keys() == other.keys() and all(np.array_equal(one[name], other[name]) for name in one)


def test_a_batch_holds_what_the_samples_say_within_the_stated_bounds() -> None:
    samples = [_identity(seed) for seed in range(3)]
    batch = next(IdentityBatches.in_memory(samples, counts=COUNTS, batch=5, seed=1))
    assert batch["surface"].shape == (5, 60, 3)
    assert batch["near_sdf"].shape == (5, 40)
    assert batch["space"].shape == (5, 10, 3)
    for b, subject in enumerate(batch["subject"]):
        source = samples[subject]
        row = np.round((batch["surface"][b, :, 0] + 200) / 0.01).astype(int)
        assert len(set(row)) == 60
        assert np.abs(batch["surface"][b] - source.surface[row]).max() < 0.00505
        cosine = (batch["normal"][b] * source.normal[row]).sum(1)
        assert np.degrees(np.arccos(cosine.clip(-1, 1))).max() < 0.7
        assert np.array_equal(batch["region"][b], source.region[row])
        assert np.array_equal(batch["face"][b], source.face[row])
        assert np.array_equal(batch["observed"][b], source.observed[row])
        nearest = np.abs(batch["near"][b][:, None] - source.near[None]).max(2)
        assert nearest.min(1).max() < 0.00505
        assert np.abs(batch["near_sdf"][b] - source.near_sdf[nearest.argmin(1)]).max() < 0.0026
        assert np.array_equal(batch["anchors"][b], source.anchors)


def test_pairs_come_back_within_half_a_step() -> None:
    samples = [_pairs(seed) for seed in range(4)]
    batch = next(DeformationBatches.in_memory(samples, [0, 0, 1, 1], count=50, batch=4, seed=2))
    assert sorted(batch["scan"]) == [0, 1, 2, 3]
    assert np.array_equal(batch["subject"], batch["scan"] // 2)
    for b, scan in enumerate(batch["scan"]):
        distance = np.abs(batch["canonical"][b][:, None] - samples[scan].canonical[None]).max(2)
        row = distance.argmin(1)
        assert distance.min(1).max() < 0.00505
        assert np.abs(batch["posed"][b] - samples[scan].posed[row]).max() < 0.00507
        assert np.abs(batch["weight"][b] - samples[scan].weight[row]).max() < 0.002


def test_each_pass_shows_every_row_once_and_in_another_order() -> None:
    rows = 2 * CHUNK_ROWS + 300
    batches = IdentityBatches.in_memory(
        [_identity(0, rows, 1, 1)], counts=IdentityCounts(rows // 4, 0, 0), batch=1, seed=3, ahead=0
    )
    passes = []
    for _ in range(2):
        seen = np.concatenate([next(batches)["surface"][0, :, 0] for _ in range(4)])
        passes.append(np.round((seen.astype(float) + 200) / 0.01).astype(int))
    assert np.array_equal(np.sort(passes[0]), np.arange(rows))
    assert np.array_equal(np.sort(passes[1]), np.arange(rows))
    assert (passes[0] == passes[1]).mean() < 0.01


def test_each_epoch_shows_every_subject_once_in_a_new_order() -> None:
    batches = IdentityBatches.in_memory([_identity(s) for s in range(8)], counts=COUNTS, batch=4, seed=5)
    epochs = [np.concatenate([next(batches)["subject"] for _ in range(2)]) for _ in range(3)]
    assert all(np.array_equal(np.sort(epoch), np.arange(8)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


@pytest.mark.parametrize("ahead", [0, 3])
def test_a_restored_loader_goes_on_bit_for_bit_in_mid_epoch(ahead: int) -> None:
    samples = [_identity(s) for s in range(5)]

    def make() -> IdentityBatches:
        return IdentityBatches.in_memory(samples, counts=COUNTS, batch=2, seed=6, ahead=ahead)

    with make() as first:
        told = [next(first) for _ in range(9)]
    with make() as other:
        for _ in range(4):
            next(other)
        state = other.state()
    with make() as resumed:
        next(resumed)
        resumed.restore(state)
        assert all(_same(next(resumed), told[step]) for step in range(4, 9))
    with IdentityBatches.in_memory(samples, counts=COUNTS, batch=2, seed=7) as another:
        assert not _same(next(another), told[0])
        with pytest.raises(ConfigError, match="of other batches"):
            another.restore(state)


def test_shards_give_the_batches_that_memory_gives_in_bounded_memory(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    samples = [_identity(s, CHUNK_ROWS + 500) for s in range(3)]
    sources = []
    for number, one in enumerate(samples):
        stored = quantise_samples(one, "test")
        rows = {part: MemorySource(one).rows(part) for part in ("surface", "near", "space", "pairs")}
        files = {}
        for path, data in encode_samples(stored, {"rows": rows}).items():
            place = f"{SAMPLES_ROOT}/00{number}/neutral/{path}"
            store.put(place, data)
            files[path] = Output(path=place, bytes=len(data), sha256=digest_bytes(data))
        sources.append(ShardSource(store, f"00{number}/neutral", files))
    with (
        IdentityBatches(sources, COUNTS, batch=2, seed=1, cache_mib=0) as stored_batches,
        IdentityBatches.in_memory(samples, counts=COUNTS, batch=2, seed=1) as memory_batches,
    ):
        assert all(_same(next(stored_batches), next(memory_batches)) for _ in range(6))


def test_batches_are_prepared_in_the_thread_that_reads_ahead() -> None:
    told = []

    def prepare(batch: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        told.append(threading.current_thread().name)
        return {name: column.copy() for name, column in batch.items()}

    samples = [_identity(0)]
    with IdentityBatches.in_memory(samples, counts=COUNTS, batch=1, prepare=prepare) as batches:
        prepared = next(batches)
    assert _same(prepared, next(IdentityBatches.in_memory(samples, counts=COUNTS, batch=1)))
    assert all(name.startswith("batches") for name in told)


def test_a_pass_goes_through_every_group_of_blocks_and_jumps_anywhere() -> None:
    rows = (2 * GROUP_BLOCKS + 3) * CHUNK_ROWS + 41
    samples = [_identity(0, 1, rows, 1)]
    whole = IdentityBatches.in_memory(samples, counts=IdentityCounts(0, rows, 0), batch=1, seed=3, ahead=0)
    seen = next(whole)["near"][0]
    stored = decode_rows("near", MemorySource(*samples).read("near", 0, rows))["near"]
    assert np.array_equal(np.sort(seen, axis=0), np.sort(stored, axis=0))
    parts = IdentityBatches.in_memory(samples, counts=IdentityCounts(0, 10_007, 0), batch=1, seed=3, ahead=0)
    for step in (11, 3, 0):
        assert np.array_equal(parts.batch_at(step)["near"][0], seen[step * 10_007 : (step + 1) * 10_007])


def test_nothing_to_draw_from_is_said() -> None:
    with pytest.raises(ConfigError, match="no scan to draw batches from"):
        IdentityBatches.in_memory([])
    with pytest.raises(ConfigError, match="scan 1 of 2: has no pairs samples"):
        DeformationBatches.in_memory([_pairs(0), _pairs(1, 0)], [0, 1])
