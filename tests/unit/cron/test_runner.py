"""Ordering runs and following them: when a run is started, with what, and everything that can end it before that."""

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from conch.core.messages import Finished, Held, Kill, Recorded, Start
from conch.cron.active_run import ActiveRun, RunState
from conch.cron.run_log import Entry
from conch.cron.runner import Runner, RunPorts
from conch.cron.ticks import Registration, TickWon
from conch.cron.values import Result
from conch.errors import IllegalTransition
from conch.keys import Keys
from tests.support.parts import TICK, World, pending
from tests.support.virtual_loop import Log, VirtualLoop

HELD = Held(number=9, rev=55, lease=0xAB, key="/slot", ttl_s=10.0, deadline=2000.0)
KEYS = Keys("/p")


def finished(run: str = "mine", outcome: str = "ended", code: int | None = 0) -> Finished:
    return Finished(
        run=run, outcome=outcome, code=code, attempt=1, started=TICK + 1.0, duration_s=2.0, reason="because"
    )


class Bed(World):
    """A runner, and a semaphore whose slot is held or refused as the test says."""

    def __init__(self, loop: VirtualLoop, log: Log, **fields: Any) -> None:
        super().__init__(loop, log, **fields)
        self.queued: list[tuple[Any, int]] = []
        self.no_threads = False
        self.runner = Runner(
            RunPorts(
                tracked=lambda name: self.tracked,
                registration=lambda: self.registration,
                new_number=lambda: 9,
                queue_for_slot=self._queue,
            ),
            *(self.supervisor, self.run_log, self.clock, KEYS, "a", loop, self.counts),
            now=loop.time,
        )
        self.tick = pending(**fields)
        self.run = self.add()

    def add(self, run: str = "mine", tick: int = TICK, run_rev: int | None = 20) -> ActiveRun:
        return self.runner.add(ActiveRun(Entry(run, "j", tick, 20, run_rev)))

    def _queue(self, run: str, job: Any, number: int, held: Any, failed: Any) -> Any:
        if self.no_threads:
            raise RuntimeError("can't start new thread")
        self.held, self.failed = held, failed
        self.queued.append((job.semaphore, number))
        return SimpleNamespace(number=number, lease=None, in_use=False)

    def start(self, won: TickWon | None = None) -> "asyncio.Task[Result]":
        return self.loop.create_task(self.runner.run(self.tick, self.run, won or TickWon(20, 20, 77, 3)))

    def spin(self, rounds: int = 3) -> None:
        """Let everything go on that can."""

        async def pause() -> None:
            for _ in range(rounds):
                await asyncio.sleep(0)

        self.loop.run(pause())

    def orders(self) -> list[Start]:
        return [message for message in self.supervisor.sent if isinstance(message, Start)]


# -- states ---------------------------------------------------------------------------------------------------

ALLOWED = {
    (RunState.CLAIMED, RunState.QUEUED),
    (RunState.CLAIMED, RunState.ORDERED),
    (RunState.CLAIMED, RunState.ENDED),
    (RunState.QUEUED, RunState.ORDERED),
    (RunState.QUEUED, RunState.ENDED),
    (RunState.ORDERED, RunState.RUNNING),
    (RunState.ORDERED, RunState.ENDED),
    (RunState.RUNNING, RunState.ENDED),
    (RunState.ENDED, RunState.RECORDED),
}


@pytest.mark.parametrize("before", RunState)
@pytest.mark.parametrize("after", RunState)
def test_transitions(before: RunState, after: RunState) -> None:
    """A run only goes forward, and ends and is recorded once."""
    run = ActiveRun(Entry("mine", "j", TICK, 20), state=before)
    if (before, after) in ALLOWED:
        run.enter(after)
        assert run.state is after
    else:
        with pytest.raises(IllegalTransition):
            run.enter(after)
        assert run.state is before
    assert run.is_over == (run.state in (RunState.ENDED, RunState.RECORDED))


