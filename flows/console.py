"""What a verb answers, and how it reaches the user: lines, or one JSON document."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Annotated, Any

from cyclopts import Parameter


class Exit(IntEnum):
    """Exit statuses."""

    DONE = 0
    FAILED = 1
    WRONG_USAGE = 2
    NOTHING_USABLE = 3
    STOPPED = 130


@Parameter(name="*")
@dataclass(frozen=True)
class Output:
    """How a verb is to answer."""

    json: Annotated[bool, Parameter(negative=())] = False
    """Print one JSON document on standard output and nothing else there."""
    quiet: Annotated[bool, Parameter(name=["--quiet", "-q"], negative=())] = False
    """Print nothing but errors."""


PLAIN = Output()
"""Lines on standard output, progress on standard error."""


@dataclass(frozen=True)
class Reply:
    """A verb's answer.

    Attributes:
        document: what ``--json`` prints.
        lines: what a person reads; the last one is the most important.
        exit: the process's status.
        errors: what could not be done, a line each; told on standard error, before the lines.
    """

    document: Mapping[str, Any]
    lines: tuple[str, ...] = ()
    exit: Exit = field(default=Exit.DONE)
    errors: tuple[str, ...] = ()


def plural(number: int, unit: str) -> str:
    """The name of so many units, given that of one."""
    return unit if number == 1 else f"{unit}s"


def counted(number: int, unit: str) -> str:
    """So many units, as ``1 scan`` or ``2 scans``."""
    return f"{number} {plural(number, unit)}"


def write_reply(reply: Reply, output: Output) -> None:
    """Print an answer on standard output, and what went wrong on standard error.

    An answer that is a failure says so even where nothing but errors is wanted.
    """
    sys.stderr.writelines(f"nphm: {line}\n" for line in reply.errors)
    if output.quiet and not output.json and reply.exit is not Exit.DONE and reply.lines and not reply.errors:
        sys.stderr.write(f"nphm: {reply.lines[-1]}\n")
    try:
        if output.json:
            sys.stdout.write(json.dumps(reply.document, indent=1, ensure_ascii=False, allow_nan=False) + "\n")
        elif not output.quiet:
            sys.stdout.writelines(line + "\n" for line in reply.lines)
        sys.stdout.flush()
    except BrokenPipeError:  # the reader, such as 'head', has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def write_error(line: str, output: Output, exit: Exit) -> None:
    """Print an error as one line on standard error and, under ``--json``, as the document."""
    flat = " ".join(line.split())
    sys.stderr.write(f"nphm: {flat}\n")
    if output.json:
        write_reply(Reply({"error": flat, "exit": int(exit)}), output)
