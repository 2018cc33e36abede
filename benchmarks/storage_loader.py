"""What share of a training the loader takes."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.storage_bench import Bench, Row, group_of, simulated, source_of
from pipeline.batches import DeformationBatches, IdentityBatches, IdentityCounts
from pipeline.config import preset_config
from storage.store import LocalStore

STAGES = ("stage1", "stage2")


def measure_loader(bench: Bench) -> Row:
    """The loader's processor seconds over those of the `small` training that it feeds."""
    from model.training import TrainingData, train

    subjects, rows, steps = (8, 20_000, 10) if bench.quick else (24, 150_000, 60)
    stored = simulated(bench, rows)
    store = LocalStore(bench.fresh("loader"))
    sources = [source_of(store, subject, group_of(stored, subject)) for subject in range(subjects)]
    config = preset_config("small").train
    template = bench.workspace().template()
    row: Row = {}
    counts = IdentityCounts(config.surface_points, config.near_points, config.space_points)
    identity = IdentityBatches(sources, counts, config.subjects_per_step, seed=1)
    deformation = DeformationBatches(sources, range(subjects), config.pair_points, config.scans_per_step, seed=2)
    with identity, deformation:
        timed = (_Timed(identity), _Timed(deformation))
        data = TrainingData(
            timed[0], timed[1], subjects, subjects, identity.anchors_mm.mean(0, dtype=np.float64), template.anchor_pairs
        )
        marks: list[tuple[str, float, float]] = [("", time.process_time(), time.perf_counter())]

        def progress(stage: str, done: int, of: int) -> None:
            marks.append((stage, time.process_time(), time.perf_counter()))

        stages = {name: getattr(config.training, name).model_copy(update={"steps": steps}) for name in STAGES}
        train(config.training.model_copy(update=stages), data, lambda name, data: None, progress=progress)
    for stage, loader in zip(STAGES, timed, strict=True):
        own = [mark for mark in marks if mark[0] == stage]
        cpu_s, wall_s = own[-1][1] - own[0][1], own[-1][2] - own[0][2]
        row[f"{stage}_step_cpu_ms"] = 1e3 * cpu_s / (len(own) - 1)
        row[f"{stage}_loader_cpu_ms"] = 1e3 * loader.cpu_s / steps
        row[f"{stage}_waited_share"] = loader.waited_s / wall_s
        row[f"{stage}_loader_share"] = row[f"{stage}_loader_cpu_ms"] / row[f"{stage}_step_cpu_ms"]
    row["loader_share"] = max(row[f"{stage}_loader_share"] for stage in STAGES)
    shutil.rmtree(store.root)
    return row


class _Timed:
    """Batches whose making is timed, in whatever thread it happens, and waiting for them too."""

    def __init__(self, batches: IdentityBatches | DeformationBatches) -> None:
        self._batches, self._make = batches, batches.batch_at
        batches.batch_at = self._timed  # type: ignore[method-assign]
        self.cpu_s = self.waited_s = 0.0

    def _timed(self, step: int) -> dict[str, NDArray]:
        begun = time.thread_time()
        made = self._make(step)
        self.cpu_s += time.thread_time() - begun
        return made

    def __next__(self) -> dict[str, NDArray]:
        begun = time.perf_counter()
        batch = next(self._batches)
        self.waited_s += time.perf_counter() - begun
        return batch

    def state(self) -> dict[str, Any]:
        return self._batches.state()

    def restore(self, state: Mapping[str, Any]) -> None:
        self._batches.restore(state)
