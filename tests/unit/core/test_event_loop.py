"""What both supervisors wait for: their keeper's messages, and random pauses."""

import os
import subprocess
import sys

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


_MANY_MESSAGES = """
import time
from conch.core.event_loop import SupervisorLoop
from conch.core.messages import Kill, Renewed
from conch.log import Log

def keeper(channel):
    channel.send(*[Kill(str(number), "") for number in range(50)])
    channel.send(Renewed(0, 5.0))

got, calls, died = [], 0, []
def handle(message):
    got.append(message)
    time.sleep(0.02)

loop = SupervisorLoop(keeper, Log(quiet=True))
loop.start_keeper()
while not died:
    loop.wait(None)
    loop.receive(handle, lambda: died.append(len(got)))
    calls += 1
loop.drop_keeper()
kills = [message for message in got if isinstance(message, Kill)]
assert [kill.run for kill in kills] == [str(number) for number in range(50)]
assert died == [len(got)], "its death comes last"
print(calls)
"""


def test_many_messages_are_handled_in_slices() -> None:
    """All else has its turn in between; none is lost, and the keeper's death comes after the last one."""
    done = subprocess.run([sys.executable, "-c", _MANY_MESSAGES], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= 8
