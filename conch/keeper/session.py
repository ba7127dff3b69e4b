"""A lease kept alive, and the deadline that each confirmed renewal proves."""

from conch import threads
from conch.core import clock
from conch.core.deadline import RENEWED_EVERY, DeadlineRule
from conch.enums import Enum
from conch.errors import checked
from conch.etcd.store import LeaseGone, Range, Store, StoreError
from conch.keeper.hedge import Hedge, Tried
from conch.record import Record
from conch.static_typing import Callable
from conch.threads import Empty, SimpleQueue

# How long one member may take before others are asked in parallel: an eighth of the time that is left, so that tries
# come faster the nearer the deadline is, and the end of a fault is noticed. An etcd that was slow the last time gets up
# to a quarter.
_SHARE, _SHARE_LEAST_S, _SHARE_MOST_S = 1 / 8, 0.1, 0.4
_SLOW_SHARE = 1 / 4
# The first try asks one member only: on a busy machine others in parallel would only add to the load.
_FIRST_LEAST_S = 0.25
# Between tries by the store's own fail-over, where there is no room to ask members in parallel.
_PAUSE_S = 0.1
# How often to check whether to go on renewing while no renewal comes through.
_CHECK_S = 1.0


class Health(Enum):
    """How the renewals go, as far as it was logged."""

    CONFIRMED = "confirmed"
    FAILING = "failing"  # logged as renew-failed
    DOUBTFUL = "doubtful"  # a third of the TTL has gone by; logged as doubt


_NEXT = {
    Health.CONFIRMED: frozenset({Health.FAILING}),
    Health.FAILING: frozenset({Health.DOUBTFUL, Health.CONFIRMED}),
    Health.DOUBTFUL: frozenset({Health.CONFIRMED}),
}


class _Wake(Record):
    """Check whether there is something to do."""


