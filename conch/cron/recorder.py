"""Recording how runs ended: first on disk, then in etcd."""

import asyncio
from collections import Counter
from collections.abc import Callable

from conch.core.messages import Lost, Recorded
from conch.cron.active_run import ActiveRun, RunState
from conch.cron.group_commit import GroupCommit
from conch.cron.job_counts import JobCounts
from conch.cron.result_store import Delivered, ResultStore
from conch.cron.run_log import ended
from conch.cron.runner import Runner
from conch.cron.semaphore_slot import SemaphoreSlot
from conch.cron.ticks import TrackedJob
from conch.cron.transactions import Transactions
from conch.cron.values import FAILED, Result
from conch.cron.writes import ProbeQueue, Unsent, WriteKind, Writes, was_refused
from conch.etcd.store import StoreError
from conch.keeper.watchdog import Watchdog

Log = Callable[..., None]

_PAUSE_S, _PAUSE_MOST_S = 0.2, 10.0


class Recorder:
    """Records the end of each run once, however long that takes."""

    def __init__(
        self,
        store: ResultStore,
        runner: Runner,
        commit: GroupCommit,
        watchdog: Watchdog,
        transactions: Transactions,
        writes: Writes,
        counts: Counter[tuple[str, str]],
        job_counts: JobCounts,
        log: Log,
        *,
        tracked: Callable[[str], TrackedJob | None],
        own_time: Callable[[], float],
        releasing: Callable[[], bool],
        ended: Callable[[], None],
        notify: Callable[[ActiveRun, Result, Callable[[], None]], None],
        run_key_gone: Callable[[str], None],
        timeout_s: float,
    ) -> None:
        """`ended` is called when a run has ended, before it is recorded; `run_key_gone` when its run key is deleted.

        `notify(run, result, then)` has people told; it calls `then` when the supervisor may forget the run.
        """
        self._store = store
        self._runner = runner
        self._commit = commit
        self._watchdog = watchdog
        self._transactions = transactions
        self._writes = writes
        self._counts = counts
        self._job_counts = job_counts
        self._log = log
        self._tracked = tracked
        self._own_time = own_time
        self._releasing = releasing
        self._ended = ended
        self._notify = notify
        self._run_key_gone = run_key_gone
        self._timeout_s = timeout_s
        self.probes = ProbeQueue()
        self.returning: list[SemaphoreSlot] = []  # slots that are being given back

    async def record(self, run: ActiveRun, result: Result) -> None:
        """Write the result down, give back what only this run held, and deliver the result to etcd."""
        run.enter(RunState.ENDED)
        run.entry = ended(run.entry, result)
        self._count(run, result)
        if run.slot is not None:
            run.slot.release()
            self.returning = [*(slot for slot in self.returning if not slot.released.is_set()), run.slot]
            self._watchdog.send(Lost(run.slot.number, "given back"))
        self._ended()
        written = await self._commit.write(run.entry)
        run.only_in_memory = run.reported and not written

        def release() -> None:
            if run.reported and written:
                self._watchdog.send(Recorded(run.entry.run))

        self._notify(run, result, release)
        await self.deliver(run)

    def announce(self, run: ActiveRun) -> None:
        """Count, log and tell the end of a run of an earlier conchd that is written down already."""
        assert run.entry.result is not None  # noqa: S101 - it is over
        self._count(run, run.entry.result)
        self._notify(run, run.entry.result, lambda: None)

    def _count(self, run: ActiveRun, result: Result) -> None:
        self._counts["runs", result.state] += 1
        self._job_counts.ended(run.entry.name, result, self._own_time())
        self._log_end(run, result)

    def _log_end(self, run: ActiveRun, result: Result) -> None:
        """Log a failed run as an error; the supervisor has logged the end of what it reported."""
        about = {**run.about, "state": result.state, "exit": result.exit, "reason": result.reason or None}
        times = {"attempt": result.attempt, "duration_s": result.duration_s}
        if not run.reported:
            self._log("info", "run-end", **about)
        if result.state in FAILED:
            self._log("error", "run-failed", **about, **(times if result.started is not None else {}))

    async def deliver(self, run: ActiveRun) -> None:
        """Bring the result to etcd, again and again until etcd has it."""
        pause_s, probe = _PAUSE_S, False
        while True:
            try:
                delivered = await self._try(run, probe=probe)
                break
            except Unsent:
                pass
            except StoreError as error:
                waiting = sum(other.is_over for other in self._runner.active.values())
                self._writes.failed(WriteKind.RESULT.value, error, **run.about, waiting=waiting)
                run.refused = was_refused(error)
                pause_s = min(2 * pause_s, _PAUSE_MOST_S)
                await asyncio.sleep(pause_s)
            probe = await self._wait_for_turn(run)
        if run.refused:
            self._writes.retry_made(WriteKind.RESULT)
        self._on_delivered(run, delivered)

    async def _wait_for_turn(self, run: ActiveRun) -> bool:
        """Wait until etcd takes writes, or for a probe, which it returns."""
        while True:
            if self._writes.is_open:
                if await self.probes.wait():
                    return True
            elif run.refused and not self._releasing() and not self._writes.may_retry(WriteKind.RESULT):
                await asyncio.sleep(_PAUSE_S)
            else:
                return False

    async def _try(self, run: ActiveRun, *, probe: bool) -> Delivered:
        entry, result = run.entry, run.entry.result
        assert result is not None  # noqa: S101 - only a run that has ended is delivered
        tracked = self._tracked(entry.name)
        expired = tracked.take_expired() if tracked is not None and not self._writes.is_open else []
        has_floor, now = tracked is not None and tracked.has_floor, self._own_time()
        sending = self._transactions.sending(
            timeout_s=self._timeout_s, is_wanted=lambda: self._writes.may_send(probe=probe)
        )
        return await self._writes.gather(
            lambda: self._store.deliver(
                *(entry.name, entry.tick, result, entry.run_rev, expired, now),
                host=entry.host,
                has_floor=has_floor,
                sending=sending,
            ),
            probe=probe,
        )

    def _on_delivered(self, run: ActiveRun, delivered: Delivered) -> None:
        entry = run.entry
        run.enter(RunState.RECORDED)
        self._commit.forget(entry.run)
        self._runner.active.pop(entry.run, None)
        if run.only_in_memory:
            self._watchdog.send(Recorded(entry.run))
        tracked = self._tracked(entry.name)
        if tracked is not None:
            tracked.expired_ticks |= set(delivered.old)
            tracked.has_floor = delivered.has_floor
            if tracked.run is not None and tracked.run.create_revision == entry.run_rev:
                tracked.run = None
                self._run_key_gone(entry.name)
