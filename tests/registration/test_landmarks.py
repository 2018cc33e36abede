"""Landmarks of a scan: their file, the pose that they tell, and their pull in a fit."""

import json

import numpy as np
import pytest
from scipy.spatial.transform import Rotation

from registration import alignment
from registration.alignment import align_head
from registration.basis_fit import BasisFit, LinearModel, Misfit, Pins, Stage, fit_basis
from registration.landmarks import MIRRORED, NAMES, Landmarks, landmarks_from_json, landmarks_to_json, pose_by_landmarks
from registration.mesh import Mesh, transform_points, vertex_normals
from registration.procedural_head import head_template
from registration.surface import SurfaceIndex
from storage.errors import ScanRejected


def _pose(seed: int) -> np.ndarray:
    T = np.eye(4)
    T[:3, :3] = Rotation.random(random_state=seed).as_matrix()
    T[:3, 3] = np.random.default_rng(seed).normal(0, 300, 3)
    return T


def _told(points: np.ndarray, spread_mm: float = 2.0) -> Landmarks:
    return Landmarks(points, np.where(np.isfinite(points[:, 0]), spread_mm, np.nan))


def test_a_list_with_gaps_is_read_in_its_unit() -> None:
    points = [[float(i), 0.5, -1.0] for i in range(68)]
    points[5] = None
    found = landmarks_from_json(json.dumps({"unit": "cm", "landmarks": points}).encode(), "a/landmarks.json")
    assert 5 not in found.known
    assert len(found.known) == 67
    np.testing.assert_allclose(found.points_mm[7], [70.0, 5.0, -10.0])
    again = landmarks_from_json(landmarks_to_json(found), "again")
    np.testing.assert_array_equal(again.points_mm, found.points_mm)
    np.testing.assert_array_equal(again.spread_mm, found.spread_mm)


def test_names_and_numbers_tell_the_same() -> None:
    told = {"nose_tip": [0.0, 0.0, 0.1], "36": [0.1, 0.2, 0.3]}
    found = landmarks_from_json(json.dumps({"landmarks": told, "spread_mm": 3}).encode(), "x", unit="m")
    assert found.known.tolist() == [NAMES["nose_tip"], 36]
    np.testing.assert_allclose(found.points_mm[30], [0.0, 0.0, 100.0])
    assert found.spread_mm[36] == 3.0


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (b"{", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (b"{}", "'landmarks' is missing"),
        (b"[[1, 2, 3]]", "tells 1 landmarks"),
        (b'{"landmarks": {"nose": [1, 2, 3]}}', "'nose' is not known"),
        (b'{"landmarks": {"68": [1, 2, 3]}}', "'68' is not known"),
        (b'{"landmarks": {"3": [1, 2]}}', "landmark 3 is no point"),
        (b'{"landmarks": {"3": [1, 2, NaN]}}', "landmark 3 is no point"),
        (b'{"landmarks": {}, "unit": "inch"}', "'inch' is not known"),
        (b'{"landmarks": {}, "spread_mm": 0}', "no standard deviation"),
    ],
)
def test_what_is_no_landmarks_file_is_named(text: bytes, says: str) -> None:
    with pytest.raises(ScanRejected, match=says) as caught:
        landmarks_from_json(text, "001/smile/landmarks.json")
    assert str(caught.value).startswith("001/smile/landmarks.json: ")
    assert "\n" not in str(caught.value)


def test_the_sides_mirror_one_another() -> None:
    template = head_template()
    np.testing.assert_array_equal(MIRRORED[MIRRORED], np.arange(68))
    np.testing.assert_array_equal(template.landmarks[MIRRORED], template.mirror[template.landmarks])


@pytest.mark.parametrize("seed", range(4))
def test_single_wrong_landmarks_are_outvoted(seed: int) -> None:
    rng = np.random.default_rng(seed)
    marks = head_template().mesh.vertices[head_template().landmarks].astype(float)
    T = _pose(seed)
    points = transform_points(T, marks + rng.normal(0, 2, marks.shape))
    points[rng.choice(68, 10, replace=False)] += rng.normal(0, 150, (10, 3))
    points[rng.choice(68, 20, replace=False)] = np.nan
    found = pose_by_landmarks(marks, _told(points))
    assert found is not None
    assert np.linalg.norm(transform_points(found, marks) - transform_points(T, marks), axis=1).max() < 4.0


def test_too_few_landmarks_tell_no_pose() -> None:
    marks = head_template().mesh.vertices[head_template().landmarks].astype(float)
    few = np.where(np.arange(68)[:, None] < 5, marks, np.nan)
    on_a_line = np.where(np.isin(np.arange(68), [27, 28, 29, 30, 51, 57, 8])[:, None], [[0.0, 1.0, 2.0]], np.nan)
    on_a_line *= np.arange(68)[:, None]
    assert pose_by_landmarks(marks, _told(few)) is None
    assert pose_by_landmarks(on_a_line, _told(on_a_line)) is None


