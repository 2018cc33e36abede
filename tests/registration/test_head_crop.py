"""A scan has one head, whole enough to be known as one."""

from __future__ import annotations

import numpy as np
import pytest

from registration.head_crop import find_head
from registration.mesh import Mesh, face_normals, sample_surface
from registration.procedural_head import head_template
from storage.errors import ScanRejected


def points_of(mesh: Mesh, count: int = 30_000) -> tuple[np.ndarray, np.ndarray]:
    points, face, _ = sample_surface(mesh, count, np.random.default_rng(0))
    return points, face_normals(mesh.vertices, mesh.faces)[face]


TURNED = np.array([[0, 0, 1], [0, 1, 0], [-1, 0, 0]], np.float32)
MIRRORED = np.array([[1, 0, 0], [0, 1, 0], [0, 0, -1]], np.float32)


@pytest.mark.parametrize("placed", [TURNED, MIRRORED], ids=["beside", "in a mirror"])
def test_two_heads_are_one_too_many(placed):
    head = head_template().mesh
    # Whole and lopsided, as people are: a reflection is no turned copy.
    vertices = head.vertices + np.float32([0, 1, 1]) * (0.04 * np.maximum(head.vertices[:, :1], 0))
    other = vertices @ placed + np.float32([300, 20, 250])
    winding = head.faces if np.linalg.det(placed) > 0 else head.faces[:, ::-1]
    both = Mesh(np.concatenate([vertices, other]), np.concatenate([head.faces, winding + len(vertices)]))
    with pytest.raises(ScanRejected, match=r"^s/e: two heads \(they are \d+ mm apart\); capture one person at a time"):
        find_head(*points_of(both, 60_000), head_template(), "s/e")


def test_a_ball_beside_a_head_is_no_second_one():
    head = head_template().mesh
    points, normals = points_of(head)
    ball = np.random.default_rng(1).normal(size=(15_000, 3))
    ball /= np.linalg.norm(ball, axis=1, keepdims=True)
    found = find_head(
        np.concatenate([points, ball * 100 + [300, 0, 0]]), np.concatenate([normals, ball]), head_template(), "s/e"
    )
    np.testing.assert_allclose(found.T_world_from_head, np.eye(4), atol=3.0)


def test_the_back_of_a_head_is_none():
    head = head_template().mesh
    with pytest.raises(ScanRejected, match=r"^s/e: no head \("):
        find_head(*points_of(head.select_vertices(head.vertices[:, 2] < -10)), head_template(), "s/e")