class Session:
    """Renews a lease every fifth of its TTL in a thread of its own, until stopped or lost.

    A renewal counts only when etcd's answer is followed by a linearizable read from the same member, at the same
    raft term, that shows our key with our create-revision and lease: a former leader that wakes from a freeze still
    answers renewals, but it cannot answer that read. The deadline counts from before the renewal was sent.
    """

    def __init__(
        self,
        store: Store,
        lease: int,
        ttl_s: float,
        granted_at: float,
        *,
        should_renew: Callable[[], bool],
        renewed: Callable[[float], None],
        lost: Callable[[str], None],
        log: Callable[..., None],
    ) -> None:
        """`granted_at`: CLOCK_BOOTTIME before the grant's first try; `should_renew` is called before each renewal."""
        self._store = store
        self.lease = lease
        self.ttl_s = ttl_s
        self._own_key: tuple[str, int] | None = None  # with its create-revision
        self._next_at = granted_at + ttl_s * RENEWED_EVERY
        self._should_renew = should_renew
        self._renewed = renewed
        self._lost = lost
        self._log = log
        self._stop = threads.Event()
        self._inbox: SimpleQueue[Tried | _Wake] = SimpleQueue()
        self._hedge: Hedge | None = None  # while a renewal does not come through
        self._took_s = 0.0  # the last renewal that was confirmed
        self._health = Health.CONFIRMED
        self._failing_since = 0.0  # if not CONFIRMED
        self.deadline = granted_at + ttl_s

    def follow(self, key: str, rev: int) -> None:
        """Confirm each renewal by this key of ours and its create-revision. The first call starts the renewals."""
        first = self._own_key is None
        self._own_key = (key, rev)
        if first:
            threads.start(self._run)

    def stop_quietly(self) -> None:
        """Renew no more, but leave the thread asleep; call `stop` later."""
        self._stop.set()

    def stop(self) -> None:
        """Renew no more and end the thread. Does not wait for a renewal under way."""
        self._stop.set()
        self._inbox.put(_Wake())

    def renew_now(self) -> None:
        """Renew now, before the next renewal is due."""
        self._next_at = clock.now()
        self._inbox.put(_Wake())

    def _run(self) -> None:
        tried: Tried | None = None
        while not self._stop.is_set() and (tried is None or tried.gone is None):
            tried = self._next_try()
            if tried is not None and tried.error is None and tried.gone is None:
                self._confirm(tried)
            elif self._hedge is not None:
                self._log_delay(tried)
        self._end_hedge()
        if not self._stop.is_set() and tried is not None and tried.gone is not None:
            self._lost(tried.gone)

    def _next_try(self) -> Tried | None:
        """Wait until something is to be done; return how a try ended, this renewal's or an earlier one's, or None."""
        wait_s = self._next_at - clock.now()
        if self._hedge is not None:
            wait_s = _CHECK_S if self._hedge.asks else 0.0
        try:
            event = self._inbox.get(timeout=max(0.0, wait_s))
            return event if isinstance(event, Tried) else None
        except Empty:
            pass
        if self._stop.is_set():
            return None
        if not self._should_renew():
            self._end_hedge()
            self._next_at = clock.now() + self.ttl_s * RENEWED_EVERY
        elif self._hedge is None:
            return self._begin_renewal()
        elif not self._hedge.asks:
            self._end_hedge()  # there may be room for a new one later
            self._next_at = clock.now() + _PAUSE_S
            return self._attempt(self._store, self.ttl_s / 4)
        return None

    def _begin_renewal(self) -> Tried | None:
        """Try once, unless etcd is known to be slow; if that fails, ask all members in parallel from now on."""
        began, tried, share_s = clock.now(), None, self._share_s()
        if self._took_s <= _SHARE_MOST_S:
            tried = self._attempt(self._store, max(_FIRST_LEAST_S, share_s))
            if tried.error is None or self._stop.is_set():
                return tried
            share_s = 0.0
            if self._health is Health.CONFIRMED:
                self._enter(Health.FAILING, began)
                self._log("warning", "renew-failed", **self._log_fields(tried))
        self._hedge = Hedge(
            self._store,
            self._attempt,
            self._inbox.put,
            should_renew=lambda: not self._stop.is_set() and self._should_renew(),
            share_s=self._share_s,
            patience_s=self.ttl_s / 2,
            after_s=share_s,
        )
        return tried

    def _enter(self, health: Health, since: float = 0.0) -> None:
        self._health = checked(_NEXT, self._health, health)
        if health is Health.FAILING:
            self._failing_since = since

    def _share_s(self) -> float:
        """Return how long one member may take before others are asked in parallel."""
        left_s = DeadlineRule(self.ttl_s, float("inf")).sigterm_at(self.deadline) - clock.now()
        if left_s <= 0:
            return _SHARE_MOST_S
        usual_s = min(2 * self._took_s, left_s * _SLOW_SHARE)
        return max(_SHARE_LEAST_S, min(_SHARE_MOST_S, left_s * _SHARE), usual_s)

    def _confirm(self, tried: Tried) -> None:
        """Move the deadline to what a renewal proved, unless a later one was confirmed before."""
        if tried.sent_at + self.ttl_s <= self.deadline:
            return
        self._end_hedge()
        self.deadline = tried.sent_at + self.ttl_s
        self._renewed(self.deadline)
        self._took_s = tried.took_s
        self._next_at = tried.sent_at + self.ttl_s * RENEWED_EVERY
        if self._health is not Health.CONFIRMED:
            gap_s = clock.now() - self._failing_since
            self._log("warning", "renewed", lease=f"{self.lease:x}", gap_s=gap_s)
            self._enter(Health.CONFIRMED)

    def _log_delay(self, tried: Tried | None) -> None:
        """Log that a renewal takes long, each step once."""
        left_s = self.deadline - clock.now()
        if self._health is Health.CONFIRMED:
            if left_s < self.ttl_s / 2:  # not for each answer of an etcd that is slow
                self._enter(Health.FAILING, clock.now())
                self._log("warning", "renew-failed", **self._log_fields(tried))
        elif self._health is Health.FAILING and left_s < self.ttl_s * 2 / 3:
            self._enter(Health.DOUBTFUL)
            self._log("warning", "doubt", **self._log_fields(tried))

    def _log_fields(self, tried: Tried | None) -> dict[str, str | float]:
        why = tried.error if tried is not None and tried.error is not None else "no answer yet"
        return {"lease": f"{self.lease:x}", "left_s": self.deadline - clock.now(), "msg": str(why)}

    def _end_hedge(self) -> None:
        if self._hedge is not None:
            self._hedge.end()
            self._hedge = None

    def _attempt(self, store: Store, limit_s: float) -> Tried:
        """Try to renew once. What this proves counts from before the request was sent."""
        sent_at = clock.now()
        gone, error = None, None
        try:
            gone = self._renew(store, sent_at + limit_s)
        except StoreError as raised:
            error = raised
        return Tried(sent_at, clock.now() - sent_at, gone, error)

    def _renew(self, store: Store, until: float) -> str | None:
        """Renew and confirm; return why the hold is gone, None if it is confirmed. `StoreError`: neither is known."""
        try:
            answer = store.keep_alive(self.lease, timeout_s=max(0.0, until - clock.now()))
        except LeaseGone:
            return "the lease is gone"
        if answer.ttl_s <= 0:
            # etcd reports no error for a lease that it does not have
            return "the lease is gone"
        assert self._own_key is not None  # noqa: S101 - `follow` starts the thread
        key, rev = self._own_key
        read = store.range(Range(key.encode()), timeout_s=max(0.0, until - clock.now()))
        if not read.kvs or read.kvs[0].create_revision != rev:
            return "our key is gone"
        if read.kvs[0].lease != self.lease:
            return "our key was taken from its lease"
        if (read.header.member, read.header.term) != (answer.header.member, answer.header.term):
            raise Unconfirmed("the members or their leader changed in between")
        return None


class Unconfirmed(StoreError):
    """A renewal was answered, but the read after it does not prove that it counts."""
