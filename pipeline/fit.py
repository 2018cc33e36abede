"""Fit a trained model to clouds or meshes of one person, in any pose and unit: alignment, codes and pose together."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import BaseModel, ConfigDict, Field
from safetensors.numpy import save as encode_safetensors

from model.fit_config import FitConfig
from model.observation import Observation
from registration.alignment import Alignment, align_head
from registration.cloud_normals import estimate_normals
from registration.mesh import Mesh, mesh_from_ply, mesh_to_ply, transform_points, vertex_normals
from registration.rendered_points import above_plane
from registration.template import Template
from storage.errors import ConfigError, ScanRejected, one_line
from storage.obj import read_obj

if TYPE_CHECKING:
    from model.head_model import HeadModel

CODES_FILE = "codes.safetensors"
_LIKELY_EXTENT_MM = 350.0


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


class Residual(BaseModel):
    """Distances of a scan's points on the head to the fitted surface, mm."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    median: float
    p95: float


class ScanDocument(BaseModel):
    """What ``fit.json`` says of one scan."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    unit_to_mm: float = Field(description="the scan's unit in mm, as found")
    T_world_from_head: tuple[tuple[float, float, float, float], ...] = Field(
        description="4x4 rigid, head frame in mm to the scan's world in mm"
    )
    residual_mm: Residual | None = Field(description="null where nothing could be fitted")
    verdict: Literal["accepted", "rejected"]
    reasons: tuple[str, ...] = ()
    alignment_score: float = Field(description="0 to 1, agreement of the found face with the template")
    points_used: int = 0
    codes: str | None = Field(
        default=None,
        description="file with tensors identity and expression/NAME; null where nothing was fitted",
    )


class FitDocument(BaseModel):
    """``fit.json``: the scans of one person by name."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    scans: dict[str, ScanDocument]


