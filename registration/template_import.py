"""Templates from outside: the ICT face model, or any mesh with 68 landmarks."""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator
from scipy.spatial import cKDTree

from registration.anchors import anchor_density, choose_anchors
from registration.mesh import Mesh, mesh_from_ply
from registration.procedural_head import head_template
from registration.template import Template
from registration.template_regions import LIPS, find_regions, find_throat, mirror_closest, mirror_map
from storage.errors import ConfigError, ScanRejected, one_line
from storage.obj import read_obj

ICT_SKIN_VERTICES = 11248
"""The ICT model's first two parts: face, then head and neck."""
ICT_FACE_VERTICES = 6706
"""Brow to chin, without ears and throat."""
MAX_NPZ_BYTES = 512 * 1024**2
MAX_MESH_BYTES = 256 * 1024**2
MAX_LANDMARKS_BYTES = 1024**2
MAX_VERTICES = 200_000
FURTHEST_LANDMARK_MM = 5.0
"""A landmark given as a point must lie this close to a vertex."""


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
    if not path.is_file():
        raise ConfigError(one_line("is not there", str(path), "", "name an ICT-FaceKit folder or its npz"))
    if path.stat().st_size > MAX_NPZ_BYTES:
        raise ConfigError(
            one_line("is too large", str(path), f"over {MAX_NPZ_BYTES} bytes", "name the ICT model's npz")
        )
    try:
        with np.load(path, allow_pickle=False) as z:
            quads = z["faces"]
            return _ict_template(
                z["neutral"][:ICT_SKIN_VERTICES],
                quads[(quads < ICT_SKIN_VERTICES).all(1)],
                z["landmarks"],
                z["identity"][:, :ICT_SKIN_VERTICES],
                z["expression"][:, :ICT_SKIN_VERTICES],
                tuple(str(name) for name in z["expression_names"]),
                str(path),
            )
    except (ValueError, KeyError, OSError, EOFError, IndexError, zipfile.BadZipFile) as error:
        raise ConfigError(
            one_line("is no ICT model", str(path), str(error), "name an ICT-FaceKit folder or its npz")
        ) from error


def _from_checkout(folder: Path) -> Template:
    model = folder / "FaceXModel" if (folder / "FaceXModel").is_dir() else folder
    notes = model / "vertex_indices.json"
    remedy = "clone ICT-FaceKit again, with its large files"
    if not (model / "generic_neutral_mesh.obj").is_file() or not notes.is_file():
        why = "generic_neutral_mesh.obj or vertex_indices.json is missing"
        raise ConfigError(one_line("is no ICT-FaceKit checkout", str(folder), why, remedy))
    try:
        landmarks = np.array(json.loads(notes.read_text())["idx_to_landmark_verts"], np.int64)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(one_line("names no landmarks", str(notes), str(error), remedy)) from error

    def vertices_of(file: Path) -> NDArray[np.float64]:
        found = read_obj(file.read_bytes(), str(file)).vertices
        if len(found) < ICT_SKIN_VERTICES:
            why = f"{len(found)} vertices, {ICT_SKIN_VERTICES} wanted"
            raise ConfigError(one_line("is no mesh of the ICT model", str(file), why, remedy))
        return found[:ICT_SKIN_VERTICES]

    files = sorted(model.glob("*.obj"))
    identities = [f for f in files if f.stem.startswith("identity")]
    expressions = [f for f in files if not f.stem.startswith(("identity", "generic_neutral_mesh"))]
    try:
        neutral = vertices_of(model / "generic_neutral_mesh.obj")
        faces = read_obj((model / "generic_neutral_mesh.obj").read_bytes(), str(model)).triangles
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
    if len(neutral) != ICT_SKIN_VERTICES or landmarks.shape != (68,) or len(names) != len(expression):
        why = f"{len(neutral)} skin vertices, {landmarks.size} landmarks, {len(names)} names of {len(expression)} modes"
        raise ConfigError(one_line("is no ICT model", where, why, "name an ICT-FaceKit folder or its npz"))
    faces = polygons
    if polygons.shape[1] == 4:
        faces = np.concatenate([polygons[:, :3], polygons[polygons[:, 3] >= 0][:, [0, 2, 3]]])
    mesh = Mesh.of(neutral, faces)
    face_mask = np.arange(ICT_SKIN_VERTICES) < ICT_FACE_VERTICES
    mirror = mirror_map(mesh.vertices, where)
    regions = find_regions(mesh.vertices, mesh.vertices[landmarks], face_mask)
    throat = find_throat(mesh.vertices)
    inside_mouth = (regions == LIPS) & (mesh.vertices[:, 2] < mesh.vertices[landmarks[48:60], 2].min())
    density = anchor_density(mesh.vertices, face_mask, float(mesh.vertices[throat, 1].mean()), inside_mouth)
    template = Template(
        name="ict",
        mesh=mesh,
        landmarks=landmarks.astype(np.int32),
        anchors=choose_anchors(mesh.vertices, mirror, density),
        anchor_pairs=16,
        regions=regions,
        face_mask=face_mask,
        mirror=mirror,
        throat=throat,
        identity_basis=identity.astype(np.float32),
        expression_basis=expression.astype(np.float32),
        expression_names=names,
    )
    template.check(where)
    return template


