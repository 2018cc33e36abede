"""Settings and documents that say all they hold: no unknown key, nothing changed after it was read."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Frozen(BaseModel):
    """What every settings class and document is made from."""

    model_config = ConfigDict(extra="forbid", frozen=True)
