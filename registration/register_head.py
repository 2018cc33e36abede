"""Register a template to clean scans: the canonical expression of a person first, the others from that."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from registration.alignment import Alignment, align_head, fitting_unit
from registration.basis_fit import COARSE, FINE, BasisFit, LinearModel, Misfit, Pins, Stage, fit_basis
from registration.crossings import crossing_faces, uncross
from registration.fit_vertices import carriers, following, moving, softness
from registration.landmarks import Landmarks
from registration.mesh import Mesh, transform_points
from registration.mouth_opening import left_over, places_of_lower_face
from registration.nonrigid import AFTER_BASIS, final_matches, follow_surface
from registration.registration_figures import apart_mm, mesh_figures, opening_faces, region_figures, skull_figures
from registration.scan_labels import ScanLabels, label_scan
from registration.shape_modes import jaw_direction, jaw_mode, motion_modes, people_modes
from registration.surface import SurfaceIndex
from registration.template import Template
from storage.errors import ScanRejected, one_line

JAW_STARTS = (0.0, 0.2, 0.4, 0.9)
"""Openings of the mouth that a fit starts from: one that starts closed can't reach an open mouth. At first the opening
is held, because few modes would open the jaw to make up for another chin."""
SECOND_START_TURN_DEG = (9.0, -9.0, 6.0)
SECOND_START_SHIFT_MM = (4.0, 6.0, -6.0)
"""Where a second fit starts, away from the first one in the head's frame: the answer must not depend on it."""
SAME_MM = 0.5
"""Two fits so near to each other, in the median of the face, are one."""
FAR_MM = 1.5
"""A second fit this far from the first one goes on as finely as the first one did before the two are compared."""
CLEARLY_BETTER = 0.03
"""A second fit whose cost is lower by this much is taken instead of the first."""
MANY_MODES, MANY_MOTIONS = 60, 40
"""A template with fewer modes of identity, or of expression, than this gets smooth ones beside them: few modes can't
place lips and lids."""
FEW_PEOPLE_MODES = 40
"""So many of them are enough to tell openings of the mouth apart."""
ROUGHLY, FINELY = 2.2, 1.25
"""How far apart the vertices are that carry a fit, as a factor on ``fit_vertices.CELL_MM``."""
SMOOTH_MODES_LACK = (1.2, 20.0)
"""What smooth modes lack of a person or an expression, and over what distance it varies, mm."""
SCAN_NOISE_MM = 0.15


@dataclass(frozen=True)
class Registration:
    """A template on a scan.

    Attributes:
        vertices_head_mm: (n, 3) float64 in the head frame.
        T_world_from_head: (4, 4) float64 rigid, the same skull in the same place for all expressions of a person.
        residual_mm: (n,) float64 distance to the scan; nan where unobserved.
        observed: (n,) bool whether the scan shows skin at this vertex; under hair and worn things it doesn't.
        throat_plane: (4,) float64 head frame; n.x + d >= 0 keeps the head.
        expression: (e,) float64 coefficients of the template's expression modes, or of general ones, the jaw first.
        scan_region: (v,) uint8 index into ``REGIONS`` for each vertex of the scan, hair and worn things told from skin;
            empty where a registration was read back without its scan.
        figures: what the verdict is made from.
    """

    vertices_head_mm: NDArray[np.float64]
    T_world_from_head: NDArray[np.float64]
    residual_mm: NDArray[np.float64]
    observed: NDArray[np.bool_]
    throat_plane: NDArray[np.float64]
    expression: NDArray[np.float64]
    scan_region: NDArray[np.uint8] = field(default_factory=lambda: np.zeros(0, np.uint8))
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class _Task:
    """One scan and the head that is to be brought onto it."""

    scan: SurfaceIndex
    template: Template
    model: LinearModel
    people: int  # modes of identity, before those of expression
    lacks: tuple[float, float]  # what the modes lack, and over what distance it varies, mm
    follows: NDArray[np.float64]  # how much each vertex follows the scan beyond the modes
    landmarks: Landmarks | None


@dataclass(frozen=True)
class _LinearFit:
    """The linear part: where the head is, in which shape, what covers it, and what a second start found."""

    fit: BasisFit
    shape: NDArray[np.float64]
    labels: ScanLabels
    figures: dict[str, float]


