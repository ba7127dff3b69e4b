"""Our clock among the others': when it is wrong, who is asked, and what waits meanwhile."""

import asyncio
from typing import Any

import pytest

from conch.cron.clock_check import ClockCheck
from conch.cron.fleet_clock import FleetClock
from tests.support.parts import World
from tests.support.virtual_loop import Log, VirtualLoop


class Bed(World):
    """A check; our own clock is `ahead_s` of the right time."""

    def __init__(self, loop: VirtualLoop, log: Log) -> None:
        super().__init__(loop, log)
        self.ahead_s = 0.0
        self.etcd: float | None = None
        self.asked: list[float] = []
        self.published: list[float] = []
        self.corrected: list[float] = []
        self.clock = FleetClock(lambda: loop.wall() + self.ahead_s)
        self.check_ = ClockCheck(
            *(self.clock, "a", self.tasks, self.workers, log),
            etcd_time=self._etcd_time,
            publish=lambda: self.published.append(round(self.now(), 1)),
            corrected=lambda: self.corrected.append(round(self.now(), 1)),
        )

    def _etcd_time(self) -> float | None:
        self.asked.append(round(self.now(), 1))
        return None if self.etcd is None else self.loop.wall() + self.etcd

    def hear(self, *hosts: str, ahead_s: float = 0.0) -> None:
        for host in hosts:
            self.check_.on_time(host, self.loop.wall() + ahead_s)

    def go(self, seconds: float) -> None:
        self.loop.run(asyncio.sleep(seconds))
        self.check()


@pytest.mark.parametrize(
    ("ahead_s", "others", "etcd", "off"),
    [
        (0.0, [], None, False),
        (0.0, [0.0], None, False),
        (4.0, [0.0, 0.0], None, False),
        (10.0, [0.0, 0.0], None, True),
        (-10.0, [0.0, 0.0], 0.0, True),
        # between two clocks that contradict each other a third one decides
        (10.0, [0.0], 0.0, True),
        (10.0, [0.0], 10.0, False),
        (10.0, [0.0], None, False),
        # most agree with us
        (10.0, [0.0, 10.0], None, False),
        (10.0, [0.0, 10.0, 10.0], None, False),
    ],
)
def test_off(loop: VirtualLoop, log: Log, ahead_s: float, others: list[float], etcd: float | None, off: bool) -> None:
    bed = Bed(loop, log)
    bed.ahead_s, bed.etcd = ahead_s, etcd
    for i, other in enumerate(others):
        bed.hear(f"h{i}", ahead_s=other)
    bed.go(1.0)
    assert bed.check_.is_off == off
    assert bed.check_.knows_the_time() == (not off)


def test_while_it_is_off(loop: VirtualLoop, log: Log) -> None:
    """The others are asked for their times every five seconds, until ours is right again."""
    bed = Bed(loop, log)
    bed.ahead_s = 10.0
    bed.hear("b", "c")
    bed.go(12.0)
    assert bed.published == [0.0, 5.0, 10.0]
    (off,) = log.events("clock-off")
    assert off == {"skew_s": 10.0, "msg": "this host's clock is 10.0 s ahead of the others': claiming nothing"}
    bed.ahead_s = 0.0
    bed.check_.check()
    assert bed.corrected == [12.0]
    assert log.events("clock-right")
    assert bed.published == [0.0, 5.0, 10.0, 12.0]
    bed.go(20.0)
    assert bed.published == [0.0, 5.0, 10.0, 12.0]


def test_off_again_before_the_next_question(loop: VirtualLoop, log: Log) -> None:
    """There is one row of questions, not two."""
    bed = Bed(loop, log)
    bed.ahead_s = 10.0
    bed.hear("b", "c")
    bed.go(2.0)
    bed.ahead_s = 0.0
    bed.check_.check()
    bed.ahead_s = 10.0
    bed.check_.check()
    bed.go(10.5)
    assert bed.published == [0.0, 2.0, 2.0, 7.0, 12.0]


