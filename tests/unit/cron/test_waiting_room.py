"""Where ticks wait that cannot be claimed now: who is let out, when, and as what."""

import asyncio
from typing import Any

import pytest

from conch.cron.ticks import PendingTick
from conch.cron.waiting_room import WaitingRoom
from conch.cron.writes import WriteKind
from tests.support.parts import World, lost_reply, pending
from tests.support.virtual_loop import Log, VirtualLoop

FULL = "as many runs as this daemon may have: 1"


class Bed(World):
    """A room, and who was let out: run, time and whether as a probe."""

    def __init__(self, loop: VirtualLoop, log: Log) -> None:
        super().__init__(loop, log)
        self.closed = FULL
        self.free = 10
        self.out: list[tuple[str, float, bool]] = []
        self.asked = 0
        self.room = WaitingRoom(
            *(self.tasks, self.writes, self.faults),
            why_closed=self._why_closed,
            free=lambda: self.free,
            draining=lambda: self.draining,
            wall_clock=loop.wall,
            now=loop.time,
        )

    def _why_closed(self, probe: bool) -> str:
        self.asked += 1
        return self.closed or ("etcd takes no writes" if self.writes.is_open and not probe else "")

    def enter(self, run: str, *, pause_s: float = 0.0, **fields: Any) -> PendingTick:
        tick = pending(run, **fields)

        async def wait() -> None:
            probe = await self.room.wait(tick, pause_s=pause_s)
            self.out.append((run, round(self.now(), 2), probe))

        self.tasks.spawn(wait())
        self.loop.run(asyncio.sleep(0))
        return tick

    def go(self, seconds: float) -> None:
        self.loop.run(asyncio.sleep(seconds))
        self.check()


def test_ticks_are_let_out_in_the_order_they_came(loop: VirtualLoop, log: Log) -> None:
    """As many as there is room for, at the next look of the timer."""
    bed = Bed(loop, log)
    for run in "abc":
        bed.enter(run)
    bed.go(1.0)
    assert bed.out == []
    bed.closed, bed.free = "", 2
    bed.go(0.21)
    assert [run for run, _, _ in bed.out] == ["a", "b"]
    bed.free = 0
    bed.go(1.0)
    assert len(bed.out) == 2
    bed.free = 1
    bed.room.admit()
    bed.go(0.0)
    assert bed.out[-1][0] == "c"


def test_without_ticks_there_is_no_timer(loop: VirtualLoop, log: Log) -> None:
    """Nothing is looked over while nobody waits; and one timer serves all."""
    bed = Bed(loop, log)
    bed.go(10.0)
    assert bed.asked == 0
    for run in "abc":
        bed.enter(run)
    bed.go(1.05)
    assert bed.asked <= 12
    bed.closed = ""
    bed.go(1.0)
    asked = bed.asked
    bed.go(10.0)
    assert bed.asked == asked
    bed.closed = FULL
    bed.enter("d")
    bed.closed = ""
    bed.go(0.25)
    assert bed.out[-1][0] == "d"


@pytest.mark.parametrize("pause_s", [0.0, 0.5, 2.0])
def test_pause_before_the_next_try(loop: VirtualLoop, log: Log, pause_s: float) -> None:
    bed = Bed(loop, log)
    bed.closed = ""
    bed.enter("a", pause_s=pause_s)
    bed.go(5.0)
    ((_, at, probe),) = bed.out
    assert pause_s <= at <= pause_s + 0.21
    assert not probe


@pytest.mark.parametrize("why", ["late", "drain", "cancel"])
def test_tick_that_is_given_up_needs_no_room(loop: VirtualLoop, log: Log, why: str) -> None:
    """It takes the place of none that could be claimed."""
    bed = Bed(loop, log)
    tick = bed.enter("a", pause_s=100.0, deadline_s=1.0 if why == "late" else 30.0)
    if why == "drain":
        loop.at(1.0, lambda: setattr(bed, "draining", True))
    elif why == "cancel":
        loop.at(1.0, tick.cancel)
    bed.go(3.0)
    ((_, at, _),) = bed.out
    assert 1.0 <= at <= 1.25


