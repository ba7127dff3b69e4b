"""Requests to run a job now: their order, our turn at them, and everything that can become of one meanwhile."""

import asyncio
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from conch.cron import requests as requests_module
from conch.cron.fleet import TURN_S, Turn
from conch.cron.requests import RequestPorts, Requests
from conch.cron.seconds import Seconds
from conch.cron.ticks import (
    STOPPING,
    TOO_LATE,
    Claim,
    PendingTick,
    TickGivenUp,
    TickLost,
    TickOver,
    TickSkipped,
    TickState,
    TickWaits,
    TickWon,
)
from conch.etcd.store import KeyValue
from conch.keys import Keys
from tests.support.parts import TICK, World, lost_reply, tracked
from tests.support.virtual_loop import Log, VirtualLoop

KEYS = Keys("/p")
FREE = Seconds(TICK, TICK + 1000, frozenset())
WON = TickWon(20, 20, 77, 3)


def request(rev: int, lease: int = 0xABC) -> KeyValue:
    return KeyValue(b"/now", b"{}", rev, rev, lease)


class Bed(World):
    """The requests of jobs; `found` scripts what etcd says is free, `claims` what becomes of each claim."""

    def __init__(self, loop: VirtualLoop, log: Log, monkeypatch: pytest.MonkeyPatch, *claims: Claim | None) -> None:
        super().__init__(loop, log, schedule="@yearly")
        self.claims = list(claims)
        self.found: list[Any] = []
        self.looked: list[tuple[float, int]] = []
        self.started: list[tuple[float, PendingTick]] = []
        self.settle: Callable[[Claim], None] = lambda claim: None
        self.closed = self.not_here = ""
        self.turns = 0
        self.taken: set[tuple[str, int]] = set()
        ports = RequestPorts(
            host="h",
            why_not_here=lambda _: self.not_here,
            tracked=lambda name: self.tracked if name == "j" else None,
            is_pending=lambda tick_id: tick_id in self.taken,
            why_closed=lambda: self.closed,
            turn=lambda job, number: Turn(self.turns * TURN_S, ()),
            start=self._start,
            draining=lambda: self.draining,
        )
        store: Any = None
        self.requests = Requests(
            *(store, KEYS, ports, self.tasks, self.workers, self.clock, log),
            timeout_s=5.0,
        )
        monkeypatch.setattr(requests_module, "read_seconds", self._read)

    def _read(self, store: Any, keys: Any, name: str, asked: tuple[int, int], now: int, *, timeout_s: float) -> Any:
        self.looked.append((self.now(), asked[0]))
        found = self.found.pop(0) if self.found else FREE
        if callable(found):
            found = found()
        if isinstance(found, Exception):
            raise found
        return found

    def _start(self, tick: PendingTick, on_claim: Callable[[Claim], None]) -> None:
        self.started.append((self.now(), tick))
        self.settle = on_claim
        claim = self.claims.pop(0) if self.claims else WON
        if claim is not None:
            self.loop.call_later(0.001, on_claim, claim)

    def go(self, seconds: float = 5.0) -> None:
        self.loop.run(asyncio.sleep(seconds))
        self.check()

    def numbers(self) -> list[int]:
        """The requests whose claims were begun, in order."""
        return [tick.number for _, tick in self.started]

    def left(self) -> list[int]:
        """The requests that are still known."""
        return [number for some in self.requests._requests.values() for number in some]


# -- who is served, and when ----------------------------------------------------------------------------------


