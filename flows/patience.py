"""What is tried again, and after how long: a store or a network that does not answer may do so in a minute."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, TypeVar

from flows.workers import PassingError
from storage.errors import NphmError, one_line

RETRY_AFTER_SECONDS = [2.0, 15.0, 60.0]

_Result = TypeVar("_Result")


class StoreError(NphmError):
    """The store did not answer, has no room or may not be written to."""


def may_pass(error: Any) -> bool:
    """Whether a failure may not come again; what speaks against data or configuration always does."""
    return isinstance(error, PassingError | OSError)


def patiently(work: Callable[[], _Result], what: str) -> _Result:
    """Do something with the store, again after a while where it fails.

    Raises:
        StoreError: it failed each time.
    """
    for seconds in [*RETRY_AFTER_SECONDS, None]:
        try:
            return work()
        except OSError as error:
            if seconds is None:
                remedy = "see that the store answers, has room and may be written to ('nphm doctor'), then run again"
                raise StoreError(one_line("could not read or write", what, str(error), remedy)) from error
        time.sleep(seconds)
    raise AssertionError("the loop returns or raises")
