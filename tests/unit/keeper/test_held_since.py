"""The time since when we hold is written in a thread of its own, and nothing depends on it."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from conch import threads
from conch.core import clock
from conch.etcd.connection import Connection
from conch.etcd.store import Full, LeaseGone, Refused, StoreError, Unreachable
from conch.keeper.held_since import HeldSince
from conch.keeper.hold_spec import HoldSpec

WHO = {"host": "h", "pid": 1, "started": "2026-01-01T00:00:00Z", "cmd": "c", "more": [1]}
VALUE = json.dumps(WHO).encode()
REV = 7


class Queue:
    """Notes what is written, or refuses it."""

    def __init__(self, error: StoreError | None = None) -> None:
        self.written: list[tuple[int, dict[str, Any], float]] = []
        self.error = error

    def describe(self, rev: int, value: bytes, *, timeout_s: float) -> bool:
        if self.error is not None:
            raise self.error
        self.written.append((rev, json.loads(value), timeout_s))
        return True


class Inbox:
    """An inbox in which a message arrives so many seconds from now; the clock is its own."""

    def __init__(self, arrives_s: float) -> None:
        self.now = 1000.0
        self.arrives_at = self.now + arrives_s

    def get(self, timeout: float | None = None) -> str:
        if timeout is not None and self.now + timeout < self.arrives_at:
            self.now += max(timeout, 0.001)
            raise threads.Empty
        self.now = self.arrives_at
        return "message"


class Bed:
    """What is to be written, and the threads that were started to do it; they are done at once."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, inbox: Inbox) -> None:
        self.inbox = inbox
        self.threads = 0
        self.room = True
        self.logged: list[str] = []
        monkeypatch.setattr(threads, "start", self.start)
        monkeypatch.setattr(clock, "now", lambda: inbox.now)

    def start(self, work: Callable[..., object], *arguments: Any) -> None:
        if not self.room:
            raise RuntimeError("can't start new thread")
        self.threads += 1
        work(*arguments)

    def holds(self, queue: Queue, *, value: bytes = VALUE, verbose: bool = True) -> HeldSince:
        its: Any = queue
        spec = HoldSpec(Connection((), 2.0, 1.0), "office o", (), 10, 5.0, value, verbose=verbose)
        since = HeldSince(spec, lambda level, event, **_: self.logged.append(f"{level} {event}"))
        since.begin(its, REV)
        return since

    def waits(self, since: HeldSince) -> None:
        its: Any = self.inbox
        assert since.next_of(its) == "message"
        assert self.inbox.now == self.inbox.arrives_at, "the message is not late"


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> Bed:
    """A hold about which there is nothing to do for ten seconds."""
    return Bed(monkeypatch, Inbox(10.0))


def test_time_is_added_to_what_the_key_says(bed: Bed) -> None:
    """Unknown fields stay. It is written once."""
    queue = Queue()
    since = bed.holds(queue)
    bed.waits(since)
    bed.waits(since)
    ((rev, said, timeout_s),) = queue.written
    assert said.pop("held_since").endswith("Z")
    assert (rev, said, timeout_s) == (REV, WHO, 1.0)
    assert (bed.threads, bed.logged) == (1, [])


def test_short_hold_costs_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """A message that arrives early is returned early, and what is to be written is still due."""
    bed, queue = Bed(monkeypatch, Inbox(0.1)), Queue()
    since = bed.holds(queue)
    bed.waits(since)
    assert (bed.threads, queue.written) == (0, [])
    bed.inbox.arrives_at += 10.0
    bed.waits(since)
    assert bed.threads == len(queue.written) == 1


def test_hold_that_is_over_is_not_written_about(bed: Bed) -> None:
    queue = Queue()
    since = bed.holds(queue)
    since.cancel()
    bed.waits(since)
    assert (bed.threads, queue.written) == (0, [])


@pytest.mark.parametrize("error", [Refused("denied"), Full("quota"), LeaseGone("gone"), Unreachable("away")])
@pytest.mark.parametrize("verbose", [True, False])
def test_etcd_that_does_not_take_it_is_a_line_for_debugging(bed: Bed, error: StoreError, verbose: bool) -> None:
    bed.waits(bed.holds(Queue(error), verbose=verbose))
    assert bed.logged == (["debug since-not-written"] if verbose else [])


def test_value_that_is_no_holders_stays_as_it_is(bed: Bed) -> None:
    queue = Queue()
    bed.waits(bed.holds(queue, value=b"[]"))
    assert (bed.logged, queue.written) == (["debug since-not-written"], [])


def test_system_without_room_for_a_thread(bed: Bed) -> None:
    """The hold goes on."""
    bed.room = False
    queue = Queue()
    bed.waits(bed.holds(queue))
    assert (bed.logged, queue.written) == ([], [])
