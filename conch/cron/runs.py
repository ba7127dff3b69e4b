"""The runs of this daemon, from the claim that was won until the result is in etcd."""

import os
from abc import abstractmethod
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace

from conch.core import clock, procfs
from conch.core.messages import Finished, Held, Kill, Lost, Recorded, Start
from conch.cron.actor import Base
from conch.cron.claim_store import ClaimStore, PendingTick
from conch.cron.job import Job
from conch.cron.membership import Membership
from conch.cron.result_store import TRIM, Delivered, ResultStore
from conch.cron.run_log import Entry, ended
from conch.cron.schedule import Schedule
from conch.cron.slots import Slot
from conch.cron.values import Result
from conch.etcd.store import KeyValue, StoreError
from conch.holder import Holder, shown
from conch.times import rfc3339

_PAUSE_S, _PAUSE_MOST_S = 0.2, 10.0
# When a supervisor that does not take an order is taken for stopped.
_UNANSWERED_S = 1.0
# Upper bounds of the lag histogram, in seconds.
LAGS_S = (0.005, 0.01, 0.02, 0.05, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)


@dataclass(slots=True)
class TrackedJob:
    """A job as this daemon follows it. `run` is its run key as last seen, `old` are ticks to be removed.

    `waiting` is a claimed tick, and its claim's revision, that waits for the run before it to end; `newest` is the
    newest tick that was claimed under `replace`. `next_tick` is the one that is planned, under the number `planned`;
    up to `past` all ticks were due, or are from before it was known. `value` is what etcd has, when it was read.
    """

    job: Job
    rev: int
    schedule: Schedule
    has_floor: bool = False
    run: KeyValue | None = None
    waiting: tuple[PendingTick, int] | None = None
    newest: int = 0
    created: int = 0  # the revision at which it was added
    old: set[int] = field(default_factory=set)
    next_tick: int | None = None
    planned: int = 0
    past: int = 0
    value: bytes = b""

    def take_old(self) -> list[int]:
        """The oldest of `old`, as many as one transaction removes; the others are found again."""
        old, self.old = sorted(self.old)[:TRIM], set()
        return old


@dataclass(slots=True)
class ActiveRun:
    """A run of this daemon. `node` is the registration that it needs; `ordered_at` is 0 once it was answered."""

    entry: Entry
    node: int | None = None
    slot: Slot | None = None
    ordered_at: float | None = None
    ends_by: float | None = None
    over: bool = False
    unrecorded: bool = False  # the journal did not take its end; the supervisor must keep it until etcd has it
    refused: bool = False  # by etcd, the newest time that its end was to be delivered
    pause_s: float = _PAUSE_S

    @property
    def label(self) -> str:
        """The run for people: its job and tick."""
        return f"{self.entry.name} {rfc3339(self.entry.tick)}"


