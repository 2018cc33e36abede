"""Landmarks beside a scan come in with it; what is no landmarks file rejects the scan by name."""

import json

import numpy as np
import pytest

from pipeline.clean_config import CleanConfig
from pipeline.config import PipelineConfig
from pipeline.ingest import ingest_session, load_landmarks
from pipeline.scan_landmarks import landmark_detector, together
from registration.landmarks import Landmarks
from storage.digest import digest_bytes
from storage.errors import ConfigError, StorageConflict


def _write(session, scan: str, told: object, name: str = "landmarks.json") -> None:
    (session / scan / name).write_text(told if isinstance(told, str) else json.dumps(told))


@pytest.mark.parametrize("layout", ["depth_frames", "view_clouds", "fused_mesh"])
def test_landmarks_come_in_with_their_scan(workspace, make_session, layout):
    session = make_session(layout=layout, unit="cm")
    _write(session, "001/neutral", {"landmarks": {"nose_tip": [1, 2, 3], "36": [0, 0, 0.5]}})
    assert ingest_session(workspace, session).accepted == ["001/neutral", "001/smile"]
    assert load_landmarks(workspace, "001/smile") is None
    found = load_landmarks(workspace, "001/neutral")
    np.testing.assert_allclose(found.points_mm[found.known], [[10, 20, 30], [0, 0, 5]])
    manifest = workspace.manifest("ingest", "001/neutral")
    assert manifest.figures["landmarks"] == 2
    assert "landmarks.json" in manifest.inputs
    assert "landmarks" not in workspace.manifest("ingest", "001/smile").figures


def test_new_landmarks_are_a_changed_scan(workspace, make_session):
    session = make_session()
    ingest_session(workspace, session)
    before = workspace.manifest("ingest", "001/smile").extra("content_digest")
    _write(session, "001/smile", {"landmarks": {"chin": [1, 2, 3]}})
    ingest_session(workspace, session)
    assert workspace.manifest("ingest", "001/smile").extra("content_digest") != before
    _write(session, "001/smile", {"landmarks": {"chin": [1, 2, 4]}})
    with pytest.raises(StorageConflict, match="changed after ingest"):
        load_landmarks(workspace, "001/smile")


def test_a_session_may_name_the_file(workspace, make_session):
    session = make_session(landmarks="marks/points.json")
    (session / "001/neutral/marks").mkdir()
    _write(session, "001/neutral", [[i, 0.0, 0.0] for i in range(68)], "marks/points.json")
    _write(session, "001/smile", [[i, 0.0, 0.0] for i in range(68)])
    ingest_session(workspace, session)
    assert len(load_landmarks(workspace, "001/neutral").known) == 68
    assert load_landmarks(workspace, "001/smile") is None


def test_what_is_no_landmarks_file_rejects_its_scan_alone(workspace, make_session):
    session = make_session()
    _write(session, "001/smile", {"landmarks": {"nose": [1, 2, 3]}})
    report = ingest_session(workspace, session)
    assert report.rejected == ["001/smile"]
    (reason,) = workspace.manifest("ingest", "001/smile").reasons
    assert reason.startswith("001/smile/landmarks.json: landmark 'nose' is not known")


def test_told_landmarks_win_over_found_ones():
    def some(**points: list[float]) -> Landmarks:
        out = np.full((68, 3), np.nan)
        for name, point in points.items():
            out[int(name[1:])] = point
        return Landmarks(out, np.where(np.isfinite(out[:, 0]), 2.0, np.nan))

    told, found = some(p3=[1, 1, 1]), some(p3=[9, 9, 9], p4=[2, 2, 2])
    both = together(told, found)
    assert both.known.tolist() == [3, 4]
    np.testing.assert_array_equal(both.points_mm[3], [1, 1, 1])
    assert together(None, None) is None
    assert together(told, None) is told
    assert together(None, found) is found


def test_no_model_means_no_detector_and_a_wrong_one_is_named(workspace):
    assert landmark_detector(workspace, CleanConfig()) is None
    told = CleanConfig(landmark_model="face.task", landmark_sha256=digest_bytes(b"a model"))
    with pytest.raises(ConfigError, match="landmark model is missing"):
        landmark_detector(workspace, told)
    workspace.store.put("face.task", b"another model")
    with pytest.raises(ConfigError, match=r"is another landmark model .*; set clean\.landmark_sha256 to that"):
        landmark_detector(workspace, told)
    workspace.store.put("face.task", b"a model")
    with pytest.raises(ConfigError, match=r"mediapipe is not installed|is no face landmarker"):
        landmark_detector(workspace, told)


def test_another_model_makes_stale_and_none_leaves_the_digests_as_they_were():
    def digest(**told: str) -> str:
        return PipelineConfig(clean=CleanConfig(**told)).digest_of_step("clean")

    assert digest(landmark_model="face.task", landmark_sha256="0") != digest(landmark_model="face.task")
    assert "landmark_sha256" not in PipelineConfig().resolved("clean")
