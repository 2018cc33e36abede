"""Read the raw files of one scan into a capture in mm, and hold them against what a head rig can have seen."""

from __future__ import annotations

import math
import posixpath
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from pipeline.rawfiles import MAX_FILE_BYTES, RawFiles
from pipeline.session import MM_PER_UNIT
from pipeline.transforms import GL_FROM_CV, MAX_FRAMES, read_transforms
from registration.mesh import Mesh, mesh_from_ply
from registration.views import Capture, DepthView, Layout
from storage.digest import digest_bytes
from storage.errors import ScanRejected, one_line
from storage.frozen import Frozen
from storage.images import MAX_IMAGE_BYTES, read_color_image, read_depth_png
from storage.jsonfile import MAX_JSON_BYTES, read_json
from storage.obj import read_obj

_TRANSFORMS = "transforms.json"
MAX_COORDINATE_MM = 100_000.0
"""Further from the world's origin single precision would move points by hundredths of a millimetre."""
_PLAIN_FACTORS = (1000.0, 0.001, 10.0, 0.1, 100.0, 0.01, 1e6, 1e-6)


class IngestConfig(Frozen):
    """What a scan must bring before any geometry is computed from it."""

    min_views: int = Field(default=3, ge=2, description="fewest depth frames or view clouds with content")
    min_points: int = Field(default=50, ge=1, description="fewest points of a view that counts as one")
    max_empty_share: float = Field(default=0.49, ge=0, lt=1, description="share of the views that may be empty")
    max_unused_share: float = Field(
        default=0.1, ge=0, le=1, description="share of a fused mesh's vertices that may belong to no face"
    )
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
    _check_layout(files, layout)
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
    images: list[NDArray[np.uint16]] = []
    colors: list[NDArray[np.uint8] | None] = []
    for frame in frames:
        size = (frame.intrinsics.width, frame.intrinsics.height)
        path = _normal(frame.depth_path)
        images.append(read_depth_png(files.read(path, MAX_IMAGE_BYTES), files.where(path), size))
        color = None
        if frame.color_path is not None and _has(files, _normal(frame.color_path)):
            path = _normal(frame.color_path)
            color = read_color_image(files.read(path, MAX_IMAGE_BYTES), files.where(path), size)
        colors.append(color)
    seen = [k for k, image in enumerate(images) if np.count_nonzero(image) >= config.min_points]
    empty = [_normal(frame.depth_path) for k, frame in enumerate(frames) if k not in seen]
    _check_empty(len(seen), len(images), "depth image", files.where(empty[0]) if empty else "", config)
    poses = [frames[k].T_world_from_camera for k in seen]
    _check_distinct(poses, where)
    _check_content([images[k] for k in seen], "depth image", files.where("depth"), config)
    median_mm = float(np.median([np.median(images[k][images[k] > 0]) for k in seen])) * step_mm
    _check_depth_unit(median_mm, step_mm, where, config)
    _check_poses(poses, median_mm, where)
    full = []
    for k in seen:
        depth_mm = images[k].astype(np.float32) * np.float32(step_mm)
        frame = frames[k]
        full.append(DepthView(frame.name, depth_mm, colors[k], frame.intrinsics, frame.T_world_from_camera))
    figures = {
        "views": len(full),
        "views_empty": len(empty),
        "empty_views": empty,
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
    if len(paths) > MAX_FRAMES:
        why = f"{len(paths)} clouds, at most {MAX_FRAMES} are read"
        raise ScanRejected(one_line("too many views", files.where("views"), why, "export one cloud a view"))
    told = [_mesh(files, path) for path in paths]
    clouds = [_finite(cloud) for cloud in told]
    full = [cloud for cloud in clouds if len(cloud.vertices) >= config.min_points]
    empty = [path for path, cloud in zip(paths, clouds, strict=True) if len(cloud.vertices) < config.min_points]
    _check_empty(len(full), len(clouds), "cloud", files.where(empty[0]) if empty else "", config)
    _check_content([cloud.vertices for cloud in full], "cloud", files.where("views"), config)
    together = np.concatenate([cloud.vertices[:: max(1, len(cloud.vertices) // 2000)] for cloud in full])
    _check_extent(together, unit, files.where("views"), config)
    for path, cloud in zip(paths, clouds, strict=True):
        _check_place(cloud.vertices, unit, files.where(path))
    scale = MM_PER_UNIT[unit]
    figures = {
        "views": len(full),
        "views_empty": len(empty),
        "empty_views": empty,
        "views_with_color": sum(cloud.colors is not None for cloud in full),
        "points": sum(len(cloud.vertices) for cloud in full),
        "points_not_finite": sum(len(cloud.vertices) for cloud in told) - sum(len(cloud.vertices) for cloud in clouds),
    }
    in_mm = tuple(_bare(cloud, scale) for cloud in full)
    names = tuple(posixpath.basename(path).rpartition(".")[0] for path in paths if path not in empty)
    return ReadScan(Capture(key, "view_clouds", clouds=in_mm, cloud_names=names), figures)


def _read_fused_mesh(files: RawFiles, key: str, unit: str, config: IngestConfig) -> ReadScan:
    path = next((name for name in ("scan.ply", "scan.obj") if _has(files, name)), None)
    if path is None:
        remedy = "export the mesh as scan.ply or scan.obj"
        raise ScanRejected(one_line("holds no mesh", files.name, "neither scan.ply nor scan.obj", remedy))
    where = files.where(path)
    read = _mesh(files, path)
    mesh = _finite(read)
    if len(mesh.vertices) < config.min_points:
        why = f"{len(mesh.vertices)} vertices, at least {config.min_points} are needed"
        raise ScanRejected(one_line("mesh is empty", where, why, "export the scan again"))
    if not len(mesh.faces):
        raise ScanRejected(one_line("mesh has no faces", where, "", "fuse the scan, or hand it over as view_clouds"))
    used = np.zeros(len(mesh.vertices), bool)
    used[mesh.faces] = True
    if (~used).mean() > config.max_unused_share:
        why = f"{(~used).mean():.0%} of its vertices belong to no face, at most {config.max_unused_share:.0%} may"
        raise ScanRejected(one_line("mesh lacks faces", where, why, "copy or export the scan again"))
    _check_extent(mesh.vertices, unit, where, config)
    _check_place(mesh.vertices, unit, where)
    figures = {
        "vertices": len(mesh.vertices),
        "vertices_not_finite": len(read.vertices) - len(mesh.vertices),
        "faces": len(mesh.faces),
        "with_color": mesh.colors is not None,
    }
    return ReadScan(Capture(key, "fused_mesh", mesh=_bare(mesh, MM_PER_UNIT[unit])), figures)


def _mesh(files: RawFiles, path: str) -> Mesh:
    data, where = files.read(path, MAX_FILE_BYTES), files.where(path)
    with np.errstate(over="ignore", invalid="ignore"):  # what single precision can't hold is left out as not finite
        if path.lower().endswith(".ply"):
            return mesh_from_ply(data, where)
        found = read_obj(data, where)
        colors = None if found.colors is None else np.clip(np.round(found.colors * 255), 0, 255)
        return Mesh.of(found.vertices, found.triangles, colors)


def _normal(path: str) -> str:
    """Without './' parts; '..' is kept, for the files' own check to refuse."""
    return path if ".." in path.split("/") else posixpath.normpath(path)


def _has(files: RawFiles, path: str) -> bool:
    folder, _, name = path.rpartition("/")
    return path in files.listed(folder, name.lower())


def _check_layout(files: RawFiles, layout: Layout) -> None:
    """A scan of another layout than told is better called so than missing a file."""
    marks = {"depth_frames": _TRANSFORMS, "view_clouds": "views", "fused_mesh": "scan.ply or scan.obj"}
    there: dict[str, bool] = {
        "depth_frames": _has(files, _TRANSFORMS),
        "view_clouds": bool(files.listed("views", ".ply")),
        "fused_mesh": _has(files, "scan.ply") or _has(files, "scan.obj"),
    }
    others = [name for name, found in there.items() if found]
    if not there[layout] and others:
        why = f"session.json tells {layout}, found is {marks[others[0]]} as in {others[0]}"
        remedy = f"put scans of layout {others[0]} into a session of their own"
        raise ScanRejected(one_line("scan has another layout than its session", files.name, why, remedy))


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


def _check_content(views: Sequence[NDArray], kind: str, where: str, config: IngestConfig) -> None:
    """Views that were exported from one and the same shot are no views of their own."""
    different = len({digest_bytes(np.ascontiguousarray(view).tobytes()) for view in views})
    if different < config.min_views:
        what = "all views are the same" if different == 1 else "too few different views"
        why = f"{len(views)} {kind}s of {different} different content{'' if different == 1 else 's'}"
        raise ScanRejected(one_line(what, where, why, f"export each view's own {kind}"))


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
    told = np.stack(poses).astype(np.float64)
    axes = told[:, :3, 2]
    spread_deg = math.degrees(math.acos(float(np.clip((axes @ axes.T).min(), -1, 1))))
    along_mm, miss_mm = _meeting(told)
    if spread_deg < 20 or (0.1 < along_mm / median_mm < 10 and miss_mm < 0.3 * median_mm):
        return
    opengl = told @ GL_FROM_CV
    turned = opengl.copy()
    turned[:, :3, :3] = turned[:, :3, :3].transpose(0, 2, 1)
    world_to_camera = ("is world to camera", "the inverse matrices fit the depth", "write camera to world")
    readings = (
        (
            opengl,
            "has other camera axes",
            "the cameras look away from each other's sight",
            "write camera to world with OpenGL axes: x right, y up, looking along -z",
        ),
        (np.asarray(np.linalg.inv(opengl) @ GL_FROM_CV), *world_to_camera),
        (np.asarray(np.linalg.inv(opengl)), *world_to_camera),
        (turned @ GL_FROM_CV, "is transposed", "the transposed rotations fit the depth", "write it row by row"),
    )
    meetings = [_meeting(reading) for reading, *_ in readings]
    fits = [k for k, (ahead_mm, _) in enumerate(meetings) if 0.1 < ahead_mm / median_mm < 10]
    best = min(fits, key=lambda k: meetings[k][1], default=None)
    if best is not None and meetings[best][1] < max(0.2 * miss_mm, 0.05 * median_mm):
        _, what, why, remedy = readings[best]
        raise ScanRejected(one_line(f"transform_matrix {what}", where, why, remedy))
    if 0.1 < along_mm / median_mm < 10:
        return
    why = (
        f"the cameras are {along_mm / 1000:.3g} m away from what they look at, their depth is {median_mm / 1000:.3g} m"
    )
    raise ScanRejected(one_line("poses and depth differ in unit", where, why, "write translations in metres"))


def _meeting(poses: NDArray[np.float64]) -> tuple[float, float]:
    """How far ahead of cameras (n, 4, 4) the place lies that they look at, and by how much they miss it, mm."""
    centers, axes = poses[:, :3, 3], poses[:, :3, 2]
    across = np.eye(3) - axes[:, :, None] * axes[:, None, :]
    middle = np.linalg.lstsq(across.sum(0), np.einsum("nij,nj->i", across, centers), rcond=None)[0]
    along_mm = float(np.median(np.einsum("nj,nj->n", middle - centers, axes)))
    return along_mm, float(np.median(np.linalg.norm(np.einsum("nij,nj->ni", across, middle - centers), axis=1)))


def _check_place(points: NDArray[np.float32], unit: str, where: str) -> None:
    far = float(np.abs(points).max()) * MM_PER_UNIT[unit] if len(points) else 0.0
    if far > MAX_COORDINATE_MM:
        why = f"a coordinate is {far / 1000:.4g} m, at most {MAX_COORDINATE_MM / 1000:g} m off the origin are read"
        raise ScanRejected(one_line("points are too far away", where, why, "copy or export the scan again"))


def _check_extent(points: NDArray[np.float32], unit: str, where: str, config: IngestConfig) -> None:
    low, high = config.extent_range_mm
    extent = float(np.ptp(np.percentile(points.astype(np.float64), [1, 99], axis=0), axis=0).max())
    if low <= extent * MM_PER_UNIT[unit] <= high:
        return
    fits = [name for name, mm in MM_PER_UNIT.items() if low <= extent * mm <= high]
    why = f"{extent:.4g} {unit} across, expected {low:g} to {high:g} mm"
    remedy = f"unit {' or '.join(fits)} would fit in session.json" if fits else "check the export's unit"
    raise ScanRejected(one_line(f"unit {unit} does not fit a head", where, why, remedy))
