"""What is waited for, and what no waiting mends."""

from __future__ import annotations

import errno
import pickle

import pytest

from flows import patience
from flows.failures import PassingError, StepError, StoreAwayError, StoreError, may_pass, store_error
from flows.patience import RETRY_AFTER_SECONDS, patiently
from storage.errors import ConfigError


@pytest.fixture
def slept(monkeypatch) -> list[float]:
    waits: list[float] = []
    monkeypatch.setattr(patience.time, "sleep", waits.append)
    return waits


def failing(number: int, times: int):
    left = iter([OSError(number, "told by the system")] * times)

    def work() -> str:
        for error in left:
            raise error
        return "done"

    return work


def test_a_store_that_is_away_for_a_minute_is_waited_for(slept):
    assert patiently(failing(errno.ECONNREFUSED, 3), "s3://heads") == "done"
    assert slept == RETRY_AFTER_SECONDS
    with pytest.raises(StoreAwayError, match=r"s3://heads.*told by the system"):
        patiently(failing(errno.ECONNREFUSED, 4), "s3://heads")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS])
def test_a_full_or_read_only_store_is_not(slept, number):
    with pytest.raises(StoreError, match=r"could not read or write.*nphm doctor") as raised:
        patiently(failing(number, 1), "/data/heads")
    assert not may_pass(raised.value)
    assert slept == []


def test_which_failures_are_tried_again():
    assert may_pass(OSError(errno.ETIMEDOUT, "no answer"))
    assert may_pass(OSError("a bucket's errors have no number"))
    assert may_pass(PassingError("a worker was killed"))
    assert not may_pass(OSError(errno.ENOSPC, "full"))
    assert not may_pass(StepError("a fault of the program"))
    assert not may_pass(ConfigError("a wrong setting"))


def test_failures_come_back_from_another_machine():
    away = pickle.loads(pickle.dumps(store_error("clean of 001/smile", "no answer", None)))
    assert (type(away), may_pass(away)) == (StoreAwayError, True)
