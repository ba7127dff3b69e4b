"""A lease kept alive, and the deadline that each confirmed renewal proves."""

import math
import queue
import threading
from collections.abc import Callable

from conch.core import clock
from conch.core.deadline import RENEWED_EVERY, DeadlineRule
from conch.etcd.store import LeaseGone, Range, Store, StoreError
from conch.keeper.hedge import Hedge, Tried

# How long one member may take before others are asked beside it: an eighth of the time that is left, so that nobody
# sleeps through the end of a fault when it matters most. An etcd that was slow the last time gets up to a quarter.
_SHARE, _SHARE_LEAST_S, _SHARE_MOST_S = 1 / 8, 0.1, 0.4
_SLOW_SHARE = 1 / 4
# The first try is made alone: on a busy machine others beside it would only add to the load.
_FIRST_LEAST_S = 0.25
# Between tries by the store's own fail-over, where they cannot be made side by side.
_PAUSE_S = 0.1
# How often to see whether renewals are still wanted while none comes through.
_CHECK_S = 1.0

Tell = Callable[..., None]


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
        wanted: Callable[[], bool],
        renewed: Callable[[float], None],
        lost: Callable[[str], None],
        tell: Tell,
    ) -> None:
        """`granted_at`: CLOCK_BOOTTIME before the first attempt of the grant; `wanted` is asked before each renewal."""
        self._store = store
        self.lease = lease
        self.ttl_s = ttl_s
        self._place = ("", 0)
        self._next_at = 0.0
        self._wanted = wanted
        self._renewed = renewed
        self._lost = lost
        self._tell = tell
        self._stop = threading.Event()
        self._news: queue.SimpleQueue[Tried | None] = queue.SimpleQueue()  # None: look whether there is something to do
        self._hedge: Hedge | None = None  # while a renewal does not come through
        self._took_s = 0.0  # the last renewal that was confirmed
        self._failing_since: float | None = None
        self._doubted = False
        self._thread = threading.Thread(target=self._run, name="session", daemon=True)
        self.deadline = granted_at + ttl_s

    def follow(self, key: str, rev: int) -> None:
        """Confirm each renewal by this key of ours, with its create-revision; the first call starts to renew."""
        self._place = (key, rev)
        if not self._thread.ident:
            self._thread.start()

    def stop_quietly(self) -> None:
        """Renew no more, and wake nobody; `stop` is to follow."""
        self._stop.set()

    def stop(self) -> None:
        """Renew no more. Does not wait for a renewal under way."""
        self._stop.set()
        self._news.put(None)

    def renew_now(self) -> None:
        """Renew now, whatever was planned."""
        self._next_at = 0.0
        self._news.put(None)

    def _run(self) -> None:
        self._next_at = self.deadline - self.ttl_s + self.ttl_s * RENEWED_EVERY
        tried: Tried | None = None
        while not self._stop.is_set() and (tried is None or tried.gone is None):
            tried = self._next_try()
            if tried is not None and tried.error is None and tried.gone is None:
                self._confirm(tried)
            elif self._hedge is not None:
                self._complain(tried)
        self._end_hedge()
        if not self._stop.is_set() and tried is not None and tried.gone is not None:
            self._lost(tried.gone)

    def _next_try(self) -> Tried | None:
        """The next outcome of a try, of whichever renewal; None: none for now."""
        wait_s = self._next_at - clock.now()
        if self._hedge is not None:
            wait_s = _CHECK_S if self._hedge.asks else 0.0
        try:
            return self._news.get(timeout=max(0.0, wait_s))
        except queue.Empty:
            pass
        if self._stop.is_set():
            return None
        if not self._wanted():
            self._end_hedge()
            self._next_at = clock.now() + self.ttl_s * RENEWED_EVERY
        elif self._hedge is None:
            return self._begin()
        elif not self._hedge.asks:
            self._end_hedge()  # there may be room for another later
            self._next_at = clock.now() + _PAUSE_S
            return self._attempt(self._store, self.ttl_s / 4)
        return None

    def _begin(self) -> Tried | None:
        """A renewal is due: one try, alone, unless etcd is known to be slow; then many."""
        began, tried, share_s = clock.now(), None, self._share_s()
        if self._took_s <= _SHARE_MOST_S:
            tried = self._attempt(self._store, max(_FIRST_LEAST_S, share_s))
            if tried.error is None or self._stop.is_set():
                return tried
            share_s = 0.0
            if self._failing_since is None:
                self._failing_since = began
                self._tell("warning", "renew-failed", **self._about(tried))
        self._hedge = Hedge(
            self._store,
            self._attempt,
            self._news.put,
            wanted=lambda: not self._stop.is_set() and self._wanted(),
            share_s=self._share_s,
            patience_s=self.ttl_s / 2,
            after_s=share_s,
        )
        return tried

    def _share_s(self) -> float:
        left_s = DeadlineRule(self.ttl_s, math.inf).sigterm_at(self.deadline) - clock.now()
        if left_s <= 0:
            return _SHARE_MOST_S
        usual_s = min(2 * self._took_s, left_s * _SLOW_SHARE)
        return max(_SHARE_LEAST_S, min(_SHARE_MOST_S, left_s * _SHARE), usual_s)

    def _confirm(self, tried: Tried) -> None:
        """Take over what a renewal proved, if it is more than is known."""
        if tried.sent_at + self.ttl_s <= self.deadline:
            return
        self._end_hedge()
        self.deadline = tried.sent_at + self.ttl_s
        self._renewed(self.deadline)
        self._took_s = tried.took_s
        self._next_at = tried.sent_at + self.ttl_s * RENEWED_EVERY
        if self._failing_since is not None:
            gap_s = clock.now() - self._failing_since
            self._tell("warning", "renewed", lease=f"{self.lease:x}", gap_s=gap_s)
        self._failing_since, self._doubted = None, False

    def _complain(self, tried: Tried | None) -> None:
        left_s = self.deadline - clock.now()
        if self._failing_since is None:
            if left_s < self.ttl_s / 2:  # not for each answer of an etcd that is slow
                self._failing_since = clock.now()
                self._tell("warning", "renew-failed", **self._about(tried))
        elif not self._doubted and left_s < self.ttl_s * 2 / 3:
            self._doubted = True
            self._tell("warning", "doubt", **self._about(tried))

    def _about(self, tried: Tried | None) -> dict[str, str | float]:
        why = tried.error if tried is not None and tried.error is not None else "no answer yet"
        return {"lease": f"{self.lease:x}", "left_s": self.deadline - clock.now(), "msg": str(why)}

    def _end_hedge(self) -> None:
        if self._hedge is not None:
            self._hedge.end()
            self._hedge = None

    def _attempt(self, store: Store, limit_s: float) -> Tried:
        """Try one renewal. What it proves counts from before it was sent."""
        sent_at = clock.now()
        gone, error = None, None
        try:
            gone = self._renew(store, sent_at + limit_s)
        except StoreError as raised:
            error = raised
        return Tried(sent_at, clock.now() - sent_at, gone, error)

    def _renew(self, store: Store, until: float) -> str | None:
        """Renew once and confirm; return why the hold is gone, or None if it is confirmed. `StoreError`: no verdict."""
        try:
            answer = store.keep_alive(self.lease, timeout_s=max(0.0, until - clock.now()))
        except LeaseGone:
            return "the lease is gone"
        if answer.ttl_s <= 0:
            # etcd reports no error for a lease that it does not have
            return "the lease is gone"
        key, rev = self._place
        read = store.range(Range(key.encode()), timeout_s=max(0.0, until - clock.now()))
        if not read.kvs or read.kvs[0].create_revision != rev:
            return "our key is gone"
        if read.kvs[0].lease != self.lease:
            return "our key was taken from its lease"
        if (read.header.member, read.header.term) != (answer.header.member, answer.header.term):
            raise Unconfirmed("the members or their leader changed in between")
        return None


class Unconfirmed(StoreError):
    """A renewal was answered, but nothing proves that it counts."""
