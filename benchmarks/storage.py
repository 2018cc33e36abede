#!/usr/bin/env python3
"""Samples and shards: how fast they are made and read, how small they are, and what harm they stand.

    python benchmarks/storage.py [--quick] [--json FILE] [--work DIR] [--rows NAMES] [--store-gb N]

One head of the embedded rig goes through cleaning and registration; the rest is measured on its samples, and on stores
of real arrays with its content over and over. Both sides of a ratio run in one process, on one thread, and are timed by
the processor's seconds. `--quick` makes everything smaller. Finished rows are kept in DIR.
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import itertools
import json
import os
import resource
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # told before NumPy is there: idle threads' waiting would count

import numpy as np
import open3d as o3d
import zarr
from numpy.typing import NDArray

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from pipeline.batches import DeformationBatches, IdentityBatches, IdentityCounts
from pipeline.config import PipelineConfig, preset_config
from pipeline.release_build import build_release
from pipeline.release_verify import verify_release
from pipeline.row_decoding import Walk, decode_rows
from pipeline.sample import run_sample
from pipeline.sample_blocks import GROUP_BLOCKS, block_count
from pipeline.sample_config import SampleConfig
from pipeline.sample_format import COLUMNS, SAMPLES_ROOT, SETS, encode_rows, encode_samples
from pipeline.sample_groups import find_damaged_parents, group_path, put_group, remove_group
from pipeline.sample_sources import SampleSources
from pipeline.samplers import open_samplers
from pipeline.scan_rows import BlockCache, ShardSource, Shuffler
from pipeline.snapshot import take_snapshot
from pipeline.steps import STEPS
from pipeline.workspace import Workspace
from registration.mesh import mesh_from_ply
from storage.errors import NphmError
from storage.manifest import Manifest, Output, commit
from storage.shards import CHUNK_ROWS
from storage.store import LocalStore

GOALS = {
    "sdf_share": ">= 0.7",
    "bytes_surface": "<= 10",
    "bytes_pair": "<= 14",
    "read_speed": ">= 0.5",
    "loader_share": "< 0.03",
    "add_cost": "<= 1.2",
    "peak_mib": "< 1024",
    "kills_equal_of_50": "50",
    "flips_found_of_150": "150",
}
PARTS_READ = ("surface", "near", "space")
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


def measure_sampling(bench: Bench) -> Row:
    """The whole step, from files to committed shards, over Open3D's signed distance at the same points alone.

    Ours reads the meshes, prepares them, draws all sets and the pairs, makes the pictures, quantises, compresses and
    writes; theirs has its scene built beforehand, of the watertight companion, and is given the points as they lie in
    the store.
    """
    workspace = bench.workspace("sampling")
    key, other = keys_of(workspace)
    store = LocalStore(bench.fresh("sampled"))
    sampler = open_samplers(workspace, key).identity
    assert sampler is not None

    def ours() -> list[NDArray]:
        fresh = open_samplers(workspace, key).identity
        assert fresh is not None
        stored: dict[str, NDArray] = {"anchors": fresh.anchors_mm}
        points = []
        for part in PARTS_READ:
            rows = fresh.draw(part, range(block_count(fresh.rows(part)))).rows
            stored |= encode_rows(part, rows, key)
            points.append(rows[part])
        put_group(store, key, encode_samples(stored, {}))
        return points[1:]

    points = np.concatenate(ours())
    companion = mesh_from_ply(workspace.read(workspace.accepted("clean", key), "watertight.ply"))
    frame = json.loads(workspace.read(workspace.accepted("register", key), "frame.json"))
    companion = companion.transformed(np.linalg.inv(frame["T_world_from_head"]))
    scene = o3d.t.geometry.RaycastingScene()
    scene.add_triangles(o3d.core.Tensor(companion.vertices), o3d.core.Tensor(companion.faces.astype(np.uint32)))

    def theirs() -> None:
        scene.compute_signed_distance(o3d.core.Tensor(points), nthreads=1)

    def step() -> None:
        run_sample(workspace, key)

    theirs()
    times = 1 if bench.quick else 3
    rounds = [[cpu_seconds(work, 1) for work in (ours, theirs, step)] for _ in range(times)]  # side by side
    own_s, plain_s, step_s = (min(seconds) for seconds in zip(*rounds, strict=True))
    manifests = {each: run_sample(workspace, each) for each in (key, other)}

    def bytes_of(each: str, prefix: str) -> int:
        return sum(out.bytes for name, out in manifests[each].outputs.items() if name.startswith(prefix))

    drawn = Workspace(workspace.store, with_samples(workspace.config, keep="on_the_fly"), STEPS)
    shard = ShardSource(workspace.store, key, manifests[key].outputs)
    rows = min(GROUP_BLOCKS * CHUNK_ROWS, shard.rows("near"))
    # What is stored stays: the rows are drawn beside it, from the same results.
    mesh = SampleSources(drawn)
    fly_s = cpu_seconds(lambda: mesh.samplers(key), 1)
    group_s = cpu_seconds(lambda: mesh.samplers(key).draw("near", range(block_count(rows))), times)
    return {
        "sdf_share": plain_s / step_s,
        "sdf_share_without_pairs_and_pictures": plain_s / own_s,
        "sdf_points": len(points),
        "sdf_per_second": len(points) / step_s,
        "sdf_plain_per_second": len(points) / plain_s,
        "scan_faces": len(companion.faces),
        "bytes_surface": bytes_of(key, "surface_") / manifests[key].figures["surface_count"],
        "bytes_near": bytes_of(key, "near_") / manifests[key].figures["near_count"],
        "bytes_pair": bytes_of(other, "pair_") / manifests[other].figures["pair_count"],
        "stored_us_per_row": 1e6 * cpu_seconds(lambda: shard.read("near", 0, rows), times) / rows,
        "on_the_fly_us_per_row": 1e6 * group_s / rows,
        "on_the_fly_prepare_s": fly_s,
    }


def with_samples(config: PipelineConfig, **changes: Any) -> PipelineConfig:
    """A configuration whose sample step differs."""
    return config.model_copy(update={"sample": config.sample.model_copy(update=changes)})


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


def rows_taken(block: Mapping[str, NDArray], walk: Walk, count: int) -> NDArray[np.int64]:
    """Numbers of the rows that a walk takes."""
    return np.asarray(block["row"][(walk.row + walk.stride * np.arange(count)) % len(block["row"])])


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


STAGES = ("stage1", "stage2")


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


def source_group(store: LocalStore, key: str, objects: Mapping[str, bytes]) -> Manifest:
    """Put a scan's group and commit it, as the sample step does."""
    outputs: dict[str, bytes | Output] = dict(put_group(store, key, objects))
    plain = Manifest(step="sample", key=key, step_version=0, config_digest="", inputs={}, verdict="accepted")
    return commit(store, f"samples/{key}/report.json", plain, outputs)


