"""The sample step on round heads, whose distances and motions are known."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import open3d as o3d
import pytest
import zarr

from pipeline.batches import DeformationBatches, IdentityBatches, IdentityCounts
from pipeline.config import PipelineConfig
from pipeline.deformation_samples import sample_deformation
from pipeline.identity_samples import sample_identity
from pipeline.sample import run_sample
from pipeline.sample_config import (
    STEP_VERSION,
    DeformationSampleConfig,
    IdentitySampleConfig,
    RegionDensity,
    SampleConfig,
    SampleThresholds,
    judge_sample,
)
from pipeline.scan_rows import ShardSource
from pipeline.stepspec import Need, StepSpec
from pipeline.workspace import Workspace
from registration.mesh import Mesh, mesh_to_ply, transform_points
from registration.scan_regions import find_scan_regions
from registration.template import REGIONS, Template
from storage.errors import StorageConflict
from storage.store import LocalStore, Store

RADIUS_MM = 90.0
PLANE = np.array([0.0, 1.0, 0.0, 60.0])
SMALL = IdentitySampleConfig(surface_points=4000, near_points=4000, space_points=2000)
FEW_PAIRS = DeformationSampleConfig(pairs=4000)


@cache
def _ball(resolution: int = 40) -> Mesh:
    mesh = o3d.geometry.TriangleMesh.create_sphere(RADIUS_MM, resolution)
    return Mesh.of(np.asarray(mesh.vertices), np.asarray(mesh.triangles))


@cache
def _template() -> Template:
    """A ball with a face in front, a neck below, ears aside and scalp elsewhere."""
    mesh = _ball(20)
    x, y, z = mesh.vertices.T / RADIUS_MM
    regions = np.full(len(x), REGIONS.index("scalp"), np.uint8)
    regions[np.abs(x) > 0.9] = REGIONS.index("ears")
    regions[z > 0.5] = REGIONS.index("face")
    regions[y < -0.5] = REGIONS.index("neck")
    n = len(x)
    landmarks = np.full(68, int(np.argmax(z)), np.int32)
    landmarks[17:27] = int(np.argmax(np.where(z > 0.6, y, -1)))
    empty = np.zeros((0, n, 3), np.float32)
    return Template(
        "ball", mesh, landmarks, np.arange(5, dtype=np.int32), 2, regions, regions == REGIONS.index("face"),
        np.arange(n, dtype=np.int32), np.array([0, 1, 2], np.int32), empty, empty,
    )  # fmt: skip


def _somewhere() -> np.ndarray:
    """A rigid motion."""
    c, s = np.cos(0.7), np.sin(0.7)
    T = np.eye(4)
    T[:3, :3] = [[c, 0, s], [0, 1, 0], [-s, 0, c]]
    T[:3, 3] = (120, -40, 300)
    return T


def _scanned() -> tuple[Mesh, Mesh]:
    """A ball with a hole at the back, in the world, and its companion."""
    ball = _ball()
    world = ball.with_vertices(transform_points(_somewhere(), ball.vertices))
    hole = (ball.vertices[:, 2] < -70) & (ball.vertices[:, 1] > -30)
    companion = Mesh.of(world.vertices, world.faces, guessed=hole.astype(np.uint8))
    return world.select_vertices(~hole), companion


def _registered(vertices: np.ndarray | None = None) -> Mesh:
    mesh = _template().mesh
    count = len(mesh.vertices)
    observed = (mesh.vertices[:, 2] > -70).astype(np.uint8)
    residual = np.where(observed, 0.1, np.nan).astype(np.float32)
    assert len(observed) == count
    return Mesh.of(mesh.vertices if vertices is None else vertices, mesh.faces, observed=observed, residual_mm=residual)


def _identity(seed: int = 0, config: IdentitySampleConfig = SMALL) -> Any:
    scan, companion = _scanned()
    return sample_identity(scan, companion, _registered(), _template(), PLANE, _somewhere(), config, seed)


def test_identity_samples_lie_in_the_head_frame_with_exact_distances() -> None:
    made = _identity()
    samples = made.samples
    assert np.abs(np.linalg.norm(samples.surface, axis=1) - RADIUS_MM).max() < 0.6
    outward = samples.surface / np.linalg.norm(samples.surface, axis=1, keepdims=True)
    assert (samples.normal * outward).sum(1).min() > 0.995
    for points, sdf in ((samples.near, samples.near_sdf), (samples.space, samples.space_sdf)):
        assert np.abs(sdf - (np.linalg.norm(points, axis=1) - RADIUS_MM)).max() < 2.5  # the hole's rim
        assert np.percentile(np.abs(sdf - (np.linalg.norm(points, axis=1) - RADIUS_MM)), 95) < 0.5
        assert (points[:, 1] >= -60).all()
    assert not samples.space_observed[np.linalg.norm(samples.space - (0, 20, -130), axis=1) < 25].any()
    assert samples.space_observed[samples.space[:, 2] > 100].all()
    assert np.array_equal(samples.anchors, _template().mesh.vertices[:5])
    assert made.figures["near_disputed_share"] < 0.01
    assert made.figures["surface_count"] == len(samples.surface) > 3500


def test_the_spreads_are_those_asked_for() -> None:
    sdf = _identity().samples.near_sdf
    assert 1.0 < np.percentile(np.abs(sdf), 30) < 2.6
    assert 8.0 < np.percentile(np.abs(sdf), 83) < 13.0


def test_regions_get_their_density() -> None:
    dense = SMALL.model_copy(update={"density": RegionDensity(face=8)})
    plain, more = _identity().samples, _identity(config=dense).samples
    assert 1.15 < more.face.mean() / plain.face.mean() < 2.1
    assert set(np.unique(plain.region)) == {REGIONS.index(name) for name in ("face", "scalp", "ears", "neck")}


def test_rows_are_in_random_order() -> None:
    samples = _identity().samples
    blocks = samples.near_sdf[: len(samples.near_sdf) // 4 * 4].reshape(4, -1)
    assert np.ptp(np.abs(blocks).mean(1)) < 0.15 * np.abs(blocks).mean()
    blocks = samples.surface[: len(samples.surface) // 4 * 4].reshape(4, -1, 3)
    assert np.ptp(blocks.mean(1), axis=0).max() < 12


def test_the_seed_alone_decides() -> None:
    one, same, other = _identity(3).samples, _identity(3).samples, _identity(4).samples
    assert all(np.array_equal(getattr(one, name), getattr(same, name)) for name in vars(one))
    assert not np.array_equal(one.near, other.near)


def test_what_stands_out_is_hair_or_worn() -> None:
    points = np.array([[0, 110, 0], [0, 90, 0], [0, 20, 105], [0, 0, 90]], np.float32)
    found = find_scan_regions(points, _registered(), _template(), standoff_mm=4.0)
    assert [REGIONS[code] for code in found.region] == ["hair", "scalp", "worn", "face"]
    assert found.face.tolist() == [False, False, False, True]
    assert np.abs(found.standoff_mm - (20, 0, 17, 0)).max() < 1.5


def test_pairs_follow_a_known_motion() -> None:
    stretched = _template().mesh.vertices * (1.1, 1.0, 1.0)
    made = sample_deformation(_registered(), _registered(stretched), _template(), PLANE, FEW_PAIRS, seed=1)
    samples = made.samples
    height = np.linalg.norm(samples.canonical, axis=1) - RADIUS_MM
    close = np.abs(height) < 8
    want = samples.canonical * (1.1, 1.0, 1.0)
    assert np.abs(samples.posed - want)[close].max() < 1.5
    assert np.median(np.abs(samples.posed - want)[close]) < 0.2
    hair = samples.region == REGIONS.index("hair")
    assert hair.sum() > 50
    assert 30 < height[hair].max() < 41
    assert (samples.canonical[:, 1] >= -60).all()
    assert samples.weight.max() <= 1
    assert samples.weight[close & (samples.canonical[:, 2] < -85)].max() < 0.4
    assert samples.weight[close & (samples.canonical[:, 2] > 60)].max() > 0.9


def test_the_canonical_scan_does_not_move() -> None:
    samples = sample_deformation(_registered(), _registered(), _template(), PLANE, FEW_PAIRS, seed=2).samples
    assert np.array_equal(samples.canonical, samples.posed)


def test_a_rigid_motion_is_carried_everywhere() -> None:
    moved = _template().mesh.vertices + np.array([3.0, -2.0, 1.0])
    samples = sample_deformation(_registered(), _registered(moved), _template(), PLANE, FEW_PAIRS, seed=2).samples
    assert np.abs(samples.posed - samples.canonical - (3, -2, 1)).max() < 1e-3


def test_verdicts_name_value_and_limit() -> None:
    thresholds = SampleThresholds()
    assert judge_sample(_identity().figures, thresholds) == []
    bad = {"near_disputed_share": 0.2, "face_observed_share": 0.1, "pair_weight_mean": 0.01}
    reasons = judge_sample(bad, thresholds)
    assert len(reasons) == 3
    assert reasons[0] == "inside and outside are disputed for 20.0% of the near points, limit 10.0%"


def _unused(workspace: Workspace, key: str) -> Any:
    raise AssertionError


def _workspace(root: Path) -> Workspace:
    def spec(name: str, folder: str) -> StepSpec:
        return StepSpec(name, folder, 1, _unused, lambda figures, thresholds: [])

    needs = (Need("register"), Need("clean"), Need("register", "canonical"))
    sample = StepSpec("sample", "samples", STEP_VERSION, run_sample, judge_sample, needs=needs, uses_template=True)
    steps = [spec("ingest", "ingest"), spec("clean", "clean"), spec("register", "registrations"), sample]
    store = LocalStore(root)
    store.put("template.npz", _template().to_bytes())
    workspace = Workspace(
        store,
        PipelineConfig(sample=SampleConfig(identity=SMALL, deformation=FEW_PAIRS)),
        {one.name: one for one in steps},
    )
    scan, companion = _scanned()
    frame = json.dumps({"T_world_from_head": _somewhere().tolist(), "throat_plane": PLANE.tolist()}).encode()
    smile = _template().mesh.vertices * (1.05, 1, 1)
    for expression, mesh in (("neutral", _registered()), ("smile", _registered(smile))):
        key = f"001/{expression}"
        told = {"canonical_expression": "neutral", "content_digest": "0"}
        workspace.commit("ingest", key, inputs={}, outputs={"taken.json": b"{}"}, extra=told)
        meshes = {"mesh.ply": mesh_to_ply(scan), "watertight.ply": mesh_to_ply(companion)}
        workspace.commit("clean", key, inputs={}, outputs=meshes)
        registration = {"mesh.ply": mesh_to_ply(mesh), "frame.json": frame}
        workspace.commit("register", key, inputs={}, outputs=registration)
    return workspace


def _bytes(root: Path) -> dict[str, bytes]:
    return {str(f.relative_to(root)): f.read_bytes() for f in sorted(root.rglob("*")) if f.is_file()}


def test_the_step_publishes_a_group_that_the_loader_and_plain_zarr_read(tmp_path: Path) -> None:
    workspace = _workspace(tmp_path / "one")
    manifests = {key: run_sample(workspace, key) for key in ("001/smile", "001/neutral")}
    assert all(manifest.accepted for manifest in manifests.values())
    for manifest in manifests.values():
        for output in manifest.outputs.values():
            assert len(workspace.store.get(output.path)) == output.bytes
    neutral, smile = (ShardSource(workspace.store, key, manifests[key].outputs) for key in ("001/neutral", "001/smile"))
    identity = next(IdentityBatches([neutral], IdentityCounts(100, 100, 50), batch=2))
    assert np.abs(np.linalg.norm(identity["surface"], axis=2) - RADIUS_MM).max() < 0.6
    pairs = next(DeformationBatches([neutral, smile], [0, 0], count=100, batch=2))
    still = list(pairs["scan"]).index(0)
    assert np.array_equal(pairs["canonical"][still], pairs["posed"][still])
    assert not np.array_equal(pairs["canonical"][1 - still], pairs["posed"][1 - still])
    group = zarr.open_group(tmp_path / "one" / "samples.zarr", mode="r")
    assert sorted(group.group_keys()) == ["001"]
    rows = group["001/neutral"].attrs.asdict()["rows"]
    assert isinstance(rows, dict)
    assert rows["surface"] == manifests["001/neutral"].figures["surface_count"]
    assert (tmp_path / "one/samples/001/neutral/distances.png").exists()


def test_order_and_repetition_change_no_byte(tmp_path: Path) -> None:
    one, other = _workspace(tmp_path / "one"), _workspace(tmp_path / "other")
    for key in ("001/smile", "001/neutral"):
        run_sample(one, key)
    for key in ("001/neutral", "001/smile", "001/smile"):
        run_sample(other, key)
    first, second = _bytes(tmp_path / "one"), _bytes(tmp_path / "other")
    assert first.keys() == second.keys()
    assert all(first[path] == second[path] for path in first)


def test_a_damaged_shard_is_named_and_redone(tmp_path: Path) -> None:
    workspace = _workspace(tmp_path)
    manifest = run_sample(workspace, "001/smile")
    shard = "samples.zarr/001/smile/pair_canonical/c/0/0"
    data = bytearray(workspace.store.get(shard))
    data[len(data) // 2] ^= 1
    workspace.store.put(shard, bytes(data))
    source = ShardSource(workspace.store, "001/smile", manifest.outputs)
    with pytest.raises(StorageConflict, match="001/smile/pair_canonical/c/0/0: shard is damaged"):
        source.read("pairs", 0, 10)
    again = run_sample(workspace, "001/smile")
    assert again == manifest
    assert len(ShardSource(workspace.store, "001/smile", again.outputs).read("pairs", 0, 10)["pair_canonical"]) == 10


class _Killed(BaseException):
    pass


class _MortalStore(LocalStore):
    """Dies at its n-th change, as a process would."""

    changes_left = 10**9

    def put(self, path: str, data: bytes) -> None:
        self._live()
        super().put(path, data)

    def delete(self, path: str) -> None:
        self._live()
        super().delete(path)

    def _live(self) -> None:
        self.changes_left -= 1
        if self.changes_left < 0:
            raise _Killed


def _verify(store: Store, workspace: Workspace) -> None:
    """Whatever a manifest or plain Zarr shows is whole."""
    for key in ("001/neutral", "001/smile"):
        manifest = workspace.manifest("sample", key)
        if manifest is not None:
            source = ShardSource(store, key, manifest.outputs)
            assert len(source.read("pairs", 0, source.rows("pairs"))["pair_canonical"]) == source.rows("pairs")
    if store.exists("samples.zarr/zarr.json"):
        for _, group in zarr.open_group(Path(store.url) / "samples.zarr", mode="r").groups():
            for _, scan in group.groups():
                assert all(np.asarray(array[:]).shape == array.shape for _, array in scan.arrays())


@pytest.mark.filterwarnings("ignore:Object at")
def test_death_at_any_write_leaves_the_store_readable_and_the_rerun_equal(tmp_path: Path) -> None:
    undisturbed = _workspace(tmp_path / "undisturbed")
    for key in ("001/neutral", "001/smile"):
        run_sample(undisturbed, key)
    want = _bytes(tmp_path / "undisturbed")
    workspace = _workspace(tmp_path / "killed")
    run_sample(workspace, "001/smile")
    store = _MortalStore(tmp_path / "killed")
    killed = Workspace(store, workspace.config, workspace.steps)
    writes = 0
    for deaths in range(0, 200, 5):
        store.changes_left = deaths
        try:
            run_sample(killed, "001/neutral")
        except _Killed:
            _verify(store, killed)
            assert killed.manifest("sample", "001/smile") is not None
            continue
        writes = deaths
        break
    assert writes > 20
    got = _bytes(tmp_path / "killed")
    assert got.keys() == want.keys()
    assert all(got[path] == want[path] for path in want)
