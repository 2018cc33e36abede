"""PLY files are bounded before they are parsed, and damage never gets through."""

from __future__ import annotations

import tracemalloc

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import ScanRejected
from storage.ply import read_ply, write_ply

POINTS = np.random.default_rng(0).normal(size=(40, 3)).astype(np.float32)
FACES = np.arange(39, dtype=np.int32).reshape(-1, 3)
BINARY = write_ply(dict(zip("xyz", POINTS.T, strict=True)), FACES)
TEXT = (
    b"ply\nformat ascii 1.0\nelement vertex 4\nproperty float x\nproperty float y\nproperty float z\n"
    b"element face 1\nproperty list uchar int vertex_indices\nend_header\n0 0 0\n1 0 0\n1 1 0\n0 1 0\n4 0 1 2 3\n"
)


def test_what_was_written_is_read():
    columns, faces = read_ply(BINARY, "x")
    np.testing.assert_array_equal(np.stack([columns[axis] for axis in "xyz"], 1), POINTS)
    np.testing.assert_array_equal(faces, FACES)


def test_text_and_polygons():
    columns, faces = read_ply(TEXT, "x")
    assert columns["x"].tolist() == [0, 1, 1, 0]
    assert faces.tolist() == [[0, 1, 2], [0, 2, 3]]


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "is no PLY file"),
        (b"ply\n" * 100_000, "is no PLY file"),
        (BINARY[:-1], "PLY file is damaged"),
        (BINARY[:-200], "PLY file is truncated"),
        (BINARY.replace(b"float z", b"float w"), "PLY vertices have no z"),
        (BINARY.replace(b"vertex 40", b"vertex 4000000000"), "PLY header is not believable"),
        (TEXT.replace(b"4 0 1 2 3", b"4 0 1 2 9"), "PLY faces are damaged"),
        (TEXT.replace(b"4 0 1 2 3", b"4 0 1 2 -1"), "PLY faces are damaged"),
    ],
)
def test_damage_is_named(data, what):
    with pytest.raises(ScanRejected, match=f"x: {what}"):
        read_ply(data, "x")


def test_many_empty_lists_take_no_memory():
    head = (
        TEXT[: TEXT.index(b"element face")].replace(b"ascii", b"binary_little_endian").replace(b"vertex 4", b"vertex 1")
    )
    head += b"element face 20000000\nproperty list uchar int vertex_indices\nend_header\n"
    data = head + bytes(12 + 20_000_000)
    tracemalloc.start()
    with pytest.raises(ScanRejected, match="PLY file is too large"):
        read_ply(data, "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 400e6


@settings(max_examples=400, deadline=None)
@given(st.sampled_from([BINARY, TEXT]), st.integers(0, 2**31), st.integers(1, 6))
def test_mutated_files_are_read_or_rejected(data, seed, count):
    rng = np.random.default_rng(seed)
    changed = np.frombuffer(data, np.uint8).copy()
    changed[rng.integers(0, len(data), count)] = rng.integers(0, 256, count)
    cut = changed[: rng.integers(1, len(data))] if seed % 3 == 0 else changed
    line = "x: "
    try:
        columns, faces = read_ply(cut.tobytes(), "x")
        assert not len(faces) or faces.max() < len(columns["x"])
    except ScanRejected as error:
        line = str(error)
    assert line.startswith("x: ")
    assert line.isprintable()
