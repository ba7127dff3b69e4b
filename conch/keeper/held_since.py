"""Notes in the value of our key since when we hold, for those who look: nothing waits for it, or depends on it."""

import time

from conch import threads
from conch.core import clock
from conch.etcd.store import StoreError
from conch.keeper.hold_spec import HoldSpec
from conch.keeper.queue import Queue
from conch.static_typing import Any, Callable
from conch.threads import Empty, SimpleQueue

# A shorter hold costs no write and no thread, and no hand-over shares etcd or a processor with one.
_AFTER_S = 0.2


class HeldSince:
    """Has a thread of its own write to our key since when we hold, once we have held for a while.

    If etcd does not take it, that changes nothing for the hold. The methods are for one thread.
    """

    def __init__(self, spec: HoldSpec, log: Callable[..., None]) -> None:
        self._spec = spec
        self._log = log
        self._due: tuple[float, Queue, int, float] | None = None  # when, and what `_write` is to be called with

    def begin(self, queue: Queue, rev: int) -> None:
        """We hold from now on, by our key with this create-revision."""
        self._due = (clock.now() + _AFTER_S, queue, rev, time.time())

    def cancel(self) -> None:
        """We hold no more."""
        self._due = None

    def next_of(self, inbox: SimpleQueue[Any]) -> Any:
        """Wait for the next message, and return it. Meanwhile starts the thread when that is due."""
        while self._due is not None:
            at, queue, rev, since = self._due
            try:
                return inbox.get(timeout=max(0.0, at - clock.now()))
            except Empty:
                pass  # perhaps a little early
            if clock.now() >= at:
                self._due = None
                try:
                    threads.start(self._write, queue, rev, since)
                except RuntimeError:
                    pass  # no room for a thread
        return inbox.get()

    def _write(self, queue: Queue, rev: int, since: float) -> None:
        from conch.holder import with_held_since  # late: a keeper that need not wait does not need it
        from conch.times import rfc3339

        try:
            value = with_held_since(self._spec.value, rfc3339(since))
            queue.describe(rev, value, timeout_s=self._spec.connection.command_timeout_s)
        except (StoreError, ValueError) as error:
            if self._spec.verbose:
                self._log("debug", "since-not-written", msg=str(error))
