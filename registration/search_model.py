"""Template and scan reduced to points for the search for a head, and how a pose of one is held against the other."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree
from scipy.spatial.transform import Rotation

from registration.mesh import sample_surface, transform_points, unit, vertex_normals
from registration.point_order import cell_numbers
from registration.shape_modes import expression_modes, identity_modes
from registration.template import REGIONS, Template

SETTLING_MODES = 60
"""Identity modes in which the last candidates adapt: faces far from the mean need them to score as heads do."""
REGION_WEIGHTS = {"face": 1.0, "lips": 1.0, "eyes": 0.6, "ears": 0.8, "scalp": 0.5, "neck": 0.4}
MODEL_POINTS = 1600
HALF_OPEN = 0.6
"""Of the mode of expression that parts the lips most."""
COVERED_MM = 12.0
"""A point of the model with scan so near is covered by it."""
RANKED_COVER, JUDGED_COVER = 0.45, 0.6
"""Share of the face that must be covered for a full score, while places are ranked and when the last one is judged."""
JUDGED_GATE_MM, JUDGED_ANGLE_DEG = 3.0, 20.0
"""How far and how much turned a surface may be and still agree, when the last place is judged."""
SMOOTH_SHARE, USUAL_FACE = 0.5, 0.6
REST_SHARE, USUAL_REST = 0.1, 0.4
"""How much agreement above the usual adds to the score: of the whole face, and of the rest of the head."""
RELIEF_MM = 40.0
"""Surroundings against which a normal's relief is told."""
LIKENESS_SHARE, USUAL_LIKENESS = 1.5, 0.39
"""What likeness of the reliefs above the usual adds to the score: heads reach 0.5 to 0.9, most other things 0.3 at
most, a snowman or an animal with ears and snout 0.45."""


@dataclass(frozen=True)
class SearchModel:
    """The template reduced to n points for the search.

    Attributes:
        points, normals: (n, 3) float64 head frame, mm.
        weights: (n,) by region.
        face: (n,) bool.
        relief: (n,) 0 to 1, how much each tells a face from a ball; 0 off the face.
        basis: (modes, n, 3) float64, each of unit spread.
        few: the first of them, enough to search with.
        half_open: (modes,) coefficients that open the mouth half.
    """

    points: NDArray[np.float64]
    normals: NDArray[np.float64]
    weights: NDArray[np.float64]
    face: NDArray[np.bool_]
    relief: NDArray[np.float64]
    basis: NDArray[np.float64]
    few: int
    half_open: NDArray[np.float64]

    @classmethod
    def of(cls, template: Template, rng: np.random.Generator, count: int = MODEL_POINTS) -> SearchModel:
        """Draw the points, which the modes move with the template."""
        mesh = template.mesh
        points, face, bary = sample_surface(mesh, count, rng)
        corner = mesh.faces[face]
        all_normals = vertex_normals(mesh.vertices, mesh.faces)
        normals = unit(np.einsum("nk,nkc->nc", bary, all_normals[corner]))
        region = template.regions[corner[np.arange(count), bary.argmax(1)]]
        table = np.array([REGION_WEIGHTS.get(name, 0.5) for name in REGIONS])
        first = [expression_modes(template, 4), identity_modes(template, 16)]
        rest = [expression_modes(template, 10)[4:], identity_modes(template, SETTLING_MODES)[16:]]
        basis = np.concatenate([np.einsum("nk,mnkc->mnc", bary, modes[:, corner]) for modes in first + rest])
        above, below = template.landmarks[62], template.landmarks[66]
        opening = first[0][:, above, 1] - first[0][:, below, 1]
        jaw = int(np.abs(opening).argmax())
        half_open = np.zeros(len(basis))
        half_open[jaw] = HALF_OPEN * np.sign(opening[jaw])
        weights, in_face = table[region], np.asarray(template.face_mask[corner].all(1))
        relief = in_face * _relief(points, normals)
        return cls(
            points, normals, weights, in_face, relief, np.ascontiguousarray(basis), sum(map(len, first)), half_open
        )

    def every(self, step: int) -> SearchModel:
        """Every ``step``-th point of it."""
        pick = slice(None, None, step)
        return replace(
            self, points=self.points[pick], normals=self.normals[pick], weights=self.weights[pick],
            face=self.face[pick], relief=self.relief[pick], basis=np.ascontiguousarray(self.basis[:, pick]),
        )  # fmt: skip

    def posed(self, candidate: Candidate, modes: int) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Points and normals (n, 3) of a candidate, in the scan's frame; its first modes alone are bent."""
        flat = self.basis[:modes].reshape(modes, -1)
        shaped = self.points + (candidate.coefficients[:modes] @ flat).reshape(-1, 3)
        return transform_points(candidate.T, shaped), self.normals @ candidate.T[:3, :3].T


