"""PLY files are bounded before they are parsed, and damage never gets through."""

from __future__ import annotations

import io
import tracemalloc

import numpy as np
import plyfile
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.errors import ScanRejected
from storage.ply import read_ply, without_comments, write_ply

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
        (bytes(range(256)) * 40, "is no PLY file"),
        (BINARY[:-1], "PLY file is damaged \\(it ends in face 12 of 13"),
        (BINARY + bytes(100), r"PLY file is damaged \(100 bytes follow what its header promises\)"),
        (BINARY.replace(b"vertex 40", b"vertex 1"), "PLY file is damaged"),
        (BINARY[:-200], "PLY file is truncated"),
        (BINARY.replace(b"float z", b"float w"), "PLY vertices have no z"),
        (BINARY.replace(b"vertex 40", b"vertex 4000000000"), "PLY header is not believable"),
        (TEXT.replace(b"4 0 1 2 3", b"4 0 1 2 9"), "PLY faces are damaged"),
        (TEXT.replace(b"4 0 1 2 3", b"4 0 1 2 -1"), r"PLY faces are damaged \(a face names vertex -1 of 4\)"),
        (TEXT.replace(b"4 0 1 2 3", b"4 0 1 2"), "PLY file is (damaged|truncated)"),
        (TEXT.replace(b"4 0 1 2 3", b"4 0 1 2 2.5"), "a vertex_indices is no whole number"),
        (TEXT.replace(b"4 0 1 2 3", b"-4 0 1 2 3"), "the list of face 0 is -4 long"),
        (TEXT.replace(b"1 0 0\n", b"1,5 0 0\n"), "'1,5' is no number; numbers need a decimal point, in line 11"),
        (TEXT.replace(b"float x", b"float y"), "PLY header is damaged"),
        (TEXT.replace(b"float x", b"flaot x"), "PLY header is damaged"),
        (TEXT.replace(b"ascii", b"binary"), "PLY header is damaged"),
        (TEXT.replace(b"element face 1", b"element vertex 1"), "PLY header is damaged"),
        (TEXT.replace(b"vertex 4", b"vertex -4"), "PLY header is damaged"),
        (TEXT.replace(b"vertex_indices", b"corners"), "PLY faces have no vertex list"),
        (TEXT.replace(b"uchar int", b"float int"), "PLY header is damaged"),
        (TEXT[: TEXT.index(b"element face")] + b"end_header\n0 0 0\n", "PLY file is truncated"),
    ],
)
def test_damage_is_named(data, what):
    with pytest.raises(ScanRejected, match=f"x: .*{what}"):
        read_ply(data, "x")


MIXED = [[0, 1, 2], [0, 1, 2, 3], [3, 4, 5, 6, 7], [0, 2], [7, 8, 9]]


def written_by_plyfile(kind: str, lists: list[list[int]], extra: bool) -> bytes:
    """A mesh with all that other programs put into a PLY, written by an independent library."""
    fields = [("x", "f8"), ("y", "f4"), ("z", "f8"), ("red", "u1"), ("quality", "f4"), ("flags", "i4")]
    vertex = np.zeros(len(POINTS), fields)
    for axis, column in zip("xyz", POINTS.T, strict=True):
        vertex[axis] = column
    vertex["red"] = np.arange(len(POINTS))
    vertex["flags"] = -np.arange(len(POINTS))
    face = np.zeros(len(lists), [("quality", "f4"), ("vertex_index", "O"), ("texcoord", "O")])
    for row, corners in enumerate(lists):
        face[row] = (row / 3, np.array(corners, "u4"), np.arange(2 * len(corners), dtype="f4"))
    elements = [plyfile.PlyElement.describe(vertex, "vertex")]
    types = {"vertex_index": "u1", "texcoord": "u2"}
    elements += [plyfile.PlyElement.describe(face, "face", len_types=types, val_types={"vertex_index": "u4"})]
    if extra:
        odd = np.zeros(3, [("value", "f8"), ("list", "O")])
        for row in range(3):
            odd[row] = (row, np.arange(row, dtype="i2"))
        elements.insert(0, plyfile.PlyElement.describe(odd, "odd", val_types={"list": "i2"}))
        elements.append(plyfile.PlyElement.describe(np.zeros(2, [("a", "f4")]), "camera"))
    out = io.BytesIO()
    order = {"ascii": "=", "little": "<", "big": ">"}[kind]
    plyfile.PlyData(elements, text=kind == "ascii", byte_order=order, comments=["by hand"]).write(out)
    return out.getvalue()


