"""Claiming one tick: when it can be done, how, and every outcome of the transaction."""

from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TypedDict

from conch.cron.claim_outcomes import Again, Busy, Changed, Cordoned, NodeGone, Outcome, Taken, Won
from conch.cron.claim_store import ClaimStore
from conch.cron.fleet_clock import FleetClock
from conch.cron.group_commit import GroupCommit
from conch.cron.job import Job
from conch.cron.overlap import ClaimToRun, ClaimToSkip, ClaimToWait, Decision, policy_of
from conch.cron.run_log import Entry
from conch.cron.ticks import (
    CHANGED,
    PAUSE_S,
    REMOVED,
    STOPPING,
    TOO_LATE,
    Claim,
    PendingTick,
    Registration,
    TickGivenUp,
    TickLost,
    TickOver,
    TickSkipped,
    TickState,
    TickWaits,
    TickWon,
    TrackedJob,
)
from conch.cron.transactions import Sending, Transactions
from conch.cron.waiting_room import WaitingRoom
from conch.cron.writes import Unsent, WriteKind, Writes, was_refused
from conch.etcd.store import KeyValue, StoreError
from conch.holder import Holder
from conch.times import rfc3339


class _How(TypedDict):
    has_floor: bool
    sending: Sending


# A tick whose job changes that often while it is claimed is tried more slowly.
_CHANGES = 20


@dataclass(frozen=True, slots=True)
class ClaimPorts:
    """What the claimer asks of the other parts.

    `tracked` is a job as it is followed now; `registration` ours, if we have one; `draining` whether nothing more is to
    be started; `read_job` takes in a definition ahead of its event; `unreadable` reports a key and why it cannot be
    read; `waiting` is how many ticks wait to be claimed; `why_not_here` why this host may not claim a job's ticks.
    """

    tracked: Callable[[str], TrackedJob | None]
    registration: Callable[[], Registration | None]
    draining: Callable[[], bool]
    read_job: Callable[[str, KeyValue], None]
    unreadable: Callable[[bytes, str], None]
    waiting: Callable[[], int]
    why_not_here: Callable[[Job], str]