@dataclass
class Candidate:
    """A pose (4, 4) head to scan, with coefficients (modes,) and its score so far."""

    T: NDArray[np.float64]
    coefficients: NDArray[np.float64]
    score: float = 0.0


@dataclass(frozen=True)
class ThinScan:
    """A scan reduced to one point and one normal a cell."""

    points: NDArray[np.float64]
    normals: NDArray[np.float64]
    tree: cKDTree

    @classmethod
    def of(cls, points: NDArray[np.float64], normals: NDArray[np.float64], cell_mm: float) -> ThinScan:
        """Thin (n, 3) points; a cell whose normals disagree keeps none."""
        _, index = np.unique(cell_numbers(points, cell_mm), return_inverse=True)
        times = np.bincount(index)
        point = np.stack([np.bincount(index, points[:, i]) for i in range(3)], 1) / times[:, None]
        normal = np.stack([np.bincount(index, normals[:, i]) for i in range(3)], 1) / times[:, None]
        length = np.linalg.norm(normal, axis=1)
        keep = length > 0.3
        point, normal = point[keep], normal[keep] / length[keep, None]
        return cls(point, normal, cKDTree(point))

    def select(self, keep: NDArray[np.bool_]) -> ThinScan:
        """Some of the points."""
        return ThinScan(self.points[keep], self.normals[keep], cKDTree(self.points[keep]))

    def nearest(self, points: NDArray, within_mm: float) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
        """Distance to and index of the nearest point; infinite where there is none so near."""
        distance, index = self.tree.query(points, distance_upper_bound=within_mm)
        return np.asarray(distance), np.asarray(index)


def _relief(points: NDArray, normals: NDArray, radius_mm: float = RELIEF_MM) -> NDArray[np.float64]:
    """How far each normal turns away from its surroundings': what tells a face from a ball. 0 to 1."""
    away = _standing_out(normals, np.arange(len(points)), _near(points, points, radius_mm))
    return np.asarray(np.clip(np.linalg.norm(away, axis=1) / 0.8, 0.02, 1.0))


def _near(points: NDArray[np.float64], places: NDArray[np.float64], radius_mm: float) -> list[NDArray[np.int64]]:
    """Which of the points (n, 3) lie about each of some of them (p, 3), itself among them."""
    return [np.asarray(some, np.int64) for some in cKDTree(points).query_ball_point(places, radius_mm)]


def _standing_out(
    normals: NDArray[np.float64], among: NDArray[np.int64], near: list[NDArray[np.int64]]
) -> NDArray[np.float64]:
    """What normals (n, 3) at some places (p,) are beyond the mean direction of those near each, itself included."""
    first = np.cumsum([0, *(len(some) for some in near[:-1])])
    return np.asarray(normals[among] - unit(np.add.reduceat(normals[np.concatenate(near)], first)))


def refine(candidate: Candidate, scan: ThinScan, model: SearchModel, gates_mm: tuple[float, ...], modes: int) -> None:
    """Trimmed point-to-plane iterations with normal gate, one a gate; pose, and the first modes with a unit prior."""
    for gate in gates_mm:
        points, normals = model.posed(candidate, len(model.basis))
        distance, nearest = scan.nearest(points, gate)
        hit = np.flatnonzero(np.isfinite(distance))
        target, target_normal = scan.points[nearest[hit]], scan.normals[nearest[hit]]
        agree = (target_normal * normals[hit]).sum(1)
        good = agree > 0.4
        hit, target, target_normal = hit[good], target[good], target_normal[good]
        if len(hit) < 30:
            return
        weight = model.weights[hit] * agree[good]
        residual = ((target - points[hit]) * target_normal).sum(1)
        scale = gate / 3
        weight = weight * (scale**2 / (scale**2 + residual**2)) ** 2
        centre = points[hit].mean(0)
        columns = [np.cross(points[hit] - centre, target_normal), target_normal]
        if modes:
            along = target_normal @ candidate.T[:3, :3]
            columns.append(np.einsum("mnc,nc->nm", model.basis[:modes, hit], along))
        A = np.concatenate(columns, 1)
        H = A.T @ (A * weight[:, None])
        g = A.T @ (residual * weight)
        prior = np.zeros(A.shape[1])
        prior[:3], prior[3:6] = 1e-3 * np.trace(H[:3, :3]) + 1e-9, 1e-4 * weight.sum()  # planes leave some free
        if modes:
            strength = 4.0 * weight.sum() / 100.0
            prior[6:] = strength
            g[6:] -= strength * candidate.coefficients[:modes]
        move = np.linalg.solve(H + np.diag(prior), g)
        D = np.eye(4)
        D[:3, :3] = Rotation.from_rotvec(move[:3]).as_matrix()
        D[:3, 3] = centre + move[3:6] - D[:3, :3] @ centre
        candidate.T = D @ candidate.T
        if modes:
            candidate.coefficients[:modes] = np.clip(candidate.coefficients[:modes] + move[6:], -3, 3)


