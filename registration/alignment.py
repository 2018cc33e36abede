"""Find the head in a scan: a rigid alignment from any rotation and any position, without landmarks.

Three stages, each keeping fewer candidates:

1. for several hundred rotations spread evenly over SO(3), correlate the scan's field of surface normals with the
   template's, over all translations at once, so that a body, a chair or a wall does not shift the start;
2. refine the best by trimmed point-to-plane iterations, the template towards the scan;
3. let the survivors adapt to the person in more and more shape modes, and judge each by the share of the face that
   finds surface of the right direction near itself, and the last one by how alike the two reliefs are as well.

The last number tells the right basin from the back of the head or a chair; a scan without a head is not accepted.
Where landmarks or an earlier step tell a pose, that is tried first, and spares the search if it leads to a head.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import NDArray

from registration.landmarks import Landmarks, pose_by_landmarks
from registration.pose_search import correlate
from registration.search_model import Candidate, SearchModel, ThinScan, agreement, head_score, judged_score, refine
from registration.template import Template

SETTLING_GATES_MM = (*(20.0,) * 3, *(15.0,) * 3, *(12.0,) * 3, *(10.0,) * 3, *(8.0,) * 3, 6.0, 6.0, 6.0, 5.0, 5.0)
"""Wide at first: with all its modes a head settles where it could not with few, and a wrong place does not."""
SLIDES = ((-20.0, False), (-20.0, True), (14.0, False))
"""How far up the face, mm, and whether with the mouth half open, the best place is tried once more: heads far from the
mean settle slowly, along a valley that leads down the face. Things that are no heads end where they were."""
SURE_SCORE = 0.75
"""A place with so much of a score is the head's, and needs no further trial."""
DOUBTFUL_POINTS = 6400
"""Points on the template by which a doubtful place is settled and judged again: of the usual number the score depends
on which were drawn, by 0.1 and more for a head far from the mean."""
LEAD = 0.15
"""A place whose agreement is by so much the best is followed alone."""
SECOND_CHANCES = 4
"""So many of the first places are followed to the end where no other leads to a head: few modes may rank them low."""
ACCEPT_SCORE = 0.5
"""Least score of a head, by ``judged_score``.

With or without modes, heads reach 0.57 to 1, mouths wide open, beards and strangers among them. Cones, blobs, torsos,
backs of heads, animals and busts from behind stay at or below 0.43.
"""
APART_MM = 160.0
"""Two places this far apart can't be the same head."""
LEAST_POINTS = 200
EXTENT_MM = (90.0, 6000.0)
"""A scan that is smaller or larger than this is none of a head in the unit tried."""
USUAL_EXTENT_MM = 400.0
CURVED_REACH_MM = 60.0
CURVED_MOST = 0.975
"""Length of the mean normal within that reach above which a surface is too flat to belong to a head."""
CURVED_LEAST_MM2 = 4000.0
"""So much curved surface is the least for a head."""
UNIT_FACTORS = {
    10.0: "ten times larger",
    1000.0: "a thousand times larger",
    100.0: "a hundred times larger",
    0.1: "ten times smaller",
    0.001: "a thousand times smaller",
    0.01: "a hundred times smaller",
}


@dataclass(frozen=True)
class Alignment:
    """Where the head is.

    Attributes:
        T_world_from_head: (4, 4) float64, rigid, head mm to world mm (after ``unit_to_mm``).
        score: 0 to 1, how well the covered face is found in the scan, and how alike the two reliefs are.
        accepted: whether there is a head at all.
        reason: why not, else empty.
        unit_to_mm: the scale among the tried ones that fits.
        coefficients: of the shape modes that the search adapted, for a first guess of identity; may be empty.
        second_head_mm: how far away there is another head in the same scan; None where there is none.
    """

    T_world_from_head: NDArray[np.float64]
    score: float
    accepted: bool
    reason: str
    unit_to_mm: float
    coefficients: NDArray[np.float64]
    second_head_mm: float | None = None


