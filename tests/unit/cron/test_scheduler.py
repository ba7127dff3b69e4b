"""The life of a tick, and of the scheduler: its parts are ports of ours, which answer as the test says."""

import asyncio
import queue
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest

from conch.core.messages import Drain, Finished, Release, Released, Reload, Running
from conch.cron import scheduler as scheduler_module
from conch.cron.active_run import ActiveRun, RunState
from conch.cron.fleet import TURN_S, Turn
from conch.cron.parts import Parts
from conch.cron.run_log import Entry
from conch.cron.scheduler import Scheduler
from conch.cron.scheduler_spec import Phase
from conch.cron.ticks import (
    CHANGED,
    REMOVED,
    STOPPING,
    TOO_LATE,
    Claim,
    PendingTick,
    TickGivenUp,
    TickLost,
    TickOver,
    TickReopened,
    TickSkipped,
    TickState,
    TickWaits,
    TickWon,
)
from conch.cron.turns import Turns
from conch.cron.values import Result
from conch.errors import IllegalTransition
from tests.support.parts import ME, TICK, RunLog, Supervisor, lost_reply, pending
from tests.support.virtual_loop import DirectWorkers, VirtualLoop

WON = TickWon(20, 20, 77, 3)
OK = Result("a", "ok", 0)


class StandIns:
    """Stands in for the scheduler's parts. Each answer is a value, or a coroutine function of the tick."""

    def __init__(self, scheduler: Scheduler) -> None:
        self.scheduler = scheduler
        self.claims: list[Any] = []
        self.closings: list[Any] = []
        self.run_keys: list[Any] = []
        self.calls: list[str] = []
        self.added: list[tuple[str, int, float]] = []
        self.records: list[tuple[str, str, str]] = []
        self.before = 0  # hosts before us in line
        self.is_busy = False
        self.active: dict[str, ActiveRun] = {}
        self.workers = DirectWorkers(0.001)
        fleet: Any = SimpleNamespace(
            turn=lambda name, tick: Turn(self.before * TURN_S, ()), are_claiming=lambda hosts: False
        )
        self.turns = Turns(
            fleet,
            wall_clock=lambda: VirtualLoop.EPOCH,
            pending=lambda: 0,
            draining=lambda: self.scheduler.is_draining,
        )
        self.claimer = SimpleNamespace(claim=self._claim)
        self.closer = SimpleNamespace(close=self._close, wake=self._call("closer.wake"))
        self.replacement = SimpleNamespace(take_run_key=self._take_run_key, stop_all=self._call("stop_all"))
        self.runner = SimpleNamespace(
            active=self.active,
            add=self._add,
            run=self._run,
            live=lambda: [run for run in self.active.values() if not run.is_over],
            end_queued=self._call("end_queued"),
            on_running=self._call("on_running"),
            on_finished=self._call("on_finished"),
        )
        self.recorder = SimpleNamespace(
            record=self._record, deliver=self._deliver, returning=[], announce=self._call("announce")
        )
        self.notifier = SimpleNamespace(
            started=lambda _: None, on_finished=lambda message: message.run in self.commands, close=lambda _: None
        )
        self.commands: list[str] = []
        self.missed = SimpleNamespace(
            add=lambda name, missed: self.added.append((name, missed.first, missed.ripe_at)),
            close=self._call("missed.close"),
        )
        self.node = SimpleNamespace(
            publish=self._call("publish"),
            release=self._release,
            stop_registering=self._call("stop_registering"),
            revoke=self._call("revoke"),
            current=None,
            leases=[8],
        )
        self.registered: Any = None
        self.reload = SimpleNamespace(on_request=self._call("reload"))
        self.inventory = SimpleNamespace(unproved=[])

    def _call(self, name: str) -> Callable[..., None]:
        return lambda *arguments: self.calls.append(" ".join([name, *map(str, arguments[:1])]))

    def _release(self) -> Any:
        self.calls.append("release")
        return self.registered

    async def _answer(self, script: list[Any], tick: PendingTick) -> Any:
        await asyncio.sleep(0.001)
        answer = script.pop(0)
        return await answer(tick) if callable(answer) else answer

    async def _claim(self, tick: PendingTick) -> Any:
        self.calls.append("claim")
        return await self._answer(self.claims, tick)

    async def _close(self, tick: PendingTick, reason: str | None) -> Any:
        self.calls.append(f"close {reason}")
        tick.enter(TickState.CLOSING)
        return await self._answer(self.closings, tick)

    async def _take_run_key(self, tick: PendingTick, rev: int) -> Any:
        self.calls.append(f"take_run_key {rev}")
        return await self._answer(self.run_keys, tick)

    def _add(self, run: ActiveRun) -> ActiveRun:
        run.finished = self.scheduler.loop.create_future()
        self.active[run.entry.run] = run
        return run

    async def _run(self, tick: PendingTick, run: ActiveRun, won: TickWon) -> Result:
        self.calls.append(f"run {won.rev}")
        await asyncio.sleep(1.0)
        return OK

    async def _record(self, run: ActiveRun, result: Result) -> None:
        assert run.entry.run in self.active
        run.enter(RunState.ENDED)
        await asyncio.sleep(0.001)
        self.records.append((run.entry.run, result.state, result.reason))
        del self.active[run.entry.run]

    async def _deliver(self, run: ActiveRun) -> None:
        self.records.append((run.entry.run, "delivered", ""))
        del self.active[run.entry.run]


