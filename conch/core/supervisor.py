"""The wrapper's decisions: what to do at each message, signal, moment and end of a process.

Nothing here touches the system: `Ports` does, and a test drives the states with a table and a clock of its own.
"""

import signal

from conch.core.acquisition import Acquisition
from conch.core.attempt import Phase, Run
from conch.core.messages import Ended, Running
from conch.core.states import ENDING, PASSED_ON, SAME_REQUEST_S, End, IllegalTransition, Ports, RunOptions, State
from conch.errors import EXIT_LOST, EXIT_NOT_EXECUTABLE, EXIT_SIGNAL
from conch.log import Log


class Supervisor(Acquisition):
    """Holds, runs, terminates, releases. When the state is DONE, `code` is conch's exit code."""

    def __init__(self, options: RunOptions, ports: Ports, log: Log) -> None:
        super().__init__(options, ports, log)
        self.run: Run | None = None
        self._signals = 0
        self._signalled_at, self._signal = 0.0, 0
        self._hook_passed = False
        self._hook_late = False
        self._ended_by_loss = False
        self._child_started_at = 0.0

    # -- what the loop calls, besides the messages --------------------------------------------------------

    @property
    def wake_at(self) -> float | None:
        """The next moment (CLOCK_BOOTTIME) at which `on_time` has something to do."""
        moments = [self._timer, self.run.wake_at if self.run else None]
        if self._bound:
            moments.append(self._lost_from)
        return min((m for m in moments if m is not None), default=None)

    def on_signal(self, number: int) -> None:
        """A signal to conch itself."""
        if self.done:
            return
        if number in ENDING or (number == signal.SIGHUP and self.state is not State.RUNNING):
            self._on_ending_signal(number)
        elif self.state is State.RUNNING and self.run is not None and number in PASSED_ON:
            self._ending = self._ending or number == signal.SIGHUP
            self.run.tree.signal_group(number)

    def on_change(self) -> None:
        """A process may have ended."""
        if self.run is None:
            return
        self.run.advance(self._ports.now())
        if self.run.phase is Phase.GONE:
            self._on_run_gone(self.run)

    def on_time(self) -> None:
        """Time has passed; the deadline is judged first."""
        now = self._ports.now()
        if self._bound and now >= self._lost_from:
            self._lose("not renewed in time")
        self.on_change()
        if self._timer is not None and now >= self._timer:
            self._timer = None
            self._on_timer(now)

    def _on_timer(self, now: float) -> None:
        match self.state:
            case State.READY:
                self._start_next()
            case State.BACKOFF:
                self._acquire()
            case State.ACQUIRING:
                self._on_hung_keeper()
            case State.RELEASING:
                self._on_release_timer(now)
            case State.ON_ACQUIRE | State.ON_LOSE if self.run is not None:
                self._hook_late = True
                self.run.kill(now, "hook-timeout")
            case _:
                raise IllegalTransition(f"no timer is expected while {self.state.value}")

    # -- running ------------------------------------------------------------------------------------------

    def _reset_run(self) -> None:
        self._hook_passed = self._ended_by_loss = False

    def _start_next(self) -> None:
        """In READY: start the hook or the child, once there is time enough left for it."""
        now = self._ports.now()
        if now >= self._rule.ready_by(self._deadline):
            # Conch was stopped for long, or the last renewal is old by now: a newer one may be on its way.
            self._timer = now + self._rule.ttl_s / 12
        elif self._options.on_acquire is not None and not self._hook_passed:
            self._start(State.ON_ACQUIRE, self._options.on_acquire)
        else:
            self._child_started_at = now
            self._start(State.RUNNING, None)

    def _start(self, state: State, hook: str | None) -> None:
        hold = self._hold
        if hold is None:
            raise IllegalTransition(f"cannot start anything without a hold ({state.value})")
        self._enter(state)
        what = "child" if hook is None else f"{state.value} hook"
        bound = self._bound
        try:
            tree = self._ports.start_tree(hook, hold, self._rule.start_by(self._deadline) if bound else None)
        except OSError as error:
            self._on_run_over(EXIT_NOT_EXECUTABLE, End(error=f"cannot start the {what}: {error}"))
            return
        which = None if hook is None else state.value
        self.run = Run(tree, self._options.kill_after_s, self._log, which, **self._about())
        self._hook_late = False
        if hook is not None:
            self._timer = self._ports.now() + self._options.hook_timeout_s
        if self._keeper:
            # it knows the tree before anything of it can run
            holds = [self._number] if bound else []
            self._ports.send(Running(tree.pid, tree.tree, holds, self._options.kill_after_s))
        self._log("info", "child-start" if hook is None else "hook-start", **self._about(), hook=which, pid=tree.pid)
        self._ports.open_gate(tree)

    def _on_run_gone(self, run: Run) -> None:
        self.run = None
        if self._keeper:
            # before the reaping: the pid could be another's right after it
            self._ports.send(Ended())
        end = self._ports.reap(run.tree)
        self._on_run_over(run.code if run.code is not None else EXIT_NOT_EXECUTABLE, end)

    def _on_run_over(self, code: int, end: End) -> None:
        if end.error is not None:
            self._log.plain(end.error)
        if self.state is State.RUNNING:
            self._on_child_over(code, end)
        elif self.state is State.ON_ACQUIRE:
            self._on_acquire_over(code, end)
        else:
            if code != 0:
                self._log("warning", "hook-failed", **self._about(), hook="on-lose", code=code)
            self._release()

    def _on_acquire_over(self, code: int, end: End) -> None:
        if end.late and self._lost is None and not self._signals:
            self._requeue = True
            self._release()
        elif self._lost is not None or self._signals:
            if not self._signals:
                self.code = EXIT_LOST
            self._release()
        elif code != 0 or self._hook_late:
            reason = "timed out" if self._hook_late else "failed"
            self._log("warning", "hook-failed", **self._about(), hook="on-acquire", code=code, reason=reason)
            if self._ending:
                self._log.plain(f"the on-acquire hook {reason}: {self._options.name} was given up")
            self.code = self._options.conflict_exit
            self._release()
        else:
            self._hook_passed = True
            self._enter(State.READY)
            self._start_next()

    def _on_child_over(self, code: int, end: End) -> None:
        if end.late and not self._ended_by_loss and not self._signals:
            self._requeue = True
            self._release()
            return
        self.code = EXIT_LOST if self._ended_by_loss else code
        self.ended_by = end.died_of
        if end.interrupted:
            self._ending = True
        if self._ports.now() - self._child_started_at >= self._options.restart_stable_s:
            self._backoff_s = self._options.restart_min_s
        if self._options.on_lose is not None and end.error is None:
            self._start(State.ON_LOSE, self._options.on_lose)
        else:
            self._release()

    def _lose(self, reason: str) -> None:
        """The hold is gone, or must be taken for gone: whatever runs under it ends now."""
        if not self._bound:
            return
        rule = self._rule
        self._lost = reason
        left_s = self._deadline - self._ports.now()
        self._log("error", "lost", **self._about(), reason=reason, left_s=left_s)
        if self.state is State.READY:
            self._requeue = True
            self._release()
        elif self.run is not None:
            self._ended_by_loss = not self._signals and self.run.alive_or_killed()
            self.run.terminate(self._ports.now(), "lost", kill_by=rule.sigkill_at(self._deadline))

    # -- ending -------------------------------------------------------------------------------------------

    def _on_ending_signal(self, number: int) -> None:
        now = self._ports.now()
        if self._signals and now - self._signalled_at < SAME_REQUEST_S:
            if self.run is not None and number != self._signal:
                self.run.tree.signal_group(number)
            return
        self._signals += 1
        self._signalled_at, self._signal = now, number
        first = self._signals == 1
        self._ending = True
        self._log("info", "signal", name=self._options.name, signal=signal.Signals(number).name)
        match self.state:
            case State.ACQUIRING | State.READY:
                self._end_by(number)
                self._requeue = False
                self._release()
            case State.BACKOFF:
                self._end_by(number)
                self._finish()
            case State.RELEASING:
                if first and (self._options.restart or self._requeue):
                    self._end_by(number)
                self._requeue = False
                if not first:
                    self._give_up_release()
            case State.RUNNING | State.ON_ACQUIRE | State.ON_LOSE if self.run is not None:
                if first and self.state is not State.RUNNING and not self._ended_by_loss:
                    self._end_by(number)
                if first:
                    self.run.terminate(now, "signal", number=number)
                else:
                    self.run.kill(now, "second signal")

    def _end_by(self, number: int) -> None:
        """A signal to conch itself decides how it ends."""
        self.code, self.ended_by = EXIT_SIGNAL + number, number
