"""Make a template of any head mesh with 68 landmarks: frame, regions, face mask, mirror map, throat and anchors."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray
from scipy.interpolate import RBFInterpolator
from scipy.linalg import fractional_matrix_power
from scipy.sparse.csgraph import connected_components
from scipy.spatial import cKDTree

from registration.anchors import with_anchors
from registration.landmarks import MIRRORED
from registration.mesh import Mesh, edges, vertex_normals
from registration.procedural_head import head_template
from registration.template import Template
from registration.template_regions import EYES, LIPS, find_throat, mirror_closest, mirror_map
from storage.errors import ConfigError, one_line

LARGEST_MISFIT_MM = 20.0
"""Root mean square distance of a head's landmarks to another's, beyond which their order must be wrong."""
INNER_PART_MM = 30.0
"""Loose parts so near the landmarks of eyes or mouth are eyeballs or teeth; others, such as hair, keep their place."""
THROAT_BELOW_CHIN_MM = 22.0
"""Height of the throat's plane, unless the mesh ends above it."""


@dataclass(frozen=True)
class Modes:
    """Linear modes of a mesh that is to become a template, in the mesh's own axes, mm.

    Attributes:
        identity: (I, n, 3) per unit of a coefficient with unit spread.
        expression: (E, n, 3) at full expression.
        names: of the expression modes.
        low: (E,) least coefficient: 0 for a mode that goes one way, -1 for one of either sign.
    """

    identity: NDArray[np.floating]
    expression: NDArray[np.floating]
    names: tuple[str, ...]
    low: NDArray[np.floating]

    @classmethod
    def none(cls, count: int) -> Modes:
        """Of a mesh with ``count`` vertices that brings none."""
        empty = np.zeros((0, count, 3), np.float32)
        return cls(empty, empty, (), np.zeros(0, np.float32))


def make_template(
    name: str, mesh: Mesh, landmarks: NDArray[np.integer], where: str, modes: Modes | None = None
) -> Template:
    """Make a template.

    The landmarks bring the mesh into the head frame, its own symmetry straightens it there; the embedded head, bent
    onto it by the landmarks, lends face and regions. Parts that lie apart from the skin (eyeballs, teeth) stay in the
    topology, outside of the face.

    Args:
        name: what the template calls itself.
        mesh: in mm, in any rigid frame; either winding.
        landmarks: (68,) vertices.
        where: the mesh's name, for messages.
        modes: linear modes that come with the mesh.

    Raises:
        ConfigError: the landmarks are no head's, or the mesh lacks a part that a template needs.
    """
    own = head_template()
    modes = Modes.none(len(mesh.vertices)) if modes is None else modes
    own_marks = own.mesh.vertices[own.landmarks].astype(np.float64)
    vertices = mesh.vertices.astype(np.float64)
    R, centre = _onto_landmarks(vertices[landmarks], own_marks, where)
    placed = (vertices - centre) @ R.T + own_marks.mean(0)
    turn, shift = _upright(placed)
    placed, R = placed @ turn.T + shift, turn @ R
    bend = RBFInterpolator(own_marks, placed[landmarks], kernel="thin_plate_spline", smoothing=1.0)
    bent = bend(own.mesh.vertices.astype(np.float64))
    nearest = np.atleast_1d(cKDTree(bent).query(placed)[1])
    facing = (vertex_normals(placed, mesh.faces) * vertex_normals(bent, own.mesh.faces)[nearest]).sum(1)
    skin = _largest_part(mesh.faces, len(placed))
    turned_inside_out = float(np.median(facing[skin])) < 0
    faces = mesh.faces[:, ::-1] if turned_inside_out else mesh.faces
    facing = -facing if turned_inside_out else facing
    face_mask = own.face_mask[nearest] & skin & (facing > -0.2)
    regions = own.regions[nearest]
    marks = placed[landmarks]
    to_eyes, to_mouth = (
        np.atleast_1d(cKDTree(marks[part]).query(placed)[0]) for part in (slice(36, 48), slice(48, 68))
    )
    inner = ~skin & (np.minimum(to_eyes, to_mouth) < INNER_PART_MM)
    regions[inner] = np.where(to_eyes < to_mouth, EYES, LIPS)[inner]
    made = Template(
        name=name,
        mesh=Mesh.of(placed, faces),
        landmarks=landmarks.astype(np.int32),
        anchors=np.zeros(0, np.int32),
        anchor_pairs=0,
        regions=regions,
        face_mask=face_mask,
        mirror=_mirror(placed, marks),
        throat=find_throat(placed, max(float(marks[8, 1]) - THROAT_BELOW_CHIN_MM, float(placed[:, 1].min()) + 5.0)),
        identity_basis=(modes.identity @ R.T).astype(np.float32),
        expression_basis=(modes.expression @ R.T).astype(np.float32),
        expression_low=modes.low.astype(np.float32),
        expression_names=modes.names,
    )
    made = with_anchors(made)
    made.check(where)
    return made