def test_landmarks_spare_the_search(monkeypatch: pytest.MonkeyPatch) -> None:
    template = head_template()
    T = _pose(8)
    head = template.mesh.transformed(T)
    normals = vertex_normals(head.vertices, head.faces)
    marks = head.vertices[template.landmarks].astype(float) / 10.0
    monkeypatch.setattr(alignment, "correlate", lambda *_: pytest.fail("searched all rotations"))
    told = _told(marks + np.random.default_rng(0).normal(0, 0.2, marks.shape), 0.2)
    found = align_head(head.vertices / 10.0, normals, template, scales=(10.0,), landmarks=told)
    assert found.accepted
    assert np.linalg.norm(transform_points(np.linalg.inv(T) @ found.T_world_from_head, marks) - marks, axis=1).max() < 3


def test_landmarks_of_something_else_do_not_mislead() -> None:
    template = head_template()
    T = _pose(9)
    head = template.mesh.transformed(T)
    normals = vertex_normals(head.vertices, head.faces)
    upside_down = head.vertices[template.landmarks].astype(float) @ Rotation.from_euler("x", 2.5).as_matrix()
    found = align_head(head.vertices, normals, template, landmarks=_told(upside_down))
    off = np.linalg.inv(T) @ found.T_world_from_head
    assert found.accepted
    np.testing.assert_allclose(off[:3, :3], np.eye(3), atol=0.05)


def test_the_pull_is_the_derivative_of_the_distance() -> None:
    rng = np.random.default_rng(2)
    vertices, faces = rng.normal(0, 50, (30, 3)), np.zeros((0, 3), np.int32)
    basis = rng.normal(0, 1, (4, 30, 3)).astype(np.float32)
    one = np.ones(4)
    model = LinearModel(vertices, faces, basis, 0 * one, one, -3 * one, 3 * one)
    pins = Pins(np.array([1, 7, 20]), vertices[[1, 7, 20]] + rng.normal(0, 1e-3, (3, 3)), np.array([1.0, 2.0, 3.0]))
    T, centre = _pose(3), rng.normal(0, 10, 3)
    pins = Pins(pins.vertices, transform_points(T, pins.targets), pins.spread_mm)
    _, gradient = pins.pull(model, model.shape(np.zeros(4)), T, centre)

    def energy(step: np.ndarray) -> float:
        turn = np.eye(4)
        turn[:3, :3] = Rotation.from_rotvec(step[:3]).as_matrix()
        turn[:3, 3] = centre + step[3:6] - turn[:3, :3] @ centre
        placed = transform_points(turn @ T, model.shape(step[6:])[pins.vertices])
        return float((((placed - pins.targets) ** 2).sum(1) / pins.spread_mm**2).sum())

    h = 1e-6
    numeric = [(energy(h * e) - energy(-h * e)) / (2 * h) for e in np.eye(10)]
    np.testing.assert_allclose(-2 * gradient, numeric, rtol=1e-2, atol=1e-6)


def test_a_fit_follows_its_landmarks() -> None:
    """A mode that slides the skin along itself shows in no distance: landmarks alone tell its coefficient."""
    x, y = np.meshgrid(np.linspace(-60, 60, 25), np.linspace(-60, 60, 25))
    flat = np.stack([x.ravel(), y.ravel(), 0.002 * (x**2 + 2 * y**2).ravel()], 1)
    k = np.arange(24)
    corner = (k[:, None] * 25 + k).ravel()
    faces = np.concatenate([corner[:, None] + [0, 1, 25], corner[:, None] + [1, 26, 25]]).astype(np.int32)
    bump = np.exp(-(x**2 + y**2).ravel() / 400.0)
    slide = np.stack([3.0 * bump, 0 * bump, 0.012 * x.ravel() * bump], 1)
    one = np.ones(1)
    model = LinearModel(flat, faces, slide[None].astype(np.float32), 0 * one, one, -3 * one, 3 * one)
    scan = SurfaceIndex(Mesh.of(flat, faces))
    pick = np.arange(0, len(flat), 3)
    misfit = Misfit.over(flat, pick, np.ones(len(flat)), 0.1, 20.0, 0.1)
    start = BasisFit(np.eye(4), np.zeros(1), np.zeros(len(pick)), 1.0)
    stages = (Stage(8, 10.0, 0.5, 3.0),)
    middle = np.array([312, 311, 313, 287, 337, 0, 24, 600, 624])  # the last four hold the pose
    pins = Pins(middle, model.shape(np.array([1.0]))[middle], np.full(9, 1.0))
    assert abs(fit_basis(scan, model, misfit, start, stages).coefficients[0]) < 0.1
    assert fit_basis(scan, model, misfit, start, stages, pins).coefficients[0] == pytest.approx(1.0, abs=0.25)