# -- orders ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "won", "node", "holds", "variables"),
    [
        (
            {},
            TickWon(20, 21, 77, 3),
            3,
            [3],
            {"CONCH_REV": "21", "CONCH_LEASE": "8", "CONCH_HOLD_KEY": KEYS.cron("run", "j")},
        ),
        (
            {"overlap": "allow"},
            TickWon(20, None, 77, 3),
            None,
            [],
            {"CONCH_REV": "20", "CONCH_LEASE": "4d", "CONCH_HOLD_KEY": KEYS.cron("fire", "j", TICK)},
        ),
    ],
)
def test_order(
    loop: VirtualLoop,
    log: Log,
    fields: dict[str, Any],
    won: TickWon,
    node: int | None,
    holds: list[int],
    variables: dict[str, str],
) -> None:
    """A run that needs the run key runs under our registration; one that may overlap holds only its claim."""
    bed = Bed(loop, log, env={"A": "b"}, run_ttl=50, retries=2, **fields)
    task = bed.start(won)
    bed.spin()
    (order,) = bed.orders()
    assert (bed.run.node, order.holds) == (node, holds)
    assert order.environment == {"A": "b", **variables, "CONCH_NAME": "j", "CONCH_TICK": str(TICK)}
    assert order.start_by == pytest.approx(1030.0)
    assert (order.first_limit_s, order.limit_s, order.retries) == (50.0, 50.0, 2)
    assert bed.run.state is RunState.ORDERED
    bed.runner.on_running("mine")
    assert bed.run.state is RunState.RUNNING
    bed.runner.on_finished(finished())
    assert loop.run_until_complete(task) == Result("a", "ok", 0, TICK + 1.0, 2.0, 1, "because")
    assert bed.run.reported


@pytest.mark.parametrize(
    ("late", "newest", "overlap", "reason"),
    [
        (True, 0, "forbid", "too late to start"),
        (False, TICK + 60, "replace", "replaced by the tick of 2027-01-15T08:01:00Z"),
        (False, TICK, "replace", ""),
        (False, TICK + 60, "forbid", ""),
    ],
)
def test_won_tick_that_is_not_to_start_any_more(
    loop: VirtualLoop, log: Log, late: bool, newest: int, overlap: str, reason: str
) -> None:
    """Too late, or replaced by a newer tick between its claim and its start."""
    bed = Bed(loop, log, overlap=overlap)
    assert bed.tracked is not None
    bed.tracked.newest = newest
    if late:
        bed.tick.deadline = TICK - 1.0
    task = bed.start()
    bed.spin()
    assert bool(bed.orders()) == (not reason)
    if reason:
        assert loop.run_until_complete(task) == Result("a", "skipped", reason=reason)
        assert bed.run.node is None
    else:
        task.cancel()


# -- slots ----------------------------------------------------------------------------------------------------

NO_THREADS = "cannot queue for its slot: can't start new thread"
SEMAPHORE = {"sema": "db:2", "run_ttl": 50}


@pytest.mark.parametrize(
    ("fields", "holds", "lease"), [({}, [3, 9], "8"), ({"overlap": "allow"}, [9], "ab")], ids=["exclusive", "allow"]
)
def test_run_waits_for_its_slot(
    loop: VirtualLoop, log: Log, fields: dict[str, Any], holds: list[int], lease: str
) -> None:
    """The hold is on disk before the order; the time limit includes the wait; the environment has the slot only where
    there is no run key."""
    bed = Bed(loop, log, **SEMAPHORE, **fields)
    task = bed.start(TickWon(20, None if fields else 20, 77, 3))
    bed.spin()
    assert bed.queued == [(("db", 2), 9)]
    assert bed.orders() == []
    assert bed.run.state is RunState.QUEUED
    loop.seconds += 10
    bed.held(HELD)
    assert [entry.slot for entry in bed.run_log.written] == [0xAB]
    bed.spin()
    (order,) = bed.orders()
    assert order.holds == holds
    assert order.environment["CONCH_LEASE"] == lease
    assert order.first_limit_s == pytest.approx(40.0)
    assert order.start_by == pytest.approx(1050.0)
    assert bed.run.entry.slot == 0xAB
    bed.runner.on_running("mine")
    slot: Any = bed.run.slot
    assert slot.in_use
    bed.runner.on_finished(finished())
    assert loop.run_until_complete(task).state == "ok"


def _end(bed: Bed) -> None:
    bed.runner.end_queued("conchd is stopping")


