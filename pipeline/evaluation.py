"""Compare fitted and trained heads with the scans that they should look like.

The protocol for a held-out scan: a camera before the face sees a few thousand points of the clean scan above the throat
plane. Every method starts from the same cloud in the same head frame, the one that the scan's registration found (as in
the paper), and may correct the pose by a small rigid motion. What ten cameras around the head see of the fitted surface
is then compared with what they see of the clean scan, so that hidden insides count for nobody.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.spatial.transform import Rotation

from model.metrics import SurfaceError, bootstrap_interval, compare_surfaces, in_region
from model.observation import FittedHead, HeadFitter, Observation
from pipeline.evaluate_config import EvaluateConfig
from pipeline.keys import subject_of
from registration.mesh import Mesh
from registration.rendered_points import RenderedPoints, single_view_cloud, visible_samples, with_noise
from storage.errors import ScanRejected, one_line

REGIONS_COMPARED = ("face", "head", "hair")
FACE_MM_SCAN, FACE_PLANE_MM_SCAN, FACE_MM_PREDICTED = 10.0, 5.0, 20.0
LEAST_HAIR_SHARE = 0.005
"""A scan of which less is seen as hair has none."""
NOTHING_TO_COMPARE = "no surface of it can be seen there"


@dataclass(frozen=True)
class HeadScan:
    """A clean scan and what its registration knows of it, in the head frame, mm.

    Attributes:
        key: SUBJECT/EXPRESSION.
        clean: the cleaned scan.
        registration: the template registered to the scan.
        face: (vertices,) bool, the registration's face region.
        throat_plane: (4,) what lies under it (n.x + d < 0) is not compared.
        hair: (clean vertices,) bool, what registration took for hair; None where it was not told.
    """

    key: str
    clean: Mesh
    registration: Mesh
    face: NDArray[np.bool_]
    throat_plane: NDArray[np.float64]
    hair: NDArray[np.bool_] | None = None


@dataclass(frozen=True)
class MethodResult:
    """What one method made of one scan.

    Attributes:
        fitted: the head, or None where the method gave none.
        errors: by region; a region is missing where there was nothing to compare.
        failure: why the method counts as failed here, else empty.
        absent: regions that the scan has not, such as hair, or that are not the method's to model: nobody fails there.
    """

    fitted: FittedHead | None
    errors: Mapping[str, SurfaceError] = field(default_factory=dict)
    failure: str = ""
    absent: tuple[str, ...] = ()


@dataclass(frozen=True)
class Look:
    """How a scan is shown to the methods.

    Attributes:
        points: of the cloud, drawn with replacement.
        noise_mm: standard deviation along the view rays.
        yaw_deg: where the camera stands around the head, 0 in front, positive to the head's left; a random frontal
            place by default.
        whole: all that ten cameras around the head see, instead of one view.
    """

    points: int
    noise_mm: float = 0.0
    yaw_deg: float | None = None
    whole: bool = False

    def of(self, scan: HeadScan, config: EvaluateConfig, rng: np.random.Generator) -> RenderedPoints:
        """The points of a scan that are seen.

        Raises:
            ScanRejected: nothing is seen above the throat.
        """
        if self.whole:
            seen = visible_samples(scan.clean, scan.throat_plane, self.points, rng, config.render_scale)
            if len(seen.points_mm) == 0:
                why = "no camera sees anything above the throat"
                raise ScanRejected(one_line("no points to fit to", scan.key, why, "look at the clean mesh"))
            return with_noise(seen, self.noise_mm, rng)
        direction = None
        if self.yaw_deg is not None:
            yaw = np.radians(self.yaw_deg)
            direction = np.array([np.sin(yaw), 0.0, np.cos(yaw)])
        told = scan.clean, scan.throat_plane, self.points, rng
        return single_view_cloud(*told, direction, noise_mm=self.noise_mm, where=scan.key)


@dataclass(frozen=True)
class ScanResult:
    """All methods on one held-out scan.

    Attributes:
        scan: what was fitted to.
        cloud: the points that every method was given; none where nothing was seen.
        methods: by name.
    """

    scan: HeadScan
    cloud: RenderedPoints
    methods: Mapping[str, MethodResult]


def evaluate_scan(scan: HeadScan, fitters: Iterable[HeadFitter], config: EvaluateConfig, seed: int) -> ScanResult:
    """Fit every method to one view of a held-out scan and measure what they give: the main protocol.

    Args:
        scan: of a subject that no method was trained on.
        fitters: the methods.
        config: number of points, noise, samples.
        seed: of the view, the points, the fits and the samples; the same for every method.
    """
    (result,) = evaluate_together([scan], fitters, Look(config.points, config.noise_mm), config, [seed])
    return result


def evaluate_together(
    scans: Sequence[HeadScan],
    fitters: Iterable[HeadFitter],
    look: Look,
    config: EvaluateConfig,
    seeds: Sequence[int],
) -> tuple[ScanResult, ...]:
    """Fit every method to scans of one person, one identity for all of them, and measure each.

    Args:
        scans: of one subject that no method was trained on.
        fitters: the methods.
        look: how the scans are shown.
        config: samples.
        seeds: of each scan's view, points and samples; the first one's also of the fits.

    Returns:
        A result a scan. Where nothing of a scan is seen, every method has failed on it.
    """
    clouds, truths = [], []
    unseen: dict[int, str] = {}
    for place, (scan, seed) in enumerate(zip(scans, seeds, strict=True)):
        rng = np.random.default_rng(seed)
        try:
            clouds.append(look.of(scan, config, rng))
        except ScanRejected as fault:
            unseen[place] = str(fault)
            clouds.append(RenderedPoints(*(np.zeros((0, 3)) for _ in range(3))))
        truths.append(visible_samples(scan.clean, scan.throat_plane, config.samples, rng, config.render_scale))
    seen = [place for place in range(len(scans)) if place not in unseen]
    # noisy points with the clean surface's normals would tell what no sensor knows
    observations = [
        Observation(scans[place].key, clouds[place].points_mm, None if look.noise_mm else clouds[place].normals)
        for place in seen
    ]
    methods: list[dict[str, MethodResult]] = [{} for _ in scans]
    for fitter in fitters:
        for place, why in unseen.items():
            absent = ("hair",) if is_bald(truths[place], scans[place]) else ()
            methods[place][fitter.name] = MethodResult(None, failure=why, absent=absent)
        fits = fitter.fit(observations, seeds[0]) if seen else ()
        for place, fitted in zip(seen, fits, strict=True):
            methods[place][fitter.name] = measure(fitted, scans[place], truths[place], config, seeds[place])
    return tuple(ScanResult(*told) for told in zip(scans, clouds, methods, strict=True))


def is_bald(truth: RenderedPoints, scan: HeadScan) -> bool:
    """Whether too little of a scan's samples is hair for that to be compared."""
    return len(on_region(truth, scan, "hair", False).points_mm) <= LEAST_HAIR_SHARE * len(truth.points_mm)


