import numpy as np
import pytest

from registration.coverage import coverage
from registration.mesh import Mesh
from registration.procedural_head import head_template


def seen_part(keep):
    mesh = head_template().mesh
    return Mesh.of(mesh.vertices, mesh.faces, observed=keep(mesh.vertices).astype(np.uint8))


@pytest.mark.parametrize(
    ("keep", "directions", "face"),
    [(lambda v: v[:, 1] < 500, (0.97, 1.0), (0.97, 1.0)), (lambda v: v[:, 2] < 10, (0.35, 0.65), (0.0, 0.2))],
    ids=["all of it", "only the back"],
)
def test_counts_what_was_observed(keep, directions, face):
    found = coverage(seen_part(keep), np.eye(4), head_template())
    assert directions[0] <= found["coverage"] <= directions[1]
    assert face[0] <= found["face_coverage"] <= face[1]
