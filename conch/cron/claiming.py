"""Claiming ticks: whose turn it is, what stands against it, and what happens when etcd does not answer."""

from abc import abstractmethod

from conch.core import clock
from conch.cron.actor import PAUSE_MOST_S, PAUSE_S, RETRY_EVERY_S, Base, Unsent
from conch.cron.claim_store import Again, Busy, Changed, NodeGone, Outcome, PendingTick, Taken, Won
from conch.cron.clock import SKEW_S
from conch.cron.closing import CHANGED, TOO_LATE, Closing
from conch.cron.fleet import order
from conch.cron.run_log import Entry
from conch.cron.runs import TrackedJob
from conch.cron.values import fields_of, whole_tick
from conch.etcd.store import KeyValue, StoreError
from conch.times import rfc3339

# Each host in line for a tick gives the ones before it this much time.
TURN_S = 0.1
# How soon to look again whether what could not be claimed now can be.
HELD_BACK_S = 0.2
# Claims of late are remembered, so that a tick that others took is not tried.
_REMEMBERED = 20000
# Ticks that wait at once; those over it are counted as missed unless others claim them.
_WAITING = 10_000
# A daemon that is full may be so at each tick: that is one fault.
_QUIET_S = 60.0
# A tick whose job changes that often while it is claimed is tried more slowly.
_CHANGES = 20


