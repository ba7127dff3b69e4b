"""Claiming ticks: whose turn it is, what stands against it, and what happens when etcd does not answer."""

from abc import abstractmethod
from dataclasses import replace

from conch.cron.actor import PAUSE_MOST_S, PAUSE_S, Base
from conch.cron.claims import Again, Busy, Due, NodeGone, Outcome, Taken, TooLate, Won
from conch.cron.clock import SKEW_S
from conch.cron.fleet import order
from conch.cron.ledger import Entry
from conch.cron.records import fields_of, whole_tick
from conch.cron.replacing import Replacing
from conch.etcd.store import KeyValue, StoreError
from conch.holder import rfc3339

# Each host in line for a tick gives the ones before it this much time.
TURN_S = 0.1
_TOO_LATE = "etcd confirmed the claim too late"
# How soon to look again whether what could not be claimed now can be.
HELD_BACK_S = 0.2
# Claims of late are remembered, so that a tick that others took is not tried.
_REMEMBERED = 20000


class Claiming(Replacing):
    """Claims what is due, in its turn; holds back what cannot be claimed now, until it is too late for it."""

    def __init__(self, base: Base) -> None:
        super().__init__(base)
        self._max_runs = base.max_runs
        self._key = base.key
        self._dues: dict[tuple[str, int], Due] = {}
        self._held_back: dict[tuple[str, int], Due] = {}
        self._held_timer = False
        self._claimed: dict[tuple[str, int], None] = {}
        self._missing: dict[str, tuple[int, int, int]] = {}  # first, last and number of ticks to be looked up
        self._missing_timer = False

    def _consider(self, due: Due) -> None:
        """A tick is due: wait for our turn at it."""
        if self._draining or due.id in self._claimed:
            return
        before = self._dues.get(due.id)
        if before is not None:
            if before.unclear or before.now_rev == due.now_rev:
                return  # it is being dealt with
            self._drop(before)
        self._dues[due.id] = due
        turn = self._turn(*due.id)
        if turn:
            self._later(turn * TURN_S, lambda: self._attempt(due))
        else:
            self._attempt(due)

    def _takers(self) -> set[str]:
        """The live hosts that take new ticks."""
        return {host for host, fields in self._nodes.items() if fields.get("draining") is not True} | {self._me.host}

    def _turn(self, name: str, number: int) -> int:
        """Our place in the line for a tick of a job, or for a request; 0 is the first."""
        turn = order(self._takers(), name, number).index(self._me.host)
        return max(turn, 1) if abs(self._clock.skew_s()) > SKEW_S else turn

    @abstractmethod
    def _not_claimed(self, due: Due) -> None:
        """A request was not claimed at this tick."""

    def _on_claim(self, name: str, tick: int, kv: KeyValue) -> None:
        """Somebody claimed a tick, we perhaps."""
        id_ = (name, tick)
        self._claimed[id_] = None
        if len(self._claimed) > _REMEMBERED:
            for old in list(self._claimed)[: _REMEMBERED // 2]:
                del self._claimed[old]
        due = self._dues.get(id_)
        if due is not None and not self._claims.is_ours(kv, due):
            self._drop(due)
            if due.now_rev and not due.trying:
                self._not_claimed(due)
        known = self.jobs.get(name)
        if known is not None and known.job.overlap == "replace":
            self._replace(known, tick)

    def _drop(self, due: Due) -> None:
        for where in (self._dues, self._held_back):
            if where.get(due.id) is due:
                del where[due.id]

    def _ready(self) -> bool:
        """Whether a run could be started now: registered, with room, and the supervisor awake."""
        room = len(self._runs()) + self._busy_claiming < self._max_runs
        return self._node is not None and room and self._is_answered()

    def _attempt(self, due: Due) -> None:
        """Claim a tick, unless another has, or hold it back until we can."""
        known = self.jobs.get(due.job.name)
        if self._dues.get(due.id) is not due or due.trying:
            return
        # a request is for the job as it will be; but a try whose outcome is unclear keeps its tick
        if self._draining or known is None or (known.rev != due.job_rev and not (due.now_rev and due.unclear)):
            self._settle(due, "the job was changed" if not self._draining else "conchd is stopping")
            return
        if self._clock.now() > due.late_at:
            self._settle(due, None)
            return
        if not self._ready():
            self._hold_back(due)
            return
        if due.now_rev:
            due.job, due.job_rev = known.job, known.rev
        busy = known.run if due.job.exclusive else None
        if busy is not None and self._claims.is_ours(busy, due):
            busy = None  # a try of ours was made after all
        running = None if busy is None else whole_tick(fields_of(busy.value).get("tick"))
        if self._key is not None and not due.job.is_signed_by(self._key):
            why = "the job is not signed" if not due.job.is_signed else "the job's signature is not by our key"
            self._claim(due, "skip", None, why)
        elif busy is None:
            self._claim(due, "run", None, "")
        elif due.job.overlap == "replace" and (running is None or running < due.tick):
            self._claim(due, "wait", busy, "")
        else:
            host = fields_of(busy.value).get("host")
            why = "a run is alive" if running is None else f"the run of {rfc3339(running)} on {host} is alive"
            self._claim(due, "skip", busy, why)

    def _claim(self, due: Due, how: str, busy: KeyValue | None, why: str) -> None:
        known, registered = self.jobs.get(due.job.name), self._node
        if known is None or registered is None:
            return
        node, now, has_floor = registered.node, self._clock.own(), known.has_floor
        old = known.take_old() if how == "skip" else []
        due.trying = True
        self._busy_claiming += 1

        def work() -> Outcome:
            left_s = due.late_at - self._clock.now()
            if left_s <= 0:
                return TooLate()  # it stood in line for a worker
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

        self._work(
            work, lambda o: self._on_outcome(due, how, why, node.number, o), lambda e: self._on_claim_failed(due, e)
        )

    def _on_outcome(self, due: Due, how: str, why: str, number: int, outcome: Outcome) -> None:
        due.trying = False
        self._busy_claiming -= 1
        known = self.jobs.get(due.job.name)
        match outcome:
            case Won(old=old):
                self._drop(due)
                self.counts["claims", "won"] += 1
                if known is not None and old is not None:
                    known.old |= set(old)
                self._on_won(due, how, why, number, outcome)
            case TooLate():
                self._settle(due, None)
            case Taken():
                self._drop(due)
                self.counts["claims", "lost"] += 1
                if due.now_rev:
                    self._not_claimed(due)
            case Busy(run):
                if known is not None:
                    known.run = run
                self._attempt(due)
            case Again(has_floor):
                if known is not None:
                    known.has_floor = has_floor
                self._attempt(due)
            case NodeGone():
                self._hold_back(due)  # the session or the watch tells that we are not registered any more
        self._end_if_released()

    def _on_won(self, due: Due, how: str, why: str, number: int, won: Won) -> None:
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
            self._record(entry, "skipped", why or _TOO_LATE)

    def _on_claim_failed(self, due: Due, error: StoreError) -> None:
        due.trying = False
        self._busy_claiming -= 1
        due.unclear = True
        due.pause_s = min(2 * due.pause_s or PAUSE_S, PAUSE_MOST_S)
        self.tell("warning", "claim-failed", job=due.job.name, tick=rfc3339(due.tick), msg=str(error))
        self._later(due.pause_s, lambda: self._attempt(due))
        self._end_if_released()

    def _settle(self, due: Due, reason: str | None) -> None:
        """A tick is given up, for this reason or (None) as too late. Should a claim have been made, it is recorded."""
        self._drop(due)
        if not due.unclear:
            if reason is None or due.now_rev:
                self._give_up(due)
        elif reason is None:
            self._close(due)
        else:
            self._look_for_claim(due, reason)

    def _give_up(self, due: Due) -> None:
        """We have not claimed this tick and will not: it was missed unless others have it."""
        if due.now_rev:
            self._not_claimed(due)
        else:
            self._missed(due.job.name, due.tick, due.tick, 1)

    def _close(self, due: Due) -> None:
        """Nobody may claim this tick any more, above all not a try of ours that etcd still has somewhere.

        To look is not enough: a request that was given up may be served at any later time, as by a leader that was
        frozen, and what it then claims nobody would ever end. So the tick is claimed to be skipped.
        """
        known, registered = self.jobs.get(due.job.name), self._node
        if known is None or registered is None:
            self._look_for_claim(due, None)
            return
        node, now, has_floor = registered.node, self._clock.own(), known.has_floor
        self._busy_claiming += 1

        def work() -> Outcome:
            return self._claims.claim_to_skip(
                due, node, self._me, now, None, _TOO_LATE, has_floor=has_floor, timeout_s=self._limit_s
            )

        def then(outcome: Outcome) -> None:
            self._busy_claiming -= 1
            match outcome:
                case Won():
                    entry = Entry(due.run, due.job.name, due.tick, outcome.rev, outcome.run_rev)
                    self._record(entry, "skipped", _TOO_LATE)
                case Again(has_floor):
                    known.has_floor = has_floor
                    self._close(due)
                case NodeGone():
                    self._look_for_claim(due, None)  # a claim that lands later finds no registration either
                case _:
                    self._give_up(due)
            self._end_if_released()

        self._work(work, then, lambda _: self._settle_later(due, None))

    def _look_for_claim(self, due: Due, reason: str | None) -> None:
        """Record our claim if it was made; a claim that lands later does not find the job or us as they were."""
        self._busy_claiming += 1

        def then(found: tuple[KeyValue | None, KeyValue | None]) -> None:
            self._busy_claiming -= 1
            fire, run = found
            if fire is not None and self._claims.is_ours(fire, due):
                entry = Entry(due.run, due.job.name, due.tick, fire.create_revision)
                if run is not None and self._claims.is_ours(run, due):
                    entry = replace(entry, run_rev=run.create_revision)
                self._record(entry, "skipped", reason or _TOO_LATE)
            elif due.now_rev or (fire is None and reason is None):
                self._give_up(due)
            self._end_if_released()

        self._work(
            lambda: self._claims.whose(due, timeout_s=self._limit_s), then, lambda _: self._settle_later(due, reason)
        )

    def _settle_later(self, due: Due, reason: str | None) -> None:
        self._busy_claiming -= 1
        self._later(PAUSE_MOST_S, lambda: self._settle(due, reason))

    # -- what cannot be claimed now, and what was missed --------------------------------------------------

    def _hold_back(self, due: Due) -> None:
        self._held_back[due.id] = due
        if not self._held_timer:
            self._held_timer = True
            self._later(HELD_BACK_S, self._on_held_timer)

    def _on_held_timer(self) -> None:
        self._held_timer = False
        self._try_held_back()

    def _try_held_back(self) -> None:
        """What could not be claimed a moment ago."""
        held, self._held_back = self._held_back, {}
        for due in held.values():
            self._attempt(due)

    def _missed(self, name: str, first: int, last: int, ticks: int) -> None:
        """Ticks that we did not claim in time: count, and say once, those that nobody has."""
        if name in self._missing:
            low, high, more = self._missing[name]
            first, last, ticks = min(low, first), max(high, last), ticks + more
        self._missing[name] = (first, last, ticks)
        if not self._missing_timer:
            self._missing_timer = True
            self._later(0.0, self._look_up_missed)

    def _look_up_missed(self) -> None:
        self._missing_timer = False
        missing, self._missing = self._missing, {}

        def work() -> dict[str, int]:
            return {
                name: self._claims.claimed_between(name, first, last, timeout_s=self._limit_s)
                for name, (first, last, _) in missing.items()
            }

        def then(claimed: dict[str, int]) -> None:
            for name, (first, last, ticks) in missing.items():
                missed = ticks - claimed[name]
                if missed > 0:
                    self.counts["missed", ""] += missed
                    self.tell("warning", "missed", job=name, tick=rfc3339(first), until=rfc3339(last), ticks=missed)

        def failed(_: StoreError) -> None:
            for name, (first, last, ticks) in missing.items():
                self._missing.setdefault(name, (first, last, 0))
                low, high, more = self._missing[name]
                self._missing[name] = (min(low, first), max(high, last), ticks + more)
            if not self._missing_timer:
                self._missing_timer = True
                self._later(PAUSE_MOST_S, self._look_up_missed)

        self._work(work, then, failed)
