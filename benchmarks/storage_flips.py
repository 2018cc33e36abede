"""Flipped bytes in stores, releases and checkpoints: is each found and named, and never read as data?"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.storage_bench import Bench, Row, damaged_in, keys_of
from pipeline.config import preset_config
from pipeline.release_build import build_release
from pipeline.release_verify import verify_release
from pipeline.sample import run_sample
from pipeline.sample_format import COLUMNS, SAMPLES_ROOT, SETS
from pipeline.sample_groups import group_path
from pipeline.scan_rows import ShardSource
from storage.errors import NphmError
from storage.manifest import Manifest
from storage.store import LocalStore


def measure_flips(bench: Bench) -> Row:
    """One flipped byte in random files of a release, a store and a checkpoint: found, named, never read as data."""
    from model.checkpoint import encode
    from model.trained_model import new_model  # noqa: F401  # torch is there
    from pipeline.checkpoints import Checkpoints

    workspace = bench.workspace("flips", preset_config("demo"))
    keys = keys_of(workspace)
    manifests = {key: run_sample(workspace, key) for key in keys}
    turns = 10 if bench.quick else 50
    rng = np.random.default_rng(1)
    store = workspace.store

    def group_found(path: str) -> bool:
        lines = damaged_in(workspace)
        named = len(lines) == 1 and lines[0].startswith(path)
        key = next((key for key in keys if path.startswith(group_path(key) + "/")), None)
        return named and (key is None or refused(lambda: read_everything(store, manifests[key]), path))

    found = {"store": flip(store, store.list(SAMPLES_ROOT), turns, rng, group_found)}
    release = LocalStore(bench.fresh("release"))
    build_release(workspace, "1.0.0", release, parts=("registrations", "samples"))
    assert verify_release(release).faults == ()
    found["release"] = flip(
        release, release.list(), turns, rng, lambda path: any(path in line for line in verify_release(release).faults)
    )
    kept = Checkpoints(LocalStore(bench.fresh("checkpoints")), "demo", "0" * 64)
    import torch

    for step in range(2):
        kept.save(f"stage1-{step:07d}.safetensors", encode({"weight": torch.randn(30_000)}, {"curve": []}))
    newest = [path for path in kept._store.list() if path.endswith(".safetensors")][-1:]
    found["checkpoint"] = flip(kept._store, newest, turns, rng, lambda path: refused(kept.newest, path))
    row = {f"flips_found_{name}_of_{turns}": float(count) for name, count in found.items()}
    return row | {"flips_found_of_150": float(sum(found.values()))}


def flip(store: Any, paths: list[str], turns: int, rng: np.random.Generator, found: Callable[[str], bool]) -> int:
    """Flip a bit of a byte of a random file, in place, so many times; count how often that is found."""
    count = 0
    for _ in range(turns):
        path = paths[int(rng.integers(len(paths)))]
        file = Path(store.url) / path
        whole = file.read_bytes()
        place = int(rng.integers(len(whole)))
        stat = file.stat()
        with file.open("r+b") as open_:
            open_.seek(place)
            open_.write(bytes([whole[place] ^ (1 << int(rng.integers(8)))]))
        os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # as a failing disk does it
        if found(path):
            count += 1
        else:
            print("not found:", path, place)
        file.write_bytes(whole)
    return count


def refused(read: Callable[[], Any], path: str) -> bool:
    """Whether reading ends in an error that names the file."""
    try:
        read()
    except NphmError as error:
        return path in str(error)
    return False


def read_everything(store: LocalStore, manifest: Manifest) -> None:
    """Read a scan's group as a loader would."""
    source = ShardSource(store, manifest.key, manifest.outputs)
    for part, columns in SETS.items():
        if source.rows(part):
            assert set(source.read(part, 0, source.rows(part))) == set(columns) <= set(COLUMNS)
    if source.rows("surface"):
        source.anchors_mm()
