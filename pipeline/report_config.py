"""The report as a plan sees it: version and verdict."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

STEP_VERSION = 3


def judge_report(figures: Mapping[str, Any], thresholds: object) -> list[str]:
    """A report speaks against nothing."""
    return []
