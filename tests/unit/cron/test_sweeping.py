"""When a daemon sweeps: its hours, one sweep at a time, in pieces; and what ends or breaks one."""

import asyncio
from collections import Counter
from collections.abc import Iterator
from typing import Any

import pytest

from conch.cron.sweeping import EVERY_S, Sweeping
from tests.support.parts import World, lost_reply
from tests.support.virtual_loop import Log, VirtualLoop

HOUR = int(VirtualLoop.EPOCH // EVERY_S)


class Sweep:
    """A sweep of some pages; one that is an exception is raised."""

    def __init__(self, bed: "Bed") -> None:
        self.bed = bed
        self.counts: Counter[str] = Counter(bed.found)

    def pages(self) -> Iterator[None]:
        for page in self.bed.pages:
            self.bed.worked.append(round(self.bed.now(), 2))
            if page is not None:
                raise page
            yield


class Bed(World):
    """When a host sweeps: `first_in` are the hours that are its own (None: each), counted from now."""

    def __init__(self, loop: VirtualLoop, log: Log, *pages: Exception | None) -> None:
        super().__init__(loop, log)
        self.pages = pages
        self.found = {"trimmed": 3}
        self.first_in: set[int] | None = None
        self.begun: list[float] = []
        self.worked: list[float] = []
        new_sweep: Any = self._new_sweep
        self.sweeping = Sweeping(
            *(self.tasks, self.workers, log),
            new_sweep=new_sweep,
            is_first=lambda hour: self.first_in is None or hour - HOUR in self.first_in,
            is_registered=lambda: self.registration is not None,
            draining=lambda: self.draining,
            now=loop.wall,
        )

    def _new_sweep(self, now: float) -> Sweep:
        assert now == self.loop.wall()
        self.begun.append(round(self.now()))
        return Sweep(self)

    def go(self, seconds: float) -> None:
        self.loop.run(asyncio.sleep(seconds))
        self.check()


# -- when -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first_in", "begun"),
    [(None, [3600, 7200, 10800]), (set(), []), ({2}, [7200]), ({1, 3}, [3600, 10800])],
)
def test_hours(loop: VirtualLoop, log: Log, first_in: set[int] | None, begun: list[float]) -> None:
    """Once an hour, in those in which this host is the first in rank."""
    bed = Bed(loop, log, None)
    bed.first_in = first_in
    bed.tasks.spawn(bed.sweeping.run())
    bed.go(3 * EVERY_S + 60)
    assert bed.begun == begun


def test_daemon_that_is_not_registered_leaves_it_to_the_others(loop: VirtualLoop, log: Log) -> None:
    """It sweeps soon after it is registered, as a fleet that is started anew may have missed hours."""
    bed = Bed(loop, log, None)
    registration, bed.registration = bed.registration, None
    bed.tasks.spawn(bed.sweeping.run())
    bed.go(2 * EVERY_S)
    assert bed.begun == []
    loop.at(10.0, lambda: setattr(bed, "registration", registration))
    bed.go(31.0)
    (begun,) = bed.begun
    assert 2 * EVERY_S + 10 <= begun <= 2 * EVERY_S + 30
    bed.registration = None
    bed.go(EVERY_S)
    assert bed.begun == [begun]


def test_one_sweep_at_a_time(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log, None, None)
    bed.sweeping.start()
    bed.sweeping.start()
    bed.go(1.0)
    bed.sweeping.start()
    bed.go(1.0)
    assert bed.begun == [0, 1]


def test_none_is_begun_while_conchd_drains(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log, None)
    bed.draining = True
    bed.sweeping.start()
    bed.go(1.0)
    assert bed.begun == []


# -- one sweep ------------------------------------------------------------------------------------------------


def test_page_after_page_with_pauses(loop: VirtualLoop, log: Log) -> None:
    """Each is a call of its own, so that claims get their turn; one line says what was done."""
    bed = Bed(loop, log, None, None, None)
    bed.sweeping.start()
    bed.go(1.0)
    assert bed.worked == [0.0, 0.05, 0.1]
    assert log.lines == [("info", "swept", {"trimmed": 3})]


def test_sweep_that_found_nothing_to_do_is_silent(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log, None)
    bed.found = {"trimmed": 0}
    bed.sweeping.start()
    bed.go(1.0)
    assert log.lines == []


def test_it_stops_when_conchd_drains(loop: VirtualLoop, log: Log) -> None:
    """After one more page at most."""
    bed = Bed(loop, log, None, None, None, None, None)
    bed.sweeping.start()
    loop.at(0.06, lambda: setattr(bed, "draining", True))
    bed.go(1.0)
    assert bed.worked == [0.0, 0.05, 0.1]


def test_failure_is_logged_and_the_next_one_begins_anew(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log, None, lost_reply(), None)
    bed.sweeping.start()
    bed.go(1.0)
    assert bed.worked == [0.0, 0.05]
    assert [(level, event) for level, event, _ in log.lines] == [("warning", "sweep-failed")]
    bed.pages = (None,)
    bed.sweeping.start()
    bed.go(1.0)
    assert bed.begun == [0, 1]
    assert len(log.events("swept")) == 1


def test_defect_in_a_sweep_ends_the_daemon(loop: VirtualLoop, log: Log) -> None:
    """Only what etcd answers is no defect."""
    bed = Bed(loop, log, ZeroDivisionError())
    bed.sweeping.start()
    with pytest.raises(ZeroDivisionError):
        bed.go(1.0)