def register_canonical(
    clean: Mesh,
    template: Template,
    misfit_mm: float = 0.8,
    misfit_range_mm: float = 30.0,
    seed: int = 0,
    threads: int = 1,
    landmarks: Landmarks | None = None,
    start: NDArray[np.floating] | None = None,
) -> Registration:
    """Register the template to a person's canonical scan.

    Args:
        clean: in the capture's world frame, mm; its column ``observed`` is respected.
        template: with or without linear modes.
        misfit_mm, misfit_range_mm: what the template's linear modes lack of a person, and over what distance it varies.
        seed: of the search for the head.
        threads: for queries of the scan; the result does not depend on it.
        landmarks: of the scan, world frame, mm: a start for the search, and a soft pull in the fit.
        start: (4, 4) ``T_world_from_head`` where an earlier step found the head; where it is none, the search goes on.

    Raises:
        ScanRejected: no head is found, or its size contradicts the told unit.
    """
    scan = SurfaceIndex(clean, threads)
    alignment = _aligned(scan, template, seed, landmarks, start)
    known = len(template.identity_basis) >= MANY_MODES
    people = template.identity_basis if known else np.concatenate([template.identity_basis, people_modes(template)])
    moves = _moves(template, own_alone=True)
    model = _linear_model(template, template.mesh.vertices, people, moves, np.zeros(len(moves.basis)))
    lacks = (misfit_mm, misfit_range_mm) if known else SMOOTH_MODES_LACK
    task = _Task(scan, template, model, len(people), lacks, following(template), landmarks)
    return _finish(task, alignment, _fit(task, alignment))


def register_expression(
    clean: Mesh,
    canonical: Registration,
    template: Template,
    misfit_mm: float = 0.8,
    misfit_range_mm: float = 30.0,
    seed: int = 0,
    threads: int = 1,
    landmarks: Landmarks | None = None,
    start: NDArray[np.floating] | None = None,
) -> Registration:
    """Register the template to a further scan of a person whose canonical scan is registered.

    The person's own head is the template now: only pose and expression are fitted, then what they leave on face, lips,
    lids and neck. Scalp and ears stay the canonical ones.

    Raises:
        ScanRejected: no head is found.
    """
    scan = SurfaceIndex(clean, threads)
    own = replace(template, mesh=Mesh.of(canonical.vertices_head_mm, template.mesh.faces))
    alignment = _aligned(scan, template, seed, landmarks, start, own)
    moves = _moves(template, own_alone=False)
    told = np.zeros(len(moves.basis))
    told[: len(canonical.expression)] = canonical.expression
    rest = canonical.vertices_head_mm - np.tensordot(told, moves.basis, 1)
    model = _linear_model(template, rest, np.zeros((0, *rest.shape), np.float32), moves, told)
    known = len(template.expression_basis) >= MANY_MOTIONS
    lacks = (misfit_mm, misfit_range_mm) if known else SMOOTH_MODES_LACK
    task = _Task(scan, template, model, 0, lacks, moving(template), landmarks)
    found = _finish(task, alignment, _fit(task, alignment))
    skull = skull_figures(scan, found.T_world_from_head, canonical.vertices_head_mm, canonical.observed, template)
    return replace(found, figures={**found.figures, **skull})


def _aligned(
    scan: SurfaceIndex,
    template: Template,
    seed: int,
    landmarks: Landmarks | None,
    start: NDArray[np.floating] | None,
    own: Template | None = None,
) -> Alignment:
    """Where the head is: by the template, or by the person's own head where it is known and the template's differs."""
    alignment = align_head(scan.vertices, scan.normals, template, seed, landmarks=landmarks, start=start)
    if not alignment.accepted and own is not None:
        known = align_head(scan.vertices, scan.normals, own, seed, landmarks=landmarks, start=start)
        alignment = known if known.accepted else alignment
    if alignment.accepted:
        return alignment
    unit = fitting_unit(scan.vertices, scan.normals, template, seed)
    if unit is not None:
        why = f"a head fits if lengths are {unit}"
        raise ScanRejected(one_line("the told unit contradicts the head's size", "scan", why, "correct the unit"))
    raise ScanRejected(one_line("no head was found", "scan", alignment.reason, "look at the clean scan's picture"))


@dataclass(frozen=True)
class _Moves:
    """Modes of expression (e, n, 3) with their coefficients' standard deviations and bounds (e,)."""

    basis: NDArray[np.floating]
    spread: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def _moves(template: Template, own_alone: bool) -> _Moves:
    """The template's expressions, or the jaw where it has none; where those are few, general ones after them."""
    e = len(template.expression_basis)
    if e:
        told = template.expression_low
        low = np.asarray(1.15 * told, np.float64) if len(told) else np.zeros(e)
        own = _Moves(template.expression_basis, np.full(e, 0.4), low, np.full(e, 1.15))
    else:
        own = _Moves(jaw_mode(template)[None], np.full(1, 0.4), np.full(1, -0.1), np.full(1, 1.3))
    if own_alone or e >= MANY_MOTIONS:
        return own
    smooth = motion_modes(template)
    count = len(smooth)
    return _Moves(
        np.concatenate([own.basis, smooth]), np.append(own.spread, np.ones(count)),
        np.append(own.low, np.full(count, -3.5)), np.append(own.high, np.full(count, 3.5)),
    )  # fmt: skip


