"""What wakes the thread that talks to etcd."""

from typing import Any

import pytest

from conch.core.messages import Acquire, Drain, Ended, Message, Release, Running
from conch.etcd.connection import Connection
from conch.keeper.acquirer import Acquirer
from conch.keeper.hold_spec import HoldSpec


@pytest.mark.parametrize(
    ("message", "wakes"),
    [
        (Acquire(1), True),
        (Release(7), True),
        (Running(100, "cafe", [1], 5.0), False),
        (Ended(), False),
        (Drain(), False),
    ],
)
def test_only_what_it_serves_wakes_it(message: Message, wakes: bool) -> None:
    """A thread that wakes for nothing holds up those that hand a hold over."""
    nothing: Any = None
    acquirer = Acquirer(HoldSpec(Connection((), 2.0, 1.0), "office o", (), 10, 5.0, b"{}"), nothing, nothing)
    acquirer.deliver(message)
    assert acquirer._inbox.empty() is not wakes
