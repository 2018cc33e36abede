"""Read what a fit is given: a cloud or mesh in PLY or OBJ, or a folder of depth frames with their poses."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pipeline.rawfiles import MAX_FILE_BYTES, SessionFiles
from pipeline.transforms import Frame, read_transforms
from registration.mesh import Mesh, mesh_from_ply
from registration.views import pixel_rays
from storage.bounded import read_bounded
from storage.errors import ScanRejected, one_line
from storage.images import MAX_IMAGE_BYTES, read_depth_png
from storage.jsonfile import MAX_JSON_BYTES, read_json
from storage.obj import read_obj

TRANSFORMS = "transforms.json"
_POINTS_A_SCAN = 2_000_000


@dataclass(frozen=True)
class FitInput:
    """One scan as it was read.

    Attributes:
        cloud: in its own frame and unit; depth frames in mm.
        sensors: (n, 3) where each point was seen from, where the files tell it; else None.
    """

    cloud: Mesh
    sensors: NDArray[np.float64] | None = None


def read_scan(path: Path) -> FitInput:
    """Read a PLY or OBJ file, mesh or cloud, or a folder with ``transforms.json`` and depth images.

    Raises:
        ScanRejected: it is missing, too large, of another kind, damaged, or empty.
    """
    if (path / TRANSFORMS).is_file():
        read = _read_depth_frames(path)
    elif path.is_file():
        read = FitInput(_read_mesh(path))
    else:
        remedy = f"name a PLY or OBJ file, or a folder with {TRANSFORMS}"
        raise ScanRejected(one_line("is missing", str(path), "no such file", remedy))
    if len(read.cloud.vertices) == 0:
        raise ScanRejected(one_line("is empty", str(path), "no points", "export the scan again"))
    return read


def _read_mesh(path: Path) -> Mesh:
    data = read_bounded(path, MAX_FILE_BYTES, ScanRejected)
    if path.suffix.lower() == ".obj":
        told = read_obj(data, str(path))
        return Mesh.of(told.vertices, told.triangles)
    return mesh_from_ply(data, str(path))


def _read_depth_frames(folder: Path) -> FitInput:
    """All frames' points in their world, mm, and the camera that saw each."""
    files = SessionFiles(folder, folder, str(folder))
    where = files.where(TRANSFORMS)
    frames, step_mm = read_transforms(read_json(files.read(TRANSFORMS, MAX_JSON_BYTES), where), where)
    most = _POINTS_A_SCAN // max(len(frames), 1)
    points, eyes = [], []
    for frame in frames:
        size = (frame.intrinsics.width, frame.intrinsics.height)
        depth = read_depth_png(files.read(frame.depth_path, MAX_IMAGE_BYTES), files.where(frame.depth_path), size)
        points.append(_seen(frame, depth.astype(np.float64) * step_mm, most))
        eyes.append(np.broadcast_to(frame.T_world_from_camera[:3, 3], points[-1].shape))
    together = np.concatenate(points) if points else np.zeros((0, 3))
    return FitInput(Mesh.of(together, np.zeros((0, 3))), np.concatenate(eyes) if eyes else None)


def _seen(frame: Frame, depth_mm: NDArray[np.float64], most: int) -> NDArray[np.float64]:
    """World places (n, 3) of a frame's pixels that have depth, at most about so many, evenly over the picture."""
    stride = max(1, int(np.ceil(np.sqrt(np.count_nonzero(depth_mm) / max(most, 1)))))
    v, u = np.nonzero(depth_mm[::stride, ::stride])
    u, v = u * stride, v * stride
    x, y = pixel_rays(frame.intrinsics, u + 0.5, v + 0.5)
    depth = depth_mm[v, u]
    camera = np.stack([x * depth, y * depth, depth], 1)
    return np.asarray(camera @ frame.T_world_from_camera[:3, :3].T + frame.T_world_from_camera[:3, 3])
