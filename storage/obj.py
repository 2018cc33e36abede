"""Wavefront OBJ files: bounded before they are parsed, positions and polygons alone; and written."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from storage.errors import ScanRejected, one_line
from storage.number_text import find_odd_word, parse_numbers
from storage.polygons import fan_triangles

MAX_BYTES = 1024**3
MAX_ELEMENTS = 50_000_000
MAX_LINES = 2 * MAX_ELEMENTS + 1_000_000
"""As many vertices and faces as there may be, and what else stands between them."""
LINES_AT_A_TIME = 1 << 18
MAX_LINE_BYTES = 1 << 20
"""Of a vertex or face; a polygon of a hundred thousand corners is none of a mesh."""
BYTES_AT_A_TIME = 1 << 20
_SCAN_BYTES = 1 << 20
"""At a time where all lines are looked at."""
_BLANK = (9, 32)


@dataclass(frozen=True)
class ObjGeometry:
    """What an OBJ file says of its shape.

    Attributes:
        vertices: (n, 3) float64 in the file's unit.
        colors: (n, 3) float64 from 0 to 1 where every vertex line carries them, else None. Files that count to 255
            are scaled.
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
        ScanRejected: the file is no OBJ, is damaged, or refers to vertices that it lacks. No more memory than 14 times
            the file's size is taken, 40 times where polygons have very many corners, and 100 MiB for what is read at
            a time.
    """
    if len(data) > MAX_BYTES:
        why = f"{len(data)} bytes, at most {MAX_BYTES} are read"
        raise ScanRejected(one_line("OBJ file is too large", where, why, "export it again with fewer vertices"))
    if b"\0" in data:
        raise ScanRejected(one_line("is no OBJ file", where, "it holds binary data", "copy or export it again as OBJ"))
    text = _plain_lines(data)
    lines = text.count(b"\n")
    if lines > MAX_LINES:
        why = f"{lines} lines, at most {MAX_LINES} are read"
        raise ScanRejected(one_line("OBJ file is too large", where, why, "export it again with fewer vertices"))
    starts = _line_starts(text, lines)
    vertex_lines, face_lines = _lines_by_kind(text, starts)
    if not len(vertex_lines):
        raise ScanRejected(one_line("OBJ file holds no vertices", where, "no 'v' line found", "export it again as OBJ"))
    if max(len(vertex_lines), len(face_lines)) > MAX_ELEMENTS:
        why = f"{max(len(vertex_lines), len(face_lines))} elements, at most {MAX_ELEMENTS} are read"
        raise ScanRejected(one_line("OBJ file is too large", where, why, "export it again with fewer vertices"))
    try:
        table = _vertex_table(text, starts, vertex_lines)
        corners, sizes = _polygons(text, starts, face_lines, np.searchsorted(vertex_lines, face_lines))
    except ValueError as error:
        raise ScanRejected(one_line("OBJ file is damaged", where, str(error), "copy or export it again")) from error
    outside = corners[(corners < 0) | (corners >= len(table))]
    if len(outside):
        why = f"a face names vertex {int(outside[0]) + 1} of {len(table)}"
        raise ScanRejected(one_line("OBJ faces are damaged", where, why, "copy or export it again"))
    if (
        data[-1:] not in b"\r\n"
        and corners.size
        and (unused := len(table) - len(np.unique(corners))) > 0.005 * len(table)
    ):
        why = f"it ends within a line, and {unused} of {len(table)} vertices belong to no face"
        raise ScanRejected(one_line("OBJ file is truncated", where, why, "copy it again, or end it with a line end"))
    colors = table[:, 3:6] if table.shape[1] >= 6 else None
    if colors is not None and colors.max() > 1:
        colors = colors / 255
    return ObjGeometry(table[:, :3], colors, fan_triangles(corners, sizes).astype(np.int32))


def _plain_lines(data: bytes) -> bytes:
    """The text with one kind of line end, no indentation, and no line that goes on in the next."""
    if b"\r" in data:
        data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")
    if b"\\\n" in data:
        data = data.replace(b"\\\n", b"  ")
    if re.search(rb"^[ \t]+[vf][ \t]", data, re.MULTILINE):
        data = b"".join(re.sub(rb"^[ \t]+", b"", part, flags=re.MULTILINE) for part in _parts(data))
    return data + b"\n"


def _parts(data: bytes) -> Iterator[bytes]:
    """A text as parts of whole lines, so that what is made of each line doesn't pile up for all."""
    first = 0
    while first < len(data):
        stop = data.find(b"\n", first + _SCAN_BYTES) + 1 or len(data)
        yield data[first:stop]
        first = stop