class Bed:
    """A scheduler on a loop whose clock jumps."""

    def __init__(self, loop: VirtualLoop, monkeypatch: pytest.MonkeyPatch) -> None:
        self.loop = loop
        self.supervisor = Supervisor()
        self.run_log = RunLog()
        self.revoked: list[int] = []
        monkeypatch.setattr(scheduler_module, "BoottimeLoop", lambda: loop)
        monkeypatch.setattr(scheduler_module, "Parts", StandIns)
        spec: Any = SimpleNamespace(
            identity=ME,
            watchdog=self.supervisor,
            run_log=SimpleNamespace(entries=[], write=self.run_log.write),
            connection=SimpleNamespace(command_timeout_s=5.0),
            timeout_s=5.0,
            store=SimpleNamespace(revoke=self._revoke),
        )
        self.fails = False
        self.scheduler = Scheduler(spec)
        self.scheduler.phase = Phase.RUNNING
        self.parts: Any = self.scheduler.parts

    def _revoke(self, lease: int, *, timeout_s: float) -> None:
        if self.fails:
            raise lost_reply()
        self.revoked.append(lease)

    def go(self, seconds: float = 5.0) -> None:
        self.loop.run(asyncio.sleep(seconds))
        if self.scheduler.tasks.ended.done():
            self.scheduler.tasks.ended.result()

    def live(self, tick: PendingTick, *claims: Any, closings: Any = (), run_keys: Any = ()) -> list[Claim]:
        """The whole life of a tick; what became of its claim."""
        self.parts.claims += claims
        self.parts.closings += closings
        self.parts.run_keys += run_keys
        answers: list[Claim] = []
        self.scheduler.consider(tick, answers.append)
        self.go()
        assert self.scheduler.pending == {}
        assert self.parts.active == {}
        assert tick.state is TickState.SETTLED
        return answers


@pytest.fixture
def bed(loop: VirtualLoop, monkeypatch: pytest.MonkeyPatch) -> Bed:
    return Bed(loop, monkeypatch)


def unclear(run: str = "mine", **fields: Any) -> PendingTick:
    tick = pending(run, **fields)
    tick.unclear = True
    return tick


