"""The compiled way from stored rows to a batch, against column by column, and its bounds."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.row_decoding import Walk, decode_rows, empty_rows, take_rows
from pipeline.sample_format import COLUMNS, FACE, OBSERVED, SETS, encode_rows
from storage.quantise import decode_octahedral


def _block(part: str, rows: int, seed: int) -> dict[str, np.ndarray]:
    """Any stored integers at all."""
    rng = np.random.default_rng(seed)
    block = {}
    for name in SETS[part]:
        limits, width = (
            np.iinfo(COLUMNS[name].dtype),
            {"xyz": (3,), "uv": (2,), "rgb": (3,)}.get(COLUMNS[name].dimensions[-1], ()),
        )
        block[name] = rng.integers(limits.min, limits.max, (rows, *width), COLUMNS[name].dtype, endpoint=True)
    return block


def _column_by_column(part: str, block: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    told = {name: COLUMNS[name].decode(column) for name, column in block.items()}
    if part == "pairs":
        posed = told["pair_canonical"] + told["pair_displacement"]
        return {
            "canonical": told["pair_canonical"],
            "posed": posed,
            "pair_region": told["pair_region"],
            "weight": told["pair_weight"],
        }
    if part == "color":
        return {"colored": told["color_position"], "color": told["color_value"]}
    observed = (told[f"{part}_flags"] & OBSERVED) != 0
    if part == "surface":
        normal, face = decode_octahedral(told["surface_normal"]), (told["surface_flags"] & FACE) != 0
        return {
            "surface": told["surface_position"],
            "normal": normal,
            "region": told["surface_region"],
            "face": face,
            "observed": observed,
        }
    return {part: told[f"{part}_position"], f"{part}_sdf": told[f"{part}_distance"], f"{part}_observed": observed}


@pytest.mark.parametrize("part", SETS)
@pytest.mark.parametrize(("rows", "stride"), [(1, 1), (2, 1), (257, 1), (257, 101), (257, 256)])
def test_a_walk_takes_the_rows_it_names_bit_for_bit(part: str, rows: int, stride: int) -> None:
    block, row, count = _block(part, rows, stride), rows // 2, rows + 7
    decoded = empty_rows(part, count + 5)
    for column in decoded.values():
        column[...] = 0
    take_rows(part, block, Walk(row, stride), decoded, 2, 2 + count)
    order = (row + stride * np.arange(count)) % rows
    want = _column_by_column(part, {name: column[order] for name, column in block.items()})
    assert decoded.keys() == want.keys()
    for name, column in decoded.items():
        assert column.dtype == want[name].dtype
        assert np.array_equal(column[2 : 2 + count], want[name])
        assert not column[:2].any()
        assert not column[2 + count :].any()


_COORDINATE = st.floats(-320, 320, width=32)
_POINTS = st.lists(st.tuples(_COORDINATE, _COORDINATE, _COORDINATE), min_size=1, max_size=20)
_ROUNDING_MM = 4e-5
"""Of float32 at 327 mm, twice."""


@settings(max_examples=60)
@given(points=_POINTS, others=_POINTS, numbers=st.lists(st.floats(0, 1), min_size=20, max_size=20))
def test_what_is_stored_comes_back_within_the_stated_bounds(
    points: list[tuple[float, float, float]], others: list[tuple[float, float, float]], numbers: list[float]
) -> None:
    count = min(len(points), len(others))
    one, other = (np.array(some[:count], np.float32) for some in (points, others))
    number = np.array(numbers[:count], np.float32)
    direction = other + np.float32([0, 0, 1e-3])
    length = np.linalg.norm(direction.astype(float), axis=1, keepdims=True)
    normal = np.where(length > 0, direction / np.maximum(length, 1e-9), (0, 0, 1))
    yes, region = number > 0.5, (number * 7).astype(np.uint8)
    surface = {"surface": one, "normal": normal, "region": region, "face": yes, "observed": ~yes}
    told = decode_rows("surface", encode_rows("surface", surface, "here"))
    assert np.abs(told["surface"] - one).max() <= 0.005 + _ROUNDING_MM
    cosine = (told["normal"].astype(float) * normal).sum(1).clip(-1, 1)
    assert np.degrees(np.arccos(cosine)).max() <= 0.65
    assert np.array_equal(told["region"], region)
    assert np.array_equal(told["face"], yes)
    assert np.array_equal(told["observed"], ~yes)
    for part, most_mm, bound_mm in (("near", 160, 0.0025), ("space", 650, 0.01)):
        rows = {part: one, f"{part}_sdf": (2 * number - 1) * most_mm, f"{part}_observed": yes}
        told = decode_rows(part, encode_rows(part, rows, "here"))
        assert np.abs(told[part] - one).max() <= 0.005 + _ROUNDING_MM
        assert np.abs(told[f"{part}_sdf"] - rows[f"{part}_sdf"]).max() <= bound_mm + _ROUNDING_MM
        assert np.array_equal(told[f"{part}_observed"], yes)
    value = np.repeat(region[:, None], 3, 1)
    told = decode_rows("color", encode_rows("color", {"colored": one, "color": value}, "here"))
    assert np.abs(told["colored"] - one).max() <= 0.005 + _ROUNDING_MM
    assert np.array_equal(told["color"], value)
    posed = one + 0.5 * (other - one)
    pairs = {"canonical": one, "posed": posed, "pair_region": region, "weight": number}
    told = decode_rows("pairs", encode_rows("pairs", pairs, "here"))
    assert np.abs(told["canonical"] - one).max() <= 0.005 + _ROUNDING_MM
    assert np.abs(told["posed"] - posed).max() <= 0.005 + 2 * _ROUNDING_MM
    assert np.abs(told["weight"] - number).max() <= 0.5 / 255 + 1e-6
    assert np.array_equal(told["pair_region"], region)