def import_mesh(mesh: Path, landmarks: Path | None) -> Template:
    """Read a head mesh and its landmarks as a template, see ``mesh_template``.

    Raises:
        ConfigError: a file is missing, too large, or can't be used.
    """
    told = None if landmarks is None else _read_file(Path(landmarks), MAX_LANDMARKS_BYTES)
    return mesh_template(_read_file(Path(mesh), MAX_MESH_BYTES), told, str(mesh))


def _read_file(path: Path, most_bytes: int) -> bytes:
    if not path.is_file():
        raise ConfigError(one_line("is not there", str(path), "", "check the path"))
    if path.stat().st_size > most_bytes:
        raise ConfigError(one_line("is too large", str(path), f"over {most_bytes} bytes", "give a smaller file"))
    return path.read_bytes()


def mesh_template(data: bytes, landmarks_json: bytes | None, where: str = "template mesh") -> Template:
    """Make a template of any head mesh and its 68 landmarks.

    The landmarks bring the mesh into the head frame; the embedded template, bent onto it by them, lends face and
    regions. The template gets no modes; registration then works without a basis.

    Args:
        data: a PLY or OBJ file; mm, cm or m, which the landmarks tell apart.
        landmarks_json: a list of 68 vertex numbers or points (x, y, z) in the usual order, or an object that holds it
            as ``landmarks``.
        where: name of the mesh, for messages.

    Raises:
        ConfigError: no landmarks are given, or the mesh or the landmarks can't be used.
    """
    if landmarks_json is None:
        why = "a template needs its 68 landmarks"
        raise ConfigError(one_line("no landmarks are given", where, why, "name a JSON file with --landmarks"))
    try:
        mesh = mesh_from_ply(data, where) if data.startswith(b"ply") else _obj_mesh(data, where)
    except ScanRejected as error:
        raise ConfigError(str(error)) from error
    if not 500 <= len(mesh.vertices) <= MAX_VERTICES or len(mesh.faces) == 0:
        why = f"{len(mesh.vertices)} vertices, {len(mesh.faces)} faces; 500 to {MAX_VERTICES} vertices are wanted"
        raise ConfigError(one_line("is no template mesh", where, why, "give a head mesh of a template's size"))
    landmarks, to_mm = _read_landmarks(landmarks_json, mesh.vertices.astype(np.float64), where)
    own = head_template()
    own_points = own.mesh.vertices[own.landmarks].astype(np.float64)
    placed = mesh.vertices.astype(np.float64) * to_mm
    placed = _onto_landmarks(placed, placed[landmarks], own_points, where)
    bend = RBFInterpolator(own_points, placed[landmarks], kernel="thin_plate_spline", smoothing=1.0)
    nearest = np.atleast_1d(cKDTree(bend(own.mesh.vertices.astype(np.float64))).query(placed)[1])
    face_mask, regions = own.face_mask[nearest], own.regions[nearest]
    try:
        mirror = mirror_map(placed, where)
    except ConfigError:  # scanned or sculpted heads are not symmetric; anchors then pair up with the closest vertex
        mirror = mirror_closest(placed)
        near_middle = np.abs(placed[:, 0]) < 2.0
        mirror[near_middle] = np.flatnonzero(near_middle)
    throat = find_throat(placed, float(placed[landmarks[8], 1]) - 22.0)
    template = Template(
        name=Path(where).stem,
        mesh=Mesh.of(placed, mesh.faces),
        landmarks=landmarks,
        anchors=choose_anchors(placed, mirror, anchor_density(placed, face_mask, float(placed[throat, 1].mean()))),
        anchor_pairs=16,
        regions=regions,
        face_mask=face_mask,
        mirror=mirror,
        throat=throat,
        identity_basis=np.zeros((0, len(placed), 3), np.float32),
        expression_basis=np.zeros((0, len(placed), 3), np.float32),
    )
    template.check(where)
    return template


