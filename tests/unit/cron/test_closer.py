"""Closing unclear claims: what each answer settles, when etcd can be asked, and that none is forgotten."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from conch.cron.claim_outcomes import Again, Busy, Changed, NodeGone, Taken, Won
from conch.cron.claimer import ClaimPorts
from conch.cron.closer import Closed, Closer
from conch.cron.ticks import (
    CHANGED,
    REMOVED,
    STOPPING,
    TOO_LATE,
    PendingTick,
    Registration,
    TickGivenUp,
    TickLost,
    TickOver,
    TickReopened,
    TickState,
)
from conch.cron.writes import RETRY_EVERY_S, WriteKind, was_refused
from conch.etcd.store import StoreError
from tests.support.parts import ME, TICK, World, fire_key, lost_reply, pending, refusal, run_key, script
from tests.support.virtual_loop import Log, VirtualLoop


class Bed(World):
    """A closer, and what the other parts would answer it."""

    def __init__(self, loop: VirtualLoop, log: Log, *answers: Any) -> None:
        super().__init__(loop, log)
        self.store = script(*answers)
        ports = ClaimPorts(
            tracked=lambda name: self.tracked,
            registration=lambda: self.registration,
            draining=lambda: self.draining,
            read_job=lambda name, kv: None,
            unreadable=lambda key, why: None,
            waiting=lambda: 0,
            why_not_here=lambda _: "",
        )
        self.closer = Closer(
            *(self.store, ports, self.transactions, self.workers, self.writes, self.clock, ME),
            report=self._report,
            releasing=lambda: self.releasing,
            timeout_s=5.0,
        )
        self.writes.connect(probers=(self.closer.probes.probe,), resumed=(self.closer.probes.resume,))

    def _report(self, tick: PendingTick, error: StoreError) -> None:
        tick.refused = was_refused(error)
        self.writes.failed("claim-failed", error)

    def unclear(self, run: str = "mine", **fields: Any) -> PendingTick:
        tick = pending(run, **fields)
        tick.unclear = True
        return tick

    def close(self, reason: str | None, **fields: Any) -> Closed:
        tick = self.unclear()
        for name, value in fields.items():
            setattr(tick, name, value)
        closed = self.loop.run(self.closer.close(tick, reason))
        assert tick.state is TickState.CLOSING
        assert (self.closer.unclear, self.closer.under_way) == ({}, 0)
        self.tick = tick
        return closed


OURS = (fire_key("mine"), None)
OURS_WITH_RUN_KEY = (fire_key("mine"), run_key("mine", TICK, 22))
OURS_BEFORE_ANOTHER_RUN = (fire_key("mine"), run_key("other", TICK, 22))
ANOTHERS = (fire_key("other"), None)
NOBODYS = (None, None)


@pytest.mark.parametrize(
    ("answers", "closed", "asked", "unclear"),
    [
        # of a tick that is too late: it is claimed to be skipped, for a look would not keep a late try from landing
        ([Won(20, 77, None)], TickOver(20, None, TOO_LATE), ["claim_to_skip"], True),
        ([Won(20, 77, 22)], TickOver(20, 22, TOO_LATE), ["claim_to_skip"], True),
        ([Taken("claimed by another")], TickGivenUp(None), ["claim_to_skip"], False),
        ([Changed(None)], TickGivenUp(None), ["claim_to_skip"], False),
        ([Busy(None)], TickGivenUp(None), ["claim_to_skip"], False),
        ([Again(True), Won(20, 77, None)], TickOver(20, None, TOO_LATE), ["claim_to_skip"] * 2, True),
        ([NodeGone(), OURS], TickOver(21, None, TOO_LATE), ["claim_to_skip", "whose"], True),
        ([NodeGone(), NOBODYS], TickGivenUp(None), ["claim_to_skip", "whose"], False),
        ([NodeGone(), ANOTHERS], TickLost(), ["claim_to_skip", "whose"], True),
        ([lost_reply(), Won(20, 77, None)], TickOver(20, None, TOO_LATE), ["claim_to_skip"] * 2, True),
    ],
)
def test_too_late(
    loop: VirtualLoop, log: Log, answers: list[Any], closed: Closed, asked: list[str], unclear: bool
) -> None:
    bed = Bed(loop, log, *answers)
    assert bed.close(None) == closed
    assert bed.store.asked == asked
    assert bed.tick.unclear == unclear


def test_floor_that_an_answer_tells_is_remembered(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log, Again(True), Won(20, 77, None))
    bed.close(None)
    assert bed.tracked is not None
    assert bed.tracked.has_floor
    assert [options["has_floor"] for _, options in bed.store.arguments] == [False, True]


@pytest.mark.parametrize(
    ("reason", "answers", "requested", "closed"),
    [
        (STOPPING, [OURS], False, TickOver(21, None, STOPPING)),
        (REMOVED, [OURS_WITH_RUN_KEY], False, TickOver(21, 22, REMOVED)),
        (CHANGED, [OURS_BEFORE_ANOTHER_RUN], False, TickOver(21, None, CHANGED)),
        (STOPPING, [ANOTHERS], False, TickLost()),
        (CHANGED, [NOBODYS], False, TickReopened()),
        (STOPPING, [NOBODYS], False, TickGivenUp(STOPPING)),
        (REMOVED, [lost_reply(), NOBODYS], False, TickGivenUp(REMOVED)),
        # a request gets another second, whoever has this one
        (CHANGED, [NOBODYS], True, TickGivenUp(CHANGED)),
        (CHANGED, [ANOTHERS], True, TickGivenUp(CHANGED)),
    ],
)
def test_given_up_for_a_reason(
    loop: VirtualLoop, log: Log, reason: str, answers: list[Any], requested: bool, closed: Closed
) -> None:
    """A claim that lands later does not find the job, or us, as they were: a look is enough."""
    bed = Bed(loop, log, *answers)
    assert bed.close(reason, request_rev=9 if requested else 0) == closed
    assert set(bed.store.asked) == {"whose"}
    assert bed.tick.unclear == isinstance(closed, TickOver | TickLost)


def test_job_that_is_gone_is_only_looked_up(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log, NOBODYS)
    bed.tracked = None
    assert bed.close(None) == TickGivenUp(None)
    assert bed.store.asked == ["whose"]


# -- when etcd can be asked -----------------------------------------------------------------------------------


def _register(bed: Bed) -> None:
    bed.registration = Registration(4, 9, 30)
    bed.closer.wake()


def _release(bed: Bed) -> None:
    bed.releasing = True
    bed.closer.wake()


@pytest.mark.parametrize(
    ("event", "asked"), [(_register, ["claim_to_skip"]), (_release, ["whose"])], ids=["registered", "releasing"]
)
def test_without_a_registration_it_waits(
    loop: VirtualLoop, log: Log, event: Callable[[Bed], None], asked: list[str]
) -> None:
    """A claim may land for as long as the old registration lasts, and must be seen then."""
    bed = Bed(loop, log, Won(20, 77, None) if event is _register else OURS)
    bed.registration = None
    loop.at(2.0, bed.closer.wake)  # for nothing
    loop.at(5.0, lambda: event(bed))
    assert bed.close(None) == TickOver(20 if event is _register else 21, None, TOO_LATE)
    assert bed.now() >= 5.0
    assert bed.store.asked == asked


def test_registration_that_is_lost_as_it_waits_for_a_probe(loop: VirtualLoop, log: Log) -> None:
    """Nothing is settled by a lookup then: the claim may land for as long as the old registration lasts."""
    bed = Bed(loop, log, lost_reply(), NOBODYS)
    loop.at(0.01, lambda: setattr(bed, "registration", None))
    loop.at(9.0, lambda: _register(bed))
    assert bed.close(None) == TickGivenUp(None)
    assert bed.store.asked == ["claim_to_skip", "claim_to_skip"]
    assert loop.seconds - 1000.0 >= 9.0


@pytest.mark.parametrize("failures", [1, 3])
def test_while_etcd_takes_no_writes_only_a_probe_is_sent(loop: VirtualLoop, log: Log, failures: int) -> None:
    """Each failure is reported, and paced by the breaker."""
    bed = Bed(loop, log, *[lost_reply() for _ in range(failures)], Won(20, 77, None))
    assert bed.close(None) == TickOver(20, None, TOO_LATE)
    assert bed.store.asked == ["claim_to_skip"] * (failures + 1)
    assert bed.now() >= (0.05 if failures == 1 else 0.05 + 0.1 + 0.2)
    assert not bed.writes.is_open
    assert len(log.events("claim-failed")) == 1


def test_breaker_that_opens_before_the_first_try(loop: VirtualLoop, log: Log) -> None:
    """And opens while the call queues for a worker: nothing was sent, and it is tried again."""
    bed = Bed(loop, log, Won(20, 77, None))
    loop.at(0.0005, lambda: bed.writes.failed("not-delivered", lost_reply()))
    assert bed.close(None) == TickOver(20, None, TOO_LATE)
    assert bed.store.asked == ["claim_to_skip"]
    assert bed.now() >= 0.05


def test_refused_close_waits_for_its_turn(loop: VirtualLoop, log: Log) -> None:
    """Writes that etcd refuses are repeated one at a time of their kind."""
    bed = Bed(loop, log, Won(20, 77, None))
    assert bed.writes.may_retry(WriteKind.CLAIM)
    assert bed.close(None, refused=True) == TickOver(20, None, TOO_LATE)
    assert bed.now() >= RETRY_EVERY_S


def test_refusal_is_reported_and_tried_again(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log, refusal(), Won(20, 77, None))
    assert bed.close(None) == TickOver(20, None, TOO_LATE)
    assert bed.tick.refused


# -- many -----------------------------------------------------------------------------------------------------


def test_one_at_a_time_and_all_in_the_end(loop: VirtualLoop, log: Log) -> None:
    """One whose try has failed goes to the end of the line."""
    bed = Bed(loop, log, lost_reply(), Won(21, 77, None), Won(22, 77, None), Won(20, 77, None))
    most = 0

    async def close(run: str) -> Closed:
        return await bed.closer.close(bed.unclear(run), None)

    async def close_all() -> list[Closed]:
        return await asyncio.gather(*(close(run) for run in ("a", "b", "c")))

    def count() -> Any:
        nonlocal most
        most = max(most, bed.closer.under_way)
        return Won(22, 77, None)

    bed.store.answers[2] = count
    closed = loop.run(close_all())
    assert [outcome.rev for outcome in closed if isinstance(outcome, TickOver)] == [20, 21, 22]
    assert [arguments[0].run for arguments, _ in bed.store.arguments] == ["a", "b", "c", "a"]
    assert most == 1
    assert bed.closer.unclear == {}


def test_room_for_unclear_ticks(loop: VirtualLoop, log: Log) -> None:
    """With a thousand of them nothing is claimed that could become another, so none is ever forgotten."""
    bed = Bed(loop, log)
    for i in range(999):
        bed.closer.unclear[str(i)] = bed.unclear(str(i))
    assert bed.closer.has_room
    bed.closer.unclear["last"] = bed.unclear("last")
    assert not bed.closer.has_room


def test_tick_counts_as_unclear_until_it_is_settled(loop: VirtualLoop, log: Log) -> None:
    """The daemon does not end meanwhile."""
    bed = Bed(loop, log, lost_reply(), Won(20, 77, None))
    seen: list[list[str]] = []
    loop.at(0.0, lambda: seen.append(list(bed.closer.unclear)))
    loop.at(0.02, lambda: seen.append(list(bed.closer.unclear)))
    bed.close(None)
    assert seen == [["mine"], ["mine"]]
