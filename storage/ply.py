"""PLY files: bounded before they are parsed, written with the same bytes for the same arrays."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from storage.errors import ScanRejected, one_line
from storage.number_text import find_odd_word, parse_numbers
from storage.polygons import fan_triangles

MAX_HEADER_BYTES = 64 * 1024
MAX_ELEMENTS = 50_000_000
MAX_LISTS = 5_000_000
"""Lists of differing lengths are read one by one, each costing a hundred bytes or more however short it is."""
MAX_STRAY_BYTES = 16
"""More than this after the last element, and the header's counts are not the file's."""
_TYPES = {
    "char": "i1", "uchar": "u1", "int8": "i1", "uint8": "u1", "short": "i2", "ushort": "u2", "int16": "i2",
    "uint16": "u2", "int": "i4", "uint": "u4", "int32": "i4", "uint32": "u4", "int64": "i8", "uint64": "u8",
    "float": "f4", "double": "f8", "float32": "f4", "float64": "f8",
}  # fmt: skip
_ORDERS = {"ascii": "", "binary_little_endian": "<", "binary_big_endian": ">"}
_LISTS_OF_CORNERS = ("vertex_indices", "vertex_index")
_AGAIN = "copy or export the scan again"


@dataclass(frozen=True)
class _Property:
    """A column of an element: plain numbers, or a list a row where there is a type for its length."""

    name: str
    type: str
    length_type: str | None = None


@dataclass(frozen=True)
class _Element:
    name: str
    count: int
    properties: tuple[_Property, ...]

    @property
    def lists(self) -> bool:
        """Whether a row may be of any length."""
        return any(column.length_type is not None for column in self.properties)


@dataclass(frozen=True)
class _Header:
    order: str  # '<', '>', or '' for text
    elements: tuple[_Element, ...]
    end: int  # where the content begins


@dataclass(frozen=True)
class _Rows:
    """What an element holds: its plain columns, and its lists of corners with the length of each."""

    columns: dict[str, NDArray]
    corners: NDArray | None = None
    sizes: NDArray[np.int64] | None = None


class _Content(Protocol):
    """What follows the header, read from front to back."""

    def least(self, element: _Element) -> int:
        """The fewest bytes that an element can take."""

    def uniform(self, element: _Element) -> _Rows | None:
        """Read an element whose lists are all as long as in its first row, or None where they are not."""

    def one_by_one(self, element: _Element) -> _Rows:
        """Read an element list by list."""

    def stray_bytes(self) -> int:
        """How much was not read."""


def read_ply(data: bytes, where: str) -> tuple[dict[str, NDArray], NDArray[np.int32]]:
    """Parse a PLY file that came from anywhere.

    Text and binary of either byte order; further elements, properties and lists are passed over.

    Args:
        data: the whole file.
        where: name of the file, for messages.

    Returns:
        The vertex properties by name, each ``(n,)``, and the triangles ``(m, 3)`` int32. Larger polygons are fanned.

    Raises:
        ScanRejected: the file is no PLY, is damaged, promises what it does not hold, or refers to vertices that it
            lacks. No more memory than a few times the file's size is taken, whatever it promises.
    """
    header = _read_header(data, where)
    try:
        content: _Content = _Text(data, header.end) if header.order == "" else _Binary(data, header)
        _check_promises(header, content, where, len(data))
        read = {element.name: _read_element(content, element, where) for element in header.elements}
    except (ValueError, IndexError, OverflowError) as error:
        raise ScanRejected(one_line("PLY file is damaged", where, str(error), _AGAIN)) from error
    if (stray := content.stray_bytes()) > MAX_STRAY_BYTES:
        why = f"{stray} bytes follow what its header promises"
        raise ScanRejected(one_line("PLY file is damaged", where, why, _AGAIN))
    if "vertex" not in read:
        raise ScanRejected(one_line("PLY file holds no vertices", where, "", "export the scan again"))
    columns = read["vertex"].columns
    for axis in "xyz":
        if axis not in columns:
            raise ScanRejected(one_line(f"PLY vertices have no {axis}", where, "", "export x, y and z of each vertex"))
    count = len(columns["x"])
    faces = read.get("face", _Rows({}))
    if faces.sizes is None or faces.corners is None:
        if any(element.name in ("face", "tristrips") and element.count for element in header.elements):
            remedy = "export faces with a list vertex_indices"
            raise ScanRejected(one_line("PLY faces have no vertex list", where, "", remedy))
        return columns, np.zeros((0, 3), np.int32)
    outside = faces.corners[(faces.corners < 0) | (faces.corners >= count)]
    if len(outside):
        why = f"a face names vertex {int(outside[0])} of {count}"
        raise ScanRejected(one_line("PLY faces are damaged", where, why, "export the scan again"))
    return columns, np.ascontiguousarray(fan_triangles(faces.corners, faces.sizes), np.int32)


def _read_header(data: bytes, where: str) -> _Header:
    """Read a PLY header.

    Raises:
        ScanRejected: no PLY, no end of header, or a line of it that says nothing sensible.
    """
    end = data.find(b"end_header", 0, MAX_HEADER_BYTES)
    if not data.startswith((b"ply\n", b"ply\r")) or end < 0:
        raise ScanRejected(one_line("is no PLY file", where, "no PLY header found", "export the scan again as PLY"))
    order = None
    elements: list[_Element] = []
    for line in data[:end].decode("latin-1").splitlines()[1:]:
        words = line.split()
        known = True
        if words[:1] == ["format"] and len(words) == 3 and words[1] in _ORDERS:
            order = _ORDERS[words[1]]
        elif words[:1] == ["element"] and len(words) == 3 and words[2].isascii() and words[2].isdigit():
            known = len(words[2]) < 20 and words[1] not in [element.name for element in elements]
            elements.append(_Element(words[1], int(words[2][:20]), ()))
        elif words[:1] == ["property"] and elements and (column := _property(words[1:])):
            last = elements[-1]
            known = column.name not in [other.name for other in last.properties]
            elements[-1] = _Element(last.name, last.count, (*last.properties, column))
        elif words:
            known = words[0] in ("comment", "obj_info")
        if not known:
            raise ScanRejected(one_line("PLY header is damaged", where, f"line {line[:80]!r}", "export the scan again"))
    if order is None:
        raise ScanRejected(one_line("PLY header is damaged", where, "no known format", "export the scan again"))
    for element in elements:
        if element.count > MAX_ELEMENTS:
            why = f"{element.count} elements promised, at most {MAX_ELEMENTS} are read"
            raise ScanRejected(one_line("PLY header is not believable", where, why, "export the scan again"))
    newline = b"\r\n" if data[3:5] == b"\r\n" else data[3:4]
    begin = end + len(b"end_header")
    return _Header(order, tuple(elements), begin + (len(newline) if data.startswith(newline, begin) else 1))


def _property(words: Sequence[str]) -> _Property | None:
    if len(words) == 2 and words[0] in _TYPES:
        return _Property(words[1], _TYPES[words[0]])
    if len(words) == 4 and words[0] == "list" and words[1] in _TYPES and words[2] in _TYPES:
        length_type = _TYPES[words[1]]
        return _Property(words[3], _TYPES[words[2]], length_type) if length_type[0] != "f" else None
    return None


def _check_promises(header: _Header, content: _Content, where: str, total: int) -> None:
    least = sum(content.least(element) for element in header.elements)
    there = total - header.end
    if least > there:
        why = f"its header promises at least {least} bytes after it, the file has {max(there, 0)}"
        raise ScanRejected(one_line("PLY file is truncated", where, why, _AGAIN))


def _read_element(content: _Content, element: _Element, where: str) -> _Rows:
    if not element.count or not element.properties:
        empty = {column.name: np.zeros(0, column.type) for column in element.properties}
        return _Rows(empty, np.zeros(0, np.int64), np.zeros(0, np.int64))
    rows = content.uniform(element)
    if rows is not None:
        return rows
    if element.count > MAX_LISTS:
        why = f"over {MAX_LISTS} {element.name} lists of differing lengths"
        raise ScanRejected(one_line("PLY file is too large", where, why, "export binary triangles"))
    return content.one_by_one(element)


def _lost(element: _Element, row: int) -> ValueError:
    return ValueError(f"it ends in {element.name} {row} of {element.count}")


def _corner_list(element: _Element) -> int | None:
    """Which property of an element lists the corners of faces."""
    for place, column in enumerate(element.properties):
        if element.name == "face" and column.name in _LISTS_OF_CORNERS and column.length_type and column.type[0] != "f":
            return place
    return None


class _Binary:
    """The content of a binary file."""

    def __init__(self, data: bytes, header: _Header) -> None:
        self.data = data
        self.at = header.end
        self.order = header.order

    def least(self, element: _Element) -> int:
        return element.count * sum(np.dtype(p.length_type or p.type).itemsize for p in element.properties)

    def stray_bytes(self) -> int:
        return len(self.data) - self.at

    def uniform(self, element: _Element) -> _Rows | None:
        lengths = self._lengths(element, self.at)
        fields: list[tuple[str, str] | tuple[str, str, tuple[int]]] = []
        for place, (column, length) in enumerate(zip(element.properties, lengths, strict=True)):
            if column.length_type is None:
                fields.append((f"{place}", self.order + column.type))
            else:
                fields.append((f"length{place}", self.order + column.length_type))
                fields.append((f"{place}", self.order + column.type, (length or 0,)))
        row = np.dtype(fields)
        if self.at + element.count * row.itemsize > len(self.data):
            if element.lists:
                return None
            raise _lost(element, (len(self.data) - self.at) // row.itemsize)
        table = np.frombuffer(self.data, row, element.count, self.at)
        for place, length in enumerate(lengths):
            if length is not None and (table[f"length{place}"] != length).any():
                return None
        self.at += element.count * row.itemsize
        columns = {
            column.name: table[f"{place}"].astype(column.type)
            for place, column in enumerate(element.properties)
            if column.length_type is None
        }
        corner = _corner_list(element)
        if corner is None:
            return _Rows(columns)
        size = lengths[corner] or 0
        return _Rows(columns, table[f"{corner}"].astype(np.int64).ravel(), np.full(element.count, size, np.int64))

    def one_by_one(self, element: _Element) -> _Rows:
        corner = _corner_list(element)
        starts, sizes = np.zeros(element.count, np.int64), np.zeros(element.count, np.int64)
        plain = [place for place, column in enumerate(element.properties) if column.length_type is None]
        places = np.zeros((element.count, len(plain)), np.int64)
        steps = [np.dtype(column.type).itemsize for column in element.properties]
        at = self.at
        for row in range(element.count):
            where = iter(range(len(plain)))
            for place, column in enumerate(element.properties):
                if column.length_type is None:
                    places[row, next(where)] = at
                    at += steps[place]
                else:
                    length, at = self._length(column.length_type, at)
                    if place == corner:
                        starts[row], sizes[row] = at, length
                    at += length * steps[place]
                if at > len(self.data):
                    raise _lost(element, row)
        self.at = at
        columns = {}
        for k, place in enumerate(plain):
            column = element.properties[place]
            step = np.arange(steps[place])
            found = np.frombuffer(self.data, np.uint8)[places[:, k, None] + step]
            columns[column.name] = found.view(self.order + column.type)[:, 0].astype(column.type)
        if corner is None:
            return _Rows(columns)
        kind = self.order + element.properties[corner].type
        lists = [
            np.frombuffer(self.data, kind, n, at) for at, n in zip(starts.tolist(), sizes.tolist(), strict=True) if n
        ]
        flat = np.concatenate(lists).astype(np.int64) if lists else np.zeros(0, np.int64)
        return _Rows(columns, flat, sizes)

    def _lengths(self, element: _Element, at: int) -> list[int | None]:
        """How long the lists of the row at a place are; None for plain properties."""
        lengths: list[int | None] = []
        for column in element.properties:
            length = None
            if column.length_type is not None:
                length, at = self._length(column.length_type, at)
            at += (1 if length is None else length) * np.dtype(column.type).itemsize
            if at > len(self.data):
                raise _lost(element, 0)
            lengths.append(length)
        return lengths

    def _length(self, kind: str, at: int) -> tuple[int, int]:
        after = at + int(kind[1])
        order = "little" if self.order == "<" else "big"
        length = int.from_bytes(self.data[at:after], order, signed=kind[0] == "i")  # type: ignore[arg-type]
        if length < 0:
            raise ValueError(f"a list at byte {at} is {length} long")
        return length, after


class _Text:
    """The content of a text file: numbers between blanks."""

    def __init__(self, data: bytes, begin: int) -> None:
        text = data[begin:]
        values = parse_numbers(text)
        if values is None:
            line, why = find_odd_word(text)
            header_lines = data.count(b"\n", 0, begin)
            raise ValueError(f"{why}, in line {header_lines + line + 1}")
        self.values = values
        self.at = 0

    def least(self, element: _Element) -> int:
        return max(2 * element.count * len(element.properties) - 1, 0)

    def stray_bytes(self) -> int:
        return 2 * (len(self.values) - self.at)

    def uniform(self, element: _Element) -> _Rows | None:
        lengths: list[int | None] = []
        at = self.at
        for column in element.properties:
            length = None if column.length_type is None else self._length(at, element, 0)
            lengths.append(length)
            at += 1 if length is None else 1 + length
        width = at - self.at
        if self.at + element.count * width > len(self.values):
            if element.lists:
                return None
            raise _lost(element, (len(self.values) - self.at) // width)
        table = self.values[self.at : self.at + element.count * width].reshape(element.count, width)
        columns: dict[str, NDArray] = {}
        corners = sizes = None
        at = 0
        for place, (column, length) in enumerate(zip(element.properties, lengths, strict=True)):
            if length is None:
                columns[column.name] = _as_type(table[:, at], column)
                at += 1
                continue
            if (table[:, at] != length).any():
                return None
            if place == _corner_list(element):
                corners = _as_type(table[:, at + 1 : at + 1 + length].ravel(), column).astype(np.int64)
                sizes = np.full(element.count, length, np.int64)
            at += 1 + length
        self.at += element.count * width
        return _Rows(columns, corners, sizes)

    def one_by_one(self, element: _Element) -> _Rows:
        corner = _corner_list(element)
        columns = {p.name: np.zeros(element.count) for p in element.properties if p.length_type is None}
        lists: list[NDArray] = []
        at = self.at
        for row in range(element.count):
            for place, column in enumerate(element.properties):
                if at >= len(self.values):
                    raise _lost(element, row)
                if column.length_type is None:
                    columns[column.name][row] = self.values[at]
                    at += 1
                    continue
                length = self._length(at, element, row)
                if place == corner:
                    lists.append(self.values[at + 1 : at + 1 + length])
                at += 1 + length
        if at > len(self.values):
            raise _lost(element, element.count - 1)
        self.at = at
        typed = {p.name: _as_type(columns[p.name], p) for p in element.properties if p.length_type is None}
        if corner is None:
            return _Rows(typed)
        flat = _as_type(np.concatenate(lists), element.properties[corner]).astype(np.int64)
        return _Rows(typed, flat, np.array([len(found) for found in lists], np.int64))

    def _length(self, at: int, element: _Element, row: int) -> int:
        if at >= len(self.values):
            raise _lost(element, row)
        length = float(self.values[at])
        if not (length.is_integer() and 0 <= length <= len(self.values)):
            raise ValueError(f"the list of {element.name} {row} is {length:g} long")
        return int(length)


def _as_type(values: NDArray[np.float64], column: _Property) -> NDArray:
    if column.type[0] == "f":
        with np.errstate(over="ignore"):  # what is too large becomes infinite, as in a binary file
            return values.astype(column.type)
    limits = np.iinfo(column.type)
    if not ((values >= limits.min) & (values <= limits.max) & (values == np.rint(values))).all():
        raise ValueError(f"a {column.name} is no whole number from {limits.min} to {limits.max}")
    return values.astype(column.type)


def write_ply(vertex: Mapping[str, NDArray], faces: NDArray[np.integer] | None = None) -> bytes:
    """Encode a mesh or cloud as little-endian binary PLY. Same arrays, same bytes.

    Args:
        vertex: per-vertex properties by name, each ``(n,)``, in the order in which they are written.
        faces: ``(m, 3)`` triangles, or None for a cloud.

    Raises:
        KeyError: a property has a type that PLY does not know.
    """
    columns = {name: np.asarray(values) for name, values in vertex.items()}
    table = np.empty(len(next(iter(columns.values()))), [(n, c.dtype.newbyteorder("<")) for n, c in columns.items()])
    for name, column in columns.items():
        table[name] = column
    names = {kind: name for name, kind in list(_TYPES.items())[::-1] if not name.endswith("64")}
    lines = ["ply", "format binary_little_endian 1.0", f"element vertex {len(table)}"]
    lines += [f"property {names[column.dtype.str[1:]]} {name}" for name, column in columns.items()]
    parts = [table.tobytes()]
    if faces is not None:
        rows = np.empty(len(faces), [("size", "u1"), ("corners", "<i4", (3,))])
        rows["size"] = 3
        rows["corners"] = faces
        lines += [f"element face {len(rows)}", "property list uchar int vertex_indices"]
        parts.append(rows.tobytes())
    return "\n".join([*lines, "end_header\n"]).encode() + b"".join(parts)


def without_comments(data: bytes) -> bytes:
    """The same PLY file without the comments and object notes of its header, which may tell where it came from."""
    end = max(data.find(b"end_header", 0, MAX_HEADER_BYTES), 0)
    lines = data[:end].splitlines(keepends=True)
    told = [line for line in lines if line.split()[:1] not in ([b"comment"], [b"obj_info"])]
    return data if len(told) == len(lines) else b"".join(told) + data[end:]
