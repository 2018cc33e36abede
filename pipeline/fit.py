"""Fit a trained model to clouds or meshes of one person, in any pose and unit: alignment, codes and pose together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field

from model.fit_config import FitConfig
from model.observation import Observation
from pipeline.fit_columns import FitColumns, carriers_of
from pipeline.fit_document import CODES_FILE, FitDocument, Residual, ScanDocument, rows_of
from registration.alignment import Alignment
from registration.mesh import Mesh, transform_points, vertex_normals
from registration.point_search import search_points
from registration.rendered_points import above_plane
from registration.template import Template
from storage.errors import ConfigError, one_line

if TYPE_CHECKING:
    from model.head_model import HeadModel


class ScanFitConfig(BaseModel):
    """How scans from anywhere are fitted."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    units_to_mm: tuple[float, ...] = Field(default=(1.0, 10.0, 1000.0), description="units that are tried, in mm")
    alignment_points: int = Field(default=60_000, gt=0, description="points by which the head is looked for, at most")
    margin_mm: float = Field(default=15.0, ge=0, description="points so far outside the model's box still count, mm")
    resolution: int = Field(default=256, gt=15, description="cells along the longest edge of the meshed head")
    fit: FitConfig = FitConfig(rotation_deg=6.0, translation_mm=10.0)
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
    """

    document: ScanDocument
    expression: NDArray[np.float32] | None = None
    mesh: Mesh | None = None
    template_mesh: Mesh | None = None
    landmarks: NDArray[np.float64] | None = None


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


@dataclass(frozen=True)
class _Found:
    """A scan whose head was looked for: a thinned cloud in the scan's unit, and where the head is."""

    points: NDArray[np.float64]
    normals: NDArray[np.float64] | None
    alignment: Alignment


def fit_scans(
    head: HeadModel,
    scans: Sequence[Mesh | ArrayLike],
    names: Sequence[str] | None = None,
    config: ScanFitConfig | None = None,
    seed: int = 0,
) -> Fit:
    """Fit one person to clouds or meshes, each with an expression of its own.

    The head is found in each scan by rigid alignment in every likely unit; the points on it then give one identity
    code, and an expression code and a pose correction a scan. A scan without a head is rejected and takes no part.

    Args:
        head: the trained model.
        scans: meshes, clouds (a mesh without faces; attributes ``nx``, ``ny``, ``nz`` are its normals) or (n, 3)
            points, world frame, each in its own unit.
        names: of the scans; "0", "1" and so on by default.
        config: limits and sizes.
        seed: of all that is drawn.

    Raises:
        ConfigError: no scans, or names that are not distinct.
    """
    from model.carried_template import CarriedTemplate  # torch: not needed to read this module's settings
    from model.head_fitter import NphmFitter

    config = config or ScanFitConfig()
    names = [str(i) for i in range(len(scans))] if names is None else list(names)
    if not scans or len(set(names)) != len(scans):
        raise ConfigError(one_line("need distinct names", "fit", f"{len(scans)} scans", "name each scan once"))
    clouds = [scan if isinstance(scan, Mesh) else Mesh.of(scan, np.zeros((0, 3))) for scan in scans]
    found = {name: _find(cloud, head.template, config, seed) for name, cloud in zip(names, clouds, strict=True)}
    observations = {n: _observe(n, f, head, config) for n, f in found.items() if f.alignment.accepted}
    observations = {n: o for n, o in observations.items() if len(o.points_mm) >= config.least_points}
    done = {n: FittedScan(_rejected(f, config)) for n, f in found.items() if n not in observations}
    if not observations:
        return Fit({name: done[name] for name in names})
    fitter = NphmFitter(head, config.fit)
    codes = fitter.codes(list(observations.values()), seed)
    meshes = head.meshes(codes.identity, codes.expressions, config.resolution)
    carried = CarriedTemplate.onto(head, codes.identity, seed).vertices_mm.astype(np.float32)
    for place, (name, observation) in enumerate(observations.items()):
        T_told_from_head = codes.T_told_from_head[place]
        template_mm = head.pose(carried, codes.identity, codes.expressions[place]).astype(np.float64)
        carriers = carriers_of(template_mm)
        seen = transform_points(np.linalg.inv(T_told_from_head), observation.points_mm)
        columns = FitColumns(seen, carriers, fitter.spread_mm(codes, place, carriers))
        topology = Mesh.of(template_mm, head.template.mesh.faces)
        T = found[name].alignment.T_world_from_head @ T_told_from_head
        unit = found[name].alignment.unit_to_mm
        posed = _in_scan(topology, columns, T, unit)
        done[name] = FittedScan(
            _judge(found[name], T, codes.residual_mm[place], config),
            codes.expressions[place],
            _in_scan(meshes[place], columns, T, unit),
            posed,
            posed.vertices[head.template.landmarks].astype(np.float64),
        )
    return Fit({name: done[name] for name in names}, codes.identity)


