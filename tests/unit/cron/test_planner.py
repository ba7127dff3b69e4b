"""When each job is due: definitions as they come and change, clocks that jump, ticks that are too late."""

import asyncio
import json
from typing import Any

import pytest

from conch.cron.job import decode
from conch.cron.missing import Missed
from conch.cron.planner import Planner
from conch.cron.ticks import PendingTick
from conch.cron.workers import Chores
from conch.etcd.store import KeyValue
from conch.times import rfc3339
from tests.support.parts import TICK, World
from tests.support.virtual_loop import Log, VirtualLoop

SECONDLY, MINUTELY = "@every 1s", "* * * * *"


class Bed(World):
    """A planner; our wall clock is `ahead_s` of the loop's, and off if `off` says so."""

    def __init__(self, loop: VirtualLoop, log: Log) -> None:
        super().__init__(loop, log)
        self.ahead_s = 0.0
        self.off = False
        self.written: dict[int, tuple[float | None, float | None]] = {}
        self.due: list[tuple[str, int]] = []
        self.ticks: list[PendingTick] = []
        self.due_at: list[float] = []
        self.missed: list[tuple[str, int, int, int]] = []
        self.clock._wall = lambda: loop.wall() + self.ahead_s
        self.planner = Planner(
            *(self.clock, Chores(self.tasks), log),
            moments=lambda revision: self.written.get(revision, (None, None)),
            due=self._due,
            missed=self._missed,
            is_clock_off=lambda: self.off,
            now=loop.time,
        )

    def _due(self, tick: PendingTick) -> None:
        self.due.append((tick.job.name, tick.tick - TICK))
        self.ticks.append(tick)
        self.due_at.append(self.clock.now())

    def _missed(self, name: str, missed: Missed) -> None:
        self.missed.append((name, missed.first - TICK, missed.last - TICK, missed.count()))

    def define(
        self, schedule: str | list[str] = SECONDLY, *, name: str = "j", rev: int = 5, created: int = 5, **fields: Any
    ) -> bool:
        value = json.dumps({"schedule": schedule, "cmd": ["true"], **fields}).encode()
        return self.planner.on_job(name, KeyValue(b"/job/" + name.encode(), value, created, rev, 0))

    def start(self) -> None:
        self.tasks.spawn(self.planner.run())

    def go(self, seconds: float) -> None:
        self.loop.run(asyncio.sleep(seconds))
        self.check()

    def next_tick(self, name: str = "j") -> int | None:
        tick = self.planner.jobs[name].next_tick
        return None if tick is None else tick - TICK


# -- what is due ----------------------------------------------------------------------------------------------


def test_each_tick_is_due_once_and_in_time(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log)
    bed.define()
    bed.define("@every 2s", name="k")
    bed.start()
    bed.go(4.5)
    assert sorted(bed.due) == [("j", 1), ("j", 2), ("j", 3), ("j", 4), ("k", 2), ("k", 4)]
    assert [tick for _, tick in bed.due] == sorted(tick for _, tick in bed.due)
    tick = bed.ticks[0]
    assert (tick.job_rev, tick.deadline) == (5, TICK + 1 + 1.0)
    assert len({tick.run for tick in bed.ticks}) == len(bed.ticks)


def test_nothing_from_before_the_start(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log)
    bed.written[5] = (None, 0.0)
    bed.define(added_at=rfc3339(TICK - 100))
    assert bed.next_tick() == 1


def test_job_that_is_nearer_wakes_the_planner(loop: VirtualLoop, log: Log) -> None:
    """And without a job it waits for one."""
    bed = Bed(loop, log)
    bed.start()
    bed.go(5.0)
    bed.define("@yearly", name="k")
    bed.go(5.0)
    bed.define("@every 2s", rev=6)
    bed.go(2.5)
    assert bed.due == [("j", 12)]


def test_paused_job_goes_on_when_its_pause_ends(loop: VirtualLoop, log: Log) -> None:
    """With the tick of that moment, without anybody writing anything."""
    bed = Bed(loop, log)
    bed.define(paused=True, paused_until=rfc3339(TICK + 4))
    assert bed.next_tick() == 4
    bed.start()
    bed.go(6.5)
    assert bed.due == [("j", 4), ("j", 5), ("j", 6)]


def test_expired_job_has_no_ticks(loop: VirtualLoop, log: Log) -> None:
    """The tick of the very instant is the last."""
    bed = Bed(loop, log)
    bed.define(expires=rfc3339(TICK + 2))
    bed.start()
    bed.go(5.0)
    assert bed.due == [("j", 1), ("j", 2)]
    assert bed.next_tick() is None


