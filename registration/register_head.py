"""Register a template to clean scans: the canonical expression of a person first, the others from that."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registration.alignment import Alignment, align_head
from registration.basis_fit import COARSE, FINE, BasisFit, LinearModel, Misfit, fit_basis
from registration.fit_vertices import carriers, following, softness, stable
from registration.mesh import Mesh, face_normals, transform_points, vertex_normals
from registration.nonrigid import AFTER_BASIS, final_matches, follow_surface
from registration.shape_modes import jaw_direction, jaw_mode, motion_modes, people_modes
from registration.surface import SurfaceIndex
from registration.template import REGIONS, Template
from storage.errors import ScanRejected, one_line

JAW_STARTS = (0.0, 0.35, 0.9)
"""How far open the mouth is tried: from a closed mouth, the lips of an open one lie in the wrong basin."""
MANY_MODES = 60
"""A template with fewer identity modes than this gets smooth ones beside them: few modes can't place lips and lids."""
SMOOTH_MODES_LACK = (1.2, 20.0)
"""What smooth modes lack of a person or an expression, and over what distance it varies, mm."""
UNIT_FACTORS = {
    10.0: "ten times larger",
    1000.0: "a thousand times larger",
    100.0: "a hundred times larger",
    0.1: "ten times smaller",
    0.001: "a thousand times smaller",
    0.01: "a hundred times smaller",
}


@dataclass(frozen=True)
class Registration:
    """A template on a scan.

    Attributes:
        vertices_head_mm: (n, 3) float64 in the head frame.
        T_world_from_head: (4, 4) float64 rigid, the same skull in the same place for all expressions of a person.
        residual_mm: (n,) float64 distance to the scan; nan where unobserved.
        observed: (n,) bool whether the scan shows skin at this vertex.
        throat_plane: (4,) float64 head frame; n.x + d >= 0 keeps the head.
        expression: (e,) float64 coefficients of the template's expression modes, or of general ones, the jaw first.
        figures: what the verdict is made from.
    """

    vertices_head_mm: NDArray[np.float64]
    T_world_from_head: NDArray[np.float64]
    residual_mm: NDArray[np.float64]
    observed: NDArray[np.bool_]
    throat_plane: NDArray[np.float64]
    expression: NDArray[np.float64]
    figures: Mapping[str, Any] = field(default_factory=dict)


def register_canonical(
    clean: Mesh,
    template: Template,
    misfit_mm: float = 0.8,
    misfit_range_mm: float = 30.0,
    seed: int = 0,
    threads: int = 1,
) -> Registration:
    """Register the template to a person's canonical scan.

    Args:
        clean: in the capture's world frame, mm; its column ``observed`` is respected.
        template: with or without linear modes.
        misfit_mm, misfit_range_mm: what the template's linear modes lack of a person, and over what distance it varies.
        seed: of the search for the head.
        threads: for queries of the scan; the result does not depend on it.

    Raises:
        ScanRejected: no head is found, or its size contradicts the told unit.
    """
    alignment = _aligned(clean, template, seed)
    known = len(template.identity_basis) >= MANY_MODES
    people = template.identity_basis if known else np.concatenate([template.identity_basis, people_modes(template)])
    moves = _moves(template, 1)
    model = _linear_model(template, template.mesh.vertices, people, moves, np.zeros(len(moves.basis)))
    lacks = (misfit_mm, misfit_range_mm) if known else SMOOTH_MODES_LACK
    fit = _fit(clean, template, model, alignment, len(people), threads, lacks)
    return _finish(clean, template, model, fit, alignment, len(people), threads)