def _linear_model(
    template: Template,
    mean: NDArray[np.floating],
    people: NDArray[np.floating],
    moves: _Moves,
    expression: NDArray[np.float64],
) -> LinearModel:
    i = len(people)
    return LinearModel(
        np.asarray(mean, np.float64),
        template.mesh.faces,
        np.ascontiguousarray(np.concatenate([people, moves.basis]), np.float32),
        np.zeros(i + len(moves.basis)),
        np.concatenate([np.ones(i), moves.spread]),
        np.concatenate([np.full(i, -3.5), np.minimum(expression, moves.low)]),
        np.concatenate([np.full(i, 3.5), np.maximum(expression, moves.high)]),
    )


def _fit(task: _Task, alignment: Alignment) -> _LinearFit:
    """Pose and coefficients, from several openings of the mouth, and once more from a second place."""
    fitting = _Fitting(task, alignment.T_world_from_head)
    best, labels = fitting.judged(fitting.from_openings(alignment.T_world_from_head, JAW_STARTS))
    second = fitting.from_openings(alignment.T_world_from_head @ _second_start(), JAW_STARTS[1:2])
    other = fitting.roughly(second[0], FINE, labels)
    if _between(best, other, task) > FAR_MM:
        other = fitting.finely(other, FINE, labels)
    figures = {"second_start_mm": _between(best, other, task), "second_start_cost": other.cost - best.cost}
    if other.cost < best.cost - CLEARLY_BETTER:
        best, _ = fitting.judged(second)
    return _LinearFit(best, task.model.shape(best.coefficients), fitting.labelled(best), figures)


class _Fitting:
    """The steps that all fits of one task are made of.

    Args:
        task: the scan, the head and its modes.
        T_scan_from_head: (4, 4) about where the head is.
    """

    def __init__(self, task: _Task, T_scan_from_head: NDArray[np.float64]) -> None:
        template, model = task.template, task.model
        weights = following(template)
        self.task = task
        self.pins = None if task.landmarks is None else _pins(template, task.landmarks)
        self.rough, self.fine = (
            Misfit.over(model.vertices, carriers(template, coarser), weights, *task.lacks, SCAN_NOISE_MM)
            for coarser in (ROUGHLY, FINELY)
        )
        self.few = min(task.people, FEW_PEOPLE_MODES)
        self.coarse = model.subset(np.r_[np.arange(self.few), np.arange(task.people, len(model.basis))])
        self.jaw = np.append(np.zeros(self.few), jaw_direction(template, len(self.coarse.basis) - self.few))
        self.places = places_of_lower_face(task.scan, T_scan_from_head, template)

    def from_openings(self, T_scan_from_head: NDArray[np.float64], openings: Sequence[float]) -> list[BasisFit]:
        """Coarse fits from the openings of the mouth that explain most: one, or two where two judges differ.

        One judges by the head's places that are found in the scan, the other by the scan's that the head explains.
        """
        scan, coarse = self.task.scan, self.coarse
        still = np.zeros(len(self.rough.pick))
        fits = []
        for opening in openings:
            held, begin = coarse.held(self.jaw != 0, opening * self.jaw), opening * self.jaw
            start = BasisFit(T_scan_from_head, begin, still, 1.0)
            fits.append(fit_basis(scan, held, self.rough, start, COARSE[:1], self.pins))
        firsts = {int(np.argmin([fit.cost for fit in fits]))}
        if len(fits) > 1:
            firsts.add(int(np.argmin([self._left_over(fit, coarse) for fit in fits])))
        found = [fit_basis(scan, coarse, self.rough, fits[k], COARSE[1:], self.pins) for k in sorted(firsts)]
        found = [replace(_with_all_modes(fit, self.few, self.task), offset_mm=still) for fit in found]
        same = len(found) > 1 and _between(found[0], found[1], self.task) < SAME_MM
        return found[:1] if same else found

    def judged(self, found: list[BasisFit]) -> tuple[BasisFit, ScanLabels]:
        """The best of coarse fits, made fine on skin alone, and the labels that it was fitted by.

        What is skin is told by all modes, since few leave lips standing out as a beard does, and again from nearer.
        """
        if len(found) > 1:  # which mouth is the right one is told from near alone
            met = [self.finely(fit, FINE[:1], None) for fit in found]
            best = min(met, key=lambda fit: fit.cost + self._left_over(fit, self.task.model))
        else:
            best = self.roughly(found[0], FINE[:1], None)
        closer = self.finely(best, FINE[:1], self.labelled(best))
        labels = self.labelled(closer)
        return self.finely(closer, FINE[1:], labels), labels

    def roughly(self, found: BasisFit, stages: tuple[Stage, ...], labels: ScanLabels | None) -> BasisFit:
        """Refined in all modes by widely spaced vertices."""
        return self._refined(found, self.rough, stages, labels)

    def finely(self, found: BasisFit, stages: tuple[Stage, ...], labels: ScanLabels | None) -> BasisFit:
        """Refined in all modes by closely spaced vertices."""
        return self._refined(found, self.fine, stages, labels)

    def labelled(self, found: BasisFit) -> ScanLabels:
        """What of the scan is skin, hair or worn, told by a fit."""
        shape = self.task.model.shape(found.coefficients)
        return label_scan(self.task.scan, found.T_scan_from_head, shape, self.task.template)

    def _refined(
        self, found: BasisFit, misfit: Misfit, stages: tuple[Stage, ...], labels: ScanLabels | None
    ) -> BasisFit:
        skin = None if labels is None else labels.skin
        if len(found.offset_mm) != len(misfit.pick):  # at other vertices
            found = replace(found, offset_mm=np.zeros(len(misfit.pick)))
        return fit_basis(self.task.scan, self.task.model, misfit, found, stages, self.pins, skin)

    def _left_over(self, found: BasisFit, model: LinearModel) -> float:
        shape = model.shape(found.coefficients)
        return left_over(self.task.scan, self.places, found.T_scan_from_head, shape, self.task.template)


