"""transforms.json: the cameras of a depth scan, in nerfstudio's conventions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from registration.views import Intrinsics, distort, pixel_rays
from storage.errors import ScanRejected, one_line

MAX_FRAMES = 2000
MAX_PIXELS = 400_000_000
"""Of all frames of a scan together: about nine bytes of memory each, with colour."""
MAX_TRANSLATION_M = 1e4
MAX_LENS_ERROR_PX = 0.1
GL_FROM_CV = np.diag([1.0, -1.0, -1.0, 1.0])
_REMEDY = "correct transforms.json or export the scan again"


class _Lens(BaseModel):
    """What may stand in the file for all frames, or in each frame."""

    model_config = ConfigDict(extra="ignore", frozen=True, allow_inf_nan=True)

    fl_x: float | None = None
    fl_y: float | None = None
    cx: float | None = None
    cy: float | None = None
    w: int | None = Field(default=None, le=1_000_000)
    h: int | None = Field(default=None, le=1_000_000)
    k1: float | None = None
    k2: float | None = None
    k3: float | None = None
    p1: float | None = None
    p2: float | None = None
    k4: float | None = None
    k5: float | None = None
    k6: float | None = None


class _Frame(_Lens):
    file_path: str | None = None
    depth_file_path: str | None = None
    transform_matrix: list[list[float]]


class _Transforms(_Lens):
    camera_model: str = "PINHOLE"
    depth_unit_scale_factor: float = 0.001
    frames: list[_Frame] = Field(max_length=MAX_FRAMES)


@dataclass(frozen=True)
class Frame:
    """One frame as told, checked.

    Attributes:
        name: of the frame, for messages.
        depth_path, color_path: relative to the scan's folder.
        intrinsics: in pixels.
        T_world_from_camera: (4, 4) rigid, mm, camera axes x right, y down, z forward.
    """

    name: str
    depth_path: str
    color_path: str | None
    intrinsics: Intrinsics
    T_world_from_camera: NDArray[np.float64]


def read_transforms(told: dict[str, Any], where: str) -> tuple[list[Frame], float]:
    """Check the cameras of a depth scan and bring them to this project's conventions.

    Args:
        told: the content of ``transforms.json``.
        where: name of the file, for messages.

    Returns:
        The frames, and the millimetres of one step of a depth image.

    Raises:
        ScanRejected: a field is missing or wrong; an intrinsic is not believable; a pose is not finite, mirrored,
            transposed, scaled or no rotation.
    """
    try:
        transforms = _Transforms.model_validate(told)
    except ValidationError as error:
        first = error.errors()[0]
        raise ScanRejected(one_line(*_fault(first["loc"], first["msg"], first["input"], where), _REMEDY)) from error
    if transforms.camera_model not in ("PINHOLE", "OPENCV", "SIMPLE_PINHOLE", "SIMPLE_RADIAL", "RADIAL"):
        why = f"found {transforms.camera_model}"
        raise ScanRejected(one_line("camera_model is not known", where, why, "undistort to PINHOLE or OPENCV"))
    scale = transforms.depth_unit_scale_factor
    if not (np.isfinite(scale) and scale > 0):
        why = f"found {scale}"
        raise ScanRejected(one_line("depth_unit_scale_factor is no positive number", where, why, _REMEDY))
    frames = [_frame(transforms, i, where) for i in range(len(transforms.frames))]
    pixels = sum(frame.intrinsics.width * frame.intrinsics.height for frame in frames)
    if pixels > MAX_PIXELS:
        why = f"{pixels} pixels in {len(frames)} frames, at most {MAX_PIXELS} are read"
        raise ScanRejected(one_line("frames are too large", where, why, "export fewer or smaller frames"))
    return frames, scale * 1000.0


def _fault(place: tuple[int | str, ...], message: str, found: object, where: str) -> tuple[str, str, str]:
    """What, where and why of a value that is not of the kind that belongs in its place."""
    if place[:1] == ("frames",) and len(place) > 1:
        where, place = f"{where} frame {place[1]}", place[2:]
    at = ".".join(str(part) for part in place)
    if message == "Field required":
        return f"{at} is missing", where, "the key is not there"
    comma = "; numbers need a decimal point" if isinstance(found, str) and "," in found else ""
    return f"{at} is wrong", where, f"{message[:1].lower()}{message[1:]}, found {repr(found)[:60]}{comma}"


def _frame(transforms: _Transforms, i: int, where: str) -> Frame:
    frame = transforms.frames[i]
    at = f"{where} frame {i}"
    if frame.depth_file_path is None:
        raise ScanRejected(one_line("has no depth", at, "no depth_file_path", "export the scan with its depth images"))
    depth_path = frame.depth_file_path.replace("\\", "/")  # written on Windows
    return Frame(
        name=depth_path.rsplit("/", 1)[-1].rsplit(".", 1)[0],
        depth_path=depth_path,
        color_path=None if frame.file_path is None else frame.file_path.replace("\\", "/"),
        intrinsics=_intrinsics(transforms, frame, at),
        T_world_from_camera=_pose(frame.transform_matrix, at),
    )


def _intrinsics(transforms: _Transforms, frame: _Frame, at: str) -> Intrinsics:
    def told(name: str, default: float | None = None) -> float:
        own = getattr(frame, name)
        value = getattr(transforms, name) if own is None else own
        value = default if value is None else value
        if value is None:
            raise ScanRejected(one_line(f"{name} is missing", at, "neither in the frame nor in the file", _REMEDY))
        if not np.isfinite(value):
            raise ScanRejected(one_line(f"{name} is not finite", at, f"found {value}", _REMEDY))
        return float(value)

    width, height = int(told("w")), int(told("h"))
    if width <= 0 or height <= 0:
        raise ScanRejected(one_line("image size is not positive", at, f"found {width}x{height}", _REMEDY))
    fx = told("fl_x")
    fy = told("fl_y", fx)
    if min(fx, fy) <= 0:
        why = f"fl_x {fx:g}, fl_y {fy:g}"
        raise ScanRejected(one_line("focal length is not positive", at, why, _REMEDY))
    if not (0.1 < fx / width < 20 and 0.5 < fy / fx < 2):
        why = f"fl_x {fx:g} and fl_y {fy:g} pixels at a width of {width}"
        raise ScanRejected(one_line("focal length is not believable", at, why, "give fl_x and fl_y in pixels"))
    cx, cy = told("cx", width / 2), told("cy", height / 2)
    if not (-width < cx < 2 * width and -height < cy < 2 * height):
        why = f"cx {cx:g}, cy {cy:g} in an image of {width}x{height}"
        raise ScanRejected(one_line("principal point lies far outside the image", at, why, _REMEDY))
    for name in ("k4", "k5", "k6"):
        if told(name, 0.0) != 0:
            why = f"found {told(name):g}, known are k1 k2 k3 p1 p2"
            raise ScanRejected(one_line(f"lens distortion {name} is not known", at, why, "undistort the frames"))
    k1, k2, p1, p2, k3 = (told(name, 0.0) for name in ("k1", "k2", "p1", "p2", "k3"))
    camera = Intrinsics(width, height, fx, fy, cx, cy, (k1, k2, p1, p2, k3))
    if _folds(camera):
        why = f"k1 {k1:g}, k2 {k2:g}, k3 {k3:g}, p1 {p1:g}, p2 {p2:g} have no inverse within the image"
        remedy = "calibrate the lens again, or undistort the frames"
        raise ScanRejected(one_line("lens distortion is not believable", at, why, remedy))
    return camera


def _folds(camera: Intrinsics) -> bool:
    """Whether two rays meet one pixel, or none does, so that the distortion can't be taken out."""
    if not any(camera.distortion):
        return False
    u, v = (grid.ravel() for grid in np.meshgrid(np.linspace(0, camera.width, 9), np.linspace(0, camera.height, 9)))
    with np.errstate(all="ignore"):
        x, y = pixel_rays(camera, u, v)
        back_x, back_y = distort(x, y, camera.distortion)
        error = np.hypot(back_x * camera.fx + camera.cx - u, back_y * camera.fy + camera.cy - v)
        h = 1e-4
        right, down = distort(x + h, y, camera.distortion), distort(x, y + h, camera.distortion)
        turned = (right[0] - back_x) * (down[1] - back_y) - (right[1] - back_y) * (down[0] - back_x)
    return not bool((error < MAX_LENS_ERROR_PX).all() and (turned > 0).all())


