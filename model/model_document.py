"""``config.json`` of a model folder: what a model's networks are, whose codes it has, and where its heads lie."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, FiniteFloat, model_validator

from model.config import FieldConfig
from storage.frozen import Frozen

FORMAT: Literal[1] = 1
"""Version of the files of a model folder."""
MAX_ANCHORS = 4096
"""The distance between any two is computed."""

Point = tuple[FiniteFloat, FiniteFloat, FiniteFloat]


class ModelDocument(Frozen):
    """What stands in ``config.json``."""

    format: Literal[1] = Field(description="version of the files of the folder")
    field: FieldConfig = Field(description="sizes of the networks")
    anchor_pairs: int = Field(ge=0, description="mirrored pairs, the first of the anchors")
    mean_anchors_mm: tuple[Point, ...] = Field(max_length=MAX_ANCHORS, description="head frame")
    subjects: tuple[str, ...] = Field(description="ids, in the order of their codes")
    scans: tuple[str, ...] = Field(description="SUBJECT/EXPRESSION, in the order of their codes")
    box_mm: tuple[Point, Point] = Field(description="low and high corner of what is meshed, head frame")
    throat_plane: tuple[FiniteFloat, FiniteFloat, FiniteFloat, FiniteFloat] = Field(
        description="n.x + d >= 0 keeps the head, mm"
    )
    mm_per_unit: FiniteFloat = Field(gt=0, description="millimetres in a unit of the networks")
    template_sha256: str = Field(description="of template.npz")

    @model_validator(mode="after")
    def _fits_together(self) -> ModelDocument:
        if 2 * self.anchor_pairs > len(self.mean_anchors_mm):
            raise ValueError(f"anchor_pairs is {self.anchor_pairs} of {len(self.mean_anchors_mm)} anchors")
        if not all(low < high for low, high in zip(*self.box_mm, strict=True)):
            raise ValueError("box_mm has no inside")
        return self
