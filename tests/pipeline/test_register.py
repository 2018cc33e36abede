"""The verdict over a registration, and its files."""

import io
from dataclasses import replace

import numpy as np
import pytest

from pipeline.register import registration_from_files, registration_to_files
from pipeline.register_config import RegisterThresholds, judge_register
from registration.procedural_head import head_template
from registration.register_head import Registration

GOOD = {
    "face_observed": 0.9,
    "face_residual_median_mm": 0.1,
    "face_residual_p95_mm": 0.6,
    "fit_cost": 0.12,
    "flipped_share": 0.0,
    "stretched_share": 0.001,
    "lips_crossing_share": 0.0,
    "lids_crossing_share": 0.01,
    "second_start_mm": 0.3,
    "second_start_cost": 0.01,
}


def test_a_good_registration_passes():
    assert judge_register(GOOD, RegisterThresholds()) == []
    assert judge_register(GOOD | {"skull_disagreement_mm": 0.1}, RegisterThresholds()) == []


@pytest.mark.parametrize(
    ("figure", "value", "word"),
    [
        ("face_observed", 0.2, "shows"),
        ("face_residual_median_mm", 1.4, "median"),
        ("face_residual_p95_mm", 4.0, "5 %"),
        ("fit_cost", 0.8, "misses"),
        ("flipped_share", 0.1, "turned over"),
        ("stretched_share", 0.2, "stretched"),
        ("lips_residual_p95_mm", 2.0, "lips lie"),
        ("lips_crossing_share", 0.4, "lips pass"),
        ("lids_crossing_share", 0.2, "lids pass"),
        ("second_start_mm", 6.0, "two starts"),
        ("skull_disagreement_mm", 3.0, "skull"),
        ("skull_disagreement_mm", None, "too little"),
    ],
)
def test_each_limit_rejects_with_its_number(figure, value, word):
    (reason,) = judge_register(GOOD | {figure: value}, RegisterThresholds())
    assert word in reason


def test_a_second_start_that_fits_worse_is_no_rival():
    apart = {"second_start_mm": 40.0, "second_start_cost": 0.3}
    assert judge_register(GOOD | apart, RegisterThresholds()) == []


def test_files_carry_the_registration():
    template = head_template()
    n = len(template.mesh.vertices)
    residual = np.full(n, 0.25)
    residual[:5] = np.nan
    told = Registration(
        template.mesh.vertices.astype(float), np.eye(4), residual, ~np.isnan(residual), np.array([0, 1.0, 0, 90.0]),
        np.array([0.35, 0.0]), np.array([0, 6, 7, 4], np.uint8),
    )  # fmt: skip
    files = registration_to_files(told, template)
    read = registration_from_files(files["mesh.ply"], files["frame.json"], "test")
    assert np.array_equal(read.vertices_head_mm, told.vertices_head_mm)
    assert np.array_equal(read.observed, told.observed)
    assert np.array_equal(read.residual_mm, told.residual_mm, equal_nan=True)
    assert np.array_equal(read.throat_plane, told.throat_plane)
    assert np.array_equal(read.expression, told.expression)
    again = registration_to_files(replace(read, scan_region=told.scan_region), template)
    assert again == files
    with np.load(io.BytesIO(files["scan_regions.npz"]), allow_pickle=False) as regions:
        assert np.array_equal(regions["region"], told.scan_region)
