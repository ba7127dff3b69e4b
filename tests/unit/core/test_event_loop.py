"""The random pauses of both supervisors."""

import os

import pytest

from conch.core.event_loop import SupervisorLoop


@pytest.mark.parametrize(("drawn", "pause_s"), [(b"\0\0\0\0", 1.0), (b"\xff\xff\xff\xff", 3.0), (b"\x80\0\0\0", 2.0)])
def test_jitter_lies_between_its_bounds(monkeypatch: pytest.MonkeyPatch, drawn: bytes, pause_s: float) -> None:
    """Evenly, both included."""
    monkeypatch.setattr(os, "urandom", lambda count: drawn[:count])
    assert SupervisorLoop.jitter(1.0, 3.0) == pytest.approx(pause_s)


def test_jitter_spreads() -> None:
    """Supervisors that fail together do not try again together."""
    assert len({SupervisorLoop.jitter(1.0, 3.0) for _ in range(20)}) == 20
