"""PLY files: bounded before they are parsed, written with the same bytes for the same arrays."""

from __future__ import annotations

import io
import re
import tempfile
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray
from plyfile import PlyData, PlyElement, PlyParseError

from storage.errors import ScanRejected, one_line

MAX_HEADER_BYTES = 64 * 1024
MAX_ELEMENTS = 50_000_000
MAX_LISTS = 5_000_000
"""Lists that are read one by one, each costing a hundred bytes or more however short it is in the file."""
_ELEMENT = re.compile(rb"^element\s+(\S+)\s+(-?\d+)\s*$")
_TYPE_BYTES = {
    b"char": 1, b"uchar": 1, b"int8": 1, b"uint8": 1,
    b"short": 2, b"ushort": 2, b"int16": 2, b"uint16": 2,
    b"int": 4, b"uint": 4, b"int32": 4, b"uint32": 4, b"float": 4, b"float32": 4,
    b"double": 8, b"float64": 8, b"int64": 8, b"uint64": 8,
}  # fmt: skip


def check_ply_header(data: bytes, where: str, total_bytes: int | None = None) -> dict[str, int]:
    """Read a PLY header and hold its promises against the bytes that are there.

    Args:
        data: the file, or at least its first 64 KiB.
        where: name of the file, for the message.
        total_bytes: size of the whole file, when ``data`` is its beginning alone.

    Returns:
        The element counts by name.

    Raises:
        ScanRejected: no PLY, no end of header, or more elements promised than the file can hold.
    """
    total = len(data) if total_bytes is None else total_bytes
    end = data.find(b"end_header", 0, MAX_HEADER_BYTES)
    if not data.startswith(b"ply") or end < 0:
        raise ScanRejected(one_line("is no PLY file", where, "no PLY header found", "export the scan again as PLY"))
    counts: dict[str, int] = {}
    least_bytes = 0
    binary = True
    current = 0
    for line in data[:end].splitlines():
        words = line.split()
        if words[:1] == [b"format"]:
            binary = words[1:2] != [b"ascii"]
        if match := _ELEMENT.match(line):
            current = int(match[2])
            counts[match[1].decode("ascii", "replace")] = current
            if current < 0 or current > MAX_ELEMENTS:
                why = f"{current} elements promised, at most {MAX_ELEMENTS} are read"
                raise ScanRejected(one_line("PLY header is not believable", where, why, "export the scan again"))
        elif words[:2] == [b"property", b"list"] and len(words) >= 4:
            least_bytes += current * (_TYPE_BYTES.get(words[2], 1) if binary else 2)
        elif words[:1] == [b"property"] and len(words) >= 3:
            least_bytes += current * (_TYPE_BYTES.get(words[1], 1) if binary else 2)
    there = total - end - len(b"end_header\n")
    if least_bytes > there:
        why = f"header promises at least {least_bytes} bytes after it, the file has {there}"
        raise ScanRejected(one_line("PLY file is truncated", where, why, "copy or export the scan again"))
    return counts


def read_ply(data: bytes, where: str) -> tuple[dict[str, NDArray], NDArray[np.int32]]:
    """Parse a PLY file that came from anywhere.

    Args:
        data: the whole file.
        where: name of the file, for messages.

    Returns:
        The vertex properties by name, each ``(n,)``, and the triangles ``(m, 3)`` int32. Larger polygons are fanned.

    Raises:
        ScanRejected: the file is no PLY, is damaged, or refers to vertices that it lacks.
    """
    counts = check_ply_header(data, where)
    list_name = "vertex_index" if b"vertex_index\n" in data[:MAX_HEADER_BYTES] else "vertex_indices"
    faults = (PlyParseError, ValueError, KeyError, IndexError, OverflowError, MemoryError)
    with tempfile.TemporaryFile() as file:  # plyfile's quick path for equal lists wants a file that it can map
        file.write(data)
        file.seek(0)
        try:
            ply = PlyData.read(file, known_list_len={"face": {list_name: 3}} if counts.get("face") else {})
        except faults:
            file.seek(0)
            if sum(counts.values()) - counts.get("vertex", 0) > MAX_LISTS:
                why = f"over {MAX_LISTS} faces that are not all triangles, or in text"
                raise ScanRejected(one_line("PLY file is too large", where, why, "export binary triangles")) from None
            try:  # not all faces are triangles, or the file is text
                ply = PlyData.read(file, mmap=False)
            except faults as error:
                raise ScanRejected(one_line("PLY file is damaged", where, str(error), "export it again")) from error
    if "vertex" not in counts:
        raise ScanRejected(one_line("PLY file holds no vertices", where, "", "export the scan again"))
    vertex = ply["vertex"].data
    properties = {name: np.ascontiguousarray(vertex[name]) for name in vertex.dtype.names or ()}
    for axis in "xyz":
        if axis not in properties or properties[axis].dtype.kind not in "fiu":
            raise ScanRejected(one_line(f"PLY vertices have no {axis}", where, "", "export x, y and z of each vertex"))
    faces = np.zeros((0, 3), np.int32)
    if counts.get("face", 0):
        element = ply["face"].data
        names = element.dtype.names or ()
        name = next((n for n in ("vertex_indices", "vertex_index") if n in names), None)
        if name is None:
            raise ScanRejected(one_line("PLY faces have no vertex list", where, "", "export the scan again"))
        try:
            faces = _triangles(element[name])
        except (ValueError, TypeError, OverflowError) as error:
            raise ScanRejected(one_line("PLY faces are damaged", where, str(error), "export the scan again")) from error
    if len(faces) and (faces.min() < 0 or faces.max() >= len(vertex)):
        why = f"a face names vertex {int(faces.max())} of {len(vertex)}"
        raise ScanRejected(one_line("PLY faces are damaged", where, why, "export the scan again"))
    return properties, faces


def _triangles(lists: NDArray) -> NDArray[np.int32]:
    if lists.dtype != object:
        return np.ascontiguousarray(lists, np.int32)
    fans = [np.stack([np.full(len(p) - 2, p[0]), p[1:-1], p[2:]], 1) for p in lists if len(p) >= 3]
    return np.concatenate(fans).astype(np.int32) if fans else np.zeros((0, 3), np.int32)


def write_ply(vertex: Mapping[str, NDArray], faces: NDArray[np.integer] | None = None) -> bytes:
    """Encode a mesh or cloud as little-endian binary PLY. Same arrays, same bytes.

    Args:
        vertex: per-vertex properties by name, each ``(n,)``, in the order in which they are written.
        faces: ``(m, 3)`` triangles, or None for a cloud.
    """
    columns = {name: np.asarray(values) for name, values in vertex.items()}
    table = np.empty(len(next(iter(columns.values()))), [(n, c.dtype.newbyteorder("<")) for n, c in columns.items()])
    for name, column in columns.items():
        table[name] = column
    elements = [PlyElement.describe(table, "vertex")]
    if faces is not None:
        rows = np.empty(len(faces), [("vertex_indices", "<i4", (3,))])
        rows["vertex_indices"] = faces
        elements.append(PlyElement.describe(rows, "face"))
    out = io.BytesIO()
    PlyData(elements, byte_order="<").write(out)
    return out.getvalue()
