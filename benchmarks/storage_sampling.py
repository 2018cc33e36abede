"""How fast a scan is sampled, beside Open3D's signed distance alone, and how small the samples are."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import open3d as o3d
from numpy.typing import NDArray

from benchmarks.storage_bench import Bench, Row, cpu_seconds, keys_of
from pipeline.config import PipelineConfig
from pipeline.sample import run_sample
from pipeline.sample_blocks import GROUP_BLOCKS, block_count
from pipeline.sample_format import encode_rows, encode_samples
from pipeline.sample_groups import put_group
from pipeline.sample_sources import SampleSources
from pipeline.samplers import open_samplers
from pipeline.scan_rows import ShardSource
from pipeline.steps import STEPS
from pipeline.workspace import Workspace
from registration.mesh import mesh_from_ply
from storage.shards import CHUNK_ROWS
from storage.store import LocalStore

PARTS_READ = ("surface", "near", "space")


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
