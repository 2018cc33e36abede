"""How the quality of the data drifts: figures by rig and month, so that a rig that goes wrong is seen early."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.inputs import Book

FIGURES = (
    ("clean", "spread_median_mm"),
    ("clean", "pose_shift_median_mm"),
    ("clean", "coverage"),
    ("register", "face_residual_median_mm"),
    ("register", "face_residual_p95_mm"),
)
"""Step and figure; where a step does not measure one, it is left out."""


@dataclass(frozen=True)
class DriftRow:
    """One rig in one month.

    Attributes:
        rig: as the sessions call it.
        month: of capture, YYYY-MM.
        scans: how many were taken in.
        rejected_share: of them, at any step.
        medians: of each figure of ``FIGURES``; None where no scan has it.
    """

    rig: str
    month: str
    scans: int
    rejected_share: float
    medians: Sequence[float | None]


def drift(book: Book) -> list[DriftRow]:
    """The figures by rig and month, sorted."""
    groups: dict[tuple[str, str], list[str]] = {}
    for key in book.scans():
        taken = book.manifest("ingest", key)
        if taken is not None:
            told = taken.model_extra or {}
            captured = str((told.get("told_of_session") or {}).get("captured_at", ""))
            groups.setdefault((str(told.get("rig", "")), captured[:7]), []).append(key)
    return [_row(book, rig, month, keys) for (rig, month), keys in sorted(groups.items())]


def _row(book: Book, rig: str, month: str, keys: Sequence[str]) -> DriftRow:
    rejected = 0
    values: list[list[float]] = [[] for _ in FIGURES]
    for key in keys:
        made = {name: book.manifest(name, key) for name, spec in book.steps.items() if spec.scope == "scan"}
        rejected += any(manifest is not None and not manifest.accepted for manifest in made.values())
        for place, (step, figure) in enumerate(FIGURES):
            manifest = made.get(step)
            value = None if manifest is None else manifest.figures.get(figure)
            if isinstance(value, int | float):
                values[place].append(float(value))
    medians = [float(np.median(told)) if told else None for told in values]
    return DriftRow(rig, month, len(keys), rejected / len(keys), medians)
