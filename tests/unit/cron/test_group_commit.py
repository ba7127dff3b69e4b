"""The ends of runs on their way to the run log: those that come while one write is under way share the next."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from conch.cron.group_commit import GroupCommit
from conch.cron.run_log import Entry
from conch.cron.values import Result
from tests.support.parts import TICK, World
from tests.support.virtual_loop import DirectWorkers, Log, VirtualLoop


class SlowDisk(DirectWorkers):
    """Each call takes a second."""

    async def disk(self, call: Callable[[], Any]) -> Any:
        await asyncio.sleep(1.0)
        return call()


class Bed(World):
    def __init__(self, loop: VirtualLoop, log: Log) -> None:
        super().__init__(loop, log)
        self.writes_made: list[list[str]] = []
        write = self.run_log.write

        def note(*entries: Any) -> bool:
            self.writes_made.append([entry.run for entry in entries])
            return bool(write(*entries))

        self.run_log.write = note
        self.ends = GroupCommit(self.run_log, self.tasks, SlowDisk())

    async def write(self, run: str) -> tuple[bool, float]:
        """Whether it was written, and when."""
        return await self.ends.write(Entry(run, "j", TICK, 20, None, result=Result("a", "ok", 0))), self.now()


@pytest.mark.parametrize("full", [False, True])
def test_ends_that_come_during_a_write_share_the_next(loop: VirtualLoop, log: Log, full: bool) -> None:
    """Nobody hears that an entry is on disk before it is."""
    bed = Bed(loop, log)
    bed.run_log.full = full

    async def work() -> list[tuple[bool, float]]:
        first = asyncio.ensure_future(bed.write("a"))
        await asyncio.sleep(0.5)
        return await asyncio.gather(first, *(bed.write(run) for run in "bcd"))

    assert loop.run(work()) == [(not full, 1.0)] + [(not full, 2.0)] * 3
    assert bed.writes_made == [["a"], ["b", "c", "d"]]


def test_what_is_delivered_is_forgotten_after_the_ends_of_the_same_call(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log)

    async def work() -> None:
        bed.ends.forget("x")
        bed.ends.forget("y")
        await bed.write("a")
        bed.ends.forget("a")
        await asyncio.sleep(2.0)

    loop.run(work())
    bed.check()
    assert bed.writes_made == [["a"], []]
    assert bed.run_log.forgotten == ["x", "y", "a"]


def test_write_that_nobody_waits_for_any_more_does_no_harm(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log)

    async def work() -> tuple[bool, float]:
        gone = asyncio.ensure_future(bed.write("a"))
        await asyncio.sleep(0.5)
        gone.cancel()
        return await bed.write("b")

    assert loop.run(work()) == (True, 2.0)
    bed.check()


def test_defect_ends_the_loop(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log)

    def break_(*_: Any) -> bool:
        raise ZeroDivisionError

    bed.run_log.write = break_
    bed.tasks.spawn(bed.write("a"))  # type: ignore[arg-type]
    with pytest.raises(ZeroDivisionError):
        loop.run_until_complete(bed.tasks.ended)
    bed.tasks.cancel_all()
    loop.run(asyncio.sleep(0.1))
