"""What ``fit.json`` says: the scans of one person as they were fitted."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, RootModel

from storage.frozen import Frozen

CODES_FILE = "codes.safetensors"


def rows_of(T: NDArray[np.float64]) -> tuple[tuple[float, float, float, float], ...]:
    """A 4x4 transform as the document holds it."""
    return tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in T)


class Residual(Frozen):
    """Distances of a scan's points on the head to the fitted surface, mm."""

    median: float
    p95: float


class ScanDocument(Frozen):
    """What ``fit.json`` says of one scan."""

    unit_to_mm: float = Field(description="the scan's unit in mm, as found or refined")
    T_world_from_head: tuple[tuple[float, float, float, float], ...] = Field(
        description="4x4 rigid, head frame in mm to the scan's world in mm"
    )
    residual_mm: Residual | None = Field(description="null where nothing could be fitted")
    verdict: Literal["accepted", "rejected"]
    reasons: tuple[str, ...] = ()
    alignment_score: float = Field(description="0 to 1, agreement of the found face with the template")
    points_used: int = 0
    normals: Literal["told", "turned", "ignored", "none"] = Field(
        default="none", description="used as told, used the other way round, left out as mixed, or there were none"
    )
    rays: bool = Field(default=False, description="whether the sensor's place was known, so that rays took part")
    codes: str | None = Field(
        default=None,
        description="file with tensors identity and expression/NAME; null where nothing was fitted",
    )


class FittedLandmarks(RootModel[list[tuple[float, float, float]]]):
    """``NAME.landmarks.json``: the usual 68 landmarks of a fitted head, in the scan's own frame and unit."""

    root: list[tuple[float, float, float]] = Field(min_length=68, max_length=68)


class FitDocument(Frozen):
    """``fit.json``: the scans of one person by name."""

    scans: dict[str, ScanDocument]