class Claimer:
    """Claims ticks for this daemon, each in a coroutine of its own. `under_way` counts claims whose outcome is open."""

    def __init__(
        self,
        store: ClaimStore,
        ports: ClaimPorts,
        room: WaitingRoom,
        transactions: Transactions,
        writes: Writes,
        commit: GroupCommit,
        fleet_clock: FleetClock,
        identity: Holder,
        counts: Counter[tuple[str, str]],
        *,
        job_key: bytes | None,
        timeout_s: float,
    ) -> None:
        """With a `job_key`, jobs must be signed by it."""
        self._store = store
        self._ports = ports
        self._room = room
        self._transactions = transactions
        self._writes = writes
        self._commit = commit
        self._clock = fleet_clock
        self._identity = identity
        self._counts = counts
        self._job_key = job_key
        self._timeout_s = timeout_s
        self.under_way = 0

    async def claim(self, tick: PendingTick) -> Claim:
        """Claim the tick as soon as that is possible, or give it up.

        A tick that is given up while it is `unclear` may have been claimed by an earlier try: it must be closed.
        """
        probe, tried = False, False
        while True:
            given_up = self._why_given_up(tick)
            if given_up is not None:
                return given_up
            tracked, registration = self._ports.tracked(tick.job.name), self._ports.registration()
            if tracked is None or registration is None or self._room.why_closed(probe=probe):
                if tick.request_rev and not tried:
                    return TickLost()  # another claim took the room: the request gets a later tick
                probe = await self._room.wait(tick)
                continue
            tried = True
            if tick.request_rev:
                tick.job, tick.job_rev = tick.wishes.applied(tracked.job), tracked.rev
            decision = self._decide(tick, tracked)
            tick.enter(TickState.CLAIMING)
            try:
                outcome = await self._try(tick, tracked, registration, decision, probe=probe)
            except Unsent:
                tick.enter(TickState.WAITING)
                probe = await self._room.wait(tick)
                continue
            except StoreError as error:
                self._on_error(tick, error)
                tick.enter(TickState.WAITING)
                if tick.cancelled:
                    return TickGivenUp(None) if tick.unclear else TickLost()
                probe = await self._room.wait(tick, pause_s=tick.next_pause_s())
                continue
            tick.enter(TickState.WAITING)
            probe = False  # etcd has answered
            self._on_answer(tick)
            match outcome:
                case Won():
                    return self._on_won(tick, tracked, decision, registration.number, outcome)
                case Taken(odd=odd):
                    return self._on_taken(tick, odd)
                case Changed(job):
                    tick.unclear = False  # nobody has it, and a claim for the old definition cannot be made any more
                    if not await self._take_over(tick, job):
                        return TickGivenUp(REMOVED)
                case Busy(run):
                    tracked.run = run
                case Cordoned():
                    return TickGivenUp(None)
                case Again(has_floor):
                    tracked.has_floor = has_floor
                case NodeGone():  # the session or the watch notices that we are not registered any more
                    probe = await self._room.wait(tick, pause_s=tick.next_pause_s())

    def _why_given_up(self, tick: PendingTick) -> TickLost | TickGivenUp | None:
        """Whether the tick is not to be claimed any more; takes over a definition that has changed."""
        if tick.cancelled:
            return TickGivenUp(None) if tick.unclear else TickLost()
        if self._ports.draining():
            return TickGivenUp(STOPPING)
        tracked = self._ports.tracked(tick.job.name)
        if tracked is None:
            return TickGivenUp(REMOVED)
        if tracked.rev != tick.job_rev:
            # A request is for the job as it will be, at another second. But a try that is unclear keeps its tick.
            if tick.unclear != bool(tick.request_rev):
                return TickGivenUp(CHANGED)  # if it was claimed, it was under the old definition
            if tracked.job.each != (tick.host != ""):  # its keys would be others: it runs as it was, or not at all
                return TickGivenUp(CHANGED if tick.request_rev else None)
            if not tick.request_rev and not self._renew(tick, tracked):
                return TickLost()
        if self._clock.now() > tick.deadline or (not tick.unclear and self._ports.why_not_here(tracked.job)):
            return TickGivenUp(None)
        return None

    @staticmethod
    def _renew(tick: PendingTick, tracked: TrackedJob) -> bool:
        """Take over the changed definition; False if the job was removed and added in between.

        A tick that the new definition does not have is only recorded as skipped, with the reason.
        """
        if tracked.created > tick.job_rev:
            return False
        tick.job, tick.job_rev = tracked.job, tracked.rev
        if tracked.job.is_paused_at(tick.tick):
            tick.void = "the job was paused"
        elif tracked.schedule.next_after(tick.tick - 1) != tick.tick:
            tick.void = CHANGED
        else:
            tick.void = ""
            following = tracked.schedule.next_after(tick.tick)
            tick.offset_s = tracked.job.offset_s(tick.tick, following)
            tick.deadline = tracked.deadline_of(tick.tick, following)
        return True

    def _decide(self, tick: PendingTick, tracked: TrackedJob) -> Decision:
        """Claim it to run, to wait for the run before it, or to record it as skipped."""
        busy = tracked.run if tick.job.exclusive else None
        if busy is not None and self._store.is_ours(busy, tick):
            busy = None  # an earlier try of ours was made after all
        if tick.void:
            return ClaimToSkip(tick.void)
        if self._job_key is not None and not tick.job.is_signed_by(self._job_key):
            if tick.job.is_signed:
                return ClaimToSkip("the job's signature is not by our key, or is for another prefix")
            return ClaimToSkip("the job is not signed")
        return policy_of(tick.job).decide(tick, busy)

    async def _try(
        self,
        tick: PendingTick,
        tracked: TrackedJob,
        registration: Registration,
        decision: Decision,
        *,
        probe: bool,
    ) -> Outcome:
        """Send one claim. A claim that is won to run is on disk before this returns."""
        left_s = tick.deadline - self._clock.now()
        sending = self._transactions.sending(
            timeout_s=max(0.2, min(self._timeout_s, left_s)),
            # while it waited to be sent, another host may have claimed it, or we may have begun to stop
            is_wanted=lambda: (
                not (tick.cancelled or self._ports.draining())
                and self._clock.now() < tick.deadline
                and self._writes.may_send(probe=probe)
            ),
        )
        what = (tick, registration, self._identity, self._clock.own())
        how: _How = {"has_floor": tracked.has_floor, "sending": sending}

        def write() -> Awaitable[Outcome]:
            match decision:
                case ClaimToSkip(reason, busy):
                    return self._store.claim_to_skip(*what, busy, reason, tracked.take_expired(), **how)
                case ClaimToWait(busy):
                    return self._store.claim_to_wait(*what, busy, **how)
                case ClaimToRun():
                    return self._store.claim(*what, **how)

        self.under_way += 1
        try:
            outcome = await self._writes.gather(write, probe=probe)
            if isinstance(outcome, Won) and isinstance(decision, ClaimToRun):
                await self._commit.write(Entry(tick.run, *tick.id, outcome.rev, outcome.run_rev, host=tick.host))
            return outcome
        finally:
            self.under_way -= 1

    # -- outcomes -----------------------------------------------------------------------------------------

    def _on_answer(self, tick: PendingTick) -> None:
        if tick.refused:
            tick.refused = False
            self._writes.retry_made(WriteKind.CLAIM)

    def _on_error(self, tick: PendingTick, error: StoreError) -> None:
        """Etcd failed, and the claim may have been made. Logged as one fault, whatever ticks it hits."""
        tick.unclear = tick.unclear or error.unclear
        self.report_failure(tick, error)

    def report_failure(self, tick: PendingTick, error: StoreError) -> None:
        """Log a write for this tick that failed, and remember whether etcd has refused it."""
        tick.refused = was_refused(error)
        self._writes.failed(
            WriteKind.CLAIM.value,
            error,
            job=tick.job.name,
            tick=rfc3339(tick.tick),
            waiting=self._ports.waiting(),
            missed=self._counts["missed", ""],
        )

    def _on_won(self, tick: PendingTick, tracked: TrackedJob, decision: Decision, number: int, won: Won) -> Claim:
        self._counts["claims", "won"] += 1
        if won.old is not None:
            tracked.expired_ticks |= set(won.old)
        reason = decision.reason if isinstance(decision, ClaimToSkip) else TOO_LATE
        match decision:
            case _ if self._ports.draining() and not isinstance(decision, ClaimToSkip):
                return TickOver(won.rev, won.run_rev, STOPPING)
            case ClaimToSkip() if won.run_rev is None and not tick.unclear:
                return TickSkipped(decision.reason)
            case ClaimToWait() if won.run_rev is None:
                return TickWaits(won.rev)
            case ClaimToRun() if won.run_rev is not None or not tick.job.exclusive:
                return TickWon(won.rev, won.run_rev, won.lease, number)
        # an earlier try was made, in another way than this one: what it was for is over
        return TickOver(won.rev, won.run_rev, reason)

    def _on_taken(self, tick: PendingTick, odd: bytes) -> Claim:
        self._counts["claims", "lost"] += 1
        if odd:
            self._ports.unreadable(odd, "no tick of this job can be claimed until it is deleted")
            if not tick.request_rev:
                tick.unclear = False
                return TickGivenUp(None)
        return TickLost()

    async def _take_over(self, tick: PendingTick, job: KeyValue | None) -> bool:
        """The job is not what we know: take over the definition that the claim's answer has; False if it is removed.

        The event of the change is on its way, too. A tick whose job changes again and again is tried more slowly.
        """
        name, tracked = tick.job.name, self._ports.tracked(tick.job.name)
        if tracked is None or (job is None and tracked.rev == tick.job_rev):
            return False  # a job is never added by an answer, which may be older than the event of the removal
        if job is not None and tracked.rev < job.mod_revision:
            self._ports.read_job(name, job)
        tick.changes += 1
        is_read = job is None or tracked.rev >= job.mod_revision  # else it cannot be read just now
        if tick.changes >= _CHANGES or not is_read:
            await tick.alarm.wait(PAUSE_S)
        return True
