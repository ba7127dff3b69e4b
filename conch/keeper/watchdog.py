"""The keeper's first thread: it owns the channel and enforces the deadline, whatever etcd or the supervisor do.

It never calls etcd, never logs and never blocks. At `deadline - margin`, or `--kill-after` after a loss, it kills the
tree unless it was told that the tree is empty. When the channel closes, the supervisor is dead: it kills the tree
immediately, and returns, for the lease to be released, only when the tree was seen empty.
"""

import os
import select

from conch.core import clock, procfs
from conch.core.cgroup import Cgroup
from conch.core.channel import Channel
from conch.core.deadline import DeadlineRule
from conch.core.messages import Drain, Ended, Kill, Lost, Message, Renewed, Running
from conch.core.procfs import Stat, Target
from conch.static_typing import Callable, Iterable, Sequence

_KILL_PAUSE_S, _KILL_PAUSE_MOST_S = 0.02, 1.0
_OVERDUE = 0.0  # of CLOCK_BOOTTIME

KillTrees = Callable[[Sequence[Target]], list[list[Stat]]]


class NotReady(OSError):
    """The system refused what the watchdog needs. The supervisor was told of no hold, and runs nothing."""


class _Hold:
    """A hold as etcd last confirmed it, for run `run` or ("") for any.

    `deadline` and `lost_at` are written by the thread of the session or acquirer; `idle_since` by the watchdog's.
    """

    def __init__(self, rule: DeadlineRule, run: str, deadline: float, renew_now: Callable[[], None]) -> None:
        self.rule = rule
        self.run = run
        self.deadline = deadline
        self.renew_now = renew_now
        self.idle_since = clock.now()
        self.lost_at: float | None = None


class _Run:
    """A run that the supervisor has started: its processes must not outlive its holds.

    `since` is when its first process started, in the kernel's ticks. Once it was killed, `kill_at` is when it is
    killed again.
    """

    def __init__(self, running: Running, since: int) -> None:
        self.running = running
        self.since = since
        self.seen_empty = False  # by the last kill
        self.ended_at: float | None = None  # when its end was ordered
        self.kill_at: float | None = None
        self.kill_pause_s = _KILL_PAUSE_S