@pytest.mark.parametrize(
    ("ahead_s", "way"),
    [(2.0, "ahead of"), (-2.0, "behind")],
)
def test_skew_is_warned_of_once(loop: VirtualLoop, log: Log, ahead_s: float, way: str) -> None:
    """Each time that it begins."""
    bed = Bed(loop, log)
    bed.ahead_s = ahead_s
    for _ in range(3):
        bed.hear("b", "c")
    (skew,) = log.events("clock-skew")
    assert skew["msg"] == f"this host's clock is {way} the others'"
    bed.ahead_s = 0.0
    bed.check_.check()
    bed.ahead_s = ahead_s
    bed.check_.check()
    assert len(log.events("clock-skew")) == 2
    assert not bed.check_.is_off


def test_etcd_is_asked_once_a_minute_while_we_are_contradicted(loop: VirtualLoop, log: Log) -> None:
    """One question at a time; none when nobody contradicts us, and a fresh one when somebody does again."""
    bed = Bed(loop, log)
    bed.ahead_s, bed.etcd = 10.0, 10.0
    for _ in range(5):
        bed.hear("b")
    bed.go(130.0)
    assert bed.asked == [0.0, 60.0, 120.0]
    bed.ahead_s = 0.0
    bed.check_.check()
    bed.go(100.0)
    assert len(bed.asked) == 3
    bed.ahead_s = 10.0
    bed.check_.check()
    bed.go(1.0)
    assert len(bed.asked) == 4


def test_until_etcd_has_answered_our_clock_is_off(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log)
    bed.ahead_s = 10.0
    bed.hear("b")
    assert bed.check_.is_off
    bed.go(1.0)
    assert not bed.check_.is_off  # it does not tell
    assert bed.corrected == [0.0]


def test_host_that_contradicts_us_leaves(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log)
    bed.ahead_s = 10.0
    bed.hear("b", "c")
    assert bed.check_.is_off
    bed.check_.on_host_gone("b")
    bed.check_.on_host_gone("c")
    assert not bed.check_.is_off
    assert bed.corrected == [0.0]


@pytest.mark.parametrize("at", [None, "x", True, 0, -5, 1e18, float("nan"), {}])
def test_time_that_is_none(loop: VirtualLoop, log: Log, at: Any) -> None:
    """Anyone may write anything; the host is not waited for any more."""
    bed = Bed(loop, log)
    bed.check_.meet({"b": {}})
    bed.check_.on_time("b", at)
    assert not bed.clock.knows("b")
    assert bed.check_.knows_the_time()


def test_clock_from_before_this_release(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log)
    bed.ahead_s = -VirtualLoop.EPOCH + 5
    bed.check_.check()
    assert bed.check_.is_off
    (off,) = log.events("clock-off")
    assert off["msg"] == "this host's clock shows 1970-01-01T00:00:05Z, before this release: claiming nothing"


# -- newcomers and interruptions ------------------------------------------------------------------------------


def test_newcomer_waits_for_the_others_clocks(loop: VirtualLoop, log: Log) -> None:
    """All of them but its own, and those that it knows."""
    bed = Bed(loop, log)
    bed.hear("known")
    bed.check_.meet({"a": {}, "b": {}, "c": {}, "known": {}})
    assert not bed.check_.knows_the_time()
    bed.hear("b")
    assert not bed.check_.knows_the_time()
    bed.check_.on_host_gone("c")
    assert bed.check_.knows_the_time()


@pytest.mark.parametrize(("after_s", "knows"), [(2.9, False), (3.1, True)])
def test_newcomer_does_not_wait_for_ever(loop: VirtualLoop, log: Log, after_s: float, knows: bool) -> None:
    bed = Bed(loop, log)
    bed.check_.meet({"b": {}})
    bed.go(after_s)
    assert bed.check_.knows_the_time() == knows


@pytest.mark.parametrize(("after_s", "heard"), [(4.9, False), (5.1, True)])
def test_events_that_were_held_up_say_the_wrong_time(loop: VirtualLoop, log: Log, after_s: float, heard: bool) -> None:
    bed = Bed(loop, log)
    bed.check_.on_interrupted_watch()
    bed.go(after_s)
    bed.hear("b", "c", ahead_s=-30.0)
    assert bed.check_.is_off == heard
    assert bed.clock.knows("b") == heard
