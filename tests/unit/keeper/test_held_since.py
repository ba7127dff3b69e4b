"""The time since when we hold is written in a thread of its own, and nothing depends on it."""

import json
from collections.abc import Callable
from typing import Any

import pytest

from conch import threads
from conch.etcd.connection import Connection
from conch.etcd.store import Full, LeaseGone, Refused, StoreError, Unreachable
from conch.keeper import held_since
from conch.keeper.hold_spec import HoldSpec

WHO = {"host": "h", "pid": 1, "started": "2026-01-01T00:00:00Z", "cmd": "c", "more": [1]}
VALUE = json.dumps(WHO).encode()


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


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The thread's work is done when it would be started."""

    def start_later(seconds: float, work: Callable[..., object], *arguments: Any) -> None:
        assert seconds > 0
        work(*arguments)

    monkeypatch.setattr(threads, "start_later", start_later)


def write(queue: Queue, *, value: bytes = VALUE, held: bool = True, verbose: bool = True) -> list[str]:
    """Have it written; return the events that are logged."""
    logged: list[str] = []
    spec = HoldSpec(Connection((), 2.0, 1.0), "office o", (), 10, 5.0, value, verbose=verbose)
    its: Any = queue
    held_since.write_later(its, 7, spec, lambda: held, lambda level, event, **_: logged.append(f"{level} {event}"))
    return logged


def test_time_is_added_to_what_the_key_says() -> None:
    """Unknown fields stay."""
    queue = Queue()
    assert write(queue) == []
    ((rev, said, timeout_s),) = queue.written
    assert said.pop("held_since").endswith("Z")
    assert (rev, said, timeout_s) == (7, WHO, 1.0)


def test_hold_that_is_over_is_not_written_about() -> None:
    queue = Queue()
    write(queue, held=False)
    assert queue.written == []


@pytest.mark.parametrize("error", [Refused("denied"), Full("quota"), LeaseGone("gone"), Unreachable("away")])
def test_etcd_that_does_not_take_it_is_a_line_for_debugging(error: StoreError) -> None:
    assert write(Queue(error)) == ["debug since-not-written"]
    assert write(Queue(error), verbose=False) == []


def test_value_that_is_no_holders_stays_as_it_is() -> None:
    queue = Queue()
    assert write(queue, value=b"[]") == ["debug since-not-written"]
    assert queue.written == []


def test_system_without_room_for_a_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    """The hold goes on."""

    def no_room(*_: object) -> None:
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threads, "start_later", no_room)
    assert write(Queue()) == []
