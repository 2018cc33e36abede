"""A head is found from any rotation and position; things that are no heads are not."""

from dataclasses import replace

import numpy as np
import open3d as o3d
import pytest
from scipy.spatial.transform import Rotation

from registration import alignment
from registration.alignment import align_head, fitting_unit
from registration.mesh import sample_surface, transform_points, vertex_normals
from registration.pose_search import even_rotations
from registration.procedural_head import draw_person, head_template
from registration.search_model import Candidate, SearchModel, ThinScan, relief_likeness


def _posed_head(seed: int, front_only: bool = False):
    template = head_template()
    rng = np.random.default_rng(seed)
    points, face, bary = sample_surface(template.mesh, 8000, rng)
    normals = np.einsum(
        "nk,nkc->nc", bary, vertex_normals(template.mesh.vertices, template.mesh.faces)[template.mesh.faces[face]]
    )
    if front_only:
        seen = normals @ np.array([0.3, 0.1, 0.95]) > 0.15
        points, normals = points[seen], normals[seen]
    T = np.eye(4)
    T[:3, :3] = Rotation.random(random_state=seed).as_matrix()
    T[:3, 3] = rng.normal(0, 300, 3)
    noise = rng.normal(0, 0.3, points.shape)
    return template, transform_points(T, points + noise), normals @ T[:3, :3].T, T


def _off(found, true):
    between = np.linalg.inv(true) @ found
    angle = np.degrees(np.arccos(np.clip((np.trace(between[:3, :3]) - 1) / 2, -1, 1)))
    return angle, np.linalg.norm(between[:3, 3])


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("front_only", [False, True])
def test_template_itself_is_recovered(seed, front_only):
    template, points, normals, T = _posed_head(seed, front_only)
    found = align_head(points, normals, template)
    angle_deg, distance_mm = _off(found.T_world_from_head, T)
    assert found.accepted, found.reason
    assert angle_deg < 2.0
    assert distance_mm < 3.0


