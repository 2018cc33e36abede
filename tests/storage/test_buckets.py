"""The same code over a bucket: a real S3 server over HTTP on this machine."""

from __future__ import annotations

import numpy as np
import pytest

from storage.digest import digest_bytes
from storage.errors import StorageConflict
from storage.lock import hold, read_owners
from storage.manifest import Manifest, Output, commit, describe, find_damage, read_manifest, read_output, withdraw
from storage.quantise import Column
from storage.shards import CHUNK_ROWS, GroupReader, encode_group
from storage.store import Store, open_store

COLUMNS = {"position": Column("position", "uint16", ("points", "xyz"), "a point", 0.01, -327.68, "mm")}


@pytest.fixture
def bucket(bucket_url: str) -> Store:
    return open_store(f"{bucket_url}/workspace")


def test_objects_come_and_go(bucket: Store) -> None:
    assert bucket.list() == []
    bucket.put("b/two.bin", b"0123456789")
    bucket.put("a.txt", b"1")
    bucket.put("b2/three", b"333")
    assert bucket.list() == ["a.txt", "b/two.bin", "b2/three"]
    assert bucket.list("b") == ["b/two.bin"]
    assert bucket.get("b/two.bin") == b"0123456789"
    assert bucket.get_range("b/two.bin", 2, 5) == b"234"
    assert list(bucket.get_many(["a.txt", "b2/three"])) == [b"1", b"333"]
    stat = bucket.stat("a.txt")
    bucket.put("a.txt", b"2")
    assert stat is not None
    assert bucket.stat("a.txt").version != stat.version  # type: ignore[union-attr]
    bucket.delete("a.txt")
    bucket.delete("a.txt")
    assert bucket.stat("a.txt") is None
    for call in (bucket.get, lambda path: bucket.get_range(path, 0, 1)):
        with pytest.raises(FileNotFoundError):
            call("a.txt")
    with bucket.local_path("b2/three") as file:
        assert file.read_bytes() == b"333"


def test_results_are_committed_read_and_withdrawn(bucket: Store) -> None:
    path = "samples/001/smile/report.json"
    bucket.put("samples/001/smile/stray", b"left behind")
    plain = Manifest(
        step="sample", key="001/smile", step_version=1, config_digest="0" * 64, inputs={}, verdict="accepted"
    )
    bucket.put("elsewhere/x", b"x")
    made = commit(bucket, path, plain, {"one.png": b"one", "x": describe("elsewhere/x", b"x")})
    assert read_manifest(bucket, path) == made
    assert read_output(bucket, made, "one.png") == b"one"
    assert find_damage(bucket, made, path) is None
    assert bucket.list("samples") == ["samples/001/smile/one.png", path]
    bucket.put("samples/001/smile/one.png", b"two")
    with pytest.raises(StorageConflict, match="was changed"):
        read_output(bucket, made, "one.png")
    withdraw(bucket, path)
    assert bucket.list() == []


def test_shards_are_read_by_ranges_and_damage_is_named(bucket: Store) -> None:
    rows = 2 * CHUNK_ROWS + 7
    values = np.random.default_rng(0).integers(0, 65535, (rows, 3)).astype(np.uint16)
    files = {}
    for path, data in encode_group({"position": (COLUMNS["position"], values)}, {}).items():
        bucket.put(f"g/{path}", data)
        files[path] = Output(path=f"g/{path}", bytes=len(data), sha256=digest_bytes(data))
    group = GroupReader(bucket, "g", files, COLUMNS)
    assert np.array_equal(group.read("position"), values)
    assert np.array_equal(group.read("position", CHUNK_ROWS - 3, CHUNK_ROWS + 9), values[CHUNK_ROWS - 3 :][:12])
    shard = bytearray(bucket.get("g/position/c/0/0"))
    shard[len(shard) // 3] ^= 4
    bucket.put("g/position/c/0/0", bytes(shard))
    with pytest.raises(StorageConflict, match=r"s3://.*/g/position/c/0/0: shard is damaged"):
        GroupReader(bucket, "g", files, COLUMNS).read("position")


def test_a_lock_has_one_owner(bucket: Store) -> None:
    with hold(bucket, "run", "a test") as held:
        held.renew()
        held.check()
        with pytest.raises(StorageConflict, match="is in use"), hold(bucket, "run", "another"):
            pass
    assert read_owners(bucket) == {}
    with hold(bucket, "run", "another"):
        assert read_owners(bucket)["run"].what == "another"
