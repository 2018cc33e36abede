"""Millimetres outside the network, model units inside. The only place that converts."""

from __future__ import annotations

from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray

MM_PER_UNIT = 250.0
"""One model unit is 250 mm, as a FLAME head in metres times four."""

Lengths = TypeVar("Lengths", torch.Tensor, NDArray[np.float32], float)


def to_units(length_mm: Lengths) -> Lengths:
    """Millimetres (head frame) to model units; dtype and shape stay."""
    return length_mm / MM_PER_UNIT


def to_mm(length_units: Lengths) -> Lengths:
    """Model units to millimetres (head frame); dtype and shape stay."""
    return length_units * MM_PER_UNIT
