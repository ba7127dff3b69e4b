"""What both supervisors wait for: their keeper's messages, and random pauses."""

import json
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


_LOSS_BEHIND_OTHERS = (
    _MANY_MESSAGES.replace("channel.send(Renewed(0, 5.0))", "channel.send(Lost(3, 'gone'))")
    .replace("lambda: died.append(len(got)))", "lambda: died.append(len(got)), at_once=(Lost,))")
    .replace("import Kill, Renewed", "import Kill, Lost, Renewed")
    .replace(
        "print(calls)",
        """
losses = [at for at, message in enumerate(got) if isinstance(message, Lost)]
print(losses)
""",
    )
)


def test_loss_does_not_wait_behind_other_messages() -> None:
    """It is handled when it arrives, and in its turn, for a hold of which an earlier message tells."""
    done = subprocess.run([sys.executable, "-c", _LOSS_BEHIND_OTHERS], capture_output=True, text=True, timeout=30)
    assert done.returncode == 0, done.stderr
    first, last = json.loads(done.stdout)
    assert first < 40
    assert last == 51