def register_expression(
    clean: Mesh,
    canonical: Registration,
    template: Template,
    misfit_mm: float = 0.8,
    misfit_range_mm: float = 30.0,
    seed: int = 0,
    threads: int = 1,
) -> Registration:
    """Register the template to a further scan of a person whose canonical scan is registered.

    The person's own head is the template now: only pose and expression are fitted, then what they leave.

    Raises:
        ScanRejected: no head is found.
    """
    alignment = _aligned(clean, template, seed)
    moves = _moves(template, 100)
    start = np.zeros(len(moves.basis))
    start[: len(canonical.expression)] = canonical.expression
    rest = canonical.vertices_head_mm - np.tensordot(start, moves.basis, 1)
    model = _linear_model(template, rest, np.zeros((0, *rest.shape), np.float32), moves, start)
    lacks = (misfit_mm, misfit_range_mm) if len(template.expression_basis) else SMOOTH_MODES_LACK
    fit = _fit(clean, template, model, alignment, 0, threads, lacks)
    found = _finish(clean, template, model, fit, alignment, 0, threads)
    skull = _skull_disagreement(clean, found, canonical, template, threads)
    return Registration(**{**found.__dict__, "figures": {**found.figures, **skull}})


def _aligned(clean: Mesh, template: Template, seed: int) -> Alignment:
    normals = vertex_normals(clean.vertices, clean.faces)
    alignment = align_head(clean.vertices, normals, template, seed)
    if alignment.accepted:
        return alignment
    for factor, name in UNIT_FACTORS.items():
        other = align_head(clean.vertices, normals, template, seed, (factor,))
        if other.accepted:
            why = f"a head fits if lengths are {name}"
            raise ScanRejected(one_line("the told unit contradicts the head's size", "scan", why, "correct the unit"))
    raise ScanRejected(one_line("no head was found", "scan", alignment.reason, "look at the clean scan's picture"))


@dataclass(frozen=True)
class _Moves:
    """Modes of expression (e, n, 3) with their coefficients' standard deviations and bounds (e,)."""

    basis: NDArray[np.floating]
    spread: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def _moves(template: Template, most: int) -> _Moves:
    """The template's expressions, or at most so many general ones, the jaw first."""
    e = len(template.expression_basis)
    if e:
        return _Moves(template.expression_basis, np.full(e, 0.4), np.zeros(e), np.full(e, 1.15))
    basis = jaw_mode(template)[None] if most == 1 else motion_modes(template, most)
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


def _fit(
    clean: Mesh,
    template: Template,
    model: LinearModel,
    alignment: Alignment,
    people: int,
    threads: int,
    lacks: tuple[float, float],
) -> BasisFit:
    """Pose and coefficients, from several openings of the mouth."""
    scan = SurfaceIndex(clean.transformed(np.linalg.inv(alignment.T_world_from_head)), threads)
    rough, fine = carriers(template, 2.2), carriers(template, 1.25)
    weights = following(template)
    loose = Misfit.over(model.vertices, rough, weights, *lacks, 0.15)
    tight = Misfit.over(model.vertices, fine, weights, *lacks, 0.15)
    few = min(people, 40)
    coarse = model.subset(np.r_[np.arange(few), np.arange(people, len(model.basis))])
    best: BasisFit | None = None
    for opening in JAW_STARTS:
        start = np.zeros(len(coarse.basis))
        start[few:] = opening * jaw_direction(template, len(start) - few)
        tried = fit_basis(scan, coarse, loose, BasisFit(np.eye(4), start, np.zeros(len(rough)), 1.0), COARSE)
        if best is None or tried.cost < best.cost:
            best = tried
    assert best is not None
    c = np.zeros(len(model.basis))
    c[:few], c[people:] = best.coefficients[:few], best.coefficients[few:]
    return fit_basis(scan, model, tight, BasisFit(best.T_scan_from_head, c, np.zeros(len(fine)), best.cost), FINE)


