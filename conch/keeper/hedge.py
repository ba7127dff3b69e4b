"""A renewal that did not come through at once, asked of every member side by side until one confirms it."""

import threading
from collections.abc import Callable, Sequence

from conch.etcd.store import Store, StoreError, Unreachable
from conch.record import Record

# Tries that are given time, for an etcd that is slow rather than gone; each begins this much after the one before.
_PATIENT, _STAGGERED_S = 3, 1.0
_PATIENT_MOST_S = 10.0
_PAUSE_S = 0.05
# How many renewals of one process are asked so at a time: conchd may have hundreds of holds, and each takes threads and
# connections. The others are tried one after the other, by the store's own fail-over.
_ROOM = threading.BoundedSemaphore(16)


class Tried(Record):
    """One try of a renewal, and how it ended: confirmed, or the hold is `gone`, or no verdict for an `error`."""

    sent_at: float
    took_s: float
    gone: str | None = None
    error: StoreError | None = None


class Hedge:
    """Asks until it is ended, in threads that live no longer than that and the try that they are in.

    Each member has one with short tries, so that whichever serves again is found within such a share: a request may
    hang for seconds in a member that had no leader when it came, or in a connection that lost it. A few more let
    their tries wait, each begun later than the one before: an etcd that takes long for each answer is alive, too.
    What they find goes to `report`, also what comes late: it proves what it proves, from when it was sent.
    """

    def __init__(
        self,
        store: Store,
        attempt: Callable[[Store, float], Tried],
        report: Callable[[Tried], None],
        *,
        wanted: Callable[[], bool],
        share_s: Callable[[], float],
        patience_s: float,
        after_s: float,
    ) -> None:
        """The short tries begin `after_s` from now; `wanted` is asked before each try."""
        self._attempt = attempt
        self._report = report
        self._wanted = wanted
        self._share_s = share_s
        self._over = threading.Event()
        patience_s = min(_PATIENT_MOST_S, patience_s)
        self._threads: list[threading.Thread] = []
        self._has_room = _ROOM.acquire(blocking=False)
        if not self._has_room:
            return
        for member in store.each_member():
            self._start((member,), share_s, after_s)
        for turn in range(_PATIENT):
            members = store.each_member()
            first = turn % len(members)
            self._start((*members[first:], *members[:first]), lambda: patience_s, turn * _STAGGERED_S)

    def end(self) -> None:
        """Ask no more. Waits for nobody. To be called once."""
        self._over.set()
        if self._has_room:
            _ROOM.release()

    @property
    def asks(self) -> bool:
        """Whether anybody does: there may be no room or no thread left for it, or it was not wanted for a while."""
        return any(thread.is_alive() for thread in self._threads)

    def _start(self, *how: object) -> None:
        thread = threading.Thread(target=self._ask, args=how, name="hedge", daemon=True)
        try:
            thread.start()
            self._threads.append(thread)
        except RuntimeError:
            pass  # then one that was started must do

    def _ask(self, stores: Sequence[Store], limit_s: Callable[[], float], delay_s: float) -> None:
        self._over.wait(delay_s)
        turn = 0
        while not self._over.is_set() and self._wanted():
            tried = self._attempt(stores[turn % len(stores)], limit_s())
            self._report(tried)
            if tried.error is None:
                break
            turn += 1
            # a refusal comes at once, and is not likely to change soon
            pause_s = _PAUSE_S if isinstance(tried.error, Unreachable) else self._share_s()
            self._over.wait(pause_s - tried.took_s)
        for store in stores:
            store.close()
