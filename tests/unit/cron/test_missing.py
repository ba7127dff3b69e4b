"""Ticks that nobody claimed in time, counted exactly."""

import asyncio
from itertools import pairwise

import pytest

from conch.cron.missing import Missed, MissedTicks, joined, merged
from conch.cron.schedule import parse_schedule
from conch.etcd.store import StoreError
from tests.support.parts import World, lost_reply
from tests.support.virtual_loop import Log, VirtualLoop

MINUTELY = parse_schedule("* * * * *")
START = 1_800_000_000  # a full minute


def test_ticks_of_a_schedule_but_for_those_that_were_taken() -> None:
    """A request that was served in between, at a second that is no tick, takes none of them."""
    month = Missed(START, START + 30 * 86400, MINUTELY)
    assert month.count() == 43201
    assert month.left({START, START + 60, START + 61, START - 60, START + 31 * 86400}) == 43199
    assert month.newest() == START + 30 * 86400
    assert Missed(START, START + 119, MINUTELY).newest() == START + 60


def test_single_ticks() -> None:
    """Each is there, or taken."""
    assert Missed(START, START, 1).left({START}) == 0
    assert Missed(START, START, 1).left({START + 1}) == 1


def test_the_list_of_what_waits_has_an_end() -> None:
    """The number of ticks stays."""
    waiting = [Missed(START, START + 3600, MINUTELY), *(Missed(START + at, START + at, 1) for at in range(7200, 7300))]
    assert joined(waiting[:64]) == waiting[:64]
    assert joined(waiting) == [Missed(START, START + 7299, 61 + 100)]


# -- asking etcd ----------------------------------------------------------------------------------------------


class Bed(World):
    """Missed ticks; `taken` is what others have claimed of each job, an exception where etcd does not answer."""

    def __init__(self, loop: VirtualLoop, log: Log) -> None:
        super().__init__(loop, log)
        self.taken: dict[str, set[int]] = {}
        self.failures: list[StoreError] = []
        self.asked: list[tuple[float, dict[str, tuple[int, int]]]] = []
        self.told: list[tuple[str, int, int, int]] = []
        self.missed = MissedTicks(
            self._taken_between,
            *(self.tasks, self.workers, self.writes, self.faults, self.counts, log),
            now=loop.wall,
            on_missed=lambda *missed: self.told.append(missed),
        )

    def _taken_between(self, ends: dict[str, tuple[int, int]]) -> dict[str, set[int]]:
        self.asked.append((round(self.now(), 1), ends))
        if self.failures:
            raise self.failures.pop(0)
        return {name: self.taken.get(name, set()) for name in ends}

    def add(self, first: int, last: int | None = None, *, name: str = "j", ripe_s: float = 0.0) -> None:
        last = first if last is None else last
        self.missed.add(name, Missed(START + first, START + last, last - first + 1, START + ripe_s))

    def go(self, seconds: float) -> None:
        self.loop.run(asyncio.sleep(seconds))
        self.check()

    @property
    def count(self) -> int:
        return self.counts["missed", ""]


@pytest.mark.parametrize(
    ("taken", "count"), [(set(), 3), ({START + 1}, 2), ({START, START + 1, START + 2}, 0), ({START + 9}, 3)]
)
def test_what_nobody_claimed_is_counted_once(loop: VirtualLoop, log: Log, taken: set[int], count: int) -> None:
    """Half a second after it was missed; the log has one line with the ends and the number."""
    bed = Bed(loop, log)
    bed.taken = {"j": taken}
    bed.add(0, 2)
    bed.go(20.0)
    assert bed.asked == [(0.5, {"j": (START, START + 2)})]
    assert bed.count == count
    lines = log.events("missed")
    assert [line["ticks"] for line in lines] == ([count] if count else [])
    if lines:
        assert lines[0]["tick"] == "2027-01-15T08:00:00Z"
        assert lines[0]["until"] == "2027-01-15T08:00:02Z"


def test_without_missed_ticks_nobody_is_asked(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log)
    bed.go(100.0)
    assert bed.asked == []


def test_tick_that_others_may_still_claim_is_not_asked_about(loop: VirtualLoop, log: Log) -> None:
    """Only once nobody can claim it any more; other ticks of the job do not wait for it."""
    bed = Bed(loop, log)
    bed.add(0)
    bed.add(5, ripe_s=10.0)
    bed.go(9.0)
    assert bed.count == 1
    bed.taken = {"j": {START + 5}}  # in the last moment
    bed.go(3.0)
    assert bed.count == 1
    assert bed.asked[-1][0] >= 10.0
    assert [ends for _, ends in bed.asked] == [{"j": (START, START)}, {"j": (START + 5, START + 5)}]


