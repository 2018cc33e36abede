"""Child processes that never outlive their parent, not even a parent ended by SIGKILL.

The parent holds the write end of the child's standard input. Once the parent is gone, the pipe closes, and the child
ends itself at once. Nothing has to be swept up by the next run.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from typing import IO, TextIO

PARENT = "NPHM_PARENT"
"""In a child's environment: its parent's process id."""


def spawn(
    module: str, arguments: Sequence[str], environment: Mapping[str, str], stderr: IO[str]
) -> subprocess.Popen[str]:
    """Start ``python -m module`` with a lifeline; its standard output is read by the parent.

    Args:
        environment: added to this process's own environment.
        stderr: the file for what the child prints there.
    """
    own = {PARENT: str(os.getpid())}
    # -P keeps folders of the user's working directory from being taken for the project's packages.
    return subprocess.Popen(
        [sys.executable, "-P", "-m", module, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env=os.environ | dict(environment) | own,
        text=True,
        start_new_session=True,
    )


def read_line(process: subprocess.Popen[str]) -> str:
    """The next line that a child says, or an empty text once it has ended."""
    return "" if process.stdout is None else process.stdout.readline()


def write_line(process: subprocess.Popen[str], line: str) -> None:
    """Say a line to a child.

    Raises:
        BrokenPipeError: it has ended.
    """
    if process.stdin is not None:
        process.stdin.write(line + "\n")
        process.stdin.flush()


def take_stdout() -> TextIO:
    """Keep standard output for messages to the parent; whatever else prints goes to standard error."""
    channel = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return channel


def end_with_parent(on_line: Callable[[str], object]) -> None:
    """In the child: hand each line of standard input to ``on_line``, and end the process when the input closes."""

    def read() -> None:
        for line in sys.stdin:
            on_line(line)
        # No clean-up: a result is published by its last atomic put, so ending between two instructions is safe.
        os._exit(0)

    # Ctrl-C is the parent's to handle; the child ends with it.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=read, name="lifeline", daemon=True).start()
