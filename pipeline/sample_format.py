"""Training samples as arrays, and how they are stored: all in the head frame, in mm."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from registration.template import REGIONS
from storage.quantise import Column, encode_octahedral
from storage.shards import encode_group

SAMPLES_ROOT = "samples.zarr"
"""The Zarr hierarchy in a workspace; a scan's group is SAMPLES_ROOT/SUBJECT/EXPRESSION."""

FACE, OBSERVED = 1, 2
"""Bits of a sample's flags: it lies on the face; its nearest surface was seen and not guessed."""


@dataclass(frozen=True)
class IdentitySamples:
    """Samples of a subject's canonical scan, for the identity field. Rows are in random order.

    Attributes:
        surface: (N, 3) float32 on the clean surface.
        normal: (N, 3) float32 unit, outward.
        region: (N,) uint8 index into ``REGIONS``.
        face: (N,) bool, on the face.
        observed: (N,) bool, seen by the rig, not filled in.
        near: (M, 3) float32 around the surface.
        near_sdf: (M,) float32 signed distance, negative inside.
        near_observed: (M,) bool, the nearest surface was seen.
        space: (S, 3) float32 in the space box.
        space_sdf: (S,) float32.
        space_observed: (S,) bool.
        anchors: (K, 3) float32 the subject's anchors, from its registration.
    """

    surface: NDArray[np.float32]
    normal: NDArray[np.float32]
    region: NDArray[np.uint8]
    face: NDArray[np.bool_]
    observed: NDArray[np.bool_]
    near: NDArray[np.float32]
    near_sdf: NDArray[np.float32]
    near_observed: NDArray[np.bool_]
    space: NDArray[np.float32]
    space_sdf: NDArray[np.float32]
    space_observed: NDArray[np.bool_]
    anchors: NDArray[np.float32]


@dataclass(frozen=True)
class DeformationSamples:
    """Canonical-to-posed correspondences of a scan, for the deformation field. Rows are in random order.

    Attributes:
        canonical: (P, 3) float32 on and around the subject's canonical registration.
        posed: (P, 3) float32 the same material points in the scan's expression.
        region: (P,) uint8 index into ``REGIONS``.
        weight: (P,) float32 from 0 to 1, confidence in the correspondence.
    """

    canonical: NDArray[np.float32]
    posed: NDArray[np.float32]
    region: NDArray[np.uint8]
    weight: NDArray[np.float32]


POSITION_STEP_MM = 0.01
NEAR_STEP_MM = 0.005
SPACE_STEP_MM = 0.02
WEIGHT_STEP = 1 / 255
CENTRE_MM = -327.68
"""What a stored position of 0 stands for."""

_REGION_ATTRIBUTES = {"flag_values": list(range(len(REGIONS))), "flag_meanings": " ".join(REGIONS)}
_FLAG_ATTRIBUTES = {"flag_masks": [FACE, OBSERVED], "flag_meanings": "face observed"}
_NORMAL_ATTRIBUTES = {"encoding": "octahedral, two bytes; code 0..254 maps to -1..1", "frame": "head"}


def _position(name: str, rows: str, meaning: str) -> Column:
    where = {"frame": "head"}
    return Column(name, "uint16", (rows, "xyz"), meaning, POSITION_STEP_MM, CENTRE_MM, "mm", where)


def _distance(name: str, rows: str, step: float) -> Column:
    return Column(name, "int16", (rows,), "signed distance, negative inside", step, 0.0, "mm")


def _flags(name: str, rows: str) -> Column:
    return Column(name, "uint8", (rows,), "what is known of the nearest surface", attributes=_FLAG_ATTRIBUTES)


def _region(name: str, rows: str) -> Column:
    return Column(name, "uint8", (rows,), "region of the head", attributes=_REGION_ATTRIBUTES)


