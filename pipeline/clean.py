"""Clean a capture: refine the told poses, drop what floats, find the head, fuse, fill small holes, close, judge."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import cKDTree

from pipeline.clean_config import CleanConfig
from pipeline.ingest import load_capture, load_landmarks
from pipeline.scan_landmarks import landmark_detector, together
from pipeline.workspace import Workspace
from registration.alignment import align_head
from registration.clean_pictures import clean_sheet, confidence_map
from registration.coverage import coverage
from registration.depth import FittedViews, fit_views, thinned
from registration.fusion import Grid, extract_surface, fuse, grid_for_box
from registration.head_crop import (
    SEARCH_RADIUS_MM,
    accepted_head,
    ball_region,
    find_head,
    head_region,
    in_box,
    looked_at,
    oriented_points,
)
from registration.landmark_views import LandmarkDetector, landmarks_from_views
from registration.landmarks import Landmarks, landmarks_to_json
from registration.mesh import (
    Mesh,
    face_areas,
    face_normals,
    mesh_to_ply,
    sample_surface,
    transform_points,
    vertex_normals,
)
from registration.observation import settled
from registration.pictures import Picture, to_png
from registration.pieces import small_patches, split_pieces, vertex_pieces
from registration.pose_refinement import RefinedPoses, refine_poses
from registration.repair import repair
from registration.template import Template
from registration.views import Capture, DepthView
from registration.virtual_views import views_from_clouds, views_of_mesh
from registration.watertight import complete, forget_pieces
from storage.errors import ScanRejected, one_line
from storage.manifest import Manifest

MESH_POINTS = 60_000
"""Points drawn on a fused mesh to find the head."""
MESH_VOXEL_MM = 1.5
"""Voxel of a fused mesh's watertight companion."""
LEAST_REACH_VOXELS = 1.75
"""Least reach of the signed distance, beside twice the depth's noise: no corner of a cell is farther than its diagonal
from a surface that goes through it."""
QUIET_SHARE, NOISY_VOXEL_PIXELS = 0.08, 1.25
"""Depth that is noisier than this share of its pixels' width shows little finer than voxels so many pixels wide, which
take three quarters of the time."""
SAME_SURFACE_VOXELS = 1.5
"""How far from the fused surface a view's own may lie and still be the same, beside the depth's noise."""
MERGE_MM = 1e-3
"""Vertices of a fused mesh closer than this are one."""


@dataclass(frozen=True)
class CleanScan:
    """A cleaned scan.

    Attributes:
        mesh: world frame, mm; colours where there were some; attributes ``views`` uint8, ``spread_mm`` float32 and
            ``observed`` uint8 (0 where a small hole was filled).
        watertight: closed surface of the same head; attribute ``guessed`` uint8.
        T_world_from_head: (4, 4) where the search found the head; good to some millimetres.
        figures: quality figures, units in their names.
        left_out: names of the views that have no depth or disagree with all others, each with what was found.
        picture: before and after.
        confidence: from all sides, how many views saw each point and how far they disagree.
        landmarks: found in colour frames, world frame, mm; None where none were looked for or found.
    """

    mesh: Mesh
    watertight: Mesh
    T_world_from_head: NDArray[np.float64]
    figures: dict[str, float | int]
    left_out: tuple[str, ...]
    picture: Picture
    confidence: Picture
    landmarks: Landmarks | None = None


