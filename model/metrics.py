"""How far apart two surfaces are: chamfer, normal consistency, F-score and point-to-triangle, in mm."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from registration.mesh import Mesh, face_normals
from registration.rendered_points import RenderedPoints
from registration.surface import SurfaceIndex

F_SCORE_LIMITS_MM = (1.0, 5.0, 10.0, 20.0)


@dataclass(frozen=True)
class SurfaceError:
    """Two surfaces compared over samples of what can be seen of them.

    Attributes:
        chamfer_l1_mm: half the sum of the mean distances to the nearest sample, both ways. Samples have a floor of
            about half the square root of the area over their number.
        chamfer_l2_mm2: half the sum of the mean squared distances.
        normal_consistency: mean absolute cosine between nearest samples' normals, both ways.
        f_score: by limit in mm, harmonic mean of precision and recall, 0 where both are 0.
        point_to_triangle_mm: half the sum of the mean distances to the other mesh's triangles, both ways: no floor.
        accuracy_median_mm, accuracy_p95_mm: of the predicted samples' distances to the true triangles.
        completeness_median_mm, completeness_p95_mm: of the true samples' distances to the predicted triangles.
    """

    chamfer_l1_mm: float
    chamfer_l2_mm2: float
    normal_consistency: float
    f_score: Mapping[float, float]
    point_to_triangle_mm: float
    accuracy_median_mm: float
    accuracy_p95_mm: float
    completeness_median_mm: float
    completeness_p95_mm: float

    def as_figures(self) -> dict[str, float]:
        """The figures by flat name, ready for a table or JSON."""
        flat = {name: float(value) for name, value in vars(self).items() if name != "f_score"}
        return flat | {f"f_score_{limit:g}mm": float(score) for limit, score in self.f_score.items()}


def compare_surfaces(
    predicted: Mesh,
    predicted_samples: RenderedPoints,
    true: Mesh,
    true_samples: RenderedPoints,
    limits_mm: Sequence[float] = F_SCORE_LIMITS_MM,
) -> SurfaceError:
    """Compare a predicted with a true surface (all in one frame, mm).

    Args:
        predicted, true: the meshes, for the distances to triangles.
        predicted_samples, true_samples: what is compared of each, at least one point each.
        limits_mm: of the F-scores.

    Raises:
        ValueError: one side has no samples, which is a failure that the caller has to count.
    """
    p, q = predicted_samples.points_mm, true_samples.points_mm
    if len(p) == 0 or len(q) == 0:
        raise ValueError(f"nothing to compare: {len(p)} predicted and {len(q)} true samples")
    to_true, nearest_true = (np.asarray(column) for column in cKDTree(q).query(p))
    to_predicted, nearest_predicted = (np.asarray(column) for column in cKDTree(p).query(q))
    cosine_p = np.abs(np.einsum("nc,nc->n", predicted_samples.normals, true_samples.normals[nearest_true]))
    cosine_q = np.abs(np.einsum("nc,nc->n", true_samples.normals, predicted_samples.normals[nearest_predicted]))
    accuracy = SurfaceIndex(true).closest(p).distance_mm
    completeness = SurfaceIndex(predicted).closest(q).distance_mm
    return SurfaceError(
        chamfer_l1_mm=0.5 * (to_true.mean() + to_predicted.mean()),
        chamfer_l2_mm2=0.5 * ((to_true**2).mean() + (to_predicted**2).mean()),
        normal_consistency=0.5 * (cosine_p.mean() + cosine_q.mean()),
        f_score={limit: f_score(np.mean(to_true < limit), np.mean(to_predicted < limit)) for limit in limits_mm},
        point_to_triangle_mm=0.5 * (accuracy.mean() + completeness.mean()),
        accuracy_median_mm=float(np.median(accuracy)),
        accuracy_p95_mm=float(np.percentile(accuracy, 95)),
        completeness_median_mm=float(np.median(completeness)),
        completeness_p95_mm=float(np.percentile(completeness, 95)),
    )


def f_score(precision: float | np.floating, recall: float | np.floating) -> float:
    """Harmonic mean of two shares from 0 to 1; 0 where both are 0."""
    total = precision + recall
    return float(2 * precision * recall / total) if total > 0 else 0.0


def in_region(
    points: NDArray[np.floating],
    registration: Mesh,
    region: NDArray[np.bool_],
    distance_mm: float,
    plane_distance_mm: float = np.inf,
) -> NDArray[np.bool_]:
    """Mask (n,) of the points that belong to a region of a registered head.

    A point belongs where the registration's nearest triangle does, within ``distance_mm``, and within
    ``plane_distance_mm`` of that triangle's plane.

    Args:
        points: (n, 3) mm, in the registration's frame.
        registration: the whole registered template.
        region: (vertices,) bool; a triangle belongs with all its corners.
    """
    if len(points) == 0:
        return np.zeros(0, bool)
    nearest = SurfaceIndex(registration).closest(points)
    normal = face_normals(registration.vertices, registration.faces)[nearest.faces]
    to_plane = np.abs(np.einsum("nc,nc->n", points - nearest.points, normal))
    inside = region[registration.faces[nearest.faces]].all(1)
    return np.asarray(inside & (nearest.distance_mm <= distance_mm) & (to_plane <= plane_distance_mm))


def bootstrap_interval(
    values_by_subject: Mapping[str, Sequence[float]], rng: np.random.Generator, draws: int = 1000, share: float = 0.95
) -> tuple[float, float]:
    """Interval of the mean over scans when subjects, not scans, are drawn anew with replacement.

    Args:
        values_by_subject: one or more values a subject.
        share: of the draws' means that lies within.
    """
    means = _redrawn_means(values_by_subject, _draws(len(values_by_subject), draws, rng))
    low, high = np.quantile(means, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def ratio_interval(
    ours: Mapping[str, Sequence[float]],
    theirs: Mapping[str, Sequence[float]],
    rng: np.random.Generator,
    draws: int = 1000,
    share: float = 0.95,
) -> tuple[float, float]:
    """Interval of the ratio of two methods' means over scans, the same subjects drawn anew for both.

    Args:
        ours, theirs: values by subject; both know the same subjects.
        share: of the draws' ratios that lies within.

    Raises:
        ValueError: the subjects differ.
    """
    if set(ours) != set(theirs):
        raise ValueError("the methods were measured on other subjects")
    draw = _draws(len(ours), draws, rng)
    ratios = _redrawn_means(ours, draw) / _redrawn_means({subject: theirs[subject] for subject in ours}, draw)
    low, high = np.quantile(ratios, [(1 - share) / 2, (1 + share) / 2])
    return float(low), float(high)


def _draws(subjects: int, draws: int, rng: np.random.Generator) -> NDArray[np.int64]:
    """Which subjects (draws, subjects) each draw has, with replacement."""
    return rng.integers(subjects, size=(draws, subjects))


def _redrawn_means(values_by_subject: Mapping[str, Sequence[float]], draw: NDArray[np.int64]) -> NDArray[np.float64]:
    """Means over all scans of each draw's subjects."""
    sums = np.array([np.sum(values) for values in values_by_subject.values()])
    counts = np.array([len(values) for values in values_by_subject.values()])
    return np.asarray(sums[draw].sum(1) / counts[draw].sum(1))
