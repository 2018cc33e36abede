import numpy as np
import pytest

from storage.errors import ScanRejected
from storage.obj import read_obj


def test_reads_positions_colours_and_fans_polygons() -> None:
    text = b"# made by hand\nv 0 0 0 1 0 0\nv 1 0 0 0 1 0\nv 1 1 0 0 0 1\nv 0 1 0 1 1 1\nvt 0 0\nf 1/1/1 2/1/1 3//1 4\n"
    found = read_obj(text, "square.obj")
    assert found.vertices.tolist() == [[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]]
    assert found.triangles.tolist() == [[0, 1, 2], [0, 2, 3]]
    assert found.colors is not None
    assert found.colors[1].tolist() == [0, 1, 0]


def test_counts_backwards() -> None:
    found = read_obj(b"v 0 0 0\nv 1 0 0\nv 0 1 0\nf -3 -2 -1\nv 9 9 9\n", "back.obj")
    assert found.triangles.tolist() == [[0, 1, 2]]
    assert found.colors is None
    assert found.vertices.dtype == np.float64


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"hello", "no vertices"),
        (b"v 0 0 0\nv 1 0\n", "damaged"),
        (b"v 0 0 zero\n", "damaged"),
        (b"v 0 0 0\nf 1 2 3\n", "names vertex 3"),
        (b"v 0 0 0\nf 1 0 1\n", "damaged"),
        (b"v 0 0 0\nf 1 x 1\n", "damaged"),
        (b"v 1\0 2 3\n", "binary"),
    ],
)
def test_says_what_is_wrong(text: bytes, says: str) -> None:
    with pytest.raises(ScanRejected, match=says) as caught:
        read_obj(text, "S/001/smile/scan.obj")
    assert str(caught.value).startswith("S/001/smile/scan.obj: ")
    assert "\n" not in str(caught.value)
