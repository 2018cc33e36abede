from pathlib import Path

import numpy as np
import obstore
import pytest
import zarr

from storage.digest import digest_bytes
from storage.errors import StorageConflict
from storage.manifest import Output
from storage.quantise import Column
from storage.shards import CHUNK_ROWS, GroupReader, encode_group, group_metadata
from storage.store import LocalStore, ObjectStore, Store

COLUMNS = {
    "position": Column("position", "uint16", ("points", "xyz"), "a point", 0.01, -327.68, "mm", {"frame": "head"}),
    "label": Column("label", "uint8", ("points",), "a label"),
}


def _arrays(rows: int) -> dict[str, tuple[Column, np.ndarray]]:
    rng = np.random.default_rng(rows)
    position = rng.integers(0, 65535, (rows, 3)).astype(np.uint16)
    return {"position": (COLUMNS["position"], position), "label": (COLUMNS["label"], np.zeros(rows, np.uint8))}


def _read_all(store: Store, files: dict[str, Output]) -> None:
    reader = GroupReader(store, "g", files, COLUMNS)
    for name in COLUMNS:
        reader.read(name)


def _put(store: Store, prefix: str, objects: dict[str, bytes]) -> dict[str, Output]:
    for path, data in objects.items():
        store.put(f"{prefix}/{path}", data)
    return {
        path: Output(path=f"{prefix}/{path}", bytes=len(data), sha256=digest_bytes(data))
        for path, data in objects.items()
    }


@pytest.mark.parametrize("rows", [0, 1, 100, CHUNK_ROWS, 2 * CHUNK_ROWS + 5])
def test_rows_come_back_and_bytes_repeat(tmp_path: Path, rows: int) -> None:
    arrays = _arrays(rows)
    objects = encode_group(arrays, {"made_by": "test"})
    assert objects == encode_group(arrays, {"made_by": "test"})
    for store in (LocalStore(tmp_path), ObjectStore(obstore.store.MemoryStore(), "memory://")):
        group = GroupReader(store, "a/b", _put(store, "a/b", objects), COLUMNS)
        assert group.attributes["made_by"] == "test"
        assert group.rows("position") == rows
        assert np.array_equal(group.read("position"), arrays["position"][1])
        assert np.array_equal(group.read("position", rows // 2, rows), arrays["position"][1][rows // 2 :])
        assert np.array_equal(group.read("label"), arrays["label"][1])


def test_plain_zarr_opens_it(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    arrays = _arrays(50)
    store.put("samples.zarr/zarr.json", group_metadata({}))
    store.put("samples.zarr/001/zarr.json", group_metadata({}))
    _put(store, "samples.zarr/001/smile", encode_group(arrays, {}))
    group = zarr.open_group(tmp_path / "samples.zarr", mode="r")["001/smile"]
    assert isinstance(group, zarr.Group)
    position = group["position"]
    assert isinstance(position, zarr.Array)
    assert position.attrs["scale_factor"] == 0.01
    assert position.attrs["units"] == "mm"
    assert position.metadata.dimension_names == ("points", "xyz")  # type: ignore[union-attr]
    assert np.array_equal(np.asarray(position[:]), arrays["position"][1])


def test_any_flipped_byte_is_found_and_named(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    objects = encode_group(_arrays(CHUNK_ROWS + 20), {"made_by": "test"})
    files = _put(store, "g", objects)
    rng = np.random.default_rng(1)
    for path, data in objects.items():
        for place in {0, len(data) - 1, *rng.integers(0, len(data), 8).tolist()}:
            flipped = bytearray(data)
            flipped[place] ^= 1 << int(rng.integers(8))
            store.put(f"g/{path}", bytes(flipped))
            with pytest.raises(StorageConflict, match=r"shard is damaged .*; delete it and run again"):
                _read_all(store, files)
        store.put(f"g/{path}", data)


def test_a_missing_or_cut_shard_is_no_data(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    objects = encode_group(_arrays(100), {})
    files = _put(store, "g", objects)
    store.put("g/label/c/0", objects["label/c/0"][:-1])
    with pytest.raises(StorageConflict, match=r"of .* bytes"):
        GroupReader(store, "g", files, COLUMNS).read("label")
    store.delete("g/label/c/0")
    with pytest.raises(StorageConflict, match=r"label/c/0.*missing"):
        GroupReader(store, "g", files, COLUMNS).read("label")
