"""Depth and colour images from anywhere, bounded before they are decoded."""

from __future__ import annotations

import io
import struct
import zlib

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from storage.errors import ScanRejected, one_line

MAX_IMAGE_BYTES = 256 * 1024**2
MAX_PIXELS = 64_000_000
_PNG = b"\x89PNG\r\n\x1a\n"
_MODES = {
    "1": "1 bit", "L": "8 bit grey", "LA": "grey with alpha", "P": "a palette",
    "RGB": "colour", "RGBA": "colour with alpha",
}  # fmt: skip
_OTHERS = {
    b"\x76\x2f\x31\x01": "OpenEXR", b"\x93NUMPY": "NumPy", b"II*\0": "TIFF", b"MM\0*": "TIFF", b"\xff\xd8\xff": "JPEG",
    _PNG[:4]: "PNG", b"RIFF": "WebP", b"GIF8": "GIF", b"BM": "BMP", b"PK\x03\x04": "zip", b"P5": "PGM", b"P6": "PPM",
}  # fmt: skip
_DAMAGE = (OSError, SyntaxError, ValueError, EOFError, OverflowError, MemoryError, zlib.error, struct.error)


def read_depth_png(data: bytes, where: str, size: tuple[int, int]) -> NDArray[np.uint16]:
    """Decode a 16-bit depth image.

    Args:
        data: the whole file.
        where: name of the file, for messages.
        size: width and height that were told for it, in pixels.

    Returns:
        (h, w) uint16, 0 where nothing came back.

    Raises:
        ScanRejected: no 16-bit greyscale PNG, damaged, or of another size.
    """
    image = _open(data, where, "PNG")
    if not image.mode.startswith("I"):
        why = f"it holds {_MODES.get(image.mode, image.mode)}"
        raise ScanRejected(one_line("depth image is not 16 bit greyscale", where, why, "export depth as 16-bit PNG"))
    _check_size(image, where, size, "depth")
    values = _decode(image, where)
    if values.dtype != np.uint16:  # older encoders' 16-bit images open as 32-bit integers
        values = values.clip(0, 65535).astype(np.uint16)
    return values


def read_color_image(data: bytes, where: str, size: tuple[int, int]) -> NDArray[np.uint8]:
    """Decode a JPEG or PNG colour image.

    Args:
        data: the whole file.
        where: name of the file, for messages.
        size: width and height that were told for it, in pixels.

    Returns:
        (h, w, 3) uint8 sRGB.

    Raises:
        ScanRejected: no JPEG or PNG, damaged, or of another size.
    """
    image = _open(data, where, "JPEG", "PNG")
    _check_size(image, where, size, "colour")
    return _decode(image, where, "RGB").astype(np.uint8)


def _open(data: bytes, where: str, *formats: str) -> Image.Image:
    if len(data) > MAX_IMAGE_BYTES:
        why = f"{len(data)} bytes, at most {MAX_IMAGE_BYTES} are read"
        raise ScanRejected(one_line("image file is too large", where, why, "export the scan again"))
    kind = next((name for mark, name in _OTHERS.items() if data.startswith(mark)), None)
    if kind is not None and kind not in formats:
        remedy = f"export it as {'16-bit PNG' if formats == ('PNG',) else ' or '.join(formats)}"
        raise ScanRejected(one_line(f"is no {' or '.join(formats)} image", where, f"it is a {kind} file", remedy))
    if kind == "PNG":
        _check_png(data, where)
    try:
        image = Image.open(io.BytesIO(data), formats=formats)
    except (*_DAMAGE, Image.DecompressionBombError) as error:
        why = "0 bytes" if not data else f"no readable {' or '.join(formats)} header in {len(data)} bytes"
        raise ScanRejected(one_line("image is damaged", where, why, "copy it again")) from error
    if image.width * image.height > MAX_PIXELS:
        why = f"{image.width}x{image.height}, at most {MAX_PIXELS} pixels are read"
        raise ScanRejected(one_line("image is too large", where, why, "export the scan again"))
    return image


def _check_png(data: bytes, where: str) -> None:
    """Hold each chunk against its checksum: decoders pass over those of the picture itself."""
    at = len(_PNG)
    why = "its signature is damaged" if not data.startswith(_PNG) else ""
    name = b""
    while not why and name != b"IEND":
        length = int.from_bytes(data[at : at + 4], "big")
        name, end = data[at + 4 : at + 8], at + 12 + length
        if end > len(data):
            why = f"it has {len(data)} bytes, its part {name.decode('latin-1')} goes on to byte {end}"
        elif zlib.crc32(data[at + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            why = f"the part {name.decode('latin-1')} at byte {at} is not as its checksum says"
        at = end
    if why:
        raise ScanRejected(one_line("image is damaged", where, why, "copy it again"))


def _check_size(image: Image.Image, where: str, size: tuple[int, int], kind: str) -> None:
    if image.size != size:
        why = f"{image.width}x{image.height}, told are {size[0]}x{size[1]}"
        remedy = "correct w and h in transforms.json, or export the frame again"
        raise ScanRejected(one_line(f"{kind} image has another size than told", where, why, remedy))


def _decode(image: Image.Image, where: str, mode: str | None = None) -> NDArray:
    try:
        image.load()
        return np.array(image if mode is None or image.mode == mode else image.convert(mode))
    except _DAMAGE as error:
        raise ScanRejected(one_line("image is damaged", where, str(error), "copy it again")) from error