def test_several_schedules_are_one_union(loop: VirtualLoop, log: Log) -> None:
    """Ticks that fall together are one."""
    bed = Bed(loop, log)
    bed.define(["@every 2s", "@every 3s"])
    bed.start()
    bed.go(9.5)
    every = [tick for tick in range(1, 10) if (TICK + tick) % 2 == 0 or (TICK + tick) % 3 == 0]
    assert bed.due == [("j", tick) for tick in every]


def test_jitter_puts_off_each_tick_by_an_offset_of_its_own(loop: VirtualLoop, log: Log) -> None:
    """A tick keeps its name, waits its offset, the same on every host, and may be claimed until so much later."""
    bed = Bed(loop, log)
    bed.define("@every 60s", jitter=30)
    bed.start()
    bed.go(60 * 20)
    offsets = [tick.offset_s for tick in bed.ticks]
    assert [round(at - tick.due, 3) for at, tick in zip(bed.due_at, bed.ticks, strict=True)] == [0.0] * len(bed.ticks)
    assert len(set(offsets)) > 15
    assert all(0 <= offset < 30 for offset in offsets)
    assert max(offsets) - min(offsets) > 15
    assert all(tick.deadline == tick.tick + tick.offset_s + 60 for tick in bed.ticks)
    again = decode("j", {"schedule": "@every 60s", "cmd": ["other"], "jitter": 30})
    assert offsets == [again.offset_s(tick.tick, tick.tick + 60) for tick in bed.ticks]
    assert offsets != [again.offset_s(tick.tick + 60, tick.tick + 120) for tick in bed.ticks]


def test_jitter_longer_than_the_interval_loses_no_tick(loop: VirtualLoop, log: Log) -> None:
    """The offset of a tick ends before the next tick."""
    bed = Bed(loop, log)
    bed.define("@every 5s", jitter=3600)
    bed.start()
    bed.go(100)
    assert len(bed.due) in (19, 20)
    assert all(0 <= tick.offset_s < 5 for tick in bed.ticks)
    assert bed.missed == []


def test_jittered_tick_that_has_come_is_due_before_an_edit(loop: VirtualLoop, log: Log) -> None:
    """It was due by the definition that was known then, though its offset has not passed."""
    bed = Bed(loop, log)
    bed.define("@every 60s", jitter=59)
    bed.start()
    first = bed.next_tick()
    assert first is not None
    bed.go(first + 0.0)
    offset_s = bed.planner.jobs["j"].job.offset_s(TICK + first, TICK + first + 60)
    assert offset_s > 0.01
    bed.define("@every 60s", jitter=50, rev=6)
    assert bed.due == [("j", first)]


def test_paused_job_has_no_ticks(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log)
    bed.define(paused=True)
    bed.start()
    bed.go(5.0)
    assert bed.due == []
    assert [(job.name, tick) for job, tick in bed.planner.upcoming()] == [("j", None)]


def test_upcoming(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log)
    bed.define()
    bed.define("@every 3s", name="k")
    assert [(job.name, tick) for job, tick in bed.planner.upcoming()] == [("j", TICK + 1), ("k", TICK + 3)]


def test_removed_job_is_not_due(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log)
    bed.define()
    bed.start()
    loop.at(1.5, lambda: bed.planner.jobs.pop("j"))
    bed.go(5.0)
    assert bed.due == [("j", 1)]


def test_job_that_is_removed_and_added_is_due_once(loop: VirtualLoop, log: Log) -> None:
    """What was planned for the earlier one is outdated."""
    bed = Bed(loop, log)
    bed.define()
    bed.start()

    def again() -> None:
        bed.planner.jobs.pop("j")
        bed.define(rev=7, created=7)

    loop.at(1.5, again)
    bed.go(3.5)
    assert bed.due == [("j", 1), ("j", 2), ("j", 3)]


def test_ticks_are_taken_up_in_slices(loop: VirtualLoop, log: Log) -> None:
    """With thousands of jobs, everything else has its turn in between."""
    bed = Bed(loop, log)
    for i in range(10):
        bed.define("@every 5s", name=f"j{i}")
    loop.seconds += 6
    turns: list[int] = []
    due = bed._due

    def slow(tick: PendingTick) -> None:
        loop.seconds += 0.004
        due(tick)

    async def others() -> None:
        while len(bed.due) < 10:
            turns.append(len(bed.due))
            await asyncio.sleep(0)

    bed.planner._due = slow
    bed.start()
    loop.run(others())
    assert len(bed.due) == 10
    assert {3, 6, 9} <= set(turns)


