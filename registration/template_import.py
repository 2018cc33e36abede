"""Templates from outside: the ICT face model, or any head mesh."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registration.anchors import with_anchors
from registration.mesh import Mesh, mesh_from_ply
from registration.template import MAX_VERTICES, Template
from registration.template_landmarks import find_marked, read_marked, vertex_numbers
from registration.template_making import make_template
from registration.template_regions import find_regions, find_throat, mirror_map
from storage.bounded import read_bounded
from storage.errors import ConfigError, ScanRejected, one_line
from storage.jsonfile import MAX_JSON_BYTES, read_json
from storage.npz import Npz
from storage.obj import ObjGeometry, read_obj

ICT_SKIN_VERTICES = 11248
"""The ICT model's first two parts: face, then head and neck."""
ICT_FACE_VERTICES = 6706
"""Brow to chin, without ears and throat."""
MAX_NPZ_BYTES = 512 * 1024**2
MAX_UNPACKED_BYTES = 1024**3
MAX_MESH_BYTES = 256 * 1024**2
MAX_LANDMARKS_BYTES = 1024**2


_REMEDY = "name an ICT-FaceKit folder or its npz"
_ICT_PARTS = {
    "neutral": ("f", 2), "faces": ("iu", 2), "landmarks": ("iu", 1), "identity": ("f", 3), "expression": ("f", 3),
    "expression_names": ("U", 1),
}  # fmt: skip
"""Kinds and number of axes of the arrays of the ICT model's npz."""


def import_ict(path: Path) -> Template:
    """Read the ICT face model's skin as a template: its identity and expression modes, in its own vertex order.

    Args:
        path: an npz with ``neutral``, ``identity``, ``expression``, ``expression_names``, ``faces`` (quads, -1 in the
            last corner of a triangle) and ``landmarks``, in mm; or the folder of an ICT-FaceKit checkout.

    Raises:
        ConfigError: the file or folder is none of the two, or its parts disagree.
    """
    path = Path(path)
    if path.is_dir():
        return _from_checkout(path)
    try:
        packed = Npz(read_bounded(path, MAX_NPZ_BYTES), MAX_UNPACKED_BYTES)
        neutral, quads, landmarks, identity, expression, names = (_ict_part(packed, part) for part in _ICT_PARTS)
    except ValueError as error:
        raise ConfigError(one_line("is no ICT model", str(path), str(error), _REMEDY)) from error
    return _ict_template(
        neutral[:ICT_SKIN_VERTICES],
        quads[(quads < ICT_SKIN_VERTICES).all(1)],
        landmarks,
        identity[:, :ICT_SKIN_VERTICES],
        expression[:, :ICT_SKIN_VERTICES],
        tuple(names.tolist()),
        str(path),
    )


def _ict_part(packed: Npz, part: str) -> NDArray[Any]:
    """An array of the model.

    Raises:
        ValueError: it is missing, damaged, or of another kind.
    """
    kinds, axes = _ICT_PARTS[part]
    header = packed.headers.get(part)
    if header is not None and (header.dtype.kind not in kinds or len(header.shape) != axes):
        raise ValueError(f"{part} is {header.dtype} of the shape {header.shape}")
    return packed[part]


def _from_checkout(folder: Path) -> Template:
    model = folder / "FaceXModel" if (folder / "FaceXModel").is_dir() else folder
    notes = model / "vertex_indices.json"
    remedy = "clone ICT-FaceKit again, with its large files"
    if not (model / "generic_neutral_mesh.obj").is_file() or not notes.is_file():
        why = "generic_neutral_mesh.obj or vertex_indices.json is missing"
        raise ConfigError(one_line("is no ICT-FaceKit checkout", str(folder), why, remedy))
    try:
        told = read_json(read_bounded(notes, MAX_JSON_BYTES), str(notes))
        landmarks = vertex_numbers(told.get("idx_to_landmark_verts"))
    except ScanRejected as error:
        raise ConfigError(str(error)) from error
    except ValueError as error:
        raise ConfigError(one_line("names no landmarks", str(notes), str(error)[:200], remedy)) from error

    def geometry_of(file: Path) -> ObjGeometry:
        found = read_obj(read_bounded(file, MAX_MESH_BYTES), str(file))
        if len(found.vertices) < ICT_SKIN_VERTICES:
            why = f"{len(found.vertices)} vertices, {ICT_SKIN_VERTICES} wanted"
            raise ConfigError(one_line("is no mesh of the ICT model", str(file), why, remedy))
        return found

    def vertices_of(file: Path) -> NDArray[np.float64]:
        return geometry_of(file).vertices[:ICT_SKIN_VERTICES]

    files = sorted(model.glob("*.obj"))
    identities = [f for f in files if f.stem.startswith("identity")]
    expressions = [f for f in files if not f.stem.startswith(("identity", "generic_neutral_mesh"))]
    try:
        whole = geometry_of(model / "generic_neutral_mesh.obj")
        neutral, faces = whole.vertices[:ICT_SKIN_VERTICES], whole.triangles
        to_mm = _unit_to_mm(neutral)
        return _ict_template(
            neutral * to_mm,
            faces[(faces < ICT_SKIN_VERTICES).all(1)],
            landmarks,
            _modes(identities, neutral, to_mm, vertices_of),
            _modes(expressions, neutral, to_mm, vertices_of),
            tuple(f.stem for f in expressions),
            str(folder),
        )
    except ScanRejected as error:
        raise ConfigError(str(error)) from error