def measure_memory(bench: Bench) -> Row:
    """Peak memory of building a big store and of drawing batches from it, each in a process of its own."""
    row: Row = {}
    store = bench.fresh("big")
    bench.workspace("paper")
    for task in ("build", "read"):
        command = [sys.executable, __file__, "--work", str(bench.work), "--store-gb", str(bench.store_gb)]
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


def peak_mib() -> float:
    """The process's peak resident memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


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


def measure_kills(bench: Bench) -> Row:
    """SIGKILL at random moments of the sample step; then everything readable must be whole, and the rerun equal."""
    few = SampleConfig.model_validate(
        {
            "identity": {"surface_points": 20_000, "near_points": 20_000, "space_points": 4000},
            "deformation": {"pairs": 20_000},
        }
    )
    config = preset_config("small").model_copy(update={"sample": few})
    workspace = bench.workspace("kills", config)
    keys = keys_of(workspace)
    (Path(workspace.url) / "few.json").write_text(few.model_dump_json())
    whole_s = 0.0
    with Forker(workspace) as forker:
        for key in (*keys, *keys):  # once to be ready, once to be timed
            begun = time.monotonic()
            forker.finish(key)
            whole_s = max(whole_s if key == keys[0] else 0.0, time.monotonic() - begun)
        want = samples_in(workspace)
        seconds = {}
        for key in keys:
            begun = time.monotonic()
            forker.finish(key)
            seconds[key] = time.monotonic() - begun
        assert samples_in(workspace) == want
        rng = np.random.default_rng(0)
        kills = 5 if bench.quick else 50
        equal = whole = 0
        for turn in range(kills):
            key = keys[turn % 2]
            forker.kill(key, float(rng.uniform(0, 1)) * seconds[key])
            whole += is_whole(workspace)
            forker.finish(key)
            equal += samples_in(workspace) == want
    return {"kills": kills, "kills_equal_of_50": float(equal), "kills_left_whole": whole}


class Forker:
    """Runs the sample step in fresh processes that need not import everything anew."""

    def __init__(self, workspace: Workspace) -> None:
        command = [sys.executable, __file__, "--task", "fork", "--work", workspace.url]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self) -> Forker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def _start(self, key: str) -> int:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(key + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def _end(self) -> int:
        assert self._process.stdout is not None
        return int(self._process.stdout.readline())

    def finish(self, key: str) -> None:
        """Run the step to its end."""
        self._start(key)
        if self._end():
            raise SystemExit(f"the sample step of {key} failed")

    def kill(self, key: str, after_s: float) -> None:
        """Run the step and kill it after a time, unless it has ended."""
        pid = self._start(key)
        time.sleep(after_s)
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
        self._end()


def fork_on_demand(workspace: Workspace) -> None:
    """Read keys from standard input; fork for each, tell the process's id and, when it has ended, its status."""
    for line in sys.stdin:
        child = os.fork()
        if child == 0:
            try:
                run_sample(workspace, line.strip())
            except BaseException as error:  # noqa: BLE001  # told, and then the process is gone
                print(error, file=sys.stderr)
                os._exit(1)
            os._exit(0)
        print(child, flush=True)
        _, status = os.waitpid(child, 0)
        print(status, flush=True)


