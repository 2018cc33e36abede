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
"""How far open the mouth is tried: from a closed mouth, the lips of an open one lie in the wrong basin. At first the
mouth is held so, for few modes pay with the jaw for what they lack at the chin."""
SECOND_START_TURN_DEG = (9.0, -9.0, 6.0)
SECOND_START_SHIFT_MM = (4.0, 6.0, -6.0)
"""Where a second fit starts, away from the first one in the head's frame: the answer must not depend on it."""
SAME_MM = 0.5
"""Two fits so near to each other, in the median of the face, are one."""
FAR_MM = 1.5
"""A second fit this far from the first one goes on as finely as the first one did before the two are compared."""
CLEARLY_BETTER = 0.03
"""A second fit whose cost is lower by this much is taken instead of the first."""
MANY_MODES = 60
"""A template with fewer identity modes than this gets smooth ones beside them: few modes can't place lips and lids."""
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
    moves = _moves(template, jaw_alone=True)
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
    moves = _moves(template, jaw_alone=False)
    told = np.zeros(len(moves.basis))
    told[: len(canonical.expression)] = canonical.expression
    rest = canonical.vertices_head_mm - np.tensordot(told, moves.basis, 1)
    model = _linear_model(template, rest, np.zeros((0, *rest.shape), np.float32), moves, told)
    lacks = (misfit_mm, misfit_range_mm) if len(template.expression_basis) else SMOOTH_MODES_LACK
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


def _moves(template: Template, jaw_alone: bool) -> _Moves:
    """The template's expressions, or general ones where it has none: the jaw, and others after it."""
    e = len(template.expression_basis)
    if e:
        told = template.expression_low
        low = np.asarray(1.15 * told, np.float64) if len(told) else np.zeros(e)
        return _Moves(template.expression_basis, np.full(e, 0.4), low, np.full(e, 1.15))
    basis = jaw_mode(template)[None] if jaw_alone else motion_modes(template)
    spread, low, high = np.ones(len(basis)), np.full(len(basis), -3.5), np.full(len(basis), 3.5)
    spread[0], low[0], high[0] = 0.4, -0.1, 1.3
    return _Moves(basis, spread, low, high)


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
    template, model, scan = task.template, task.model, task.scan
    pins = None if task.landmarks is None else _pins(template, task.landmarks)
    rough, fine = carriers(template, 2.2), carriers(template, 1.25)
    weights = following(template)
    loose = Misfit.over(model.vertices, rough, weights, *task.lacks, SCAN_NOISE_MM)
    tight = Misfit.over(model.vertices, fine, weights, *task.lacks, SCAN_NOISE_MM)
    few = min(task.people, 40)
    coarse = model.subset(np.r_[np.arange(few), np.arange(task.people, len(model.basis))])
    jaw = np.append(np.zeros(few), jaw_direction(template, len(coarse.basis) - few))

    places = places_of_lower_face(scan, alignment.T_world_from_head, template)

    def over(found: BasisFit, of: LinearModel) -> float:
        return left_over(scan, places, found.T_scan_from_head, of.shape(found.coefficients), template)

    def tried(T: NDArray[np.float64], openings: Sequence[float]) -> list[BasisFit]:
        """From the openings of the mouth that explain most: of the head's places and of the scan's, often the same."""
        fits = []
        for opening in openings:
            begin = BasisFit(T, opening * jaw, np.zeros(len(rough)), 1.0)
            fits.append(fit_basis(scan, coarse.held(jaw != 0, opening * jaw), loose, begin, COARSE[:1], pins))
        firsts = {int(np.argmin([fit.cost for fit in fits]))}
        if len(fits) > 1:
            firsts.add(int(np.argmin([over(fit, coarse) for fit in fits])))
        found = [fit_basis(scan, coarse, loose, fits[k], COARSE[1:], pins) for k in sorted(firsts)]
        found = [replace(_with_all_modes(fit, few, task), offset_mm=np.zeros(len(rough))) for fit in found]
        same = len(found) > 1 and _between(found[0], found[1], task) < SAME_MM
        return found[:1] if same else found

    def refined(found: BasisFit, misfit: Misfit, stages: tuple[Stage, ...], labels: ScanLabels | None) -> BasisFit:
        return fit_basis(scan, model, misfit, found, stages, pins, None if labels is None else labels.skin)

    def finely(found: BasisFit, stages: tuple[Stage, ...], labels: ScanLabels | None) -> BasisFit:
        return refined(replace(found, offset_mm=np.zeros(len(fine))), tight, stages, labels)

    def labelled(found: BasisFit) -> ScanLabels:
        return label_scan(scan, found.T_scan_from_head, model.shape(found.coefficients), template)

    def judged(found: list[BasisFit]) -> tuple[BasisFit, ScanLabels]:
        """Fitted to skin alone; what is skin is told by all modes, for few leave lips standing out as a beard does."""
        met = [finely(fit, FINE[:1], None) for fit in found]
        best = min(met, key=lambda fit: fit.cost + over(fit, model)) if len(met) > 1 else met[0]
        labels = labelled(best)
        return refined(best, tight, FINE, labels), labels

    best, labels = judged(tried(alignment.T_world_from_head, JAW_STARTS))
    second = tried(alignment.T_world_from_head @ _second_start(), JAW_STARTS[1:2])
    other = refined(second[0], loose, FINE, labels)
    if _between(best, other, task) > FAR_MM:
        other = finely(other, FINE, labels)
    figures = {"second_start_mm": _between(best, other, task), "second_start_cost": other.cost - best.cost}
    if other.cost < best.cost - CLEARLY_BETTER:
        best, _ = judged(second)
    shape = model.shape(best.coefficients)
    return _LinearFit(best, shape, labelled(best), figures)


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
    expression = found.fit.coefficients[task.people :]
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
