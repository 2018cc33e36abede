"""Progress on standard error: a bar a step on a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import threading
import time
from types import TracebackType
from typing import Any, Protocol

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from flows.console import Output, counted, plural

_SECONDS_BETWEEN_LINES = 15.0


class StepProgress(Protocol):
    """Hears how far each step is. Every method may be called from any thread."""

    def start(self, step: str, total: int, unit: str = "scan") -> None:
        """A step begins, with ``total`` units to do; the unit's name is that of one."""

    def update(self, step: str, done: int, note: str = "", total: int | None = None) -> None:
        """``done`` units are done; ``note`` says something of the state, such as a loss."""

    def finish(self, step: str, note: str = "") -> None:
        """A step has ended."""

    def say(self, line: str) -> None:
        """Tell something beside the bars."""

    def __enter__(self) -> StepProgress: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None: ...


def progress_for(output: Output) -> StepProgress:
    """The progress that suits the terminal and the user's wishes."""
    if output.quiet:
        return SilentProgress()
    return BarProgress() if sys.stderr.isatty() else LineProgress()


class SilentProgress:
    """Says nothing."""

    def start(self, step: str, total: int, unit: str = "scan") -> None:
        """Ignore."""

    def update(self, step: str, done: int, note: str = "", total: int | None = None) -> None:
        """Ignore."""

    def finish(self, step: str, note: str = "") -> None:
        """Ignore."""

    def say(self, line: str) -> None:
        """Ignore."""

    def __enter__(self) -> StepProgress:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Nothing to close."""


class BarProgress(SilentProgress):
    """A bar a step, for a terminal."""

    def __init__(self) -> None:
        self._bars = Progress(
            TextColumn("{task.description:<10}"),
            BarColumn(bar_width=30),
            MofNCompleteColumn(),
            TextColumn("{task.fields[unit]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
            console=Console(stderr=True),
        )
        self._ids: dict[str, TaskID] = {}
        self._units: dict[str, str] = {}

    def start(self, step: str, total: int, unit: str = "scan") -> None:
        """Add a bar."""
        self._units[step] = unit
        self._ids[step] = self._bars.add_task(step, total=total, unit=plural(total, unit), note="")

    def update(self, step: str, done: int, note: str = "", total: int | None = None) -> None:
        """Move a bar."""
        told: dict[str, Any] = {} if total is None else {"unit": plural(total, self._units[step])}
        self._bars.update(self._ids[step], completed=done, total=total, note=note, **told)

    def finish(self, step: str, note: str = "") -> None:
        """Leave the bar as it stands, with a last note."""
        self._bars.update(self._ids[step], note=note)
        self._bars.stop_task(self._ids[step])

    def say(self, line: str) -> None:
        """Print above the bars."""
        self._bars.console.print(line, highlight=False, markup=False)

    def __enter__(self) -> StepProgress:
        self._bars.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Leave the bars on the terminal."""
        self._bars.stop()


class LineProgress(SilentProgress):
    """Plain lines, for logs: one at the start and the end of a step, and one now and then between."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._began: dict[str, float] = {}
        self._told: dict[str, float] = {}
        self._totals: dict[str, tuple[int, str]] = {}

    def start(self, step: str, total: int, unit: str = "scan") -> None:
        """Tell what is to be done."""
        self._began[step] = self._told[step] = time.monotonic()
        self._totals[step] = (total, unit)
        self.say(f"{step}: {counted(total, unit)} to do")

    def update(self, step: str, done: int, note: str = "", total: int | None = None) -> None:
        """Tell how far it is, if nothing was told for a while."""
        with self._lock:
            told, unit = self._totals[step]
            self._totals[step] = (total or told, unit)
            now = time.monotonic()
            if now - self._told[step] < _SECONDS_BETWEEN_LINES:
                return
            self._told[step] = now
        self.say(f"{step}: {done} of {counted(total or told, unit)}" + (f", {note}" if note else ""))

    def finish(self, step: str, note: str = "") -> None:
        """Tell how long it took."""
        seconds = time.monotonic() - self._began[step]
        self.say(f"{step}: done in {seconds:.1f} s" + (f", {note}" if note else ""))

    def say(self, line: str) -> None:
        """Print a line."""
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