@dataclass(frozen=True)
class FittedScan:
    """One scan's result.

    Attributes:
        document: what ``fit.json`` says.
        expression: (E,) code, or None where nothing could be fitted; likewise the others.
        mesh: the complete head in the scan's own frame and unit.
        template_mesh: the same in template topology.
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
    codes = NphmFitter(head, config.fit).codes(list(observations.values()), seed)
    meshes = head.meshes(codes.identity, codes.expressions, config.resolution)
    carried = CarriedTemplate.onto(head, codes.identity, seed).vertices_mm
    for place, name in enumerate(observations):
        scan, expression = found[name], codes.expressions[place]
        T = scan.alignment.T_world_from_head @ codes.T_told_from_head[place]
        document = _judge(scan, T, codes.residual_mm[place], config)

        def to_scan(
            posed_mm: NDArray[np.floating],
            T: NDArray[np.float64] = T,
            unit: float = scan.alignment.unit_to_mm,
        ) -> NDArray[np.float64]:
            return transform_points(T, posed_mm) / unit

        template_vertices = to_scan(head.pose(carried.astype(np.float32), codes.identity, expression))
        done[name] = FittedScan(
            document,
            expression,
            meshes[place].with_vertices(to_scan(meshes[place].vertices)),
            Mesh.of(template_vertices, head.template.mesh.faces),
            template_vertices[head.template.landmarks],
        )
    return Fit({name: done[name] for name in names}, codes.identity)


def _find(cloud: Mesh, template: Template, config: ScanFitConfig, seed: int) -> _Found:
    """Look for the head in each unit, the likeliest first, until one is accepted."""
    points = cloud.vertices.astype(np.float64)
    known = _normals(cloud)
    finite = np.isfinite(points).all(1)
    pick = np.flatnonzero(finite)
    if len(pick) > config.alignment_points:
        pick = np.sort(np.random.default_rng(seed).choice(pick, config.alignment_points, replace=False))
    points = points[pick]
    told = None if known is None else known[pick]
    normals = estimate_normals(points) if told is None else told
    extent = float(np.ptp(np.percentile(points, [1, 99], axis=0), axis=0).max()) if len(points) else 0.0
    units = sorted(config.units_to_mm, key=lambda u: abs(np.log(max(extent * u, 1e-9) / _LIKELY_EXTENT_MM)))
    tried: list[Alignment] = []
    # where the outside is a guess, the other side is tried too
    for sign in (1.0,) if told is not None else (1.0, -1.0):
        for unit in units:
            tried.append(align_head(points, sign * normals, template, seed, (unit,)))
            if tried[-1].accepted:
                return _Found(points, told, tried[-1])
    return _Found(points, told, max(tried, key=lambda a: a.score))


def _normals(cloud: Mesh) -> NDArray[np.float64] | None:
    if len(cloud.faces):
        return vertex_normals(cloud.vertices, cloud.faces)
    if not {"nx", "ny", "nz"} <= set(cloud.attributes):
        return None
    told = np.stack([cloud.attributes[name] for name in ("nx", "ny", "nz")], 1).astype(np.float64)
    return told / np.maximum(np.linalg.norm(told, axis=1, keepdims=True), 1e-12)


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
        T_world_from_head=_rows(scan.alignment.T_world_from_head),
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
        T_world_from_head=_rows(T_world_from_head),
        residual_mm=Residual(median=float(median), p95=float(p95)) if len(known) else None,
        verdict="rejected" if reasons else "accepted",
        reasons=tuple(reasons),
        alignment_score=scan.alignment.score,
        points_used=len(residual_mm),
        codes=CODES_FILE,
    )


def _rows(T: NDArray[np.float64]) -> tuple[tuple[float, float, float, float], ...]:
    return tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in T)


def fit_files(
    model: Path, scans: Sequence[Path], out: Path, config: ScanFitConfig | None = None, seed: int = 0
) -> dict[str, Any]:
    """Fit a model folder to files of one person and write the results into a folder.

    Writes ``codes.safetensors`` (``identity``, ``expression/NAME``), for each scan with a fitted head ``NAME.ply``,
    ``NAME.template.ply`` and ``NAME.landmarks.json`` in the scan's own frame and unit, and last ``fit.json``.

    Args:
        model: a model folder.
        scans: PLY or OBJ files. A damaged one is rejected and the others go on.
        out: folder of the results.

    Returns:
        What ``fit.json`` holds.

    Raises:
        ConfigError: the model folder is none, or two scans would have one name.
    """
    from model.head_model import HeadModel

    head = HeadModel.load(model)
    names = scan_names(scans)
    read, damaged = {}, {}
    for name, path in zip(names, scans, strict=True):
        try:
            read[name] = read_scan(path)
        except ScanRejected as error:
            damaged[name] = str(error)
    fit = fit_scans(head, list(read.values()), list(read), config, seed) if read else Fit()
    out.mkdir(parents=True, exist_ok=True)
    document = FitDocument(
        scans={
            name: _unreadable(damaged[name]) if name in damaged else fit.scans_by_name[name].document for name in names
        }
    )
    for name, scan in fit.scans_by_name.items():
        for file, data in _files(name, scan).items():
            (out / file).write_bytes(data)
    if fit.identity is not None:
        codes = {f"expression/{n}": s.expression for n, s in fit.scans_by_name.items() if s.expression is not None}
        (out / CODES_FILE).write_bytes(encode_safetensors({"identity": fit.identity} | codes))
    told = document.model_dump(mode="json")
    (out / "fit.json").write_text(json.dumps(told, indent=1))
    return told


def _files(name: str, scan: FittedScan) -> dict[str, bytes]:
    if scan.mesh is None or scan.template_mesh is None or scan.landmarks is None:
        return {}
    return {
        f"{name}.ply": mesh_to_ply(scan.mesh),
        f"{name}.template.ply": mesh_to_ply(scan.template_mesh),
        f"{name}.landmarks.json": json.dumps(scan.landmarks.tolist()).encode(),
    }


def _unreadable(reason: str) -> ScanDocument:
    return ScanDocument(
        unit_to_mm=1.0,
        T_world_from_head=_rows(np.eye(4)),
        residual_mm=None,
        verdict="rejected",
        reasons=(reason,),
        alignment_score=0.0,
    )


def scan_names(paths: Sequence[Path]) -> list[str]:
    """A name for each file: its own without the ending, with its folder's before where several are called so.

    Raises:
        ConfigError: two files still have one name.
    """
    times = Counter(path.stem for path in paths)
    names = [path.stem if times[path.stem] == 1 else f"{path.resolve().parent.name}_{path.stem}" for path in paths]
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ConfigError(one_line("names two scans", twice[0], "same file and folder name", "rename one of them"))
    return names


def read_scan(path: Path) -> Mesh:
    """Read a PLY or OBJ file, mesh or cloud.

    Raises:
        ScanRejected: it is missing, of another kind, damaged, or empty.
    """
    if not path.is_file():
        raise ScanRejected(one_line("is missing", str(path), "no such file", "name a PLY or OBJ file"))
    data = path.read_bytes()
    if path.suffix.lower() == ".obj":
        told = read_obj(data, str(path))
        mesh = Mesh.of(told.vertices, told.triangles)
    else:
        mesh = mesh_from_ply(data, str(path))
    if len(mesh.vertices) == 0:
        raise ScanRejected(one_line("is empty", str(path), "no points", "export the scan again"))
    return mesh
