"""Hair and worn things are told from skin, with and without colours."""

import numpy as np
import pytest

from registration.mesh import Mesh, vertex_normals
from registration.procedural_head import head_template
from registration.scan_labels import label_scan
from registration.surface import SurfaceIndex
from registration.template import REGIONS

HAIR, WORN = REGIONS.index("hair"), REGIONS.index("worn")


@pytest.fixture(scope="module")
def head():
    template = head_template()
    return template, template.mesh.vertices.astype(float), np.array(REGIONS)[template.regions]


def _labelled(template, scan):
    return label_scan(SurfaceIndex(scan), np.eye(4), template.mesh.vertices.astype(float), template)


def _grown(template, vertices, where, thick_mm, rough_mm=0.0):
    offset = thick_mm + rough_mm * np.random.default_rng(0).normal(size=len(vertices))
    return vertices + vertex_normals(vertices, template.mesh.faces) * (where * offset)[:, None]


def test_a_bare_head_is_skin(head):
    template, vertices, region = head
    told = _labelled(template, Mesh.of(vertices, template.mesh.faces))
    assert told.skin[np.isin(region, ["face", "scalp", "neck"])].mean() > 0.97
    assert (told.region == template.regions)[told.skin].mean() > 0.97


def test_thick_hair_is_hair_and_the_face_stays_skin(head):
    template, vertices, region = head
    scalp = region == "scalp"
    told = _labelled(template, Mesh.of(_grown(template, vertices, scalp, 9.0), template.mesh.faces))
    assert (told.region[scalp] == HAIR).mean() > 0.95
    assert not told.skin[told.region == HAIR].any()
    away = template.face_mask & (vertices[:, 1] < vertices[scalp, 1].min())
    assert told.skin[away & (region == "face")].mean() > 0.95


def test_a_rough_beard_is_hair_where_smooth_misfit_is_skin(head):
    template, vertices, region = head
    chin = vertices[template.landmarks[8]]
    beard = (np.linalg.norm(vertices - chin, axis=1) < 32) & np.isin(region, ["face", "neck"])
    rough = _labelled(template, Mesh.of(_grown(template, vertices, beard, 3.0, 0.8), template.mesh.faces))
    smooth = _labelled(template, Mesh.of(_grown(template, vertices, beard, 1.0), template.mesh.faces))
    assert (rough.region[beard] == HAIR).mean() > 0.8
    assert (smooth.region[beard] == HAIR).mean() < 0.1


def test_cropped_hair_is_told_by_its_colour(head):
    template, vertices, region = head
    crown = (region == "scalp") & (vertices[:, 1] > vertices[template.landmarks[27], 1] + 60)
    colors = np.where(crown[:, None], [40, 30, 25], [205, 160, 140]).astype(np.uint8)
    grown = _grown(template, vertices, crown, 1.0)
    told = _labelled(template, Mesh.of(grown, template.mesh.faces, colors))
    plain = _labelled(template, Mesh.of(grown, template.mesh.faces))
    assert (told.region[crown] == HAIR).mean() > 0.9
    assert (plain.region[crown] == HAIR).mean() < 0.2


def test_what_stands_before_the_eyes_is_worn(head):
    template, vertices, _ = head
    eyes = vertices[template.landmarks[36:48]].mean(0)
    x, y = np.meshgrid(np.linspace(-50, 50, 60), np.linspace(-6, 6, 9))
    bar = np.stack([x.ravel(), eyes[1] + y.ravel(), np.full(x.size, eyes[2] + 22.0)], 1)
    i = (np.arange(8)[:, None] * 60 + np.arange(59)).ravel()
    faces = np.concatenate([np.stack([i, i + 1, i + 61], 1), np.stack([i, i + 61, i + 60], 1)])
    n = len(vertices)
    scan = Mesh.of(np.concatenate([vertices, bar]), np.concatenate([template.mesh.faces, faces + n]))
    told = _labelled(template, scan)
    assert (told.region[n:] == WORN).mean() > 0.9
    assert told.skin[:n][template.face_mask].mean() > 0.85
