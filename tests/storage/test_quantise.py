import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from storage.errors import ScanRejected
from storage.quantise import Column, decode_octahedral, encode_octahedral


def test_normals_are_off_by_less_than_a_degree() -> None:
    rng = np.random.default_rng(0)
    normals = rng.normal(size=(100_000, 3))
    axes = np.concatenate([np.eye(3), -np.eye(3)])
    normals = np.concatenate([normals / np.linalg.norm(normals, axis=1, keepdims=True), axes])
    decoded = decode_octahedral(encode_octahedral(normals)).astype(float)
    angle_deg = np.degrees(np.arccos(np.clip((normals * decoded).sum(1), -1, 1)))
    assert angle_deg.max() < 0.65
    assert angle_deg[-6:].max() < 1e-4
    assert np.allclose(np.linalg.norm(decoded, axis=1), 1, atol=1e-6)


@given(st.floats(-327, 327))
def test_a_position_comes_back_within_half_a_step(value: float) -> None:
    column = Column("p", "uint16", ("rows",), "", 0.01, -327.68, "mm")
    assert abs(float(column.decode(column.quantise(np.array([value]), "here"))[0]) - value) < 0.00502


@pytest.mark.parametrize("value", [400.0, -328.0, np.nan, np.inf])
def test_what_does_not_fit_is_refused_with_the_place(value: float) -> None:
    column = Column("near_position", "uint16", ("rows",), "", 0.01, -327.68, "mm")
    with pytest.raises(
        ScanRejected, match=r"001/smile: near_position does not fit \(1 values lie outside -327.7 to 327"
    ):
        column.quantise(np.array([0.0, value]), "001/smile")
