"""Landmarks found in pictures of a head from many sides come together in 3D; wrong ones are left out."""

import sys
import types

import numpy as np
import open3d as o3d
import pytest

from registration.landmark_views import fuse_landmarks, geometric_median, landmarks_from_views, lift
from registration.mediapipe_landmarks import FACE_MESH_TO_68, MediapipeLandmarks
from registration.mesh import transform_points
from registration.procedural_head import head_template
from registration.views import DepthView, Intrinsics
from storage.errors import ConfigError

CAMERA = Intrinsics(240, 320, 420.0, 420.0, 120.0, 160.0)


def _pose(azimuth_deg: float, height_mm: float = 0.0) -> np.ndarray:
    """A camera 600 mm away that looks at the head."""
    a = np.radians(azimuth_deg)
    eye = np.array([600 * np.sin(a), 30 + height_mm, 600 * np.cos(a)])
    forward = np.array([0.0, 30.0, 0.0]) - eye
    forward /= np.linalg.norm(forward)
    right = np.cross(forward, [0.0, 1.0, 0.0])
    right /= np.linalg.norm(right)
    T = np.eye(4)
    T[:3, :3] = np.stack([right, np.cross(forward, right), forward], 1)
    T[:3, 3] = eye
    return T


def _pixels(points: np.ndarray, T: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    seen = transform_points(np.linalg.inv(T), points)
    at = seen[:, :2] / seen[:, 2:] * [CAMERA.fx, CAMERA.fy] + [CAMERA.cx, CAMERA.cy]
    return at, seen[:, 2]


@pytest.fixture(scope="module")
def views() -> list[DepthView]:
    """The head from ten sides, the picture's number in its colour so that the fake detector knows it again."""
    mesh = head_template().mesh
    scene = o3d.t.geometry.RaycastingScene()
    scene.add_triangles(mesh.vertices, mesh.faces.astype(np.uint32))
    u, v = np.meshgrid(np.arange(CAMERA.width) + 0.5, np.arange(CAMERA.height) + 0.5)
    rays = np.stack([(u - CAMERA.cx) / CAMERA.fx, (v - CAMERA.cy) / CAMERA.fy, np.ones_like(u)], -1)
    out = []
    for k, azimuth in enumerate(np.linspace(-70, 70, 10)):
        T = _pose(azimuth, 40.0 * (-1) ** k)
        world = np.concatenate([np.broadcast_to(T[:3, 3], rays.shape), rays @ T[:3, :3].T], -1)
        hit = scene.cast_rays(o3d.core.Tensor(world.astype(np.float32)))["t_hit"].numpy()
        depth = np.where(np.isfinite(hit), hit, 0).astype(np.float32)
        color = np.full((CAMERA.height, CAMERA.width, 3), k, np.uint8)
        out.append(DepthView(f"{k:03d}", depth, color, CAMERA, T))
    return out


class _Fake:
    """Projects the true landmarks, adds noise, gets some wholly wrong, and guesses those that are hidden."""

    def __init__(self, views: list[DepthView], noise_px: float = 1.0, wrong: float = 0.1) -> None:
        self.views, self.noise_px, self.wrong = views, noise_px, wrong
        template = head_template()
        self.marks = template.mesh.vertices[template.landmarks].astype(float)

    def detect(self, color: np.ndarray) -> np.ndarray | None:
        k = int(color[0, 0, 0])
        if k in (0, 9):  # it doesn't know profiles
            return None
        rng = np.random.default_rng(k)
        at, _ = _pixels(self.marks, self.views[k].T_world_from_camera)
        at = at + rng.normal(0, self.noise_px, at.shape)
        bad = rng.random(68) < self.wrong
        at[bad] += rng.normal(0, 40, (bad.sum(), 2))
        return np.column_stack([at, np.ones(68)])


def test_true_landmarks_come_back_through_noise_and_errors(views: list[DepthView]) -> None:
    fake = _Fake(views)
    found = landmarks_from_views(views, fake)
    assert found is not None
    inner = found.known[found.known >= 17]
    assert len(inner) >= 40
    away = np.linalg.norm(found.points_mm - fake.marks, axis=1)
    assert np.median(away[inner]) < 1.43  # one pixel's width, the noise of each view
    assert away[inner].max() < 6.0
    assert (away[inner] < 3.0 * found.spread_mm[inner]).mean() > 0.95
    assert (found.spread_mm[found.known] >= 1.5).all()


def test_a_clean_view_lifts_exactly_what_it_sees(views: list[DepthView]) -> None:
    fake = _Fake(views, 0.0, 0.0)
    view = views[4]
    at, _ = _pixels(fake.marks, view.T_world_from_camera)
    lifted = lift(view, np.column_stack([at, np.ones(68)]))
    for i in (27, 28, 29, 30, 51, 19, 24):
        assert np.linalg.norm(lifted[i] - fake.marks[i]) < 1.0, i  # a pixel is 1.4 mm wide
    unsure = lift(view, np.column_stack([at, np.full(68, 0.2)]))
    assert np.isnan(unsure).all()
    nowhere = lift(view, np.column_stack([at + 1e4, np.ones(68)]))
    assert np.isnan(nowhere).all()


def test_no_face_in_any_picture_is_no_landmarks(views: list[DepthView]) -> None:
    assert landmarks_from_views([views[0], views[9]], _Fake(views)) is None
    gray = [DepthView(v.name, v.depth_mm, None, v.intrinsics, v.T_world_from_camera) for v in views]
    assert landmarks_from_views(gray, _Fake(views)) is None


def test_a_landmark_needs_two_views_that_agree() -> None:
    points = np.full((4, 68, 3), np.nan)
    points[0, 20] = [0, 0, 0]
    points[:2, 30] = [[0, 0, 0], [1, 0, 0]]
    points[:4, 40] = [[0, 0, 0], [1, 0, 0], [0, 1, 0], [90, 0, 0]]
    found = fuse_landmarks(points)
    assert found.known.tolist() == [30, 40]
    np.testing.assert_allclose(found.points_mm[40], [1 / 3, 1 / 3, 0])


def test_the_median_is_the_least_sum_of_distances() -> None:
    rng = np.random.default_rng(1)
    points = rng.normal(0, 10, (9, 3))
    middle = geometric_median(points)

    def cost(x: np.ndarray) -> float:
        return float(np.linalg.norm(points - x, axis=1).sum())

    assert all(cost(middle) <= cost(middle + rng.normal(0, 0.5, 3)) + 1e-9 for _ in range(200))


def test_mediapipe_is_an_option_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mediapipe", None)
    with pytest.raises(ConfigError, match="pip install mediapipe"):
        MediapipeLandmarks(b"model", "face.task")


def test_mediapipe_points_become_the_usual_68(monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a stand-in with mediapipe's interface."""
    assert len(set(FACE_MESH_TO_68.tolist())) == 68
    point = types.SimpleNamespace
    mesh = [point(x=i / 1000, y=i / 2000, z=0.0) for i in range(478)]
    made = types.SimpleNamespace(detect=lambda image: point(face_landmarks=[mesh] if image.data.any() else []))
    tasks = types.ModuleType("mediapipe.tasks.python")
    tasks.BaseOptions = lambda model_asset_buffer: model_asset_buffer
    tasks.vision = types.SimpleNamespace(
        FaceLandmarkerOptions=lambda **told: told,
        RunningMode=point(IMAGE=1),
        FaceLandmarker=point(create_from_options=lambda options: made),
    )
    base = types.ModuleType("mediapipe")
    base.Image = lambda image_format, data: point(data=data)
    base.ImageFormat = point(SRGB=1)
    for name, module in (("mediapipe", base), ("mediapipe.tasks", types.ModuleType("t")), (tasks.__name__, tasks)):
        monkeypatch.setitem(sys.modules, name, module)
    detector = MediapipeLandmarks(b"model", "face.task")
    assert detector.detect(np.zeros((10, 20, 3), np.uint8)) is None
    found = detector.detect(np.ones((100, 200, 3), np.uint8))
    assert found is not None
    np.testing.assert_allclose(found[30], [200 * 4 / 1000, 100 * 4 / 2000, 1.0])