# -- too late -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("schedule", "fields", "asleep_s", "missed", "due"),
    [
        (SECONDLY, {}, 100.4, [("j", 1, 99, 99)], 100),
        (SECONDLY, {"start_deadline": 10}, 100.4, [("j", 1, 90, 90)], 91),
        (MINUTELY, {}, 305.0, [("j", 60, 299, 4)], 300),
        (MINUTELY, {"start_deadline": 30}, 355.0, [("j", 60, 359, 5)], 360),
        (MINUTELY, {}, 59.0, [], 60),
        (MINUTELY, {}, 65.0, [], 60),
    ],
)
def test_after_a_suspend(
    loop: VirtualLoop,
    log: Log,
    schedule: str,
    fields: dict[str, Any],
    asleep_s: float,
    missed: list[Any],
    due: int,
) -> None:
    """Ticks that are too late are passed over and reported together; it goes on with the first that can be started."""
    bed = Bed(loop, log)
    bed.define(schedule, **fields)
    loop.seconds += asleep_s
    bed.start()
    bed.go(1.0 if asleep_s > 60 and due <= asleep_s else 10.0)
    assert bed.missed == missed
    assert bed.due[0] == ("j", due)


# -- definitions ----------------------------------------------------------------------------------------------


def test_same_definition_is_read_once(loop: VirtualLoop, log: Log) -> None:
    """Unless its bytes differ: an etcd that was wiped has the same revisions for other jobs."""
    bed = Bed(loop, log)
    assert bed.define()
    tracked = bed.planner.jobs["j"]
    planned = tracked.planned
    assert bed.define()
    assert tracked.planned == planned
    assert bed.define("@every 2s")
    assert tracked.planned != planned
    assert tracked.job.schedule == "@every 2s"


def test_what_is_known_of_a_job_outlives_its_edits(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log)
    bed.define()
    tracked = bed.planner.jobs["j"]
    tracked.newest, tracked.has_floor = 7, True
    bed.define("@every 2s", rev=6)
    assert bed.planner.jobs["j"] is tracked
    assert (tracked.newest, tracked.has_floor, tracked.rev, tracked.created) == (7, True, 6, 5)


@pytest.mark.parametrize("name", ["j", "no name"])
def test_unreadable_definition_is_reported_once(loop: VirtualLoop, log: Log, name: str) -> None:
    """It makes the job unknown; another change of it is read again."""
    bed = Bed(loop, log)
    bad = "@every x" if name == "j" else SECONDLY
    assert not bed.define(bad, name=name)
    assert not bed.define(bad, name=name)
    assert len(log.events("unreadable")) == 1
    assert bed.planner.jobs == {}
    assert not bed.define(bad, name=name, rev=6)
    assert len(log.events("unreadable")) == 2
    if name == "j":
        assert bed.define(rev=7)
        assert bed.planner.unreadable == {}


def test_what_is_due_at_an_edit_is_due_by_the_old_definition(loop: VirtualLoop, log: Log) -> None:
    """And not again by the new one."""
    bed = Bed(loop, log)
    bed.define("@every 2s")
    loop.seconds += 4.2
    bed.define("@every 2s", rev=6, env={"A": "b"})
    assert bed.due == [("j", 4)]
    assert bed.missed == [("j", 2, 3, 1)]
    assert [tick.job_rev for tick in bed.ticks] == [5]
    assert bed.next_tick() == 6


def test_edit_while_the_clock_is_off(loop: VirtualLoop, log: Log) -> None:
    """Nothing is due by a clock that is wrong."""
    bed = Bed(loop, log)
    bed.define()
    loop.seconds += 4.2
    bed.off = True
    bed.define("@every 2s", rev=6)
    assert (bed.due, bed.missed) == ([], [])


@pytest.mark.parametrize(
    ("moments", "said", "first"),
    [
        ((None, None), None, 101),
        # etcd answered with that revision 20 s ago: it was written before that
        ((None, -20.0), None, 81),
        # and after it answered with a lower one, 60 s ago: in between the definition's own time counts
        ((-60.0, -20.0), -40.0, 61),
        ((-60.0, None), -40.0, 61),
        # a time that is later than etcd's answer is not believed
        ((-60.0, -20.0), -5.0, 81),
        # an older time is not of this change
        ((-60.0, -20.0), -70.0, 81),
        ((-59.5, -20.0), -60.0, 41),
        # without the earlier answer nothing can be said of the definition's time
        ((None, -20.0), -40.0, 81),
        # never before the daemon's start
        ((-200.0, -150.0), -170.0, 1),
    ],
)
def test_from_when_a_change_counts(
    loop: VirtualLoop, log: Log, moments: tuple[float | None, float | None], said: float | None, first: int
) -> None:
    """None of its ticks from before it was written."""
    bed = Bed(loop, log)
    loop.seconds += 100
    after, before = moments
    bed.written[5] = (
        None if after is None else loop.seconds + after,
        None if before is None else loop.seconds + before,
    )
    fields: dict[str, Any] = {} if said is None else {"changed_at": rfc3339(TICK + 100 + said)}
    bed.define(**fields)
    assert bed.next_tick() == first