# -- the life of a tick ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("claims", "run_keys", "calls", "records", "missed"),
    [
        ([WON], [], ["claim", "run 20"], [("mine", "ok", "")], False),
        ([TickLost()], [], ["claim"], [], False),
        ([TickGivenUp(None)], [], ["claim"], [], True),
        ([TickGivenUp(STOPPING)], [], ["claim"], [], False),
        ([TickGivenUp(REMOVED)], [], ["claim"], [], False),
        ([TickSkipped("a run is alive")], [], ["claim"], [], False),
        ([TickOver(20, 20, TOO_LATE)], [], ["claim"], [("mine", "skipped", TOO_LATE)], False),
        ([TickWaits(20)], [WON], ["claim", "take_run_key 20", "run 20"], [("mine", "ok", "")], False),
        (
            [TickWaits(20)],
            [TickOver(20, None, STOPPING)],
            ["claim", "take_run_key 20"],
            [("mine", "skipped", STOPPING)],
            False,
        ),
    ],
)
def test_life(
    bed: Bed, claims: list[Any], run_keys: list[Any], calls: list[str], records: list[Any], missed: bool
) -> None:
    """A claimed tick has one result; one that we did not claim in time is asked about once nobody can claim it."""
    answers = bed.live(pending(), *claims, run_keys=run_keys)
    assert answers == [claims[0]]
    assert bed.parts.calls == calls
    assert bed.parts.records == records
    assert bed.parts.added == ([("j", TICK, TICK + 30.0)] if missed else [])
    assert bed.scheduler.counts["runs", "skipped"] == isinstance(claims[0], TickSkipped)
    claimed = not isinstance(claims[0], TickLost | TickGivenUp)
    assert (("j", TICK) in bed.scheduler._claimed) == claimed


def test_request_never_counts_as_missed(bed: Bed) -> None:
    """It is tried at another second. Not even with ten thousand ticks that wait."""
    tick = pending()
    tick.request_rev = 9
    assert bed.live(tick, TickGivenUp(None)) == [TickGivenUp(None)]
    assert bed.parts.added == []


@pytest.mark.parametrize(("turn", "requested", "after_s"), [(0, False, 0.0), (2, False, 0.2), (2, True, 0.0)])
def test_turn(bed: Bed, turn: int, requested: bool, after_s: float) -> None:
    """The hosts before us in rank go first; a request has waited for its turn already."""
    bed.parts.before = turn
    at: list[float] = []

    async def claim(tick: PendingTick) -> Claim:
        at.append(bed.loop.seconds - 1000)
        return TickLost()

    tick = pending()
    tick.request_rev = 9 if requested else 0
    bed.live(tick, claim)
    assert at == [pytest.approx(after_s, abs=0.01)]


def test_tick_that_another_claims_in_its_turn(bed: Bed) -> None:
    """Its event ends the wait."""
    bed.parts.before = 20
    tick = pending()
    bed.loop.at(0.5, lambda: bed.scheduler.on_claim(tick.id, lambda pending: False))
    at: list[float] = []

    async def claim(tick: PendingTick) -> Claim:
        at.append(bed.loop.seconds - 1000)
        assert tick.cancelled
        return TickLost()

    bed.live(tick, claim)
    assert at == [pytest.approx(0.5, abs=0.01)]


@pytest.mark.parametrize(
    ("claims", "closings", "answers", "records", "missed"),
    [
        # too late, and closed
        ([TickGivenUp(None)], [TickGivenUp(None)], TickGivenUp(None), [], True),
        ([TickGivenUp(None)], [TickLost()], TickLost(), [], False),
        (
            [TickGivenUp(None)],
            [TickOver(20, 20, TOO_LATE)],
            TickOver(20, 20, TOO_LATE),
            [("mine", "skipped", TOO_LATE)],
            False,
        ),
        ([TickGivenUp(STOPPING)], [TickGivenUp(STOPPING)], TickGivenUp(STOPPING), [], False),
        # the job has changed, and the tick was not claimed under the old definition
        ([TickGivenUp(CHANGED), WON], [TickReopened()], WON, [("mine", "ok", "")], False),
        ([TickGivenUp(CHANGED), TickSkipped(CHANGED)], [TickReopened()], TickSkipped(CHANGED), [], False),
    ],
)
def test_unclear_claim_is_settled(
    bed: Bed, claims: list[Any], closings: list[Any], answers: Claim, records: list[Any], missed: bool
) -> None:
    """For certain, and before the answer."""
    tick = unclear()

    def clear(closed: Any) -> Any:
        async def close(tick: PendingTick) -> Any:
            tick.unclear = isinstance(closed, TickOver | TickLost)
            return closed

        return close

    assert bed.live(tick, *claims, closings=[clear(closed) for closed in closings]) == [answers]
    assert bed.parts.records == records
    assert bool(bed.parts.added) == missed


