"""Asks every member in parallel for a renewal whose first try failed, until one confirms it."""

from conch import threads
from conch.etcd.store import Store, StoreError, Unreachable
from conch.record import Record
from conch.static_typing import Callable, Sequence

# Tries with a long time limit, for an etcd that is slow rather than gone; each begins this much after the one before.
_PATIENT, _STAGGERED_S = 3, 1.0
_PATIENT_MOST_S = 10.0
_PAUSE_S = 0.05
# How many renewals of one process may do so at a time: conchd may have hundreds of holds, and each renewal takes
# threads and connections. The others try one member after the other, by the store's own fail-over.
_MOST = 16
_room = [None] * _MOST  # a place for each


class Tried(Record):
    """A try to renew: confirmed, unless the hold is `gone`, or an `error` left that unknown."""

    sent_at: float
    took_s: float
    gone: str | None = None
    error: StoreError | None = None


class Hedge:
    """Asks until `end`, in threads that finish the try that they are in.

    One thread per member makes short tries, so that the first member that serves again is found within `share_s`: a
    request may hang for seconds in a member that had no leader when it came, or in a connection that lost it. A few
    more threads make tries with a long limit, each begun later than the one before: an etcd that takes long for each
    answer is alive, too. How each try ended goes to `report`, however late: a renewal counts from when it was sent.
    """

    def __init__(
        self,
        store: Store,
        attempt: Callable[[Store, float], Tried],
        report: Callable[[Tried], None],
        *,
        should_renew: Callable[[], bool],
        share_s: Callable[[], float],
        patience_s: float,
        after_s: float,
    ) -> None:
        """Begin the short tries `after_s` from now; `should_renew` is called before each try."""
        self._attempt = attempt
        self._report = report
        self._should_renew = should_renew
        self._share_s = share_s
        self._over = threads.Event()
        patience_s = min(_PATIENT_MOST_S, patience_s)
        self._lock = threads.Lock()
        self._asking = 0  # threads
        self._has_room = _take_room()
        if not self._has_room:
            return
        for member in store.each_member():
            self._start((member,), share_s, after_s)
        for number in range(_PATIENT):
            members = store.each_member()
            first = number % len(members)
            self._start((*members[first:], *members[:first]), lambda: patience_s, number * _STAGGERED_S)

    def end(self) -> None:
        """Ask no more, without waiting for the threads. To be called once."""
        self._over.set()
        if self._has_room:
            _room.append(None)

    @property
    def asks(self) -> bool:
        """Whether a thread still asks: there may have been no room, or no thread, or `should_renew` said no."""
        return self._asking > 0

    def _start(self, stores: Sequence[Store], limit_s: Callable[[], float], delay_s: float) -> None:
        self._count(1)
        try:
            threads.start(self._ask, stores, limit_s, delay_s)
        except RuntimeError:
            self._count(-1)  # no more threads: those that were started must do

    def _count(self, more: int) -> None:
        with self._lock:
            self._asking += more

    def _ask(self, stores: Sequence[Store], limit_s: Callable[[], float], delay_s: float) -> None:
        try:
            self._ask_in_turn(stores, limit_s, delay_s)
        finally:
            self._count(-1)

    def _ask_in_turn(self, stores: Sequence[Store], limit_s: Callable[[], float], delay_s: float) -> None:
        self._over.wait(delay_s)
        number = 0
        while not self._over.is_set() and self._should_renew():
            tried = self._attempt(stores[number % len(stores)], limit_s())
            self._report(tried)
            if tried.error is None:
                break
            number += 1
            # a refusal arrives immediately, and is not likely to change soon
            pause_s = _PAUSE_S if isinstance(tried.error, Unreachable) else self._share_s()
            self._over.wait(pause_s - tried.took_s)
        for store in stores:
            store.close()


def _take_room() -> bool:
    """Take a place; return False if none is left."""
    try:
        _room.pop()  # atomic
    except IndexError:
        return False
    return True
