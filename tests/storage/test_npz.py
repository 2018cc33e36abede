"""NPZ files: what numpy writes is read as numpy reads it, and nothing is unpacked that its header doesn't allow."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.npz import Npz

ARRAYS = {
    "floats": np.arange(12, dtype=np.float32).reshape(3, 4),
    "fortran": np.asfortranarray(np.arange(12).reshape(3, 4)),
    "big_endian": np.arange(3, dtype=">i4"),
    "truth": np.array([True, False]),
    "text": np.array(["a", "grün"]),
    "one": np.float16(1.5),
    "none": np.zeros((0, 7)),
}


def packed(compressed: bool = False, **arrays: Any) -> bytes:
    out = io.BytesIO()
    (np.savez_compressed if compressed else np.savez)(out, **arrays)
    return out.getvalue()


def forged(header: str, content: bytes = b"", name: str = "a.npy", **options: Any) -> bytes:
    """A file with one array whose header says what it likes."""
    text = header.encode() + b"\n"
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", **options) as folder:
        folder.writestr(name, b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + content)
    return out.getvalue()


def told(shape: object, descr: object = "<f8") -> str:
    return str({"descr": descr, "fortran_order": False, "shape": shape})


@pytest.mark.parametrize("compressed", [False, True])
def test_reads_what_numpy_writes(compressed: bool) -> None:
    found = Npz(packed(compressed, **ARRAYS), 10_000)
    assert found.headers.keys() == ARRAYS.keys()
    for name, array in ARRAYS.items():
        read = found[name]
        np.testing.assert_array_equal(read, array)
        assert (read.dtype, read.shape) == (array.dtype, array.shape)
        assert (found.headers[name].dtype, found.headers[name].shape) == (array.dtype, array.shape)
        assert read.flags.writeable


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "does not end"),
        (b"PK\x03\x04 nothing", "does not end"),
        (packed(a=np.zeros(9))[:-1], "does not end"),
        (forged(told((10**12, 3))), "24000000000000 bytes unpacked, at most 10000"),
        (forged(told((2000,))), "16000 bytes unpacked"),
        (forged(told((1,), "<U250000000")), "bytes unpacked"),
        (forged(told((-1,))), r"shape \(-1,\)"),
        (forged(told((1,), "nothing")), "descr"),
        (forged("(" * 5000), "header"),
        (forged(told((0,)), name="a.txt"), "is no array"),
        (forged(told((0,)), compression=zipfile.ZIP_LZMA), "packed in a way"),
        (packed(**{f"a{number}": np.zeros(0) for number in range(2000)}), "more members"),
    ],
)
def test_what_is_none_or_too_large_is_said(data: bytes, says: str) -> None:
    tracemalloc.start()
    with pytest.raises(ValueError, match=says):
        Npz(data, 10_000)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2_000_000


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (forged(told((4,)), bytes(31)), "has not the bytes"),
        (forged(told((4,)), bytes(33)), "has not the bytes"),
        (packed(b=np.zeros(1)), "a is missing"),
        (packed(a=np.array([{}], object)), "neither numbers nor text"),
        (packed(a=np.zeros(2, [("x", "f4")])), "neither numbers nor text"),
        (packed(a=np.zeros(9000)).replace(bytes(60000), bytes(59999) + b"\1"), "CRC"),
    ],
)
def test_an_array_that_is_damaged_is_said(data: bytes, says: str) -> None:
    found = Npz(data, 100_000)
    with pytest.raises(ValueError, match=says):
        found["a"]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 4), st.booleans())
def test_changed_files_are_read_or_refused(seed: int, count: int, compressed: bool) -> None:
    rng = np.random.default_rng(seed)
    changed = np.frombuffer(packed(compressed, a=np.arange(9), b=np.array(["x"])), np.uint8).copy()
    changed[rng.integers(0, len(changed), count)] = rng.integers(0, 256, count)
    try:
        found = Npz(changed.tobytes(), 10_000)
        for name in found.headers:
            found[name]
    except ValueError as error:
        assert str(error)  # noqa: PT017  the property holds for whatever is raised