def test_unclear_twice(bed: Bed) -> None:
    """A tick that was reopened may become unclear again, and is closed again."""

    async def unclear_again(tick: PendingTick) -> Claim:
        tick.unclear = True
        return TickGivenUp(None)

    async def reopen(tick: PendingTick) -> Any:
        tick.unclear = False
        return TickReopened()

    over = TickOver(20, None, TOO_LATE)
    answers = bed.live(unclear(), TickGivenUp(CHANGED), unclear_again, closings=[reopen, over])
    assert answers == [over]
    assert bed.parts.calls == ["claim", "close the job was changed", "claim", "close None"]


@pytest.mark.parametrize("by", ["us", "another"])
def test_tick_that_is_claimed_or_considered_while_it_is_closed(bed: Bed, by: str) -> None:
    """It is not claimed a second time when it turns out that the first claim was not made."""
    other = pending("other")

    async def reopen(tick: PendingTick) -> Any:
        tick.unclear = False
        if by == "us":
            bed.scheduler.consider(other)  # it was planned anew by the new definition
        else:
            bed.scheduler.on_claim(tick.id, lambda pending: False)
        return TickReopened()

    bed.parts.claims = [TickGivenUp(CHANGED), WON]
    bed.parts.closings = [reopen]
    answers: list[Claim] = []
    bed.scheduler.consider(unclear(), answers.append)
    bed.go()
    assert answers == [TickLost()]
    assert bed.parts.calls.count("claim") == (2 if by == "us" else 1)
    assert bed.parts.records == ([("other", "ok", "")] if by == "us" else [])


# -- which ticks begin their lives ----------------------------------------------------------------------------


def _draining(bed: Bed) -> None:
    bed.scheduler.phase = Phase.DRAINING


def _claimed(bed: Bed) -> None:
    bed.scheduler.on_claim(("j", TICK), lambda tick: False)


def _considered(bed: Bed) -> None:
    bed.scheduler.pending["j", TICK] = pending("earlier")


def _unclear(bed: Bed) -> None:
    bed.scheduler.pending["j", TICK] = unclear("earlier")


@pytest.mark.parametrize(
    ("event", "requested"),
    [
        (_draining, False),
        (_draining, True),
        (_claimed, False),
        (_claimed, True),
        (_considered, False),
        (_unclear, False),
        (_unclear, True),
    ],
)
def test_tick_that_is_not_begun(bed: Bed, event: Callable[[Bed], None], requested: bool) -> None:
    """It is answered at once, and is nobody's missed tick."""
    event(bed)
    tick = pending()
    tick.request_rev = 9 if requested else 0
    answers: list[Claim] = []
    bed.scheduler.consider(tick, answers.append)
    bed.go()
    assert answers == [TickLost()]
    assert (bed.parts.calls, bed.parts.added) == ([], [])


@pytest.mark.parametrize("earlier_requested", [True, False])
def test_request_and_schedule_at_one_second(bed: Bed, earlier_requested: bool) -> None:
    """As after an edit: the later one takes the place of the earlier one, which is cancelled."""
    earlier, later = pending("earlier"), pending("later")
    (earlier if earlier_requested else later).request_rev = 9

    async def claim(tick: PendingTick) -> Claim:
        await asyncio.sleep(1.0)
        return TickLost() if tick.cancelled else WON

    bed.parts.claims = [claim, claim]
    answers: list[Claim] = []
    bed.scheduler.consider(earlier, answers.append)
    bed.scheduler.consider(later)
    assert bed.scheduler.pending == {("j", TICK): later}
    bed.go()
    assert answers == [TickLost()]
    assert bed.parts.records == [("later", "ok", "")]


