import io
import re
import tracemalloc
from unittest.mock import patch

import numpy as np
import pytest
import trimesh
from hypothesis import given, settings
from hypothesis import strategies as st

from storage import obj
from storage.errors import ScanRejected
from storage.obj import read_obj, write_obj

SQUARE = b"""# made by hand
mtllib missing.mtl
o square
v 0 0 0 1 0 0
v 1 0 0 0 1 0
v 1 1 0 0 0 1 # the far corner
v 0 1 0 1 1 1
vt 0 0
vn 0 0 1
usemtl skin
s off
f 1/1/1 2/1/1 3//1 4
"""


def plain(data: bytes) -> tuple[list[list[float]], list[list[int]]]:
    """A reader as one would write it first."""
    vertices: list[list[float]] = []
    triangles = []
    for line in data.decode().splitlines():
        words = line.split("#")[0].split()
        if words[:1] == ["v"]:
            vertices.append([float(word) for word in words[1:4]])
        if words[:1] == ["f"]:
            told = [int(word.split("/")[0]) for word in words[1:]]
            corners = [c - 1 if c > 0 else len(vertices) + c for c in told]
            triangles += [[corners[0], corners[k], corners[k + 1]] for k in range(1, len(corners) - 1)]
    return vertices, triangles


def test_reads_positions_colours_and_fans_polygons() -> None:
    found = read_obj(SQUARE, "square.obj")
    assert found.vertices.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
    assert found.triangles.tolist() == [[0, 1, 2], [0, 2, 3]]
    assert found.colors is not None
    assert found.colors[1].tolist() == [0, 1, 0]
    assert found.vertices.dtype == np.float64


@pytest.mark.parametrize(
    "change",
    [
        lambda data: data.replace(b"\n", b"\r\n"),
        lambda data: data.replace(b"\n", b"\r"),
        lambda data: data.replace(b"\nv ", b"\n\t v\t").replace(b"\nf ", b"\n  f "),
        lambda data: data.replace(b"3//1 4", b"3//1 \\\n 4"),
        lambda data: data.replace(b" 1 0 0\nv", b" 255 0 0\nv").replace(b"0 1 0\nv", b"0 255 0\nv"),
        lambda data: data.rstrip(),
        lambda data: data.replace(b"f 1/1/1 2/1/1 3//1 4", b"f -4/-1 -3/-1 -2/-1 -1/-1"),
    ],
)
def test_other_spellings_are_the_same(change) -> None:
    found = read_obj(change(SQUARE), "square.obj")
    assert found.vertices.tolist() == read_obj(SQUARE, "x").vertices.tolist()
    assert found.triangles.tolist() == [[0, 1, 2], [0, 2, 3]]
    assert found.colors is not None
    assert (found.colors[1, [0, 2]] == 0).all()


