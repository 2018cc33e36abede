"""The 68 landmarks of a mesh that is to become a template: read from a file, or found by registering the own head."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from registration.alignment import Alignment, align_head
from registration.landmarks import COUNT, UNITS_MM
from registration.mesh import Mesh, transform_points, vertex_normals
from registration.procedural_head import head_template
from registration.register_head import register_canonical
from storage.errors import ConfigError, ScanRejected, one_line

FURTHEST_LANDMARK_MM = 5.0
"""A landmark given as a point must lie this close to a vertex."""
EYES_MM = (60.0, 130.0)
"""Believable distances of the eyes' outer corners."""
HEAD_HEIGHTS_MM = (230.0, 270.0, 320.0, 370.0)
"""Heights that a mesh in no known unit is tried with: a head alone, or with more and more of the neck."""
LARGEST_RESIDUAL_MM = 2.0
"""Median distance of the registered face to the mesh, beyond which found landmarks are not believed."""


@dataclass(frozen=True)
class Marked:
    """Landmarks of a mesh and its scale.

    Attributes:
        vertices: (68,) int32 vertex of each landmark.
        unit_to_mm: factor from the mesh's unit to mm.
        found: whether they were found by registration, not told.
    """

    vertices: NDArray[np.int32]
    unit_to_mm: float
    found: bool


def read_marked(text: bytes, vertices: NDArray[np.floating], where: str, unit: str | None = None) -> Marked:
    """Read the landmarks of a mesh.

    Args:
        text: a JSON list of 68 vertex numbers or points (x, y, z) in the usual order, or an object that holds it as
            ``landmarks``.
        vertices: (n, 3) of the mesh, in its own unit.
        where: the mesh's name, for messages.
        unit: mm, cm or m; where it is not told, the distance of the eyes tells it.

    Raises:
        ConfigError: the landmarks can't be used.
    """
    remedy = f"give a list of {COUNT} vertex numbers or points"
    places = np.asarray(vertices, np.float64)
    try:
        told = json.loads(text)
        told = told["landmarks"] if isinstance(told, dict) else told
        values = np.asarray(told, np.float64)
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise ConfigError(one_line("landmarks can't be read", where, str(error)[:200], remedy)) from error
    if values.shape not in {(COUNT,), (COUNT, 3)} or not np.isfinite(values).all():
        raise ConfigError(one_line(f"landmarks have the shape {values.shape}", where, "", remedy))
    if values.ndim == 1:
        try:
            index = vertex_numbers(told)
        except ValueError as error:
            raise ConfigError(one_line("landmarks can't be read", where, str(error), remedy)) from error
    else:
        index = np.atleast_1d(cKDTree(places).query(values)[1]).astype(np.int64)
    if index.min() < 0 or index.max() >= len(places):
        raise ConfigError(one_line("landmarks name vertices that are not there", where, f"of {len(places)}", remedy))
    scale = _scale_by_eyes(float(np.linalg.norm(places[index[36]] - places[index[45]])), unit, where)
    if values.ndim == 2:
        far = float(np.linalg.norm(places[index] - values, axis=1).max()) * scale
        if far > FURTHEST_LANDMARK_MM:
            raise ConfigError(one_line(f"a landmark lies {far:.1f} mm off the mesh", where, "", "check the landmarks"))
    return Marked(index.astype(np.int32), scale, False)


def vertex_numbers(told: Any) -> NDArray[np.int64]:
    """The vertices (k,) that a list read from JSON names, whole numbers of any notation.

    Raises:
        ValueError: it is no list, or holds anything else.
    """
    if not isinstance(told, list):
        raise ValueError("no list of vertex numbers is there")
    for value in told:
        if type(value) not in (int, float) or not abs(value) < 2**31 or value != int(value):
            raise ValueError(f"{str(value)[:40]} is no vertex's number")
    return np.array(told, np.int64)


def find_marked(mesh: Mesh, where: str, unit: str | None = None) -> Marked:
    """Find the landmarks of a mesh, and its scale where no unit is told: the own head is registered to it.

    Args:
        mesh: a head in any pose, in its own unit.
        where: its name, for messages.
        unit: mm, cm or m.

    Raises:
        ConfigError: no head is found in it, or the own head doesn't settle on it.
    """
    own = head_template()
    mesh = _outside_out(mesh)
    aligned = _aligned(mesh, unit)
    remedy = "name its landmarks with --landmarks"
    if not aligned.accepted:
        raise ConfigError(one_line("no head is found in the mesh", where, aligned.reason, remedy))
    in_mm = mesh.with_vertices(mesh.vertices * np.float32(aligned.unit_to_mm))
    try:
        registered = register_canonical(in_mm, own)
    except ScanRejected as error:
        raise ConfigError(one_line("landmarks are not found", where, str(error), remedy)) from error
    off_mm = registered.figures["face_residual_median_mm"]
    if off_mm is None or off_mm > LARGEST_RESIDUAL_MM:
        why = "the face is not seen" if off_mm is None else f"the own head lies {off_mm:.1f} mm off the face"
        raise ConfigError(one_line("landmarks are not found", where, why, remedy))
    marks = transform_points(registered.T_world_from_head, registered.vertices_head_mm[own.landmarks])
    nearest = np.atleast_1d(cKDTree(in_mm.vertices).query(marks)[1])
    return Marked(nearest.astype(np.int32), aligned.unit_to_mm, True)


def _aligned(mesh: Mesh, unit: str | None) -> Alignment:
    own = head_template()
    normals = vertex_normals(mesh.vertices, mesh.faces)
    known = tuple(UNITS_MM.values()) if unit is None else (UNITS_MM[unit],)
    height = float(np.ptp(mesh.vertices, axis=0).max())
    free = () if unit is not None or height <= 0 else tuple(tall / height for tall in HEAD_HEIGHTS_MM)
    best: Alignment | None = None
    for scales in (known, free):
        if scales and (best is None or not best.accepted):
            tried = align_head(mesh.vertices, normals, own, scales=scales)
            best = tried if best is None or tried.score > best.score else best
    assert best is not None
    return best


def _outside_out(mesh: Mesh) -> Mesh:
    """The mesh with its faces turned round if their normals point into it."""
    corner = mesh.vertices.astype(np.float64)[mesh.faces]
    cross = np.cross(corner[:, 1] - corner[:, 0], corner[:, 2] - corner[:, 0])
    area = np.linalg.norm(cross, axis=1)
    middle = (corner.mean(1) * area[:, None]).sum(0) / max(area.sum(), 1e-30)
    inwards = ((corner.mean(1) - middle) * cross).sum() < 0
    return replace(mesh, faces=np.ascontiguousarray(mesh.faces[:, ::-1])) if inwards else mesh


def _scale_by_eyes(eyes: float, unit: str | None, where: str) -> float:
    low, high = EYES_MM
    if unit is not None:
        if not low < eyes * UNITS_MM[unit] < high:
            why = f"the eyes' outer corners lie {eyes:g} {unit} apart"
            raise ConfigError(one_line(f"is in no {unit}", where, why, "correct the unit or the landmarks"))
        return UNITS_MM[unit]
    fits = [factor for factor in UNITS_MM.values() if low < eyes * factor < high]
    if not fits:
        why = f"the eyes' outer corners lie {eyes:g} apart"
        raise ConfigError(
            one_line("has no known unit", where, why, "give the mesh in mm, cm or m and check the landmarks")
        )
    return fits[0]