@pytest.mark.parametrize(
    "events",
    [
        [_end],
        [_end, lambda bed: bed.held(HELD)],
        [lambda bed: bed.held(HELD), _end],
        [lambda bed: bed.loop.call_soon(_end, bed), lambda bed: bed.held(HELD)],
        [_end, lambda bed: bed.failed("no slot within 50 s")],
    ],
    ids=["ended", "ended, then held", "held, then ended", "ended just before it is held", "ended, then refused"],
)
def test_run_that_is_ended_in_the_queue_never_starts(
    loop: VirtualLoop, log: Log, events: list[Callable[[Bed], None]]
) -> None:
    """Whatever arrives in the same moment: a run that is recorded as skipped must not be ordered, too."""
    bed = Bed(loop, log, **SEMAPHORE)
    task = bed.start()
    bed.spin()
    for event in events:
        event(bed)
    assert loop.run_until_complete(task) == Result("a", "skipped", reason="conchd is stopping")
    assert bed.orders() == []


def test_run_that_is_ended_as_its_hold_is_taken_in(loop: VirtualLoop, log: Log) -> None:
    """The same, a step of the loop later: the hold was taken in, and its coroutine has not gone on yet."""
    bed = Bed(loop, log, **SEMAPHORE)
    task = bed.start()
    bed.spin()
    bed.held(HELD)
    loop.call_soon(lambda: bed.runner.end_queued("conchd is stopping"))
    assert loop.run_until_complete(task).state == "skipped"
    assert bed.orders() == []


@pytest.mark.parametrize("threads", [True, False])
def test_no_slot(loop: VirtualLoop, log: Log, threads: bool) -> None:
    """The wait was too long, or the system has no more threads."""
    bed = Bed(loop, log, **SEMAPHORE)
    bed.no_threads = not threads
    task = bed.start()
    bed.spin()
    if threads:
        bed.failed("no slot within 50 s")
        assert loop.run_until_complete(task) == Result("a", "timeout", reason="no slot within 50 s")
        assert bed.run.slot is None
    else:
        assert loop.run_until_complete(task) == Result(
            "a", "skipped", reason="cannot queue for its slot: can't start new thread"
        )


def test_second_word_of_a_slot_does_not_count(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log, **SEMAPHORE)
    bed.start()
    bed.spin()
    bed.held(HELD)
    bed.failed("gone")
    bed.spin()
    assert len(bed.orders()) == 1
    assert bed.run.slot is not None


# -- what the supervisor says ---------------------------------------------------------------------------------


def test_lag_is_counted_once_a_run(loop: VirtualLoop, log: Log) -> None:
    """At the first attempt alone, and never below 0: the tick of a request may lie ahead."""
    bed = Bed(loop, log)
    ahead = bed.add("ahead", TICK + 100)
    for run in (bed.run, ahead):
        run.enter(RunState.ORDERED)
    loop.seconds += 0.2
    for run_id in ("mine", "mine", "ahead", "nobody"):
        bed.runner.on_running(run_id)
    assert bed.counts["lags", ""] == 2
    assert bed.runner.lag_sum == pytest.approx(0.2)
    assert bed.runner.lag_counts[0.15] == 1
    assert bed.runner.lag_counts[0.25] == 2


@pytest.mark.parametrize(
    ("outcome", "code", "state"),
    [
        ("ended", 0, "ok"),
        ("ended", 3, "failed"),
        ("unstarted", None, "skipped"),
        ("timeout", None, "timeout"),
        ("killed", None, "killed"),
    ],
)
def test_outcomes(loop: VirtualLoop, log: Log, outcome: str, code: int | None, state: str) -> None:
    bed = Bed(loop, log)
    task = bed.start()
    bed.spin()
    bed.runner.on_finished(finished(outcome=outcome, code=code))
    bed.runner.on_finished(finished(code=9))  # a later report does not count
    assert loop.run_until_complete(task).state == state


