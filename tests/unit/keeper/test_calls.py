"""Calls to etcd are repeated until it answers, the supervisor cancels, or `--wait` runs out."""

import threading

import pytest

from conch.core import clock
from conch.errors import EXIT_NOT_ACQUIRED, EXIT_UNAVAILABLE
from conch.etcd.connection import Connection
from conch.etcd.store import Unreachable
from conch.keeper.calls import Calls, Cancelled, GaveUp
from conch.keeper.hold_spec import HoldSpec


class Etcd:
    """Fails so many times before each answer; notes the time limit of each call and each event that is logged."""

    def __init__(self, failures: int = 0, *, accepts: bool = True) -> None:
        self.failures = failures
        self.accepts = accepts
        self.limits: list[float] = []
        self.logged: list[str] = []

    def ask(self, limit_s: float) -> str:
        self.limits.append(limit_s)
        if self.failures:
            self.failures -= 1
            raise Unreachable("away", lambda: self.accepts)
        return "answer"

    def log(self, level: str, event: str, **fields: object) -> None:
        self.logged.append(f"{level} {event}")


def calls(etcd: Etcd, *, nonblock: bool = False, wait_s: float | None = None) -> Calls:
    connection = Connection((), 2.0, 1.0)
    spec = HoldSpec(connection, "office o", (), 10, 5.0, b"", nonblock=nonblock, wait_s=wait_s)
    made = Calls(spec, etcd.log)
    made.begin(None if wait_s is None else clock.now() + wait_s)
    return made


def test_call_is_repeated_until_etcd_answers() -> None:
    """With a line in the log for each failure, the first answer of all and later."""
    etcd = Etcd(2)
    asking = calls(etcd)
    assert asking.until_answered(etcd.ask) == "answer"
    etcd.failures = 2
    assert asking.until_answered(etcd.ask) == "answer"
    assert etcd.logged == ["warning retry"] * 4
    assert len(etcd.limits) == 6


def test_first_answer_is_not_waited_for_where_nobody_accepts_connections() -> None:
    """Away is not slow."""
    etcd = Etcd(9, accepts=False)
    with pytest.raises(Unreachable):
        calls(etcd).until_answered(etcd.ask)
    assert len(etcd.limits) == 1


def test_wait_limits_each_call_and_ends_the_acquisition() -> None:
    """With exit code 75 once etcd has answered, and 69 if it never did."""
    etcd = Etcd()
    asking = calls(etcd, wait_s=0.3)
    asking.until_answered(etcd.ask)
    etcd.failures = 1000
    with pytest.raises(GaveUp, match=r"gave up waiting for office o after 0\.3s") as gave_up:
        asking.until_answered(etcd.ask)
    assert gave_up.value.code == EXIT_NOT_ACQUIRED
    assert max(etcd.limits) <= 0.3
    assert asking.left_s() == 0.0

    never = Etcd(1000)
    with pytest.raises(GaveUp) as gave_up:
        calls(never, wait_s=0.3).until_answered(never.ask)
    assert gave_up.value.code == EXIT_UNAVAILABLE


def test_wait_is_for_queueing_only() -> None:
    """Who holds is not given up."""
    etcd = Etcd()
    asking = calls(etcd, wait_s=0.0)
    asking.lift_limit()
    asking.check()
    assert asking.left_s() is None
    assert asking.timeout_s == 1.0


def test_etcd_gets_a_least_time_for_its_first_answer() -> None:
    """However late the keeper was ready."""
    etcd = Etcd()
    asking = calls(etcd, wait_s=0.0)
    assert asking.until_answered(etcd.ask) == "answer"
    assert 0.1 < etcd.limits[0] <= 0.2


def test_cancelling_ends_the_pause_between_two_tries() -> None:
    """At the next check, too, until it is cleared."""
    etcd = Etcd()
    asking = calls(etcd)
    asking.until_answered(etcd.ask)
    etcd.failures = 1000
    threading.Timer(0.2, asking.cancelled.set).start()
    began = clock.now()
    with pytest.raises(Cancelled):
        asking.until_answered(etcd.ask)
    assert clock.now() - began < 1.5
    with pytest.raises(Cancelled):
        asking.check()
    asking.cancelled.clear()
    asking.check()


def test_nonblock_does_not_repeat_once_etcd_has_answered() -> None:
    """It has the time of one request."""
    etcd = Etcd()
    asking = calls(etcd, nonblock=True)
    asking.until_answered(etcd.ask)
    etcd.failures = 1
    with pytest.raises(Unreachable):
        asking.until_answered(etcd.ask)
    assert etcd.logged == []