def _in_scan(mesh: Mesh, columns: FitColumns, T_world_from_head: NDArray[np.float64], unit_to_mm: float) -> Mesh:
    """A mesh of the head frame in the scan's own frame and unit, with what is known of its vertices."""
    known = dict(mesh.attributes) | columns.of(mesh.vertices)
    placed = transform_points(T_world_from_head, mesh.vertices) / unit_to_mm
    return replace(mesh, attributes=known).with_vertices(placed)


def _find(cloud: Mesh, template: Template, config: ScanFitConfig, seed: int) -> _Found:
    """Thin a cloud and look for the head in it."""
    points = cloud.vertices.astype(np.float64)
    known = _normals(cloud)
    finite = np.isfinite(points).all(1)
    pick = np.flatnonzero(finite)
    if len(pick) > config.alignment_points:
        pick = np.sort(np.random.default_rng(seed).choice(pick, config.alignment_points, replace=False))
    points = points[pick]
    told = None if known is None else known[pick]
    return _Found(points, told, search_points(points, told, template, seed, config.units_to_mm))


def _normals(cloud: Mesh) -> NDArray[np.float64] | None:
    if len(cloud.faces):
        return vertex_normals(cloud.vertices, cloud.faces)
    if not {"nx", "ny", "nz"} <= set(cloud.attributes):
        return None
    told = np.stack([cloud.attributes[name] for name in ("nx", "ny", "nz")], 1).astype(np.float64)
    told[~np.isfinite(told).all(1)] = 0.0
    length = np.linalg.norm(told, axis=1, keepdims=True)
    # columns that some exporters write and never fill tell nothing
    return told / np.maximum(length, 1e-12) if np.mean(length > 0) > 0.5 else None


def _observe(name: str, scan: _Found, head: HeadModel, config: ScanFitConfig) -> Observation:
    """The points where the model's heads lie, in the found head frame; shoulders and furniture stay behind."""
    T_head_from_world = np.linalg.inv(scan.alignment.T_world_from_head)
    points = transform_points(T_head_from_world, scan.points * scan.alignment.unit_to_mm)
    low, high = head.box_mm[0] - config.margin_mm, head.box_mm[1] + config.margin_mm
    inside = ((points >= low) & (points <= high)).all(1) & above_plane(points, head.throat_plane)
    normals = None if scan.normals is None else (scan.normals @ T_head_from_world[:3, :3].T)[inside]
    return Observation(name, points[inside], normals)


def _rejected(scan: _Found, config: ScanFitConfig) -> ScanDocument:
    too_few = f"fewer than {config.least_points} points on the head"
    return ScanDocument(
        unit_to_mm=scan.alignment.unit_to_mm,
        T_world_from_head=rows_of(scan.alignment.T_world_from_head),
        residual_mm=None,
        verdict="rejected",
        reasons=(scan.alignment.reason or too_few,),
        alignment_score=scan.alignment.score,
    )


def _judge(
    scan: _Found, T_world_from_head: NDArray[np.float64], residual_mm: NDArray[np.float64], config: ScanFitConfig
) -> ScanDocument:
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
        unit_to_mm=scan.alignment.unit_to_mm,
        T_world_from_head=rows_of(T_world_from_head),
        residual_mm=Residual(median=float(median), p95=float(p95)) if len(known) else None,
        verdict="rejected" if reasons else "accepted",
        reasons=tuple(reasons),
        alignment_score=scan.alignment.score,
        points_used=len(residual_mm),
        codes=CODES_FILE,
    )