class Runs(Membership):
    """Orders runs of the supervisor, and sees their ends recorded: first on disk, then in etcd."""

    def __init__(self, base: Base) -> None:
        super().__init__(base)
        self._results = ResultStore(base.store, base.keys)
        self._claims = ClaimStore(base.store, base.keys, base.me.host, self._results)
        self._supervisor = os.getppid()
        self.jobs: dict[str, TrackedJob] = {}
        self._live: dict[str, ActiveRun] = {}
        self._slots_going: list[Slot] = []
        self._undelivered: dict[str, ActiveRun] = {}  # whose turn came while etcd takes no writes
        self.lag_counts: Counter[float] = Counter()
        self.lag_sum = 0.0

    @abstractmethod
    def _take_run(self, name: str) -> None:
        """The run before a waiting tick is over."""

    @abstractmethod
    def _end_if_released(self) -> None:
        """A result was delivered; it may have been the last."""

    @abstractmethod
    def _try_held_back(self) -> None:
        """There may be room for another run."""

    def _on_registration(self) -> None:
        self._try_held_back()
        for name in self.jobs:
            self._take_run(name)

    def _slot_numbers(self) -> list[int]:
        return [one.slot.number for one in self._live.values() if one.slot is not None]

    def _needed_registrations(self) -> set[int | None]:
        return {one.node for one in self._live.values() if not one.over}

    def _runs(self) -> list[ActiveRun]:
        return [one for one in self._live.values() if not one.over]

    def _is_answered(self) -> bool:
        unanswered = [one.ordered_at for one in self._runs() if one.ordered_at]
        if unanswered and clock.now() - min(unanswered) > _UNANSWERED_S:
            return False
        if os.getppid() != self._supervisor:
            return False  # it is dead
        try:
            supervisor = procfs.stat(self._supervisor)
        except OSError:
            return True  # we cannot look now
        return supervisor is not None and supervisor.state not in "Tt"

    def _launch(self, due: PendingTick, entry: Entry, lease: int, number: int) -> None:
        """The tick is ours: get its slot if it needs one, then have it started."""
        job = due.job
        known = self.jobs.get(job.name)
        if self._clock.now() > due.late_at:
            self._record(entry, "skipped", "too late to start")
            return
        if job.overlap == "replace" and known is not None and known.newest > due.tick:
            self._record(entry, "skipped", f"replaced by the tick of {rfc3339(known.newest)}")
            return
        one = self._live[entry.run] = ActiveRun(entry, number if job.exclusive else None)
        hold = {
            "CONCH_REV": str(entry.run_rev or entry.rev),
            "CONCH_LEASE": f"{lease:x}",
            "CONCH_HOLD_KEY": self._keys.cron("fire", job.name, entry.tick),
        }
        if job.exclusive and self._node is not None:
            hold["CONCH_LEASE"] = f"{self._node.node.lease:x}"
            hold["CONCH_HOLD_KEY"] = self._keys.cron("run", job.name)
        holds = [] if one.node is None else [one.node]
        if job.semaphore is None:
            self._order(one, due, holds, hold)
            return
        slot_number = self._new_number()
        until = clock.now() + job.run_ttl_s
        one.ends_by = until

        def held(message: Held) -> None:
            in_slot = {
                "CONCH_REV": str(message.rev),
                "CONCH_LEASE": f"{message.lease:x}",
                "CONCH_HOLD_KEY": message.key,
            }
            entered = replace(entry, slot=message.lease)
            self._ledger.write(entered)
            self._inbox.put(
                lambda: self._on_slot(one, due, entered, [*holds, slot_number], hold if job.exclusive else in_slot)
            )

        try:
            one.slot = self._queue_for_slot(one, due, slot_number, held)
        except RuntimeError as error:  # no more threads
            self._over(one, Result(self._me.host, "skipped", reason=f"cannot queue for its slot: {error}"))

    def _queue_for_slot(self, one: ActiveRun, due: PendingTick, number: int, held: Callable[[Held], None]) -> Slot:
        job = due.job
        assert job.semaphore is not None  # noqa: S101 - asked by the caller
        return Slot(
            self._store,
            self._connection,
            self._keys,
            self._watchdog,
            job.semaphore,
            number=number,
            run=one.entry.run,
            ttl_s=self._ttl_s,
            kill_after_s=job.kill_after_s,
            wait_s=job.run_ttl_s,
            value=Holder(self._me.host, self._me.pid, rfc3339(self._clock.own()), shown(job.cmd)).encode(),
            held=held,
            failed=lambda why: self._inbox.put(lambda: self._on_no_slot(one, why)),
            tell=self.tell,
        )

    def _on_slot(self, one: ActiveRun, due: PendingTick, entry: Entry, holds: list[int], hold: dict[str, str]) -> None:
        if not one.over:
            one.entry = entry
            self._order(one, due, holds, hold)

    def _on_no_slot(self, one: ActiveRun, why: str) -> None:
        if not one.over:
            one.slot = None
            self._over(one, Result(self._me.host, "timeout", reason=why))

    def _order(self, one: ActiveRun, due: PendingTick, holds: list[int], hold: dict[str, str]) -> None:
        job, entry = due.job, one.entry
        now = clock.now()
        first_limit_s = job.run_ttl_s if one.ends_by is None else max(0.001, one.ends_by - now)
        start_by = now + due.late_at - self._clock.now() if one.ends_by is None else one.ends_by
        one.ordered_at = now
        self._watchdog.send(
            Start(
                run=entry.run,
                label=one.label,
                command=list(job.cmd),
                environment={**job.env, **hold, "CONCH_NAME": job.name, "CONCH_TICK": str(entry.tick)},
                directory=job.cwd,
                holds=holds,
                start_by=start_by,
                first_limit_s=first_limit_s,
                limit_s=job.run_ttl_s,
                kill_after_s=job.kill_after_s,
                retries=job.retries,
                retry_delay_s=job.retry_delay_s,
            )
        )

    def _on_running(self, run: str) -> None:
        one = self._live.get(run)
        if one is None or one.ordered_at is None or one.ordered_at == 0.0:
            return
        one.ordered_at = 0.0  # answered
        if one.slot is not None:
            one.slot.in_use = True
        lag_s = max(0.0, self._clock.own() - one.entry.tick)  # a request's tick may lie ahead
        self.lag_sum += lag_s
        for bound in LAGS_S:
            if lag_s <= bound:
                self.lag_counts[bound] += 1
        self.counts["lags", ""] += 1

    def _on_finished(self, message: Finished) -> None:
        one = self._live.get(message.run)
        if one is None or one.over:
            if one is None or not one.unrecorded:
                self._watchdog.send(Recorded(message.run))  # its end is in etcd, or soon will be
            return
        state = {"ended": "ok" if message.code == 0 else "failed", "unstarted": "skipped"}.get(
            message.outcome, message.outcome
        )
        started = message.started or None
        result = Result(
            self._me.host, state, message.code, started, message.duration_s, message.attempt, message.reason
        )
        self._over(one, result, report=True)

    def _end_run(self, one: ActiveRun, reason: str) -> None:
        """Have a run ended that perhaps only queues for its slot yet."""
        if one.slot is not None and one.ordered_at is None:
            self._over(one, Result(self._me.host, "skipped", reason=reason))
        else:
            self._watchdog.send(Kill(one.entry.run, reason))

    def _record(self, entry: Entry, state: str, reason: str) -> None:
        """A claimed tick is over that never ran here."""
        one = self._live[entry.run] = ActiveRun(entry)
        self._over(one, Result(self._me.host, state, reason=reason))

    def _over(self, one: ActiveRun, result: Result, *, report: bool = False) -> None:
        """Write the end down, then deliver it; give back what only this run held."""
        one.over = True
        one.entry = ended(one.entry, result)
        self.counts["runs", result.state] += 1
        run = one.entry.run
        if not report:
            self.tell(
                "info",
                "run-end",
                run=one.label,
                state=result.state,
                reason=result.reason,
            )
        if one.slot is not None:
            one.slot.release()
            self._slots_going.append(one.slot)
            self._slots_going = [slot for slot in self._slots_going if not slot.released.is_set()]
            self._watchdog.send(Lost(one.slot.number, "given back"))
        self._give_old_leases_back()

        def safe() -> bool:
            written = self._ledger.write(one.entry)
            if report and written:
                self._watchdog.send(Recorded(run))
            return written

        def then(written: bool) -> None:
            one.unrecorded = report and not written
            self._deliver(one)

        self._work(safe, then, lambda _: None, on_disk=True)
        self._try_held_back()

    def _deliver(self, one: ActiveRun, *, probe: bool = False) -> None:
        entry, result = one.entry, one.entry.result
        assert result is not None  # noqa: S101 - only what is over is delivered
        known = self.jobs.get(entry.name)
        old = known.take_old() if known is not None else []
        has_floor = known is not None and known.has_floor
        now, limit_s = self._clock.own(), self._limit_s

        def work() -> Delivered:
            return self._results.deliver(
                entry.name, entry.tick, result, entry.run_rev, old, now, has_floor=has_floor, timeout_s=limit_s
            )

        def park() -> None:
            if self._writes.is_open:
                self._undelivered[entry.run] = one
            else:  # etcd took writes again while this came back
                self._later(0.0, lambda: self._deliver_again(one))

        self._write(
            work, lambda d: self._on_delivered(one, d), lambda e: self._on_not_delivered(one, e), park, probe=probe
        )

    def _on_delivered(self, one: ActiveRun, delivered: Delivered) -> None:
        entry = one.entry
        if one.refused:
            self._retry_made("not-delivered")
        self._work(lambda: self._ledger.delivered(entry.run), lambda _: None, lambda _: None, on_disk=True)
        self._live.pop(entry.run, None)
        if one.unrecorded:
            self._watchdog.send(Recorded(entry.run))
        known = self.jobs.get(entry.name)
        if known is not None:
            known.old |= set(delivered.old)
            known.has_floor = delivered.has_floor
            if known.run is not None and known.run.create_revision == entry.run_rev:
                known.run = None
                self._take_run(entry.name)
        self._end_if_released()

    def _on_not_delivered(self, one: ActiveRun, error: StoreError) -> None:
        waiting = sum(live.over for live in self._live.values())
        self._on_write_failed("not-delivered", error, run=one.label, waiting=waiting)
        one.refused = self._was_refused(error)
        one.pause_s = min(2 * one.pause_s, _PAUSE_MOST_S)
        self._later(one.pause_s, lambda: self._deliver_again(one))

    def _deliver_again(self, one: ActiveRun) -> None:
        if not one.refused or self._writes.is_open or self._releasing or self._may_retry("not-delivered"):
            self._deliver(one)
        else:
            self._later(_PAUSE_S, lambda: self._deliver_again(one))

    def _probe_result(self) -> bool:
        """Deliver one of the results that wait; whether there is one."""
        for run in list(self._undelivered):
            self._deliver(self._undelivered.pop(run), probe=True)
            return True
        return False

    def _resume(self) -> None:
        super()._resume()
        parked, self._undelivered = self._undelivered, {}
        for one in parked.values():
            self._deliver_again(one)
