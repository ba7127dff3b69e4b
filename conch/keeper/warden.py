"""The keeper's first thread: it owns the link and enforces the last moment, whatever etcd or the supervisor do.

It never calls etcd, never logs and never blocks. At `deadline - margin`, or `--kill-after` after a loss, it kills the
tree unless it was told that it is empty. When the link closes, the supervisor is dead: it kills the tree at once, and
only when the tree was seen empty it lets the lease be given back.
"""

import os
import select
from collections import deque
from collections.abc import Callable

from conch.core import clock, system, tree
from conch.core.clock import Terms
from conch.core.link import Ended, Link, Lost, Message, Renewed, Running
from conch.core.tree import Stat

_AGAIN_S, _AGAIN_MOST_S = 0.02, 1.0

Kill = Callable[[int, str, int], list[Stat]]


class Warden:
    """State in one thread; the others speak to it through a queue and an eventfd."""

    def __init__(self, link: Link, kill_after_s: float, kill: Kill = tree.kill_from_outside) -> None:
        self._link = link
        self._kill = kill
        self._kill_after_s = kill_after_s
        self._timer = system.Timer()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._outbox: deque[Message] = deque()
        self._running: Running | None = None
        self._since = 0
        self._seen_empty = False
        self._again_at: float | None = None
        self._again_s = _AGAIN_S
        # written by the other threads, each a single assignment
        self._number = 0
        self._terms = Terms(0.0, kill_after_s)
        self._deadline = 0.0
        self._lost_at: float | None = None
        self._idle_since = clock.now()
        self.hurry: Callable[[], None] = lambda: None

    # -- called from any thread ---------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Send to the supervisor, soon and without waiting."""
        self._outbox.append(message)
        os.eventfd_write(self._wake, 1)

    def acquired(self, number: int, ttl_s: float, deadline: float) -> None:
        """From now on acquisition `number` with this TTL and deadline is the one to enforce."""
        self._number = number
        self._terms = Terms(ttl_s, self._kill_after_s)
        self._deadline = deadline
        self._lost_at = None
        self._idle_since = clock.now()

    def renewed(self, number: int, deadline: float) -> None:
        """A renewal was confirmed. Wakes nobody: both sides look here when their moment comes."""
        if number == self._number:
            self._deadline = deadline
            self._link.send(Renewed(number, deadline))

    def wants_renewals(self, number: int) -> bool:
        """Whether acquisition `number` is worth renewing: it waits in the queue, or something runs or soon will.

        A supervisor that is stopped just when it could start its command, or whose command had to be killed here,
        must not keep the hold for nothing. The lease is not given back for that, it is only let expire: should the
        supervisor wake in time, all is as it was.
        """
        if number != self._number:
            return True
        running = self._running
        if running is not None:
            return running.bound and not self._seen_empty
        terms = self._terms
        return clock.now() < self._idle_since + terms.ttl_s - terms.margin_s - terms.grace_s

    def lost(self, number: int, reason: str) -> None:
        """The hold is gone for certain."""
        if number == self._number and self._lost_at is None:
            self._lost_at = clock.now()
            self.send(Lost(number, reason))

    # -- the thread ---------------------------------------------------------------------------------------

    def run(self, deliver: Callable[[Message], None]) -> None:
        """Pass commands on to `deliver` until the link closes and the tree is gone."""
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        poller.register(self._timer.fileno(), select.POLLIN)
        while not self._link.closed:
            self._timer.arm(self._next_moment())
            poller.register(self._link, select.POLLIN | (select.POLLOUT if self._link.pending else 0))
            poller.poll()
            self._timer.clear()
            self._take_wakes()
            while self._outbox:
                self._link.send(self._outbox.popleft())
            self._link.flush()
            for message in self._link.drain():
                self._on_message(message, deliver)
            self._enforce()
        self._end_tree()

    def _take_wakes(self) -> None:
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            pass  # something else woke us

    def _on_message(self, message: Message, deliver: Callable[[Message], None]) -> None:
        if isinstance(message, Running):
            try:
                first = tree.stat(message.pid)
            except OSError:
                first = None
            self._since = first.start if first is not None else 0
            self._seen_empty = False
            self._again_at, self._again_s = None, _AGAIN_S
            wanted = self.wants_renewals(self._number)
            self._running = message
            if message.bound and not wanted:
                self.hurry()  # nothing was renewed for a while
        elif isinstance(message, Ended):
            self._idle_since = clock.now()
            self._running = None
        elif not isinstance(message, Renewed):
            deliver(message)

    def _last_moment(self) -> float:
        at = self._terms.kill_at(self._deadline)
        return at if self._lost_at is None else min(at, self._lost_at + self._kill_after_s)

    def _next_moment(self) -> float | None:
        if self._running is None or not self._running.bound:
            return None
        return self._last_moment() if self._again_at is None else self._again_at

    def _enforce(self) -> None:
        """Kill a tree that outlived its last moment, again and again: the supervisor may be stopped for hours."""
        at = self._next_moment()
        now = clock.now()
        if at is None or now < at or self._running is None:
            return
        self._seen_empty = not self._kill_tree(self._running)
        self._again_at = now + self._again_s
        self._again_s = min(2 * self._again_s, _AGAIN_MOST_S)

    def _kill_tree(self, running: Running) -> list[Stat]:
        try:
            return self._kill(running.pid, running.tree, self._since)
        except OSError:
            # we cannot look now: what we cannot see is not dead
            return [Stat(running.pid, "?", 0, running.pid, 1, self._since)]

    def _end_tree(self) -> None:
        """The supervisor is dead: kill until two looks find nothing alive."""
        running = self._running
        empty_looks, again_s = 0, _AGAIN_S
        while running is not None and empty_looks < 2:
            alive = self._kill_tree(running)
            empty_looks = 0 if alive else empty_looks + 1
            tree.wait_for_ends(alive, again_s)
            again_s = min(2 * again_s, _AGAIN_MOST_S)
        self._running = None