def _onto_landmarks(
    source: NDArray[np.float64], target: NDArray[np.float64], where: str
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The rotation (3, 3) about the middle (3,) of the source landmarks that lays them onto the target's."""
    centre = source.mean(0)
    a, b = source - centre, target - target.mean(0)
    u, _, vt = np.linalg.svd(a.T @ b)
    flip = np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))])
    R = (u @ flip @ vt).T
    misfit = float(np.sqrt(((a @ R.T - b) ** 2).sum(1).mean()))
    if misfit > LARGEST_MISFIT_MM:
        why = f"they miss a head's by {misfit:.0f} mm on average"
        raise ConfigError(one_line("landmarks are no head's", where, why, "check their order, right before left"))
    return R, centre


def _upright(placed: NDArray[np.float64], rounds: int = 10) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The small motion, rotation (3, 3) and shift (3,), that lays a head's own plane of symmetry onto x = 0.

    The head is laid onto its mirror image by closest points, the fifth that fits worst left out; half of the motion
    that this takes leads to the plane in between.
    """
    tree = cKDTree(placed)
    image = placed * [-1.0, 1.0, 1.0]
    motion = np.eye(4)
    for _ in range(rounds):
        moved = image @ motion[:3, :3].T + motion[:3, 3]
        distance, nearest = (np.atleast_1d(x) for x in tree.query(moved))
        kept = distance <= np.quantile(distance, 0.8)
        a, b = moved[kept], placed[nearest[kept]]
        u, _, vt = np.linalg.svd((a - a.mean(0)).T @ (b - b.mean(0)))
        step = np.eye(4)
        step[:3, :3] = (u @ np.diag([1.0, 1.0, np.sign(np.linalg.det(u @ vt))]) @ vt).T
        step[:3, 3] = b.mean(0) - step[:3, :3] @ a.mean(0)
        motion = step @ motion
    half = np.real(fractional_matrix_power(motion, -0.5))
    return half[:3, :3], half[:3, 3]


def _mirror(placed: NDArray[np.float64], marks: NDArray[np.float64]) -> NDArray[np.int32]:
    """The mirror map: exact where the mesh is symmetric vertex by vertex, else by closest vertices once bent even."""
    exact = mirror_map(placed)
    if exact is not None:
        return exact
    even = 0.5 * (marks + marks[MIRRORED] * [-1.0, 1.0, 1.0])
    straightened = RBFInterpolator(marks, even, kernel="thin_plate_spline", smoothing=1.0)(placed)
    mirror = mirror_closest(straightened)
    near_middle = np.abs(straightened[:, 0]) < 2.0
    mirror[near_middle] = np.flatnonzero(near_middle)
    return mirror


def _largest_part(faces: NDArray[np.integer], count: int) -> NDArray[np.bool_]:
    """Mask (count,) of the largest connected piece of a mesh: its skin."""
    pairs = edges(faces)
    graph = sp.coo_matrix((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), (count, count))
    label = connected_components(graph, directed=False)[1]
    return np.asarray(label == np.bincount(label).argmax())
