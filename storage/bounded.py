"""Files that a user names, read within bounds."""

from __future__ import annotations

import os
from pathlib import Path

from storage.errors import ConfigError, NphmError, one_line


def read_bounded(path: Path, most_bytes: int, fault: type[NphmError] = ConfigError) -> bytes:
    """The content of a file.

    Args:
        path: of the file.
        most_bytes: it may have.
        fault: what is raised where it can't be read.

    Raises:
        ConfigError: or whatever ``fault`` names: it is not there, larger than it may be, or can't be read.
    """
    where = str(path)
    if not path.is_file():
        raise fault(one_line("is not there", where, "", "check the path"))
    try:
        with path.open("rb") as opened:
            size = os.fstat(opened.fileno()).st_size
            data = opened.read(min(size, most_bytes) + 1)
    except OSError as error:
        raise fault(one_line("can't be read", where, error.strerror or "", "check its permissions")) from error
    if len(data) > most_bytes:
        raise fault(one_line("is too large", where, f"{size} bytes, at most {most_bytes}", "give a smaller file"))
    return data
