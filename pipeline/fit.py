"""Fit a trained model to clouds or meshes of one person, in any pose and unit: alignment, codes and pose together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import Field

from model.fit_config import FitConfig
from pipeline.fit_columns import FitColumns, carriers_of
from pipeline.fit_document import CODES_FILE, FitDocument, Residual, ScanDocument, rows_of
from pipeline.fit_observe import Facing, FoundHead, find_head, observe
from registration.mesh import Mesh, transform_points
from storage.errors import ConfigError, one_line
from storage.frozen import Frozen

if TYPE_CHECKING:
    from model.head_model import HeadModel


SCALE_SHARE = 0.05
"""How far a scale that is to be refined may be off, as one standard deviation."""


class ScanFitConfig(Frozen):
    """How scans from anywhere are fitted."""

    units_to_mm: tuple[float, ...] = Field(default=(1.0, 10.0, 1000.0), description="units that are tried, in mm")
    alignment_points: int = Field(default=60_000, gt=0, description="points by which the head is looked for, at most")
    margin_mm: float = Field(default=15.0, ge=0, description="points so far outside the model's box still count, mm")
    resolution: int = Field(default=256, gt=15, description="cells along the longest edge of the meshed head")
    fit: FitConfig = FitConfig(rotation_deg=6.0, translation_mm=10.0)
    sequence: bool = Field(default=False, description="the scans are consecutive frames in one world frame")
    most_residual_mm: float = Field(default=2.5, gt=0, description="verdict: median distance of the head's points, mm")
    inlier_mm: float = Field(default=5.0, gt=0, description="verdict: a point nearer than this fits, mm")
    least_inlier_share: float = Field(default=0.6, ge=0, le=1, description="verdict: share of the points that must fit")
    least_points: int = Field(default=100, gt=0, description="verdict: points of the head that there must be")


@dataclass(frozen=True)
class FittedScan:
    """One scan's result.

    Attributes:
        document: what ``fit.json`` says.
        expression: (E,) code, or None where nothing could be fitted; likewise the others.
        mesh: the complete head in the scan's own frame and unit; its columns ``observed`` (1 where points of the scan
            lie) and ``uncertainty_mm`` (one standard deviation along the normal, in mm whatever the unit) say what was
            seen and how well the rest is known.
        template_mesh: the same in template topology, with the same columns.
        landmarks: (68, 3) in the scan's own frame and unit.
        points_head_mm: (n, 3) the scan's points on the head, in the head frame as fitted.
    """

    document: ScanDocument
    expression: NDArray[np.float32] | None = None
    mesh: Mesh | None = None
    template_mesh: Mesh | None = None
    landmarks: NDArray[np.float64] | None = None
    points_head_mm: NDArray[np.float64] | None = None


@dataclass(frozen=True)
class Fit(Mapping[str, Any]):
    """One person fitted. As a mapping it holds what ``fit.json`` holds.

    Attributes:
        scans_by_name: each scan's result.
        identity: (D,) the person's code, or None where no scan could be fitted.
    """

    scans_by_name: Mapping[str, FittedScan] = field(default_factory=dict)
    identity: NDArray[np.float32] | None = None

    @property
    def document(self) -> FitDocument:
        """``fit.json``."""
        return FitDocument(scans={name: scan.document for name, scan in self.scans_by_name.items()})

    def __getitem__(self, key: str) -> Any:
        return self.document.model_dump(mode="json")[key]

    def __iter__(self) -> Iterator[str]:
        return iter(FitDocument.model_fields)

    def __len__(self) -> int:
        return len(FitDocument.model_fields)


def fit_scans(
    head: HeadModel,
    scans: Sequence[Mesh | ArrayLike],
    names: Sequence[str] | None = None,
    config: ScanFitConfig | None = None,
    seed: int = 0,
    sensors: Sequence[ArrayLike | None] | None = None,
) -> Fit:
    """Fit one person to clouds or meshes, each with an expression of its own.

    The head is found in each scan by rigid alignment in every likely unit; the points on it then give one identity
    code, and an expression code and a pose correction a scan. A scan without a head is rejected and takes no part.

    Args:
        head: the trained model.
        scans: meshes, clouds (a mesh without faces; attributes ``nx``, ``ny``, ``nz`` are its normals) or (n, 3)
            points, world frame, each in its own unit.
        names: of the scans; "0", "1" and so on by default.
        config: limits and sizes; with ``sequence`` the scans are consecutive frames of one sensor.
        seed: of all that is drawn.
        sensors: for each scan where it was seen from, (3,) or one place a point (n, 3), in the scan's own frame and
            unit; None where it is not known.

    Raises:
        ConfigError: no scans, names that are not distinct, or sensors that do not go with the scans.
    """
    from model.carried_template import CarriedTemplate  # torch: not needed to read this module's settings
    from model.head_fitter import NphmFitter

    config = config or ScanFitConfig()
    names = [str(i) for i in range(len(scans))] if names is None else list(names)
    if not scans or len(set(names)) != len(scans):
        raise ConfigError(one_line("need distinct names", "fit", f"{len(scans)} scans", "name each scan once"))
    eyes = [None] * len(scans) if sensors is None else list(sensors)
    if len(eyes) != len(scans):
        raise ConfigError(one_line("need a sensor a scan", "fit", f"{len(eyes)} sensors", "tell None where unknown"))
    clouds = [scan if isinstance(scan, Mesh) else Mesh.of(scan, np.zeros((0, 3))) for scan in scans]
    found = {
        name: find_head(cloud, eye, head.template, config, seed)
        for name, cloud, eye in zip(names, clouds, eyes, strict=True)
    }
    seen = {n: observe(n, f, head, config) for n, f in found.items() if f.alignment.accepted}
    seen = {n: (o, facing) for n, (o, facing) in seen.items() if len(o.points_mm) >= config.least_points}
    done = {n: FittedScan(_rejected(f, config)) for n, f in found.items() if n not in seen}
    if not seen:
        return Fit({name: done[name] for name in names})
    fitter = NphmFitter(head, config.fit)
    codes = fitter.codes([observation for observation, _ in seen.values()], seed, config.sequence)
    meshes = head.meshes(codes.identity, codes.expressions, config.resolution)
    carried = CarriedTemplate.onto(head, codes.identity, seed).vertices_mm.astype(np.float32)
    for place, (name, (observation, facing)) in enumerate(seen.items()):
        scale = codes.scales[place]
        T_told_from_head = codes.T_told_from_head[place]
        template_mm = head.pose(carried, codes.identity, codes.expressions[place]).astype(np.float64)
        carriers = carriers_of(template_mm)
        points = transform_points(np.linalg.inv(T_told_from_head), scale * observation.points_mm)
        columns = FitColumns(points, carriers, fitter.spread_mm(codes, place, carriers))
        topology = Mesh.of(template_mm, head.template.mesh.faces)
        T_world_from_told = found[name].alignment.T_world_from_head.copy()
        T_world_from_told[:3, 3] *= scale
        where = _Where(T_world_from_told @ T_told_from_head, found[name].unit_to_mm * scale, facing)
        posed = _in_scan(topology, columns, where)
        done[name] = FittedScan(
            _judge(found[name], where, codes.residual_mm[place], config),
            codes.expressions[place],
            _in_scan(meshes[place], columns, where),
            posed,
            posed.vertices[head.template.landmarks].astype(np.float64),
            points,
        )
    return Fit({name: done[name] for name in names}, codes.identity)


@dataclass(frozen=True)
class _Where:
    """Where a fitted head lies in its scan, and what became of the scan's normals."""

    T_world_from_head: NDArray[np.float64]
    unit_to_mm: float
    normals: Facing


