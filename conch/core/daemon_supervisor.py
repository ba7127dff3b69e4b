"""Many runs under supervision: what to do at each message, signal, moment and end of a process.

The decisions of conchd's supervisor, as `conch.core.supervisor` has those of a wrapper; the same `Run` ends the trees,
and the same rule of the deadline binds what runs under a hold. Nothing here touches the system: `PoolPorts` does.
"""

import signal
from dataclasses import dataclass

from conch.core.attempt import Phase, Run, Tree
from conch.core.deadline import DeadlineRule
from conch.core.messages import (
    Begin,
    Begun,
    Drain,
    Ended,
    Failed,
    Finished,
    Held,
    Kill,
    Lost,
    Message,
    Note,
    Recorded,
    Release,
    Released,
    Reload,
    Renewed,
    Running,
    Start,
)
from conch.core.states import ENDING, SAME_REQUEST_S, End, next_backoff
from conch.errors import EXIT_DEFECT, EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, EXIT_SIGNAL, EXIT_UNAVAILABLE
from conch.log import Log
from conch.static_typing import Protocol

_KEEPER_DIED = "the process that talks to etcd died"
_STOPPING = "conchd is stopping"
# Between one keeper that died and the next.
_AGAIN_S, _AGAIN_MOST_S = 0.1, 30.0
# A keeper that lived this long does not count as one that dies again and again.
_STABLE_S = 60.0


class DaemonPorts(Protocol):
    """What the decisions act through; `conch.core.daemon_loop` is the real one."""

    def now(self) -> float: ...
    def wall(self) -> float: ...
    def jitter(self, low: float, high: float) -> float: ...
    def start_keeper(self) -> None: ...  # or OSError
    def drop_keeper(self) -> bool: ...  # SIGKILL and reap; whether it had ended of a defect
    def send(self, message: Message) -> None: ...
    def start_tree(self, order: Start, attempt: int, start_by: float | None) -> Tree: ...  # or OSError
    def open_gate(self, tree: Tree) -> None: ...
    def reap(self, tree: Tree) -> End: ...


@dataclass(slots=True)
class _Hold:
    ttl_s: float
    deadline: float
    lease: int
    lost: str | None = None


class Task:
    """A run from its order until its end is recorded: at most one attempt at a time."""

    def __init__(self, order: Start) -> None:
        self.order = order
        self.attempt = 0
        self.run: Run | None = None
        self.next_at: float | None = None  # the next attempt, or look whether there is time for it
        self.end_at: float | None = None  # the end of this attempt's time
        self.began_at = 0.0
        self.started = 0.0
        self.duration_s = 0.0
        self.timed_out = False
        self.killed: str | None = None
        self.last_attempt = False
        self.lost = False
        self.last: tuple[str, int | None, str] = ("unstarted", None, "")
        self.finished: Finished | None = None