def test_late_tick_leaves_its_room_to_the_next(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log)
    bed.enter("late", deadline_s=-1.0)
    bed.enter("a")
    bed.closed, bed.free = "", 1
    bed.room.admit()
    bed.go(0.0)
    assert [run for run, _, _ in bed.out] == ["late", "a"]


def test_tick_that_was_rung_before_it_waits(loop: VirtualLoop, log: Log) -> None:
    """What happened during its try is heard at once, and it leaves nothing behind."""
    bed = Bed(loop, log)
    tick = pending("a")
    tick.cancel()
    assert loop.run(bed.room.wait(tick)) is False
    bed.closed = ""
    assert not bed.room.probe()
    bed.closed = ""
    bed.room.admit()
    bed.go(1.0)


def test_refused_ticks_take_turns(loop: VirtualLoop, log: Log) -> None:
    """One at a time, so that a claim which etcd refuses is not repeated by thousands of ticks; the others go first."""
    bed = Bed(loop, log)
    for run in "abc":
        bed.enter(run).refused = run != "c"
    bed.closed = ""
    bed.go(1.0)
    assert [run for run, _, _ in bed.out] == ["a", "c"]
    bed.go(1.0)
    assert [run for run, _, _ in bed.out] == ["a", "c", "b"]
    assert bed.out[-1][1] >= 1.5
    assert not bed.writes.may_retry(WriteKind.CLAIM)


@pytest.mark.parametrize(
    ("closed", "ticks", "sent"), [("", "ab", True), ("", "", False), ("not registered in etcd", "ab", False)]
)
def test_probe(loop: VirtualLoop, log: Log, closed: str, ticks: str, sent: bool) -> None:
    """The first tick is claimed as a probe, if it could be claimed but for the writes."""
    bed = Bed(loop, log)
    bed.writes.failed("claim-failed", lost_reply())
    bed.closed = closed
    for run in ticks:
        bed.enter(run)
    assert bed.room.probe() == sent
    bed.go(0.05)
    assert bed.out == ([("a", 0.0, True)] if sent else [])
    bed.go(1.0)
    assert len(bed.out) == sent  # the others wait until the probe was made


def test_probe_whose_try_fails_goes_to_the_end_of_the_line(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log)
    bed.closed = ""
    bed.writes.failed("claim-failed", lost_reply())
    bed.enter("a")
    bed.enter("b")
    bed.room.probe()
    bed.go(0.0)
    bed.enter("a")
    bed.room.probe()
    bed.go(0.0)
    assert [run for run, _, _ in bed.out] == ["a", "b"]


# -- the log --------------------------------------------------------------------------------------------------


def test_daemon_that_is_full_is_one_fault(loop: VirtualLoop, log: Log) -> None:
    """Even if it is so at each tick; it is over when it has not been full for a minute."""
    bed = Bed(loop, log)
    for at in range(5):
        loop.at(10.0 * at, lambda at=at: bed.tasks.spawn(_wait(bed, f"t{at}")))  # type: ignore[misc]
        loop.at(10.0 * at + 5.0, lambda: setattr(bed, "closed", ""))
        loop.at(10.0 * at + 6.0, lambda: setattr(bed, "closed", FULL))
    bed.go(55.0)
    (line,) = log.events("held-back")
    assert line == {"waiting": 1, "msg": FULL}
    assert log.lines[0][0] == "info"
    bed.go(200.0)
    assert len(log.events("fault-over")) == 1


async def _wait(bed: Bed, run: str) -> None:
    await bed.room.wait(pending(run, deadline_s=1000.0))


def test_want_of_writes_is_logged_elsewhere(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log)
    bed.closed = ""
    bed.writes.failed("claim-failed", lost_reply())
    bed.enter("a")
    bed.go(2.0)
    assert log.events("held-back") == []
