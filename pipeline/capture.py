"""Read the raw files of one scan into a capture in mm, and hold them against what a head rig can have seen."""

from __future__ import annotations

import math
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from pipeline.rawfiles import MAX_FILE_BYTES, RawFiles
from pipeline.session import MM_PER_UNIT
from pipeline.transforms import read_transforms
from registration.mesh import Mesh, mesh_from_ply
from registration.views import Capture, DepthView, Layout
from storage.errors import ScanRejected, one_line
from storage.images import MAX_IMAGE_BYTES, read_color_image, read_depth_png
from storage.jsonfile import MAX_JSON_BYTES, read_json
from storage.obj import read_obj

_TRANSFORMS = "transforms.json"
_PLAIN_FACTORS = (1000.0, 0.001, 10.0, 0.1, 100.0, 0.01, 1e6, 1e-6)


class IngestConfig(BaseModel):
    """What a scan must bring before any geometry is computed from it."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    min_views: int = Field(default=3, ge=2, description="fewest depth frames or view clouds with content")
    min_points: int = Field(default=50, ge=1, description="fewest points of a view that counts as one")
    max_empty_share: float = Field(default=0.49, ge=0, lt=1, description="share of the views that may be empty")
    depth_range_mm: tuple[float, float] = Field(
        default=(150.0, 4000.0), description="median depth of a scan that a head rig can have, mm"
    )
    extent_range_mm: tuple[float, float] = Field(
        default=(120.0, 3000.0), description="longest side of a cloud or mesh, its outer 2 % left out, mm"
    )


@dataclass(frozen=True)
class ReadScan:
    """A scan as it was read.

    Attributes:
        capture: in mm, empty views left out.
        figures: what was counted on the way.
    """

    capture: Capture
    figures: dict[str, Any] = field(default_factory=dict)


def read_capture(files: RawFiles, key: str, layout: Layout, unit: str, config: IngestConfig) -> ReadScan:
    """Read and check one scan of any layout.

    Args:
        files: the scan's raw files.
        key: SUBJECT/EXPRESSION.
        layout: how it was handed over.
        unit: of clouds and meshes: mm, cm or m.
        config: the limits.

    Raises:
        ScanRejected: a line that names file, fault and remedy.
    """
    if layout == "depth_frames":
        return _read_depth_frames(files, key, config)
    if layout == "view_clouds":
        return _read_view_clouds(files, key, unit, config)
    return _read_fused_mesh(files, key, unit, config)


def _read_depth_frames(files: RawFiles, key: str, config: IngestConfig) -> ReadScan:
    where = files.where(_TRANSFORMS)
    told = read_json(files.read(_TRANSFORMS, MAX_JSON_BYTES), where)
    frames, step_mm = read_transforms(told, where)
    _check_count(len(frames), "frame", where, config)
    views: list[DepthView] = []
    for frame in frames:
        size = (frame.intrinsics.width, frame.intrinsics.height)
        path = _normal(frame.depth_path)
        steps = read_depth_png(files.read(path, MAX_IMAGE_BYTES), files.where(path), size)
        color = None
        if frame.color_path is not None and _has(files, _normal(frame.color_path)):
            path = _normal(frame.color_path)
            color = read_color_image(files.read(path, MAX_IMAGE_BYTES), files.where(path), size)
        depth_mm = steps.astype(np.float32) * np.float32(step_mm)
        views.append(DepthView(frame.name, depth_mm, color, frame.intrinsics, frame.T_world_from_camera))
    seen = [np.count_nonzero(view.depth_mm) >= config.min_points for view in views]
    full = [view for view, there in zip(views, seen, strict=True) if there]
    _check_empty(len(full), len(views), "depth image", files.where("depth"), config)
    _check_distinct([view.T_world_from_camera for view in full], where)
    median_mm = float(np.median([np.median(view.depth_mm[view.depth_mm > 0]) for view in full]))
    _check_depth_unit(median_mm, step_mm, where, config)
    _check_poses([view.T_world_from_camera for view in full], median_mm, where)
    figures = {
        "views": len(full),
        "views_empty": len(views) - len(full),
        "views_with_color": sum(view.color is not None for view in full),
        "median_depth_mm": round(median_mm, 1),
        "share_with_depth": round(float(np.mean([np.mean(view.depth_mm > 0) for view in full])), 4),
    }
    return ReadScan(Capture(key, "depth_frames", depth_views=tuple(full)), figures)


def _read_view_clouds(files: RawFiles, key: str, unit: str, config: IngestConfig) -> ReadScan:
    paths = files.listed("views", ".ply")
    if not paths:
        remedy = "export one PLY a view into the scan's folder views"
        raise ScanRejected(one_line("holds no view clouds", files.where("views"), "no .ply file", remedy))
    _check_count(len(paths), "view cloud", files.where("views"), config)
    clouds = [_finite(mesh_from_ply(files.read(path, MAX_FILE_BYTES), files.where(path))) for path in paths]
    full = [cloud for cloud in clouds if len(cloud.vertices) >= config.min_points]
    empty = [path for path, cloud in zip(paths, clouds, strict=True) if len(cloud.vertices) < config.min_points]
    _check_empty(len(full), len(clouds), "cloud", files.where(empty[0]) if empty else "", config)
    if all(np.array_equal(cloud.vertices, full[0].vertices) for cloud in full[1:]):
        why = f"{len(full)} clouds with the same points"
        raise ScanRejected(
            one_line("all views are the same", files.where("views"), why, "export each view's own cloud")
        )
    together = np.concatenate([cloud.vertices[:: max(1, len(cloud.vertices) // 2000)] for cloud in full])
    _check_extent(together, unit, files.where("views"), config)
    scale = MM_PER_UNIT[unit]
    figures = {
        "views": len(full),
        "views_empty": len(empty),
        "views_with_color": sum(cloud.colors is not None for cloud in full),
        "points": int(sum(len(cloud.vertices) for cloud in full)),
    }
    in_mm = tuple(_bare(cloud, scale) for cloud in full)
    return ReadScan(Capture(key, "view_clouds", clouds=in_mm), figures)


def _read_fused_mesh(files: RawFiles, key: str, unit: str, config: IngestConfig) -> ReadScan:
    path = next((name for name in ("scan.ply", "scan.obj") if _has(files, name)), None)
    if path is None:
        remedy = "export the mesh as scan.ply or scan.obj"
        raise ScanRejected(one_line("holds no mesh", files.name, "neither scan.ply nor scan.obj", remedy))
    where = files.where(path)
    data = files.read(path, MAX_FILE_BYTES)
    if path.endswith(".ply"):
        mesh = mesh_from_ply(data, where)
    else:
        told = read_obj(data, where)
        colors = None if told.colors is None else np.clip(np.round(told.colors * 255), 0, 255)
        mesh = Mesh.of(told.vertices, told.triangles, colors)
    mesh = _finite(mesh)
    if len(mesh.vertices) < config.min_points:
        why = f"{len(mesh.vertices)} vertices, at least {config.min_points} are needed"
        raise ScanRejected(one_line("mesh is empty", where, why, "export the scan again"))
    if not len(mesh.faces):
        raise ScanRejected(one_line("mesh has no faces", where, "", "fuse the scan, or hand it over as view_clouds"))
    _check_extent(mesh.vertices, unit, where, config)
    figures = {"vertices": len(mesh.vertices), "faces": len(mesh.faces), "with_color": mesh.colors is not None}
    return ReadScan(Capture(key, "fused_mesh", mesh=_bare(mesh, MM_PER_UNIT[unit])), figures)


def _normal(path: str) -> str:
    """Without './' parts; '..' is kept, for the files' own check to refuse."""
    return path if ".." in path.split("/") else posixpath.normpath(path)


