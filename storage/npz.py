"""NPZ files from anywhere: what each array would take is read from its header before any is unpacked."""

from __future__ import annotations

import io
import math
import zipfile
import zlib
from dataclasses import dataclass
from tokenize import TokenError
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

MAX_DIRECTORY_BYTES = 64 * 1024
"""Of the list of a file's members: a few hundred arrays."""
_END_BYTES = 22
_KINDS = "biufSU"


@dataclass(frozen=True)
class ArrayHeader:
    """What an array says of itself.

    Attributes:
        shape: of the array.
        dtype: its kind; arrays of objects have a header, but are never unpacked.
        fortran: whether the first axis runs fastest.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool

    @property
    def bytes(self) -> int:
        """What the array takes."""
        return math.prod(self.shape) * self.dtype.itemsize


class Npz:
    """The arrays of an NPZ file by name, each unpacked when it is asked for.

    Args:
        data: the whole file, as ``numpy.savez`` or ``savez_compressed`` write it.
        most_bytes: what all arrays together may take.

    Attributes:
        headers: of all arrays by name.

    Raises:
        ValueError: it is no such file, is damaged, or its arrays would take more.
    """

    headers: dict[str, ArrayHeader]

    def __init__(self, data: bytes, most_bytes: int) -> None:
        _check_directory(data)
        try:
            self._folder = zipfile.ZipFile(io.BytesIO(data))
            self.headers = {}
            for entry in self._folder.infolist():
                name = entry.filename.removesuffix(".npy")
                if name == entry.filename or name in self.headers:
                    raise ValueError(f"its member {entry.filename[:80]!r} is no array, or stands twice")
                if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) or entry.flag_bits & 1:
                    raise ValueError(f"{name[:80]} is packed in a way that arrays are not")
                with self._folder.open(entry) as member:
                    self.headers[name] = _header(member)
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error, NotImplementedError) as error:
            raise ValueError(str(error) or "it ends too soon") from error
        total = sum(header.bytes for header in self.headers.values())
        if total > most_bytes:
            raise ValueError(f"{total} bytes unpacked, at most {most_bytes} are read")

    def __getitem__(self, name: str) -> NDArray[Any]:
        """Unpack an array.

        Raises:
            ValueError: there is none of this name, it holds neither numbers nor text, or it is damaged.
        """
        if name not in self.headers:
            raise ValueError(f"{name} is missing")
        header = self.headers[name]
        if header.dtype.kind not in _KINDS:
            raise ValueError(f"{name} is {str(header.dtype)[:80]}, neither numbers nor text")
        try:
            with self._folder.open(f"{name}.npy") as member:
                _header(member)
                content = member.read(header.bytes)
                if len(content) != header.bytes or member.read(1):  # at the end the checksum is held against it too
                    raise ValueError(f"{name} has not the bytes that its header promises")
        except (OSError, EOFError, zipfile.BadZipFile, zlib.error) as error:
            raise ValueError(f"{name} can't be unpacked: {error}") from error
        flat = np.frombuffer(bytearray(content), header.dtype)
        return flat.reshape(header.shape, order="F" if header.fortran else "C")


def _check_directory(data: bytes) -> None:
    """Hold the list of members against a limit before it is read: each takes many times its size."""
    end = data[-_END_BYTES:]
    if len(end) < _END_BYTES or end[:4] != b"PK\x05\x06" or end[-2:] != b"\0\0":
        raise ValueError("it does not end as an npz file does")
    if data[-_END_BYTES - 20 :][:4] == b"PK\x06\x07" or int.from_bytes(end[12:16], "little") > MAX_DIRECTORY_BYTES:
        raise ValueError("it has more members than an npz file of arrays")


def _header(member: IO[bytes]) -> ArrayHeader:
    version = npy.read_magic(member)
    read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}.get(version)
    if read is None:
        raise ValueError(f"it holds an array of version {version}")
    try:
        shape, fortran, dtype = read(member)
    except (RecursionError, MemoryError, TypeError, SyntaxError, TokenError) as error:
        raise ValueError("the header of an array is damaged") from error
    if any(length < 0 for length in shape):
        raise ValueError(f"it holds an array of the shape {str(shape)[:80]}")
    return ArrayHeader(tuple(shape), dtype, bool(fortran))
