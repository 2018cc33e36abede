"""Binary glTF 2.0 files (GLB): meshes alone or one after the other in time. Written, never read.

Frames with the same triangles become one mesh with a morph target a frame, so that a viewer blends between them. Frames
with triangles of their own become a node each, shown in turn.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import ConfigError, one_line

MAX_BYTES = 2**32 - 1
"""What the format's lengths can count to."""
_ARRAY_BUFFER, _ELEMENT_ARRAY_BUFFER = 34962, 34963
_TRIANGLES = 4
_COMPONENTS = {"<f4": 5126, "<u4": 5125, "<u2": 5123}
_KINDS = {1: "SCALAR", 3: "VEC3", 4: "VEC4"}
_JSON, _BIN = b"JSON", b"BIN\0"


@dataclass(frozen=True)
class Frame:
    """A mesh at one moment.

    Attributes:
        name: of the frame.
        vertices: (n, 3) in mm.
        faces: (m, 3), counter-clockwise seen from outside.
        normals: (n, 3) unit, or None.
        colors: (n, 3) uint8 sRGB, or None.
        columns: further per-vertex numbers (n,) by name; integers beyond 2^24 would be rounded.
    """

    name: str
    vertices: NDArray[np.floating]
    faces: NDArray[np.integer]
    normals: NDArray[np.floating] | None = None
    colors: NDArray[np.uint8] | None = None
    columns: Mapping[str, NDArray] = field(default_factory=dict)


def write_glb(frames: Sequence[Frame], seconds_per_frame: float = 0.5) -> bytes:
    """Encode frames, the first one being what is seen at rest. Same frames, same bytes.

    Args:
        frames: at least one, each with at least one triangle. Colours and columns are those of the first frame where
            all frames have the same triangles.
        seconds_per_frame: from one frame to the next.

    Raises:
        ValueError: no frame, or one without triangles.
        ConfigError: the file would be longer than its format can say.
    """
    if not frames or not all(len(frame.faces) for frame in frames):
        raise ValueError("a GLB file needs frames with triangles")
    file = _File()
    alike = all(np.array_equal(frame.faces, frames[0].faces) for frame in frames)
    if alike:
        nodes, channels = _morphed(file, frames)
    else:
        nodes, channels = _in_turn(file, frames)
    document: dict[str, Any] = {
        "asset": {"version": "2.0", "generator": "nphm"},
        "scene": 0,
        "scenes": [{"nodes": [len(nodes)]}],
        # glTF counts in metres
        "nodes": [*nodes, {"name": "head, mm", "scale": [0.001] * 3, "children": list(range(len(nodes)))}],
        "meshes": file.meshes,
    }
    if len(frames) > 1:
        times = file.accessor(np.arange(len(frames), dtype=np.float32) * np.float32(seconds_per_frame), limits=True)
        samplers = [{"input": times, "output": output, "interpolation": way} for output, way, _ in channels]
        targets = [{"sampler": place, "target": target} for place, (_, _, target) in enumerate(channels)]
        document["animations"] = [{"name": "sequence", "samplers": samplers, "channels": targets}]
    return file.encode(document)


Channel = tuple[int, str, dict[str, Any]]


def _morphed(file: _File, frames: Sequence[Frame]) -> tuple[list[dict[str, Any]], list[Channel]]:
    """One node whose mesh is the first frame, with the way to each later frame as a morph target."""
    first, *later = frames
    primitive = file.primitive(first)
    file.frames = 1
    if later:
        primitive["targets"] = [file.target(first, frame) for frame in later]
    mesh: dict[str, Any] = {"name": first.name, "primitives": [primitive]}
    if not later:
        file.meshes.append(mesh)
        return [{"name": first.name, "mesh": 0}], []
    mesh |= {"weights": [0.0] * len(later), "extras": {"targetNames": [frame.name for frame in later]}}
    file.meshes.append(mesh)
    weights = np.eye(len(frames), dtype=np.float32)[:, 1:]
    channel = (file.accessor(weights.ravel()), "LINEAR", {"node": 0, "path": "weights"})
    return [{"name": first.name, "mesh": 0}], [channel]


def _in_turn(file: _File, frames: Sequence[Frame]) -> tuple[list[dict[str, Any]], list[Channel]]:
    """A node a frame; its scale is one at its moment and zero at all others."""
    nodes: list[dict[str, Any]] = []
    channels: list[Channel] = []
    for place, frame in enumerate(frames):
        file.meshes.append({"name": frame.name, "primitives": [file.primitive(frame)]})
        nodes.append({"name": frame.name, "mesh": place, "scale": [float(place == 0)] * 3})
        shown = np.zeros((len(frames), 3), np.float32)
        shown[place] = 1
        channels.append((file.accessor(shown), "STEP", {"node": place, "path": "scale"}))
        file.frames += 1
    return nodes, channels