def _in_scan(mesh: Mesh, columns: FitColumns, where: _Where) -> Mesh:
    """A mesh of the head frame in the scan's own frame and unit, with what is known of its vertices."""
    known = dict(mesh.attributes) | columns.of(mesh.vertices)
    placed = transform_points(where.T_world_from_head, mesh.vertices) / where.unit_to_mm
    return replace(mesh, attributes=known).with_vertices(placed)


def _rejected(scan: FoundHead, config: ScanFitConfig) -> ScanDocument:
    too_few = f"fewer than {config.least_points} points on the head"
    return ScanDocument(
        unit_to_mm=scan.alignment.unit_to_mm,
        T_world_from_head=rows_of(scan.alignment.T_world_from_head),
        residual_mm=None,
        verdict="rejected",
        reasons=(scan.alignment.reason or too_few,),
        alignment_score=scan.alignment.score,
    )


def _judge(scan: FoundHead, where: _Where, residual_mm: NDArray[np.float64], config: ScanFitConfig) -> ScanDocument:
    far = np.where(np.isfinite(residual_mm), residual_mm, np.inf)
    known = residual_mm[np.isfinite(residual_mm)]
    inliers = float(np.mean(far < config.inlier_mm))
    reasons = []
    if np.median(far) > config.most_residual_mm:
        reasons.append(f"half of the points lie {np.median(far):.1f} mm or more off the fitted head, "
                       f"limit {config.most_residual_mm:g} mm")  # fmt: skip
    if inliers < config.least_inlier_share:
        reasons.append(f"{inliers:.0%} of the points lie within {config.inlier_mm:g} mm of the fitted head, "
                       f"{config.least_inlier_share:.0%} needed")  # fmt: skip
    median, p95 = (np.median(known), np.percentile(known, 95)) if len(known) else (0.0, 0.0)
    return ScanDocument(
        unit_to_mm=where.unit_to_mm,
        T_world_from_head=rows_of(where.T_world_from_head),
        residual_mm=Residual(median=float(median), p95=float(p95)) if len(known) else None,
        verdict="rejected" if reasons else "accepted",
        reasons=tuple(reasons),
        alignment_score=scan.alignment.score,
        points_used=len(residual_mm),
        normals=where.normals,
        rays=scan.sensors is not None,
        codes=CODES_FILE,
    )
