"""Recording how runs ended: first on disk, then in etcd, once, however long that takes."""

import asyncio
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from conch.core.messages import Lost, Recorded
from conch.cron.active_run import ActiveRun, RunState
from conch.cron.job_counts import JobCounts
from conch.cron.recorder import Recorder
from conch.cron.result_store import Delivered
from conch.cron.run_log import Entry
from conch.cron.values import FAILED, STATES, Result
from conch.cron.writes import WriteKind
from conch.errors import IllegalTransition
from tests.support.parts import TICK, World, lost_reply, refusal, run_key, script
from tests.support.virtual_loop import Log, VirtualLoop

OK = Result("a", "ok", 0)
DONE = Delivered((), has_floor=True)


class Slot:
    def __init__(self, number: int) -> None:
        self.number = number
        self.released = threading.Event()
        self.releases = 0

    def release(self) -> None:
        self.releases += 1


class Bed(World):
    """A recorder; the runner is the table of active runs."""

    def __init__(self, loop: VirtualLoop, log: Log, *answers: Any) -> None:
        super().__init__(loop, log)
        self.store = script(*answers)
        self.active: dict[str, ActiveRun] = {}
        self.calls: list[str] = []
        self.job_counts = JobCounts()
        self.notified: list[tuple[ActiveRun, Result]] = []
        runner: Any = SimpleNamespace(active=self.active)
        self.recorder = Recorder(
            *(self.store, runner, self.commit, self.supervisor, self.transactions, self.writes),
            *(self.counts, self.job_counts, log),
            tracked=lambda name: self.tracked,
            own_time=loop.wall,
            releasing=lambda: self.releasing,
            notify=self._notify,
            ended=lambda: self.calls.append(f"ended {len(self.run_log.written)}"),
            run_key_gone=lambda name: self.calls.append(f"gone {name}"),
            timeout_s=5.0,
        )
        self.writes.connect(probers=(self.recorder.probes.probe,), resumed=(self.recorder.probes.resume,))

    def add(self, run: str = "mine", *, reported: bool = True) -> ActiveRun:
        added = ActiveRun(Entry(run, "j", TICK, 20, 22), state=RunState.RUNNING, reported=reported)
        self.active[run] = added
        return added

    def _notify(self, run: ActiveRun, result: Result, then: Callable[[], None]) -> None:
        self.notified.append((run, result))
        then()

    def record(self, run: ActiveRun, result: Result = OK) -> None:
        self.loop.run(self.recorder.record(run, result))
        self.loop.run(asyncio.sleep(0.01))
        self.check()
        assert run.state is RunState.RECORDED
        assert run.entry.run not in self.active


@pytest.mark.parametrize("reported", [True, False])
@pytest.mark.parametrize("full", [False, True])
def test_end_is_on_disk_then_in_etcd(loop: VirtualLoop, log: Log, reported: bool, full: bool) -> None:
    """The supervisor keeps what it reported until the disk has it, or, where the disk takes nothing, until etcd has."""
    bed = Bed(loop, log, DONE)
    bed.run_log.full = full
    run = bed.add(reported=reported)
    at_delivery: list[Any] = []

    def deliver() -> Delivered:
        at_delivery.append(([entry.result for entry in bed.run_log.written], bed.supervisor.kinds()))
        return DONE

    bed.store.answers = [deliver]
    bed.record(run)
    assert at_delivery == [([OK], ["recorded"] if reported and not full else [])]
    assert bed.supervisor.sent == ([Recorded("mine")] if reported else [])
    assert run.only_in_memory == (reported and full)
    assert bed.run_log.forgotten == ["mine"]
    assert bed.calls == ["ended 0"]  # before it is recorded: there is room for the next run
    assert bed.counts["runs", "ok"] == 1
    assert bool(log.events("run-end")) == (not reported)  # else the supervisor logs it


