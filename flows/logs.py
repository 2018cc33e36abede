"""Where tracebacks and the chatter of libraries go, since neither belongs on a user's terminal."""

from __future__ import annotations

import atexit
import os
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from flows.console import Exit, Output, write_error

_KEPT_SECONDS = 30 * 24 * 3600.0


def log_folder() -> Path:
    """The folder of log files: ``NPHM_LOGS``, or ``nphm`` under the user's state folder, or under the temporary one."""
    told = os.environ.get("NPHM_LOGS")
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    for folder in (Path(told) if told else state / "nphm", Path(tempfile.gettempdir()) / f"nphm-{os.getuid()}"):
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError:
            continue
        if os.access(folder, os.W_OK):
            return folder
    return Path(tempfile.gettempdir())


def new_log(name: str) -> Path:
    """A path for a log file of this process that nobody else uses; an empty one goes when the process ends."""
    began = time.strftime("%Y%m%dT%H%M%S", time.gmtime())
    folder = log_folder()
    for old in folder.glob("*.log"):
        with suppress(FileNotFoundError):  # another process tidies as well
            if old.stat().st_mtime < time.time() - _KEPT_SECONDS:
                old.unlink()
    path = folder / f"{began}-{os.getpid()}-{name}.log"
    atexit.register(_drop_if_empty, path)
    return path


def _drop_if_empty(path: Path) -> None:
    if path.exists() and path.stat().st_size == 0:
        path.unlink(missing_ok=True)


def report_crashes(output: Output) -> None:
    """From now on an unforeseen error becomes one line that names a log file with the traceback."""

    def crashed(kind: type[BaseException], error: BaseException, at: TracebackType | None) -> None:
        log = new_log("crash")
        log.write_text("".join(traceback.format_exception(kind, error, at)))
        said = " ".join(str(error).split())[:200]
        line = f"this is a fault of the program ({kind.__name__}: {said}); report it with {log}"
        write_error(line, output, Exit.FAILED)

    sys.excepthook = crashed


def logs_naming(names: Callable[[str], bool]) -> list[Path]:
    """The log files on this machine, outside of any workspace, whose text is found to name somebody; sorted."""
    return sorted(path for path in log_folder().glob("*.log") if names(path.read_text(errors="replace")))
