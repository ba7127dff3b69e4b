"""Ticks of `replace` jobs that wait for the run before them: every wake-up, every outcome, and run keys of no use."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from conch.cron.claim_outcomes import Busy, NodeGone, Taken, Won
from conch.cron.claimer import ClaimPorts
from conch.cron.replacement import Replacement, replaced_by
from conch.cron.ticks import REMOVED, STOPPING, Registration, TickOver, TickWon
from conch.etcd.store import Full
from tests.support.parts import ME, TICK, World, lost_reply, pending, refusal, run_key, script
from tests.support.virtual_loop import Log, VirtualLoop

WON = Won(20, 77, 22)
RUNS = TickWon(20, 22, 77, 3)
NOT_ENDED = TickOver(20, None, "the run before it did not end in time")
REPLACED = "replaced by the tick of 2027-01-15T08:01:00Z"


def full() -> Full:
    """The quota is used up: the one write that crosses it is made and refused in the same answer."""
    error = Full("etcdserver: mvcc: database space exceeded")
    error.unclear = False
    return error


class Bed(World):
    """A replacement, its scripted answers, and the runs that it ended."""

    def __init__(self, loop: VirtualLoop, log: Log, *answers: Any) -> None:
        super().__init__(loop, log, overlap="replace")
        self.store = script(*answers)
        self.ended: list[tuple[str, int, str]] = []
        self.recorded = True
        ports = ClaimPorts(
            tracked=lambda name: self.tracked,
            registration=lambda: self.registration,
            draining=lambda: self.draining,
            read_job=lambda name, kv: None,
            unreadable=lambda key, why: None,
            waiting=lambda: 0,
            why_not_here=lambda _: "",
        )
        self.replacement = Replacement(
            *(self.store, ports, self.tasks, self.transactions, self.workers, self.writes, self.commit),
            *(self.clock, ME),
            end_runs=lambda name, tick, reason: self.ended.append((name, tick, reason)),
            is_recorded=lambda run: self.recorded,
            timeout_s=5.0,
        )
        self.tick = pending(overlap="replace")
        self.writes.connect(probers=(self._probe,), resumed=())

    def _probe(self) -> bool:
        """Another part's probe, which etcd takes."""
        self.writes.on_success()
        return True

    def busy(self) -> None:
        """A run of the job is alive."""
        assert self.tracked is not None
        self.tracked.run = run_key()

    def take(self) -> TickWon | TickOver:
        taken = self.loop.run(self.replacement.take_run_key(self.tick, 20))
        assert (self.replacement.under_way, self.replacement.waiting, self.replacement._waiting) == (0, 0, {})
        return taken

    def settle(self, seconds: float = 30.0) -> None:
        """Let what was spawned come to its end."""
        self.loop.run(asyncio.sleep(seconds))
        self.check()


@pytest.mark.parametrize(
    ("answers", "taken", "tries"),
    [
        ([WON], RUNS, 1),
        ([Taken("its result is there")], TickOver(20, None, "its result is there"), 1),
        ([Busy(None), WON], RUNS, 2),
        ([lost_reply(), WON], RUNS, 2),
        ([refusal(), WON], RUNS, 2),
        ([Busy(run_key())], NOT_ENDED, 1),
        ([NodeGone()], NOT_ENDED, 1),
    ],
)
def test_outcomes(loop: VirtualLoop, log: Log, answers: list[Any], taken: TickWon | TickOver, tries: int) -> None:
    """The run before it is gone already: the first try is made at once."""
    bed = Bed(loop, log, *answers)
    assert bed.take() == taken
    assert bed.store.asked == ["take_run"] * tries
    assert bed.ended == [("j", TICK, replaced_by(TICK))]
    assert bed.tracked is not None
    assert (bed.tracked.run is not None) == (answers == [Busy(run_key())])
    assert bed.now() >= 30.0 if taken == NOT_ENDED else bed.now() < 2.0


def test_taken_run_key_is_on_disk(loop: VirtualLoop, log: Log) -> None:
    """Before the run can start."""
    bed = Bed(loop, log, Busy(None), WON)
    bed.take()
    assert [(entry.run, entry.rev, entry.run_rev) for entry in bed.run_log.written] == [("mine", 20, 22)]


# -- before it waits ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (lambda bed: setattr(bed, "tracked", None), REMOVED),
        (lambda bed: setattr(bed, "draining", True), STOPPING),
        (lambda bed: setattr(bed.tracked, "newest", TICK + 60), REPLACED),
    ],
)
def test_what_has_happened_before_it_waits(
    loop: VirtualLoop, log: Log, event: Callable[[Bed], None], reason: str
) -> None:
    """Then it ends no run and takes no key."""
    bed = Bed(loop, log)
    event(bed)
    assert bed.take() == TickOver(20, None, reason)
    assert (bed.store.asked, bed.ended) == ([], [])


