"""Registrations lend their modes to a template that had none."""

from dataclasses import replace

import numpy as np
import pytest

from model.fit_config import PcaConfig
from model.learned_template import learned_template
from model.linear_training import RegisteredHeads
from registration.mesh import Mesh
from registration.procedural_head import draw_person, head_template
from registration.register_head import register_canonical, registration_in_world
from registration.template import Template

PEOPLE = 10


@pytest.fixture(scope="module")
def bare() -> Template:
    own = head_template()
    nothing = np.zeros((0, len(own.mesh.vertices), 3), np.float32)
    return replace(
        own, identity_basis=nothing, expression_basis=nothing, expression_names=(), expression_low=np.zeros(0)
    )


@pytest.fixture(scope="module")
def learned(bare) -> Template:
    people = [draw_person(np.random.default_rng([7, k])) for k in range(PEOPLE)]
    posed = [person.vertices(name, 1.0) for person in people for name in ("neutral", "smile")]
    subject = np.repeat(np.arange(PEOPLE), 2).tolist()
    heads = RegisteredHeads.of(bare, [person.vertices("neutral_open", 1.0) for person in people], posed, subject)
    return learned_template(heads, PcaConfig(identity_modes=30, expression_modes=8))


def test_it_is_a_whole_template_with_a_closed_mouth(bare, learned):
    again = Template.from_bytes(learned.to_bytes())
    assert again.expression_names[0] == "learned 1"
    assert (again.expression_low == -1).all()
    assert 2 < len(again.identity_basis) <= 30
    upper, lower = bare.landmarks[[62, 66]]
    gaps = [float(one.mesh.vertices[upper, 1] - one.mesh.vertices[lower, 1]) for one in (bare, learned)]
    assert gaps[1] == pytest.approx(gaps[0], abs=0.5)


def test_a_stranger_is_registered_nearer_to_its_own_vertices(bare, learned):
    true = draw_person(np.random.default_rng(99)).vertices("neutral_open", 1.0)
    clean = Mesh.of(true, bare.mesh.faces)
    off = {}
    for name, template in (("bare", bare), ("learned", learned)):
        placed = registration_in_world(register_canonical(clean, template, start=np.eye(4)))
        off[name] = float(np.linalg.norm(placed - true, axis=1)[bare.face_mask].mean())
    assert off["learned"] < 0.8 * off["bare"]
