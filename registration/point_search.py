"""Find the head in what may be no more than a few hundred noisy points of one view, and say how surely it is one.

The places come from the same search over all rotations as a clean scan's do. There each is then judged from the
template's side, by the scan's own normals; here from the points' side, since sparse points have no trustworthy normals:
candidates are fitted by ``registration.point_fit``, fewer and finer from stage to stage, and the one that leaves
the least cost is judged by what its face explains.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from registration.alignment import EXTENT_MM, USUAL_EXTENT_MM, Alignment, curved_points
from registration.cloud_normals import agree_nearby, estimate_normals
from registration.mesh import transform_points
from registration.point_fit import PointFit, PointModel, face_evidence, fit_points
from registration.pose_search import correlate
from registration.search_model import SearchModel, ThinScan
from registration.template import Template

LEAST_POINTS = 100
FEW_POINTS = 1000
NEIGHBOURS, FEW_NEIGHBOURS = 20, 12
"""By which normals are estimated; twenty of few points reach across a nose."""
LEAST_AGREEMENT = 0.8
"""So many neighbours' normals must look to one side, else they were never oriented."""
LEAST_HIT = 20
HEAD_REACH_MM = 230.0
"""No point of a head is further from its middle."""
MIDDLE_MM = np.array([0.0, 20.0, 20.0])
COARSE_SCALES_MM = (30.0, 25.0, 20.0, 15.0, 12.0, 10.0)
MIDDLE_SCALES_MM = (15.0, 12.0, 12.0, 10.0, 10.0, 8.0, 8.0, 6.0, 6.0)
FINE_SCALES_MM = (*(12.0,) * 3, *(10.0,) * 3, *(8.0,) * 4, *(6.0,) * 4, *(5.0,) * 4, *(4.0,) * 4, *(3.0,) * 3)
COARSE_MODES, MIDDLE_MODES = 4, 24
COARSE_POINTS, FINE_POINTS = 350, 1500
KEPT = (8, 3)
"""Candidates that reach the second and third stage."""
LEAST_EVIDENCE = 0.78
"""Heads reach 0.83 to 0.97, from the front and from the side; things that are no heads seldom more than 0.7."""
MOST_FACE_MM = 2.6
"""Four fifths of the points on the face lie nearer to it than this: 1.9 mm with 1.5 mm of noise, 3 mm and more on
things that a bent face only resembles."""
MOST_SPREADS = 0.85
"""Root mean square of the shape's coefficients, in their spreads. Heads of one view stay at 0.2 to 0.7; a face bent
onto a vase or a toy needs 0.9 and more."""
LEAST_FACE_COVER = 0.3
"""Share of the face that must have been seen: from the side it is about a half."""


@dataclass(frozen=True)
class _Scan:
    """One scan in mm, thinned twice."""

    coarse: NDArray[np.float64]
    fine: NDArray[np.float64]
    seed: int

    def near(self, T_world_from_head: NDArray[np.float64], points: NDArray[np.float64]) -> NDArray[np.float64]:
        """Those of the points that may lie on a head there."""
        middle = transform_points(T_world_from_head, MIDDLE_MM[None])[0]
        return points[((points - middle) ** 2).sum(1) < HEAD_REACH_MM**2]

    def some(self, points: NDArray[np.float64], most: int) -> NDArray[np.float64]:
        """At most so many of them."""
        if len(points) <= most:
            return points
        return points[np.sort(np.random.default_rng(self.seed).choice(len(points), most, replace=False))]


@dataclass(frozen=True)
class _Stage:
    """How candidates are fitted: to which points and how many, by which model, and how far it bends."""

    points: NDArray[np.float64]
    most: int
    model: PointModel
    scales_mm: tuple[float, ...]
    modes: int


def search_points(
    points: NDArray[np.floating],
    normals: NDArray[np.floating] | None,
    template: Template,
    seed: int = 0,
    units_to_mm: tuple[float, ...] = (1.0,),
) -> Alignment:
    """Find the head of a scan in any pose, and its unit.

    Args:
        points: (n, 3) world frame, in one of the units.
        normals: (n, 3) unit, to one side of the surface; those that are told first, then the other side. Estimated
            where there are none, or where neighbours look to different sides.
        template: the head to look for.
        seed: of what is drawn.
        units_to_mm: in the order of how usual the scan's size would be, until one leads to a head.

    Returns:
        The best place, accepted or with the reason why it is none; its score is the face's evidence.
    """
    finite = np.isfinite(points).all(1)
    points = np.asarray(np.asarray(points)[finite], np.float64)
    if len(points) < LEAST_POINTS:
        return Alignment(np.eye(4), 0.0, False, _too_few(len(points)), units_to_mm[0], np.zeros(0))
    told = None if normals is None else np.asarray(normals, np.float64)[finite]
    if told is not None and agree_nearby(points, told) < LEAST_AGREEMENT:
        told = None
    neighbours = FEW_NEIGHBOURS if len(points) < FEW_POINTS else NEIGHBOURS
    facing = estimate_normals(points, neighbours) if told is None else told
    extent = float(np.ptp(np.percentile(points, [1, 99], axis=0), axis=0).max())
    model, search = PointModel.of(template), SearchModel.of(template, np.random.default_rng(seed))
    best: Alignment | None = None
    for sign in (1.0, -1.0):  # a cloud's outside is a guess, and told normals may look inwards
        for unit in sorted(units_to_mm, key=lambda unit: abs(np.log(max(extent * unit, 1e-9) / USUAL_EXTENT_MM))):
            found = _in_unit(
                np.asarray(points * unit, np.float64), sign * facing, extent * unit, model, search, seed, unit
            )
            if found.accepted:
                return found
            if best is None or found.score > best.score:
                best = found
    assert best is not None
    return best