def _has(files: RawFiles, path: str) -> bool:
    folder, _, name = path.rpartition("/")
    return path in files.listed(folder, name.lower())


def _bare(mesh: Mesh, scale: float) -> Mesh:
    return Mesh(mesh.vertices * np.float32(scale), mesh.faces, mesh.colors)


def _finite(mesh: Mesh) -> Mesh:
    """Without points that are not finite: organised clouds mark pixels without a return so."""
    finite = np.asarray(np.isfinite(mesh.vertices).all(1))
    return mesh if finite.all() else mesh.select_vertices(finite)


def _check_count(count: int, kind: str, where: str, config: IngestConfig) -> None:
    if count < config.min_views:
        only = "one view only" if count == 1 else "too few views"
        why = f"{count} {kind}{'' if count == 1 else 's'}, at least {config.min_views} are needed"
        raise ScanRejected(one_line(only, where, why, "capture the head from more sides"))


def _check_empty(full: int, count: int, kind: str, where: str, config: IngestConfig) -> None:
    empty = count - full
    if empty / count > config.max_empty_share or full < config.min_views:
        why = f"{empty} of {count} have fewer than {config.min_points} points"
        what = f"every {kind} is empty" if not full else f"too many of the {kind}s are empty"
        raise ScanRejected(one_line(what, where, why, "check the sensors, then export or capture the scan again"))


