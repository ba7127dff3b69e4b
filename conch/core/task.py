"""A run of conchd: its attempts one after the other, from the order to start it until its end is recorded."""

from conch.core.attempt import Attempt, AttemptOver, AttemptPorts
from conch.core.deadline import Bounds, Hold
from conch.core.messages import Finished, Message, Start
from conch.core.states import AttemptState, End, ProcessTree
from conch.enums import Enum
from conch.errors import checked
from conch.log import Field, Log
from conch.record import replace
from conch.static_typing import Callable, Protocol, Sequence


class TaskState(Enum):
    """Where a run is."""

    WAITING = "waiting"  # to start, or for its holds to leave time for a start
    RUNNING = "running"
    CONCLUDING = "concluding"  # it is to end, but had ended by itself: only what it left running is being ended
    ENDING = "ending"  # it is being ended, for good
    PAUSED = "paused"  # until its next attempt
    FINISHED = "finished"  # its end is not recorded yet


TASK_NEXT: dict[TaskState, frozenset[TaskState]] = {
    TaskState.WAITING: frozenset({TaskState.RUNNING, TaskState.PAUSED, TaskState.FINISHED}),
    TaskState.RUNNING: frozenset(TaskState) - {TaskState.RUNNING},
    TaskState.CONCLUDING: frozenset({TaskState.CONCLUDING, TaskState.ENDING, TaskState.FINISHED}),
    TaskState.ENDING: frozenset({TaskState.FINISHED}),
    TaskState.PAUSED: frozenset({TaskState.WAITING, TaskState.FINISHED}),
    TaskState.FINISHED: frozenset(),
}


class TaskPorts(Protocol):
    """What a run acts through; `conch.core.daemon_loop.DaemonLoop` is the real one."""

    def wall(self) -> float: ...  # seconds since the epoch, for display
    def start_tree(self, order: Start, attempt: int, start_by: float | None) -> ProcessTree: ...  # or OSError
    def open_gate(self, tree: ProcessTree) -> None: ...
    def reap(self, tree: ProcessTree) -> End: ...
    def take_output(self, run: str) -> str: ...  # the end of what it printed; once