def measure(
    fitted: FittedHead, scan: HeadScan, truth: RenderedPoints, config: EvaluateConfig, seed: int
) -> MethodResult:
    """Compare a fitted head with a scan on each region.

    Args:
        fitted: in the scan's head frame.
        truth: samples of the scan.
        seed: of the fitted head's samples.
    """
    modelled = REGIONS_COMPARED if fitted.regions is None else fitted.regions
    theirs = {region: on_region(truth, scan, region, False) for region in modelled}
    there = [region for region in modelled if region != "hair" or not is_bald(truth, scan)]
    absent = tuple(region for region in REGIONS_COMPARED if region not in there)
    if not np.isfinite(fitted.mesh.vertices).all():
        return MethodResult(None, failure="the fit diverged", absent=absent)
    rng = np.random.default_rng(seed)
    predicted = visible_samples(fitted.mesh, scan.throat_plane, config.samples, rng, config.render_scale)
    errors = {}
    for region in there:
        ours = on_region(predicted, scan, region, True)
        if len(ours.points_mm) and len(theirs[region].points_mm):
            errors[region] = compare_surfaces(fitted.mesh, ours, scan.clean, theirs[region])
    missing = [region for region in there if region not in errors]
    failure = f"{', '.join(missing)}: {NOTHING_TO_COMPARE}" if missing else ""
    return MethodResult(fitted, errors, failure, absent)