def _check_distinct(poses: Sequence[NDArray[np.float64]], where: str) -> None:
    away_mm = max(float(np.linalg.norm(pose[:3, 3] - poses[0][:3, 3])) for pose in poses)
    turned = max(float(np.abs(pose[:3, :3] - poses[0][:3, :3]).max()) for pose in poses)
    if away_mm < 1.0 and turned < 2e-3:
        why = f"{len(poses)} frames within {away_mm:.2g} mm"
        remedy = "export each camera's own pose, translations in metres"
        raise ScanRejected(one_line("all views are the same", where, why, remedy))


def _check_depth_unit(median_mm: float, step_mm: float, where: str, config: IngestConfig) -> None:
    low, high = config.depth_range_mm
    if low <= median_mm <= high:
        return
    why = f"median depth {median_mm / 1000:.4g} m, expected {low / 1000:g} to {high / 1000:g} m"
    fits = next((f for f in _PLAIN_FACTORS if low <= median_mm * f <= high), None)
    remedy = "check the sensor's depth unit"
    if fits is not None:
        remedy = f"a scale of {step_mm / 1000 * fits:.6g} instead of {step_mm / 1000:.6g} would fit"
    raise ScanRejected(one_line("depth_unit_scale_factor does not fit a head rig", where, why, remedy))


def _check_poses(poses: Sequence[NDArray[np.float64]], median_mm: float, where: str) -> None:
    """The cameras of a rig look at one place, about as far away as their depth says."""
    centers = np.stack([pose[:3, 3] for pose in poses])
    axes = np.stack([pose[:3, 2] for pose in poses])
    spread_deg = math.degrees(math.acos(float(np.clip((axes @ axes.T).min(), -1, 1))))
    if spread_deg < 20:
        return
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    middle = np.linalg.lstsq(across.sum(0), np.einsum("nij,nj->i", across, centers), rcond=None)[0]
    along_mm = float(np.median(np.einsum("nj,nj->n", middle - centers, axes)))
    ratio = along_mm / median_mm
    if 0.1 < ratio < 10:
        return
    if ratio <= 0:
        why = "the cameras look away from each other's sight"
        remedy = "write camera to world with OpenGL axes: x right, y up, looking along -z"
        raise ScanRejected(one_line("transform_matrix has other camera axes", where, why, remedy))
    why = (
        f"the cameras are {along_mm / 1000:.3g} m away from what they look at, their depth is {median_mm / 1000:.3g} m"
    )
    raise ScanRejected(one_line("poses and depth differ in unit", where, why, "write translations in metres"))


def _check_extent(points: NDArray[np.float32], unit: str, where: str, config: IngestConfig) -> None:
    low, high = config.extent_range_mm
    extent = float(np.ptp(np.percentile(points.astype(np.float64), [1, 99], axis=0), axis=0).max())
    if low <= extent * MM_PER_UNIT[unit] <= high:
        return
    fits = [name for name, mm in MM_PER_UNIT.items() if low <= extent * mm <= high]
    why = f"{extent:.4g} {unit} across, expected {low:g} to {high:g} mm"
    remedy = f"unit {' or '.join(fits)} would fit in session.json" if fits else "check the export's unit"
    raise ScanRejected(one_line(f"unit {unit} does not fit a head", where, why, remedy))