def clean_scan(
    capture: Capture,
    template: Template,
    config: CleanConfig,
    seed: int = 0,
    threads: int = 1,
    detector: LandmarkDetector | None = None,
) -> CleanScan:
    """Clean one capture of any layout.

    Args:
        capture: as read, mm.
        template: the head to look for.
        config: of the step.
        seed: of the search for the head.
        threads: at a time; the result does not depend on it.
        detector: of landmarks in colour frames.

    Raises:
        ScanRejected: too few views agree, or there is no head.
    """
    if capture.mesh is not None:
        return _clean_mesh(capture.key, capture.mesh, template, config, seed, threads)
    views = views_from_clouds(capture.clouds, capture.cloud_names) if capture.clouds else capture.depth_views
    empty = tuple(f"{view.name}: no depth" for view in views if not (view.depth_mm > 0).any())
    views = tuple(view for view in views if (view.depth_mm > 0).any())
    if len(views) < 3:
        raise ScanRejected(one_line("too few views with depth", capture.key, f"{len(views)} of 3", "capture it again"))
    centre = looked_at(views)
    coarse, coarse_poses = _first_look(views, centre, config, threads)
    used = [v for v in range(len(views)) if v not in coarse_poses.left_out]
    _check_agreement(capture.key, len(used), len(views))
    points, normals = oriented_points(coarse.with_poses(coarse_poses.T_world_from_camera), used)
    head = find_head(points, normals, template, capture.key, seed)
    T = head.T_world_from_head
    low, high = np.array(config.box_low_mm), np.array(config.box_high_mm)

    kept = [views[v] for v in used]
    start = coarse_poses.T_world_from_camera[used]
    placed = [replace(view, T_world_from_camera=pose) for view, pose in zip(kept, start, strict=True)]
    fitted = fit_views(kept, [head_region(view, T, low, high) for view in placed], threads)
    poses = refine_poses(
        fitted,
        T[:3, 3],
        position_sigma_mm=config.position_sigma_mm,
        angle_sigma_deg=config.angle_sigma_deg,
        agreement_min=config.agreement_min,
        start=start,
        gate_mm=6.0,
        threads=threads,
    )
    agreed = [v for v in range(len(kept)) if v not in poses.left_out]
    _check_agreement(capture.key, len(agreed), len(views))
    final = fitted.with_poses(poses.T_world_from_camera).select(agreed)
    voxel = _voxel_mm(final, config)
    grid = grid_for_box(T, low, high, voxel)
    shape = _surface(final, grid, config, threads)
    left_out = empty + _left_out_names(views, used, coarse_poses, poses)
    figures = {
        "views": len(views),
        "views_used": len(agreed),
        "head_score": head.score,
        "noise_mm": float(np.median(final.noise_mm)),
        "pose_shift_median_mm": float(np.median(poses.shift_mm[agreed])),
        "pose_shift_max_mm": float(poses.shift_mm[agreed].max()),
        "pose_turn_median_deg": float(np.median(poses.turn_deg[agreed])),
        "pose_residual_mm": float(np.median(poses.residual_mm[agreed])),
        "agreement": float(np.median(poses.agreement[agreed])),
        "voxel_mm": voxel,
        **shape.figures,
    }
    mesh = shape.mesh.transformed(shape.grid.T_world_from_grid)
    told, facing = oriented_points(coarse, used)
    return CleanScan(
        mesh,
        shape.closed.transformed(shape.grid.T_world_from_grid),
        T,
        figures | coverage(mesh, T, template),
        left_out,
        clean_sheet(told, facing, None, mesh, T, left_out),
        confidence_map(mesh, T),
        None if detector is None else landmarks_from_views(_in_place(kept, poses, agreed), detector),
    )


def _in_place(views: Sequence[DepthView], poses: RefinedPoses, agreed: Sequence[int]) -> list[DepthView]:
    """The views that agree, with their refined poses."""
    return [replace(views[v], T_world_from_camera=poses.T_world_from_camera[v]) for v in agreed]


def _clean_mesh(key: str, told: Mesh, template: Template, config: CleanConfig, seed: int, threads: int) -> CleanScan:
    """Clean a mesh that was fused elsewhere: its own surface is kept as it is, cut, repaired and closed."""
    sound = repair(told, merge_mm=MERGE_MM)
    if len(sound.faces) < 1000:
        raise ScanRejected(one_line("too few faces", key, f"{len(sound.faces)}", "export the scan again"))
    points, face, _ = sample_surface(sound, MESH_POINTS, np.random.default_rng(seed))
    normals = face_normals(sound.vertices, sound.faces)[face]
    head = align_head(points, normals, template, seed)
    if not head.accepted:
        # Some exports wind their triangles the other way round.
        turned = align_head(points, -normals, template, seed)
        if turned.accepted:
            head, sound = turned, Mesh(sound.vertices, sound.faces[:, ::-1], sound.colors, sound.attributes)
    head = accepted_head(head, key)
    T = head.T_world_from_head
    low, high = np.array(config.box_low_mm), np.array(config.box_high_mm)
    cut = sound.select_vertices(in_box(sound.vertices, T, low, high))
    pieces = split_pieces(cut, config.piece_area_mm2, config.piece_gap_mm)
    kept = cut.select_vertices(pieces.kept)
    kept = kept.select_faces(np.ones(len(kept.faces), bool))  # drops vertices that no face has
    voxel = config.voxel_mm or MESH_VOXEL_MM
    views = views_of_mesh(kept, transform_points(T, np.array([[0.0, 20.0, 0.0]]))[0], pixel_mm=1.2 * voxel)
    truncation = config.truncation_voxels * voxel
    values, grid = fuse(views, grid_for_box(T, low, high, voxel), truncation, config.least_weight, threads)
    surface = extract_surface(values, grid)
    closed = repair(complete(values, surface, grid, views, truncation)).transformed(grid.T_world_from_grid)
    count = len(kept.vertices)
    columns: dict[str, NDArray] = {  # who saw what of a fused mesh is not known: all of it counts as seen once
        "views": np.ones(count, np.uint8),
        "spread_mm": np.zeros(count, np.float32),
        "observed": np.ones(count, np.uint8),
    }
    mesh = Mesh(kept.vertices, kept.faces, kept.colors, columns)
    figures: dict[str, float | int] = {
        "views": 0,
        "views_used": 0,
        "head_score": head.score,
        "faces": len(mesh.faces),
        "area_mm2": float(face_areas(mesh.vertices, mesh.faces).sum()),
        "floating_pieces": pieces.dropped,
        "floating_share": pieces.dropped_share,
        "loose_pieces": pieces.loose_kept,
        "repaired_faces": len(told.faces) - len(sound.faces),
        "guessed_share": float((closed.attributes["guessed"] > 0).mean()),
        "voxel_mm": voxel,
    }
    picture = clean_sheet(told.vertices, vertex_normals(told.vertices, told.faces), told.colors, mesh, T)
    confidence = confidence_map(mesh, T)
    return CleanScan(mesh, closed, T, figures | coverage(mesh, T, template), (), picture, confidence)