class DaemonSupervisor:
    """Starts, limits, repeats and ends runs; with the keeper's death those that hold something. `code` is the end's."""

    def __init__(self, ports: DaemonPorts, log: Log, *, drain_s: float, release_s: float) -> None:
        self._ports = ports
        self._log = log
        self._drain_s = drain_s
        self._release_s = release_s
        self.tasks: dict[str, Task] = {}
        self._holds: dict[int, _Hold] = {}
        self._leases: list[int] = []  # of what was held before, until something is again
        self._keeper = False
        self._keeper_at: float | None = None
        self._keeper_since = 0.0
        self._defects = 0  # keepers in a row that ended of one
        self._again_s = _AGAIN_S
        self._begun = False
        self._signals = 0
        self._signalled_at = 0.0
        self.ended_by: int | None = None  # the signal that `code` stands for
        self._drain_at: float | None = None
        self._drained = False
        self._release_by: float | None = None
        self._releasing = False
        self.code = 0
        self.done = False

    # -- what the loop calls ------------------------------------------------------------------------------

    def begin(self) -> None:
        """Start the keeper."""
        self._start_keeper()

    @property
    def wake_at(self) -> float | None:
        """The next moment (CLOCK_BOOTTIME) at which `on_time` has something to do."""
        moments = [
            None if self._bound() else self._keeper_at,
            self._release_by,
            None if self._drained else self._drain_at,
        ]
        for task in self.tasks.values():
            if task.finished is None:
                moments += [task.next_at, task.end_at, task.run.wake_at if task.run else None]
                moments.append(self._lost_from(task))
        return min((moment for moment in moments if moment is not None), default=None)

    @property
    def holds(self) -> set[int]:
        """The holds whose deadlines are to be heard of."""
        return set(self._holds)

    def on_message(self, message: Message) -> None:
        """Something arrived from the keeper."""
        match message:
            case Begun():
                self._begun = True
            case Held():
                self._leases.clear()
                self._holds[message.number] = _Hold(message.ttl_s, message.deadline, message.lease)
            case Renewed(number, deadline) if number in self._holds:
                self._holds[number].deadline = max(self._holds[number].deadline, deadline)
            case Lost(number, reason) if number in self._holds:
                self._leases.append(self._holds[number].lease)
                self._lose(number, reason)
            case Start() if message.run not in self.tasks:
                self._take(message)
            case Kill(run, reason) if run in self.tasks:
                self._kill(self.tasks[run], reason)
            case Recorded(run) if run in self.tasks and self.tasks[run].finished is not None:
                del self.tasks[run]
                self._forget_holds()
            case Failed(code, text) if not self._begun:
                self._fail(code, text)
            case Failed(_, text):
                # another keeper may do better; what runs must not lose its supervisor for it
                self._log("error", "keeper-failed", msg=text)
                self.on_keeper_death()
            case Released(reason) if not self.tasks:
                if reason:
                    self._log("warning", "released", reason=reason)
                self.done = True
            case Note(level, event, text):
                self._log(level, event, **text)
            case _:
                pass  # an answer to what is over by now
        self._end_if_idle()

    def on_keeper_death(self) -> None:
        """It is replaced, once nothing runs any more under what it held; what holds nothing runs on.

        The first is not, unless it got as far as to begin: why it cannot be would not change.
        """
        self._keeper = False
        self._defects = self._defects + 1 if self._ports.drop_keeper() else 0
        if self.done:
            return
        if not self._begun:
            self._fail(EXIT_DEFECT if self._defects else EXIT_UNAVAILABLE, f"{_KEEPER_DIED} at its start")
            return
        self._log("warning", "keeper-died")
        now = self._ports.now()
        if now - self._keeper_since >= _STABLE_S:
            self._again_s = _AGAIN_S
        self._again_s = next_backoff(self._again_s, _AGAIN_S, _AGAIN_MOST_S, self._ports.jitter)
        self._leases += [hold.lease for hold in self._holds.values()]
        for number in list(self._holds):
            self._lose(number, _KEEPER_DIED)
        if self._release_by is not None and not any(task.finished for task in self.tasks.values()):
            self.code = self.code or (EXIT_DEFECT if self._defects else 0)
            self.done = True  # all is recorded; leases expire by themselves
        else:
            self._release_by = None if self._releasing else self._release_by
            self._releasing = False
            self._keeper_at = now + self._again_s

    def on_signal(self, number: int) -> None:
        """SIGTERM, SIGINT, SIGQUIT: drain; the second ends the waiting, the third kills. SIGHUP: read anew.

        Each of those that end counts from a second after the one before.
        """
        if number == signal.SIGHUP:
            self._send(Reload())  # a keeper that is only to be started reads everything anew in any case
        if self.done or number not in ENDING:
            return
        now = self._ports.now()
        if self._signals and now - self._signalled_at < SAME_REQUEST_S:
            return
        self._signals += 1
        self._signalled_at = now
        self._log("info", "signal", signal=signal.Signals(number).name)
        if not self._begun and not self.tasks:
            self.code, self.ended_by = EXIT_SIGNAL + number, number
        elif self._signals == 1:
            self._drain_at = now + self._drain_s
            self._log("info", "draining", runs=len(self._live()), wait_s=self._drain_s)
            self._send(Drain())
            for task in self._live():
                if task.run is None:
                    self._kill(task, _STOPPING)
        elif self._signals == 2:
            self._end_drain()
        else:
            for task in self._live():
                if task.run is not None:
                    task.run.kill(now, "third signal")
        self._end_if_idle()

    def on_change(self, ended: set[str]) -> None:
        """Of these runs the main process has ended, or something in their trees."""
        for run in ended:
            task = self.tasks.get(run)
            if task is not None and task.run is not None:
                self._advance(task)
        self._end_if_idle()

    def on_time(self) -> None:
        """Time has passed; deadlines are judged first."""
        now = self._ports.now()
        for task in self._live():
            lost_from = self._lost_from(task)
            if lost_from is not None and now >= lost_from:
                self._lose_task(task, "not renewed in time")
        for task in self._live():
            if task.end_at is not None and now >= task.end_at and task.run is not None:
                task.end_at, task.timed_out = None, task.run.tree.exit_code() is None
                task.run.terminate(now, "run-ttl")
            if task.run is not None and task.run.wake_at is not None and now >= task.run.wake_at:
                self._advance(task)
            if task.next_at is not None and now >= task.next_at:
                task.next_at = None
                self._start(task)
        if self._keeper_at is not None and now >= self._keeper_at and not self._bound():
            self._keeper_at = None
            self._start_keeper()
        if self._drain_at is not None and now >= self._drain_at and not self._drained:
            self._end_drain()
        if self._release_by is not None and now >= self._release_by:
            if self.tasks:
                self._log.plain(f"the ends of {len(self.tasks)} runs could not be recorded")
                self.code = EXIT_UNAVAILABLE
            self._give_up()
        self._end_if_idle()

    # -- the keeper ---------------------------------------------------------------------------------------

    def _start_keeper(self) -> None:
        try:
            self._ports.start_keeper()
        except OSError as error:
            text = f"cannot start the process that talks to etcd: {error.strerror or error}"
            if not self._begun:
                self._fail(EXIT_UNAVAILABLE, text)
                return
            self._log("error", "keeper-failed", msg=text)
            self._keeper_at = self._ports.now() + _AGAIN_MOST_S
            return
        self._keeper = True
        self._keeper_since = self._ports.now()
        self._holds.clear()
        ended = [task for task in self.tasks.values() if task.finished is not None]
        live = [task.order.run for task in self._live()]
        self._send(Begin(live, [t.order.run for t in ended], not self._begun, list(self._leases)))
        for task in self._live():
            if task.run is not None:
                self._tell_running(task)
        for task in ended:
            self._send(task.finished)
        if self._signals:
            self._send(Drain())

    def _send(self, message: Message | None) -> None:
        if self._keeper and message is not None:
            self._ports.send(message)

    def _fail(self, code: int, text: str) -> None:
        """It never began: say why, and end."""
        self._log.plain(text)
        self.code = code
        self._give_up()

    def _give_up(self) -> None:
        """End without the keeper."""
        self._keeper = False
        self._ports.drop_keeper()
        self.done = True

    def _end_if_idle(self) -> None:
        """After a drain: when all is recorded have everything given back, and end."""
        if not self._signals or self.done or (self._release_by is not None and (self.tasks or self._releasing)):
            return
        if not self._begun and not self.tasks:
            self._give_up()
        elif not self.tasks and self._keeper:
            self._releasing = True
            self._release_by = self._ports.now() + self._release_s
            self._send(Release())
        elif not self._keeper and not self.tasks:
            self._give_up()
        elif not self._keeper and not self._live() and self._signals > 1:
            self._log.plain(f"the ends of {len(self.tasks)} runs could not be recorded: {_KEEPER_DIED}")
            self.code = EXIT_DEFECT if self._defects else EXIT_UNAVAILABLE
            self._give_up()
        elif not self._live() and self._drained:
            # only the recording of ends is waited for, and not for ever
            self._release_by = self._ports.now() + self._release_s

    # -- holds --------------------------------------------------------------------------------------------

    def _live(self) -> list[Task]:
        return [task for task in self.tasks.values() if task.finished is None]

    def _bound(self) -> bool:
        return any(task.order.holds for task in self._live())

    def _terms(self, task: Task) -> list[tuple[DeadlineRule, _Hold]]:
        return [
            (DeadlineRule(h.ttl_s, task.order.kill_after_s), h) for n in task.order.holds if (h := self._holds.get(n))
        ]

    def _lost_from(self, task: Task) -> float | None:
        """When what a run holds must be taken for lost, in time to end it; None: it holds nothing, or no more."""
        if task.lost:
            return None
        return min((terms.sigterm_at(hold.deadline) for terms, hold in self._terms(task)), default=None)

    def _kill_by(self, task: Task) -> float | None:
        return min((terms.sigkill_at(hold.deadline) for terms, hold in self._terms(task)), default=None)

    def _lose(self, number: int, reason: str) -> None:
        hold = self._holds.get(number)
        if hold is None:
            return  # forgotten with the last run that needed it
        hold.lost = reason
        for task in self._live():
            if number in task.order.holds:
                self._lose_task(task, reason)
        self._forget_holds()

    def _lose_task(self, task: Task, reason: str) -> None:
        if task.lost:
            return
        task.lost = True
        self._log("error", "lost", run=task.order.label, reason=reason)
        if task.run is not None:
            task.run.terminate(self._ports.now(), "lost", kill_by=self._kill_by(task))
        self._kill(task, f"the hold was lost: {reason}")

    def _forget_holds(self) -> None:
        needed = {number for task in self._live() for number in task.order.holds}
        self._holds = {n: hold for n, hold in self._holds.items() if hold.lost is None or n in needed}

    # -- runs ---------------------------------------------------------------------------------------------

    def _take(self, order: Start) -> None:
        task = self.tasks[order.run] = Task(order)
        if self._signals:
            self._finish(task, "unstarted", None, _STOPPING)
        else:
            self._start(task)

    def _start(self, task: Task) -> None:
        """Start the next attempt, once there is time enough left for it under its holds."""
        now, order = self._ports.now(), task.order
        bound = self._terms(task)
        if len(bound) < len(order.holds) or any(hold.lost is not None for _, hold in bound):
            self._finish(task, "killed" if task.attempt else "unstarted", None, "the hold was lost before the start")
            return
        if task.attempt == 0 and now > order.start_by:
            self._finish(task, "unstarted", None, "too late to start")
            return
        if any(now >= terms.ready_by(hold.deadline) for terms, hold in bound):
            task.next_at = now + min(terms.ttl_s for terms, _ in bound) / 12  # a renewal may be on its way
            return
        moments = [terms.start_by(hold.deadline) for terms, hold in bound]
        if task.attempt == 0:
            moments.append(order.start_by)
        task.attempt += 1
        task.started, task.began_at, task.timed_out = self._ports.wall(), now, False
        try:
            tree = self._ports.start_tree(order, task.attempt, min(moments, default=None))
        except OSError as error:
            code = EXIT_NOT_FOUND if isinstance(error, FileNotFoundError) else EXIT_NOT_EXECUTABLE
            self._attempt_over(task, code, f"cannot start it: {error.strerror or error}")
            return
        task.run = Run(tree, order.kill_after_s, self._log, None, run=order.label, attempt=task.attempt)
        task.end_at = now + (order.first_limit_s if task.attempt == 1 else order.limit_s)
        self._tell_running(task)  # the keeper knows the tree before anything of it can run
        self._log("info", "child-start", run=order.label, attempt=task.attempt, pid=tree.pid)
        self._ports.open_gate(tree)

    def _tell_running(self, task: Task) -> None:
        if task.run is not None:
            order, tree = task.order, task.run.tree
            self._send(Running(tree.pid, tree.tree, order.holds, order.kill_after_s, order.run))

    def _kill(self, task: Task, reason: str) -> None:
        """End a run for good, whether it runs or waits for its next attempt."""
        if task.finished is not None or task.killed is not None:
            return
        task.last_attempt = True
        if task.run is not None and task.run.tree.exit_code() is not None and not task.lost:
            return  # it ended by itself; only what it left running is still being ended
        task.killed = reason
        if task.run is not None and not task.lost:
            task.run.terminate(self._ports.now(), reason)
        elif task.run is None:
            self._finish(task, "killed" if task.attempt else "unstarted", task.last[1], task.killed)

    def _end_drain(self) -> None:
        self._drained = True
        for task in self._live():
            self._kill(task, _STOPPING)

    def _advance(self, task: Task) -> None:
        run = task.run
        if run is None:
            return
        run.advance(self._ports.now())
        if run.phase is not Phase.GONE:
            return
        task.run = task.end_at = None
        self._send(Ended(task.order.run))  # before the reaping: the pid could be another's right after it
        end = self._ports.reap(run.tree)
        code = run.code if run.code is not None else EXIT_NOT_EXECUTABLE
        if end.late:
            task.attempt -= 1
            if task.killed is None:
                self._start(task)  # judges anew what there is time for
            else:
                self._finish(task, "killed" if task.attempt else "unstarted", task.last[1], task.killed)
            return
        self._attempt_over(task, code, end.error or "")

    def _attempt_over(self, task: Task, code: int, error: str) -> None:
        order, now = task.order, self._ports.now()
        task.end_at = None
        task.duration_s = now - task.began_at
        if task.killed is not None:
            self._finish(task, "killed", code, task.killed)
            return
        outcome = "timeout" if task.timed_out else "ended"
        reason = f"it took longer than {order.limit_s:g} s" if task.timed_out else error
        task.last = (outcome, code, reason)
        again = (task.timed_out or code != 0) and task.attempt <= order.retries
        if again and not self._signals and not task.last_attempt:
            self._log("info", "retry", run=order.label, attempt=task.attempt, code=code, delay_s=order.retry_delay_s)
            task.next_at = now + order.retry_delay_s
        else:
            self._finish(task, *task.last)

    def _finish(self, task: Task, outcome: str, code: int | None, reason: str) -> None:
        task.next_at = task.end_at = None
        task.finished = Finished(
            task.order.run, outcome, code, task.attempt, task.started, round(task.duration_s, 3), reason
        )
        self._log("info", "run-end", run=task.order.label, outcome=outcome, code=code, reason=reason or None)
        self._send(task.finished)
