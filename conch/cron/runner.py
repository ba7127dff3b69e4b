"""The runs of this daemon: each is ordered from the supervisor and followed until it has ended."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace

from conch.core import clock
from conch.core.messages import Finished, Held, Kill, Recorded, Start
from conch.cron.active_run import ActiveRun, RunState
from conch.cron.fleet_clock import FleetClock
from conch.cron.job import Job
from conch.cron.replacement import replaced_by
from conch.cron.run_log import Entry, RunLog
from conch.cron.semaphore_slot import OnFailed, OnHeld, SemaphoreSlot
from conch.cron.supervisor_check import SupervisorCheck
from conch.cron.ticks import PendingTick, Registration, TickWon, TrackedJob
from conch.cron.values import Result
from conch.cron.workers import call_in
from conch.keeper.watchdog import Watchdog
from conch.keys import Keys
from conch.times import rfc3339

# Upper bounds of the lag histogram, in seconds.
LAGS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(frozen=True, slots=True)
class RunPorts:
    """What the runner asks of the other parts: ours is the `registration`, `tracked` a job as it is followed now.

    `new_number` gives a number for a hold, `queue_for_slot(run, job, number, held, failed)` queues for a slot.
    """

    tracked: Callable[[str], TrackedJob | None]
    registration: Callable[[], Registration | None]
    new_number: Callable[[], int]
    queue_for_slot: Callable[[str, Job, int, OnHeld, OnFailed], SemaphoreSlot]


class Runner:
    """Orders runs of the supervisor, and knows which are active.

    `lag_counts` and `lag_sum` are the histogram of the seconds from tick to start; `counts` gets their number.
    """

    def __init__(
        self,
        ports: RunPorts,
        watchdog: Watchdog,
        run_log: RunLog,
        fleet_clock: FleetClock,
        keys: Keys,
        host: str,
        loop: asyncio.AbstractEventLoop,
        counts: Counter[tuple[str, str]],
        *,
        now: Callable[[], float] = clock.now,
    ) -> None:
        self._ports = ports
        self._watchdog = watchdog
        self._run_log = run_log
        self._clock = fleet_clock
        self._keys = keys
        self._host = host
        self._loop = loop
        self._counts = counts
        self._now = now
        self._supervisor = SupervisorCheck(now)
        self.active: dict[str, ActiveRun] = {}  # until the result is recorded
        self._live: dict[str, ActiveRun] = {}  # those of them that have not ended
        self.lag_counts: Counter[float] = Counter()
        self.lag_sum = 0.0

    def add(self, run: ActiveRun) -> ActiveRun:
        """Follow a run from now on."""
        run.finished = self._loop.create_future()
        run_id = run.entry.run
        self.active[run_id] = run
        if not run.is_over:
            self._live[run_id] = run
            run.on_over = lambda: self._forget_live(run_id)
        return run

    def _forget_live(self, run_id: str) -> None:
        self._live.pop(run_id, None)
        self._supervisor.taken(run_id)

    def live(self) -> list[ActiveRun]:
        """The runs that have not ended."""
        return list(self._live.values())

    def ids_with_keys(self) -> set[str]:
        """The ids of the live runs that have run keys."""
        return {run.entry.run for run in self.live() if run.entry.run_rev is not None}

    # -- one run ------------------------------------------------------------------------------------------

    async def run(self, tick: PendingTick, run: ActiveRun, won: TickWon) -> Result:
        """Have a won tick run, with a slot of its semaphore if it needs one; return how it ended."""
        assert run.finished is not None  # noqa: S101 - it was added
        run.job = tick.job
        too_late = self._why_too_late(tick)
        if too_late:
            return self._skipped(too_late)
        job, holds, variables = tick.job, [], self._hold_variables(tick.job, run.entry, won)
        run.offset_s = tick.offset_s
        if job.exclusive:
            run.node = won.number
            holds.append(won.number)
        if job.semaphore is not None:
            run.ends_by = self._now() + job.run_ttl_s
            run.enter(RunState.QUEUED)
            held = await self._get_slot(run, job)
            if run.finished.done():
                return run.finished.result()  # it was ended in the moment in which it got its slot
            if isinstance(held, Result):
                return held
            holds.append(held.number)
            if not job.exclusive:
                variables = {
                    "CONCH_REV": str(held.rev),
                    "CONCH_LEASE": f"{held.lease:x}",
                    "CONCH_HOLD_KEY": held.key,
                }
        self._order(run, tick, holds, variables)
        return await run.finished

    def _why_too_late(self, tick: PendingTick) -> str:
        if self._clock.now() > tick.deadline:
            return "too late to start"
        tracked = self._ports.tracked(tick.job.name)
        if tick.job.overlap == "replace" and tracked is not None and tracked.newest > tick.tick:
            return replaced_by(tracked.newest)
        return ""

    def _hold_variables(self, job: Job, entry: Entry, won: TickWon) -> dict[str, str]:
        """The environment that tells the command what it runs under: the run key, or else the claim."""
        registration, host = self._ports.registration(), [entry.host] if entry.host else []
        if job.exclusive and registration is not None:
            lease, key = registration.lease, self._keys.cron("run", job.name, *host)
        else:
            lease, key = won.lease, self._keys.cron("fire", job.name, entry.tick, *host)
        return {"CONCH_REV": str(won.run_rev or won.rev), "CONCH_LEASE": f"{lease:x}", "CONCH_HOLD_KEY": key}

    async def _get_slot(self, run: ActiveRun, job: Job) -> Held | Result:
        """Queue for a slot; the hold, or how the run ended before it got one."""
        assert run.finished is not None  # noqa: S101 - it was added
        got: asyncio.Future[Held | Result] = self._loop.create_future()
        finished = run.finished

        def settle(outcome: Held | Result) -> None:
            if not got.done():
                got.set_result(outcome)

        def held(message: Held) -> None:  # in the slot's thread
            entered = replace(run.entry, slot=message.lease)
            self._run_log.write(entered)
            call_in(self._loop, enter, entered, message)

        def enter(entered: Entry, message: Held) -> None:
            if not got.done():
                run.entry = entered
                settle(message)

        def failed(why: str) -> None:  # in the slot's thread
            call_in(self._loop, fail, why)

        def fail(why: str) -> None:
            if not got.done():
                run.slot = None
                settle(Result(self._host, "timeout", reason=why))

        try:
            run.slot = self._ports.queue_for_slot(run.entry.run, job, self._ports.new_number(), held, failed)
        except RuntimeError as error:  # no more threads
            return self._skipped(f"cannot queue for its slot: {error}")
        finished.add_done_callback(lambda done: settle(done.result()) if not done.cancelled() else None)
        return await got

    def _skipped(self, reason: str) -> Result:
        return Result(self._host, "skipped", reason=reason)

    def _order(self, run: ActiveRun, tick: PendingTick, holds: list[int], variables: dict[str, str]) -> None:
        job, entry, now = tick.job, run.entry, self._now()
        start_by = now + tick.deadline - self._clock.now() if run.ends_by is None else run.ends_by
        self._supervisor.ordered(entry.run)
        run.enter(RunState.ORDERED)
        self._watchdog.send(
            Start(
                run=entry.run,
                job=job.name,
                tick=rfc3339(entry.tick),
                command=list(job.cmd),
                environment={**job.env, **variables, "CONCH_NAME": job.name, "CONCH_TICK": str(entry.tick)},
                directory=job.cwd,
                holds=holds,
                start_by=start_by,
                first_limit_s=job.run_ttl_s if run.ends_by is None else max(0.001, run.ends_by - now),
                limit_s=job.run_ttl_s,
                kill_after_s=job.kill_after_s,
                retries=job.retries,
                retry_delay_s=job.retry_delay_s,
                keep_output=job.keep_output,
                env_files=list(job.env_files),
            )
        )

    # -- what the supervisor says -------------------------------------------------------------------------

    def on_running(self, run_id: str) -> ActiveRun | None:
        """The supervisor has started a run, which is returned, or the next attempt of one."""
        run = self.active.get(run_id)
        if run is None or run.state is not RunState.ORDERED:
            return None
        run.enter(RunState.RUNNING)
        self._supervisor.taken(run_id)
        if run.slot is not None:
            run.slot.in_use = True
        lag_s = max(0.0, self._clock.own() - run.entry.tick - run.offset_s)  # a request's tick may lie ahead
        self.lag_sum += lag_s
        self._counts["lags", ""] += 1
        self.lag_counts.update(bound for bound in LAGS_S if lag_s <= bound)
        return run

    def on_finished(self, message: Finished) -> None:
        """The supervisor has seen a run end. What we have safe already it need not keep."""
        run = self.active.get(message.run)
        if run is None or run.is_over:
            if run is None or not run.only_in_memory:
                self._watchdog.send(Recorded(message.run))
            return
        run.reported = True
        used = None if message.max_rss_kb is None else message.cpu_s, message.max_rss_kb
        times = message.started or None, message.duration_s
        end = message.state, message.code, *times, message.attempt, message.reason
        run.finish(Result(self._host, *end, *used, message.output))

    @property
    def unstarted(self) -> int:
        """How many runs were ordered and have not started."""
        return self._supervisor.untaken

    def is_supervisor_answering(self) -> bool:
        """Whether the supervisor takes orders: it is alive, not stopped, and the last orders were taken."""
        return self._supervisor.is_answering()

    # -- ending runs --------------------------------------------------------------------------------------

    def end(self, run: ActiveRun, reason: str) -> None:
        """Have a run ended. One that only queues for its slot is skipped."""
        if run.state in (RunState.CLAIMED, RunState.QUEUED):
            run.finish(self._skipped(reason))
        else:
            self._watchdog.send(Kill(run.entry.run, reason))

    def end_tick(self, name: str, tick: int, reason: str) -> None:
        """End the run of a tick, if it is one of ours and has not ended."""
        for run in self.live():
            if (run.entry.name, run.entry.tick) == (name, tick):
                self.end(run, reason)

    def end_before(self, name: str, tick: int, reason: str) -> None:
        """End the runs of a job for ticks before this one; runs without a run key are not replaced."""
        for run in self.live():
            if run.entry.name == name and run.entry.run_rev is not None and run.entry.tick < tick:
                self.end(run, reason)

    def end_queued(self, reason: str) -> None:
        """End the runs that only queue for their slots."""
        for run in self.live():
            if run.state is RunState.QUEUED:
                self.end(run, reason)

    def end_without_key(self, run: ActiveRun) -> None:
        """A run's key was deleted by somebody: nothing keeps another host from starting the job's next run."""
        reason = "its run key is gone: deleted by hand"
        if run.state in (RunState.CLAIMED, RunState.QUEUED):
            self.end(run, reason)
        else:
            self._watchdog.end(run.entry.run, reason)

    def on_run_key_gone(self, name: str, host: str, revision: int) -> None:
        """The job's run key (that of a host) was deleted at this revision: a run that had it has it no more."""
        for entry, run in [(run.entry, run) for run in self.live()]:
            if (entry.name, entry.host) == (name, host) and (entry.run_rev or revision) < revision:
                self.end_without_key(run)
