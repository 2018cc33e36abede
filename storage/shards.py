"""Groups of quantised arrays as sharded Zarr 3, over the project's one store.

A group is encoded to whole objects in memory first; the caller puts them through the store and lists them in a
manifest, so a group appears with its manifest or not at all. One array is one shard, written by one writer, read in
chunks. Every chunk and every shard index carries a CRC-32C, and the metadata is held against the manifest's SHA-256: no
damaged byte is read as data.

Attributes follow the CF conventions (``scale_factor``, ``add_offset``, ``units``, ``flag_meanings``), which xarray
applies when it opens a group; dimensions have names. Plain zarr opens it too::

    group = zarr.open_group("WS/samples.zarr", mode="r")["001/neutral_open"]
    position = group["surface_position"]
    position_mm = position[:1000] * position.attrs["scale_factor"] + position.attrs["add_offset"]
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any, Protocol

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.abc.store import Store as ZarrStore
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import LocalStore as ZarrLocalStore
from zarr.storage import MemoryStore as ZarrMemoryStore
from zarr.storage import ObjectStore as ZarrObjectStore

from storage.digest import canonical_json, digest_bytes
from storage.errors import ConfigError, StorageConflict, one_line
from storage.quantise import Column
from storage.store import LocalStore, ObjectStore, Store

CHUNK_ROWS = 8_192
"""Rows that are read and decoded at once; a plain small read costs about as much as a whole chunk."""


class StoredFile(Protocol):
    """What a manifest knows of a written object: ``storage.manifest.Output`` is one."""

    @property
    def path(self) -> str: ...
    @property
    def bytes(self) -> int: ...
    @property
    def sha256(self) -> str: ...


def encode_group(arrays: Mapping[str, tuple[Column, NDArray]], attributes: Mapping[str, Any]) -> dict[str, bytes]:
    """Encode arrays as the objects of one Zarr group. Same arrays, same bytes.

    Args:
        arrays: by name, the column and the stored (already quantised) values, first dimension over rows.
        attributes: of the group, plain values.

    Returns:
        The bytes by path inside the group.
    """
    objects: dict[str, Buffer] = {}
    group = zarr.create_group(ZarrMemoryStore(objects), zarr_format=3, attributes=dict(attributes))
    for name, (column, values) in arrays.items():
        rows = max(len(values), 1)
        chunk = min(CHUNK_ROWS, rows)
        rest = values.shape[1:]
        array = group.create_array(
            name,
            shape=values.shape,
            dtype=column.dtype,
            chunks=(chunk, *rest),
            shards=(-(-rows // chunk) * chunk, *rest),
            filters=None,
            compressors=[ZstdCodec(level=1, checksum=False), Crc32cCodec()],
            dimension_names=column.dimensions,
            attributes=column.described(),
            config={"write_empty_chunks": True},
        )
        array[...] = values
    return {path: _settled(path, objects[path].to_bytes()) for path in sorted(objects)}


def group_metadata(attributes: Mapping[str, Any]) -> bytes:
    """The ``zarr.json`` of a group that only holds others."""
    return canonical_json({"attributes": dict(attributes), "node_type": "group", "zarr_format": 3})


def _settled(path: str, data: bytes) -> bytes:
    """Metadata as canonical JSON, so that its bytes do not hang on the zarr release's habits."""
    return canonical_json(json.loads(data)) if path.endswith("zarr.json") else data


class GroupReader:
    """Reads rows of one group's arrays, checked against the digests and sizes of its manifest.

    Args:
        store: where the group lies.
        prefix: the group's path in the store.
        files: the group's objects as the manifest lists them.
        columns: the arrays to be read, as this version of the project stores them.

    Raises:
        StorageConflict: metadata is missing, damaged, or of another version of the format.
    """

    def __init__(
        self, store: Store, prefix: str, files: Mapping[str, StoredFile], columns: Mapping[str, Column]
    ) -> None:
        self._store, self._prefix = store, prefix
        self._files = {file.path: file for file in files.values()}
        self._columns = columns
        self._arrays: dict[str, zarr.Array] = {}
        self.attributes: dict[str, Any] = self._metadata(prefix)["attributes"]

    def rows(self, name: str) -> int:
        """Number of rows of an array."""
        return int(self._array(name).shape[0])

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray:
        """Stored values of rows ``start`` to ``stop``.

        Raises:
            StorageConflict: the shard is damaged.
        """
        array = self._array(name)
        try:
            return np.asarray(array[start:stop])
        except (ValueError, RuntimeError, OSError) as error:  # what zarr and its codecs raise on damaged bytes
            raise self._damaged(f"{self._prefix}/{name}", str(error).splitlines()[0]) from error

    def _array(self, name: str) -> zarr.Array:
        if name not in self._arrays:
            path = f"{self._prefix}/{name}"
            metadata = self._metadata(path)
            column = self._columns[name]
            if metadata["data_type"] != column.dtype or metadata["attributes"] != _plain(column.described()):
                remedy = "run the sample step again"
                raise StorageConflict(one_line("is stored in another format", path, "", remedy))
            for shard in (file for file in self._files.values() if file.path.startswith(f"{path}/c/")):
                found = self._store.stat(shard.path)
                if found is None or found.bytes != shard.bytes:
                    size = "missing" if found is None else f"{found.bytes} of {shard.bytes} bytes"
                    raise self._damaged(shard.path, size)
            opened = zarr.open_array(_zarr_store(self._store), path=path, mode="r")
            self._arrays[name] = opened
        return self._arrays[name]

    def _metadata(self, path: str) -> dict[str, Any]:
        file = self._files.get(f"{path}/zarr.json")
        if file is None:
            raise self._damaged(f"{path}/zarr.json", "the manifest does not list it")
        try:
            data = self._store.get(file.path)
        except FileNotFoundError as error:
            raise self._damaged(file.path, "missing") from error
        if digest_bytes(data) != file.sha256:
            raise self._damaged(file.path, "its digest is not the manifest's")
        decoded: dict[str, Any] = json.loads(data)
        return decoded

    def _damaged(self, path: str, why: str) -> StorageConflict:
        where = f"{self._store.url}/{path}"
        return StorageConflict(one_line("shard is damaged", where, why, "run the sample step again"))


def _plain(value: Any) -> Any:
    return json.loads(canonical_json(value))


def _zarr_store(store: Store) -> ZarrStore:
    if isinstance(store, LocalStore):
        return ZarrLocalStore(store.root, read_only=True)
    if isinstance(store, ObjectStore):
        return ZarrObjectStore(store.remote, read_only=True)
    raise ConfigError(one_line("can't be read by zarr", store.url, type(store).__name__, "use a folder or a bucket"))
