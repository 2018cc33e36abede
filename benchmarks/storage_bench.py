"""What the rows of the storage benchmark share: a workspace of real scans, groups of real samples, seconds."""

from __future__ import annotations

import resource
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.config import PipelineConfig, preset_config
from pipeline.sample_blocks import block_count
from pipeline.sample_format import SETS, encode_rows, encode_samples
from pipeline.sample_groups import find_damaged_parents, put_group
from pipeline.samplers import open_samplers
from pipeline.scan_rows import ShardSource
from pipeline.snapshot import take_snapshot
from pipeline.steps import STEPS
from pipeline.workspace import Workspace
from storage.manifest import Manifest, Output, commit
from storage.store import LocalStore

ROOT = Path(__file__).resolve().parents[1]
COMMAND = ROOT / "benchmarks" / "storage.py"
Row = dict[str, float]


@dataclass(frozen=True)
class Bench:
    """Where the benchmark works, and how much it does."""

    work: Path
    quick: bool
    store_gb: float

    @property
    def folder(self) -> Path:
        """For what this benchmark alone keeps."""
        return self.work / ("storage-quick" if self.quick else "storage")

    def fresh(self, name: str) -> Path:
        """An empty folder."""
        folder = self.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    def workspace(self, name: str = "heads", config: PipelineConfig | None = None) -> Workspace:
        """A workspace with one registered subject in two expressions; another name is a copy without samples."""
        made = self.folder / "heads"
        if not (made / "done").exists():
            captures = self.folder / "captures"
            shutil.rmtree(made, ignore_errors=True)
            nphm("simulate", captures, "--subjects", "1", "--expressions", "2")
            nphm("init", made, "--preset", "demo")
            nphm("ingest", captures / "session", "-w", made)
            nphm("run", "-w", made, "--until", "register")
            (made / "done").touch()
        folder = made
        if name != "heads":
            folder = self.fresh(name)
            shutil.copytree(made, folder, dirs_exist_ok=True)
            for left in ("samples", "samples.zarr"):
                shutil.rmtree(folder / left, ignore_errors=True)
        return Workspace(LocalStore(folder), config or preset_config("small"), STEPS)


def nphm(*words: str | Path) -> None:
    """Run a command to its end."""
    subprocess.run([sys.executable, "-m", "flows", *map(str, words)], check=True, cwd=ROOT, stdout=subprocess.DEVNULL)


def keys_of(workspace: Workspace) -> tuple[str, str]:
    """The canonical scan and another one."""
    keys = workspace.scans()
    canonical = workspace.canonical_key(keys[0].partition("/")[0])
    assert canonical is not None
    return canonical, next(key for key in keys if key != canonical)


def cpu_seconds(work: Callable[[], Any], times: int) -> float:
    """The least processor seconds of some calls."""
    found = []
    for _ in range(times):
        begun = time.process_time()
        work()
        found.append(time.process_time() - begun)
    return min(found)


def peak_mib() -> float:
    """The process's peak resident memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def simulated(bench: Bench, rows: int) -> dict[str, NDArray]:
    """Stored values of a canonical scan's sets, by column: real samples, repeated to ``rows`` rows of each set."""
    workspace = bench.workspace("simulated")
    key, _ = keys_of(workspace)
    samplers = open_samplers(workspace, key)
    assert samplers.identity is not None
    stored: dict[str, NDArray] = {"anchors": samplers.identity.anchors_mm}
    for part in samplers.parts():
        count = min(rows, samplers.rows(part))
        raw = encode_rows(part, samplers.draw(part, range(block_count(count))).rows, key)
        stored |= {name: np.resize(column, (rows, *column.shape[1:])) for name, column in raw.items()}
    return stored


def group_of(stored: Mapping[str, NDArray], subject: int) -> dict[str, bytes]:
    """A subject's group: the same rows begun elsewhere."""
    moved = {n: c if n == "anchors" else np.roll(c, 977 * subject, axis=0) for n, c in stored.items()}
    rows = {part: len(moved[columns[0]]) for part, columns in SETS.items() if columns[0] in moved}
    return encode_samples(moved, {"rows": rows})


def source_of(store: LocalStore, subject: int, objects: Mapping[str, bytes]) -> ShardSource:
    """Put a subject's group and open it."""
    key = f"{subject:04d}/neutral"
    return ShardSource(store, key, put_group(store, key, objects))


def source_group(store: LocalStore, key: str, objects: Mapping[str, bytes]) -> Manifest:
    """Put a scan's group and commit it, as the sample step does."""
    outputs: dict[str, bytes | Output] = dict(put_group(store, key, objects))
    plain = Manifest(step="sample", key=key, step_version=0, config_digest="", inputs={}, verdict="accepted")
    return commit(store, f"samples/{key}/report.json", plain, outputs)


def damaged_in(workspace: Workspace) -> list[str]:
    """What `nphm status --every-byte` names."""
    book = take_snapshot(workspace, every_byte=True)
    found = (book.damage(manifest) for manifest in book.manifests.values())
    return [line for line in found if line is not None] + find_damaged_parents(workspace.store)
