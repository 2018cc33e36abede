"""Pictures of the evaluation: what was seen, what was fitted, and how far it is off."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pipeline.evaluation import HeadScan, MethodResult, ScanResult
from registration.mesh import Mesh
from registration.pictures import Picture, heat_colors, render, sheet
from registration.rendered_points import above_plane
from registration.surface import SurfaceIndex

HEAT_LIMIT_MM = 5.0
_VIEWS = ((0.0, 0.0), (45.0, 5.0))
_POINT_MM = 1.2
_WIDTH_MM = 300.0
_MARGIN = 1.06


def scan_sheet(result: ScanResult, size: int = 288) -> Picture:
    """Input points, clean scan, and each method's head with its error from 0 (blue) to 5 mm (red), from two sides."""
    scan = _cut(result.scan.clean, result.scan.throat_plane)
    columns: list[tuple[str, Mesh, NDArray[np.uint8] | None]] = [
        (f"{len(result.cloud.points_mm)} points", cloud_as_mesh(result.cloud.points_mm), None),
        (f"scan {result.scan.key}", scan, None),
    ]
    for name, method in result.methods.items():
        columns += _method_columns(name, method, result.scan)
    return _sheet(columns, result.scan, size)


def training_sheet(name: str, method: MethodResult, scan: HeadScan, size: int = 288) -> Picture:
    """A clean training scan beside the head re-meshed from its code, and its error."""
    columns: list[tuple[str, Mesh, NDArray[np.uint8] | None]] = [
        (f"scan {scan.key}", _cut(scan.clean, scan.throat_plane), None)
    ]
    return _sheet(columns + _method_columns(name, method, scan), scan, size)


def _method_columns(
    name: str, method: MethodResult, scan: HeadScan
) -> list[tuple[str, Mesh, NDArray[np.uint8] | None]]:
    if method.fitted is None:
        nothing = Mesh.of(np.zeros((0, 3)), np.zeros((0, 3)))
        return [(f"{name}: {method.failure}", nothing, None), ("no error to show", nothing, None)]
    mesh = _cut(method.fitted.mesh, scan.throat_plane)
    face = method.errors.get("face")
    title = f"{name}: face {face.point_to_triangle_mm:.2f} mm" if face else f"{name}: no face"
    if len(mesh.faces) == 0:
        return [(title, mesh, None), ("no error to show", mesh, None)]
    distance = SurfaceIndex(scan.clean).closest(mesh.vertices).distance_mm
    return [(title, mesh, None), (f"error, 0 to {HEAT_LIMIT_MM:g} mm", mesh, heat_colors(distance, HEAT_LIMIT_MM))]


def _sheet(columns: list[tuple[str, Mesh, NDArray[np.uint8] | None]], scan: HeadScan, size: int) -> Picture:
    shown = _cut(scan.clean, scan.throat_plane)
    height = (shown if len(shown.vertices) else scan.clean).vertices[:, 1].astype(np.float64)
    centre = [0.0, float(0.5 * (height.min() + height.max())), 0.0]
    extent = max(_WIDTH_MM, _MARGIN * float(np.ptp(height)))  # high hair must be seen whole
    rows = [
        [render(mesh, azimuth, elevation, size, centre, extent, colors) for _, mesh, colors in columns]
        for azimuth, elevation in _VIEWS
    ]
    return sheet(rows, [[title for title, _, _ in columns], ["" for _ in columns]])


def _cut(mesh: Mesh, plane: NDArray[np.float64]) -> Mesh:
    bare = Mesh(mesh.vertices, mesh.faces)  # colours of a scan would hide its shape beside a fitted one
    return bare.select_vertices(above_plane(bare.vertices, plane))


def cloud_as_mesh(points_mm: NDArray[np.floating], radius_mm: float = _POINT_MM) -> Mesh:
    """A small octahedron at each of (n, 3) points, so that a cloud can be rendered as a mesh is."""
    corners = radius_mm * np.concatenate([np.eye(3), -np.eye(3)])
    faces = np.array([[0, 1, 2], [1, 3, 2], [3, 4, 2], [4, 0, 2], [1, 0, 5], [3, 1, 5], [4, 3, 5], [0, 4, 5]])
    vertices = (np.asarray(points_mm)[:, None] + corners).reshape(-1, 3)
    return Mesh.of(vertices, (faces + 6 * np.arange(len(points_mm))[:, None, None]).reshape(-1, 3))