def _pose(rows: list[list[float]], at: str) -> NDArray[np.float64]:
    if [len(row) for row in rows] not in ([4] * 4, [4] * 3):
        raise ScanRejected(one_line("transform_matrix is not 4x4", at, "", _REMEDY))
    pose = np.eye(4)
    pose[: len(rows)] = rows
    if not np.isfinite(pose).all():
        raise ScanRejected(one_line("transform_matrix is not finite", at, "it holds NaN or infinity", _REMEDY))
    if np.abs(pose).max() > MAX_TRANSLATION_M:
        why = f"it holds {np.abs(pose).max():g}, at most {MAX_TRANSLATION_M:g} is read"
        raise ScanRejected(one_line("transform_matrix is not believable", at, why, "write translations in metres"))
    if not np.allclose(pose[3], [0, 0, 0, 1], atol=1e-6):
        if np.allclose(pose[:, 3], [0, 0, 0, 1], atol=1e-6):
            why = "the translation stands in the last row"
            raise ScanRejected(one_line("transform_matrix is transposed", at, why, "write it row by row"))
        why = f"last row {pose[3].tolist()}"
        raise ScanRejected(one_line("transform_matrix is no rigid motion", at, why, _REMEDY))
    rotation = pose[:3, :3]
    scale = np.cbrt(abs(np.linalg.det(rotation)))
    if np.linalg.det(rotation) < 0:
        why = "its determinant is negative"
        raise ScanRejected(one_line("transform_matrix is mirrored", at, why, "use right-handed OpenGL camera axes"))
    if abs(scale - 1) > 1e-3 and np.allclose(rotation @ rotation.T, scale**2 * np.eye(3), atol=1e-3 * scale**2):
        why = f"by {scale:.4g}"
        raise ScanRejected(one_line("transform_matrix is scaled", at, why, "give rigid poses in metres"))
    if not np.allclose(rotation @ rotation.T, np.eye(3), atol=2e-3):
        raise ScanRejected(one_line("transform_matrix holds no rotation", at, "its axes are not orthonormal", _REMEDY))
    left, _, right = np.linalg.svd(rotation)  # poses are often written with few digits
    pose[:3, :3] = left @ right
    pose[:3, 3] *= 1000.0
    return np.asarray(pose @ GL_FROM_CV)