@pytest.mark.parametrize(
    ("known", "only_in_memory", "answered"), [(False, False, True), (True, False, True), (True, True, False)]
)
def test_report_of_a_run_that_is_over(
    loop: VirtualLoop, log: Log, known: bool, only_in_memory: bool, answered: bool
) -> None:
    """The supervisor need not keep it, unless we have it in memory alone."""
    bed = Bed(loop, log)
    bed.run.only_in_memory = only_in_memory
    bed.run.enter(RunState.ENDED)
    bed.runner.on_finished(finished("mine" if known else "nobody"))
    assert [isinstance(message, Recorded) for message in bed.supervisor.sent] == ([True] if answered else [])


# -- ending runs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("state", [RunState.CLAIMED, RunState.QUEUED, RunState.ORDERED, RunState.RUNNING])
@pytest.mark.parametrize("how", ["end", "without key"])
def test_ending_a_run(loop: VirtualLoop, log: Log, state: RunState, how: str) -> None:
    """One that was not ordered is skipped; another is killed, by the watchdog itself where its key is gone."""
    bed = Bed(loop, log)
    bed.run.state = state
    if how == "end":
        bed.runner.end(bed.run, "why")
    else:
        bed.runner.end_without_key(bed.run)
    reason = "why" if how == "end" else "its run key is gone: deleted by hand"
    assert bed.run.finished is not None
    if state in (RunState.CLAIMED, RunState.QUEUED):
        assert bed.run.finished.result() == Result("a", "skipped", reason=reason)
        assert bed.supervisor.sent == bed.supervisor.ended == []
    elif how == "end":
        assert bed.supervisor.sent == [Kill("mine", reason)]
    else:
        assert bed.supervisor.ended == [("mine", reason)]


def test_which_runs_a_newer_tick_ends(loop: VirtualLoop, log: Log) -> None:
    """Live ones of the job, for older ticks, with a run key."""
    bed = Bed(loop, log)
    other = bed.runner.add(ActiveRun(Entry("other", "k", TICK, 20, 20)))
    bed.add("newer", TICK + 60)
    bed.add("same", TICK + 30)
    bed.add("allowed", TICK, None)
    bed.add("over").enter(RunState.ENDED)
    for run in bed.runner.active.values():
        if not run.is_over:
            run.state = RunState.RUNNING
    bed.runner.end_before("j", TICK + 30, "replaced")
    assert bed.supervisor.sent == [Kill("mine", "replaced")]
    assert other.state is RunState.RUNNING


@pytest.mark.parametrize(("revision", "ended"), [(20, False), (21, True)])
def test_run_key_that_is_gone(loop: VirtualLoop, log: Log, revision: int, ended: bool) -> None:
    """A key that was deleted before ours was created was another one."""
    bed = Bed(loop, log)
    bed.run.state = RunState.RUNNING
    bed.add("keyless", run_rev=None).state = RunState.RUNNING
    bed.runner.on_run_key_gone("k", "", 99)
    bed.runner.on_run_key_gone("j", "h", 99)  # the key of a host is another
    bed.runner.on_run_key_gone("j", "", revision)
    assert bool(bed.supervisor.ended) == ended
    assert len(bed.supervisor.ended) <= 1


def test_drain_ends_only_what_queues(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log)
    for state in (RunState.CLAIMED, RunState.ORDERED, RunState.RUNNING, RunState.QUEUED):
        bed.add(state.value).state = state
    bed.runner.end_queued("conchd is stopping")
    assert [run.entry.run for run in bed.runner.active.values() if run.finished and run.finished.done()] == ["queued"]
    assert bed.supervisor.sent == []


def test_registration_that_a_run_is_held_by_is_the_one_it_was_claimed_under(loop: VirtualLoop, log: Log) -> None:
    """We may have registered anew since: the run ends with the old registration."""
    bed = Bed(loop, log)
    bed.registration = Registration(4, 9, 30)
    bed.start(TickWon(20, 20, 77, 3))
    bed.spin()
    assert bed.orders()[0].holds == [3]


def test_slot_after_the_loop_has_ended(loop: VirtualLoop, log: Log) -> None:
    """Its thread goes on for a moment; the hold is on disk for the next keeper."""
    bed = Bed(loop, log, **SEMAPHORE)
    task = bed.start()
    bed.spin()
    task.cancel()
    bed.spin()
    loop.close()
    bed.held(HELD)
    bed.failed("no slot within 50 s")
    assert [entry.slot for entry in bed.run_log.written] == [0xAB]
