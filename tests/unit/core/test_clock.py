"""The clock of deadlines."""

import time

import pytest

from conch.core import clock


def test_the_clock_of_deadlines_is_the_one_that_counts_suspend(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is CLOCK_BOOTTIME."""
    monkeypatch.setattr(time, "clock_gettime", {time.CLOCK_BOOTTIME: 42.0}.__getitem__)
    assert clock.now() == 42.0