def test_counts_backwards() -> None:
    found = read_obj(b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf -3 -2 -1\nv 9 9 9\n", "back.obj")
    assert found.triangles.tolist() == [[0, 1, 2]]
    assert found.colors is None


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 9))
def test_reads_as_a_plain_reader_does(seed: int, at_a_time: int) -> None:
    """However few lines or bytes are read at a time."""
    rng = np.random.default_rng(seed)
    lines = [f"v {x:g} {y:g} {z:g}" for x, y, z in rng.normal(size=(6, 3))]
    for _ in range(12):
        size = rng.integers(0, 6)
        ends = ["", "/7", "//3", "/1/2"][rng.integers(4)]
        face = "f " + " ".join(f"{c}{ends}" for c in rng.choice([1, 2, 6, -1, -6], size))
        other = ["vt 0 1", "vn 0 0 1", "", "# v 1 2 3", "v 1 2 3 # 4", "g f 1"][rng.integers(6)]
        lines += [face, other]
    data = "\n".join([*lines, ""]).encode()
    vertices, triangles = plain(data)
    for changed in ({"LINES_AT_A_TIME": at_a_time}, {"BYTES_AT_A_TIME": 7 * at_a_time, "_SCAN_BYTES": at_a_time}):
        with patch.multiple(obj, **changed):
            found = read_obj(b"\n\t f 1 2 3\n".join([data, b""]), "x")
        assert found.vertices.tolist() == vertices
        assert found.triangles.tolist() == [*triangles, [0, 1, 2]]


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"hello", "no vertices"),
        (b"", "no vertices"),
        (b"v 0 0 0\nv 1 0\n", "line 2 has 2 numbers, the first vertex has 3"),
        (b"v 0 0 0\nv 1 0\nv 1 1 1 1\n", "line 2 has 2 numbers, the first vertex has 3"),
        (b"v \nv 1 0 0\n", "the first vertex, in line 1, has 0 coordinates"),
        (b"# one\nv 0 0 zero\n", "'zero' is no number, in line 2"),
        (b"v 0,5 0 1\n", "'0,5' is no number; numbers need a decimal point, in line 1"),
        (b"v 0 0 0\nf 1 2 3\n", "a face names vertex 2 of 1"),
        (b"v 0 0 0\nf 1 0 1\n", "line 2 names vertex 0"),
        (b"v 0 0 0\nf 1 -2 1\n", "a face names vertex 0 of 1"),
        (b"v 0 0 0\nf 1 1e30 1\n", "line 2 names vertex 1e+30"),
        (b"v 0 0 0\nf 1 nan 1\n", "line 2 names vertex nan"),
        (b"v 0 0 0\nf 1 1.5 1\n", "line 2 names vertex 1.5"),
        (b"v 0 0 0\nf 1 x 1\n", "'x' is no number, in line 2"),
        (
            b"v 0 0 0\nv 1 0 0\nv 1 1 0\nv 0 1 0\nf 1 2 3\nf 1 3",
            "OBJ file is truncated (it ends within a line, and 1 of 4",
        ),
        (b"v 1\0 2 3\n", "binary"),
        (b"v 1 2 3\n" * 9000 + b"\0", "binary"),
        (bytes(range(256)) * 9, "binary"),
    ],
)
def test_says_what_is_wrong(text: bytes, says: str) -> None:
    with pytest.raises(ScanRejected, match=re.escape(says)) as caught:
        read_obj(text, "S/001/smile/scan.obj")
    assert str(caught.value).startswith("S/001/smile/scan.obj: ")
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "line",
    [
        b"v 0 0 0\n", b"f 1 1 1\n", b"\n", b" \n", b"f\n", b"v 0 0 0\nvn 0 0 1\n", b"v -12.345678 9.8765432 1.234567\n",
        b"f 1/1/1 1/2/2 1/3/3\n", b"# f 1 2 3\n", b"f -1 -1 -1 -1\n",
    ],
)  # fmt: skip
def test_memory_is_a_few_times_the_files(line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is read at a time is made small, so that what grows with the file alone is left."""
    for name in ("LINES_AT_A_TIME", "BYTES_AT_A_TIME", "_SCAN_BYTES"):
        monkeypatch.setattr(obj, name, 1 << 12)
    data = b"  v 0 0 0\nf 1 1 1\n" + line * (1_000_000 // len(line))
    tracemalloc.start()
    read_obj(data, "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 14 * len(data) + 2_000_000


def test_memory_is_bounded_for_polygons_of_many_corners() -> None:
    data = b"v 0 0 0\n" + (b"f" + b" 1" * 200 + b"\n") * 5000
    tracemalloc.start()
    read_obj(data, "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 40 * len(data)


def test_too_many_lines_are_counted_and_left(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(obj, "MAX_LINES", 100)
    data = b"v 0 0 0\n" + b"\n" * 1_000_000
    tracemalloc.start()
    with pytest.raises(ScanRejected, match=r"is too large \(1000002 lines, at most 100 are read\)"):
        read_obj(data, "x")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 * len(data)


def test_a_line_without_end_is_refused() -> None:
    with pytest.raises(ScanRejected, match=r"damaged \(line 2 has 2000003 bytes, at most 1048576 are read\)"):
        read_obj(b"v 0 0 0\nf" + b" 1" * 1_000_000 + b" \n", "x")


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 6))
def test_mutated_files_are_read_or_rejected(seed: int, count: int) -> None:
    rng = np.random.default_rng(seed)
    changed = np.frombuffer(SQUARE, np.uint8).copy()
    changed[rng.integers(0, len(changed), count)] = rng.integers(0, 256, count)
    line = "x: "
    try:
        found = read_obj(changed.tobytes(), "x")
        assert not len(found.triangles) or found.triangles.max() < len(found.vertices)
    except ScanRejected as error:
        line = str(error)
    assert line.startswith("x: ")
    assert line.isprintable()


def test_a_written_mesh_is_read_again_by_us_and_by_others() -> None:
    rng = np.random.default_rng(0)
    vertices, faces = rng.normal(size=(5, 3)) * 100, np.array([[0, 1, 2], [2, 3, 4]], np.int32)
    normals, colors = rng.normal(size=(5, 3)), rng.integers(0, 256, (5, 3)).astype(np.uint8)
    groups = {"face": np.array([True, False]), "ears": np.zeros(2, bool), "hair": np.array([False, True])}
    data = write_obj(vertices, faces, normals, colors, groups)
    read = read_obj(data, "made.obj")
    assert np.allclose(read.vertices, vertices, atol=1e-5)
    assert read.colors is not None
    assert np.array_equal(np.round(read.colors * 255), colors)
    assert np.array_equal(read.triangles, faces)
    assert (b"\ng face\n" in data, b"g ears" in data) == (True, False)
    other = trimesh.load(io.BytesIO(data), file_type="obj", process=False, maintain_order=True)
    assert np.array_equal(other.faces, faces)
    assert np.allclose(other.vertices, vertices, atol=1e-5)
    assert np.array_equal(read_obj(write_obj(vertices, faces), "made.obj").triangles, faces)
