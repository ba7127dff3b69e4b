"""Ticks of `replace` jobs that wait for the run before them to end, and the run keys that they wait for."""

from collections.abc import Callable
from dataclasses import dataclass, field

from conch.cron.claim_outcomes import Busy, NodeGone, Outcome, Taken, Won
from conch.cron.claim_store import ClaimStore
from conch.cron.claimer import ClaimPorts
from conch.cron.fleet_clock import FleetClock
from conch.cron.group_commit import GroupCommit
from conch.cron.run_log import Entry
from conch.cron.ticks import (
    PAUSE_MOST_S,
    PAUSE_S,
    REMOVED,
    STOPPING,
    PendingTick,
    Registration,
    TickOver,
    TickWon,
    TrackedJob,
)
from conch.cron.transactions import Sending, Transactions
from conch.cron.workers import Alarm, Tasks, Workers
from conch.cron.writes import Unsent, WriteKind, Writes
from conch.etcd.store import Full, KeyValue, StoreError
from conch.holder import Holder
from conch.times import rfc3339

_NOT_ENDED = "the run before it did not end in time"


@dataclass(slots=True, eq=False)
class _Waiting:
    """A claimed tick that waits for its job's run key. `stopped` says why it does not wait any more."""

    tick: PendingTick
    stopped: str | None = None
    alarm: Alarm = field(default_factory=Alarm)

    def stop(self, reason: str) -> None:
        """Have the tick recorded as skipped, for the first reason that is given."""
        if self.stopped is None:
            self.stopped = reason
        self.alarm.ring()