def test_claim_is_clear_from_now_on(loop: VirtualLoop, log: Log) -> None:
    """What is unclear after this is the run key."""
    bed = Bed(loop, log, Taken("its result is there"))
    bed.tick.unclear = True
    bed.take()
    bed.settle()
    assert bed.store.asked == ["take_run"]


# -- while it waits -------------------------------------------------------------------------------------------


def _newer(bed: Bed) -> None:
    assert bed.tracked is not None
    bed.replacement.on_claim(bed.tracked, TICK + 60)


def _older(bed: Bed) -> None:
    assert bed.tracked is not None
    bed.replacement.on_claim(bed.tracked, TICK - 60)
    bed.replacement.on_claim(bed.tracked, TICK)


def _remove(bed: Bed) -> None:
    bed.tracked = None
    bed.replacement.stop("j", REMOVED)


def _drain(bed: Bed) -> None:
    bed.draining = True
    bed.replacement.stop_all(STOPPING)


def _stop_twice(bed: Bed) -> None:
    _newer(bed)
    bed.replacement.stop_all(STOPPING)


def _run_key_gone(bed: Bed) -> None:
    bed.replacement.wake("j")


def _other_job(bed: Bed) -> None:
    bed.replacement.wake("k")
    bed.replacement.stop("k", REMOVED)


@pytest.mark.parametrize(
    ("event", "taken"),
    [
        (_run_key_gone, RUNS),
        (lambda bed: bed.replacement.wake_all(), RUNS),
        (_newer, TickOver(20, None, REPLACED)),
        (_remove, TickOver(20, None, REMOVED)),
        (_drain, TickOver(20, None, STOPPING)),
        (_stop_twice, TickOver(20, None, REPLACED)),
        (_older, NOT_ENDED),
        (_other_job, NOT_ENDED),
    ],
)
def test_while_the_run_before_it_is_alive(
    loop: VirtualLoop, log: Log, event: Callable[[Bed], None], taken: TickWon | TickOver
) -> None:
    """It waits until the key is gone, it is stopped (the first reason counts), or too late."""
    bed = Bed(loop, log, WON)
    bed.busy()
    loop.at(3.0, lambda: event(bed))
    assert bed.take() == taken
    assert bed.store.asked == (["take_run"] if taken == RUNS else [])
    assert bed.now() == pytest.approx(30.0 if taken == NOT_ENDED else 3.0, abs=0.1)


@pytest.mark.parametrize(
    ("event", "taken"),
    [
        (_newer, TickOver(20, 22, REPLACED)),
        (_remove, TickOver(20, 22, REMOVED)),
        (_drain, TickOver(20, 22, STOPPING)),
        (lambda bed: setattr(bed, "draining", True), TickOver(20, 22, STOPPING)),
        (lambda bed: setattr(bed, "registration", None), RUNS),
        (_run_key_gone, RUNS),
    ],
)
def test_while_the_key_is_being_taken(
    loop: VirtualLoop, log: Log, event: Callable[[Bed], None], taken: TickWon | TickOver
) -> None:
    """A key that was taken for a tick that has been stopped is given back with its record: it is in the answer."""
    bed = Bed(loop, log, WON)
    loop.at(0.0005, lambda: event(bed))
    assert bed.take() == taken


@pytest.mark.parametrize("answer", [Busy(run_key()), NodeGone()])
@pytest.mark.parametrize(("event", "reason"), [(_newer, REPLACED), (_remove, REMOVED), (_drain, STOPPING)])
def test_stopped_while_the_key_cannot_be_taken(
    loop: VirtualLoop, log: Log, answer: Any, event: Callable[[Bed], None], reason: str
) -> None:
    bed = Bed(loop, log, answer)
    loop.at(0.0005, lambda: event(bed))
    assert bed.take() == TickOver(20, None, reason)
    assert bed.now() < 0.1


def test_key_that_goes_while_it_is_being_taken(loop: VirtualLoop, log: Log) -> None:
    """The wake-up that arrives during the try is not lost."""
    bed = Bed(loop, log, Busy(run_key()), WON)
    loop.at(0.0005, lambda: bed.replacement.wake("j"))
    assert bed.take() == RUNS
    assert bed.now() < 0.1


