"""Wavefront OBJ files: bounded before they are parsed, positions and polygons alone."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.errors import ScanRejected, one_line

MAX_BYTES = 2 * 1024**3
MAX_ELEMENTS = 50_000_000


@dataclass(frozen=True)
class ObjGeometry:
    """What an OBJ file says of its shape.

    Attributes:
        vertices: (n, 3) float64 in the file's unit.
        colors: (n, 3) float64 from 0 to 1 where every vertex line carries them, else None.
        triangles: (m, 3) int32; larger polygons are fanned from their first corner.
    """

    vertices: NDArray[np.float64]
    colors: NDArray[np.float64] | None
    triangles: NDArray[np.int32]


def read_obj(data: bytes, where: str) -> ObjGeometry:
    """Parse an OBJ file that came from anywhere. Texture coordinates, normals, groups and materials are passed over.

    Args:
        data: the whole file.
        where: name of the file, for messages.

    Raises:
        ScanRejected: the file is no OBJ, is damaged, or refers to vertices that it lacks.
    """
    if len(data) > MAX_BYTES:
        why = f"{len(data)} bytes, at most {MAX_BYTES} are read"
        raise ScanRejected(one_line("OBJ file is too large", where, why, "export it again with fewer vertices"))
    if b"\0" in data[:4096]:
        raise ScanRejected(one_line("is no OBJ file", where, "it holds binary data", "export it again as OBJ"))
    rows: list[bytes] = []
    polygons: list[list[bytes]] = []
    counts_at: list[int] = []  # vertices read before each polygon, for indices that count backwards
    for line in data.splitlines():
        if line.startswith((b"v ", b"v\t")):
            rows.append(line[2:])
        elif line.startswith((b"f ", b"f\t")):
            polygons.append(line.split()[1:])
            counts_at.append(len(rows))
    if not rows:
        raise ScanRejected(one_line("OBJ file holds no vertices", where, "no 'v' line found", "export it again as OBJ"))
    if max(len(rows), len(polygons)) > MAX_ELEMENTS:
        why = f"{max(len(rows), len(polygons))} elements, at most {MAX_ELEMENTS} are read"
        raise ScanRejected(one_line("OBJ file is too large", where, why, "export it again with fewer vertices"))
    try:
        table = _number_table(rows)
        triangles = _triangles(polygons, counts_at)
    except ValueError as error:
        raise ScanRejected(one_line("OBJ file is damaged", where, str(error), "export it again")) from error
    if len(triangles) and (triangles.min() < 0 or triangles.max() >= len(table)):
        why = f"a face names vertex {int(triangles.max()) + 1} of {len(table)}"
        raise ScanRejected(one_line("OBJ faces are damaged", where, why, "export it again"))
    colors = table[:, 3:6] if table.shape[1] >= 6 else None
    return ObjGeometry(table[:, :3], colors, triangles)


def _number_table(rows: list[bytes]) -> NDArray[np.float64]:
    width = len(rows[0].split())
    if width < 3:
        raise ValueError(f"the first vertex has {width} coordinates")
    values = np.array(b" ".join(rows).split(), np.float64)
    if values.size != width * len(rows):
        raise ValueError(f"vertex lines differ in length from the first one's {width} numbers")
    return values.reshape(len(rows), width)


def _triangles(polygons: list[list[bytes]], counts_at: list[int]) -> NDArray[np.int32]:
    fans: list[tuple[int, int, int]] = []
    for polygon, count in zip(polygons, counts_at, strict=True):
        corners = [int(corner.split(b"/", 1)[0]) for corner in polygon]
        corners = [c - 1 if c > 0 else count + c for c in corners]
        fans.extend((corners[0], corners[k], corners[k + 1]) for k in range(1, len(corners) - 1))
    return np.array(fans, np.int64).reshape(-1, 3).clip(-1, 2**31 - 1).astype(np.int32)
