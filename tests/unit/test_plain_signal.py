"""Signals without the enumerations of `signal`, which knows their names."""

import signal

import pytest

from conch import plain_signal
from conch.plain_signal import name_of


@pytest.mark.parametrize("number", list(signal.Signals), ids=lambda number: number.name)
def test_names(number: signal.Signals) -> None:
    """The first in the alphabet, where there are several."""
    assert name_of(number) == number.name
    assert getattr(plain_signal.signal, number.name) == number


def test_signal_without_a_name() -> None:
    """A real-time signal."""
    assert name_of(signal.SIGRTMIN + 1) == str(signal.SIGRTMIN + 1)
