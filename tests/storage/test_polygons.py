import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from storage.polygons import fan_triangles


@given(st.lists(st.lists(st.integers(0, 99), max_size=6), max_size=12))
def test_fans_as_a_plain_loop_does(polygons):
    corners = np.array([corner for polygon in polygons for corner in polygon], np.int64)
    found = fan_triangles(corners, np.array([len(polygon) for polygon in polygons], np.int64))
    assert found.tolist() == [[p[0], p[k], p[k + 1]] for p in polygons for k in range(1, len(p) - 1)]
