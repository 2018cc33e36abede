"""A handful of worker processes that execute steps side by side.

The engine's tasks run as threads of this process, and each waits for a worker: a worker needs neither the engine nor a
server of its own, so it starts faster, is smaller, and costs a task a tenth of what the engine's process pool costs.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from queue import LifoQueue
from types import TracebackType
from typing import IO, Any, NamedTuple

from flows.failures import PassingError, StepError, TimeLimitError, store_error
from flows.lifeline import read_line, spawn, write_line
from pipeline.execute import Outcome
from storage.errors import ConfigError, NphmError, StorageConflict, one_line

REAL_STEPS = "pipeline.steps:STEPS"

_THREAD_LIMITS = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "NUMBA_NUM_THREADS")


class Done(NamedTuple):
    """A finished job.

    Attributes:
        outcome: what became of the key.
        seconds: what it took.
        steps_per_second: how fast the named parts of a long step went, such as the stages of a training.
    """

    outcome: Outcome
    seconds: float
    steps_per_second: Mapping[str, float] = {}


class Called(NamedTuple):
    """What a function returned, and what it took: see ``Done``."""

    result: Any
    seconds: float
    steps_per_second: Mapping[str, float]


class Workers:
    """Processes that are started when first needed and end with this one.

    Args:
        count: how many work side by side.
        threads: how many threads each may use; fixed, so that bytes do not depend on ``count``.
        log: file for what they print and for their tracebacks.
        steps: where the table of steps is found, ``MODULE:NAME``.
    """

    def __init__(self, count: int, threads: int, log: Path, steps: str = REAL_STEPS) -> None:
        self._threads = threads
        self._log_path = log
        self._steps = steps
        self._log: IO[str] | None = None
        self._idle: LifoQueue[subprocess.Popen[str] | None] = LifoQueue()
        self._started: list[subprocess.Popen[str]] = []
        self._closed = False
        for _ in range(count):
            self._idle.put(None)

    def call(
        self,
        workspace: str,
        step: str,
        key: str,
        on_progress: Callable[[int, int, str], None],
        limit_minutes: float | None = None,
    ) -> Done:
        """Execute a step in a worker, once one is free.

        Args:
            limit_minutes: after which the worker is ended.

        Raises:
            ConfigError, StorageConflict: as raised by the step.
            PassingError: the store did not answer, or the worker was killed.
            StoreError: the store has no room or may not be written to.
            TimeLimitError: it took too long.
            StepError: any other failure.
        """
        process = self._idle.get()
        try:
            if process is None or process.poll() is not None:
                process = self._start(f"{step} of {key}")
            job = {"workspace": workspace, "step": step, "key": key}
            with _time_limit(process, limit_minutes) as passed:
                try:
                    told = self._ask(process, f"{step} of {key}", job, on_progress)
                except PassingError:
                    if passed.is_set():
                        why, remedy = f"{limit_minutes:g} minutes are its limit", "run again where less else runs"
                        raise TimeLimitError(one_line("took too long", f"{step} of {key}", why, remedy)) from None
                    raise
            return Done(Outcome.of_plain(told["outcome"]), told["seconds"], told["steps_per_second"])
        finally:
            self._idle.put(process)

    def call_function(
        self, workspace: str, function: str, arguments: dict[str, Any], on_progress: Callable[[int, int, str], None]
    ) -> Called:
        """Call a function of a workspace in a worker; it returns a plain value.

        Args:
            function: ``MODULE:NAME``.
            arguments: plain values, by name.

        Raises:
            NphmError: as for ``call``.
        """
        process = self._idle.get()
        try:
            if process is None or process.poll() is not None:
                process = self._start(function)
            job = {"workspace": workspace, "call": function, "arguments": arguments}
            told = self._ask(process, function, job, on_progress)
            return Called(told["result"], told["seconds"], told["steps_per_second"])
        finally:
            self._idle.put(process)

    def pids(self) -> list[int]:
        """The processes that run now."""
        return [process.pid for process in self._started if process.poll() is None]

    def rest(self) -> None:
        """End the processes, all idle now, to free their memory; the next job starts one again."""
        for process in self._started:
            process.kill()
            process.wait()
        self._started.clear()

    def _start(self, what: str) -> subprocess.Popen[str]:
        if self._closed:
            raise StepError(one_line("was not started", what, "the run is being stopped", "run again"))
        if self._log is None:
            self._log = self._log_path.open("a")
        environment = dict.fromkeys(_THREAD_LIMITS, str(self._threads)) | {"PYTHONHASHSEED": "0"}
        # Threads that wait for each other spin for some 10 us before they sleep: waking a sleeper takes longer than
        # many of the products in training (3.5 times as slow on two idle cores), and endless spinning takes the core
        # from whoever else is on it (14 times as slow on two busy ones).
        environment["GOMP_SPINCOUNT"] = os.environ.get("GOMP_SPINCOUNT", "1000")
        process = spawn("flows.worker", [self._steps], environment, stderr=self._log)
        self._started.append(process)
        return process

    def _ask(
        self,
        process: subprocess.Popen[str],
        what: str,
        job: dict[str, Any],
        on_progress: Callable[[int, int, str], None],
    ) -> dict[str, Any]:
        try:
            write_line(process, json.dumps(job))
        except BrokenPipeError:
            raise self._lost(process, what) from None
        while line := read_line(process):
            message: dict[str, Any] = json.loads(line)
            if "progress" in message:
                on_progress(*message["progress"])
            elif "failure" in message:
                raise _failure(what, **message["failure"])
            else:
                return message
        raise self._lost(process, what)

    def _lost(self, process: subprocess.Popen[str], what: str) -> StepError:
        status = process.wait()
        if status >= 0:
            why = f"its worker ended with status {status}"
            return StepError(
                one_line("failed by a fault of the program", what, why, f"report it with {self._log_path}")
            )
        why = f"its worker was ended by {signal.Signals(-status).name}"
        return PassingError(one_line("was cut off", what, why, "run again; SIGKILL often means that memory ran out"))

    def __enter__(self) -> Workers:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """End all workers at once; one that is in the middle of a step leaves nothing half published."""
        self._closed = True
        for process in self._started:
            process.kill()
        for process in self._started:
            process.wait()
        if self._log is not None:
            self._log.close()


@contextmanager
def _time_limit(process: subprocess.Popen[str], minutes: float | None) -> Iterator[threading.Event]:
    """End a process unless the block is left in time; the event tells that it was ended."""
    passed = threading.Event()

    def end() -> None:
        passed.set()
        process.kill()

    timer = threading.Timer(60 * (minutes or 0), end)
    timer.daemon = True
    if minutes is not None:
        timer.start()
    try:
        yield passed
    finally:
        timer.cancel()


def _failure(what: str, kind: str, line: str, number: int | None = None) -> NphmError:
    if kind == "OSError":
        return store_error(what, line, number)
    known: dict[str, type[NphmError]] = {"ConfigError": ConfigError, "StorageConflict": StorageConflict}
    return known.get(kind, StepError)(line)