def _obj_mesh(data: bytes, where: str) -> Mesh:
    found = read_obj(data, where)
    return Mesh.of(found.vertices, found.triangles)


def _read_landmarks(text: bytes, vertices: NDArray[np.float64], where: str) -> tuple[NDArray[np.int32], float]:
    """The vertices of the landmarks, and the mesh's unit in mm by the distance of the eyes' outer corners."""
    remedy = "give a list of 68 vertex numbers or points"
    try:
        told = json.loads(text)
        told = told["landmarks"] if isinstance(told, dict) else told
        values = np.asarray(told, np.float64)
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(one_line("landmarks can't be read", where, str(error), remedy)) from error
    if values.shape not in {(68,), (68, 3)} or not np.isfinite(values).all():
        raise ConfigError(one_line(f"landmarks have the shape {values.shape}", where, "", remedy))
    index = values.astype(np.int64) if values.ndim == 1 else np.atleast_1d(cKDTree(vertices).query(values)[1])
    if index.min() < 0 or index.max() >= len(vertices):
        raise ConfigError(one_line("landmarks name vertices that are not there", where, f"of {len(vertices)}", remedy))
    eyes = float(np.linalg.norm(vertices[index[36]] - vertices[index[45]]))
    fits = [unit for unit in (1.0, 10.0, 1000.0) if 60.0 < eyes * unit < 130.0]
    if not fits:
        why = f"the eyes' outer corners lie {eyes:g} apart"
        raise ConfigError(
            one_line("has no known unit", where, why, "give the mesh in mm, cm or m and check the landmarks")
        )
    if values.ndim == 2:
        far = float(np.linalg.norm(vertices[index] - values, axis=1).max()) * fits[0]
        if far > FURTHEST_LANDMARK_MM:
            raise ConfigError(one_line(f"a landmark lies {far:.1f} mm off the mesh", where, "", "check the landmarks"))
    return index.astype(np.int32), fits[0]


def _onto_landmarks(
    points: NDArray[np.float64], source: NDArray[np.float64], target: NDArray[np.float64], where: str
) -> NDArray[np.float64]:
    """Move points rigidly so that the source landmarks fit the target ones."""
    a, b = source - source.mean(0), target - target.mean(0)
    u, _, vt = np.linalg.svd(a.T @ b)
    flip = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    R = (u @ flip @ vt).T
    misfit = float(np.sqrt(((a @ R.T - b) ** 2).sum(1).mean()))
    if misfit > 20.0:
        why = f"they miss a head's by {misfit:.0f} mm on average"
        raise ConfigError(one_line("landmarks are no head's", where, why, "check their order, right before left"))
    return (points - source.mean(0)) @ R.T + target.mean(0)
