"""The verbs of the command line, by what they are about. Each returns a ``flows.console.Reply``."""

from __future__ import annotations

from typing import Annotated

from cyclopts import Parameter

Workspace = Annotated[str, Parameter(name=["--workspace", "-w"], help="The workspace: a folder, or a store's address.")]
Out = Annotated[str, Parameter(name=["--output", "-o"])]
