"""Peak memory of building a big store and of reading from it."""

from __future__ import annotations

import itertools
import json
import os
import shutil
import subprocess
import sys
import time

from benchmarks.storage_bench import COMMAND, Bench, Row, group_of, keys_of, peak_mib, source_group
from pipeline.batches import DeformationBatches, IdentityBatches, IdentityCounts
from pipeline.config import preset_config
from pipeline.sample import run_sample
from pipeline.sample_format import SETS
from pipeline.scan_rows import ShardSource
from pipeline.steps import STEPS
from pipeline.workspace import Workspace
from storage.manifest import Manifest
from storage.store import LocalStore


def measure_memory(bench: Bench) -> Row:
    """Peak memory of building a big store and of drawing batches from it, each in a process of its own."""
    row: Row = {}
    store = bench.fresh("big")
    bench.workspace("paper")
    for task in ("build", "read"):
        command = [sys.executable, COMMAND, "--work", str(bench.work), "--store-gb", str(bench.store_gb)]
        told = subprocess.run(
            [*command, "--task", task, *(["--quick"] if bench.quick else [])],
            check=True,
            capture_output=True,
            text=True,
        )
        row |= json.loads(told.stdout.splitlines()[-1])
    shutil.rmtree(store)
    row["peak_mib"] = max(row["build_peak_mib"], row["read_peak_mib"])
    return row


def build_big(bench: Bench) -> Row:
    """Sample one scan with the sizes of `paper`, then put groups of that size until the store is big enough."""
    paper = preset_config("paper").sample
    workspace = Workspace(LocalStore(bench.folder / "paper"), preset_config("paper"), STEPS)
    if bench.quick:
        workspace = Workspace(workspace.store, preset_config("small"), STEPS)
        paper = preset_config("small").sample
    key, _ = keys_of(workspace)
    manifest = run_sample(workspace, key)
    sampled_mib = peak_mib()
    scan = ShardSource(workspace.store, key, manifest.outputs)
    held = [part for part in SETS if scan.rows(part)]
    stored = {name: c for part in held for name, c in scan.read(part, 0, scan.rows(part)).items()}
    stored["anchors"] = scan.anchors_mm()
    store = LocalStore(bench.folder / "big")
    os.fsync = lambda handle: None  # type: ignore[assignment]  # ten gigabytes of waiting for the disk tell nothing
    total, manifests, objects = 0, 0, {}
    for subject in itertools.count():
        if total >= bench.store_gb * 1e9:
            break
        if subject % 4 == 0:  # three of four groups are put as the one before, to spare the processor
            objects = group_of(stored, subject)
        source_group(store, f"{subject:04d}/neutral", objects)
        total += sum(map(len, objects.values()))
        manifests += 1
    assert paper.identity.surface_points == scan.rows("surface")
    row = {"build_peak_mib": peak_mib(), "sample_peak_mib": sampled_mib, "store_gb": total / 1e9}
    return row | {"store_subjects": float(manifests), "build_cpu_s": time.process_time()}


def read_big(bench: Bench) -> Row:
    """Draw batches of `paper`'s size from all subjects."""
    store = LocalStore(bench.folder / "big")
    sources = []
    for path in store.list("samples"):
        manifest = Manifest.model_validate_json(store.get(path))
        sources.append(ShardSource(store, manifest.key, manifest.outputs))
    opened_mib = peak_mib()
    counts = IdentityCounts(800, 800, 93)
    pairs = DeformationBatches(sources, range(len(sources)), 1000, 32, seed=1)
    steps = 20 if bench.quick else 300
    with IdentityBatches(sources, counts, 32, seed=0) as identity, pairs:
        for _ in range(steps):
            next(identity)
            next(pairs)
    return {"read_peak_mib": peak_mib(), "read_opened_mib": opened_mib, "read_batches": 2.0 * steps}
