"""Groups of quantised arrays as sharded Zarr 3, over the project's one store.

A group is encoded to whole objects in memory first; the caller puts them through the store and lists them in a
manifest, so a group appears with its manifest or not at all. One array is one shard, written by one writer, read in
chunks. Every chunk and every shard index carries a CRC-32C, and the metadata is held against the manifest's SHA-256: no
damaged byte is read as data.

Any Zarr 3 reader can read what is written here. The reader below is of its own, because a small read costs zarr about
3 ms and a batch takes a hundred of them: it fetches the chunks it wants in one range request and decodes them in place.

Attributes follow the CF conventions (``scale_factor``, ``add_offset``, ``units``, ``flag_meanings``), which xarray
applies when it opens a group; dimensions have names. Plain zarr opens it too::

    group = zarr.open_group("WS/samples.zarr", mode="r")["001/neutral_open"]
    position = group["surface_position"]
    position_mm = position[:1000] * position.attrs["scale_factor"] + position.attrs["add_offset"]
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import google_crc32c
import numpy as np
import zarr
from numcodecs.zstd import decompress
from numpy.typing import NDArray
from zarr.codecs import Crc32cCodec, ZstdCodec
from zarr.core.buffer import Buffer
from zarr.storage import MemoryStore as ZarrMemoryStore

from storage.digest import canonical_json, digest_bytes
from storage.errors import StorageConflict, one_line
from storage.quantise import Column
from storage.store import Store

CHUNK_ROWS = 8_192
"""Rows that are read and decoded at once; a plain small read costs about as much as a whole chunk."""


_CRC_BYTES = 4
_MISSING = "missing"
_CHUNK_CODECS = ["bytes", "zstd", "crc32c"]


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


class _File(NamedTuple):
    bytes: int
    sha256: str


@dataclass(frozen=True)
class _Shard:
    """One array: where it lies, its shape, and where each of its chunks begins and ends."""

    path: str
    shape: tuple[int, ...]
    dtype: np.dtype
    chunk_rows: int
    spans: NDArray[np.int64]


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
        self._store, self._prefix, self._columns = store, prefix, columns
        cut = len(prefix) + 1
        own = (file for file in files.values() if file.path.startswith(f"{prefix}/"))
        self._files = {file.path[cut:]: _File(file.bytes, file.sha256) for file in own}
        self._shards: dict[str, _Shard] = {}
        self.attributes: dict[str, Any] = self._metadata("zarr.json")["attributes"]

    def rows(self, name: str) -> int:
        """Number of rows of an array."""
        return self._shard(name).shape[0]

    def read(self, name: str, start: int = 0, stop: int | None = None) -> NDArray:
        """Stored values of rows ``start`` to ``stop``.

        Raises:
            StorageConflict: the shard is damaged.
        """
        shard = self._shard(name)
        stop = shard.shape[0] if stop is None else min(stop, shard.shape[0])
        out = np.empty((max(stop - start, 0), *shard.shape[1:]), shard.dtype)
        if not len(out):
            return out
        first, last = start // shard.chunk_rows, (stop - 1) // shard.chunk_rows
        begin, end = int(shard.spans[first, 0]), int(shard.spans[last, 1])
        data = self._range(shard.path, begin, end)
        for chunk in range(first, last + 1):
            at, past = shard.spans[chunk] - begin
            low = chunk * shard.chunk_rows - start
            place = out[max(low, 0) : low + shard.chunk_rows]
            whole = low >= 0 and len(place) == shard.chunk_rows
            rows = place if whole else np.empty((shard.chunk_rows, *shard.shape[1:]), shard.dtype)
            try:
                decompress(_checked(data, at, past), rows)
            except (ValueError, RuntimeError) as error:
                raise self._damaged(shard.path, f"chunk {chunk}: {error}") from error
            if not whole:
                skipped = max(-low, 0)
                place[...] = rows[skipped : skipped + len(place)]
        return out

    def _shard(self, name: str) -> _Shard:
        if name not in self._shards:
            self._shards[name] = self._open(name)
        return self._shards[name]

    def _open(self, name: str) -> _Shard:
        metadata, column = self._metadata(f"{name}/zarr.json"), self._columns[name]
        codec = metadata["codecs"][0]["configuration"]
        known = metadata["data_type"] == column.dtype and metadata["attributes"] == column.described()
        if not known or [one["name"] for one in codec["codecs"]] != _CHUNK_CODECS:
            remedy = "run the sample step again"
            raise StorageConflict(one_line("is stored in another format", f"{self._prefix}/{name}", "", remedy))
        shape, chunk_rows = tuple(metadata["shape"]), int(codec["chunk_shape"][0])
        path = "/".join([name, "c", *("0" for _ in shape)])
        chunks = -(-shape[0] // chunk_rows)
        spans = self._index(path, chunks) if chunks else np.empty((0, 2), np.int64)
        return _Shard(path, shape, np.dtype(column.dtype), chunk_rows, spans)

    def _index(self, path: str, chunks: int) -> NDArray[np.int64]:
        """First and last byte of each chunk, from the index at the shard's end."""
        file = self._files.get(path)
        if file is None:
            raise self._damaged(path, "the manifest does not list it")
        found = self._store.stat(f"{self._prefix}/{path}")
        if found is None or found.bytes != file.bytes:
            raise self._damaged(path, _MISSING if found is None else f"{found.bytes} of {file.bytes} bytes")
        length = chunks * 16 + _CRC_BYTES
        try:
            index = _checked(self._range(path, file.bytes - length, file.bytes), 0, length)
        except ValueError as error:
            raise self._damaged(path, f"its index: {error}") from error
        spans = np.frombuffer(index, "<u8").astype(np.int64).reshape(chunks, 2)
        spans[:, 1] += spans[:, 0]
        if (spans[0, 0] < 0) or (spans[1:, 0] < spans[:-1, 1]).any() or spans[-1, 1] > file.bytes - length:
            raise self._damaged(path, "its index points outside")
        return spans

    def _range(self, path: str, start: int, stop: int) -> bytes:
        try:
            data = self._store.get_range(f"{self._prefix}/{path}", start, stop)
        except FileNotFoundError as error:
            raise self._damaged(path, _MISSING) from error
        if len(data) != stop - start:
            raise self._damaged(path, f"it ends {stop - start - len(data)} bytes early")
        return data

    def _metadata(self, path: str) -> dict[str, Any]:
        file = self._files.get(path)
        if file is None:
            raise self._damaged(path, "the manifest does not list it")
        try:
            data = self._store.get(f"{self._prefix}/{path}")
        except FileNotFoundError as error:
            raise self._damaged(path, _MISSING) from error
        if digest_bytes(data) != file.sha256:
            raise self._damaged(path, "its digest is not the manifest's")
        decoded: dict[str, Any] = json.loads(data)
        return decoded

    def _damaged(self, path: str, why: str) -> StorageConflict:
        remedy = "run again" if why == _MISSING else "delete it and run again"
        return StorageConflict(one_line("shard is damaged", f"{self._store.url}/{self._prefix}/{path}", why, remedy))


def _checked(data: bytes, start: int, stop: int) -> bytes:
    """The bytes between ``start`` and the CRC-32C that ends at ``stop``, once that agrees with them.

    Raises:
        ValueError: it does not.
    """
    content = data[start : stop - _CRC_BYTES]
    if google_crc32c.value(content) != int.from_bytes(data[stop - _CRC_BYTES : stop], "little"):
        raise ValueError("its checksum disagrees")
    return content
