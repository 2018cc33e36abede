"""An open mouth is met from the mean's closed one, also where it lies elsewhere, and a beard stays a beard."""

from dataclasses import replace

import numpy as np
import pytest

from registration.mesh import Mesh, vertex_normals
from registration.mouth_opening import left_over, lower_face, places_of_lower_face
from registration.procedural_head import draw_person, head_template
from registration.register_head import register_canonical, registration_in_world
from registration.surface import SurfaceIndex
from registration.template import REGIONS, Template

HAIR = REGIONS.index("hair")
INNER_LIPS = slice(60, 68)


@pytest.fixture(scope="module")
def bare() -> Template:
    template = head_template()
    nothing = np.zeros((0, len(template.mesh.vertices), 3), np.float32)
    return replace(template, name="bare", identity_basis=nothing, expression_basis=nothing, expression_names=())


def _open_mouth(template: Template) -> np.ndarray:
    """A person whose lips lie higher and further forward than most people's, the mouth open."""
    vertices = draw_person(np.random.default_rng(23)).vertices("neutral_open", 0.9)
    middle = vertices[template.landmarks[48:60]].mean(0)
    away = np.linalg.norm((vertices - middle) * [0.6, 1.0, 0.6], axis=1)
    return vertices + np.exp(-0.5 * (away / 16.0) ** 2)[:, None] * [0.0, 10.0, 6.0]


def test_lips_far_from_the_means_are_neither_missed_nor_taken_for_hair(bare):
    true = _open_mouth(bare)
    found = register_canonical(Mesh.of(true, bare.mesh.faces), bare, start=np.eye(4))
    away = np.linalg.norm(registration_in_world(found) - true, axis=1)
    assert away[bare.landmarks[INNER_LIPS]].mean() < 2.5
    assert (found.scan_region[lower_face(bare)] == HAIR).mean() < 0.02


def test_a_beard_stays_hair(bare):
    vertices = draw_person(np.random.default_rng(3)).vertices("neutral_open", 0.9)
    region = np.array(REGIONS)[bare.regions]
    chin = vertices[bare.landmarks[8]]
    beard = (np.linalg.norm(vertices - chin, axis=1) < 32) & np.isin(region, ["face", "neck"])
    thick_mm = 3.0 + 0.8 * np.random.default_rng(0).normal(size=len(vertices))
    grown = vertices + vertex_normals(vertices, bare.mesh.faces) * (beard * thick_mm)[:, None]
    found = register_canonical(Mesh.of(grown, bare.mesh.faces), bare, start=np.eye(4))
    assert (found.scan_region[beard] == HAIR).mean() > 0.8
    assert (found.scan_region[lower_face(bare) & ~beard] == HAIR).mean() < 0.1


def test_a_closed_mouth_leaves_over_what_an_open_one_explains(bare):
    person = draw_person(np.random.default_rng(3))
    closed, opened = (person.vertices(name, 0.9) for name in ("neutral", "jaw_open_wide"))
    scan = SurfaceIndex(Mesh.of(opened, bare.mesh.faces))
    places = places_of_lower_face(scan, np.eye(4), bare)
    assert set(places) <= set(range(len(opened)))
    assert len(places) > 100
    assert left_over(scan, places, np.eye(4), opened, bare) < 0.01
    assert left_over(scan, places, np.eye(4), closed, bare) > 0.2


def test_nothing_near_the_mouth_explains_nothing(bare):
    scan = SurfaceIndex(Mesh.of(bare.mesh.vertices + [0.0, 0.0, 500.0], bare.mesh.faces))
    places = places_of_lower_face(scan, np.eye(4), bare)
    assert len(places) == 0
    assert left_over(scan, places, np.eye(4), bare.mesh.vertices, bare) == 1.0
