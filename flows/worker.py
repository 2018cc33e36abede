"""A worker process: executes the steps told on its standard input, a JSON line each, and answers on standard output.

    {"workspace": URL, "step": NAME, "key": KEY}                      the question
    {"workspace": URL, "call": MODULE:NAME, "arguments": {...}}       or this one: a function of a workspace
    {"progress": [DONE, TOTAL, NOTE]}                                 any number of times
    {"outcome": {...}, "seconds": ..., "steps_per_second": {...}}     the answer
    {"result": ..., "seconds": ..., "steps_per_second": {...}}        the answer of a function
    {"failure": {"kind": NAME, "line": ..., "number": ERRNO}}         or this one; the number is an OSError's alone

An unforeseen error ends the process with its traceback on standard error, which its parent keeps in a log file.
"""

from __future__ import annotations

import importlib
import json
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from queue import SimpleQueue
from typing import Any

from flows.lifeline import end_with_parent, take_stdout
from pipeline.execute import execute_in
from pipeline.opening import open_workspace
from pipeline.stepspec import StepSpec
from storage.errors import NphmError


def load_steps(where: str) -> Mapping[str, StepSpec]:
    """The steps' table at ``MODULE:NAME``."""
    module, _, name = where.partition(":")
    steps: Mapping[str, StepSpec] = getattr(importlib.import_module(module), name)
    return steps


class Pace:
    """How fast each named part of a step goes, from what it tells on its way; one that goes on counts from there."""

    def __init__(self) -> None:
        self._first: dict[str, tuple[float, int]] = {}
        self._last: dict[str, tuple[float, int]] = {}

    def hear(self, done: int, part: str) -> None:
        """Note how far a part is now."""
        now = time.perf_counter(), done
        self._first.setdefault(part, now)
        self._last[part] = now

    def steps_per_second(self) -> dict[str, float]:
        """Of each part that has a name and told more than once."""
        spans = ((part, self._first[part], last) for part, last in self._last.items() if part)
        return {part: (n1 - n0) / (t1 - t0) for part, (t0, n0), (t1, n1) in spans if n1 > n0}


def answer(job: Mapping[str, Any], steps: Mapping[str, StepSpec], tell: Callable[[Any], None]) -> dict[str, Any]:
    """Execute one job and say what came of it."""

    pace = Pace()

    def progress(done: int, total: int, note: str) -> None:
        pace.hear(done, note)
        tell({"progress": [done, total, note]})

    began = time.perf_counter()
    try:
        workspace = open_workspace(job["workspace"], steps)
        workspace.tell = progress
        if "call" in job:
            module, _, name = job["call"].partition(":")
            result = getattr(importlib.import_module(module), name)(workspace, **job["arguments"])
            answered = {"result": result}
        else:
            answered = {"outcome": asdict(execute_in(workspace, job["step"], job["key"]))}
    except NphmError as error:
        return {"failure": {"kind": type(error).__name__, "line": str(error)}}
    except OSError as error:
        return {"failure": {"kind": "OSError", "line": str(error), "number": error.errno}}
    seconds = round(time.perf_counter() - began, 3)
    return answered | {"seconds": seconds, "steps_per_second": pace.steps_per_second()}


def main() -> None:
    """Answer until standard input closes."""
    channel = take_stdout()
    jobs: SimpleQueue[str] = SimpleQueue()
    end_with_parent(jobs.put)
    steps = load_steps(sys.argv[1])

    def tell(message: Any) -> None:
        channel.write(json.dumps(message) + "\n")

    while True:
        tell(answer(json.loads(jobs.get()), steps, tell))


if __name__ == "__main__":
    main()
