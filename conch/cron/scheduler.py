"""The scheduler: the life of a tick, from due to recorded, and the scheduler's own start and end."""

import asyncio
import queue
import threading
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from typing import TypeVar

from conch.core import linux
from conch.core.deadline import ANSWERS_WITHIN_S
from conch.core.messages import Drain, Finished, Message, Note, Release, Released, Reload, Running
from conch.cron.active_run import ActiveRun, RunState
from conch.cron.health import lease_left_s, why_unhealthy
from conch.cron.missing import Missed
from conch.cron.parts import Parts
from conch.cron.release import abandon, give_back
from conch.cron.run_log import Entry, ended
from conch.cron.scheduler_spec import PHASES, Phase, SchedulerSpec
from conch.cron.ticks import (
    STOPPING,
    Claim,
    PendingTick,
    RecentClaims,
    TickGivenUp,
    TickLost,
    TickOver,
    TickReopened,
    TickSkipped,
    TickState,
    TickWaits,
    TickWon,
)
from conch.cron.values import Result
from conch.cron.workers import BoottimeLoop, Tasks, ask_in, call_in
from conch.errors import checked
from conch.etcd.patience import first_answer
from conch.times import rfc3339

_T = TypeVar("_T")

# How many ticks may wait to be claimed; more count as missed unless other hosts claim them.
_PENDING_MOST = 10_000