def align_head(
    points_mm: NDArray[np.floating],
    normals: NDArray[np.floating],
    template: Template,
    seed: int = 0,
    scales: tuple[float, ...] = (1.0,),
    landmarks: Landmarks | None = None,
    start: NDArray[np.floating] | None = None,
) -> Alignment:
    """Align the template's head with a scan of any rotation and position.

    Args:
        points_mm: (n, 3) points of the scan, world frame; in mm after one of ``scales`` is applied.
        normals: (n, 3) unit normals that point out of the surface; zero where unknown.
        template: the head to look for.
        seed: of the points drawn on the template.
        scales: factors to mm, 1.0 where the unit is told; tried in the order of how usual the scan's size would be,
            until one leads to a head.
        landmarks: of the scan, in its frame and unit; a start that spares the search where it leads to a head.
        start: (4, 4) ``T_world_from_head`` where an earlier step found the head, in mm; another such start.

    Returns:
        The best alignment, accepted or with the reason why it is none.
    """
    model = SearchModel.of(template, np.random.default_rng(seed))
    dense = cache(lambda: SearchModel.of(template, np.random.default_rng(seed), DOUBTFUL_POINTS))
    best: Alignment | None = None
    marks = template.mesh.vertices[template.landmarks]
    for scale in sorted(scales, key=lambda scale: _unusual(points_mm, scale)):
        starts = [] if start is None else [np.asarray(start, np.float64)]
        if landmarks is not None:
            told = Landmarks(landmarks.points_mm * scale, landmarks.spread_mm * scale)
            pose = pose_by_landmarks(marks, told)
            starts += [] if pose is None else [pose]
        points = np.asarray(points_mm, np.float64) * scale
        found = _align_scaled(points, np.asarray(normals, np.float64), model, dense, scale, starts)
        if best is None or found.score > best.score:
            best = found
        if found.accepted:
            return found
    if best is None:
        raise ValueError("scales is empty")
    return best


def _unusual(points: NDArray[np.floating], scale: float) -> float:
    """How many times larger or smaller than usual the scan would be, as a logarithm."""
    finite = points[np.isfinite(points).all(1)]
    extent = float(np.ptp(finite, axis=0).max()) * scale if len(finite) else 0.0
    return abs(float(np.log(max(extent, 1e-9) / USUAL_EXTENT_MM)))


def fitting_unit(
    points: NDArray[np.floating], normals: NDArray[np.floating], template: Template, seed: int = 0
) -> str | None:
    """In which other unit a scan that holds no head in the told one does hold one, in words; None if in none.

    Args:
        points, normals: (n, 3) as for ``align_head``, in mm by the told unit.
    """
    tried = {name: align_head(points, normals, template, seed, (factor,)) for factor, name in UNIT_FACTORS.items()}
    good = {name: found.score for name, found in tried.items() if found.accepted}
    return max(good, key=lambda name: good[name]) if good else None


def _align_scaled(
    points: NDArray,
    normals: NDArray,
    model: SearchModel,
    dense: Callable[[], SearchModel],
    scale: float,
    starts: list[NDArray[np.float64]],
) -> Alignment:
    finite = np.isfinite(points).all(1) & np.isfinite(normals).all(1)
    points, normals = points[finite], normals[finite]
    if len(points) < LEAST_POINTS:
        return _none(f"{len(points)} points are too few to find a head", scale)
    low, high = np.percentile(points, [1, 99], axis=0)
    extent = float((high - low).max())
    if not EXTENT_MM[0] <= extent <= EXTENT_MM[1]:
        return _none(f"the scan is {extent:.0f} mm wide, no size for a scan of a head", scale)
    scan = ThinScan.of(points, normals, 5.0)
    for start in starts:
        told = _settle([Candidate(start, np.zeros(len(model.basis)))], scan, points, normals, model, dense, scale)
        if told.accepted:
            return told
    curved = curved_points(scan)
    area = 25.0 * float(curved.sum())
    if area < CURVED_LEAST_MM2:
        return _none(f"only {area / 100:.0f} cm^2 of the scan are curved as a head is", scale)
    places = correlate(scan.select(curved), model)
    first = [Candidate(place.T, place.coefficients.copy()) for place in places[:SECOND_CHANCES]]
    found = _settle(places, scan, points, normals, model, dense, scale)
    if found.accepted:
        return found
    return max(found, _settle(first, scan, points, normals, model, dense, scale), key=lambda alignment: alignment.score)


def _none(reason: str, scale: float) -> Alignment:
    return Alignment(np.eye(4), 0.0, False, reason, scale, np.zeros(0))