@dataclass(frozen=True)
class _Shape:
    """A surface in its grid's frame, mm, and what was counted on the way."""

    mesh: Mesh
    closed: Mesh
    grid: Grid
    figures: dict[str, float | int]


def _first_look(
    views: Sequence[DepthView], centre: NDArray, config: CleanConfig, threads: int
) -> tuple[FittedViews, RefinedPoses]:
    """Poses from coarse pixels of everything around the point that the cameras look at."""
    thin = []
    for view in views:
        depth = view.depth_mm[view.depth_mm > 0]
        stride = max(1, round(config.coarse_pixel_mm * view.intrinsics.fx / float(np.median(depth))))
        thin.append(thinned(view, stride))
    fitted = fit_views(thin, [ball_region(view, centre, SEARCH_RADIUS_MM) for view in thin], threads)
    poses = refine_poses(
        fitted,
        centre,
        position_sigma_mm=config.position_sigma_mm,
        angle_sigma_deg=config.angle_sigma_deg,
        agreement_min=config.agreement_min,
        threads=threads,
    )
    return fitted, poses


def _check_agreement(key: str, used: int, total: int) -> None:
    if used < 3:
        why = f"{used} of {total}"
        remedy = "check the rig's calibration, and the unit of depth and poses"
        raise ScanRejected(one_line("too few views agree with each other", key, why, remedy))


def _left_out_names(
    views: Sequence[DepthView], used: Sequence[int], first: RefinedPoses, second: RefinedPoses
) -> tuple[str, ...]:
    """One line a view that was left out, in the order of the views."""
    found = dict.fromkeys(first.left_out, first) | {used[v]: second for v in second.left_out}
    remedy = "calibrate this camera again, or check its depth"
    lines = []
    for v in sorted(found):
        why = "left out, in its told place" if found[v] is first else "left out, once the others were refined"
        lines.append(one_line("disagrees with all other views", views[v].name, why, remedy))
    return tuple(lines)


def _voxel_mm(views: FittedViews, config: CleanConfig) -> float:
    if config.voxel_mm > 0:
        return config.voxel_mm
    pixels = []
    for v in range(len(views.names)):
        depth = views.depth_mm[views.pixels(v)]
        if (depth > 0).any():
            pixels.append(float(np.median(depth[depth > 0])) / views.cameras[v, 0])
    low, high = config.voxel_range_mm
    pixel, noise = float(np.median(pixels)), float(np.median(views.noise_mm))
    share = 1.0 if noise < QUIET_SHARE * pixel else NOISY_VOXEL_PIXELS
    return float(np.clip(round(pixel * share, 1), low, high))