def _too_few(count: int) -> str:
    return f"{count} points are too few to find a head, {LEAST_POINTS} needed"


def _none(reason: str, unit: float) -> Alignment:
    return Alignment(np.eye(4), 0.0, False, reason, unit, np.zeros(0))


def _in_unit(
    points: NDArray[np.float64],
    normals: NDArray[np.float64],
    extent_mm: float,
    model: PointModel,
    search: SearchModel,
    seed: int,
    unit: float,
) -> Alignment:
    if not EXTENT_MM[0] <= extent_mm <= EXTENT_MM[1]:
        return _none(f"the scan is {extent_mm:.3g} mm wide, no size for a scan of a head", unit)
    thin = ThinScan.of(points, normals, 5.0)
    if len(thin.points) < LEAST_POINTS // 2:
        return _none("its points lie on no surface", unit)
    curved = curved_points(thin)
    if np.count_nonzero(curved) < LEAST_POINTS // 2:
        return _none("hardly any of it is curved as a head is", unit)
    scan = _Scan(ThinScan.of(points, normals, 12.0).points, thin.points, seed)
    starts = [candidate.T for candidate in correlate(thin.select(curved), search)]
    rough = _Stage(scan.coarse, COARSE_POINTS, model.every(4), COARSE_SCALES_MM, COARSE_MODES)
    middle = _Stage(scan.fine, COARSE_POINTS, model, MIDDLE_SCALES_MM, MIDDLE_MODES)
    last = _Stage(scan.fine, FINE_POINTS, model, FINE_SCALES_MM, len(model.modes))
    fits = [_fit(T, scan, rough) for T in starts]
    for kept, stage in zip(KEPT, (middle, last), strict=True):
        fits = [_fit(fit.T_world_from_head, scan, stage, fit.coefficients) for fit in _distinct(fits, kept)]
    best = min(fits, key=lambda fit: fit.cost)
    points = scan.some(scan.near(best.T_world_from_head, scan.fine), FINE_POINTS)
    return _judged(best, points, model, unit)


def _fit(
    T: NDArray[np.float64], scan: _Scan, stage: _Stage, coefficients: NDArray[np.float64] | None = None
) -> PointFit:
    """Fit from one start; its cost counts all points of the scan, so that a small corner explains little."""
    near = scan.near(T, stage.points)
    some = scan.some(near, stage.most)
    if len(some) < LEAST_HIT:
        return PointFit(T, np.zeros(stage.modes), 1.0, np.full(len(some), np.inf), np.zeros(len(some), bool))
    fit = fit_points(some, stage.model, T, stage.scales_mm, stage.modes, coefficients)
    return fit.over(len(near) / len(stage.points))


def _distinct(fits: list[PointFit], keep: int) -> list[PointFit]:
    """The best, without near repeats of a better one."""
    out: list[PointFit] = []
    for fit in sorted(fits, key=lambda fit: fit.cost):
        turned = [0.5 * (np.trace(fit.T_world_from_head[:3, :3].T @ o.T_world_from_head[:3, :3]) - 1) for o in out]
        moved = [float(np.linalg.norm(fit.T_world_from_head[:3, 3] - o.T_world_from_head[:3, 3])) for o in out]
        if not any(c > np.cos(np.radians(6)) and d < 8 for c, d in zip(turned, moved, strict=True)):
            out.append(fit)
        if len(out) == keep:
            break
    return out


def _judged(fit: PointFit, points: NDArray[np.float64], model: PointModel, unit: float) -> Alignment:
    refit = fit_points(points, model, fit.T_world_from_head, (3.0, 3.0), len(model.modes), fit.coefficients)
    score = float(np.clip(face_evidence(points, refit), 0, 1))
    face = points[refit.on_face]
    reasons = []
    if len(face) == 0:
        reasons.append("no points lie where its face would be")
    else:
        apart = np.asarray(cKDTree(points).query(points, k=2)[0])[:, 1]
        reach = max(10.0, 2.5 * float(np.median(apart)))
        there = transform_points(refit.T_world_from_head, model.shape(refit.coefficients)[model.face])
        seen = np.asarray(cKDTree(face).query(there)[0]) < reach
        cover = float(np.mean(seen))
        spreads = float(np.sqrt(np.mean(refit.coefficients**2)))
        off = float(np.percentile(np.abs(refit.distance_mm[refit.on_face]), 80))
        if score < LEAST_EVIDENCE:
            reasons.append(f"the best place for a face explains {score:.1%} of the relief, {LEAST_EVIDENCE:.0%} needed")
        if off > MOST_FACE_MM:
            reasons.append(f"a fifth of its points lie {off:.1f} mm or more off a face, limit {MOST_FACE_MM:g} mm")
        if spreads > MOST_SPREADS:
            reasons.append(f"its face would be {spreads:.2f} spreads from people's mean, limit {MOST_SPREADS:g}")
        if cover < LEAST_FACE_COVER:
            reasons.append(f"{cover:.0%} of a face can be seen, {LEAST_FACE_COVER:.0%} needed")
    reason = f"no head found: {'; '.join(reasons)}" if reasons else ""
    return Alignment(refit.T_world_from_head, score, not reasons, reason, unit, refit.coefficients)
