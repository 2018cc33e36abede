"""Training curves as files: JSON lines, and the event file that TensorBoard reads.

An event file is a row of records (length, checksum, bytes, checksum); each record is an ``Event`` message of protocol
buffers with a step and named values. Both are simple enough to write here. Events bear their step in place of a time,
so that the same training gives the same bytes.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterable, Mapping
from typing import Any

import google_crc32c

JSON_LINES = "curve.jsonl"
TENSORBOARD = "events.out.tfevents.0.nphm"
"""TensorBoard knows event files by the first part of this name."""

_NO_VALUES = ("stage", "step")


def curve_files(curve: Iterable[Mapping[str, Any]]) -> dict[str, bytes]:
    """Both files by name, from lines with ``stage``, ``step`` and values."""
    lines = list(curve)
    events = event_file_start() + b"".join(event(line) for line in lines)
    return {JSON_LINES: b"".join(encode_line(line) for line in lines), TENSORBOARD: events}


def encode_line(line: Mapping[str, Any]) -> bytes:
    """A line of the JSON lines."""
    return json.dumps(line, sort_keys=True).encode() + b"\n"


def event_file_start() -> bytes:
    """What an event file begins with: the version of its format."""
    return _record(_double(1, 0.0) + _bytes(3, b"brain.Event:2"))


def event(line: Mapping[str, Any]) -> bytes:
    """A line's record: its values named STAGE/NAME, at its step."""
    summary = b"".join(
        _bytes(1, _bytes(1, f"stage{line['stage']}/{name}".encode()) + _float(2, float(value)))
        for name, value in sorted(line.items())
        if name not in _NO_VALUES
    )
    step = int(line["step"])
    return _record(_double(1, float(step)) + _key(2, 0) + _varint(step) + _bytes(5, summary))


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", masked_crc(length)) + data + struct.pack("<I", masked_crc(data))


def _key(field: int, wire_type: int) -> bytes:
    return _varint(field << 3 | wire_type)


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _bytes(field: int, data: bytes) -> bytes:
    return _key(field, 2) + _varint(len(data)) + data


def _double(field: int, value: float) -> bytes:
    return _key(field, 1) + struct.pack("<d", value)


def _float(field: int, value: float) -> bytes:
    return _key(field, 5) + struct.pack("<f", value)


def masked_crc(data: bytes) -> int:
    """The CRC-32C of data, turned and shifted as these records ask for."""
    crc = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF
