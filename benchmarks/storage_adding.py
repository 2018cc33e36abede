"""What adding a subject costs, to a small store and to a big one."""

from __future__ import annotations

import shutil
import statistics
import time

from benchmarks.storage_bench import Bench, Row, group_of, simulated, source_group
from pipeline.sample_format import SAMPLES_ROOT
from pipeline.sample_groups import group_path, remove_group
from storage.store import LocalStore


def measure_adding(bench: Bench) -> Row:
    """Adding a subject to a store of many, over adding it to a store of few."""
    sizes = (5, 50) if bench.quick else (5, 500)
    stored = simulated(bench, 20_000)
    objects = group_of(stored, 0)
    stores = {}
    for size in sizes:
        store = LocalStore(bench.fresh(f"adding-{size}"))
        first = source_group(store, "0000/neutral", objects)
        for subject in range(1, size):
            key = f"{subject:04d}/neutral"
            shutil.copytree(store.root / group_path("0000/neutral"), store.root / group_path(key))
            parent = store.root / SAMPLES_ROOT
            shutil.copy(parent / "0000/zarr.json", parent / f"{subject:04d}/zarr.json")
            shutil.copytree(store.root / "samples/0000/neutral", store.root / f"samples/{key}")
        stores[size] = (store, first)
    spent: dict[int, list[float]] = {size: [] for size in sizes}
    for turn in range(4 if bench.quick else 12):
        fresh = group_of(stored, 1 + turn)
        for size in sizes if turn % 2 else sizes[::-1]:
            store = stores[size][0]
            begun = time.process_time()
            source_group(store, "9999/neutral", fresh)
            spent[size].append(time.process_time() - begun)
            store.delete("samples/9999/neutral/report.json")
            remove_group(store, "9999/neutral")
    for size in sizes:
        shutil.rmtree(stores[size][0].root)
    few, many = (statistics.median(spent[size][1:]) for size in sizes)
    return {"add_cost": many / few, "add_few_ms": 1e3 * few, "add_many_ms": 1e3 * many}