@pytest.mark.parametrize(("requested", "missed"), [(False, [("j", TICK, TICK + 30.0)]), (True, [])])
def test_too_many_wait(bed: Bed, requested: bool, missed: list[Any]) -> None:
    """A scheduled tick counts as missed unless another host claims it; a request is tried again."""
    bed.scheduler.pending.update({("k", i): other for other in [pending("other")] for i in range(10_000)})
    tick = pending()
    tick.request_rev = 9 if requested else 0
    answers: list[Claim] = []
    bed.scheduler.consider(tick, answers.append)
    bed.go()
    assert answers == [TickGivenUp(None)]
    assert bed.parts.added == missed
    assert bed.parts.calls == []


def test_full_table_does_not_keep_a_tick_from_its_place(bed: Bed) -> None:
    """The one that it replaces makes room for it."""
    earlier = pending("earlier")
    earlier.request_rev = 9
    bed.scheduler.pending["j", TICK] = earlier
    bed.scheduler.pending.update({("k", i): other for other in [pending("other")] for i in range(9_999)})
    bed.parts.claims = [TickLost()]
    bed.scheduler.consider(pending())
    bed.go()
    assert earlier.cancelled
    assert bed.parts.calls == ["claim"]


def test_claims_are_remembered_but_not_all(bed: Bed) -> None:
    """The older half is forgotten."""
    for i in range(20_001):
        bed.scheduler.on_claim(("j", i), lambda tick: False)
    assert len(bed.scheduler._claimed) == 10_001
    assert ("j", 20_000) in bed.scheduler._claimed


@pytest.mark.parametrize("ours", [True, False])
def test_claim_of_a_pending_tick(bed: Bed, ours: bool) -> None:
    """Another host's ends it; ours goes on to its answer."""
    tick = pending()
    bed.scheduler.pending[tick.id] = tick
    bed.scheduler.on_claim(tick.id, lambda pending: ours)
    assert tick.cancelled == (not ours)
    assert (tick.id in bed.scheduler.pending) == ours
    bed.scheduler.on_claim(("j", TICK + 1), lambda pending: False)


def test_defect_in_a_life_ends_the_scheduler(bed: Bed) -> None:
    async def break_(tick: PendingTick) -> Claim:
        raise ZeroDivisionError

    bed.parts.claims = [break_]
    bed.scheduler.consider(pending())
    with pytest.raises(ZeroDivisionError):
        bed.go()


# -- the scheduler's own life ---------------------------------------------------------------------------------

ALLOWED = {
    (Phase.STARTING, Phase.RUNNING),
    (Phase.STARTING, Phase.DRAINING),
    (Phase.STARTING, Phase.RELEASING),
    (Phase.RUNNING, Phase.DRAINING),
    (Phase.RUNNING, Phase.RELEASING),
    (Phase.DRAINING, Phase.RELEASING),
    (Phase.RELEASING, Phase.RELEASED),
}


@pytest.mark.parametrize("before", Phase)
@pytest.mark.parametrize("after", Phase)
def test_transitions(bed: Bed, before: Phase, after: Phase) -> None:
    bed.scheduler.phase = before
    if (before, after) in ALLOWED:
        bed.scheduler._enter(after)
        assert bed.scheduler.phase is after
    else:
        with pytest.raises(IllegalTransition):
            bed.scheduler._enter(after)
    assert bed.scheduler.is_draining == (bed.scheduler.phase not in (Phase.STARTING, Phase.RUNNING))
    assert bed.scheduler.is_releasing == (bed.scheduler.phase in (Phase.RELEASING, Phase.RELEASED))


def receive(bed: Bed, *messages: Any) -> None:
    mailbox: Any = queue.SimpleQueue()
    for message in messages:
        mailbox.put(message)
    bed.scheduler.receive(mailbox)


FINISHED = Finished(run="mine", outcome="ended", code=0, attempt=1, started=0.0, duration_s=1.0, reason="")


def test_messages(bed: Bed) -> None:
    """Each goes to its part; what is for the watchdog is passed over."""
    receive(bed, Running(pid=1, run_id="t", holds=[], kill_after_s=1.0, run="mine"), FINISHED, Reload(), Released())
    assert [call.split()[0] for call in bed.parts.calls] == ["on_running", "on_finished", "reload"]


