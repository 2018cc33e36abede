"""Times of calls that are held against each other, and figures as they come."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any


def interleaved(calls: dict[str, Callable[[], Any]], repeats: int) -> dict[str, float]:
    """The least seconds of each call, taken in turns, so that what else the machine does falls on all alike."""
    least = dict.fromkeys(calls, math.inf)
    for _ in range(repeats):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            least[name] = min(least[name], time.perf_counter() - start)
    return least


def shown(figures: dict[str, float]) -> dict[str, float]:
    """Print figures as soon as they are known."""
    for name, value in figures.items():
        print(f"{name:40s} {value:12.4f}", flush=True)
    return figures