class Task:
    """Starts, limits, repeats and ends one run: at most one attempt at a time, `finished` once it is over."""

    def __init__(
        self,
        order: Start,
        holds: Sequence[Hold | None],
        ports: TaskPorts,
        send: Callable[[Message], None],
        now: Callable[[], float],
        may_retry: Callable[[], bool],
        log: Log,
    ) -> None:
        """`holds` are those of the order, None for an unknown one; `may_retry` says whether conchd still retries."""
        self.order = order
        self._about: dict[str, Field] = {"job": order.job, "tick": order.tick}
        self.state = TaskState.WAITING
        self.attempt: Attempt | None = None
        self.finished: Finished | None = None
        self._ports = ports
        self._send = send
        self._now = now
        self._may_retry = may_retry
        self._log = log
        known = [hold for hold in holds if hold is not None]
        self._unknown_hold = len(known) < len(holds)
        self._bounds = Bounds(known, order.kill_after_s)
        self._attempts = 0  # that ran, or run
        self._retry_at: float | None = None
        self.limit_at: float | None = None  # when the time of this attempt is over
        self._timed_out = False
        self._end_reason: str | None = None
        self._last_result: tuple[str, int | None, str] = ("unstarted", None, "")
        self._began_at = 0.0  # this attempt
        self._first_began_at: float | None = None
        self._started_wall = 0.0
        self._duration_s = 0.0
        self._cpu_s = 0.0  # of all attempts
        self._max_rss_kb: int | None = None

    @property
    def running(self) -> bool:
        """Whether it has processes."""
        return self.attempt is not None and self.attempt.started

    @property
    def lost_from(self) -> float | None:
        """When what it holds must be taken for lost unless it is renewed; None if it holds nothing, or no more."""
        if self.state is TaskState.FINISHED:
            return None
        if self.attempt is not None and self.attempt.started:
            return self.attempt.lost_from
        return self._bounds.sigterm_at

    @property
    def wake_at(self) -> float | None:
        """The next time at which `lost_from` has passed or `on_time` has something to do."""
        if self.state is TaskState.FINISHED:
            return None
        attempt_at = self.attempt.wake_at if self.attempt is not None else None
        times = (self._retry_at, self.limit_at, attempt_at, self.lost_from)
        return min((at for at in times if at is not None), default=None)

    def start(self) -> None:
        """Start the next attempt once its holds leave enough time for it."""
        if self._unknown_hold or self._bounds.lost:
            self._finish(self._unfinished, None, "the hold was lost before the start")
            return
        order, number = self.order, self._attempts + 1
        self._timed_out = False
        self.attempt = Attempt(
            AttemptPorts(
                start=lambda start_by: self._start_tree(number, start_by),
                open_gate=self._ports.open_gate,
                reap=self._ports.reap,
                send=self._send,
                now=self._now,
            ),
            self._log,
            self._bounds,
            what="it",
            about={**self._about, "attempt": number},
            run=order.run,
            hook=order.hook or None,
            start_by=order.start_by if number == 1 else None,
        )
        self.attempt.try_start()
        self._follow_attempt()

    def _start_tree(self, number: int, start_by: float | None) -> ProcessTree:
        self._attempts = number
        wall, self._began_at = self._ports.wall(), self._now()
        if self._first_began_at is None:
            self._started_wall, self._first_began_at = wall, self._began_at
        return self._ports.start_tree(self.order, number, start_by)

    def announce(self) -> None:
        """Tell a new keeper of what runs."""
        if self.attempt is not None:
            self.attempt.announce()

    def advance(self) -> None:
        """Some process of it may have ended, or some time has passed."""
        if self.attempt is not None:
            self.attempt.advance()
            self._follow_attempt()

    def on_time(self, now: float) -> None:
        """Do what is due."""
        if self.limit_at is not None and now >= self.limit_at and self.attempt is not None:
            self.limit_at = None
            self._timed_out = self.attempt.main_alive()
            self.attempt.terminate("run-ttl")
        if self._retry_at is not None and now >= self._retry_at:
            self._retry_at = None
            self._enter(TaskState.WAITING)
            self.start()
        elif self.attempt is not None and self.attempt.wake_at is not None and now >= self.attempt.wake_at:
            self.advance()

    # -- ending -------------------------------------------------------------------------------------------

    def end(self, reason: str) -> None:
        """End the run for good, whether it runs or waits for its next attempt."""
        if self.state in (TaskState.ENDING, TaskState.FINISHED):
            return
        if self.attempt is None or not self.attempt.started:
            self._finish(self._unfinished, self._last_result[1], reason)
            return
        self._end_reason = reason
        if self.attempt.lost is None and not self.attempt.killed_or_alive():
            self._enter(TaskState.CONCLUDING)
            return
        self._enter(TaskState.ENDING)
        if self.attempt.lost is None:
            self.attempt.terminate(reason)

    def end_waiting(self, reason: str) -> None:
        """End the run unless it has processes."""
        if not self.running:
            self.end(reason)

    def lose(self, reason: str) -> None:
        """A hold of it is lost."""
        if self.state is TaskState.FINISHED or (self.attempt is not None and self.attempt.lost is not None):
            return
        self._log("error", "lost", **self._about, reason=reason)
        if self.attempt is not None and self.attempt.started:
            self.attempt.lose(reason)
        self.end(f"the hold was lost: {reason}")

    def kill(self, cause: str) -> None:
        """SIGKILL what runs."""
        if self.attempt is not None and self.attempt.started:
            self.attempt.kill(cause)

    def finish_unstarted(self, reason: str) -> None:
        """Report that the run was not started."""
        self._finish("unstarted", None, reason)

    def _follow_attempt(self) -> None:
        """Enter the state that the attempt has reached."""
        attempt = self.attempt
        if attempt is None or attempt.state is AttemptState.WAITING:
            return
        if self.state is TaskState.WAITING and attempt.started:
            self._enter(TaskState.RUNNING)
            self.limit_at = self._began_at + (self.order.first_limit_s if self._attempts == 1 else self.order.limit_s)
        if attempt.over is not None:
            self.attempt = self.limit_at = None
            used = attempt.clear_away()  # first: it is part of the result
            self._cpu_s = round(self._cpu_s + used.cpu_s, 3)
            if used.max_rss_kb is not None:
                self._max_rss_kb = max(used.max_rss_kb, self._max_rss_kb or 0)
            self._on_attempt_over(attempt.over)

    def _on_attempt_over(self, over: AttemptOver) -> None:
        if over.late and not over.started:
            self._finish("unstarted", None, "too late to start")
        elif over.late:
            self._attempts -= 1  # the command did not run
            if self._end_reason is None:
                self._enter(TaskState.WAITING)
                self.start()  # decides anew what there is time for
            else:
                self._finish(self._unfinished, self._last_result[1], self._end_reason)
        else:
            self._on_result(over.code, over.error or "")

    def _on_result(self, code: int, error: str) -> None:
        """An attempt ran, or could not be started: end with it, or repeat it."""
        order, now = self.order, self._now()
        self._duration_s = now - (self._began_at if self._first_began_at is None else self._first_began_at)
        if self.state is TaskState.ENDING:
            self._finish("killed", code, self._end_reason or "")
            return
        outcome = "timeout" if self._timed_out else "ended"
        reason = f"it took longer than {order.limit_s:g} s" if self._timed_out else error
        self._last_result = (outcome, code, reason)
        failed = self._timed_out or code != 0
        may_retry = self._attempts <= order.retries and self.state is not TaskState.CONCLUDING and self._may_retry()
        if failed and may_retry:
            about = {**self._about, "attempt": self._attempts, "exit": code}
            self._log("info", "retry", **about, delay_s=order.retry_delay_s)
            self._enter(TaskState.PAUSED)
            self._retry_at = now + order.retry_delay_s
        else:
            self._finish(*self._last_result)

    @property
    def _unfinished(self) -> str:
        """The outcome of a run that is ended between two attempts, or before the first."""
        return "killed" if self._attempts else "unstarted"

    def _finish(self, outcome: str, code: int | None, reason: str) -> None:
        self._enter(TaskState.FINISHED)
        self.attempt = self._retry_at = self.limit_at = None
        duration_s = round(self._duration_s, 3)
        used = self._cpu_s, self._max_rss_kb
        end = Finished(self.order.run, outcome, code, self._attempts, self._started_wall, duration_s, reason, *used)
        output = self._ports.take_output(self.order.run)
        is_kept = self.order.keep_output == "always" or (self.order.keep_output == "failed" and end.state != "ok")
        self.finished = replace(end, output=output) if is_kept and output else end
        self._log_end(self.finished)
        self._send(self.finished)

    def _log_end(self, end: Finished) -> None:
        about = {**self._about, "state": end.state, "exit": end.code, "reason": end.reason or None}
        if self.order.hook:
            failed = end.state != "ok"
            about["hook"] = self.order.hook
            self._log("warning" if failed else "info", "hook-failed" if failed else "hook-end", **about)
        else:
            times = {"attempt": end.attempt, "duration_s": end.duration_s}
            self._log("info", "run-end", **about, **times, cpu_s=end.cpu_s, max_rss_kb=end.max_rss_kb)

    def _enter(self, state: TaskState) -> None:
        self.state = checked(TASK_NEXT, self.state, state)