def test_what_is_delivered(loop: VirtualLoop, log: Log) -> None:
    """The result under the tick, the run key's revision, and the oldest of the expired ticks."""
    bed = Bed(loop, log, Delivered((TICK - 9,), has_floor=True))
    assert bed.tracked is not None
    bed.tracked.expired_ticks = {TICK - 100, TICK - 200}
    bed.record(bed.add())
    (arguments, options) = bed.store.arguments[0]
    assert arguments == ("j", TICK, OK, 22, [TICK - 200, TICK - 100], pytest.approx(loop.wall(), abs=1))
    assert (options["has_floor"], options["sending"].timeout_s) == (False, 5.0)
    assert bed.tracked.expired_ticks == {TICK - 9}
    assert bed.tracked.has_floor


def test_job_that_is_removed_meanwhile(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log, DONE)
    bed.tracked = None
    bed.record(bed.add())
    assert bed.store.arguments[0][0][4] == []


@pytest.mark.parametrize(("rev", "gone"), [(22, True), (23, False), (None, False)])
def test_run_key_goes_with_the_result(loop: VirtualLoop, log: Log, rev: int | None, gone: bool) -> None:
    """The tick that waits for it hears of it; a key that is another run's by now stays."""
    bed = Bed(loop, log, DONE)
    assert bed.tracked is not None
    bed.tracked.run = None if rev is None else run_key(rev=rev)
    bed.record(bed.add())
    assert ("gone j" in bed.calls) == gone
    assert (bed.tracked.run is None) == (gone or rev is None)


def test_slot_is_given_back_first(loop: VirtualLoop, log: Log) -> None:
    """The supervisor hears of it; slots that were given back are forgotten."""
    bed = Bed(loop, log, DONE, DONE)
    first, second = Slot(9), Slot(10)
    for name, slot in (("one", first), ("two", second)):
        run = bed.add(name)
        run.slot = slot  # type: ignore[assignment]
        bed.record(run)
        assert slot.releases == 1
        if slot is first:
            assert bed.recorder.returning == [first]
            first.released.set()
    assert bed.recorder.returning == [second]
    assert [message for message in bed.supervisor.sent if isinstance(message, Lost)] == [
        Lost(9, "given back"),
        Lost(10, "given back"),
    ]


def test_end_is_recorded_once(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log, DONE)
    run = bed.add()
    bed.record(run)
    with pytest.raises(IllegalTransition):
        loop.run(bed.recorder.record(run, OK))
    assert bed.counts["runs", "ok"] == 1


# -- while etcd does not take it ------------------------------------------------------------------------------


@pytest.mark.parametrize("failures", [1, 2, 8])
def test_again_and_again_until_etcd_has_it(loop: VirtualLoop, log: Log, failures: int) -> None:
    """As probes while it takes no writes; the pauses grow up to 10 s."""
    bed = Bed(loop, log, *[lost_reply() for _ in range(failures)], DONE)
    bed.record(bed.add())
    assert bed.store.asked == ["deliver"] * (failures + 1)
    assert bed.now() >= {1: 0.4, 2: 1.2, 8: 40.0}[failures]
    assert not bed.writes.is_open
    (fault,) = log.events("not-delivered")[:1]
    assert (fault["job"], fault["tick"], fault["waiting"]) == ("j", "2027-01-15T08:00:00Z", 1)


def test_nothing_is_sent_while_etcd_takes_no_writes(loop: VirtualLoop, log: Log) -> None:
    """All that wait are delivered when it does again; without a probe of their own if another kind's was made."""
    bed = Bed(loop, log, DONE, DONE)
    bed.writes.connect(probers=(lambda: False,), resumed=(bed.recorder.probes.resume,))
    bed.writes.failed("claim-failed", lost_reply())
    loop.at(60.0, bed.writes.on_success)
    runs = [bed.add("one"), bed.add("two")]

    async def record_all() -> None:
        await asyncio.gather(*(bed.recorder.record(run, OK) for run in runs))

    loop.run(record_all())
    assert bed.now() == pytest.approx(60.0, abs=0.1)
    assert bed.store.asked == ["deliver", "deliver"]


def test_breaker_that_opens_while_it_queues_for_a_worker(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log, DONE)
    loop.at(0.0005, lambda: bed.writes.failed("claim-failed", lost_reply()))
    bed.record(bed.add())
    assert bed.store.asked == ["deliver"]