def on_region(samples: RenderedPoints, scan: HeadScan, region: str, predicted: bool) -> RenderedPoints:
    """The samples on ``face`` or ``hair``, or all of them for ``head``.

    The scan's face is what lies within 10 mm of the registered face and 5 mm of its plane: skin, no hair or glasses
    before it. A predicted surface belongs to the face up to 20 mm from it, so that none escapes by being far off. Hair
    is what registration took for it on the clean scan, and what is predicted within 20 mm of that.
    """
    if region == "head":
        return samples
    if region == "hair":
        hair = np.zeros(len(scan.clean.vertices), bool) if scan.hair is None else scan.hair
        if not hair.any():
            return samples.select(np.zeros(len(samples.points_mm), bool))
        return samples.select(in_region(samples.points_mm, scan.clean, hair, FACE_MM_PREDICTED))
    limits = (FACE_MM_PREDICTED, np.inf) if predicted else (FACE_MM_SCAN, FACE_PLANE_MM_SCAN)
    return samples.select(in_region(samples.points_mm, scan.registration, scan.face, *limits))


def evaluate_training_head(mesh: Mesh, scan: HeadScan, config: EvaluateConfig, seed: int) -> MethodResult:
    """Compare a trained head, re-meshed from its code, with the scan that it was trained on."""
    rng = np.random.default_rng(seed)
    truth = visible_samples(scan.clean, scan.throat_plane, config.samples, rng, config.render_scale)
    return measure(FittedHead(mesh, np.eye(4), np.zeros(0)), scan, truth, config, seed)


def method_entry(result: MethodResult) -> dict[str, Any]:
    """One method on one scan, as plain values."""
    entry: dict[str, Any] = {"failure": result.failure or None}
    if result.fitted is not None and len(result.fitted.residual_mm):
        residual = result.fitted.residual_mm[np.isfinite(result.fitted.residual_mm)]
        T = result.fitted.T_told_from_head
        entry["residual_median_mm"] = float(np.median(residual)) if len(residual) else None
        entry["rootless_share"] = 1 - len(residual) / len(result.fitted.residual_mm)
        entry["pose_correction_deg"] = float(np.degrees(Rotation.from_matrix(T[:3, :3]).magnitude()))
        entry["pose_correction_mm"] = float(np.linalg.norm(T[:3, 3]))
    entry["regions"] = {region: error.as_figures() for region, error in result.errors.items()}
    entry["absent"] = list(result.absent)
    return entry


def summarise(
    results: Sequence[tuple[str, Mapping[str, Any]]], regions: Sequence[str], rng: np.random.Generator
) -> dict[str, Any]:
    """Means, medians and 95th percentiles of one method over scans, failures counted.

    A failed scan has no distance. It counts as infinitely far in medians and percentiles (null where that is the
    answer), as 0 in F-scores and normal consistency; the means of all else, over the other scans, stand beside the
    number of failures. Scans
    that have no such region, as hair, do not count there.

    Args:
        results: key and ``method_entry`` of each scan.
        regions: which are summarised.
        rng: draws subjects for the 95 % intervals of the means.
    """
    summary: dict[str, Any] = {"scans": len(results)}
    summary["failures"] = sum(entry["failure"] is not None for _, entry in results)
    for region in regions:
        rows = {key: entry["regions"].get(region) for key, entry in results if region not in entry["absent"]}
        summary[f"{region}_scans"] = len(rows)
        names = sorted({name for row in rows.values() if row for name in row})
        summary[region] = {name: _statistics(rows, name, rng) for name in names}
    return summary


def _statistics(
    rows: Mapping[str, Mapping[str, float] | None], name: str, rng: np.random.Generator
) -> dict[str, float | None]:
    worst = 0.0 if name.startswith(("f_score", "normal")) else np.inf
    known = {key: row[name] for key, row in rows.items() if row}
    if worst == 0.0:
        known |= {key: 0.0 for key, row in rows.items() if not row}
    everyone = np.array([row[name] if row else worst for row in rows.values()])
    by_subject: dict[str, list[float]] = {}
    for key, value in known.items():
        by_subject.setdefault(subject_of(key), []).append(value)
    low, high = bootstrap_interval(by_subject, rng)
    # the far side of the distribution is at the low end for scores
    far = np.quantile(everyone, 0.05 if worst == 0.0 else 0.95, method="higher" if worst else "lower")
    return {
        "mean": float(np.mean(list(known.values()))),
        "low": low,
        "high": high,
        "median": _finite(np.quantile(everyone, 0.5, method="higher")),
        "worst_5_percent": _finite(far),
    }


def _finite(value: float | np.floating) -> float | None:
    return float(value) if np.isfinite(value) else None
