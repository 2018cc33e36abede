"""A manifest is the commit: nobody reads half a result, and nobody reads a changed one."""

from __future__ import annotations

import json
import os

import numpy as np
import pytest
from obstore.store import MemoryStore

from storage.errors import StorageConflict
from storage.manifest import (
    Manifest,
    commit,
    describe,
    find_damage,
    parse_manifest,
    plain,
    read_manifest,
    read_output,
    withdraw,
)
from storage.store import LocalStore, ObjectStore, Store

PATH = "clean/001/smile/report.json"
EMPTY = Manifest(
    step="clean", key="001/smile", step_version=1, config_digest="c", inputs={"a": "1"}, verdict="accepted"
)


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path) -> Store:
    return LocalStore(tmp_path / "store") if request.param == "local" else ObjectStore(MemoryStore(), "memory://")


class CutError(Exception):
    """The power goes out."""


def cut_after(store: Store, writes: int) -> None:
    """Make a store fail after so many writes."""
    left = [writes]

    def counted(call):
        def wrapped(*args):
            if left[0] == 0:
                raise CutError
            left[0] -= 1
            return call(*args)

        return wrapped

    store.put = counted(store.put)
    store.delete = counted(store.delete)


def test_commit_and_read(store):
    made = commit(store, PATH, EMPTY, {"mesh.ply": b"mesh", "sheet.png": b"png"})
    assert read_manifest(store, PATH) == made
    assert made.outputs["mesh.ply"] == describe("clean/001/smile/mesh.ply", b"mesh")
    assert read_output(store, made, "mesh.ply") == b"mesh"
    with pytest.raises(StorageConflict, match=r"clean of 001/smile: has no output x \(it has mesh.ply, sheet.png\)"):
        read_output(store, made, "x")


def test_a_result_that_lies_elsewhere(store):
    store.put("samples.zarr/001/c0", b"shard")
    made = commit(store, PATH, EMPTY, {"shard": describe("samples.zarr/001/c0", b"shard")})
    assert read_output(store, made, "shard") == b"shard"


@pytest.mark.parametrize("writes", range(7))
def test_cut_off_at_every_write(tmp_path, writes):
    plain_store = LocalStore(tmp_path)
    commit(plain_store, PATH, EMPTY, {"mesh.ply": b"old", "gone.txt": b"old"})
    cut = LocalStore(tmp_path)
    cut_after(cut, writes)
    new = {"mesh.ply": b"new mesh", "sheet.png": b"new"}
    try:
        commit(cut, PATH, EMPTY, new)
    except CutError:
        manifest = read_manifest(plain_store, PATH)
        if manifest is not None:
            assert {name: read_output(plain_store, manifest, name) for name in manifest.outputs} == {
                "mesh.ply": b"old",
                "gone.txt": b"old",
            }
    else:
        assert writes >= 5
    commit(plain_store, PATH, EMPTY, new)
    assert plain_store.list() == [f"clean/001/smile/{name}" for name in ("mesh.ply", "report.json", "sheet.png")]


def test_what_a_disk_lost_is_found_by_reading_every_byte(tmp_path):
    store = LocalStore(tmp_path)
    made = commit(store, PATH, EMPTY, {"mesh.ply": b"mesh", "sheet.png": b"png"})
    file = tmp_path / "clean/001/smile/sheet.png"
    stat = file.stat()
    file.write_bytes(b"pnG")
    os.utime(file, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    assert find_damage(store, made, PATH) is None
    assert find_damage(store, made, PATH, every_byte=True) == "clean/001/smile/sheet.png was changed"


def test_changed_outputs_are_found(store):
    made = commit(store, PATH, EMPTY, {"mesh.ply": b"mesh", "sheet.png": b"png"})
    assert find_damage(store, made, PATH) is None
    store.put("clean/001/smile/mesh.ply", b"mash")
    assert find_damage(store, made, PATH) == "clean/001/smile/mesh.ply was changed"
    with pytest.raises(StorageConflict, match=r"clean/001/smile/mesh\.ply: was changed after it was made"):
        read_output(store, made, "mesh.ply")
    store.put("clean/001/smile/mesh.ply", b"mesh")
    assert find_damage(store, made, PATH) is None
    store.put("clean/001/smile/mesh.ply", b"mesh!")
    assert find_damage(store, made, PATH) == "clean/001/smile/mesh.ply was changed"
    store.delete("clean/001/smile/mesh.ply")
    assert find_damage(store, made, PATH, store.stats()) == "clean/001/smile/mesh.ply is missing"
    with pytest.raises(StorageConflict, match=r"clean/001/smile/mesh\.ply: is missing"):
        read_output(store, made, "mesh.ply")


def test_withdraw(store):
    store.put("samples.zarr/001/c0", b"shard")
    commit(store, PATH, EMPTY, {"mesh.ply": b"mesh", "shard": describe("samples.zarr/001/c0", b"shard")})
    withdraw(store, PATH)
    assert store.list() == []


def test_same_result_same_bytes():
    one = EMPTY.model_copy(update={"figures": {"a_mm": 0.1, "b": 2}})
    again = parse_manifest(one.to_bytes(), PATH)
    assert again == one
    assert again.to_bytes() == one.to_bytes()


def test_further_fields_are_kept():
    manifest = Manifest.model_validate(EMPTY.model_dump() | {"T_world_from_head": np.eye(4).tolist(), "note": None})
    again = parse_manifest(manifest.to_bytes(), PATH)
    assert again.extra("T_world_from_head") == np.eye(4).tolist()
    assert again.extra("note") is None


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"schema_version": 99}', b"\xff\xfe"])
def test_what_is_no_manifest(store, data):
    store.put(PATH, data)
    with pytest.raises(StorageConflict, match=r"clean/001/smile/report\.json: is no manifest"):
        read_manifest(store, PATH)


def test_figures_become_plain():
    told = plain(
        {"a": np.float32(0.5), "b": np.arange(3), "c": float("nan"), "d": [np.int64(1), np.inf], "e": np.True_}
    )
    assert told == {"a": 0.5, "b": [0, 1, 2], "c": None, "d": [1, None], "e": True}
    json.dumps(told, allow_nan=False)
