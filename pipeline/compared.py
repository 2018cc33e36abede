"""What an evaluation compares a model with: linear heads of the same registrations, learnt where they are needed."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from pipeline.keys import subject_of
from pipeline.own_files import read_own_file
from registration.mesh import Mesh, mesh_from_ply
from registration.template import Template

if TYPE_CHECKING:
    from model.linear_fitter import LinearFitter
    from model.linear_training import RegisteredHeads
    from pipeline.evaluate_config import EvaluateConfig
    from pipeline.workspace import Workspace

T = TypeVar("T")


def registered_scans(workspace: Workspace) -> list[str]:
    """Keys of all scans that were cleaned and registered, sorted."""
    accepted = []
    for key in workspace.scans():
        manifests = [workspace.manifest(step, key) for step in ("clean", "register")]
        if all(manifest is not None and manifest.accepted for manifest in manifests):
            accepted.append(key)
    return accepted


def held_out_scans(workspace: Workspace, most: int | None) -> list[str]:
    """Keys of the held-out subjects' registered scans; at most so many, evenly spread over them in their order."""
    keys = [key for key in registered_scans(workspace) if workspace.split(subject_of(key)) == "held_out"]
    return keys if most is None else spread(keys, most)


def spread(things: Sequence[T], most: int) -> list[T]:
    """At most so many, evenly over all in their order."""
    if len(things) <= most:
        return list(things)
    return [things[i] for i in np.linspace(0, len(things) - 1, most).round().astype(int)]


def read_registration(workspace: Workspace, key: str) -> tuple[Mesh, dict[str, Any]]:
    """A registration in the head frame, mm, and its ``frame.json``."""
    manifest = workspace.accepted("register", key)
    mesh = mesh_from_ply(workspace.read(manifest, "mesh.ply"), f"registrations/{key}/mesh.ply")
    return mesh, json.loads(workspace.read(manifest, "frame.json"))


def registered_heads(workspace: Workspace, subjects: Sequence[str], template: Template) -> RegisteredHeads:
    """The registrations of some subjects.

    Raises:
        ConfigError: none of them has an accepted canonical one.
    """
    from model.linear_training import RegisteredHeads

    vertices = {k: read_registration(workspace, k)[0].vertices for k in registered_scans(workspace)
                if subject_of(k) in subjects}  # fmt: skip
    canonical = {subject: workspace.canonical_key(subject) for subject in subjects}
    known = [subject for subject in subjects if canonical[subject] in vertices]
    posed = [key for key in vertices if subject_of(key) in known and key != canonical[subject_of(key)]]
    return RegisteredHeads.of(
        template,
        [vertices[str(canonical[subject])] for subject in known],
        [vertices[key] for key in posed],
        [known.index(subject_of(key)) for key in posed],
    )


def linear_fitters(
    workspace: Workspace, subjects: Sequence[str], template: Template, config: EvaluateConfig
) -> list[LinearFitter]:
    """The linear heads that the settings name, learnt from the registrations of the model's own subjects.

    Raises:
        ConfigError: there are no registrations to learn from, or the FLAME file is missing or none.
    """
    from model.linear_fitter import LinearFitter
    from model.linear_training import flame_head, train_linear

    if not config.linear:
        return []
    heads = registered_heads(workspace, subjects, template)
    fitters = []
    for name in config.linear:
        if name == "flame" and config.flame_file:
            head = flame_head(_flame_file(workspace, config.flame_file, config.flame_sha256), config.pca)
        else:
            head = train_linear(name, heads, config.pca)
        fitters.append(LinearFitter(head, config.pca))
    return fitters


def _flame_file(workspace: Workspace, name: str, sha256: str) -> Template:
    """The user's own FLAME model."""
    from registration.flame import import_flame

    read_own_file(workspace, name, sha256, what="FLAME file", keys=("evaluate.flame_file", "evaluate.flame_sha256"))
    with workspace.store.local_path(name) as path:
        return import_flame(path)
