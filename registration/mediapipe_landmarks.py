"""A detector of landmarks by mediapipe, with a model file of the user's: an option, never needed."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from storage.errors import ConfigError, one_line

FACE_MESH_TO_68 = np.array(
    [
        162, 234, 93, 58, 172, 136, 149, 148, 152, 377, 378, 365, 397, 288, 323, 454, 389,
        71, 63, 105, 66, 107, 336, 296, 334, 293, 301, 168, 197, 5, 4, 75, 97, 2, 326, 305,
        33, 160, 158, 133, 153, 144, 362, 385, 387, 263, 373, 380,
        61, 39, 37, 0, 267, 269, 291, 405, 314, 17, 84, 181, 78, 82, 13, 312, 308, 317, 14, 87,
    ]
)  # fmt: skip
"""(68,) point of mediapipe's face mesh that lies nearest to each of the usual landmarks."""


class MediapipeLandmarks:
    """Mediapipe's face landmarker as a ``LandmarkDetector``.

    Args:
        model: the user's ``face_landmarker.task``.
        where: it was read from, for messages.

    Raises:
        ConfigError: mediapipe isn't installed, or the file is no model of its kind.
    """

    def __init__(self, model: bytes, where: str) -> None:
        try:
            import mediapipe  # type: ignore[import-not-found]
            from mediapipe.tasks.python import BaseOptions, vision  # type: ignore[import-not-found]
        except ImportError as error:
            remedy = "install it with 'pip install mediapipe', or leave landmark_model empty"
            raise ConfigError(one_line("mediapipe is not installed", "landmark_model", str(error), remedy)) from error
        self._mediapipe: Any = mediapipe
        options = vision.FaceLandmarkerOptions(
            base_options=BaseOptions(model_asset_buffer=model),
            running_mode=vision.RunningMode.IMAGE,
            num_faces=1,
        )
        try:
            self._landmarker: Any = vision.FaceLandmarker.create_from_options(options)
        except (RuntimeError, ValueError) as error:
            remedy = "give mediapipe's face_landmarker.task"
            raise ConfigError(one_line("is no face landmarker", where, str(error)[:200], remedy)) from error

    def detect(self, color: NDArray[np.uint8]) -> NDArray[np.float64] | None:
        """See ``LandmarkDetector``."""
        image = self._mediapipe.Image(
            image_format=self._mediapipe.ImageFormat.SRGB, data=np.ascontiguousarray(color, np.uint8)
        )
        faces = self._landmarker.detect(image).face_landmarks
        if not faces:
            return None
        height, width = color.shape[:2]
        chosen = [faces[0][i] for i in FACE_MESH_TO_68]
        return np.array([[point.x * width, point.y * height, 1.0] for point in chosen], np.float64)