def _modes(
    files: list[Path], neutral: NDArray[np.float64], to_mm: float, read: Callable[[Path], NDArray[np.float64]]
) -> NDArray[np.float32]:
    offsets = np.zeros((len(files), *neutral.shape), np.float32)
    for offset, file in zip(offsets, files, strict=True):
        offset[:] = (read(file) - neutral) * to_mm
    return offsets


def _unit_to_mm(neutral: NDArray[np.float64]) -> float:
    """The unit of a head with shoulders, from its height of 300 to 400 mm."""
    height = float(np.ptp(neutral[:, 1]))
    return 1.0 if height > 100 else 10.0 if height > 10 else 100.0 if height > 1 else 1000.0


def _ict_template(
    neutral: NDArray[np.floating],
    polygons: NDArray[np.integer],
    landmarks: NDArray[np.integer],
    identity: NDArray[np.floating],
    expression: NDArray[np.floating],
    names: tuple[str, ...],
    where: str,
) -> Template:
    shape = (ICT_SKIN_VERTICES, 3)
    if neutral.shape != shape or {identity.shape[1:], expression.shape[1:]} != {shape}:
        why = f"{len(neutral)} skin vertices, modes of the shapes {identity.shape} and {expression.shape}"
        raise ConfigError(one_line("is no ICT model", where, why, _REMEDY))
    if landmarks.shape != (68,) or landmarks.min() < 0 or landmarks.max() >= ICT_SKIN_VERTICES:
        why = f"{landmarks.size} landmarks, 68 of the {ICT_SKIN_VERTICES} skin vertices are wanted"
        raise ConfigError(one_line("is no ICT model", where, why, _REMEDY))
    if len(names) != len(expression) or polygons.shape[1] not in (3, 4) or not np.isfinite(neutral).all():
        why = f"{len(names)} names of {len(expression)} modes, polygons of {polygons.shape[1]} corners"
        raise ConfigError(one_line("is no ICT model", where, why, _REMEDY))
    faces = polygons
    if polygons.shape[1] == 4:
        faces = np.concatenate([polygons[:, :3], polygons[polygons[:, 3] >= 0][:, [0, 2, 3]]])
    mesh = Mesh.of(neutral, faces)
    face_mask = np.arange(ICT_SKIN_VERTICES) < ICT_FACE_VERTICES
    mirror = mirror_map(mesh.vertices)
    if mirror is None:
        why = "its two sides are no images of one another"
        raise ConfigError(one_line("is no ICT model", where, why, _REMEDY))
    regions = find_regions(mesh.vertices, mesh.vertices[landmarks], face_mask)
    template = Template(
        name="ict",
        mesh=mesh,
        landmarks=landmarks.astype(np.int32),
        anchors=np.zeros(0, np.int32),
        anchor_pairs=0,
        regions=regions,
        face_mask=face_mask,
        mirror=mirror,
        throat=find_throat(mesh.vertices),
        identity_basis=identity.astype(np.float32),
        expression_basis=expression.astype(np.float32),
        expression_names=names,
    )
    template = with_anchors(template)
    template.check(where)
    return template


def import_mesh(mesh: Path, landmarks: Path | None, unit: str | None = None) -> Template:
    """Read a head mesh and its landmarks as a template, see ``mesh_template``.

    Raises:
        ConfigError: a file is missing, too large, or can't be used.
    """
    told = None if landmarks is None else read_bounded(Path(landmarks), MAX_LANDMARKS_BYTES)
    return mesh_template(read_bounded(Path(mesh), MAX_MESH_BYTES), told, str(mesh), unit)


def mesh_template(
    data: bytes, landmarks_json: bytes | None, where: str = "template mesh", unit: str | None = None
) -> Template:
    """Make a template of any head mesh.

    The template gets no modes; registration then works without a basis.

    Args:
        data: a PLY or OBJ file.
        landmarks_json: its 68 landmarks, see ``template_landmarks.read_marked``; without them they are found by
            registering the embedded head.
        where: name of the mesh, for messages.
        unit: mm, cm or m; found where it is not told.

    Raises:
        ConfigError: the mesh or the landmarks can't be used.
    """
    try:
        mesh = mesh_from_ply(data, where) if data.startswith(b"ply") else _obj_mesh(data, where)
    except ScanRejected as error:
        raise ConfigError(str(error)) from error
    if not 500 <= len(mesh.vertices) <= MAX_VERTICES or len(mesh.faces) == 0:
        why = f"{len(mesh.vertices)} vertices, {len(mesh.faces)} faces; 500 to {MAX_VERTICES} vertices are wanted"
        raise ConfigError(one_line("is no template mesh", where, why, "give a head mesh of a template's size"))
    if not np.isfinite(mesh.vertices).all():
        raise ConfigError(one_line("has vertices that are nowhere", where, "not finite", "export it again"))
    if landmarks_json is None:
        marked = find_marked(mesh, where, unit)
    else:
        marked = read_marked(landmarks_json, mesh.vertices, where, unit)
    in_mm = mesh.with_vertices(mesh.vertices * np.float32(marked.unit_to_mm))
    return make_template(Path(where).stem, in_mm, marked.vertices, where)


def _obj_mesh(data: bytes, where: str) -> Mesh:
    found = read_obj(data, where)
    return Mesh.of(found.vertices, found.triangles)