def _surface(views: FittedViews, grid: Grid, config: CleanConfig, threads: int) -> _Shape:
    """Fuse, drop what floats, close, and take from the closed surface what was seen and the small holes."""
    noise = float(np.median(views.noise_mm))
    # A longer reach averages no more noise away, and closes narrow gaps.
    truncation = min(config.truncation_voxels * grid.voxel_mm, LEAST_REACH_VOXELS * grid.voxel_mm + 2.0 * noise)
    values, grid = fuse(views, grid, truncation, config.least_weight, threads)
    rough = extract_surface(values, grid)
    if len(rough.faces) < 1000:
        raise ScanRejected(one_line("no surface", "fusion", f"{len(rough.faces)} faces", "check depth and poses"))
    pieces = split_pieces(rough, config.piece_area_mm2, config.piece_gap_mm)
    if pieces.dropped:
        forget_pieces(values, rough, pieces.kept, grid)
    closed = repair(complete(values, rough.select_vertices(pieces.kept), grid, views, truncation))
    reach = min(truncation, SAME_SURFACE_VOXELS * grid.voxel_mm + noise)
    closed = settled(closed, views, grid, reach, threads)
    mesh, filled = open_part(closed, config.hole_mm)
    guessed = mesh.attributes["guessed"] > 0
    area = face_areas(mesh.vertices, mesh.faces)
    columns: dict[str, NDArray] = {  # who saw what of a fused mesh is not known: all of it counts as seen once
        "views": mesh.attributes["views"],
        "spread_mm": mesh.attributes["spread_mm"],
        "observed": (~guessed).astype(np.uint8),
    }
    colors = None if mesh.colors is None else _carried(mesh, mesh.colors, ~guessed)
    spread = columns["spread_mm"][columns["views"] >= 2]
    figures: dict[str, float | int] = {
        "faces": len(mesh.faces),
        "area_mm2": float(area.sum()),
        "spread_median_mm": float(np.median(spread)) if len(spread) else 0.0,
        "spread_p95_mm": float(np.percentile(spread, 95)) if len(spread) else 0.0,
        "views_median": float(np.median(columns["views"][~guessed])),
        "floating_pieces": pieces.dropped,
        "floating_share": pieces.dropped_share,
        "loose_pieces": pieces.loose_kept,
        "holes_filled": filled,
        "filled_share": float(area[guessed[mesh.faces].any(1)].sum() / area.sum()),
        "guessed_share": float((closed.attributes["guessed"] > 0).mean()),
    }
    watertight = Mesh.of(closed.vertices, closed.faces, guessed=closed.attributes["guessed"])
    return _Shape(Mesh(mesh.vertices, mesh.faces, colors, columns), watertight, grid, figures)


def open_part(closed: Mesh, hole_mm: float) -> tuple[Mesh, int]:
    """The seen part of a closed mesh and its small holes; how many of those there are."""
    guessed = closed.attributes["guessed"] > 0
    small = small_patches(closed, guessed, hole_mm)
    label = vertex_pieces(closed, guessed)
    return closed.select_vertices(~guessed | small), len(np.unique(label[small]))


def _carried(mesh: Mesh, colors: NDArray[np.uint8], known: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Colours, those of unseen vertices taken from the nearest seen one."""
    if known.all() or not known.any():
        return colors
    out = colors.copy()
    _, nearest = cKDTree(mesh.vertices[known]).query(mesh.vertices[~known])
    out[~known] = colors[known][nearest]
    return out


def run_clean(workspace: Workspace, key: str) -> Manifest:
    """Clean one scan of a workspace and publish it.

    Raises:
        ScanRejected: it can't be cleaned.
        StorageConflict: a raw file is gone or was changed since.
    """
    inputs = workspace.inputs("clean", key)
    config: CleanConfig = workspace.config.of_step("clean")  # type: ignore[assignment]
    capture = load_capture(workspace, key)
    detector = landmark_detector(workspace, config)
    scan = clean_scan(capture, workspace.template(), config, workspace.seed("clean", key), detector=detector)
    landmarks = together(load_landmarks(workspace, key), scan.landmarks)
    return workspace.commit(
        "clean",
        key,
        inputs=inputs,
        outputs={
            "mesh.ply": mesh_to_ply(scan.mesh),
            "watertight.ply": mesh_to_ply(scan.watertight),
            "sheet.png": to_png(scan.picture),
            "confidence.png": to_png(scan.confidence),
        }
        | ({} if landmarks is None else {"landmarks.json": landmarks_to_json(landmarks)}),
        figures=scan.figures | ({} if landmarks is None else {"landmarks": len(landmarks.known)}),
        extra={"T_world_from_head": scan.T_world_from_head, "left_out": list(scan.left_out)},
    )