class Replacement:
    """Ends runs for newer ticks. Of several ticks that wait for a run to end, the newest gets its turn.

    `under_way` counts transactions whose outcome is open, `waiting` the claimed ticks whose wait has not ended.
    """

    def __init__(
        self,
        store: ClaimStore,
        ports: ClaimPorts,
        tasks: Tasks,
        transactions: Transactions,
        workers: Workers,
        writes: Writes,
        commit: GroupCommit,
        fleet_clock: FleetClock,
        identity: Holder,
        *,
        end_runs: Callable[[str, int, str], None],
        is_recorded: Callable[[str], bool],
        timeout_s: float,
    ) -> None:
        """`end_runs(job, tick, reason)` ends our runs of a job for ticks before this one.

        `is_recorded` says of a run's id whether its result is in etcd, as far as we are concerned.
        """
        self._store = store
        self._ports = ports
        self._tasks = tasks
        self._transactions = transactions
        self._workers = workers
        self._writes = writes
        self._commit = commit
        self._clock = fleet_clock
        self._identity = identity
        self._end_runs = end_runs
        self._is_recorded = is_recorded
        self._timeout_s = timeout_s
        self._waiting: dict[str, _Waiting] = {}  # by job
        self.under_way = 0
        self.waiting = 0

    # -- what happens to the job meanwhile ----------------------------------------------------------------

    def on_claim(self, tracked: TrackedJob, tick: int) -> None:
        """A newer tick of the job was claimed, by us or another host: what runs or waits here gives way."""
        tracked.newest = max(tracked.newest, tick)
        reason = replaced_by(tick)
        self._end_runs(tracked.job.name, tick, reason)
        waiting = self._waiting.get(tracked.job.name)
        if waiting is not None and waiting.tick.tick < tick:
            waiting.stop(reason)

    def stop(self, name: str, reason: str) -> None:
        """The job's waiting tick is not to run."""
        if name in self._waiting:
            self._waiting[name].stop(reason)

    def stop_all(self, reason: str) -> None:
        """No waiting tick is to run."""
        for waiting in self._waiting.values():
            waiting.stop(reason)

    def wake(self, name: str) -> None:
        """The job's run key is gone, or may be."""
        if name in self._waiting:
            self._waiting[name].alarm.ring()

    def wake_all(self) -> None:
        """We are registered (again)."""
        for waiting in self._waiting.values():
            waiting.alarm.ring()

    # -- one waiting tick ---------------------------------------------------------------------------------

    async def take_run_key(self, tick: PendingTick, rev: int) -> TickWon | TickOver:
        """Wait until the run before this claimed tick is gone, then take its run key. `rev` is the claim's revision."""
        name = tick.job.name
        tracked = self._ports.tracked(name)
        if tracked is None or self._ports.draining():
            return TickOver(rev, None, REMOVED if tracked is None else STOPPING)
        if tick.tick < tracked.newest:
            return TickOver(rev, None, replaced_by(tracked.newest))
        self.stop(name, replaced_by(tick.tick))
        tick.unclear = False  # the claim is known; from now on this is about the run key
        waiting = self._waiting[name] = _Waiting(tick)
        self.on_claim(tracked, tick.tick)
        self.waiting += 1
        try:
            return await self._take_when_free(waiting, rev)
        finally:
            self.waiting -= 1
            if self._waiting.get(name) is waiting:
                del self._waiting[name]
            if tick.unclear:
                self._tasks.spawn(self._release_unclear(tick))

    async def _take_when_free(self, waiting: _Waiting, rev: int) -> TickWon | TickOver:
        """Try at each wake-up until the key is ours, the tick is stopped, or it is too late."""
        tick, tries, pause_s = waiting.tick, 0, 0.0
        while waiting.stopped is None:
            left_s = tick.deadline - self._clock.now()
            tracked, registration = self._ports.tracked(tick.job.name), self._ports.registration()
            if left_s <= 0:
                return TickOver(rev, None, _NOT_ENDED)
            if tracked is None or self._ports.draining():
                return TickOver(rev, None, REMOVED if tracked is None else STOPPING)
            is_busy = tries == 0 and tracked.run is not None
            if is_busy or pause_s or registration is None:
                await waiting.alarm.wait(min(left_s, pause_s or left_s))
                tries, pause_s = tries + 1, 0.0
                continue
            tries += 1
            try:
                outcome = await self._take(tick, rev, registration)
            except Unsent:
                pause_s = tick.next_pause_s()
                continue
            except StoreError as error:
                tick.unclear = tick.unclear or error.unclear or isinstance(error, Full)
                self._writes.failed(WriteKind.CLAIM.value, error, job=tick.job.name, tick=rfc3339(tick.tick))
                pause_s = tick.next_pause_s()
                continue
            match outcome:
                case Won(_, lease, run_rev):
                    tick.unclear = False
                    if waiting.stopped is None and not self._ports.draining():
                        return TickWon(rev, run_rev, lease, registration.number)
                    return TickOver(rev, run_rev, waiting.stopped or STOPPING)
                case Taken(why):
                    return TickOver(rev, None, why)
                case Busy(run):
                    tracked.run = run
                    pause_s = 0.0 if run is None else left_s
                case NodeGone():
                    pause_s = left_s  # until we are registered again
        return TickOver(rev, None, waiting.stopped)

    async def _take(self, tick: PendingTick, rev: int, registration: Registration) -> Outcome:
        """Try once to take the run key. A run key that is taken is on disk before this returns."""
        self.under_way += 1
        try:
            outcome = await self._writes.gather(
                lambda: self._store.take_run(
                    tick, rev, registration, self._identity, self._clock.own(), sending=self._sending()
                )
            )
            if isinstance(outcome, Won):
                await self._commit.write(Entry(tick.run, *tick.id, rev, outcome.run_rev, host=tick.host))
            return outcome
        finally:
            self.under_way -= 1

    # -- run keys of no use -------------------------------------------------------------------------------

    async def _release_unclear(self, tick: PendingTick) -> None:
        """Delete the run key that an ended tick may have, once its result keeps a late try from taking it."""
        pause = _Pause()
        while True:
            await pause.wait()
            if not self._is_recorded(tick.run):
                continue
            try:
                _, run = await self._workers.etcd(lambda: self._store.whose(tick, timeout_s=self._timeout_s))
            except StoreError:
                continue
            if run is not None and self._store.is_ours(run, tick):
                await self._delete(tick, run)
            return

    async def _delete(self, tick: PendingTick, run: KeyValue) -> None:
        pause = _Pause()
        while True:
            try:
                await self._writes.gather(
                    lambda: self._store.release(tick, run.create_revision, self._clock.own(), sending=self._sending())
                )
                return
            except Unsent:
                pass
            except StoreError as error:
                self._writes.failed(WriteKind.CLAIM.value, error, job=tick.job.name, tick=rfc3339(tick.tick))
            await pause.wait()

    def _sending(self) -> Sending:
        return self._transactions.sending(
            timeout_s=self._timeout_s, is_wanted=lambda: self._writes.may_send(probe=False)
        )


class _Pause:
    """Waits between tries, doubling up to 2 s."""

    def __init__(self) -> None:
        self._pause_s = PAUSE_S

    async def wait(self) -> None:
        """One pause."""
        await Alarm().wait(self._pause_s)
        self._pause_s = min(2 * self._pause_s, PAUSE_MOST_S)


def replaced_by(tick: int) -> str:
    """The reason for a tick or run that gives way to a newer tick."""
    return f"replaced by the tick of {rfc3339(tick)}"
