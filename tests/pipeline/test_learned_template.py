"""A template of a workspace's registrations is learnt from those that train."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.config import SplitShares
from pipeline.learned_template import learn_template
from pipeline.workspace import Workspace
from registration.mesh import mesh_to_ply
from registration.procedural_head import head_template
from storage.errors import ConfigError


@pytest.fixture
def grown(workspace) -> Workspace:
    """Three people whose registrations are the template, each larger than the one before; the last is held out."""
    template = head_template()
    workspace.store.put(workspace.config.template, template.to_bytes())
    config = workspace.config.model_copy(update={"splits": SplitShares(held_out_ids=("003",))})
    opened = Workspace(workspace.store, config, workspace.steps)
    for number, size in ((1, 1.0), (2, 1.1), (3, 2.0)):
        key = f"{number:03d}/neutral"
        head = template.mesh.with_vertices(template.mesh.vertices * size)
        told = {"canonical_expression": "neutral", "content_digest": "0"}
        opened.commit("ingest", key, inputs={}, outputs={"taken.json": b"{}"}, extra=told)
        opened.commit("clean", key, inputs={}, outputs={"mesh.ply": b""}, figures={"coverage": 0.9})
        outputs = {"mesh.ply": mesh_to_ply(head), "frame.json": b"{}"}
        opened.commit("register", key, inputs={}, outputs=outputs)
    return opened


def test_people_who_are_held_out_are_left_out(grown):
    made = learn_template(grown, 1, 1)
    size = np.ptp(made.mesh.vertices, axis=0) / np.ptp(head_template().mesh.vertices, axis=0)
    np.testing.assert_allclose(size, 1.05, atol=0.02)
    assert len(made.identity_basis) == 1


def test_nobody_to_learn_from_is_named(grown):
    config = grown.config.model_copy(update={"splits": SplitShares(held_out_ids=("001", "002", "003"))})
    with pytest.raises(ConfigError):
        learn_template(Workspace(grown.store, config, grown.steps), 1, 1)