def test_outdated_entries_are_removed(loop: VirtualLoop, log: Log) -> None:
    """Edits leave what was planned before them in the heap until it is due, which may be in a year."""
    bed = Bed(loop, log)
    for rev in range(1, 2500):
        bed.define("@yearly", rev=rev)
    assert len(bed.planner._heap) <= 1003
    assert [entry for entry in bed.planner._heap if entry.serial == bed.planner.jobs["j"].planned]
    bed.define("@every 3s", rev=3000)
    bed.start()
    bed.go(4.0)
    assert bed.due == [("j", 3)]


# -- clocks ---------------------------------------------------------------------------------------------------


def test_nothing_is_due_while_the_clock_is_off(loop: VirtualLoop, log: Log) -> None:
    """The ticks that are too late by then are passed over."""
    bed = Bed(loop, log)
    bed.define()
    bed.start()
    bed.go(2.5)
    bed.off = True
    bed.go(10.0)
    assert bed.due == [("j", 1), ("j", 2)]
    bed.off = False
    bed.planner.on_clock_right()
    bed.go(1.0)
    assert bed.missed == [("j", 3, 11, 9)]
    assert bed.due[2:] == [("j", 12), ("j", 13)]


def test_job_that_was_planned_by_a_wrong_clock(loop: VirtualLoop, log: Log) -> None:
    """It is planned anew from now on; nothing of it is missed."""
    bed = Bed(loop, log)
    bed.ahead_s, bed.off = 1000.0, True
    bed.define()
    bed.start()
    bed.go(2.5)
    assert bed.next_tick() == 1001
    bed.ahead_s, bed.off = 0.0, False
    bed.planner.on_clock_right()
    bed.go(1.0)
    assert (bed.due, bed.missed) == ([("j", 3)], [])


def test_clock_that_was_wrong_at_the_start(loop: VirtualLoop, log: Log) -> None:
    """The start of the daemon is where it was by the right clock: a job's ticks since then count as missed."""
    bed = Bed(loop, log)
    bed.ahead_s = -1000.0
    bed.planner._since = bed.clock.now()
    bed.define()  # not known to be off yet
    bed.start()
    bed.go(5.5)
    bed.ahead_s = 0.0
    bed.planner.on_clock_right()
    bed.due.clear()
    bed.go(0.1)
    assert bed.missed[-1][1:3] == (1, 4)
    assert bed.due == [("j", 5)]


def test_wall_clock_that_is_set_forward(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log)
    bed.define("@every 10s")
    bed.start()
    bed.go(1.0)
    bed.ahead_s = 9.5
    bed.planner.wake()
    bed.go(0.0)
    assert bed.due == [("j", 10)]


def test_wall_clock_that_is_set_back(loop: VirtualLoop, log: Log) -> None:
    """All is planned anew; claims keep a tick from running twice. A second less is no setting of the clock."""
    bed = Bed(loop, log)
    bed.define()
    bed.define("@yearly", name="k")
    bed.start()
    bed.go(10.5)
    bed.due.clear()
    bed.ahead_s = -0.9
    bed.planner.wake()
    bed.go(0.0)
    assert bed.next_tick() == 11
    bed.ahead_s = -5.9
    bed.planner.wake()
    bed.go(0.0)
    assert bed.next_tick() == 5
    bed.go(1.0)
    assert bed.due == [("j", 5)]


def test_edit_between_the_setting_of_the_clock_and_the_chore(loop: VirtualLoop, log: Log) -> None:
    """The chore finds a job that is planned already, or gone, and leaves it."""
    bed = Bed(loop, log)
    bed.define()
    bed.define("@every 1s", name="k")
    bed.start()
    bed.go(10.5)
    bed.ahead_s = -5.0
    bed.planner.take_up_due()
    bed.define("@every 2s", rev=6)
    bed.planner.jobs.pop("k")
    planned = bed.planner.jobs["j"].planned
    bed.go(0.0)
    assert bed.planner.jobs["j"].planned == planned


def test_edit_between_the_right_clock_and_the_chore(loop: VirtualLoop, log: Log) -> None:
    """Until the chore runs, nothing of the job is due; an edit takes its place."""
    bed = Bed(loop, log)
    bed.off = True
    bed.define()
    bed.define("@every 1s", name="k")
    bed.off = False
    loop.seconds += 5.5
    bed.planner.on_clock_right()
    bed.planner.take_up_due()
    assert bed.due == []
    bed.define("@every 2s", rev=6)
    planned = bed.planner.jobs["j"].planned
    bed.planner.jobs.pop("k")
    bed.go(0.0)
    assert bed.planner.jobs["j"].planned == planned