def samples_in(workspace: Workspace) -> dict[str, str]:
    """Digests of all that the sample step wrote."""
    store = workspace.store
    paths = [path for place in ("samples", SAMPLES_ROOT) for path in store.list(place)]
    return {path: hashlib.sha256(store.get(path)).hexdigest() for path in paths}


def damaged_in(workspace: Workspace) -> list[str]:
    """What `nphm status --every-byte` names."""
    book = take_snapshot(workspace, every_byte=True)
    found = (book.damage(manifest) for manifest in book.manifests.values())
    return [line for line in found if line is not None] + find_damaged_parents(workspace.store)


def is_whole(workspace: Workspace) -> bool:
    """Whether what a manifest or plain Zarr shows is undamaged."""
    damaged = bool(damaged_in(workspace))
    root = Path(workspace.url) / SAMPLES_ROOT
    if (root / "zarr.json").exists():
        for _, subject in zarr.open_group(root, mode="r").groups():
            for _, scan in subject.groups():
                damaged |= any(np.asarray(array[:]).shape != array.shape for _, array in scan.arrays())
    return not damaged


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


MEASURED: Mapping[str, Callable[[Bench], Row]] = {
    "sampling": measure_sampling,
    "reading": measure_reading,
    "loader": measure_loader,
    "adding": measure_adding,
    "memory": measure_memory,
    "kills": measure_kills,
    "flips": measure_flips,
}


def code_digest() -> str:
    """Of the code that the rows depend on."""
    files = [*(ROOT / "storage").glob("*.py"), *(ROOT / "pipeline").glob("*sampl*.py"), Path(__file__)]
    files += [ROOT / "pipeline" / name for name in ("batches.py", "row_decoding.py", "scan_rows.py", "train.py")]
    geometry = ("face_skin.py", "mesh.py", "motion_extension.py", "signed_distance.py", "surface.py")
    files += [ROOT / "registration" / name for name in geometry]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sorted(files))).hexdigest()[:16]


def rows_of(bench: Bench, names: list[str]) -> Iterator[Row]:
    """Each row, measured now or by an earlier run of the same code."""
    for name in names:
        kept = bench.folder / "rows" / f"{name}-{code_digest()}.json"
        if not kept.exists():
            row = MEASURED[name](bench)
            kept.parent.mkdir(parents=True, exist_ok=True)
            kept.write_text(json.dumps(row))
        yield json.loads(kept.read_text())


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", type=Path, default=Path("build/benchmarks"))
    parser.add_argument("--rows", default=",".join(MEASURED), help="which to measure")
    parser.add_argument("--store-gb", type=float, help="size of the big store; 20, or 10 where the disk is short")
    parser.add_argument("--task", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.task == "fork":
        config = preset_config("small")
        few = SampleConfig.model_validate_json((options.work / "few.json").read_text())
        fork_on_demand(Workspace(LocalStore(options.work), config.model_copy(update={"sample": few}), STEPS))
        return
    options.work.mkdir(parents=True, exist_ok=True)
    roomy = shutil.disk_usage(options.work).free > 40e9
    size = options.store_gb or (0.3 if options.quick else 20 if roomy else 10)
    bench = Bench(options.work.absolute(), options.quick, size)
    if options.task:
        print(json.dumps({"build": build_big, "read": read_big}[options.task](bench)))
        return
    bench.folder.mkdir(parents=True, exist_ok=True)
    figures: Row = {}
    for row in rows_of(bench, options.rows.split(",")):
        figures |= row
        for name, value in row.items():
            print(f"{name:<44}{value:>14.4g}   {GOALS.get(name, '')}", flush=True)
    if options.json:
        options.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
