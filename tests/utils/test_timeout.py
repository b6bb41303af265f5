"""Calls with a timeout: results and errors come through, and a slow call is left alone."""

from __future__ import annotations

import threading

import pytest

from pfray.utils.timeout import with_timeout


def test_a_result_and_an_error_come_through():
    assert with_timeout(10, lambda: 3) == 3
    with pytest.raises(KeyError, match="own"):
        with_timeout(10, lambda: {}["own"])


def test_what_takes_longer_is_left_alone():
    released, done = threading.Event(), threading.Event()

    def action() -> None:
        released.wait(20)
        done.set()

    with pytest.raises(TimeoutError, match="no answer within 0 s"):
        with_timeout(0.1, action)
    assert not done.is_set()
    released.set()
    assert done.wait(20)
