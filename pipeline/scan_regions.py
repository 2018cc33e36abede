"""What registration took each part of a clean scan for: skin of a region, hair or a worn thing."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from registration.template import REGIONS
from storage.errors import StorageConflict, one_line

if TYPE_CHECKING:
    from pipeline.workspace import Workspace


def read_scan_regions(workspace: Workspace, key: str, vertices: int) -> NDArray[np.uint8]:
    """An index into ``REGIONS`` for each of so many vertices of the clean scan.

    Raises:
        ConfigError: the scan has no accepted registration.
        StorageConflict: it is of another scan, or was changed.
    """
    data = workspace.read(workspace.accepted("register", key), "scan_regions.npz")
    with np.load(io.BytesIO(data), allow_pickle=False) as told:
        region: NDArray[np.uint8] = told["region"]
    if region.shape != (vertices,) or int(region.max(initial=0)) >= len(REGIONS):
        why = f"{region.shape} regions for {vertices} vertices"
        raise StorageConflict(one_line("is of another scan", f"scan_regions.npz of {key}", why, "register it again"))
    return region
