"""The event file, read back record by record as its format says."""

from __future__ import annotations

import json
import struct

from pipeline.training_curves import JSON_LINES, TENSORBOARD, curve_files, event, event_file_start, masked_crc

LINES = [
    {"stage": 1, "step": 20, "rate": 0.002, "loss": 1.5},
    {"stage": 2, "step": 300, "rate": 0.001, "loss": 0.25},
]


def records(data: bytes) -> list[bytes]:
    out = []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        assert struct.unpack("<I", data[8:12])[0] == masked_crc(data[:8])
        body = data[12 : 12 + length]
        assert struct.unpack("<I", data[12 + length : 16 + length])[0] == masked_crc(body)
        out.append(body)
        data = data[16 + length :]
    return out


def test_checksum_is_the_published_one() -> None:
    # CRC-32C of "123456789" is 0xE3069283
    assert masked_crc(b"123456789") == (((0xE3069283 >> 15) | (0xE3069283 << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def test_event_file_has_a_record_a_line() -> None:
    files = curve_files(LINES)
    assert [json.loads(line) for line in files[JSON_LINES].splitlines()] == LINES
    start, first, second = records(files[TENSORBOARD])
    assert start.endswith(b"brain.Event:2")
    assert b"stage1/loss" in first
    assert struct.pack("<f", 1.5) in first
    assert b"stage1/step" not in first
    # field 2, the step, as a variable-length number after the double of field 1
    assert second[9:12] == bytes([0x10, 300 & 0x7F | 0x80, 300 >> 7])


def test_events_can_be_added_one_by_one() -> None:
    assert event_file_start() + event(LINES[0]) + event(LINES[1]) == curve_files(LINES)[TENSORBOARD]
