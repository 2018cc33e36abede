"""What a run did and what it cost: the one place for seconds and dates, which no manifest holds."""

from __future__ import annotations

import os
import socket
import threading
import time
from dataclasses import asdict, dataclass, field
from typing import Any

from flows.workers import Done
from pipeline.metrics import PATH as METRICS_PATH
from pipeline.metrics import metrics_text
from pipeline.models import latest_model
from pipeline.planner import Action
from pipeline.snapshot import Snapshot
from pipeline.standing import stand
from pipeline.workspace import Workspace
from storage.digest import canonical_json


@dataclass
class RunLog:
    """The log of one run.

    ``runs/TIME-HOST-PID.json`` holds its cost by step, ``runs/TIME-HOST-PID.jsonl`` a line a finished job, each with
    the scan's key: time, step, key, session, what was done and why, verdict, reasons, seconds and bytes; a training's
    steps a second by stage as well.

    Attributes:
        workspace: the workspace that is brought up to date.
        run: the engine's id of the run.
        done: every finished job, in the order in which they ended.
    """

    workspace: Workspace
    run: str = ""
    done: list[Done] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._lock = threading.Lock()
        self._lines: list[bytes] = []
        self._failures = 0
        self._spans: dict[str, tuple[float, float]] = {}
        self._began = _now()
        host = "".join(c if c.isalnum() or c in "-_" else "-" for c in socket.gethostname())
        self._path = f"runs/{self._began}-{host}-{os.getpid()}"

    def add(self, done: Done, session: str = "") -> None:
        """Note a finished job. May be called from any thread."""
        line = asdict(done.outcome) | {"seconds": done.seconds, "session": session, "time": _now(), "run": self.run}
        if done.steps_per_second:
            line["steps_per_second"] = {part: round(rate, 3) for part, rate in done.steps_per_second.items()}
        ended = time.monotonic()
        with self._lock:
            first, _ = self._spans.get(done.outcome.step, (ended - done.seconds, ended))
            self._spans[done.outcome.step] = (min(first, ended - done.seconds), ended)
            self.done.append(done)
            self._lines.append(canonical_json(line) + b"\n")

    def add_failure(self, action: Action, why: str) -> None:
        """Note a job that failed."""
        line = {"step": action.step, "key": action.key, "kind": "failed", "why": why, "time": _now(), "run": self.run}
        with self._lock:
            self._failures += 1
            self._lines.append(canonical_json(line) + b"\n")

    def cost(self) -> dict[str, dict[str, float]]:
        """Results, seconds of work, seconds from the first's start to the last's end, and bytes by step."""
        by_step: dict[str, dict[str, float]] = {}
        for outcome, seconds, _ in self.done:
            sums = by_step.setdefault(outcome.step, {"results": 0, "seconds": 0.0, "bytes": 0})
            sums["results"] += outcome.kind != "fresh"
            sums["seconds"] = round(sums["seconds"] + seconds, 3)
            sums["bytes"] += outcome.bytes
        for step, (first, last) in self._spans.items():
            by_step[step]["elapsed"] = round(last - first, 3)
        return by_step

    def write(self) -> None:
        """Put the log as it stands."""
        with self._lock:
            lines = b"".join(self._lines)
        document: dict[str, Any] = {
            "began": self._began,
            "ended": _now(),
            "run": self.run,
            "failures": self._failures,
            "cost": self.cost(),
        }
        self.workspace.store.put(f"{self._path}.jsonl", lines)
        self.workspace.store.put(f"{self._path}.json", canonical_json(document))

    def write_metrics(self, snapshot: Snapshot, actions: list[Action]) -> None:
        """Put the metrics of the workspace as it stands."""
        latest = latest_model(self.workspace)
        text = metrics_text(
            stand(snapshot, actions),
            self.cost(),
            failures=self._failures,
            ended=time.time(),
            model=latest.name if latest else "",
            figures=latest.figures if latest else None,
        )
        self.workspace.store.put(METRICS_PATH, text)


def _now() -> str:
    return time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
