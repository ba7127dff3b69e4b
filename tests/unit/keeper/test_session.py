"""Many renewals that fail at the same time share the room for asking members in parallel, and all come through."""

from collections.abc import Callable
from typing import cast

from conch.core import clock
from conch.etcd.store import Header, KeyValue, Lease, Range, RangeResult, Store, Unreachable
from conch.keeper.session import Session
from tests.support.conch import wait_for

HEAD = Header(5, 1, 1)


class AwayUntil:
    """A store of one member that does not answer before `answers_at`."""

    def __init__(self, answers_at: float) -> None:
        self.answers_at = answers_at
        self.asking: list[None] = []  # one for each thread that asks in parallel, until it closes its store
        self.most_threads = 0

    def each_member(self) -> list["AwayUntil"]:
        self.asking.append(None)
        return [self]

    def keep_alive(self, lease: int, *, timeout_s: float) -> Lease:
        self.most_threads = max(self.most_threads, len(self.asking))
        if clock.now() < self.answers_at:
            raise Unreachable("away")
        return Lease(HEAD, 10)

    def range(self, what: Range, *, timeout_s: float) -> RangeResult:
        return RangeResult(HEAD, (KeyValue(what.key, b"", 3, 3, int(what.key)),), 1)

    def close(self) -> None:
        self.asking.pop()


def test_renewals_of_many_holds_share_the_room_and_all_come_through() -> None:
    """As conchd has them, one a run with a semaphore; none waits for another's to be over."""
    began = clock.now()
    store = AwayUntil(began + 1.0)
    confirmed: dict[int, float] = {}
    lost: list[str] = []
    sessions = []

    def note(lease: int) -> Callable[[float], None]:
        return lambda _deadline: cast("None", confirmed.setdefault(lease, clock.now()))

    for lease in range(1, 41):
        session = Session(
            cast("Store", store),
            lease,
            10.0,
            began - 2.0,
            should_renew=lambda: True,
            renewed=note(lease),
            lost=lost.append,
            log=lambda *_, **__: None,
        )
        session.follow(str(lease), 3)
        sessions.append(session)
    try:
        wait_for(lambda: len(confirmed) == 40, "all to be confirmed")
    finally:
        for session in sessions:
            session.stop()
    assert not lost
    assert max(confirmed.values()) < store.answers_at + 3
    assert 0 < store.most_threads <= 16 * 4
    wait_for(lambda: not store.asking, "no thread left")


def test_renewals_go_on_where_they_were_not_wanted_for_a_while() -> None:
    """As a supervisor that was stopped and wakes has it: whoever asked has left meanwhile, and others must begin."""
    began = clock.now()
    store = AwayUntil(began + 4.0)
    confirmed: list[float] = []
    session = Session(
        cast("Store", store),
        1,
        10.0,
        began - 2.0,
        should_renew=lambda: not 2.4 < clock.now() - began < 3.1,
        renewed=lambda _deadline: confirmed.append(clock.now()),
        lost=lambda _reason: None,
        log=lambda *_, **__: None,
    )
    session.follow("1", 3)
    try:
        wait_for(lambda: clock.now() > began + 2.8, "the time in which it is not wanted")
        session.renew_now()  # puts off what the session itself would notice
        wait_for(lambda: confirmed, "to be confirmed", 5)
    finally:
        session.stop()
    assert confirmed[0] < store.answers_at + 1.5
