"""Files of the user's own in a workspace that results depend on: the settings tell each one's digest too."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.digest import digest_bytes
from storage.errors import ConfigError, one_line

if TYPE_CHECKING:
    from pipeline.workspace import Workspace


def read_own_file(workspace: Workspace, name: str, sha256: str, *, what: str, keys: tuple[str, str]) -> bytes:
    """Read a file that has to be the one that the settings mean: their digest stands for it in what makes stale.

    Args:
        name: of the file, in the workspace.
        sha256: its digest, as told.
        what: it is, in words.
        keys: of the settings, for the name and for the digest.

    Raises:
        ConfigError: it is missing, or another one.
    """
    try:
        data = workspace.store.get(name)
    except FileNotFoundError:
        remedy = f"put it there, or leave {keys[0]} out"
        raise ConfigError(one_line(f"{what} is missing", name, workspace.url, remedy)) from None
    found = digest_bytes(data)
    if found != sha256:
        remedy = f"set {keys[1]} to that if it is the right file"
        raise ConfigError(one_line(f"is another {what}", name, f"its SHA-256 is {found}", remedy))
    return data
