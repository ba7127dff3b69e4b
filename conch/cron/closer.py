"""Closing unclear claims: what became of a claim whose answer was lost is found out, and settled for good."""

import asyncio
from collections.abc import Callable

from conch.cron.claim_outcomes import Again, NodeGone, Won
from conch.cron.claim_store import ClaimStore
from conch.cron.claimer import ClaimPorts
from conch.cron.fleet_clock import FleetClock
from conch.cron.ticks import (
    CHANGED,
    TOO_LATE,
    PendingTick,
    Registration,
    TickGivenUp,
    TickLost,
    TickOver,
    TickReopened,
    TickState,
    TrackedJob,
)
from conch.cron.transactions import Transactions
from conch.cron.workers import Alarm, Workers
from conch.cron.writes import RETRY_EVERY_S, ProbeQueue, Unsent, WriteKind, Writes
from conch.etcd.store import StoreError
from conch.holder import Holder

# With so many unclear ticks none is claimed that could become another. So none is ever forgotten.
_UNCLEAR_MOST = 1000

Closed = TickOver | TickGivenUp | TickLost | TickReopened


class Closer:
    """Settles unclear ticks, one at a time. `under_way` counts requests whose outcome is open."""

    def __init__(
        self,
        store: ClaimStore,
        ports: ClaimPorts,
        transactions: Transactions,
        workers: Workers,
        writes: Writes,
        fleet_clock: FleetClock,
        identity: Holder,
        *,
        report: Callable[[PendingTick, StoreError], None],
        releasing: Callable[[], bool],
        timeout_s: float,
    ) -> None:
        """`report` logs a failed write for a tick; `releasing` says whether the daemon gives everything back."""
        self._store = store
        self._ports = ports
        self._transactions = transactions
        self._workers = workers
        self._writes = writes
        self._clock = fleet_clock
        self._identity = identity
        self._report = report
        self._releasing = releasing
        self._timeout_s = timeout_s
        self._turns = asyncio.Lock()
        self._changed = Alarm()
        self.probes = ProbeQueue()
        self.unclear: dict[str, PendingTick] = {}
        self.under_way = 0

    @property
    def has_room(self) -> bool:
        """Whether another claim may be made that could become unclear."""
        return len(self.unclear) < _UNCLEAR_MOST

    def wake(self) -> None:
        """We are registered (again), or the daemon gives everything back."""
        self._changed.ring()

    async def close(self, tick: PendingTick, reason: str | None) -> Closed:
        """Settle a tick that was given up for this reason (None: too late) after a claim whose outcome is not known."""
        tick.enter(TickState.CLOSING)
        self.unclear[tick.run] = tick
        try:
            while True:
                async with self._turns:
                    probe = await self._wait_until_possible(tick)
                    closed = await self._try(tick, reason, probe=probe)
                if isinstance(closed, NodeGone):
                    reason = TOO_LATE  # a claim that lands later does not find our registration either
                elif closed is not None:
                    return closed
        finally:
            del self.unclear[tick.run]

    async def _try(self, tick: PendingTick, reason: str | None, *, probe: bool) -> Closed | NodeGone | None:
        """One try; None: another is needed."""
        tracked, registration = self._ports.tracked(tick.job.name), self._ports.registration()
        self.under_way += 1
        try:
            if reason is None and tracked is not None and registration is not None:
                return await self._close(tick, tracked, registration, probe=probe)
            return await self._look_up(tick, reason)
        except Unsent:
            return None
        except StoreError as error:
            self._report(tick, error)
            return None
        finally:
            self.under_way -= 1

    async def _wait_until_possible(self, tick: PendingTick) -> bool:
        """Wait until etcd can be asked; whether only as a probe."""
        while True:
            if self._ports.registration() is None and not self._releasing():
                # A claim may land for as long as our old registration lasts, and must be seen then.
                await self._changed.wait()
            elif self._writes.is_open:
                # The registration may be lost meanwhile.
                if await self.probes.wait() and (self._ports.registration() is not None or self._releasing()):
                    return True
            elif tick.refused and not self._writes.may_retry(WriteKind.CLAIM):
                await asyncio.sleep(RETRY_EVERY_S)
            else:
                return False

    async def _close(
        self, tick: PendingTick, tracked: TrackedJob, registration: Registration, *, probe: bool
    ) -> TickOver | TickGivenUp | NodeGone | None:
        """Claim the tick to be skipped, so that nobody can claim it any more; None: that is to be tried again.

        To look is not enough: a request that was given up may be served at any later time, as by a leader that was
        frozen, and what it then claimed nobody would ever end.
        """
        sending = self._transactions.sending(
            timeout_s=self._timeout_s, is_wanted=lambda: self._writes.may_send(probe=probe)
        )
        outcome = await self._writes.gather(
            lambda: self._store.claim_to_skip(
                tick,
                registration,
                self._identity,
                self._clock.own(),
                None,
                TOO_LATE,
                has_floor=tracked.has_floor,
                sending=sending,
            ),
            probe=probe,
        )
        match outcome:
            case Won():
                return TickOver(outcome.rev, outcome.run_rev, TOO_LATE)
            case Again(has_floor):
                tracked.has_floor = has_floor
                return None
            case NodeGone():
                return outcome
        # Others have it, or nobody: a claim of ours that lands later does not find the job as it was.
        tick.unclear = False
        return TickGivenUp(None)

    async def _look_up(self, tick: PendingTick, reason: str | None) -> Closed:
        """Find our claim if it was made. One that lands later does not find the job, or us, as they were."""
        fire, run = await self._workers.etcd(lambda: self._store.whose(tick, timeout_s=self._timeout_s))
        if fire is not None and self._store.is_ours(fire, tick):
            run_rev = run.create_revision if run is not None and self._store.is_ours(run, tick) else None
            return TickOver(fire.create_revision, run_rev, reason or TOO_LATE)
        if fire is not None and not tick.request_rev:
            return TickLost()
        tick.unclear = False
        if reason == CHANGED and not tick.request_rev:
            return TickReopened()
        return TickGivenUp(None if reason == TOO_LATE else reason)
