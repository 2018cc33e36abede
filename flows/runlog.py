"""What a run did and what it cost: the one place for seconds and dates, which no manifest holds."""

from __future__ import annotations

import os
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from flows.workers import Done
from pipeline.workspace import Workspace
from storage.digest import canonical_json


@dataclass
class RunLog:
    """The log of one run, kept in the workspace as ``runs/TIME-PID.json``.

    Attributes:
        workspace: the workspace that is brought up to date.
        done: every finished job, in the order in which they ended.
    """

    workspace: Workspace
    done: list[Done] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._began = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        self._path = f"runs/{self._began}-{os.getpid()}.json"

    def add(self, done: Done) -> None:
        """Note a finished job. May be called from any thread."""
        with self._lock:
            self.done.append(done)

    def cost(self) -> dict[str, dict[str, float]]:
        """Results, seconds of work and bytes by step."""
        by_step: dict[str, dict[str, float]] = {}
        for outcome, seconds in self.done:
            sums = by_step.setdefault(outcome.step, {"results": 0, "seconds": 0.0, "bytes": 0})
            sums["results"] += outcome.kind != "fresh"
            sums["seconds"] = round(sums["seconds"] + seconds, 3)
            sums["bytes"] += outcome.bytes
        return by_step

    def write(self) -> None:
        """Put the log as it stands."""
        jobs = [asdict(outcome) | {"seconds": seconds} for outcome, seconds in self.done]
        document: dict[str, Any] = {"began": self._began, "cost": self.cost(), "jobs": jobs}
        self.workspace.store.put(self._path, canonical_json(document))