@pytest.mark.parametrize("when", ["before", "at the first try"])
def test_it_waits_for_a_registration(loop: VirtualLoop, log: Log, when: str) -> None:
    """And takes the key under the new one."""
    bed = Bed(loop, log, *([NodeGone()] if when != "before" else []), WON)
    if when == "before":
        bed.registration = None

    def register() -> None:
        bed.registration = Registration(4, 9, 30)
        bed.replacement.wake_all()

    loop.at(5.0, register)
    assert bed.take() == TickWon(20, 22, 77, 4)
    assert bed.now() == pytest.approx(5.0, abs=0.1)


def test_while_etcd_takes_no_writes(loop: VirtualLoop, log: Log) -> None:
    """Nothing is sent; it is tried again, more rarely."""
    bed = Bed(loop, log, WON)
    bed.writes.connect(probers=(), resumed=())
    bed.writes.failed("not-delivered", lost_reply())
    loop.at(5.0, bed.writes.on_success)
    assert bed.take() == RUNS
    assert 5.0 <= bed.now() <= 7.1
    assert bed.store.asked == ["take_run"]


def test_of_several_the_newest_gets_its_turn(loop: VirtualLoop, log: Log) -> None:
    """An older tick that waits is stopped; the older claim of an out-of-order answer never waits."""
    bed = Bed(loop, log, WON)
    bed.busy()

    async def take_both() -> list[TickWon | TickOver]:
        older = asyncio.ensure_future(bed.replacement.take_run_key(bed.tick, 20))
        await asyncio.sleep(1.0)
        newer = asyncio.ensure_future(bed.replacement.take_run_key(pending("newer", TICK + 60, overlap="replace"), 30))
        await asyncio.sleep(1.0)
        assert older.done()
        late = await bed.replacement.take_run_key(pending("late", TICK + 30, overlap="replace"), 25)
        bed.replacement.wake("j")
        return [await older, late, await newer]

    older, late, newer = loop.run(take_both())
    assert older == TickOver(20, None, REPLACED)
    assert late == TickOver(25, None, REPLACED)
    assert newer == TickWon(30, 22, 77, 3)


def test_stopped_tick_counts_as_waiting_until_it_has_answered(loop: VirtualLoop, log: Log) -> None:
    """Otherwise the daemon might end in between, and the claimed tick would have no result."""
    bed = Bed(loop, log)
    bed.busy()
    seen: list[int] = []

    def stop() -> None:
        bed.replacement.stop_all(STOPPING)
        seen.append(bed.replacement.waiting)

    loop.at(1.0, stop)
    bed.take()
    assert seen == [1]


# -- run keys of no use ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("failure", "found", "asked"),
    [
        (lost_reply(), (None, run_key("mine", TICK, 22)), ["take_run", "whose", "release"]),
        (full(), (None, run_key("mine", TICK, 22)), ["take_run", "whose", "release"]),
        (lost_reply(), (None, run_key("other")), ["take_run", "whose"]),
        (lost_reply(), (None, None), ["take_run", "whose"]),
        (refusal(), None, ["take_run"]),
    ],
)
def test_unclear_run_key_is_found_and_deleted(
    loop: VirtualLoop, log: Log, failure: Exception, found: Any, asked: list[str]
) -> None:
    """Only ours, and only if the try was unclear."""
    bed = Bed(loop, log, failure, found, None)
    loop.at(0.02, lambda: bed.replacement.stop_all(STOPPING))
    assert bed.take() == TickOver(20, None, STOPPING)
    bed.settle()
    assert bed.store.asked == asked
    if "release" in asked:
        assert (bed.store.arguments[-1][0][0].id, bed.store.arguments[-1][0][1]) == (("j", TICK), 22)


def test_unclear_run_key_is_looked_for_after_the_record(loop: VirtualLoop, log: Log) -> None:
    """A late try finds the result then, and takes no key; and however often etcd fails, the key is not forgotten."""
    ours = (None, run_key("mine", TICK, 22))
    bed = Bed(loop, log, lost_reply(), lost_reply(), ours, lost_reply(), None)
    bed.recorded = False
    loop.at(0.02, lambda: bed.replacement.stop_all(STOPPING))
    bed.take()
    bed.settle(10.0)
    assert bed.store.asked == ["take_run"]
    bed.recorded = True
    bed.settle(20.0)
    assert bed.store.asked == ["take_run", "whose", "whose", "release", "release"]


def test_unclear_run_key_that_is_ours_after_all(loop: VirtualLoop, log: Log) -> None:
    """The next try finds its own: nothing is deleted under a run that starts."""
    bed = Bed(loop, log, lost_reply(), WON)
    assert bed.take() == RUNS
    bed.settle()
    assert bed.store.asked == ["take_run", "take_run"]
