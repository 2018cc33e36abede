"""GLB files, read back by a program that others wrote, and held against what glTF 2.0 asks of their structure."""

from __future__ import annotations

import io
import json
import struct
from dataclasses import replace

import numpy as np
import pytest
import trimesh

from storage.errors import ConfigError
from storage.glb import Frame, write_glb

SIZES = {5126: 4, 5125: 4, 5123: 2}
WIDTHS = {"SCALAR": 1, "VEC3": 3, "VEC4": 4}


def ball(subdivisions: int = 2) -> trimesh.Trimesh:
    return trimesh.creation.icosphere(subdivisions=subdivisions, radius=80.0)


def frames(count: int) -> list[Frame]:
    """A ball that grows; with normals, colours and a column."""
    mesh = ball()
    colors = np.tile(np.array([[255, 188, 0]], np.uint8), (len(mesh.vertices), 1))
    region = np.arange(len(mesh.vertices), dtype=np.uint8)
    return [
        Frame(f"frame {i}", mesh.vertices * (1 + i), mesh.faces, mesh.vertex_normals, colors, {"region": region})
        for i in range(count)
    ]


def parts(data: bytes) -> tuple[dict, bytes]:
    """The two chunks, after the lengths that frame them have been held against the file's."""
    magic, version, length = struct.unpack_from("<4sII", data)
    assert (magic, version, length) == (b"glTF", 2, len(data))
    text_length, kind = struct.unpack_from("<I4s", data, 12)
    assert kind == b"JSON"
    assert text_length % 4 == 0
    binary_length, kind = struct.unpack_from("<I4s", data, 20 + text_length)
    assert kind == b"BIN\0"
    binary = data[28 + text_length :]
    assert len(binary) == binary_length
    return json.loads(data[20 : 20 + text_length]), binary


def array(document: dict, binary: bytes, number: int) -> np.ndarray:
    accessor = document["accessors"][number]
    view = document["bufferViews"][accessor["bufferView"]]
    size, width = SIZES[accessor["componentType"]], WIDTHS[accessor["type"]]
    assert view["byteOffset"] % 4 == 0
    assert view["byteLength"] == size * width * accessor["count"]
    assert view["byteOffset"] + view["byteLength"] <= len(binary)
    kind = {5126: "<f4", 5125: "<u4", 5123: "<u2"}[accessor["componentType"]]
    values = np.frombuffer(binary, kind, width * accessor["count"], view["byteOffset"]).reshape(-1, width)
    for name, least in (("min", values.min(0)), ("max", values.max(0))):
        assert np.allclose(accessor.get(name, least), least)
    return values


def test_another_program_reads_the_mesh_in_metres() -> None:
    (frame,) = frames(1)
    scene = trimesh.load(io.BytesIO(write_glb([frame])), file_type="glb")
    read = scene.to_geometry()
    assert np.allclose(read.bounds, 0.001 * np.array([frame.vertices.min(0), frame.vertices.max(0)]), atol=1e-6)
    assert len(read.faces) == len(frame.faces)
    assert read.is_watertight
    assert read.volume > 0  # faces still look outwards


def test_frames_with_the_same_triangles_become_morph_targets() -> None:
    made = frames(3)
    document, binary = parts(write_glb(made, seconds_per_frame=0.25))
    (mesh,) = document["meshes"]
    (primitive,) = mesh["primitives"]
    base = array(document, binary, primitive["attributes"]["POSITION"])
    assert mesh["extras"]["targetNames"] == ["frame 1", "frame 2"]
    for target, frame in zip(primitive["targets"], made[1:], strict=True):
        assert np.allclose(base + array(document, binary, target["POSITION"]), frame.vertices, atol=1e-3)
    (animation,) = document["animations"]
    (sampler,) = animation["samplers"]
    times = array(document, binary, sampler["input"])[:, 0]
    weights = array(document, binary, sampler["output"]).reshape(3, 2)
    assert times.tolist() == [0, 0.25, 0.5]
    assert weights.tolist() == [[0, 0], [1, 0], [0, 1]]
    assert animation["channels"][0]["target"] == {"node": 0, "path": "weights"}
    assert {"min", "max"} <= set(document["accessors"][sampler["input"]])
    color = array(document, binary, primitive["attributes"]["COLOR_0"])
    # sRGB 188 is half of the light
    assert (color[0] / 65535).round(2).tolist() == [1, 0.5, 0, 1]
    assert array(document, binary, primitive["attributes"]["_REGION"])[:5, 0].tolist() == [0, 1, 2, 3, 4]
    assert document["buffers"] == [{"byteLength": len(binary)}]


def test_frames_with_triangles_of_their_own_are_shown_in_turn() -> None:
    made = [Frame(str(i), ball(i).vertices, ball(i).faces) for i in range(3)]
    document, binary = parts(write_glb(made))
    assert [len(array(document, binary, m["primitives"][0]["indices"])) for m in document["meshes"]] == [60, 240, 960]
    (animation,) = document["animations"]
    for place, (channel, sampler) in enumerate(zip(animation["channels"], animation["samplers"], strict=True)):
        assert channel["target"] == {"node": place, "path": "scale"}
        assert sampler["interpolation"] == "STEP"
        assert array(document, binary, sampler["output"])[:, 0].tolist() == [float(i == place) for i in range(3)]
    assert [node["scale"][0] for node in document["nodes"][:3]] == [1, 0, 0]
    assert document["nodes"][document["scenes"][0]["nodes"][0]]["children"] == [0, 1, 2]


@pytest.mark.parametrize("alike", [True, False])
def test_a_sequence_beyond_the_formats_lengths_is_refused_as_it_grows(
    monkeypatch: pytest.MonkeyPatch, alike: bool
) -> None:
    made = frames(6)
    if not alike:
        made = [replace(frame, faces=np.roll(frame.faces, place, axis=0)) for place, frame in enumerate(made)]
    fits = len(write_glb(made[:3]))
    monkeypatch.setattr("storage.glb.MAX_BYTES", fits)
    assert len(write_glb(made[:3])) == fits
    with pytest.raises(ConfigError, match=rf"is too large \(over {fits} bytes, of which about 3 frames fit\)"):
        write_glb(made)
    monkeypatch.setattr("storage.glb.MAX_BYTES", fits - 1)  # the binary part alone would go in
    with pytest.raises(ConfigError, match="about 2 frames fit"):
        write_glb(made[:3])


def test_nothing_to_show_is_refused_and_the_same_frames_give_the_same_bytes() -> None:
    assert write_glb(frames(2)) == write_glb(frames(2))
    with pytest.raises(ValueError, match="triangles"):
        write_glb([])
    with pytest.raises(ValueError, match="triangles"):
        write_glb([Frame("empty", np.zeros((0, 3)), np.zeros((0, 3), int))])
