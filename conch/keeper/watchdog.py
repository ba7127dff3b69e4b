"""The keeper's first thread: it owns the link and enforces the last moment, whatever etcd or the supervisor do.

It never calls etcd, never logs and never blocks. At `deadline - margin`, or `--kill-after` after a loss, it kills the
tree unless it was told that it is empty. When the link closes, the supervisor is dead: it kills the tree at once, and
only when the tree was seen empty it lets the lease be given back.
"""

import os
import select
from collections import deque
from collections.abc import Callable, Iterable, Sequence

from conch.core import clock, procfs
from conch.core.channel import Channel
from conch.core.deadline import DeadlineRule
from conch.core.messages import Drain, Ended, Kill, Lost, Message, Renewed, Running
from conch.core.procfs import Stat, Target

_AGAIN_S, _AGAIN_MOST_S = 0.02, 1.0

KillTrees = Callable[[Sequence[Target]], list[list[Stat]]]


class NotReady(OSError):
    """The system refused what the warden needs. The supervisor heard of no hold, and runs nothing."""


class _Hold:
    """A hold as etcd last confirmed it, for one run or ("") for any; other threads write single fields of it."""

    def __init__(self, rule: DeadlineRule, run: str, deadline: float, renew_now: Callable[[], None]) -> None:
        self.rule = rule
        self.run = run
        self.deadline = deadline
        self.renew_now = renew_now
        self.idle_since = clock.now()
        self.lost_at: float | None = None


class _Watched:
    """A run that the supervisor told of."""

    def __init__(self, running: Running, since: int) -> None:
        self.running = running
        self.since = since
        self.seen_empty = False
        self.lost_at: float | None = None
        self.again_at: float | None = None
        self.again_s = _AGAIN_S


