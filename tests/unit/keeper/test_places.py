"""Our places in several queues under one lease: which one decides, and which keys say that one is lost."""

from collections.abc import Callable
from typing import Any

import pytest

from conch.keeper.places import Places
from conch.keeper.queue import Place, PlaceLost


class Queue:
    """A queue in which each reading gives the next place of a script."""

    def __init__(self, key: str, *script: Place | Exception) -> None:
        self.key = key
        self.script = list(script)
        self.asked: list[tuple[int, float]] = []

    def read(self, rev: int, *, timeout_s: float) -> Place:
        self.asked.append((rev, timeout_s))
        answer = self.script.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


def entered(*queues: tuple[Queue, Place]) -> Places:
    places = Places()
    for queue, place in queues:
        its: Any = queue
        places.add(its, place)
    return places


def answered(read: Callable[[float], Place]) -> Place:
    """Etcd answers within the time."""
    return read(2.5)


HOST = Place(5, (), 7)
WAITS = Place(6, (b"/s/a", b"/s/b"), 8)


def test_there_are_none_at_first() -> None:
    places = Places()
    assert not places
    places.check_deleted(b"/anything")
    assert entered((Queue("/h/me"), HOST))


def test_queue_entered_last_decides() -> None:
    host, slots = Queue("/h/me"), Queue("/s/me")
    places = entered((host, HOST), (slots, WAITS))
    assert places.last == (slots, WAITS)


def test_each_place_is_read_anew_by_its_revision() -> None:
    """In the order in which they were entered; later readings begin with what was read."""
    host = Queue("/h/me", Place(5, (), 20), Place(5, (), 30))
    slots = Queue("/s/me", Place(6, (b"/s/b",), 21), Place(6, (), 31))
    places = entered((host, HOST), (slots, WAITS))
    assert places.read(answered) == Place(6, (b"/s/b",), 21)
    assert places.watched_keys() == {b"/s/b": 21, b"/h/me": 20, b"/s/me": 21}
    assert places.read(answered) == Place(6, (), 31)
    assert places.last == (slots, Place(6, (), 31))
    assert host.asked == [(5, 2.5)] * 2
    assert slots.asked == [(6, 2.5)] * 2


@pytest.mark.parametrize("lost", [0, 1])
def test_place_that_is_lost_in_any_queue_is_lost(lost: int) -> None:
    """Without the host's place a hold of two may be held by one host."""
    queues = [Queue("/h/me", HOST), Queue("/s/me", WAITS)]
    queues[lost].script = [PlaceLost()]
    with pytest.raises(PlaceLost):
        entered((queues[0], HOST), (queues[1], WAITS)).read(answered)


def test_reading_is_repeated_for_its_own_queue() -> None:
    """Until etcd answers: a try that failed is not made at the next queue."""
    host = Queue("/h/me", TimeoutError(), Place(5, (), 20))
    slots = Queue("/s/me", TimeoutError(), Place(6, (), 21))

    def until_answered(read: Callable[[float], Place]) -> Place:
        with pytest.raises(TimeoutError):
            read(1.0)
        return read(2.0)

    assert entered((host, HOST), (slots, WAITS)).read(until_answered) == Place(6, (), 21)
    assert host.asked == [(5, 1.0), (5, 2.0)]
    assert slots.asked == [(6, 1.0), (6, 2.0)]


@pytest.mark.parametrize(
    ("key", "is_ours"), [(b"/h/me", True), (b"/s/me", True), (b"/s/a", False), (b"/s/me2", False), (b"", False)]
)
def test_deleted_key(key: bytes, is_ours: bool) -> None:
    """One of our own; those ahead of us are good news."""
    places = entered((Queue("/h/me"), HOST), (Queue("/s/me"), WAITS))
    if is_ours:
        with pytest.raises(PlaceLost):
            places.check_deleted(key)
    else:
        places.check_deleted(key)


def test_watched_keys() -> None:
    """Ours in each queue, and those ahead of us in the last, each from the revision at which it was seen.

    In an earlier queue we are first, so nobody there is waited for.
    """
    places = entered((Queue("/h/me"), Place(5, (b"/h/other",), 7)), (Queue("/s/me"), WAITS))
    assert places.watched_keys() == {b"/h/me": 7, b"/s/a": 8, b"/s/b": 8, b"/s/me": 8}
