"""Heads made from a trained model: one, one person in others' expressions, and the way from one head to another."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from model import HeadModel
from model.carried_template import CarriedTemplate
from model.head_model import CANONICAL
from model.surface_columns import with_columns
from pipeline.mesh_files import NamedMesh
from pipeline.told_codes import NamedExpression, expressions_of, identity_of
from storage.errors import ConfigError, one_line

Progress = Callable[[int, int], None]
"""Called with the meshes done and the meshes in all."""


def find_model(model: str, workspace: str) -> Path:
    """The folder of a model named by its folder, or by its name in a local workspace.

    Raises:
        ConfigError: neither is there.
    """
    named = Path(workspace) / "models" / model
    looked_in = dict.fromkeys((Path(model), named))  # a full path is both
    for folder in looked_in:
        if (folder / "model.safetensors").is_file():
            return folder
    why = f"no model.safetensors in {' or '.join(map(str, looked_in))}"
    raise ConfigError(one_line("is no model", model, why, "name a model's folder, or a model of the workspace with -w"))


def draw_meshes(
    model: Path,
    identity: str,
    expressions: Sequence[str],
    resolution: int,
    seed: int,
    plain: bool = False,
    progress: Progress | None = None,
) -> list[NamedMesh]:
    """Mesh one head of a model in some expressions, with normals, regions and places on the template at the vertices.

    Args:
        model: its folder.
        identity: see ``pipeline.told_codes.identity_of``.
        expressions: at least one; see ``pipeline.told_codes.expressions_of``.
        resolution: cells along the longest edge of the box.
        seed: of what is drawn; identity and expressions draw from streams of their own.
        plain: leave out what the vertices carry.
        progress: told of each mesh.

    Returns:
        Head frame, mm; with the same triangles, unless the model deforms backward.

    Raises:
        ConfigError: the model knows no such subject or scan.
        ScanRejected: the surface has no face that the template could be laid on.
    """
    head = HeadModel.load(model)
    who, faces = identity_of(head, identity, seed), expressions_of(head, expressions, seed)
    return _meshes(head, who, faces, resolution, seed, plain, progress)


def meshes_between(
    model: Path,
    identities: tuple[str, str | None],
    expressions: tuple[str, str | None],
    frames: int,
    resolution: int,
    seed: int,
    progress: Progress | None = None,
) -> list[NamedMesh]:
    """Mesh the way from one head to another in equal steps of the codes.

    Args:
        model: its folder.
        identities, expressions: first and last, see ``pipeline.told_codes``; None stays at the first. Two random ones
            differ.
        frames: at least two, both ends included.
        resolution, seed, progress: as ``draw_meshes``.

    Returns:
        Head frame, mm. Where the person changes, each frame has triangles of its own and carries no places on the
        template.

    Raises:
        ConfigError: an end that the model does not know; or one end alone is canonical, which has no code.
    """
    head = HeadModel.load(model)
    first, last = identities
    start = identity_of(head, first, seed)
    end = start if last is None else identity_of(head, last, seed + 1)
    shares = np.linspace(0, 1, frames)
    names = [f"{share:.3f}" for share in shares]
    faces = [NamedExpression(*one) for one in zip(names, _codes_between(head, expressions, shares, seed), strict=True)]
    ends = head.identity_code(start), head.identity_code(end)
    if np.array_equal(ends[0], ends[1]):
        return _meshes(head, start, faces, resolution, seed, False, progress)
    made = []
    for place, (share, face) in enumerate(zip(shares, faces, strict=True)):
        who = ((1 - share) * ends[0] + share * ends[1]).astype(np.float32)
        mesh = with_columns(head, head.mesh(who, face.code, resolution), who, face.code)
        made.append(NamedMesh(face.name, mesh))
        if progress is not None:
            progress(place + 1, frames)
    return made


def _meshes(
    head: HeadModel,
    who: str | NDArray[np.float32],
    faces: Sequence[NamedExpression],
    resolution: int,
    seed: int,
    plain: bool,
    progress: Progress | None,
) -> list[NamedMesh]:
    carried = None if plain else CarriedTemplate.onto(head, who, seed)
    # a forward deformation moves one mesh, whose canonical places are known then
    canonical = None if head.config.deformation.direction == "backward" else head.mesh(who, CANONICAL, resolution)
    made = []
    for place, face in enumerate(faces):
        if canonical is None:
            mesh, known = head.mesh(who, face.code, resolution), None
        else:
            mesh, known = canonical.with_vertices(head.pose(canonical.vertices, who, face.code)), canonical.vertices
        made.append(NamedMesh(face.name, mesh if plain else with_columns(head, mesh, who, face.code, carried, known)))
        if progress is not None:
            progress(place + 1, len(faces))
    return made


def _one(head: HeadModel, told: str, seed: int) -> NamedExpression:
    found = expressions_of(head, [told], seed)
    if len(found) != 1:
        why = f"it means {len(found)} expressions"
        raise ConfigError(one_line("is no single expression", told, why, "name one of them"))
    return found[0]


def _codes_between(
    head: HeadModel, told: tuple[str, str | None], shares: NDArray[np.float64], seed: int
) -> list[str | NDArray[np.float32]]:
    first = _one(head, told[0], seed).code
    last = first if told[1] is None else _one(head, told[1], seed + 1).code
    if isinstance(first, str) and isinstance(last, str):
        return [CANONICAL] * len(shares)
    if isinstance(first, str) or isinstance(last, str):
        why, remedy = "canonical has no code", "name both ends SUBJECT/NAME or random, or leave both canonical"
        raise ConfigError(one_line("there is no way between", f"{told[0]} and {told[1]}", why, remedy))
    return [np.asarray((1 - share) * first + share * last, np.float32) for share in shares]