def test_transform_is_rigid_and_repeatable():
    template, points, normals, _ = _posed_head(5)
    first = align_head(points, normals, template, seed=3)
    again = align_head(points, normals, template, seed=3)
    R = first.T_world_from_head[:3, :3]
    assert np.allclose(R @ R.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(R) > 0
    assert np.array_equal(first.T_world_from_head, again.T_world_from_head)
    assert first.score == again.score


def test_unit_is_found():
    template, points, normals, _ = _posed_head(6)
    found = align_head(points / 1000, normals, template, scales=(1.0, 10.0, 1000.0))
    assert found.accepted
    assert found.unit_to_mm == 1000.0


def test_a_told_pose_spares_the_search(monkeypatch):
    template, points, normals, T = _posed_head(7)
    monkeypatch.setattr(alignment, "correlate", lambda *_: pytest.fail("searched all rotations"))
    near = T.copy()
    near[:3, 3] += [4.0, -6.0, 5.0]
    found = align_head(points, normals, template, start=near)
    angle_deg, distance_mm = _off(found.T_world_from_head, T)
    assert found.accepted
    assert angle_deg < 2.0
    assert distance_mm < 3.0


def test_a_wrong_told_pose_does_no_harm():
    template, points, normals, T = _posed_head(8)
    found = align_head(points, normals, template, start=T @ np.diag([-1.0, 1.0, -1.0, 1.0]))
    assert found.accepted
    assert _off(found.T_world_from_head, T)[0] < 2.0


@pytest.mark.parametrize(("factor", "words"), [(10.0, "ten times smaller"), (0.001, "a thousand times larger")])
def test_the_unit_that_fits_is_named(factor, words):
    template, points, normals, _ = _posed_head(9)
    assert not align_head(points * factor, normals, template).accepted
    assert fitting_unit(points * factor, normals, template) == words


def test_the_back_of_a_head_is_no_head():
    template, points, normals, T = _posed_head(10)
    behind = transform_points(np.linalg.inv(T), points)[:, 2] < -10
    assert not align_head(points[behind], normals[behind], template).accepted


@pytest.mark.parametrize("thing", ["chair", "box", "ball", "cone", "points"])
def test_no_head_is_no_head(thing):
    make = o3d.geometry.TriangleMesh
    chair = make.create_box(400, 20, 400) + make.create_box(400, 400, 20)
    things = {"box": make.create_box(150, 220, 180), "ball": make.create_sphere(100), "cone": make.create_cone(90, 250)}
    mesh = things.get(thing, chair)
    mesh.compute_vertex_normals()
    triangles, vertices = np.asarray(mesh.triangles), np.asarray(mesh.vertices)
    rng = np.random.default_rng(0)
    corner = vertices[triangles[rng.integers(len(triangles), size=20 if thing == "points" else 6000)]]
    weights = rng.dirichlet([1, 1, 1], len(corner))
    normals = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    normals /= np.linalg.norm(normals, axis=1, keepdims=True)
    found = align_head(np.einsum("nk,nkc->nc", weights, corner), normals, head_template())
    assert not found.accepted
    assert found.reason


BLOBS = {
    "bust without a face": [
        ((0, 20, 0), (75, 105, 95)), ((0, -110, -30), (55, 110, 55)), ((0, -230, -20), (190, 60, 90)),
    ],
    "animal": [
        ((0, 20, -20), (65, 65, 85)), ((0, 0, 80), (28, 26, 60)), ((55, 80, -30), (18, 45, 12)),
        ((-55, 80, -30), (18, 45, 12)), ((0, -90, -90), (55, 130, 55)),
    ],
}  # fmt: skip


@pytest.mark.parametrize("thing", BLOBS)
def test_round_things_with_something_in_front_are_no_heads(thing):
    """Ellipsoids grown together, which a head of few modes can bend to."""
    rng = np.random.default_rng(1)
    parts = [(np.array(centre), np.array(radii)) for centre, radii in BLOBS[thing]]
    points, normals = [], []
    for centre, radii in parts:
        ball = rng.normal(size=(6000, 3))
        ball /= np.linalg.norm(ball, axis=1, keepdims=True)
        points.append(centre + ball * radii)
        normals.append(ball / radii / np.linalg.norm(ball / radii, axis=1, keepdims=True))
    points, normals = np.concatenate(points), np.concatenate(normals)
    depth = np.stack([np.linalg.norm((points - centre) / radii, axis=1) for centre, radii in parts])
    outside = depth.min(0) > 1 - 1e-6
    found = align_head(points[outside], normals[outside], head_template())
    assert not found.accepted, found.score


@pytest.mark.parametrize("seed", [1, 5])
def test_strangers_with_their_mouths_open_are_heads(seed):
    """People of the embedded head, sought with its general modes alone."""
    template = head_template()
    nothing = np.zeros((0, *template.mesh.vertices.shape), np.float32)
    bare = replace(template, identity_basis=nothing, expression_basis=nothing, expression_names=())
    vertices = draw_person(np.random.default_rng(seed)).vertices("jaw_open_wide", 0.9)
    found = align_head(vertices, vertex_normals(vertices, template.mesh.faces), bare)
    angle_deg, distance_mm = _off(found.T_world_from_head, np.eye(4))
    assert found.accepted, found.score
    assert angle_deg < 6
    assert distance_mm < 8


def test_rotations_are_rotations_and_spread():
    R = even_rotations(720)
    assert np.allclose(np.einsum("nij,nkj->nik", R, R), np.eye(3), atol=1e-9)
    cosine = 0.5 * (np.einsum("nij,mij->nm", R, R) - 1)
    np.fill_diagonal(cosine, -1)
    nearest_deg = np.degrees(np.arccos(cosine.max(1)))
    assert nearest_deg.min() > 10
    assert nearest_deg.max() < 35


def _likeness(vertices: np.ndarray) -> float:
    """How alike the embedded head's relief is to that of some vertices of its, in place."""
    template = head_template()
    model = SearchModel.of(template, np.random.default_rng(0))
    scan = ThinScan.of(vertices, vertex_normals(vertices, template.mesh.faces), 3.5)
    return relief_likeness(Candidate(np.eye(4), np.zeros(len(model.basis))), scan, model)


def test_a_smooth_change_leaves_the_relief_alike():
    """What modes lack of a person counts against a place, but not against what stands out of a face."""
    vertices = head_template().mesh.vertices.astype(np.float64)
    wider = vertices * [1.08, 0.95, 1.04] + 4.0 * np.sin(vertices[:, [1, 2, 0]] / 60.0)
    assert _likeness(vertices) > 0.9
    assert _likeness(wider) > 0.6


def test_a_ball_is_unlike_a_face():
    vertices = head_template().mesh.vertices.astype(np.float64)
    middle = vertices.mean(0)
    away = vertices - middle
    assert _likeness(middle + 105.0 * away / np.linalg.norm(away, axis=1, keepdims=True)) < 0.3
