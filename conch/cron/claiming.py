"""Claiming ticks: whose turn it is, what stands against it, and what happens when etcd does not answer."""

from conch.cron.actor import PAUSE_MOST_S, PAUSE_S, Base
from conch.cron.claims import Again, Busy, Due, Node, NodeGone, Outcome, Taken, Won
from conch.cron.clock import SKEW_S
from conch.cron.fleet import order
from conch.cron.ledger import Entry
from conch.cron.records import fields_of
from conch.cron.runs import Known, Runs
from conch.etcd.store import KeyValue, StoreError, Unreachable
from conch.holder import rfc3339

# Each host in line for a tick gives the ones before it this much time.
_TURN_S = 0.1
# Claims of late are remembered, so that a tick that others took is not tried.
_REMEMBERED = 20000


class Claiming(Runs):
    """Claims what is due, in its turn; holds back what cannot be claimed now, until it is too late for it."""

    def __init__(self, base: Base) -> None:
        super().__init__(base)
        self._max_runs = base.max_runs
        self._key = base.key
        self._dues: dict[tuple[str, int], Due] = {}
        self._held_back: dict[tuple[str, int], Due] = {}
        self._claimed: dict[tuple[str, int], None] = {}
        self._claiming = 0

    def _consider(self, due: Due) -> None:
        """A tick is due: wait for our turn at it."""
        if self._draining or due.id in self._claimed:
            return
        self._dues[due.id] = due
        hosts = {host for host, fields in self._nodes.items() if fields.get("draining") is not True} | {self._me.host}
        turn = order(hosts, *due.id).index(self._me.host)
        if abs(self._clock.skew_s()) > SKEW_S:
            turn = max(turn, 1)
        if turn:
            self._later(turn * _TURN_S, lambda: self._attempt(due))
        else:
            self._attempt(due)

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
        known = self.jobs.get(name)
        if known is not None and known.job.overlap == "replace":
            self._replace(known, tick)

    def _replace(self, known: Known, tick: int) -> None:
        """A newer tick of the job is claimed: what runs or waits here gives way."""
        name = known.job.name
        reason = f"replaced by the tick of {rfc3339(tick)}"
        for one in self._live.values():
            entry = one.entry
            if entry.name == name and entry.run_rev is not None and not one.over and entry.tick < tick:
                self._end_run(one, reason)
        if known.waiting is not None and known.waiting[0].tick < tick:
            due, rev = known.waiting
            known.waiting = None
            self._record(Entry(due.run, name, due.tick, rev), "skipped", reason)

    def _drop(self, due: Due) -> None:
        self._dues.pop(due.id, None)
        self._held_back.pop(due.id, None)

    def _ready(self) -> bool:
        """Whether a run could be started now: registered, with room, and the supervisor awake."""
        room = len(self._runs()) + self._claiming < self._max_runs
        return self._node is not None and room and self._is_answered()

    def _attempt(self, due: Due) -> None:
        """Claim a tick, unless another has, or hold it back until we can."""
        known = self.jobs.get(due.job.name)
        if self._dues.get(due.id) is not due:
            return
        if self._draining or known is None or (known.rev != due.job_rev and not due.now_rev):
            self._drop(due)
            return
        if self._clock.now() > due.late_at:
            self._too_late(due)
            return
        if not self._ready() or self._node is None:
            if not self._held_back:
                self._later(0.2, self._try_held_back)
            self._held_back[due.id] = due
            return
        if due.now_rev:
            due.job, due.job_rev = known.job, known.rev
        node, key = self._node.node, self._key
        now = self._clock.own()
        busy = known.run if due.job.exclusive else None
        limit_s = max(0.2, min(self._limit_s, due.late_at - self._clock.now()))
        has_floor = known.has_floor
        running = None if busy is None else fields_of(busy.value).get("tick")
        newer = isinstance(running, int) and running > due.tick
        if key is not None and not due.job.is_signed_by(key):
            why = "the job is not signed" if not due.job.is_signed else "the job's signature is not by our key"
            self._claim(due, "skip", None, why, node, now, has_floor, limit_s)
        elif busy is None:
            self._claim(due, "run", None, "", node, now, has_floor, limit_s)
        elif due.job.overlap == "replace" and not newer:
            self._claim(due, "wait", busy, "", node, now, has_floor, limit_s)
        else:
            host = fields_of(busy.value).get("host")
            why = f"the run of {rfc3339(running)} on {host} is alive" if isinstance(running, int) else "a run is alive"
            self._claim(due, "skip", busy, why, node, now, has_floor, limit_s)

    def _claim(
        self,
        due: Due,
        how: str,
        busy: KeyValue | None,
        why: str,
        node: Node,
        now: float,
        has_floor: bool,
        limit_s: float,
    ) -> None:
        def work() -> Outcome:
            claims, me = self._claims, self._me
            if how == "skip":
                return claims.claim_to_skip(due, node, me, now, busy, why, has_floor=has_floor, timeout_s=limit_s)
            if busy is not None:
                return claims.claim_to_wait(due, node, me, now, busy, has_floor=has_floor, timeout_s=limit_s)
            outcome = claims.claim(due, node, me, now, has_floor=has_floor, timeout_s=limit_s)
            if isinstance(outcome, Won):
                # safe before it can start
                self._ledger.write(Entry(due.run, due.job.name, due.tick, outcome.rev, outcome.run_rev))
            return outcome

        self._claiming += 1
        self._work(
            work, lambda o: self._on_outcome(due, how, why, node.number, o), lambda e: self._on_claim_failed(due, e)
        )

    def _on_outcome(self, due: Due, how: str, why: str, number: int, outcome: Outcome) -> None:
        self._claiming -= 1
        known = self.jobs.get(due.job.name)
        label = {"job": due.job.name, "tick": rfc3339(due.tick)}
        match outcome:
            case Won(rev, lease, run_rev):
                self._drop(due)
                self.counts["claims", "won"] += 1
                if how == "skip":
                    self.counts["runs", "skipped"] += 1
                    self.tell("info", "skipped", **label, reason=why)
                elif how == "wait":
                    self.tell("info", "waiting", **label, msg="the run before it is being ended")
                    self._wait_for_run(due, rev)
                elif due.job.exclusive and run_rev is None:
                    self._record(Entry(due.run, due.job.name, due.tick, rev), "skipped", "its run key is gone")
                else:
                    self._launch(due, Entry(due.run, due.job.name, due.tick, rev, run_rev), lease, number)
            case Taken():
                self._drop(due)
                self.counts["claims", "lost"] += 1
            case Busy(run):
                if known is not None:
                    known.run = run
                self._attempt(due)
            case Again(has_floor):
                if known is not None:
                    known.has_floor = has_floor
                self._attempt(due)
            case NodeGone():
                self._held_back[due.id] = due  # the session or the watch tells that we are not registered any more

    def _on_claim_failed(self, due: Due, error: StoreError) -> None:
        self._claiming -= 1
        due.unclear = due.unclear or isinstance(error, Unreachable)
        due.pause_s = min(2 * due.pause_s or PAUSE_S, PAUSE_MOST_S)
        if not isinstance(error, Unreachable):
            self.tell("warning", "claim-failed", job=due.job.name, tick=rfc3339(due.tick), msg=str(error))
        self._later(due.pause_s, lambda: self._attempt(due))

    def _too_late(self, due: Due) -> None:
        """Its time has passed without an answer: if a claim was made all the same, it is recorded as skipped."""
        self._drop(due)
        if not due.unclear:
            self._missed(due.job.name, due.tick, due.tick, 1)
            return

        def then(claim: KeyValue | None) -> None:
            if claim is not None and self._claims.is_ours(claim, due):
                entry = Entry(due.run, due.job.name, due.tick, claim.create_revision)
                self._record(entry, "skipped", "etcd confirmed the claim too late")
            elif claim is None:
                self._missed(due.job.name, due.tick, due.tick, 1)

        limit_s = self._limit_s
        self._work(
            lambda: self._claims.whose(due, timeout_s=limit_s),
            then,
            lambda _: self._later(PAUSE_MOST_S, lambda: self._too_late(due)),
        )

    def _missed(self, name: str, first: int, last: int, ticks: int) -> None:
        """Count and say once what nobody has claimed in time."""
        limit_s = self._limit_s

        def then(claimed: int) -> None:
            missed = ticks - claimed
            if missed > 0:
                self.counts["missed", ""] += missed
                self.tell("warning", "missed", job=name, tick=rfc3339(first), until=rfc3339(last), ticks=missed)

        def failed(_: StoreError) -> None:
            self._later(PAUSE_MOST_S, lambda: self._missed(name, first, last, ticks))

        self._work(lambda: self._claims.claimed_between(name, first, last, timeout_s=limit_s), then, failed)

    def _try_held_back(self) -> None:
        """What could not be claimed a moment ago."""
        held, self._held_back = self._held_back, {}
        for due in held.values():
            self._attempt(due)

    def _wait_for_run(self, due: Due, rev: int) -> None:
        known = self.jobs.get(due.job.name)
        if known is None:
            self._record(Entry(due.run, due.job.name, due.tick, rev), "skipped", "the job was removed")
            return
        if known.waiting is not None:
            older, older_rev = sorted((known.waiting, (due, rev)), key=lambda one: one[0].tick)[0]
            self._record(Entry(older.run, older.job.name, older.tick, older_rev), "skipped", "a newer tick waits")
            if older is due:
                return
        known.waiting = (due, rev)
        self._replace(known, due.tick)
        self._later(max(0.0, due.late_at - self._clock.now()), lambda: self._waited_too_long(due))
        if known.run is None:
            self._take_run(known)

    def _waited_too_long(self, due: Due) -> None:
        for known in self.jobs.values():
            if known.waiting is not None and known.waiting[0] is due:
                rev = known.waiting[1]
                known.waiting = None
                self._record(
                    Entry(due.run, due.job.name, due.tick, rev), "skipped", "the run before it did not end in time"
                )

    def _take_run(self, known: Known) -> None:
        if known.waiting is None or self._node is None:
            return
        due, rev = known.waiting
        node, limit_s = self._node.node, self._limit_s

        def work() -> Outcome:
            outcome = self._claims.take_run(due, rev, node, self._me, timeout_s=limit_s)
            if isinstance(outcome, Won):
                self._ledger.write(Entry(due.run, due.job.name, due.tick, rev, outcome.run_rev))
            return outcome

        def then(outcome: Outcome) -> None:
            waits = known.waiting is not None and known.waiting[0] is due
            match outcome:
                case Won(_, lease, run_rev):
                    known.waiting = None if waits else known.waiting
                    entry = Entry(due.run, due.job.name, due.tick, rev, run_rev)
                    if waits:
                        self._launch(due, entry, lease, node.number)
                    else:
                        self._record(entry, "skipped", "a newer tick waits")
                case Busy(run) if waits:
                    known.run = run
                    if run is None:
                        self._take_run(known)
                case Taken(why) if waits:
                    known.waiting = None
                    self._record(Entry(due.run, due.job.name, due.tick, rev), "skipped", why)
                case _:
                    self._later(PAUSE_S, lambda: self._take_run(known))

        self._work(work, then, lambda _: self._later(PAUSE_S, lambda: self._take_run(known)))

    def _on_run_key_gone(self, name: str, revision: int) -> None:
        """The run key was deleted at this revision: the next may have it; a run of ours had it no longer by then."""
        for one in self._runs():
            if one.entry.name == name and one.entry.run_rev is not None and one.entry.run_rev < revision:
                self._warden.end(one.entry.run, "its run key is gone: deleted by hand")
        known = self.jobs.get(name)
        if known is not None and known.run is not None and known.run.create_revision < revision:
            known.run = None
        if known is not None and known.waiting is not None:
            self._take_run(known)