def _finish(
    clean: Mesh,
    template: Template,
    model: LinearModel,
    fit: BasisFit,
    alignment: Alignment,
    people: int,
    threads: int,
) -> Registration:
    """The non-rigid part and the figures."""
    T = alignment.T_world_from_head @ fit.T_scan_from_head
    scan = SurfaceIndex(clean.transformed(np.linalg.inv(T)), threads)
    faces = template.mesh.faces
    linear = model.shape(fit.coefficients)
    vertices = follow_surface(scan, linear, faces, following(template), softness(template), AFTER_BASIS)
    found = final_matches(scan, vertices, faces)
    observed = found.weights > 0.3
    residual = np.where(observed, found.distance_mm, np.nan)
    expression = fit.coefficients[people:]
    figures = {"align_score": alignment.score, "fit_cost": fit.cost}
    figures |= _figures(template, linear, vertices, residual, observed)
    return Registration(vertices, T, residual, observed, throat_plane(vertices, template), expression, figures)


def throat_plane(vertices: NDArray[np.floating], template: Template) -> NDArray[np.float64]:
    """The plane (4,) through the template's throat vertices; the tip of the nose is on its positive side."""
    a, b, c = np.asarray(vertices, np.float64)[template.throat]
    normal = np.cross(b - a, c - a)
    normal /= np.linalg.norm(normal)
    plane = np.append(normal, -normal @ a)
    nose = vertices[template.landmarks[30]]
    return plane if normal @ nose + plane[3] >= 0 else -plane


def _figures(
    template: Template,
    linear: NDArray[np.float64],
    vertices: NDArray[np.float64],
    residual: NDArray[np.float64],
    observed: NDArray[np.bool_],
) -> dict[str, Any]:
    faces = template.mesh.faces
    region = np.array(REGIONS)[template.regions]
    out: dict[str, Any] = {}
    for name, mask in {"face": template.face_mask, **{n: region == n for n in np.unique(region)}}.items():
        values = residual[mask & observed]
        out[f"{name}_observed"] = float(observed[mask].mean())
        out[f"{name}_residual_median_mm"] = float(np.median(values)) if len(values) else None
        out[f"{name}_residual_p95_mm"] = float(np.percentile(values, 95)) if len(values) else None
    before, after = face_normals(linear, faces), face_normals(vertices, faces)
    in_face = template.face_mask[faces].all(1)
    out["flipped_share"] = float(((before * after).sum(1) < 0)[in_face].mean())
    edge = faces[in_face][:, [0, 1, 1, 2, 2, 0]].reshape(-1, 2)
    rest = np.linalg.norm(template.mesh.vertices[edge[:, 0]] - template.mesh.vertices[edge[:, 1]], axis=1)
    now = np.linalg.norm(vertices[edge[:, 0]] - vertices[edge[:, 1]], axis=1)
    ratio = now / np.maximum(rest, 0.1)
    out["stretched_share"] = float(((ratio > 3) | (ratio < 1 / 3)).mean())
    out["moved_median_mm"] = float(np.median(np.linalg.norm(vertices - linear, axis=1)[template.face_mask]))
    return out


def _skull_disagreement(
    clean: Mesh, found: Registration, canonical: Registration, template: Template, threads: int
) -> dict[str, float]:
    """How far the canonical head lies from this scan where no expression moves it."""
    scan = SurfaceIndex(clean.transformed(np.linalg.inv(found.T_world_from_head)), threads)
    pick = stable(template) & canonical.observed & found.observed
    if pick.sum() < 50:
        return {"skull_disagreement_mm": 0.0, "skull_seen": float(pick.sum())}
    place = scan.closest(canonical.vertices_head_mm[pick])
    gap = ((place.points - canonical.vertices_head_mm[pick]) * scan.normals_at(place.faces, place.bary)).sum(1)
    return {"skull_disagreement_mm": float(np.median(np.abs(gap))), "skull_seen": float(pick.sum())}


def registration_in_world(registration: Registration) -> NDArray[np.float64]:
    """Vertices (n, 3) in the scan's world frame, mm."""
    return transform_points(registration.T_world_from_head, registration.vertices_head_mm)
