import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from registration.views import Intrinsics, camera_of, distort, pixel_rays

small = st.floats(-0.1, 0.1)


@settings(max_examples=40, deadline=None)
@given(
    k1=small, k2=small, p1=st.floats(-0.01, 0.01), p2=st.floats(-0.01, 0.01), u=st.floats(0, 640), v=st.floats(0, 480)
)
def test_rays_undo_the_lens(k1, k2, p1, p2, u, v):
    camera = Intrinsics(640, 480, 600.0, 610.0, 318.0, 243.0, (k1, k2, p1, p2, 0.0))
    x, y = pixel_rays(camera, np.array([u]), np.array([v]))
    xd, yd = distort(x, y, camera.distortion)
    np.testing.assert_allclose([camera.fx * xd[0] + camera.cx, camera.fy * yd[0] + camera.cy], [u, v], atol=1e-6)


def test_a_kernels_row_is_the_camera():
    camera = Intrinsics(0, 0, 600.0, 610.0, 318.0, 243.0, (0.1, -0.02, 0.001, 0.002, 0.003))
    assert camera_of(camera.as_row()) == camera