@pytest.mark.parametrize("extra", [False, True], ids=["plain", "further elements"])
@pytest.mark.parametrize("lists", [FACES.tolist(), MIXED], ids=["triangles", "polygons"])
@pytest.mark.parametrize("kind", ["ascii", "little", "big"])
def test_reads_what_another_library_wrote(kind, lists, extra):
    columns, faces = read_ply(written_by_plyfile(kind, lists, extra), "x")
    np.testing.assert_array_equal(np.stack([columns[axis] for axis in "xyz"], 1), POINTS)
    assert [columns[name].dtype.str[1:] for name in ("x", "y", "red", "flags")] == ["f8", "f4", "u1", "i4"]
    assert columns["red"].tolist() == list(range(len(POINTS)))
    assert columns["flags"].tolist() == [-i for i in range(len(POINTS))]
    fans = [[p[0], p[k], p[k + 1]] for p in lists for k in range(1, len(p) - 1)]
    assert faces.tolist() == fans
    assert faces.dtype == np.int32


def test_another_library_reads_what_was_written():
    read = plyfile.PlyData.read(io.BytesIO(BINARY))
    np.testing.assert_array_equal(np.stack([read["vertex"][axis] for axis in "xyz"], 1), POINTS)
    np.testing.assert_array_equal(np.stack(list(read["face"]["vertex_indices"])), FACES)
    colored = write_ply(
        {"x": POINTS[:, 0].astype(">f4"), "red": np.arange(40, dtype=np.uint8), "k": np.arange(40)[:] * 0.5}
    )
    out = io.BytesIO()
    plyfile.PlyData.read(io.BytesIO(colored)).write(out)
    assert out.getvalue() == colored


@pytest.mark.parametrize("newline", [b"\r\n", b"\r"])
def test_other_line_ends(newline):
    for data in (TEXT.replace(b"\n", newline), BINARY):
        head, _, body = data.partition(b"end_header")
        columns, _ = (
            read_ply(head.replace(b"\n", newline) + b"end_header" + body, "x")
            if data is not BINARY
            else (read_ply(head.replace(b"\n", newline) + b"end_header" + newline + body[1:], "x"))
        )
        assert len(columns["x"]) in (4, 40)


def least_memory(data: bytes, what: str) -> int:
    tracemalloc.start()
    with pytest.raises(ScanRejected, match=what):
        read_ply(data, "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("count", [4_000_000_000, 49_000_000, 10**18, 10**30])
@pytest.mark.parametrize("kind", [b"ascii", b"binary_little_endian"])
@pytest.mark.parametrize("element", [b"vertex", b"face", b"odd"])
def test_promises_take_no_memory(count, kind, element):
    columns = b"property list uchar int vertex_indices\n" if element == b"face" else b"property double x\n" * 1
    promise = b"element %s %d\n" % (element, count)
    head = TEXT[: TEXT.index(b"element vertex")].replace(b"ascii", kind) + promise + columns + b"end_header\n0 0 0 0\n"
    assert least_memory(head, "x: PLY (header is not believable|header is damaged|file is truncated)") < 1e6


def test_long_lists_take_no_memory():
    head = b"ply\nformat binary_little_endian 1.0\nelement face 1\nproperty list uint int vertex_indices\nend_header\n"
    assert least_memory(head + b"\xff" * 20, "x: PLY file is damaged") < 1e6


def test_many_short_lists_take_no_memory():
    head = (
        TEXT[: TEXT.index(b"element face")].replace(b"ascii", b"binary_little_endian").replace(b"vertex 4", b"vertex 1")
    )
    head += b"element face 20000000\nproperty list uchar int vertex_indices\nend_header\n"
    empty = bytes(12 + 19_999_996) + b"\1\0\0\0\0"
    assert least_memory(head + empty, "PLY file is too large") < 100e6


SAMPLES = [BINARY, TEXT, *(written_by_plyfile(kind, MIXED, True) for kind in ("ascii", "little", "big"))]


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(SAMPLES), st.integers(0, 2**31), st.integers(1, 6))
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


def test_comments_go_and_nothing_else():
    told = BINARY.replace(b"element vertex", b"comment made by Anna\nobj_info scanner 17\nelement vertex", 1)
    assert without_comments(told) == without_comments(BINARY) == BINARY
    assert without_comments(b"no mesh at all") == b"no mesh at all"