class Watchdog:
    """Keeps its state in one thread; others reach it through a queue and an eventfd, which wakes it."""

    def __init__(self, channel: Channel, kill: KillTrees = procfs.kill_from_outside) -> None:
        self._channel = channel
        self._kill = kill
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._outbox: list[Message] = []
        self._is_called = False  # the thread will look into the outbox
        self._runs: dict[str, _Run] = {}
        self._first_kill_at: float | None = None  # of all runs, or earlier: a renewal makes it later
        self._may_be_earlier = False  # something has changed since that was found; others set it, after the change
        self._holds: dict[int, _Hold] = {}
        self._last_message: Message | None = None  # to be sent before the process ends

    # -- called from any thread ---------------------------------------------------------------------------

    def send(self, message: Message) -> None:
        """Have the watchdog's thread send this to the supervisor; does not wait."""
        self._outbox.append(message)
        if not self._is_called:
            self._is_called = True
            os.eventfd_write(self._wake, 1)

    def quit(self, last: Message) -> None:
        """Have this sent last and the process ended: a thread that is needed has died."""
        self._last_message = last
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
        """Enforce hold `number` with this deadline from now on; `renew_now` is called to have it renewed earlier."""
        self._holds[number] = _Hold(rule, run, deadline, renew_now)
        self._may_be_earlier = True

    def drop_hold(self, number: int) -> None:
        """Drop a hold that is about to be released: nothing runs under it, and a run that did would be killed."""
        self._holds.pop(number, None)
        self._may_be_earlier = True

    def renewed(self, number: int, deadline: float) -> None:
        """Note a confirmed deadline. Wakes nobody: both processes read it when the one that they know comes near."""
        hold = self._holds.get(number)
        if hold is not None:
            hold.deadline = deadline
            self._channel.send(Renewed(number, deadline))

    def wants_renewals(self, number: int) -> bool:
        """Return whether to renew hold `number`: it is queued for, or something runs under it or soon will.

        A supervisor that was stopped just before it started its command, or whose command had to be killed here, must
        not keep the hold for nothing. The lease is not revoked for that but left to expire: if the supervisor wakes in
        time, it goes on under the same hold.
        """
        hold = self._holds.get(number)
        if hold is None:
            return True
        run = self._runs.get(hold.run)
        if run is not None:
            return number in run.running.holds and not run.seen_empty  # a hook after a loss has none
        return clock.now() < hold.idle_since + hold.rule.ttl_s - hold.rule.margin_s - hold.rule.grace_s

    def lost(self, number: int, reason: str) -> None:
        """Report that the hold is gone for certain; what runs under it is killed after `--kill-after`."""
        hold = self._holds.get(number)
        if hold is not None and hold.lost_at is None:
            hold.lost_at = clock.now()
            self._may_be_earlier = True
            self.send(Lost(number, reason))

    def end(self, run: str, reason: str) -> None:
        """Order the supervisor to end a run, and kill it after `--kill-after` if that does not happen."""
        known = self._runs.get(run)
        if known is not None and known.ended_at is None:
            known.ended_at = clock.now()
            self._may_be_earlier = True
        self.send(Kill(run, reason))

    # -- the thread ---------------------------------------------------------------------------------------

    def run(self, deliver: Callable[[Message], None]) -> None:
        """Pass messages on to `deliver` until the channel closes and the trees are empty. Raises `NotReady`."""
        self._receive(deliver)
        from conch.core import linux  # late: a message that has arrived already is served meanwhile

        try:
            timer = linux.Timer()
        except OSError as error:
            raise NotReady(error.errno, error.strerror) from None
        linux.give_memory_back()
        poller = select.poll()
        poller.register(self._wake, select.POLLIN)
        poller.register(timer.fileno(), select.POLLIN)
        while not self._channel.closed:
            timer.arm(self._next_kill_at())
            poller.register(self._channel, select.POLLIN | (select.POLLOUT if self._channel.pending else 0))
            ready = {fd for fd, _ in poller.poll()}
            if timer.fileno() in ready:
                timer.clear()
            if self._wake in ready:
                os.eventfd_read(self._wake)
            self._is_called = False  # from here on a message that is added wakes us, or is seen below
            self._channel.send(*self._taken_from_outbox())
            if self._last_message is not None:
                self._channel.send(self._last_message)
                os._exit(1)
            self._channel.flush()
            self._receive(deliver)
            self._enforce()
        deliver(Drain())  # claim no more: nobody is left to run it
        self._end_trees()

    def _taken_from_outbox(self) -> list[Message]:
        messages = self._outbox[:]
        del self._outbox[: len(messages)]  # others add to it meanwhile
        return messages

    def _receive(self, deliver: Callable[[Message], None]) -> None:
        for message in self._channel.drain():
            self._on_message(message, deliver)

    def _on_message(self, message: Message, deliver: Callable[[Message], None]) -> None:
        if isinstance(message, Running):
            try:
                first = procfs.stat(message.pid)
            except OSError:
                first = None
            not_renewed = [hold for n, hold in self._holds_of(message) if not self.wants_renewals(n)]
            self._runs[message.run] = _Run(message, first.start if first is not None else 0)
            times = (self._first_kill_at, self._kill_at(self._runs[message.run]))
            self._first_kill_at = min((at for at in times if at is not None), default=None)
            for hold in not_renewed:
                hold.renew_now()
        elif isinstance(message, Ended):
            ended = self._runs.pop(message.run, None)
            for _, hold in self._holds_of(ended.running) if ended is not None else ():
                hold.idle_since = clock.now()
        if not isinstance(message, Renewed):
            deliver(message)

    def _holds_of(self, running: Running) -> list[tuple[int, _Hold]]:
        return [(number, hold) for number in running.holds if (hold := self._holds.get(number)) is not None]

    def _kill_at(self, run: _Run) -> float | None:
        """Return when to kill a run, or to kill it again; None: nothing limits it."""
        if run.kill_at is not None:
            return run.kill_at
        kill_after_s = run.running.kill_after_s
        limits = [] if run.ended_at is None else [run.ended_at + kill_after_s]
        for number in run.running.holds:
            hold = self._holds.get(number)
            if hold is None:
                return _OVERDUE  # it runs under a hold that was released: a defect; killing it is the safe side
            limits.append(hold.rule.sigkill_at(hold.deadline))
            if hold.lost_at is not None:
                limits.append(hold.lost_at + kill_after_s)
        return min(limits, default=None)

    def _next_kill_at(self) -> float | None:
        """Return when to kill the first run, or an earlier time; with many runs, not all are asked each time."""
        if self._may_be_earlier:
            self._may_be_earlier = False
            times = (self._kill_at(run) for run in self._runs.values())
            self._first_kill_at = min((at for at in times if at is not None), default=None)
        return self._first_kill_at

    def _enforce(self) -> None:
        """Kill each tree whose time is up, and go on killing it: the supervisor may be stopped for hours."""
        now, first_at = clock.now(), self._next_kill_at()
        if first_at is None or now < first_at:
            return
        self._may_be_earlier = True  # the next one is to be found
        times = [(run, self._kill_at(run)) for run in self._runs.values()]
        due = [run for run, at in times if at is not None and now >= at]
        if not due:
            return
        for run, alive in zip(due, self._kill_trees(due), strict=True):
            run.seen_empty = not alive
            run.kill_at = now + run.kill_pause_s
            run.kill_pause_s = min(2 * run.kill_pause_s, _KILL_PAUSE_MOST_S)

    def _kill_trees(self, runs: Iterable[_Run]) -> list[list[Stat]]:
        targets = [Target(run.running.pid, run.running.run_id, run.since, run.running.cgroup) for run in runs]
        try:
            return self._kill(targets)
        except OSError:
            return [[procfs.unseen(target.pid, target.since)] for target in targets]  # /proc cannot be read now

    def _end_trees(self) -> None:
        """The supervisor is dead: kill until two scans in a row find nothing alive."""
        empty_scans, pause_s = 0, _KILL_PAUSE_S
        while self._runs and empty_scans < 2:
            alive = [entry for tree in self._kill_trees(self._runs.values()) for entry in tree]
            empty_scans = 0 if alive else empty_scans + 1
            procfs.wait_for_ends(alive, pause_s)
            pause_s = min(2 * pause_s, _KILL_PAUSE_MOST_S)
        for run in self._runs.values():
            if run.running.cgroup:
                Cgroup(run.running.cgroup).remove()
        self._runs.clear()