def _line_starts(text: bytes, lines: int) -> NDArray[np.int32]:
    """Where each line starts (lines + 1,); the text's length comes last."""
    characters = np.frombuffer(text, np.uint8)
    starts = np.zeros(lines + 1, np.int32)  # MAX_BYTES fits
    done = 1
    for first in range(0, len(characters), _SCAN_BYTES):
        ends = np.flatnonzero(characters[first : first + _SCAN_BYTES] == ord("\n"))
        starts[done : done + len(ends)] = ends + (first + 1)
        done += len(ends)
    return starts


def _lines_by_kind(text: bytes, starts: NDArray[np.int32]) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Which lines hold a vertex, and which a face."""
    characters = np.frombuffer(text, np.uint8)
    vertices, faces = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    for first in range(0, len(starts) - 1, LINES_AT_A_TIME):
        heads = starts[first : min(first + LINES_AT_A_TIME, len(starts) - 1)]
        letters = characters[heads]
        for letter, found in (("v", vertices), ("f", faces)):
            here = np.flatnonzero(letters == ord(letter))
            here = here[np.isin(characters[heads[here] + 1], _BLANK)]  # a letter has a line end behind it at least
            found.append((here + first).astype(np.int32))
    return np.concatenate(vertices), np.concatenate(faces)


def _vertex_table(text: bytes, starts: NDArray[np.int32], lines: NDArray[np.int32]) -> NDArray[np.float64]:
    parts: list[NDArray[np.float64]] = []
    width = 0
    for chosen, piece in _pieces(text, starts, lines):
        values, words = _numbers(piece, chosen)
        width = width or int(words[0])
        if width < 3:
            raise ValueError(f"the first vertex, in line {chosen[0] + 1}, has {width} coordinates")
        if (words != width).any():
            odd = int(np.flatnonzero(words != width)[0])
            raise ValueError(f"line {chosen[odd] + 1} has {words[odd]} numbers, the first vertex has {width}")
        parts.append(values.reshape(-1, width))
    return np.concatenate(parts)


def _polygons(
    text: bytes, starts: NDArray[np.int32], lines: NDArray[np.int32], counts: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Corners of all polygons and the size of each; ``counts`` are the vertices before each, for negative indices."""
    corners, sizes = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
    done = 0
    for chosen, piece in _pieces(text, starts, lines):
        values, words = _numbers(re.sub(rb"/[^ \t\n]*", b"", piece) if b"/" in piece else piece, chosen)
        before = np.repeat(counts[done : done + len(chosen)], words)
        wrong = (values != np.rint(values)) | (np.abs(values) > MAX_ELEMENTS * 10) | (values == 0)
        if wrong.any():
            row = int(np.searchsorted(np.cumsum(words), np.flatnonzero(wrong)[0], side="right"))
            raise ValueError(f"line {chosen[row] + 1} names vertex {values[wrong][0]:g}")
        index = values.astype(np.int64)
        corners.append(np.where(index > 0, index - 1, before + index))
        sizes.append(words)
        done += len(chosen)
    return np.concatenate(corners), np.concatenate(sizes)


