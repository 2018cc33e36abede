"""How a step may fail, and which of these failures are worth another try."""

from __future__ import annotations

import errno
from typing import Any

from storage.errors import NphmError, one_line

_LASTING = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM)
"""Errors of a store that no waiting mends."""


class StepError(NphmError):
    """A step ended with an error that speaks against the run, not against a scan."""


class PassingError(StepError):
    """A failure that may not come again: a worker that was killed, a store that did not answer."""


class TimeLimitError(StepError):
    """A step took longer than it may."""


class StoreError(StepError):
    """The store has no room or may not be written to: nothing else of the run can be done either."""


class StoreAwayError(PassingError, StoreError):
    """The store did not answer; once it has been waited for in vain, the run ends."""


def store_error(what: str, why: str, number: int | None) -> StoreError:
    """The failure that an error of the store comes to.

    Args:
        what: was to be read or written.
        why: in the words of the error.
        number: its ``errno``, where it has one.
    """
    if number in _LASTING:
        remedy = "make room, or see that it may be written to ('nphm doctor', 'nphm gc'), then run again"
        return StoreError(one_line("could not read or write", what, why, remedy))
    return StoreAwayError(one_line("could not read or write", what, why, "see that the store answers, then run again"))


def may_pass(error: Any) -> bool:
    """Whether a failure may not come again; what speaks against data or configuration always does."""
    if isinstance(error, OSError):
        return error.errno not in _LASTING
    return isinstance(error, PassingError)
