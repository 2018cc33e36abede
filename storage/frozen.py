"""Settings and documents that say all they hold: no unknown key, nothing changed after it was read."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, ValidationError


class Frozen(BaseModel):
    """What every settings class and document is made from."""

    model_config = ConfigDict(extra="forbid", frozen=True)


def first_fault(error: ValidationError, whole: str = "") -> str:
    """The first thing that is wrong with a document, as ``key.of.it: what``.

    Args:
        error: of reading it.
        whole: stands for the key where the fault is the document's as a whole.
    """
    first = error.errors()[0]
    return f"{'.'.join(str(part) for part in first['loc']) or whole}: {first['msg']}"