def _pieces(
    text: bytes, starts: NDArray[np.int32], lines: NDArray[np.int32]
) -> Iterator[tuple[NDArray[np.int32], bytes]]:
    """Some lines at a time: their places in the file, and their text without the leading letter."""
    sizes = starts[lines + 1] - starts[lines]
    if len(sizes) and sizes.max() > MAX_LINE_BYTES:
        longest = int(sizes.argmax())
        raise ValueError(f"line {lines[longest] + 1} has {sizes[longest]} bytes, at most {MAX_LINE_BYTES} are read")
    reached = np.cumsum(sizes, dtype=np.int32)
    first, read = 0, 0
    while first < len(lines):
        within = int(np.searchsorted(reached, read + BYTES_AT_A_TIME, side="right"))
        stop = min(max(within, first + 1), first + LINES_AT_A_TIME)
        chosen = lines[first:stop]
        first, read = stop, int(reached[min(stop, len(lines)) - 1])
        breaks = np.flatnonzero(np.diff(chosen) != 1) + 1
        begins, ends = chosen[np.r_[0, breaks]], chosen[np.r_[breaks - 1, len(chosen) - 1]] + 1
        runs = zip(starts[begins].tolist(), starts[ends].tolist(), strict=True)
        joined = np.frombuffer(b"".join([text[begin:end] for begin, end in runs]), np.uint8).copy()
        joined[np.r_[0, np.flatnonzero(joined == ord("\n"))[:-1] + 1]] = ord(" ")
        piece = joined.tobytes()
        if b"#" in piece:
            piece = re.sub(rb"#[^\n]*", b"", piece)
        yield chosen, piece


def _numbers(piece: bytes, lines: NDArray[np.int32]) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """All numbers of some lines, and how many each line has.

    Raises:
        ValueError: a word is no number; the message names its line.
    """
    characters = np.frombuffer(piece, np.uint8)
    blank = characters <= 32
    word = ~blank
    word[1:] &= blank[:-1]
    ends = np.flatnonzero(characters == ord("\n"))
    words = np.diff(np.concatenate([[0], np.cumsum(word)[ends]])).astype(np.int64)
    values = parse_numbers(piece)
    if values is None:
        row, why = find_odd_word(piece)
        raise ValueError(f"{why}, in line {lines[min(row, len(lines) - 1)] + 1}")
    return values, words


def write_obj(
    vertices: NDArray[np.floating],
    faces: NDArray[np.integer],
    normals: NDArray[np.floating] | None = None,
    colors: NDArray[np.uint8] | None = None,
    groups: Mapping[str, NDArray[np.bool_]] | None = None,
) -> bytes:
    """Encode a mesh. Same arrays, same bytes.

    Args:
        vertices: (n, 3); written to a hundredth of a micrometre if they are in mm.
        faces: (m, 3).
        normals: (n, 3) unit, or None.
        colors: (n, 3) uint8, written behind the positions as shares from 0 to 1, or None.
        groups: masks (m,) of the faces of each group by name, together all faces; one group without a name by default.
    """
    out = io.BytesIO()
    place = np.asarray(vertices, np.float64)
    if colors is None:
        np.savetxt(out, place, "v %.5f %.5f %.5f")
    else:
        np.savetxt(out, np.concatenate([place, colors / 255.0], 1), "v %.5f %.5f %.5f %.4f %.4f %.4f")
    corner = "%d"
    if normals is not None:
        np.savetxt(out, normals, "vn %.4f %.4f %.4f")
        corner = "%d//%d"
    corners = np.repeat(faces.astype(np.int64) + 1, 1 if normals is None else 2, axis=1)
    for name, mask in (groups or {"": np.ones(len(faces), bool)}).items():
        out.write(f"g {name}\n".encode() if name and mask.any() else b"")
        np.savetxt(out, corners[mask], f"f {corner} {corner} {corner}")
    return out.getvalue()