class Scheduler:
    """Claims ticks, orders runs, records their ends. All state belongs to the thread that calls `run`.

    `call`, `asked`, `ask` and `log` are for other threads.
    """

    def __init__(self, spec: SchedulerSpec) -> None:
        self.spec = spec
        self.loop: asyncio.AbstractEventLoop = BoottimeLoop()
        self.tasks = Tasks(self.loop)
        self.phase = Phase.STARTING
        self.counts: Counter[tuple[str, str]] = Counter()
        self.pending: dict[tuple[str, int], PendingTick] = {}
        self._claimed = RecentClaims()
        self.ended = threading.Event()  # for other threads: everything was given back
        self.parts = Parts(self)

    # -- for other threads --------------------------------------------------------------------------------

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        """Call this in the scheduler's thread, in the order of the calls."""
        call_in(self.loop, function, *arguments)

    def asked(self, question: Callable[[], _T]) -> "Future[_T]":
        """Put a question to the scheduler's thread; it is dropped if the future is cancelled before its turn."""
        return ask_in(self.loop, question)

    def ask(self, question: Callable[[], _T], timeout_s: float | None) -> _T:
        """The answer of the scheduler's thread. Raises `TimeoutError`."""
        answer = self.asked(question)
        try:
            return answer.result(timeout_s)
        except TimeoutError:
            answer.cancel()
            raise TimeoutError("the scheduler is busy") from None

    def log(self, level: str, event: str, **fields: str | int | float) -> None:
        """Have the supervisor log an event."""
        self.spec.watchdog.send(Note(level, event, fields))

    # -- the life of a tick -------------------------------------------------------------------------------

    def consider(self, tick: PendingTick, on_claim: Callable[[Claim], None] = lambda _: None) -> None:
        """A tick is due, or was asked for: begin its life, unless it is claimed or being claimed already.

        `on_claim` gets what became of the claim.
        """
        earlier = self.pending.get(tick.id)
        if self.is_draining or tick.id in self._claimed:
            on_claim(TickLost())
        elif earlier is not None and (earlier.unclear or earlier.request_rev == tick.request_rev):
            on_claim(TickLost())  # it is being dealt with
        elif earlier is None and len(self.pending) >= _PENDING_MOST:
            on_claim(TickGivenUp(None))
            if not tick.request_rev:  # a request is tried again at another second
                self.parts.missed.add(tick.job.name, Missed(tick.tick, tick.tick, 1, tick.deadline))
        else:
            if earlier is not None:
                self._remove_pending(earlier)
                earlier.cancel()
            self.pending[tick.id] = tick
            self.tasks.spawn(self._live(tick, on_claim))

    async def _live(self, tick: PendingTick, on_claim: Callable[[Claim], None]) -> None:
        """The life of one tick: its turn, its claim, its run, its record."""
        parts = self.parts
        if not tick.request_rev:
            await parts.turns.wait(tick)
        claim = await self._claim(tick)
        parts.turns.settle(tick)
        on_claim(claim)
        if isinstance(claim, TickWaits):
            waiting = "the run before it is being ended"
            self.log("info", "waiting", job=tick.job.name, tick=rfc3339(tick.tick), msg=waiting)
            claim = await parts.replacement.take_run_key(tick, claim.rev)
        match claim:
            case TickLost():
                pass  # another host has it, or a row of an earlier try says why it did not run
            case TickGivenUp(reason):
                if reason is None and not tick.request_rev:
                    parts.missed.add(tick.job.name, Missed(tick.tick, tick.tick, 1, tick.deadline))
            case TickSkipped(reason):
                self.counts["runs", "skipped"] += 1
                self.log("info", "skipped", job=tick.job.name, tick=rfc3339(tick.tick), reason=reason)
            case TickOver(rev, run_rev, reason):
                run = parts.runner.add(ActiveRun(Entry(tick.run, *tick.id, rev, run_rev, host=tick.host)))
                await self._record(run, Result(self.host, "skipped", reason=reason))
            case TickWon(rev, run_rev):
                run = parts.runner.add(ActiveRun(Entry(tick.run, *tick.id, rev, run_rev, host=tick.host)))
                result = await parts.runner.run(tick, run, claim)
                await self._record(run, result)
        self.end_if_released()

    async def _claim(self, tick: PendingTick) -> Claim:
        """Claim a tick. If a claim is unclear when the tick is given up, find out for certain what became of it."""
        claim = await self.parts.claimer.claim(tick)
        while isinstance(claim, TickGivenUp) and tick.unclear:
            self._remove_pending(tick)
            closed = await self.parts.closer.close(tick, claim.reason)
            if not isinstance(closed, TickReopened):
                claim = closed
                break
            if tick.id in self.pending or tick.id in self._claimed:
                claim = TickLost()
                break
            self.pending[tick.id] = tick
            tick.enter(TickState.WAITING)
            claim = await self.parts.claimer.claim(tick)
        self._remove_pending(tick)
        tick.enter(TickState.SETTLED)
        if isinstance(claim, TickWon | TickWaits | TickOver | TickSkipped):
            self._claimed.add(tick.id)
        return claim

    async def _record(self, run: ActiveRun, result: Result) -> None:
        await self.parts.recorder.record(run, result)
        self.end_if_released()

    async def _see_through(self, run: ActiveRun) -> None:
        """Record the end of a run that an earlier keeper has begun, or deliver it if it is recorded on disk."""
        assert run.finished is not None  # noqa: S101 - it was added
        if run.state is RunState.ENDED:
            await self.parts.recorder.deliver(run)
            self.end_if_released()
        else:
            await self._record(run, await run.finished)

    def _remove_pending(self, tick: PendingTick) -> None:
        if self.pending.get(tick.id) is tick:
            del self.pending[tick.id]

    def on_claim(self, tick_id: tuple[str, int], is_ours: Callable[[PendingTick], bool]) -> None:
        """A tick was claimed by some host; `is_ours` says whether for a pending tick of ours."""
        self._claimed.add(tick_id)
        tick = self.pending.get(tick_id)
        if tick is not None and not is_ours(tick):
            self._remove_pending(tick)
            tick.cancel()

    # -- what the supervisor says -------------------------------------------------------------------------

    def receive(self, mailbox: "queue.SimpleQueue[Message]") -> None:
        """Handle the messages that have arrived; in the scheduler's thread."""
        while True:
            try:
                message = mailbox.get_nowait()
            except queue.Empty:
                return
            self._on_message(message)

    def _on_message(self, message: Message) -> None:
        match message:
            case Running(run=run):
                self.parts.notifier.started(self.parts.runner.on_running(run))
            case Finished():
                if not self.parts.notifier.on_finished(message):
                    self.parts.runner.on_finished(message)
            case Drain():
                self._drain()
            case Release():
                self._release_when_done()
            case Reload():
                self.parts.reload.on_request()
            case _:
                pass  # for the watchdog

    # -- start and end ------------------------------------------------------------------------------------

    def adopt(self, live: Sequence[str], over: Sequence[str], dead: Collection[str] = ()) -> None:
        """Take over the runs in the run log: live ones, ones about to be reported, delivered at last, or lost.

        `dead` are lost: their supervisor is dead. The others are of another boot, and lost once the registration
        that they ran under is gone.
        """
        for entry in self.spec.run_log.entries:
            if entry.result is None and entry.run not in (*live, *over, *dead):
                self.parts.inventory.unproved.append(entry)
                continue
            run = self.parts.runner.add(ActiveRun(entry, state=RunState.RUNNING))
            if entry.run in dead:
                self.log("warning", "run-lost", **run.about)
                run.entry = ended(entry, Result(self.host, "lost", reason="conchd died while it ran"))
                self.spec.run_log.write(run.entry)
                self.parts.recorder.announce(run)
                if entry.slot is not None:
                    self.parts.node.revoke(entry.slot)
            if run.entry.result is not None:
                run.enter(RunState.ENDED)
            self.tasks.spawn(self._see_through(run))

    def conclude(self, entry: Entry) -> None:
        """A run of another boot is lost."""
        run = self.parts.runner.add(ActiveRun(entry))
        self.tasks.spawn(self._record(run, Result(self.host, "lost", reason="conchd died while it ran")))

    def start(self) -> None:
        """List what is there; called before `run`.

        Raises `StoreError` if etcd must answer at the start and does not; else it is asked until it does.
        """
        watched, watcher = None, self.parts.watcher
        if self.spec.first:
            runs = self.parts.runner.ids_with_keys()
            within_s = max(ANSWERS_WITHIN_S, self.spec.connection.dial_timeout_s)
            watched = first_answer(
                lambda limit_s: watcher.list_all(limit_s, runs), self.spec.connection, within_s=within_s
            )
        watcher.start(watched)
        threading.Thread(target=self._watch_clock, name="clock", daemon=True).start()
        self.parts.start()
        self._enter(Phase.RUNNING)

    def _watch_clock(self) -> None:
        steps = linux.StepTimer()
        while True:
            steps.wait()
            self.call(self.parts.on_clock_step)

    def run(self) -> None:
        """Work until everything was given back. Raises what a defect raised."""
        asyncio.set_event_loop(self.loop)
        try:
            self.loop.run_until_complete(self.tasks.ended)
        finally:
            self.tasks.cancel_all()
            pending = self.tasks.pending
            if pending:
                self.loop.run_until_complete(asyncio.wait(pending, timeout=1.0))
            self.loop.close()
            self.ended.set()

    @property
    def host(self) -> str:
        """Our host's name."""
        return self.spec.identity.host

    @property
    def is_draining(self) -> bool:
        """Whether nothing more is to be claimed or started."""
        return self.phase not in (Phase.STARTING, Phase.RUNNING)

    @property
    def is_releasing(self) -> bool:
        """Whether the supervisor has nothing left, and everything is given back."""
        return self.phase in (Phase.RELEASING, Phase.RELEASED)

    def _enter(self, phase: Phase) -> None:
        self.phase = checked(PHASES, self.phase, phase)

    def _drain(self) -> None:
        """Claim nothing more; what only waits is given up. Runs go on."""
        if self.is_draining:
            return
        self._enter(Phase.DRAINING)
        for tick in self.pending.values():
            tick.alarm.ring()
        self.parts.replacement.stop_all(STOPPING)
        self.parts.runner.end_queued(STOPPING)
        self.parts.node.publish()

    def _release_when_done(self) -> None:
        """The supervisor has nothing left: end when all results are in etcd, as far as it answers."""
        if self.is_releasing:
            return
        self._drain()
        self._enter(Phase.RELEASING)
        self.parts.node.stop_registering()
        self.parts.closer.wake()
        self.tasks.later(self.spec.connection.command_timeout_s, self._release)
        self.end_if_released()

    def end_if_released(self) -> None:
        """End, if the supervisor has nothing left and nothing is under way or waits to be recorded."""
        if self.phase is Phase.RELEASING and not self.parts.is_busy:
            self._release()

    def _release(self) -> None:
        if self.phase is Phase.RELEASING:
            self._enter(Phase.RELEASED)
            self.parts.missed.close()
            self.tasks.spawn(self._give_back())

    async def _give_back(self) -> None:
        """Give back slots and registration, as far as etcd answers, and end."""
        left = len(self.parts.runner.active)
        reason = f"{left} results are kept on disk until etcd takes them" if left else ""
        await give_back(self.parts, self.spec)
        self.spec.watchdog.send(Released(reason))
        if not self.tasks.ended.done():
            self.tasks.ended.set_result(None)

    def abandon(self) -> None:
        """The supervisor is dead and all that it ran is gone: give back what is held; from the main thread."""
        abandon(self.parts, self.spec)

    # -- what the status server asks, in the scheduler's thread -------------------------------------------

    def healthy(self) -> str:
        """Why a tick could not be claimed now; empty if it could."""
        return why_unhealthy(self.parts, draining=self.is_draining)

    def lease_left_s(self) -> float:
        """How long our registration lasts without a renewal; 0 without one."""
        return lease_left_s(self.parts)
