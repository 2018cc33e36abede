"""The sample step on round heads, whose distances and motions are known."""

import io
import json
import os
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import open3d as o3d
import pytest
import zarr

from pipeline.batches import DeformationBatches, IdentityBatches, IdentityCounts
from pipeline.config import PipelineConfig
from pipeline.deformation_samples import DeformationSampler, deformation_figures
from pipeline.identity_samples import IDENTITY_PARTS, IdentitySampler, identity_figures
from pipeline.row_decoding import decode_rows
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
from pipeline.sample_groups import find_damaged_parents, remove_group
from pipeline.sample_sources import SampleSources
from pipeline.scan_rows import ShardSource
from pipeline.snapshot import take_snapshot
from pipeline.stepspec import Need, StepSpec
from pipeline.workspace import Workspace
from registration.face_skin import on_face_skin
from registration.mesh import Mesh, face_areas, mesh_to_ply, transform_points
from registration.motion_extension import MotionExtension
from registration.surface import SurfaceIndex
from registration.template import REGIONS, Template
from storage.errors import ScanRejected, StorageConflict
from storage.shards import CHUNK_ROWS
from storage.store import LocalStore, Store, open_store

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


def _regions_of(scan: Mesh) -> np.ndarray:
    """The template's region at each vertex of a scan."""
    head = transform_points(np.linalg.inv(_somewhere()), scan.vertices)
    foot = SurfaceIndex(_template().mesh).closest(head)
    corner = _template().mesh.faces[foot.faces]
    return _template().regions[corner[np.arange(len(head)), foot.bary.argmax(1)]]


def _sampler(seed: int = 0, config: IdentitySampleConfig = SMALL) -> IdentitySampler:
    scan, companion = _scanned()
    return IdentitySampler(
        scan, _regions_of(scan), companion, _registered(), _template(), PLANE, _somewhere(), config, seed
    )


def _identity(seed: int = 0, config: IdentitySampleConfig = SMALL) -> dict[str, np.ndarray]:
    sampler = _sampler(seed, config)
    return {name: column for part in IDENTITY_PARTS for name, column in sampler.draw(part, [0]).rows.items()}


def _pairs(posed: Mesh, seed: int) -> dict[str, np.ndarray]:
    return dict(DeformationSampler(_registered(), posed, _template(), PLANE, FEW_PAIRS, seed).draw([0]).rows)


def test_identity_samples_lie_in_the_head_frame_with_exact_distances() -> None:
    sampler, samples = _sampler(), _identity()
    rim_mm = np.pi * RADIUS_MM / 40 / 2  # half a triangle: those at the hole's rim are neither scan nor patch
    assert np.abs(np.linalg.norm(samples["surface"], axis=1) - RADIUS_MM).max() < 0.6
    outward = samples["surface"] / np.linalg.norm(samples["surface"], axis=1, keepdims=True)
    assert (samples["normal"] * outward).sum(1).min() > 0.995
    for part in ("near", "space"):
        points, sdf = samples[part], samples[f"{part}_sdf"]
        assert np.abs(sdf - (np.linalg.norm(points, axis=1) - RADIUS_MM)).max() < rim_mm
        assert np.percentile(np.abs(sdf - (np.linalg.norm(points, axis=1) - RADIUS_MM)), 95) < 0.5
        assert (points[:, 1] >= -60).all()
    behind = np.linalg.norm(samples["space"] - (0, 20, -130), axis=1) < 25
    assert not samples["space_observed"][behind].any()
    assert samples["space_observed"][samples["space"][:, 2] > 100].all()
    assert np.array_equal(sampler.anchors_mm, _template().mesh.vertices[:5])
    assert sampler.draw("near", [0]).refused_share < 0.01
    assert len(samples["surface"]) == len(samples["near"]) == 4000


