"""The landmarks of a scan: told in a file beside its raw files, found in its colour frames, or both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from pipeline.own_files import read_own_file
from pipeline.rawfiles import RawFiles
from registration.landmark_views import LandmarkDetector
from registration.landmarks import Landmarks, landmarks_from_json
from registration.mediapipe_landmarks import MediapipeLandmarks
from storage.jsonfile import MAX_JSON_BYTES

if TYPE_CHECKING:
    from pipeline.clean_config import CleanConfig
    from pipeline.workspace import Workspace

FILE = "landmarks.json"
"""In the scan's own folder; a session may name another by its key ``landmarks``."""


def told_landmarks(files: RawFiles, unit: str, name: str | None = None) -> Landmarks | None:
    """Landmarks that lie beside a scan, in its world, mm; None where there are none.

    Args:
        files: of the scan.
        unit: of the session, where the file tells none.
        name: of the file, where the session names it.

    Raises:
        ScanRejected: the file is no landmarks file.
    """
    path = name or FILE
    folder, _, last = path.rpartition("/")
    if path not in files.listed(folder, last.lower()):
        return None
    return landmarks_from_json(files.read(path, MAX_JSON_BYTES), files.where(path), unit)


def landmark_detector(workspace: Workspace, config: CleanConfig) -> LandmarkDetector | None:
    """The detector that a config asks for: mediapipe with the model file named, or none where none is named.

    Raises:
        ConfigError: the file is missing, another one than is told or no model, or mediapipe is not installed.
    """
    name = config.landmark_model
    if not name:
        return None
    keys = ("clean.landmark_model", "clean.landmark_sha256")
    model = read_own_file(workspace, name, config.landmark_sha256, what="landmark model", keys=keys)
    return MediapipeLandmarks(model, name)


def together(told: Landmarks | None, found: Landmarks | None) -> Landmarks | None:
    """Told landmarks, and found ones where none were told; None where there are none at all."""
    if told is None or found is None:
        return found if told is None else told
    lacking = np.setdiff1d(found.known, told.known)
    points, spread = told.points_mm.copy(), told.spread_mm.copy()
    points[lacking], spread[lacking] = found.points_mm[lacking], found.spread_mm[lacking]
    return Landmarks(points, spread)
