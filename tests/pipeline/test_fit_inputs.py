"""What a fit may be given: clouds and meshes, and depth frames with the place that each point was seen from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pipeline.fit_inputs import read_scan
from registration.mesh import Mesh, mesh_to_ply
from storage.errors import ScanRejected


def test_missing_and_empty_files_are_rejected_in_a_line(tmp_path: Path) -> None:
    with pytest.raises(ScanRejected, match="missing"):
        read_scan(tmp_path / "none.ply")
    (tmp_path / "empty.ply").write_bytes(mesh_to_ply(Mesh.of(np.zeros((0, 3)), np.zeros((0, 3)))))
    with pytest.raises(ScanRejected, match="empty"):
        read_scan(tmp_path / "empty.ply")


def test_a_file_that_is_too_large_is_rejected_unread(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.fit_inputs.MAX_FILE_BYTES", 100)
    (tmp_path / "large.ply").write_bytes(bytes(101))
    with pytest.raises(ScanRejected, match=r"large\.ply: is too large \(101 bytes, at most 100\)"):
        read_scan(tmp_path / "large.ply")


def _frame(folder: Path, depth: np.ndarray, place: np.ndarray) -> None:
    """One camera at a place, unturned: in OpenGL axes it looks along -z."""
    (folder / "depth").mkdir(parents=True, exist_ok=True)
    Image.fromarray(depth.astype(np.uint16)).save(folder / "depth" / "000.png")
    pose = np.eye(4)
    pose[:3, 3] = place / 1000
    lens = {"fl_x": 20.0, "fl_y": 20.0, "cx": 4.0, "cy": 3.0, "w": 8, "h": 6}
    frame = {"file_path": "color/000.jpg", "depth_file_path": "depth/000.png", "transform_matrix": pose.tolist()}
    told = lens | {"camera_model": "OPENCV", "depth_unit_scale_factor": 0.0005, "frames": [frame]}
    (folder / "transforms.json").write_text(json.dumps(told))


def test_depth_frames_become_points_and_the_place_that_saw_them(tmp_path: Path) -> None:
    depth = np.zeros((6, 8))
    depth[1, 2], depth[4, 6] = 1000, 1200  # steps of 0.5 mm: 500 and 600 mm
    eye = np.array([30.0, -20.0, 700.0])
    _frame(tmp_path, depth, eye)
    read = read_scan(tmp_path)
    expected = [
        eye + [(2.5 - 4) / 20 * 500, -(1.5 - 3) / 20 * 500, -500],
        eye + [(6.5 - 4) / 20 * 600, -(4.5 - 3) / 20 * 600, -600],
    ]
    np.testing.assert_allclose(read.cloud.vertices, expected, atol=1e-3)
    np.testing.assert_allclose(read.sensors, [eye, eye])


def test_depth_frames_that_climb_out_are_rejected(tmp_path: Path) -> None:
    _frame(tmp_path / "scan", np.ones((6, 8)), np.zeros(3))
    told = json.loads((tmp_path / "scan" / "transforms.json").read_text())
    told["frames"][0]["depth_file_path"] = "../outside.png"
    (tmp_path / "scan" / "transforms.json").write_text(json.dumps(told))
    with pytest.raises(ScanRejected, match="leaves"):
        read_scan(tmp_path / "scan")