def test_expired_ticks_are_kept_while_etcd_takes_no_writes(loop: VirtualLoop, log: Log) -> None:
    """They are removed by a transaction that is made."""
    bed = Bed(loop, log, DONE)
    assert bed.tracked is not None
    bed.tracked.expired_ticks = {TICK - 100}
    bed.writes.connect(probers=(lambda: False,), resumed=(bed.recorder.probes.resume,))
    bed.writes.failed("claim-failed", lost_reply())
    loop.at(5.0, bed.writes.on_success)
    bed.record(bed.add())
    assert bed.store.arguments[0][0][4] == [TICK - 100]


@pytest.mark.parametrize(("releasing", "after_s"), [(False, 3.0), (True, 1.2)])
def test_refused_result_waits_for_its_turn(loop: VirtualLoop, log: Log, releasing: bool, after_s: float) -> None:
    """One result at a time is sent after a refusal, but at the end of the daemon all are tried."""
    bed = Bed(loop, log, refusal(), DONE)
    loop.at(0.5, lambda: bed.writes.on_success())

    def wait_for_another() -> None:
        bed.releasing = releasing
        loop.seconds += 0
        bed.writes._retry_at[WriteKind.RESULT] = 1003.0

    loop.at(0.39, wait_for_another)
    bed.writes.connect(probers=(lambda: False,), resumed=(bed.recorder.probes.resume,))
    bed.record(bed.add())
    assert bed.store.asked == ["deliver", "deliver"]
    assert bed.now() >= 3.0 if not releasing else bed.now() < after_s
    assert bed.writes.may_retry(WriteKind.RESULT)  # it was made: the others need not wait


def _open(bed: Bed) -> None:
    bed.writes.failed("claim-failed", lost_reply())


@pytest.mark.parametrize(
    "event",
    [
        _open,
        lambda bed: setattr(bed, "tracked", None),
        lambda bed: setattr(bed, "draining", True),
        lambda bed: setattr(bed, "registration", None),
    ],
)
@pytest.mark.parametrize("after_s", [0.0, 0.0005, 0.2])
def test_whatever_happens_meanwhile(loop: VirtualLoop, log: Log, event: Callable[[Bed], None], after_s: float) -> None:
    """The end of a run is recorded once, whatever becomes of the rest."""
    bed = Bed(loop, log, lost_reply(), DONE)
    loop.at(after_s, lambda: event(bed))
    bed.record(bed.add())
    assert bed.store.asked == ["deliver", "deliver"]
    assert bed.run_log.forgotten == ["mine"]


def test_result_of_an_earlier_keeper_is_delivered(loop: VirtualLoop, log: Log) -> None:
    """It is on disk already: only etcd does not have it."""
    bed = Bed(loop, log, DONE)
    run = ActiveRun(Entry("mine", "j", TICK, 20, 22, result=OK), state=RunState.ENDED)
    bed.active["mine"] = run
    loop.run(bed.recorder.deliver(run))
    loop.run(asyncio.sleep(0.01))
    assert run.state is RunState.RECORDED
    assert (bed.run_log.written, bed.run_log.forgotten) == ([], ["mine"])


@pytest.mark.parametrize("reported", [True, False])
@pytest.mark.parametrize("state", STATES)
def test_run_that_failed_is_an_error_in_the_log(loop: VirtualLoop, log: Log, state: str, reported: bool) -> None:
    """One line of level `error`, which `--quiet` shows, with each fact in a field of its own."""
    bed = Bed(loop, log, DONE)
    bed.record(bed.add(reported=reported), Result("a", state, 7, TICK + 1.0, 2.5, 3, "because"))
    errors = [(event, fields) for level, event, fields in log.lines if level == "error"]
    about = {"job": "j", "tick": "2027-01-15T08:00:00Z", "state": state, "exit": 7, "reason": "because"}
    failed = {**about, "attempt": 3, "duration_s": 2.5}
    assert errors == ([("run-failed", failed)] if state in FAILED else [])


def test_run_of_which_little_is_known_is_an_error_too(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log, DONE)
    bed.record(bed.add(reported=False), Result("a", "lost", reason="conchd died while it ran"))
    (line,) = log.events("run-failed")
    assert (line["state"], line["exit"]) == ("lost", None)
    assert not {"attempt", "duration_s"} & line.keys()