COLUMNS: Mapping[str, Column] = {
    column.name: column
    for column in (
        _position("surface_position", "surface", "point on the clean surface"),
        Column("surface_normal", "uint8", ("surface", "uv"), "outward unit normal", attributes=_NORMAL_ATTRIBUTES),
        _region("surface_region", "surface"),
        _flags("surface_flags", "surface"),
        _position("near_position", "near", "point around the clean surface"),
        _distance("near_distance", "near", NEAR_STEP_MM),
        _flags("near_flags", "near"),
        _position("space_position", "space", "point in the space box"),
        _distance("space_distance", "space", SPACE_STEP_MM),
        _flags("space_flags", "space"),
        _position("color_position", "color", "point on the clean surface, seen by the rig"),
        Column("color_value", "uint8", ("color", "rgb"), "sRGB"),
        _position("pair_canonical", "pair", "point in canonical space"),
        Column(
            "pair_displacement",
            "int16",
            ("pair", "xyz"),
            "posed minus canonical position",
            POSITION_STEP_MM,
            0.0,
            "mm",
            {"frame": "head"},
        ),
        _region("pair_region", "pair"),
        Column("pair_weight", "uint8", ("pair",), "confidence from 0 to 1", WEIGHT_STEP, 0.0, "1"),
        Column(
            "anchors", "float32", ("anchor", "xyz"), "anchor of the subject", unit="mm", attributes={"frame": "head"}
        ),
    )
}

SETS: Mapping[str, tuple[str, ...]] = {
    "surface": ("surface_position", "surface_normal", "surface_region", "surface_flags"),
    "near": ("near_position", "near_distance", "near_flags"),
    "space": ("space_position", "space_distance", "space_flags"),
    "color": ("color_position", "color_value"),
    "pairs": ("pair_canonical", "pair_displacement", "pair_region", "pair_weight"),
}
"""The columns of each set of samples, whose rows belong together."""

Raw = Mapping[str, NDArray]
"""Stored values by column name, all with the same rows."""


def quantise_samples(samples: IdentitySamples | DeformationSamples, where: str) -> dict[str, NDArray]:
    """Stored values by column name.

    Args:
        samples: as the sample step made them.
        where: the scan's key, for the message.

    Raises:
        ScanRejected: a point lies too far out to be stored.
    """
    rows = dict(vars(samples))
    if isinstance(samples, DeformationSamples):
        rows["pair_region"] = rows["region"]
        return encode_rows("pairs", rows, where)
    stored = {"anchors": samples.anchors.astype(np.float32)}
    for part in ("surface", "near", "space"):
        stored |= encode_rows(part, rows, where)
    return stored


def encode_rows(part: str, rows: Mapping[str, NDArray], where: str) -> dict[str, NDArray]:
    """Stored values of a set's rows, given as a batch holds them; ``row_decoding`` leads back.

    Raises:
        ScanRejected: a point lies too far out to be stored.
    """
    if part == "pairs":
        canonical = COLUMNS["pair_canonical"].quantise(rows["canonical"], where)
        posed = COLUMNS["pair_canonical"].quantise(rows["posed"], where)
        steps = posed.astype(np.int32) - canonical  # on the grid, so that posed keeps the position's own error bound
        return {
            "pair_canonical": canonical,
            "pair_displacement": COLUMNS["pair_displacement"].quantise(steps * POSITION_STEP_MM, where),
            "pair_region": rows["pair_region"],
            "pair_weight": COLUMNS["pair_weight"].quantise(rows["weight"], where),
        }
    if part == "color":
        position = COLUMNS["color_position"].quantise(rows["colored"], where)
        return {"color_position": position, "color_value": rows["color"]}
    position = COLUMNS[f"{part}_position"].quantise(rows[part], where)
    if part == "surface":
        return {
            "surface_position": position,
            "surface_normal": encode_octahedral(rows["normal"]),
            "surface_region": rows["region"],
            "surface_flags": (rows["face"] * FACE + rows["observed"] * OBSERVED).astype(np.uint8),
        }
    return {
        f"{part}_position": position,
        f"{part}_distance": COLUMNS[f"{part}_distance"].quantise(rows[f"{part}_sdf"], where),
        f"{part}_flags": (rows[f"{part}_observed"] * OBSERVED).astype(np.uint8),
    }


def encode_samples(stored: Raw, attributes: Mapping[str, Any]) -> dict[str, bytes]:
    """The objects of a scan's Zarr group, bytes by path inside the group."""
    return encode_group({name: (COLUMNS[name], stored[name]) for name in COLUMNS if name in stored}, attributes)


def row_bytes(part: str) -> int:
    """Bytes that a decoded but still quantised row of a set takes in memory."""
    width = {"xyz": 3, "uv": 2, "rgb": 3}
    columns = (COLUMNS[name] for name in SETS[part])
    return sum(np.dtype(c.dtype).itemsize * width.get(c.dimensions[-1], 1) for c in columns)
