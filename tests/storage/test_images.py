"""Images are held against what was told of them, and damage never gets through."""

from __future__ import annotations

import io
import struct
import time
import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from storage.errors import ScanRejected
from storage.images import read_color_image, read_depth_png
from storage.jsonfile import read_json

DEPTH = np.arange(12 * 16, dtype=np.uint16).reshape(12, 16) * 300


def encoded(values: np.ndarray, kind: str) -> bytes:
    out = io.BytesIO()
    Image.fromarray(values).save(out, kind)
    return out.getvalue()


PNG = encoded(DEPTH, "png")
JPEG = encoded(np.full((12, 16, 3), 100, np.uint8), "jpeg")


def test_depth_keeps_its_sixteen_bits():
    read = read_depth_png(PNG, "d.png", (16, 12))
    assert read.dtype == np.uint16
    np.testing.assert_array_equal(read, DEPTH)


def test_color_from_jpeg_and_png():
    assert read_color_image(JPEG, "c.jpg", (16, 12)).shape == (12, 16, 3)
    grey = read_color_image(encoded(np.full((12, 16), 7, np.uint8), "png"), "c.png", (16, 12))
    assert (grey == 7).all()


def test_a_picture_bomb_is_not_decoded():
    header = bytearray(PNG)
    header[16:24] = (60_000).to_bytes(4, "big") * 2
    with pytest.raises(ScanRejected, match=r"image is (damaged|too large)"):
        read_depth_png(bytes(header), "d.png", (60_000, 60_000))


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", r"image is damaged \(0 bytes\); copy it again"),
        (bytes(1000), "image is damaged"),
        (np.random.default_rng(0).bytes(5000), "image is damaged"),
        (b"\x76\x2f\x31\x01" + bytes(99), r"is no PNG image \(it is a OpenEXR file\); export it as 16-bit PNG"),
        (b"\x93NUMPY" + bytes(99), r"is no PNG image \(it is a NumPy file\); export it as 16-bit PNG"),
        (JPEG, r"is no PNG image \(it is a JPEG file\); export it as 16-bit PNG"),
        (encoded((DEPTH >> 8).astype(np.uint8), "png"), r"is not 16 bit greyscale \(it holds 8 bit grey\)"),
        (encoded(np.zeros((12, 16, 3), np.uint8), "png"), r"is not 16 bit greyscale \(it holds colour\)"),
        (encoded(np.zeros((12, 16, 4), np.uint8), "png"), r"is not 16 bit greyscale \(it holds colour with alpha\)"),
        (PNG[:-1], "image is damaged"),
        (PNG[: len(PNG) // 2], "image is damaged"),
    ],
)
def test_what_is_no_depth_image(data, what):
    with pytest.raises(ScanRejected, match=f"^d.png: .*{what}"):
        read_depth_png(data, "d.png", (16, 12))


def test_a_palette_is_no_depth_but_a_colour():
    out = io.BytesIO()
    Image.fromarray(np.full((12, 16, 3), (10, 200, 30), np.uint8)).quantize(4).save(out, "png")
    with pytest.raises(ScanRejected, match=r"is not 16 bit greyscale \(it holds a palette\)"):
        read_depth_png(out.getvalue(), "d.png", (16, 12))
    assert (read_color_image(out.getvalue(), "c.png", (16, 12))[0, 0] == (10, 200, 30)).all()


def test_alpha_is_no_part_of_colour():
    data = encoded(np.full((12, 16, 4), (10, 200, 30, 0), np.uint8), "png")
    assert (read_color_image(data, "c.png", (16, 12))[0, 0] == (10, 200, 30)).all()


def interlaced(values: np.ndarray) -> bytes:
    """A 16-bit PNG whose rows stand in the seven passes of Adam7."""
    rows = b""
    for x0, y0, dx, dy in (
        (0, 0, 8, 8),
        (4, 0, 8, 8),
        (0, 4, 4, 8),
        (2, 0, 4, 4),
        (0, 2, 2, 4),
        (1, 0, 2, 2),
        (0, 1, 1, 2),
    ):
        for row in values[y0::dy, x0::dx]:
            rows += b"\0" + row.astype(">u2").tobytes() if len(row) else b""
    head = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 0, 0, 0, 1)
    parts = ((b"IHDR", head), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    data = b"\x89PNG\r\n\x1a\n"
    for name, body in parts:
        data += struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))
    return data


def test_interlaced_depth():
    np.testing.assert_array_equal(read_depth_png(interlaced(DEPTH), "d.png", (16, 12)), DEPTH)


@pytest.mark.parametrize("at", [0, 20, 30, 60, -6, -20])
def test_any_changed_byte_of_a_png_is_found(at):
    data = bytearray(PNG)
    data[at] ^= 4
    with pytest.raises(ScanRejected, match="image is damaged"):
        read_depth_png(bytes(data), "d.png", (16, 12))


@settings(max_examples=300, deadline=None)
@given(st.sampled_from([PNG, JPEG]), st.integers(0, 2**31), st.integers(1, 8))
def test_mutated_images_are_read_or_rejected(data, seed, count):
    rng = np.random.default_rng(seed)
    changed = np.frombuffer(data, np.uint8).copy()
    changed[rng.integers(0, len(data), count)] = rng.integers(0, 256, count)
    cut = changed[: rng.integers(1, len(data))] if seed % 3 == 0 else changed
    for read in (read_depth_png, read_color_image):
        line = "x: "
        try:
            assert read(cut.tobytes(), "x", (16, 12)).shape[:2] == (12, 16)
        except ScanRejected as error:
            line = str(error)
        assert line.startswith("x: ")
        assert line.isprintable()


@pytest.mark.parametrize(
    ("data", "what"),
    [
        (b"", "is no JSON file"),
        (b'{"unit": "mm", "unit": "m"}', "key 'unit' stands twice"),
        (b'{"a": {"b": 1, "c": 2, "b": 1}}', "key 'b' stands twice"),
        (b'{"rig": "K\xfcche"}', "is no Unicode text"),
        (b'{"rig": "\\ud800"}', "is no Unicode text"),
        (b'{"\\udc80": 1}', "is no Unicode text"),
        (b'{"a": ' * 41 + b"1" + b"}" * 41, r"is nested too deep \(over 40 levels\)"),
        (b"[" * 100_000 + b"]" * 100_000, "is nested too deep"),
        (b'{"a": ' + b"9" * 10_000 + b"}", "is no JSON file"),
        (b"[1]", r"holds no JSON object \(found list\)"),
        (b" " * (16 * 1024**2 + 1), "JSON file is too large"),
    ],
)
def test_what_is_no_json(data, what):
    with pytest.raises(ScanRejected, match=f"^x: .*{what}"):
        read_json(data, "x")


def test_a_key_that_stands_twice_is_found_at_once():
    data = "".join(f'"{number}": 0, ' for number in range(100_000))
    started = time.process_time()
    with pytest.raises(ScanRejected, match="key '99999' stands twice"):
        read_json(f'{{{data}"99999": 1}}'.encode(), "x")
    assert time.process_time() - started < 5  # a look at every pair of keys takes a minute


def test_json_of_other_encodings():
    for encoding in ("utf-8", "utf-8-sig", "utf-16", "utf-32"):
        assert read_json('{"rig": "Küche"}'.encode(encoding), "x") == {"rig": "Küche"}


@given(st.binary(max_size=200))
def test_random_json(data):
    line = ""
    try:
        assert isinstance(read_json(data, "x"), dict)
    except ScanRejected as error:
        line = str(error)
    assert line.isprintable()