class _File:
    """The binary part under way, and what describes it.

    Attributes:
        frames: that are wholly in it.
    """

    def __init__(self) -> None:
        self.frames = 0
        self.data = bytearray()
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []
        self.meshes: list[dict[str, Any]] = []

    def primitive(self, frame: Frame) -> dict[str, Any]:
        """A mesh's triangles and what its vertices carry."""
        attributes = {"POSITION": self._position(frame.vertices)}
        if frame.normals is not None:
            attributes["NORMAL"] = self.accessor(frame.normals.astype(np.float32), _ARRAY_BUFFER)
        if frame.colors is not None:
            attributes["COLOR_0"] = self.accessor(_linear(frame.colors), _ARRAY_BUFFER, normalized=True)
        for name, column in frame.columns.items():
            attributes[f"_{name.upper()}"] = self.accessor(column.astype(np.float32), _ARRAY_BUFFER)
        indices = self.accessor(frame.faces.astype(np.uint32).ravel(), _ELEMENT_ARRAY_BUFFER)
        return {"attributes": attributes, "indices": indices, "mode": _TRIANGLES}

    def target(self, first: Frame, frame: Frame) -> dict[str, int]:
        """The way from the first frame's places and normals to a later one's."""
        way = {"POSITION": self._position(frame.vertices - first.vertices)}
        if first.normals is not None and frame.normals is not None:
            way["NORMAL"] = self.accessor((frame.normals - first.normals).astype(np.float32), _ARRAY_BUFFER)
        self.frames += 1
        return way

    def _position(self, places: NDArray[np.floating]) -> int:
        return self.accessor(places.astype(np.float32), _ARRAY_BUFFER, limits=True)

    def accessor(
        self, values: NDArray, target: int | None = None, *, limits: bool = False, normalized: bool = False
    ) -> int:
        """Add an array (n,) or (n, k), and return its number; every array starts at a multiple of four bytes."""
        stored = np.ascontiguousarray(values, values.dtype.newbyteorder("<"))
        view: dict[str, Any] = {"buffer": 0, "byteOffset": len(self.data), "byteLength": stored.nbytes}
        if len(self.data) + stored.nbytes > MAX_BYTES:
            raise self._too_large(self.frames)
        self.views.append(view if target is None else view | {"target": target})
        self.data += stored.tobytes() + bytes(-stored.nbytes % 4)
        columns = values.reshape(len(values), -1)
        told: dict[str, Any] = {
            "bufferView": len(self.views) - 1,
            "componentType": _COMPONENTS[f"<{stored.dtype.kind}{stored.dtype.itemsize}"],
            "count": len(values),
            "type": _KINDS[columns.shape[1]],
        }
        if limits:
            told |= {"min": columns.min(0).tolist(), "max": columns.max(0).tolist()}
        self.accessors.append(told | ({"normalized": True} if normalized else {}))
        return len(self.accessors) - 1

    def _too_large(self, fit: int) -> ConfigError:
        why = f"over {MAX_BYTES} bytes, of which about {fit} frames fit"
        return ConfigError(one_line("is too large", "GLB file", why, "write fewer frames, smaller meshes, or PLY"))

    def encode(self, document: Mapping[str, Any]) -> bytes:
        """The whole file."""
        whole = {**document, "accessors": self.accessors, "bufferViews": self.views}
        whole["buffers"] = [{"byteLength": len(self.data)}]
        text = json.dumps(whole, separators=(",", ":"), allow_nan=False).encode()
        text += b" " * (-len(text) % 4)
        length = 12 + 8 + len(text) + 8 + len(self.data)
        if length > MAX_BYTES:
            raise self._too_large(self.frames * MAX_BYTES // length)
        head = b"glTF" + struct.pack("<II", 2, length)
        chunks = struct.pack("<I", len(text)) + _JSON + text + struct.pack("<I", len(self.data)) + _BIN
        return head + chunks + bytes(self.data)


def _linear(colors: NDArray[np.uint8]) -> NDArray[np.uint16]:
    """Opaque colours (n, 4) on glTF's linear scale, of sRGB ones (n, 3)."""
    share = colors.astype(np.float64) / 255
    linear = np.where(share <= 0.04045, share / 12.92, ((share + 0.055) / 1.055) ** 2.4)
    opaque = np.concatenate([linear, np.ones((len(linear), 1))], 1)
    return np.round(opaque * 65535).astype(np.uint16)