class Claiming(Closing):
    """Claims what is due, in its turn; holds back what cannot be claimed now, until it is too late for it."""

    def __init__(self, base: Base) -> None:
        super().__init__(base)
        self._max_runs = base.max_runs
        self._key = base.key
        self._dues: dict[tuple[str, int], PendingTick] = {}
        self._held_back: dict[tuple[str, int], PendingTick] = {}
        self._held_timer = False
        self._claimed: dict[tuple[str, int], None] = {}
        self._closes_later = False
        self._probe_turn = 0  # which kind of write is the next probe

    @abstractmethod
    def _hear_of_job(self, name: str, kv: KeyValue) -> None:
        """A job's definition as etcd has it, before its news. Raises nothing."""

    def _waiting(self) -> int:
        return len(self._dues)

    def _consider(self, due: PendingTick) -> None:
        """A tick is due: wait for our turn at it."""
        if self._draining or due.id in self._claimed:
            return
        before = self._dues.get(due.id)
        if before is not None:
            if before.unclear or before.request_rev == due.request_rev:
                return  # it is being dealt with
            self._drop(before)
        if len(self._dues) >= _WAITING:
            self._missed(due.job.name, due.tick, due.tick, 1, due.late_at)
            return
        self._dues[due.id] = due
        turn = self._turn(*due.id)
        if turn:
            self._later(turn * TURN_S, lambda: self._attempt(due))
        else:
            self._attempt(due)

    def _takers(self) -> set[str]:
        """The live hosts that take new ticks."""
        return {self._me.host} | {
            host
            for host, fields in self._nodes.items()
            if fields.get("draining") is not True and fields.get("clock_off") is not True
        }

    def _turn(self, name: str, number: int) -> int:
        """Our place in the line for a tick of a job, or for a request; 0 is the first."""
        turn = order(self._takers(), name, number).index(self._me.host)
        return max(turn, 1) if abs(self._clock.skew_s()) > SKEW_S else turn

    def _on_claim(self, name: str, tick: int, kv: KeyValue) -> None:
        """Somebody claimed a tick, we perhaps."""
        id_ = (name, tick)
        self._remember(id_)
        due = self._dues.get(id_)
        if due is not None and not self._claims.is_ours(kv, due):
            self._drop(due)
            if due.request_rev and not due.trying:
                self._not_claimed(due)
        known = self.jobs.get(name)
        if known is not None and known.job.overlap == "replace" and fields_of(kv.value).get("skip") is not True:
            self._replace(known, tick)

    def _remember(self, id_: tuple[str, int]) -> None:
        self._claimed[id_] = None
        if len(self._claimed) > _REMEMBERED:
            for old in list(self._claimed)[: _REMEMBERED // 2]:
                del self._claimed[old]

    def _drop(self, due: PendingTick) -> None:
        for where in (self._dues, self._held_back):
            if where.get(due.id) is due:
                del where[due.id]

    def _why_not_ready(self, *, probe: bool = False) -> str:
        """Why no run could be started now; empty if one could."""
        if self._node is None:
            return "not registered in etcd"
        if len(self._runs()) + self._busy_claiming >= self._max_runs:
            return f"as many runs as this daemon may have: {self._max_runs}"
        if self._writes.is_open and not probe:
            return "etcd takes no writes"
        if not self._has_room_for_unclear():
            return "too many claims are unclear"
        if not self._knows_the_time():
            return "the time is not known"
        return "" if self._is_answered() else "the supervisor is stopped"

    def _attempt(self, due: PendingTick, *, probe: bool = False) -> None:
        """Claim a tick, unless another has, or hold it back until we can."""
        known = self.jobs.get(due.job.name)
        if self._dues.get(due.id) is not due or due.trying:
            return
        if self._draining or known is None:
            self._settle(due, "conchd is stopping" if self._draining else "the job was removed")
            return
        if known.rev != due.job_rev:
            # a request is for the job as it will be, at another second; but a try that is unclear keeps its tick
            if due.unclear != bool(due.request_rev):
                self._settle(due, CHANGED)  # if it was claimed, it was under the old definition
                return
            if not due.request_rev:
                self._renew(due, known)
        if self._dues.get(due.id) is not due:
            return
        if self._clock.now() > due.late_at:
            self._settle(due, None)
            return
        if self._why_not_ready(probe=probe):
            self._hold_back(due)
            return
        if due.request_rev:
            due.job, due.job_rev = known.job, known.rev
        self._claim_as_it_stands(due, known, probe=probe)

    def _renew(self, due: PendingTick, known: TrackedJob) -> None:
        """The job has changed: the tick is the new definition's if that has it too, else only a row says why not."""
        if known.created > due.job_rev:
            self._drop(due)  # it was removed in between
            return
        due.job, due.job_rev = known.job, known.rev
        if known.job.paused:
            due.void = "the job was paused"
        elif known.schedule.next_after(due.tick - 1) != due.tick:
            due.void = CHANGED
        else:
            due.void = ""
            due.late_at = due.tick + known.job.late_after_s(due.tick, known.schedule.next_after(due.tick))

    def _take_up_again(self, due: PendingTick) -> None:
        if due.id not in self._dues and due.id not in self._claimed:
            self._dues[due.id] = due
            self._attempt(due)

    def _claim_as_it_stands(self, due: PendingTick, known: TrackedJob, *, probe: bool) -> None:
        """Claim a tick to run it, to wait for the run before it, or to skip it."""
        busy = known.run if due.job.exclusive else None
        if busy is not None and self._claims.is_ours(busy, due):
            busy = None  # a try of ours was made after all
        running = None if busy is None else whole_tick(fields_of(busy.value).get("tick"))
        if due.void:
            self._claim(due, "skip", None, due.void, probe=probe)
        elif self._key is not None and not due.job.is_signed_by(self._key):
            why = "the job is not signed"
            if due.job.is_signed:
                why = "the job's signature is not by our key, or is for another prefix"
            self._claim(due, "skip", None, why, probe=probe)
        elif busy is None:
            self._claim(due, "run", None, "", probe=probe)
        elif due.job.overlap == "replace" and (running is None or running < due.tick):
            self._claim(due, "wait", busy, "", probe=probe)
        else:
            host = fields_of(busy.value).get("host")
            why = "a run is alive" if running is None else f"the run of {rfc3339(running)} on {host} is alive"
            self._claim(due, "skip", busy, why, probe=probe)

    def _claim(self, due: PendingTick, how: str, busy: KeyValue | None, why: str, *, probe: bool) -> None:
        known, registered = self.jobs.get(due.job.name), self._node
        assert known is not None  # noqa: S101 - asked by the caller
        assert registered is not None  # noqa: S101 - asked by the caller
        node, now, has_floor = registered.node, self._clock.own(), known.has_floor
        old = known.take_old() if how == "skip" else []
        due.trying = True
        self._busy_claiming += 1

        def work() -> Outcome:
            left_s = due.late_at - self._clock.now()
            if left_s <= 0:
                raise Unsent  # it stood in line for a worker
            claims, me, limit_s = self._claims, self._me, max(0.2, min(self._limit_s, left_s))
            if how == "skip":
                return claims.claim_to_skip(due, node, me, now, busy, why, old, has_floor=has_floor, timeout_s=limit_s)
            if busy is not None:
                return claims.claim_to_wait(due, node, me, now, busy, has_floor=has_floor, timeout_s=limit_s)
            outcome = claims.claim(due, node, me, now, has_floor=has_floor, timeout_s=limit_s)
            if isinstance(outcome, Won):
                # safe before it can start
                self._ledger.write(Entry(due.run, due.job.name, due.tick, outcome.rev, outcome.run_rev))
            return outcome

        self._write(
            work,
            lambda outcome: self._on_outcome(due, how, why, node.number, outcome),
            lambda error: self._on_claim_failed(due, error),
            lambda: self._on_unsent(due),
            probe=probe,
        )

    def _on_outcome(self, due: PendingTick, how: str, why: str, number: int, outcome: Outcome) -> None:
        due.trying = False
        self._busy_claiming -= 1
        if due.refused:
            due.refused = False
            self._retry_made("claim-failed")
        known = self.jobs.get(due.job.name)
        match outcome:
            case Won(old=old):
                self._drop(due)
                self._remember(due.id)
                self.counts["claims", "won"] += 1
                if known is not None and old is not None:
                    known.old |= set(old)
                self._on_won(due, how, why, number, outcome)
            case Taken(odd=odd):
                self._drop(due)
                if odd:
                    self._report_unreadable(odd, "no tick of this job can be claimed until it is deleted")
                    if not due.request_rev:
                        self._missed(due.job.name, due.tick, due.tick, 1, due.late_at)
                self.counts["claims", "lost"] += 1
                if due.request_rev:
                    self._not_claimed(due)
            case Changed(job):
                due.unclear = False  # nobody has it, and what was for the old definition cannot be made any more
                self._on_changed(due, job)
            case Busy(run):
                if known is not None:
                    known.run = run
                self._attempt(due)
            case Again(has_floor):
                if known is not None:
                    known.has_floor = has_floor
                self._attempt(due)
            case NodeGone():
                self._try_later(due)  # the session or the watch tells that we are not registered any more
        self._end_if_released()

    def _on_changed(self, due: PendingTick, job: KeyValue | None) -> None:
        """The job is not what we know: its news are on their way, and are taken from the claim's own answer."""
        name, known = due.job.name, self.jobs.get(due.job.name)
        if known is None or (job is None and known.rev == due.job_rev):
            # the answer may be older than the news of the removal: a job is never added by it
            self._settle(due, "the job was removed")
            return
        if job is not None and known.rev < job.mod_revision:
            self._hear_of_job(name, job)
        due.changes += 1
        heard = job is None or known.rev >= job.mod_revision  # else it cannot be read just now
        if due.changes < _CHANGES and heard:
            self._attempt(due)
        else:
            self._later(PAUSE_S, lambda: self._attempt(due))

    def _on_unsent(self, due: PendingTick) -> None:
        due.trying = False
        self._busy_claiming -= 1
        self._hold_back(due)
        self._end_if_released()

    def _on_won(self, due: PendingTick, how: str, why: str, number: int, won: Won) -> None:
        entry = Entry(due.run, due.job.name, due.tick, won.rev, won.run_rev)
        if self._draining and how != "skip":
            self._record(entry, "skipped", "conchd is stopping")
        elif how == "skip" and won.run_rev is None and not due.unclear:
            self.counts["runs", "skipped"] += 1
            self.tell("info", "skipped", job=due.job.name, tick=rfc3339(due.tick), reason=why)
        elif how == "wait" and won.run_rev is None:
            self.tell(
                "info", "waiting", job=due.job.name, tick=rfc3339(due.tick), msg="the run before it is being ended"
            )
            self._wait_for_run(due, won.rev)
        elif how == "run" and (won.run_rev is not None or not due.job.exclusive):
            self._launch(due, entry, won.lease, number)
        else:
            # an earlier try was made, in another way than this one; what it was for is over
            self._record(entry, "skipped", why or TOO_LATE)

    def _on_claim_failed(self, due: PendingTick, error: StoreError) -> None:
        due.trying = False
        self._busy_claiming -= 1
        due.unclear = due.unclear or error.unclear
        self._on_claim_error(due, error)
        self._try_later(due)
        self._end_if_released()

    def _try_later(self, due: PendingTick) -> None:
        due.pause_s = min(2 * due.pause_s or PAUSE_S, PAUSE_MOST_S)
        due.not_before = clock.now() + due.pause_s
        self._hold_back(due)

    def _settle(self, due: PendingTick, reason: str | None) -> None:
        """A tick is given up, for this reason or (None) as too late. Should a claim have been made, it is recorded."""
        self._drop(due)
        self._give_up(due, reason)

    # -- what cannot be claimed now ----------------------------------------------------------------------------

    def _hold_back(self, due: PendingTick) -> None:
        if self._dues.get(due.id) is not due:
            if due.unclear:
                self._give_up(due, None)  # it was dropped while a try was under way
            return
        self._held_back[due.id] = due
        if not self._held_timer:
            self._held_timer = True
            self._later(HELD_BACK_S, self._on_held_timer)

    def _on_held_timer(self) -> None:
        self._held_timer = False
        self._try_held_back()
        fault, why = self._fault("held-back", level="info"), self._why_not_ready()
        if self._held_back and why and not self._writes.is_open:
            if not fault.lasts:
                self._later(_QUIET_S, self._end_held_back)
            fault.failed(waiting=len(self._held_back), msg=why)

    def _end_held_back(self) -> None:
        fault = self._fault("held-back", level="info")
        if self._held_back or fault.quiet_s() < _QUIET_S:
            self._later(_QUIET_S, self._end_held_back)
        else:
            fault.over()

    def _try_held_back(self) -> None:
        """What could not be claimed a moment ago."""
        held, self._held_back = self._held_back, {}
        wall, now, ready = self._clock.now(), clock.now(), not self._why_not_ready()
        for due in held.values():
            if self._draining or wall > due.late_at:
                self._attempt(due)  # to be given up
            elif not ready or now < due.not_before or (due.refused and not self._may_retry("claim-failed")):
                self._hold_back(due)
            else:
                self._attempt(due)

    # -- while etcd takes no writes ----------------------------------------------------------------------------

    def _probe(self) -> None:
        """One write of each kind in turn, so that one which is refused for itself does not keep all others waiting."""
        kinds = (lambda: self._close_next(probe=True), self._probe_claim, self._probe_result, self._probe_time)
        for _ in kinds:
            self._probe_turn = (self._probe_turn + 1) % len(kinds)
            if kinds[self._probe_turn]():
                return

    def _probe_claim(self) -> bool:
        for due in list(self._held_back.values()):
            del self._held_back[due.id]
            self._attempt(due, probe=True)
            if due.trying:
                return True
            if due.id in self._held_back:
                return False  # it is not for want of writes that it waits
        return False

    def _close_later(self) -> None:
        self._closes_later = False
        self._close_next()

    def _resume(self) -> None:
        super()._resume()
        due, _ = next(iter(self._unclear.values()), (None, None))
        if due is None or not due.refused or self._may_retry("claim-failed"):
            self._close_next()
        elif not self._closes_later:
            self._closes_later = True
            self._later(RETRY_EVERY_S, self._close_later)
        self._try_held_back()