def _with_all_modes(found: BasisFit, few: int, task: _Task) -> BasisFit:
    """The same fit in all modes of the task, where it was made with the first few of people's."""
    c = np.zeros(len(task.model.basis))
    c[:few], c[task.people :] = found.coefficients[:few], found.coefficients[few:]
    return replace(found, coefficients=c)


def _second_start() -> NDArray[np.float64]:
    T = np.eye(4)
    T[:3, :3] = Rotation.from_euler("xyz", SECOND_START_TURN_DEG, degrees=True).as_matrix()
    T[:3, 3] = SECOND_START_SHIFT_MM
    return T


def _between(a: BasisFit, b: BasisFit, task: _Task) -> float:
    first, second = (transform_points(fit.T_scan_from_head, task.model.shape(fit.coefficients)) for fit in (a, b))
    return apart_mm(first, second, task.template)


def _pins(template: Template, landmarks: Landmarks) -> Pins:
    known = landmarks.known
    return Pins(template.landmarks[known].astype(np.int64), landmarks.points_mm[known], landmarks.spread_mm[known])


def _finish(task: _Task, alignment: Alignment, found: _LinearFit) -> Registration:
    """The non-rigid part and the figures."""
    template, scan, T = task.template, task.scan, found.fit.T_scan_from_head
    faces = template.mesh.faces
    linear = transform_points(T, found.shape)
    placed = follow_surface(scan, linear, faces, task.follows, softness(template), AFTER_BASIS, found.labels.skin)
    for region in ("lips", "eyes"):
        among = opening_faces(template, region)
        placed = uncross(placed, linear, faces, among, crossing_faces(linear, faces, among))
    matches = final_matches(scan, placed, faces, found.labels.skin)
    observed = matches.weights > 0.3
    residual = np.where(observed, matches.distance_mm, np.nan)
    vertices = transform_points(np.linalg.inv(T), placed)
    figures: dict[str, Any] = {"align_score": alignment.score, "fit_cost": found.fit.cost, **found.figures}
    figures |= region_figures(template, residual, observed) | mesh_figures(template, found.shape, vertices)
    if task.landmarks is not None and len(task.landmarks.known):
        away = task.landmarks.points_mm - placed[template.landmarks]
        figures["landmarks_told"] = len(task.landmarks.known)
        figures["landmarks_median_mm"] = float(np.nanmedian(np.linalg.norm(away, axis=1)))
    expression = found.fit.coefficients[task.people :][: len(template.expression_basis) or None]
    plane = throat_plane(vertices, template)
    return Registration(vertices, T, residual, observed, plane, expression, found.labels.region, figures)


def throat_plane(vertices: NDArray[np.floating], template: Template) -> NDArray[np.float64]:
    """The plane (4,) through the template's throat vertices; the tip of the nose is on its positive side."""
    a, b, c = np.asarray(vertices, np.float64)[template.throat]
    normal = np.cross(b - a, c - a)
    normal /= np.linalg.norm(normal)
    plane = np.append(normal, -normal @ a)
    nose = vertices[template.landmarks[30]]
    return plane if normal @ nose + plane[3] >= 0 else -plane


def registration_in_world(registration: Registration) -> NDArray[np.float64]:
    """Vertices (n, 3) in the scan's world frame, mm."""
    return transform_points(registration.T_world_from_head, registration.vertices_head_mm)