def test_drain(bed: Bed) -> None:
    """Nothing more is claimed; what only waits is given up, once; runs go on."""
    bed.parts.before = 50

    async def give_up(tick: PendingTick) -> Claim:
        return TickGivenUp(STOPPING)

    bed.parts.claims = [give_up]
    answers: list[Claim] = []
    bed.scheduler.consider(pending(), answers.append)
    bed.go(0.1)
    receive(bed, Drain(), Drain())
    assert bed.parts.calls == [f"stop_all {STOPPING}", f"end_queued {STOPPING}", "publish"]
    bed.go(0.1)
    assert answers == [TickGivenUp(STOPPING)]
    assert not bed.scheduler.tasks.ended.done()


def test_idle_scheduler_ends_at_once(bed: Bed) -> None:
    bed.parts.registered = SimpleNamespace(
        session=SimpleNamespace(stop=lambda: bed.parts.calls.append("session.stop")),
        registration=SimpleNamespace(lease=8),
    )
    receive(bed, Drain(), Release(), Release())
    bed.go(0.1)
    assert bed.scheduler.phase is Phase.RELEASED
    assert bed.scheduler.tasks.ended.done()
    assert bed.revoked == [8]
    assert bed.supervisor.sent[-1] == Released("")
    assert bed.parts.calls[3:] == ["stop_registering", "closer.wake", "missed.close", "release", "session.stop"]


@pytest.mark.parametrize(("busy_s", "ends_s"), [(2.0, 2.0), (100.0, 5.0)])
def test_busy_scheduler_ends_when_all_is_recorded(bed: Bed, busy_s: float, ends_s: float) -> None:
    """But not later than one request to etcd may take: results are on disk."""
    bed.parts.is_busy = True
    bed.parts.active["mine"] = ActiveRun(Entry("mine", "j", TICK, 20), state=RunState.ENDED)
    receive(bed, Release())

    def finish() -> None:
        bed.parts.is_busy = False
        bed.parts.active.clear()
        bed.scheduler.end_if_released()

    bed.loop.at(busy_s, finish)
    bed.loop.run(bed.scheduler.tasks.ended)  # type: ignore[arg-type]
    assert bed.loop.seconds - 1000 == pytest.approx(ends_s, abs=0.1)
    left = "" if busy_s < 5 else "1 results are kept on disk until etcd takes them"
    assert [message for message in bed.supervisor.sent if isinstance(message, Released)] == [Released(left)]
    bed.go(200.0)
    assert bed.parts.calls.count("release") == 1


@pytest.mark.parametrize("phase", [Phase.RUNNING, Phase.DRAINING, Phase.RELEASED])
def test_only_a_release_ends_it(bed: Bed, phase: Phase) -> None:
    bed.scheduler.phase = phase
    bed.scheduler.end_if_released()
    assert bed.scheduler.phase is phase


def test_registration_that_cannot_be_given_back(bed: Bed) -> None:
    """Its lease expires by itself."""
    bed.fails = True
    bed.parts.registered = SimpleNamespace(
        session=SimpleNamespace(stop=lambda: None), registration=SimpleNamespace(lease=8)
    )
    receive(bed, Release())
    bed.go(0.1)
    assert bed.scheduler.tasks.ended.done()


@pytest.mark.parametrize(
    ("what", "busy"),
    [
        ("nothing", False),
        ("run", True),
        ("unclear", True),
        ("claim", True),
        ("waits", True),
        ("pending", False),
        ("pending and unclear", True),
    ],
)
def test_what_keeps_it_from_ending(what: str, busy: bool) -> None:
    """Whatever would be forgotten: also a tick that was just stopped, and an unclear one on its way to be closed."""
    ticks = {("j", TICK): unclear() if what == "pending and unclear" else pending()} if "pending" in what else {}
    parts: Any = SimpleNamespace(
        runner=SimpleNamespace(active={"mine": 1} if what == "run" else {}),
        closer=SimpleNamespace(unclear={"mine": 1} if what == "unclear" else {}),
        replacement=SimpleNamespace(waiting=int(what == "waits")),
        readiness=SimpleNamespace(claims_under_way=lambda: int(what == "claim")),
        _port=SimpleNamespace(pending=ticks),
    )
    is_busy: Any = Parts.is_busy
    assert is_busy.fget(parts) == busy


