"""A lease kept alive, and the deadline that each confirmed renewal proves."""

import threading
from collections.abc import Callable

from conch.core import clock
from conch.core.clock import RENEWED_EVERY
from conch.etcd.store import LeaseGone, Range, Store, StoreError

# One try of a renewal. A hung member is left that early, so that another can still save the lease.
_TRY_MOST_S, _TRY_LEAST_S = 2.0, 0.5
# Short to the end: sleeping through the end of a fault may cost the hold.
_PAUSE_S, _PAUSE_MOST_S = 0.05, 0.2

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
        self._wake = threading.Event()
        self._thread = threading.Thread(target=self._run, name="session", daemon=True)
        self.deadline = granted_at + ttl_s

    def follow(self, key: str, rev: int) -> None:
        """Confirm each renewal by this key of ours, with its create-revision; the first call starts to renew."""
        self._place = (key, rev)
        if not self._thread.ident:
            self._thread.start()

    def cease(self) -> None:
        """Renew no more, and wake nobody; `stop` is to follow."""
        self._stop.set()

    def stop(self) -> None:
        """Renew no more. Does not wait for a renewal under way."""
        self._stop.set()
        self._wake.set()

    def hurry(self) -> None:
        """Renew now, whatever was planned."""
        self._next_at = 0.0
        self._wake.set()

    def _run(self) -> None:
        interval_s = self.ttl_s * RENEWED_EVERY
        self._next_at = self.deadline - self.ttl_s + interval_s
        failing_since: float | None = None
        doubted = False
        pause_s = _PAUSE_S
        try_s = first_try_s = min(_TRY_MOST_S, max(_TRY_LEAST_S, self.ttl_s / 6))
        while not self._stop.is_set():
            woken = self._wake.wait(max(0.0, self._next_at - clock.now()))
            if self._stop.is_set():
                return
            if woken:
                self._wake.clear()
                continue
            sent_at = clock.now()
            self._next_at = sent_at + interval_s
            if not self._wanted():
                continue
            try:
                gone = self._renew(try_s)
            except StoreError as error:
                if self._stop.is_set():
                    return
                now = clock.now()
                left_s = self.deadline - now
                if failing_since is None:
                    failing_since = sent_at
                    self._tell("warning", "renew-failed", lease=f"{self.lease:x}", left_s=left_s, msg=str(error))
                elif not doubted and left_s < self.ttl_s * 2 / 3:
                    doubted = True
                    self._tell("warning", "doubt", lease=f"{self.lease:x}", left_s=left_s, msg=str(error))
                self._next_at = now + pause_s
                pause_s = min(2 * pause_s, _PAUSE_MOST_S)
                # an etcd that is slow rather than gone gets more time, up to half of what is left
                try_s = max(first_try_s, min(2 * try_s, left_s / 2))
                continue
            if gone is not None:
                if not self._stop.is_set():
                    self._lost(gone)
                return
            if self._stop.is_set():
                return
            self.deadline = sent_at + self.ttl_s
            self._renewed(self.deadline)
            if failing_since is not None:
                gap_s = clock.now() - failing_since
                self._tell("warning", "renewed", lease=f"{self.lease:x}", gap_s=gap_s)
            failing_since, doubted, pause_s, try_s = None, False, _PAUSE_S, first_try_s
            self._next_at = sent_at + interval_s

    def _renew(self, timeout_s: float) -> str | None:
        """Renew once and confirm; return why the hold is gone, or None if it is confirmed. `StoreError`: no verdict."""
        try:
            answer = self._store.keep_alive(self.lease, timeout_s=timeout_s)
        except LeaseGone:
            return "the lease is gone"
        if answer.ttl_s <= 0:
            # etcd reports no error for a lease that it does not have
            return "the lease is gone"
        key, rev = self._place
        read = self._store.range(Range(key.encode(), keys_only=True), timeout_s=timeout_s)
        if not read.kvs or read.kvs[0].create_revision != rev:
            return "our key is gone"
        if read.kvs[0].lease != self.lease:
            return "our key was taken from its lease"
        if (read.head.member, read.head.term) != (answer.head.member, answer.head.term):
            raise Unconfirmed("the members or their leader changed in between")
        return None


class Unconfirmed(StoreError):
    """A renewal was answered, but nothing proves that it counts."""
