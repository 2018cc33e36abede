"""What is tried again, and after how long: a store or a network that does not answer may do so in a minute."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

from flows.failures import may_pass, store_error

RETRY_AFTER_SECONDS = [2.0, 15.0, 60.0]

_Result = TypeVar("_Result")


def patiently(work: Callable[[], _Result], what: str) -> _Result:
    """Do something with the store, again after a while where it fails in a way that may pass.

    Raises:
        StoreError: it failed each time, or can't but fail.
    """
    for seconds in [*RETRY_AFTER_SECONDS, None]:
        try:
            return work()
        except OSError as error:
            if seconds is None or not may_pass(error):
                raise store_error(what, str(error), error.errno) from error
        time.sleep(seconds)
    raise AssertionError("the loop returns or raises")