# -- what was there before ------------------------------------------------------------------------------------


def test_adopted_runs(bed: Bed) -> None:
    """Live ones are followed, finished ones delivered, dead ones lost; those of another boot are not proved dead."""
    ended = Entry("ended", "j", TICK, 20, result=OK)
    entries = [Entry("live", "j", TICK, 20), Entry("over", "j", TICK, 20), ended]
    entries += [Entry("dead", "j", TICK, 20, slot=99), Entry("other boot", "j", TICK, 20)]
    bed.scheduler.spec.run_log.entries = entries  # type: ignore[misc]
    bed.scheduler.adopt(["live"], ["over"], ["dead"])
    bed.go(0.1)
    assert bed.parts.records == [("ended", "delivered", ""), ("dead", "delivered", "")]
    assert [(entry.run, entry.result.state) for entry in bed.run_log.written] == [("dead", "lost")]
    assert [call.split("(")[0] for call in bed.parts.calls] == ["announce ActiveRun", "revoke 99"]
    assert [entry.run for entry in bed.parts.inventory.unproved] == ["other boot"]
    assert {run: active.state for run, active in bed.parts.active.items()} == {
        "live": RunState.RUNNING,
        "over": RunState.RUNNING,
    }
    bed.parts.active["live"].finish(OK)
    bed.go(0.1)
    assert bed.parts.records[-1] == ("live", "ok", "")


def test_run_of_another_boot_is_lost(bed: Bed) -> None:
    bed.scheduler.conclude(Entry("old", "j", TICK, 20))
    bed.go(0.1)
    assert bed.parts.records == [("old", "lost", "conchd died while it ran")]


@pytest.mark.parametrize("fails", [True, False])
def test_supervisor_that_is_dead(bed: Bed, fails: bool) -> None:
    """All that is held is given back, as far as etcd answers."""
    bed.fails = fails
    slot: Any = SimpleNamespace(lease=99)
    waiting: Any = SimpleNamespace(lease=None)
    bed.parts.active["mine"] = ActiveRun(Entry("mine", "j", TICK, 20), slot=slot)
    bed.parts.active["queued"] = ActiveRun(Entry("queued", "j", TICK, 20), slot=waiting)
    bed.scheduler.abandon()
    assert bed.revoked == ([] if fails else [99, 8])


# -- other threads --------------------------------------------------------------------------------------------


def test_questions_of_other_threads(bed: Bed) -> None:
    """The asker gets what the question raises, and a busy scheduler drops a question whose asker has left."""
    answers: list[Any] = []

    def ask() -> None:
        answers.append(bed.scheduler.ask(lambda: 42, 5.0))
        try:
            bed.scheduler.ask(lambda: 1 // 0, 5.0)
        except ZeroDivisionError:
            answers.append("defect")

    thread = threading.Thread(target=ask)
    thread.start()
    while thread.is_alive():
        bed.go(0.001)
    assert answers == [42, "defect"]
    asked: list[int] = []
    with pytest.raises(TimeoutError, match="the scheduler is busy"):
        bed.scheduler.ask(lambda: asked.append(1), 0.01)
    bed.go(0.1)
    assert asked == []


def test_call_after_the_end(loop: VirtualLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread that is late is not heard, and harms nobody."""
    bed = Bed(loop, monkeypatch)
    receive(bed, Release())
    bed.scheduler.run()
    assert bed.scheduler.ended.is_set()
    bed.scheduler.call(print)


def test_what_still_runs_at_the_end_is_cancelled(loop: VirtualLoop, monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Bed(loop, monkeypatch)
    seen: list[str] = []

    async def wait() -> None:
        try:
            await asyncio.sleep(1000)
        except asyncio.CancelledError:
            seen.append("cancelled")
            raise

    bed.scheduler.tasks.spawn(wait())
    loop.at(0.1, lambda: receive(bed, Release()))
    bed.scheduler.run()
    assert seen == ["cancelled"]