def test_request_gets_a_tick(loop: VirtualLoop, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first free second, for the job as it is, with the request's own revision, lease and number."""
    bed = Bed(loop, log, monkeypatch)
    bed.found = [Seconds(TICK + 3, TICK + 1000, frozenset({TICK + 3}))]
    bed.requests.on_request("j", 7, request(30))
    bed.go()
    ((at, tick),) = bed.started
    assert (tick.tick, tick.job_rev, tick.request_rev, tick.request, tick.number) == (TICK + 4, 5, 30, "abc", 7)
    assert at < 0.05
    assert tick.deadline == pytest.approx(TICK + 60, abs=0.1)  # the time to claim it begins now
    assert bed.left() == []


def test_oldest_first_one_at_a_time(loop: VirtualLoop, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """By create-revision, not by number; the next is begun after the claim of the one before."""
    bed = Bed(loop, log, monkeypatch)
    for number, rev in ((1, 33), (2, 31), (3, 32)):
        bed.requests.on_request("j", number, request(rev))
    bed.requests.on_request("j", 2, request(31))  # heard twice
    bed.go()
    assert bed.numbers() == [2, 3, 1]


@pytest.mark.parametrize(("turn", "after_s"), [(0, 0.0), (1, 0.1), (3, 0.3)])
def test_turn(loop: VirtualLoop, log: Log, monkeypatch: pytest.MonkeyPatch, turn: int, after_s: float) -> None:
    """The first in rank serves it immediately, each other one turn later, if it is still there."""
    bed = Bed(loop, log, monkeypatch)
    bed.turns = turn
    bed.requests.on_request("j", 1, request(30))
    bed.go()
    assert bed.looked[0][0] == pytest.approx(after_s, abs=0.01)


def test_request_that_another_host_serves_in_its_turn(
    loop: VirtualLoop, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its event ends our wait, and the next request gets its own."""
    bed = Bed(loop, log, monkeypatch)
    bed.turns = 2
    bed.requests.on_request("j", 1, request(30))
    bed.requests.on_request("j", 2, request(31))
    loop.at(0.1, lambda: bed.requests.on_gone("j", 1))
    bed.go()
    assert bed.numbers() == [2]
    assert bed.looked[0][0] == pytest.approx(0.3, abs=0.01)


def test_request_without_a_lease(loop: VirtualLoop, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing would ever take it away."""
    bed = Bed(loop, log, monkeypatch)
    with pytest.raises(ValueError, match="a request needs a lease"):
        bed.requests.on_request("j", 1, request(30, 0))
    assert bed.left() == []


def test_requests_for_unknown_jobs(loop: VirtualLoop, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """They wait for the job, and are not kept without end; those of known jobs are all kept."""
    bed = Bed(loop, log, monkeypatch)
    for number in range(1005):
        bed.requests.on_request("unknown", number, request(30 + number))
    assert len(bed.left()) == 1000
    bed.requests.on_request("j", 5000, request(5000))
    assert len(bed.left()) == 1001
    bed.go()
    assert bed.numbers() == [5000]


def test_request_that_was_there_before_its_job(loop: VirtualLoop, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Bed(loop, log, monkeypatch)
    bed.tracked = None
    bed.requests.on_request("j", 1, request(30))
    bed.go(1.0)
    assert bed.started == []
    bed.tracked = tracked(schedule="@yearly")
    bed.requests.serve("j")
    bed.requests.serve("j")
    bed.go(1.0)
    assert bed.numbers() == [1]


def test_listing_without_a_request(loop: VirtualLoop, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Bed(loop, log, monkeypatch)
    bed.closed = "full"
    for number in (1, 2):
        bed.requests.on_request("j", number, request(30 + number))
    bed.requests.keep_only({KEYS.cron("now", "j", 2).encode()})
    assert bed.left() == [2]
    bed.requests.on_gone("j", 9)
    bed.requests.on_gone("k", 2)
    assert bed.left() == [2]


# -- what becomes of a claim ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "claim", [WON, TickWaits(20), TickOver(20, 20, TOO_LATE), TickSkipped("a run is alive")], ids=lambda c: str(type(c))
)
def test_claim_that_deletes_the_request(
    loop: VirtualLoop, log: Log, monkeypatch: pytest.MonkeyPatch, claim: Claim
) -> None:
    """It is done with, before its event arrives."""
    bed = Bed(loop, log, monkeypatch, claim)
    bed.requests.on_request("j", 1, request(30))
    bed.go()
    assert bed.numbers() == [1]
    assert bed.left() == []


@pytest.mark.parametrize("claim", [TickLost(), TickGivenUp(None), TickGivenUp("the job was changed")])
def test_tick_that_it_does_not_get(loop: VirtualLoop, log: Log, monkeypatch: pytest.MonkeyPatch, claim: Claim) -> None:
    """It gets another, after growing pauses, for as long as it is there."""
    bed = Bed(loop, log, monkeypatch, *[claim] * 12)
    bed.requests.on_request("j", 1, request(30))
    bed.go(30.0)
    assert len(bed.started) == 13
    times = [at for at, _ in bed.started]
    pauses = [round(b - a, 2) for a, b in pairwise(times)]
    assert pauses == sorted(pauses)
    assert pauses[0] < 0.01
    assert pauses[-1] == pytest.approx(2.0, abs=0.01)
    assert len({tick.run for _, tick in bed.started}) == 13


def test_new_request_under_the_number_of_a_claimed_one(
    loop: VirtualLoop, log: Log, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The claim's answer comes after the events of both: the new request is not forgotten with the old one."""
    bed = Bed(loop, log, monkeypatch, None)
    bed.requests.on_request("j", 1, request(30))
    bed.go(0.1)
    bed.requests.on_gone("j", 1)
    bed.requests.on_request("j", 1, request(40))
    bed.settle(WON)
    bed.go()
    assert [tick.request_rev for _, tick in bed.started] == [30, 40]
    assert bed.left() == []


@pytest.mark.parametrize(
    ("state", "unclear", "cancelled"),
    [(TickState.WAITING, False, True), (TickState.WAITING, True, False), (TickState.CLAIMING, False, False)],
)
def test_request_that_goes_while_it_is_being_claimed(
    loop: VirtualLoop, log: Log, monkeypatch: pytest.MonkeyPatch, state: TickState, unclear: bool, cancelled: bool
) -> None:
    """A claim that is, or may be, ours has deleted it, and goes on to its outcome; one that only waits is given up."""
    bed = Bed(loop, log, monkeypatch, None)
    bed.requests.on_request("j", 1, request(30))
    bed.go(0.1)
    tick = bed.started[0][1]
    tick.state, tick.unclear = state, unclear
    bed.requests.on_gone("j", 1)
    assert tick.cancelled == cancelled
    bed.settle(TickLost())
    bed.go()
    assert len(bed.started) == 1


# -- while it looks for a second ------------------------------------------------------------------------------


def test_request_that_etcd_does_not_have_any_more(loop: VirtualLoop, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Bed(loop, log, monkeypatch)
    bed.found = [None]
    bed.requests.on_request("j", 1, request(30))
    bed.requests.on_request("j", 2, request(31))
    bed.go()
    assert bed.numbers() == [2]
    assert bed.left() == []


def test_no_second_is_in_reach(loop: VirtualLoop, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """As time goes on, seconds come into reach."""
    bed = Bed(loop, log, monkeypatch)
    bed.found = [Seconds(TICK, TICK, frozenset())] * 2
    bed.requests.on_request("j", 1, request(30))
    bed.go()
    assert [round(at) for at, _ in bed.looked] == [0, 1, 2]
    assert bed.numbers() == [1]


def test_second_of_the_schedule_is_not_a_requests(loop: VirtualLoop, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """But of a job that is paused all seconds are free."""
    bed = Bed(loop, log, monkeypatch)
    bed.tracked = tracked(schedule="* * * * *")
    bed.requests.on_request("j", 1, request(30))
    bed.go()
    bed.tracked = tracked(schedule="* * * * *", paused=True)
    bed.found = [FREE]
    bed.requests.on_request("j", 2, request(31))
    bed.go()
    assert [tick.tick for _, tick in bed.started] == [TICK + 1, TICK]


def test_etcd_does_not_answer(loop: VirtualLoop, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """One line of the log; it looks again, more and more rarely."""
    bed = Bed(loop, log, monkeypatch)
    bed.found = [lost_reply() for _ in range(8)]
    bed.requests.on_request("j", 1, request(30))
    bed.go(20.0)
    assert bed.numbers() == [1]
    assert len(log.events("claim-failed")) == 1
    times = [at for at, _ in bed.looked]
    assert times[-1] - times[-2] == pytest.approx(2.0, abs=0.01)


def _gone(bed: Bed) -> None:
    bed.requests.on_gone("j", 1)


def _edit(bed: Bed) -> None:
    assert bed.tracked is not None
    bed.tracked.rev = 6


def _full(bed: Bed) -> None:
    bed.closed = "as many runs as this daemon may have: 1"
    bed.loop.at(1.0, lambda: setattr(bed, "closed", ""))


def _tick_taken(bed: Bed) -> None:
    bed.taken.add(("j", TICK))
    bed.loop.at(0.05, bed.taken.clear)


def _drain(bed: Bed) -> None:
    bed.draining = True


def _remove(bed: Bed) -> None:
    bed.tracked = None


@pytest.mark.parametrize(
    ("event", "served_at"),
    [
        (_gone, None),
        (_edit, 0.1),
        (_full, 1.0),
        (_tick_taken, 0.1),
        (_remove, None),
    ],
)
def test_what_happens_while_it_looks(
    loop: VirtualLoop,
    log: Log,
    monkeypatch: pytest.MonkeyPatch,
    event: Callable[[Bed], None],
    served_at: float | None,
) -> None:
    """A second that was found for another world is not claimed: it looks again."""
    bed = Bed(loop, log, monkeypatch)

    def found() -> Seconds:
        event(bed)
        return FREE

    bed.found = [found]
    bed.requests.on_request("j", 1, request(30))
    bed.go()
    if served_at is None:
        assert bed.started == []
    else:
        ((at, tick),) = bed.started
        assert at == pytest.approx(served_at, abs=0.25)
        assert len(bed.looked) == 2
        assert bed.tracked is not None
        assert tick.job_rev == bed.tracked.rev


@pytest.mark.parametrize("when", ["in its turn", "while it waits for room"])
def test_nothing_is_begun_while_it_drains(
    loop: VirtualLoop, log: Log, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    bed = Bed(loop, log, monkeypatch)
    bed.turns = 3 if when == "in its turn" else 0
    bed.closed = "" if when == "in its turn" else "full"
    bed.requests.on_request("j", 1, request(30))

    def drain() -> None:
        bed.draining, bed.closed = True, ""

    loop.at(0.1, drain)
    bed.go()
    assert (bed.started, bed.looked) == ([], [])


def test_claim_that_is_given_up_at_the_end(loop: VirtualLoop, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Bed(loop, log, monkeypatch, None)
    bed.requests.on_request("j", 1, request(30))
    bed.go(0.1)
    bed.draining = True
    bed.settle(TickGivenUp(STOPPING))
    bed.go()
    assert len(bed.started) == 1


@pytest.mark.parametrize("closed_s", [0.1, 3.0])
def test_it_waits_for_room(loop: VirtualLoop, log: Log, monkeypatch: pytest.MonkeyPatch, closed_s: float) -> None:
    """It looks for a second only when it could claim it."""
    bed = Bed(loop, log, monkeypatch)
    bed.closed = "not registered in etcd"
    loop.at(closed_s, lambda: setattr(bed, "closed", ""))
    bed.requests.on_request("j", 1, request(30))
    bed.go()
    assert closed_s <= bed.looked[0][0] <= closed_s + 0.25
    assert len(bed.looked) == 1


def test_older_request_that_is_heard_of_later(loop: VirtualLoop, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """As after a listing: it is served before the newer one that waits."""
    bed = Bed(loop, log, monkeypatch)
    bed.closed = "full"
    bed.requests.on_request("j", 2, request(31))
    loop.at(0.1, lambda: bed.requests.on_request("j", 1, request(30)))
    loop.at(0.15, lambda: setattr(bed, "closed", ""))
    bed.go()
    assert bed.numbers() == [1, 2]


def test_job_that_is_removed_and_comes_back(loop: VirtualLoop, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Bed(loop, log, monkeypatch)
    bed.closed = "full"
    bed.requests.on_request("j", 1, request(30))
    loop.at(0.5, lambda: _remove(bed))
    bed.go(1.0)
    bed.closed, bed.tracked = "", tracked(schedule="@yearly")
    bed.requests.serve("j")
    bed.go()
    assert bed.numbers() == [1]