@pytest.mark.parametrize("failures", [1, 8])
def test_without_an_answer_it_asks_again_more_rarely(loop: VirtualLoop, log: Log, failures: int) -> None:
    """Nothing is forgotten, and nothing counted twice; what was missed meanwhile is asked about, too."""
    bed = Bed(loop, log)
    bed.failures = [lost_reply() for _ in range(failures)]
    bed.add(0, 2)
    loop.at(1.0, lambda: bed.add(3))
    loop.at(1.0, lambda: bed.add(0, name="k"))
    bed.go(100.0)
    assert bed.count == 5
    times = [at for at, _ in bed.asked]
    assert max(b - a for a, b in pairwise(times)) <= 10.1
    if failures > 1:
        assert times[-1] - times[-2] >= 9.9
    bed.add(50)
    bed.go(1.0)
    assert bed.count == 6  # it asks soon again


def test_ticks_that_are_missed_while_etcd_is_asked(loop: VirtualLoop, log: Log) -> None:
    """They are asked about next."""
    bed = Bed(loop, log)
    bed.workers.call_s = 3.0
    bed.add(0)
    loop.at(1.0, lambda: bed.add(1))
    bed.go(20.0)
    assert bed.count == 2
    assert len(bed.asked) == 2


def test_many_jobs_are_asked_about_in_parts(loop: VirtualLoop, log: Log) -> None:
    """One transaction has a limit of operations."""
    bed = Bed(loop, log)
    for i in range(120):
        bed.add(0, name=f"j{i}")
    bed.go(5.0)
    assert [len(ends) for _, ends in bed.asked] == [50, 50, 20]
    assert bed.count == 120


def test_many_ticks_of_one_job_are_kept_as_a_span(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log)
    bed.taken = {"j": {START + 3, START + 5000}}
    for tick in range(100):
        bed.add(tick)
    bed.go(5.0)
    assert bed.count == 99
    assert bed.asked == [(0.5, {"j": (START, START + 99)})]


def test_gaps_share_a_line(loop: VirtualLoop, log: Log) -> None:
    """What is counted within a fault is merged, and all of it logged by the time that it is over."""
    bed = Bed(loop, log)
    for at in (0, 2, 4):
        loop.at(float(at), lambda at=at: bed.add(at))  # type: ignore[misc]
    loop.at(4.0, lambda: bed.add(4, name="k"))
    bed.go(30.0)
    assert sum(line["ticks"] for line in log.events("missed")) == bed.count == 4
    assert [over["fault"] for over in log.events("fault-over")] == ["missed"]


def test_fault_lasts_while_etcd_takes_no_writes(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log)
    bed.add(0)
    bed.add(1, name="k")
    bed.go(1.0)
    bed.writes.failed("claim-failed", lost_reply())
    bed.go(30.0)
    assert log.events("fault-over") == []
    bed.writes.on_success()
    bed.go(10.0)
    assert [over["fault"] for over in log.events("fault-over")] == ["missed"]


@pytest.mark.parametrize("asking", [False, True])
def test_end_of_the_daemon(loop: VirtualLoop, log: Log, asking: bool) -> None:
    """What could not be asked about is in the log at least, also what is being asked about."""
    bed = Bed(loop, log)
    bed.workers.call_s = 100.0
    bed.add(0, 2)
    bed.go(1.0 if asking else 0.1)
    bed.add(7, name="k")
    bed.missed.close()
    (line,) = log.events("missed")
    assert line["ticks"] == 4
    assert bed.count == 0


def test_end_with_nothing_missed(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log)
    bed.missed.close()
    assert log.lines == []


def test_merged() -> None:
    """The job is named only where it is the same; the ends are the outer ones."""
    one = {"job": "j", "tick": "b", "until": "c", "ticks": 1}
    assert merged(one, {"job": "j", "tick": "a", "until": "b", "ticks": 2}) == {
        "job": "j",
        "tick": "a",
        "until": "c",
        "ticks": 3,
    }
    other = merged(one, {"job": "k", "tick": "d", "until": "e", "ticks": 2})
    assert other == {"tick": "b", "until": "e", "ticks": 3}
    assert merged(other, one) == {"tick": "b", "until": "e", "ticks": 4}