class Watchdog:
    """State in one thread; the others speak to it through a queue and an eventfd."""

    def __init__(self, channel: Channel, kill: KillTrees = procfs.kill_from_outside) -> None:
        self._channel = channel
        self._kill = kill
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._outbox: deque[Message] = deque()
        self._runs: dict[str, _Watched] = {}
        self._holds: dict[int, _Hold] = {}
        self._last: Message | None = None

    # -- called from any thread ---------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Send to the supervisor, soon and without waiting."""
        self._outbox.append(message)
        os.eventfd_write(self._wake, 1)

    def quit(self, last: Message) -> None:
        """Send this last, then end the process: a thread that is needed is gone."""
        self._last = last
        os.eventfd_write(self._wake, 1)

    def acquired(
        self,
        number: int,
        rule: DeadlineRule,
        deadline: float,
        *,
        run: str = "",
        renew_now: Callable[[], None] = lambda: None,
    ) -> None:
        """From now on hold `number` with this deadline is to be enforced; `hurry` asks for a renewal now."""
        self._holds[number] = _Hold(rule, run, deadline, renew_now)

    def forget(self, number: int) -> None:
        """The hold is given back: nothing runs under it any more, and what was told to would be killed at once."""
        self._holds.pop(number, None)

    def renewed(self, number: int, deadline: float) -> None:
        """A renewal was confirmed. Wakes nobody: both sides look here when their moment comes."""
        hold = self._holds.get(number)
        if hold is not None:
            hold.deadline = deadline
            self._channel.send(Renewed(number, deadline))

    def wants_renewals(self, number: int) -> bool:
        """Whether hold `number` is worth renewing: it waits in the queue, or something runs or soon will.

        A supervisor that is stopped just when it could start its command, or whose command had to be killed here,
        must not keep the hold for nothing. The lease is not given back for that, it is only let expire: should the
        supervisor wake in time, all is as it was.
        """
        hold = self._holds.get(number)
        if hold is None:
            return True
        run = self._runs.get(hold.run)
        if run is not None:
            return number in run.running.holds and not run.seen_empty  # a hook after a loss has none
        return clock.now() < hold.idle_since + hold.rule.ttl_s - hold.rule.margin_s - hold.rule.grace_s

    def lost(self, number: int, reason: str) -> None:
        """The hold is gone for certain."""
        hold = self._holds.get(number)
        if hold is not None and hold.lost_at is None:
            hold.lost_at = clock.now()
            self.send(Lost(number, reason))

    def end(self, run: str, reason: str) -> None:
        """Have a run ended, and see to it: what it alone held is gone."""
        watched = self._runs.get(run)
        if watched is not None and watched.lost_at is None:
            watched.lost_at = clock.now()
        self.send(Kill(run, reason))

    # -- the thread ---------------------------------------------------------------------------------------

    def run(self, deliver: Callable[[Message], None]) -> None:
        """Pass commands on to `deliver` until the link closes and the tree is gone; `NotReady` instead of the start."""
        self._receive(deliver)
        from conch.core import linux  # late: an order that waits already is served meanwhile

        try:
            timer = linux.Timer()
        except OSError as error:
            raise NotReady(error.errno, error.strerror) from None
        linux.give_memory_back()
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        poller.register(timer.fileno(), select.POLLIN)
        while not self._channel.closed:
            timer.arm(self._next_moment())
            poller.register(self._channel, select.POLLIN | (select.POLLOUT if self._channel.pending else 0))
            poller.poll()
            timer.clear()
            self._take_wakes()
            while self._outbox:
                self._channel.send(self._outbox.popleft())
            if self._last is not None:
                self._channel.send(self._last)
                os._exit(1)
            self._channel.flush()
            self._receive(deliver)
            self._enforce()
        deliver(Drain())  # nobody would run what is claimed from now on
        self._end_trees()

    def _take_wakes(self) -> None:
        try:
            os.eventfd_read(self._wake)
        except BlockingIOError:
            pass  # something else woke us

    def _receive(self, deliver: Callable[[Message], None]) -> None:
        for message in self._channel.drain():
            self._on_message(message, deliver)

    def _on_message(self, message: Message, deliver: Callable[[Message], None]) -> None:
        if isinstance(message, Running):
            try:
                first = procfs.stat(message.pid)
            except OSError:
                first = None
            unwanted = [hold for n, hold in self._bound_to(message) if not self.wants_renewals(n)]
            self._runs[message.run] = _Watched(message, first.start if first is not None else 0)
            for hold in unwanted:
                hold.renew_now()  # nothing was renewed for a while
        elif isinstance(message, Ended):
            ended = self._runs.pop(message.run, None)
            for _, hold in self._bound_to(ended.running) if ended is not None else ():
                hold.idle_since = clock.now()
        if not isinstance(message, Renewed):
            deliver(message)

    def _bound_to(self, running: Running) -> list[tuple[int, _Hold]]:
        return [(number, hold) for number in running.holds if (hold := self._holds.get(number)) is not None]

    def _last_moment(self, run: _Watched) -> float | None:
        """When nothing of a run may live any more; None: it holds nothing."""
        kill_after_s = run.running.kill_after_s
        moments = [] if run.lost_at is None else [run.lost_at + kill_after_s]
        for number in run.running.holds:
            hold = self._holds.get(number)
            if hold is None:
                return 0.0  # of a hold that was given back: a defect, and this the safe side
            moments.append(hold.rule.sigkill_at(hold.deadline))
            if hold.lost_at is not None:
                moments.append(hold.lost_at + kill_after_s)
        return min(moments, default=None)

    def _next_moment(self) -> float | None:
        moments = (run.again_at or self._last_moment(run) for run in self._runs.values())
        return min((moment for moment in moments if moment is not None), default=None)

    def _enforce(self) -> None:
        """Kill trees that outlived their last moment, again and again: the supervisor may be stopped for hours."""
        now = clock.now()
        moments = [(run, run.again_at or self._last_moment(run)) for run in self._runs.values()]
        due = [run for run, at in moments if at is not None and now >= at]
        if not due:
            return
        for run, alive in zip(due, self._kill_trees(due), strict=True):
            run.seen_empty = not alive
            run.again_at = now + run.again_s
            run.again_s = min(2 * run.again_s, _AGAIN_MOST_S)

    def _kill_trees(self, runs: Iterable[_Watched]) -> list[list[Stat]]:
        targets = [Target(run.running.pid, run.running.run_id, run.since) for run in runs]
        try:
            return self._kill(targets)
        except OSError:
            # we cannot look now: what we cannot see is not dead
            return [[Stat(one.pid, "?", 0, one.pid, 1, one.since)] for one in targets]

    def _end_trees(self) -> None:
        """The supervisor is dead: kill until two looks find nothing alive."""
        empty_looks, again_s = 0, _AGAIN_S
        while self._runs and empty_looks < 2:
            alive = [entry for found in self._kill_trees(self._runs.values()) for entry in found]
            empty_looks = 0 if alive else empty_looks + 1
            procfs.wait_for_ends(alive, again_s)
            again_s = min(2 * again_s, _AGAIN_MOST_S)
        self._runs.clear()