def test_blocks_are_the_same_however_many_are_drawn_together() -> None:
    config = SMALL.model_copy(update={"near_points": 2 * CHUNK_ROWS + 77})
    together = _sampler(3, config).draw("near", range(3)).rows
    again = _sampler(3, config)
    alone = [again.draw("near", [block]).rows for block in (2, 0, 1)]
    assert [len(rows["near"]) for rows in alone] == [77, CHUNK_ROWS, CHUNK_ROWS]
    for name, column in together.items():
        assert np.array_equal(column, np.concatenate([alone[place][name] for place in (1, 2, 0)]))


def test_the_spreads_are_those_asked_for() -> None:
    sdf = _identity()["near_sdf"]
    assert 1.0 < np.percentile(np.abs(sdf), 30) < 2.6
    assert 8.0 < np.percentile(np.abs(sdf), 83) < 13.0


def test_regions_get_their_density() -> None:
    dense = SMALL.model_copy(update={"density": RegionDensity(face=8)})
    plain, more = _identity(), _identity(config=dense)
    assert 1.15 < more["face"].mean() / plain["face"].mean() < 2.1
    assert set(np.unique(plain["region"])) == {REGIONS.index(name) for name in ("face", "scalp", "ears", "neck")}


def test_rows_are_in_random_order() -> None:
    samples = _identity()
    blocks = samples["near_sdf"][: len(samples["near_sdf"]) // 4 * 4].reshape(4, -1)
    assert np.ptp(np.abs(blocks).mean(1)) < 0.15 * np.abs(blocks).mean()
    blocks = samples["surface"][: len(samples["surface"]) // 4 * 4].reshape(4, -1, 3)
    assert np.ptp(blocks.mean(1), axis=0).max() < 12


def test_the_seed_alone_decides() -> None:
    one, same, other = _identity(3), _identity(3), _identity(4)
    assert all(np.array_equal(one[name], same[name]) for name in one)
    assert not np.array_equal(one["near"], other["near"])


def test_worn_things_keep_their_region_and_are_no_face() -> None:
    scan, companion = _scanned()
    glasses = _regions_of(scan)
    glasses[transform_points(np.linalg.inv(_somewhere()), scan.vertices)[:, 1] > 20] = REGIONS.index("worn")
    sampler = IdentitySampler(scan, glasses, companion, _registered(), _template(), PLANE, _somewhere(), SMALL, 0)
    rows = sampler.draw("surface", [0]).rows
    high = rows["surface"][:, 1] > 28
    assert (rows["region"][high] == REGIONS.index("worn")).all()
    assert not rows["face"][high].any()
    assert rows["face"][(rows["surface"][:, 2] > 70) & (np.abs(rows["surface"][:, 1]) < 10)].all()


def test_what_lies_off_the_skin_is_no_face() -> None:
    points = np.array([[0, 0, 105], [0, 0, 90], [0, 0, 80], [0, 90, 0]], np.float32)
    found = on_face_skin(points, SurfaceIndex(_registered()), _template(), standoff_mm=4.0)
    assert found.tolist() == [False, True, False, False]


def test_pairs_follow_a_known_motion() -> None:
    samples = _pairs(_registered(_template().mesh.vertices * (1.1, 1.0, 1.0)), seed=1)
    canonical, posed, weight = samples["canonical"], samples["posed"], samples["weight"]
    height = np.linalg.norm(canonical, axis=1) - RADIUS_MM
    close = np.abs(height) < 4
    want = canonical * (1.1, 1.0, 1.0)
    assert np.abs(posed - want)[close].max() < 1.5
    assert np.median(np.abs(posed - want)[close]) < 0.2
    hair = samples["pair_region"] == REGIONS.index("hair")
    assert hair.sum() > 50
    assert 60 < height[hair].max() < 91
    assert (canonical[:, 1] >= -60).all()
    assert weight.max() <= 1
    assert weight[close & (canonical[:, 2] < -85)].max() < 0.4
    assert weight[close & (canonical[:, 2] > 60)].max() > 0.9


def test_the_extension_forgets_detail_smoothly_with_distance() -> None:
    twitch = _template().mesh.vertices.copy()
    bump = np.exp(-((twitch - (0, 90, 0)) ** 2).sum(1) / 15**2)
    beyond = MotionExtension(_template().mesh, np.stack([bump, bump, bump, np.ones(len(bump))], 1))
    above = beyond.at(np.array([(0, 90 + h, 0) for h in np.arange(0.0, 80)]))
    assert above[0, 0] > 0.8
    assert (np.diff(above[:, 0]) < 0).all()
    assert np.abs(np.diff(above[:, 0])).max() < 0.05
    assert above[-1, 0] < 0.3
    assert np.allclose(above[:, 3], 1, atol=1e-5)


def test_the_extension_agrees_with_plain_sums() -> None:
    mesh, rng = _template().mesh, np.random.default_rng(0)
    values, points = rng.normal(size=(len(mesh.vertices), 4)), rng.uniform(-150, 150, (70, 3))
    area = face_areas(mesh.vertices, mesh.faces)
    weight = np.zeros(len(mesh.vertices))
    for face, one in zip(mesh.faces, area, strict=True):
        weight[face] += one / 3
    square = ((points[:, None] - mesh.vertices[None].astype(float)) ** 2).sum(2) + 1
    share = weight / square**3
    want = share @ values / share.sum(1, keepdims=True)
    assert np.abs(MotionExtension(mesh, values).at(points) - want).max() < 1e-3


def test_the_canonical_scan_does_not_move() -> None:
    samples = _pairs(_registered(), seed=2)
    assert np.array_equal(samples["canonical"], samples["posed"])
    assert deformation_figures(samples)["motion_p95_mm"] == 0


def test_a_rigid_motion_is_carried_everywhere() -> None:
    samples = _pairs(_registered(_template().mesh.vertices + np.array([3.0, -2.0, 1.0])), seed=2)
    assert np.abs(samples["posed"] - samples["canonical"] - (3, -2, 1)).max() < 1e-3


def test_verdicts_name_value_and_limit() -> None:
    thresholds = SampleThresholds()
    sampler = _sampler()
    surface, near, space = (sampler.draw(part, [0]) for part in IDENTITY_PARTS)
    assert judge_sample(identity_figures(surface.rows, near, space.rows), thresholds) == []
    bad = {"near_disputed_share": 0.2, "face_observed_share": 0.1, "pair_weight_mean": 0.01}
    reasons = judge_sample(bad, thresholds)
    assert len(reasons) == 3
    assert reasons[0] == "inside and outside are disputed for 20.0% of the near points, limit 10.0%"


def _unused(workspace: Workspace, key: str) -> Any:
    raise AssertionError


def _workspace(
    root: Path | Store,
    keep: Literal["stored", "on_the_fly"] = "stored",
    plane: np.ndarray = PLANE,
    identity: IdentitySampleConfig = SMALL,
    colors: np.ndarray | None = None,
) -> Workspace:
    def spec(name: str, folder: str) -> StepSpec:
        return StepSpec(name, folder, 1, _unused, lambda figures, thresholds: [])

    needs = (Need("register"), Need("clean"), Need("register", "canonical"))
    sample = StepSpec("sample", "samples", STEP_VERSION, run_sample, judge_sample, needs=needs, uses_template=True)
    steps = [spec("ingest", "ingest"), spec("clean", "clean"), spec("register", "registrations"), sample]
    store = LocalStore(root) if isinstance(root, Path) else root
    store.put("template.npz", _template().to_bytes())
    workspace = Workspace(
        store,
        PipelineConfig(sample=SampleConfig(keep=keep, identity=identity, deformation=FEW_PAIRS)),
        {one.name: one for one in steps},
    )
    scan, companion = _scanned()
    if colors is not None:
        seen = transform_points(np.linalg.inv(_somewhere()), scan.vertices)[:, 2] > 0
        scan = replace(scan, colors=colors, attributes={"observed": seen.astype(np.uint8)})
    frame = json.dumps({"T_world_from_head": _somewhere().tolist(), "throat_plane": plane.tolist()}).encode()
    smile = _template().mesh.vertices * (1.05, 1, 1)
    for expression, mesh in (("neutral", _registered()), ("smile", _registered(smile))):
        key = f"001/{expression}"
        told = {"canonical_expression": "neutral", "content_digest": "0"}
        workspace.commit("ingest", key, inputs={}, outputs={"taken.json": b"{}"}, extra=told)
        meshes = {"mesh.ply": mesh_to_ply(scan), "watertight.ply": mesh_to_ply(companion)}
        workspace.commit("clean", key, inputs={}, outputs=meshes)
        told = io.BytesIO()
        np.savez_compressed(told, region=_regions_of(scan))
        registration = {"mesh.ply": mesh_to_ply(mesh), "frame.json": frame, "scan_regions.npz": told.getvalue()}
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


def test_colour_is_that_of_the_seen_surface(tmp_path: Path) -> None:
    identity = SMALL.model_copy(update={"color_points": 4000})
    scan, _ = _scanned()
    head = transform_points(np.linalg.inv(_somewhere()), scan.vertices)
    colors = np.rint(127 + head).astype(np.uint8)  # a ramp over the ball, of a grey level a mm
    coloured, bare = (
        _workspace(tmp_path / "a", identity=identity, colors=colors),
        _workspace(tmp_path / "b", identity=identity),
    )
    with_colour, without = (
        SampleSources(one).open("001/neutral", run_sample(one, "001/neutral")) for one in (coloured, bare)
    )
    assert without.rows("color") == 0
    rows = decode_rows("color", with_colour.read("color", 0, with_colour.rows("color")))
    assert len(rows["color"]) == 4000
    assert np.abs(rows["color"] - (127 + rows["colored"])).max() < 2
    assert np.abs(np.linalg.norm(rows["colored"], axis=1) - RADIUS_MM).max() < 0.6
    assert rows["colored"][:, 2].min() > -0.1 * RADIUS_MM  # behind that nothing was seen
    one, other = (source.read("surface", 0, 99)["surface_position"] for source in (with_colour, without))
    assert np.array_equal(one, other)  # the other sets' rows are what they are without


def test_every_scan_can_have_distances_of_its_own(tmp_path: Path) -> None:
    workspace = _workspace(tmp_path, identity=SMALL.model_copy(update={"every_scan": True}))
    manifest = run_sample(workspace, "001/smile")
    smile = SampleSources(workspace).open("001/smile", manifest)
    near = decode_rows("near", smile.read("near", 0, smile.rows("near")))
    rim_mm = np.pi * RADIUS_MM / 40 / 2
    assert len(near["near"]) == 4000
    assert np.abs(near["near_sdf"] - (np.linalg.norm(near["near"], axis=1) - RADIUS_MM)).max() < rim_mm
    assert np.allclose(smile.anchors_mm()[:, 0], 1.05 * _template().mesh.vertices[:5, 0], atol=1e-3)
    assert smile.rows("pairs") == 4000


def test_order_and_repetition_change_no_byte(tmp_path: Path) -> None:
    one, other = _workspace(tmp_path / "one"), _workspace(tmp_path / "other")
    for key in ("001/smile", "001/neutral"):
        run_sample(one, key)
    for key in ("001/neutral", "001/smile", "001/smile"):
        run_sample(other, key)
    first, second = _bytes(tmp_path / "one"), _bytes(tmp_path / "other")
    assert first.keys() == second.keys()
    assert all(first[path] == second[path] for path in first)


def test_a_bucket_gets_the_bytes_that_a_folder_gets(tmp_path: Path, bucket_url: str) -> None:
    folder, bucket = _workspace(tmp_path), _workspace(open_store(bucket_url))
    for workspace in (folder, bucket):
        manifests = {key: run_sample(workspace, key) for key in ("001/smile", "001/neutral")}
    here, there = ({path: one.store.get(path) for path in one.store.list()} for one in (folder, bucket))
    assert there == here
    assert find_damaged_parents(bucket.store) == []
    source = SampleSources(bucket).open("001/neutral", manifests["001/neutral"])
    drawn = next(IdentityBatches([source], IdentityCounts(100, 100, 50), batch=1, ahead=0))
    assert np.abs(np.linalg.norm(drawn["surface"], axis=2) - RADIUS_MM).max() < 0.6


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


def test_on_the_fly_gives_the_rows_that_are_stored(tmp_path: Path) -> None:
    stored, drawn = _workspace(tmp_path / "stored"), _workspace(tmp_path / "drawn", "on_the_fly")
    for key in ("001/neutral", "001/smile"):
        manifests = [run_sample(workspace, key) for workspace in (stored, drawn)]
        assert manifests[0].figures == manifests[1].figures | {"stored_bytes": manifests[0].figures["stored_bytes"]}
        shards, meshes = (SampleSources(w).open(key, m) for w, m in zip((stored, drawn), manifests, strict=True))
        parts = ("surface", "near", "space", "pairs") if key == "001/neutral" else ("pairs",)
        for part in parts:
            assert shards.rows(part) == meshes.rows(part) > 0
            one, other = (source.read(part, 100, 900) for source in (shards, meshes))
            assert all(np.array_equal(one[name], other[name]) for name in one)
    assert meshes.rows("surface") == 0
    first = SampleSources(drawn).open("001/neutral", run_sample(drawn, "001/neutral"))
    assert np.array_equal(first.anchors_mm(), _template().mesh.vertices[:5])
    assert not drawn.store.list("samples.zarr")


def test_a_subject_is_taken_out_without_touching_the_others(tmp_path: Path) -> None:
    workspace = _workspace(tmp_path)
    for key in ("001/smile", "001/neutral"):
        run_sample(workspace, key)
    before = workspace.store.stats("samples.zarr/001/neutral")
    remove_group(workspace.store, "001/smile")
    assert workspace.store.stats("samples.zarr/001/neutral") == before
    assert list(zarr.open_group(tmp_path / "samples.zarr/001", mode="r").group_keys()) == ["neutral"]
    remove_group(workspace.store, "001/neutral")
    assert workspace.store.list("samples.zarr") == ["samples.zarr/zarr.json"]


def test_a_scan_that_is_rejected_later_leaves_no_group(tmp_path: Path) -> None:
    run_sample(_workspace(tmp_path), "001/smile")
    beneath = _workspace(tmp_path, plane=np.array([0.0, 1.0, 0.0, -500.0]))
    with pytest.raises(ScanRejected, match="above the throat plane"):
        run_sample(beneath, "001/smile")
    assert beneath.manifest("sample", "001/smile") is None
    assert beneath.store.list("samples.zarr") == ["samples.zarr/zarr.json"]


def test_every_file_is_looked_over_and_named(tmp_path: Path) -> None:
    workspace = _workspace(tmp_path)
    for key in ("001/smile", "001/neutral"):
        run_sample(workspace, key)
    store = workspace.store

    def found() -> list[str]:
        book = take_snapshot(workspace, every_byte=True)
        return [told for m in book.manifests.values() if (told := book.damage(m))] + find_damaged_parents(store)

    assert found() == []
    for path in store.list("samples.zarr"):
        whole, written = store.get(path), (tmp_path / path).stat()
        store.put(path, bytes([whole[0] ^ 1]) + whole[1:])
        os.utime(tmp_path / path, ns=(0, 0))  # as a failing disk does it: nobody has written
        assert found() == [f"{path} was changed"]
        store.put(path, whole)
        os.utime(tmp_path / path, ns=(written.st_atime_ns, written.st_mtime_ns))
    store.put("samples.zarr/zarr.json", b"{}")
    store.delete("samples.zarr/001/zarr.json")
    assert found() == ["samples.zarr/001/zarr.json is missing", "samples.zarr/zarr.json was changed"]
    run_sample(workspace, "001/smile")
    assert found() == []


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