def curved_points(scan: ThinScan) -> NDArray[np.bool_]:
    """Mask of the points that may lie on a head: walls, boards and whatever is far larger than a head are too flat."""
    rough = ThinScan.of(scan.points, scan.normals, 20.0)
    near = rough.tree.query_ball_point(rough.points, CURVED_REACH_MM)
    flat = np.array([np.linalg.norm(rough.normals[index].mean(0)) > CURVED_MOST for index in near])
    _, nearest = rough.nearest(scan.points, np.inf)
    return ~flat[nearest]


def _settle(
    candidates: list[Candidate],
    scan: ThinScan,
    points: NDArray,
    normals: NDArray,
    model: SearchModel,
    dense: Callable[[], SearchModel],
    scale: float,
) -> Alignment:
    """Refine candidates, fewer and finer from stage to stage, and judge the best."""
    coarse, fine = ThinScan.of(points, normals, 9.0), ThinScan.of(points, normals, 3.5)
    third, half = model.every(3), model.every(2)
    for candidate in candidates:
        refine(candidate, coarse, third, (40, 30, 25), 0)
        refine(candidate, coarse, third, (25, 22, 18, 15, 12, 12), model.few)
        candidate.score = agreement(candidate, coarse, model, 12.0, 40.0)
    candidates = _distinct(candidates, 14)
    for candidate in candidates:
        refine(candidate, scan, half, (15, 12, 12, 10, 10, 8, 8, 6, 6), model.few)
        candidate.score = agreement(candidate, scan, model, 5.0, 28.0)
    everywhere = candidates
    candidates = _leading(_distinct(candidates, 4))
    for candidate in candidates:
        refine(candidate, fine, model, (8, 8, 6, 6, 5, 5), model.few)
        candidate.score = agreement(candidate, fine, model, 3.0, 20.0)
    candidates = _leading(_distinct(candidates, 4))
    for candidate in candidates:
        refine(candidate, fine, model, SETTLING_GATES_MM, len(model.basis))
        candidate.score = head_score(candidate, fine, model)
    best = max(candidates, key=lambda candidate: candidate.score)
    if best.score < SURE_SCORE:
        best = max([best, *(_slid(best, *slide, fine, model) for slide in SLIDES)], key=lambda c: c.score)
    score = judged_score(best, fine, model)
    if score < SURE_SCORE:
        refine(best, fine, dense(), SETTLING_GATES_MM, len(model.basis))
        score = judged_score(best, fine, dense())
    reason = ""
    if score < ACCEPT_SCORE:
        reason = (
            f"no head found: the best place in the scan agrees with a head by {score:.0%}, {ACCEPT_SCORE:.0%} needed"
        )
    second_mm = None
    away_mm = [float(np.linalg.norm(c.T[:3, 3] - best.T[:3, 3])) for c in everywhere]
    apart = [k for k, distance_mm in enumerate(away_mm) if distance_mm > APART_MM]
    if apart and not reason:
        other = max(apart, key=lambda k: everywhere[k].score)
        if _settle([everywhere[other]], scan, points, normals, model, dense, scale).accepted:
            second_mm = away_mm[other]
    return Alignment(best.T, score, not reason, reason, scale, best.coefficients, second_mm)


def _slid(found: Candidate, up_mm: float, half_open: bool, fine: ThinScan, model: SearchModel) -> Candidate:
    """Settle once more from a place further up the face, as the template is or with its mouth half open."""
    slide = np.eye(4)
    slide[1, 3] = up_mm
    candidate = Candidate(found.T @ slide, half_open * model.half_open)
    refine(candidate, fine, model, SETTLING_GATES_MM, len(model.basis))
    candidate.score = head_score(candidate, fine, model)
    return candidate


def _leading(candidates: list[Candidate]) -> list[Candidate]:
    """Those that are near the best, which is the first."""
    return [candidate for candidate in candidates if candidate.score > candidates[0].score - LEAD]


def _distinct(candidates: list[Candidate], keep: int) -> list[Candidate]:
    """The best candidates, without near repeats of a better one."""
    out: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda c: -c.score):
        repeat = False
        for other in out:
            cos = 0.5 * (np.trace(candidate.T[:3, :3].T @ other.T[:3, :3]) - 1)
            repeat |= bool(cos > np.cos(np.radians(8)) and np.linalg.norm(candidate.T[:3, 3] - other.T[:3, 3]) < 8)
        if not repeat:
            out.append(candidate)
        if len(out) == keep:
            break
    return out