def agreement(candidate: Candidate, scan: ThinScan, model: SearchModel, gate_mm: float, angle_deg: float) -> float:
    """How well the face's relief is found in the scan, 0 to 1: ranks the places in one scan.

    Only covered points vote, so a view from one side can win; those that tell a face from a ball have more weight.
    """
    agree, covered = _agreeing(candidate, scan, model, gate_mm, angle_deg)
    return _relief_found(agree, covered, model, RANKED_COVER)


def head_score(candidate: Candidate, scan: ThinScan, model: SearchModel) -> float:
    """How surely a place in a scan is a head, 0 to 1.

    Relief alone is found on cones, torsos and the backs of heads too, if a template bends to people by few modes only.
    There much of the face is covered by nothing, or the smooth parts of the face and the rest of the head don't fit.
    """
    agree, covered = _agreeing(candidate, scan, model, JUDGED_GATE_MM, JUDGED_ANGLE_DEG)
    relief = _relief_found(agree, covered, model, JUDGED_COVER)
    face, rest = (
        float(agree[part].mean()) if part.any() else 0.0 for part in (model.face & covered, covered & ~model.face)
    )
    return float(np.clip(relief + SMOOTH_SHARE * (face - USUAL_FACE) + REST_SHARE * (rest - USUAL_REST), 0, 1))


def judged_score(candidate: Candidate, scan: ThinScan, model: SearchModel) -> float:
    """The last word on a place, 0 to 1: its ``head_score``, raised or lowered by how alike the two reliefs are.

    A few modes bend a face to a bust from behind, a vase or a snowman until a good half of its points agree well; but
    what stands out there is not what stands out of a face. A head that the modes meet badly still has nose, brows and
    lips where they should be.
    """
    likeness = LIKENESS_SHARE * (relief_likeness(candidate, scan, model) - USUAL_LIKENESS)
    return float(np.clip(head_score(candidate, scan, model) + likeness, 0, 1))


def relief_likeness(candidate: Candidate, scan: ThinScan, model: SearchModel) -> float:
    """Correlation, -1 to 1, of the face's relief with the scan's: of how normals turn away from their surroundings'.

    Whatever the modes lack of a person is smooth, turns a normal together with its surroundings and so drops out. Both
    reliefs are told from the covered points alone, so that one view of a face is no less like it.
    """
    points, normals = model.posed(candidate, len(model.basis))
    distance, nearest = scan.nearest(points, COVERED_MM)
    covered = np.isfinite(distance)
    face = np.flatnonzero(model.face[covered])
    if not len(face):
        return 0.0
    points, own, seen = points[covered], normals[covered], scan.normals[nearest[covered]]
    near = _near(points, points[face], RELIEF_MM)
    expected, found = (_standing_out(these, face, near) for these in (own, seen))
    size = np.sqrt(np.square(expected).sum() * np.square(found).sum())
    return float((expected * found).sum() / max(size, 1e-9))


def _agreeing(
    candidate: Candidate, scan: ThinScan, model: SearchModel, gate_mm: float, angle_deg: float
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """How well each point of the model agrees with the scan (n,), and whether the scan covers it."""
    points, normals = model.posed(candidate, len(model.basis))
    distance, nearest = scan.nearest(points, 20.0)
    hit = np.isfinite(distance)
    agree = np.zeros(len(points))
    where = nearest[hit]
    gap = ((scan.points[where] - points[hit]) * scan.normals[where]).sum(1)
    facing = (scan.normals[where] * normals[hit]).sum(1)
    angle = np.degrees(np.arccos(np.clip(facing, -1, 1)))
    agree[hit] = np.exp(-0.5 * (gap / gate_mm) ** 2 - 0.5 * (angle / angle_deg) ** 2)
    return agree, distance < COVERED_MM


def _relief_found(
    agree: NDArray[np.float64], covered: NDArray[np.bool_], model: SearchModel, wanted_cover: float
) -> float:
    relief = model.relief[covered]  # 0 off the face
    found = float((agree[covered] * relief).sum() / max(relief.sum(), 1e-9))
    return found * min(1.0, float(covered[model.face].mean()) / wanted_cover)
