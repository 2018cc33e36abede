"""Images are held against what was told of them, and damage never gets through."""

from __future__ import annotations

import io

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


@given(st.binary(max_size=200))
def test_random_json(data):
    line = ""
    try:
        assert isinstance(read_json(data, "x"), dict)
    except ScanRejected as error:
        line = str(error)
    assert line.isprintable()
