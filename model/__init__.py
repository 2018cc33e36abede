"""The neural parametric head model: networks, losses, training, fitting, meshing, metrics and baselines."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from model.head_model import HeadModel

__all__ = ["HeadModel"]


def __getattr__(name: str) -> Any:
    """Load torch only once something needs it: the package's configs are read by every command."""
    if name == "HeadModel":
        from model.head_model import HeadModel

        return HeadModel
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
