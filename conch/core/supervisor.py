"""The wrapper's decisions: what to do at each message, signal, timeout and end of a process.

Nothing here touches the system: the ports do, and a test drives the states with a table and a clock of its own.
"""

from conch.core.acquisition import AcquireFailed, Acquisition, Event, HoldLost, HoldRenewed, HoldWon, ReleaseDone
from conch.core.attempt import Attempt, AttemptOver, AttemptPorts
from conch.core.deadline import Bounds
from conch.core.messages import Message
from conch.core.states import (
    ENDING,
    NEXT,
    PASSED_ON,
    AfterRelease,
    AttemptState,
    EndRequests,
    LoopPorts,
    RunOptions,
    State,
    TreePorts,
    next_backoff,
)
from conch.errors import EXIT_LOST, EXIT_NOT_ACQUIRED, EXIT_SIGNAL, IllegalTransition, checked
from conch.log import Field, Log
from conch.plain_signal import name_of, signal
from conch.static_typing import Mapping

_HOOK_TIMEOUT = "hook-timeout"


class Supervisor:
    """Holds, runs, terminates, releases. When the state is DONE, `code` is conch's exit code."""

    def __init__(self, options: RunOptions, loop: LoopPorts, trees: TreePorts, log: Log) -> None:
        self._options = options
        self._loop = loop
        self._trees = trees
        self._log = log
        self._acquisition = Acquisition(options, loop, log, contain=trees.contain)
        self._requests = EndRequests()
        self.state = State.BACKOFF
        self.attempt: Attempt | None = None
        self.code = 0
        self.ended_by: int | None = None  # the signal that `code` stands for, where it is 128+n
        self._timer: float | None = None
        self._backoff_s = options.restart_min_s
        self._ending = not options.restart  # conch ends with `code` when the hold of now is over
        self._after_release = AfterRelease.END
        self._child_started_at = 0.0
        self._child_ended_by_loss = False

    # -- called by the loop -------------------------------------------------------------------------------

    @property
    def done(self) -> bool:
        """Whether `code` is final. All that comes later is ignored."""
        return self.state is State.DONE

    @property
    def acquiring(self) -> bool:
        """Whether conch waits for a hold."""
        return self.state is State.ACQUIRING

    @property
    def wake_at(self) -> float | None:
        """The next time (CLOCK_BOOTTIME) at which `on_time` has something to do."""
        times = (self._timer, self._acquisition.wake_at, self.attempt.wake_at if self.attempt else None)
        return min((at for at in times if at is not None), default=None)

    def begin(self) -> None:
        """Queue up for the first time."""
        self._acquire()

    def on_message(self, message: Message) -> None:
        """Handle a message from the keeper."""
        self._on_event(self._acquisition.on_message(message))

    def on_keeper_death(self) -> None:
        """The keeper ended by itself."""
        self._on_event(self._acquisition.on_keeper_death(self.state.value))

    def on_signal(self, number: int) -> None:
        """Handle a signal to conch itself."""
        if self.done:
            return
        if number in ENDING or (number == signal.SIGHUP and self.state is not State.RUNNING):
            self._on_ending_signal(number)
        elif self.state is State.RUNNING and self.attempt is not None and number in PASSED_ON:
            self._ending = self._ending or number == signal.SIGHUP
            self.attempt.pass_on(number)

    def on_change(self) -> None:
        """A process may have ended."""
        if self.attempt is not None:
            self.attempt.advance()
            self._follow_attempt()

    def on_time(self) -> None:
        """Time has passed; the deadline is judged first."""
        if self.attempt is not None and self.attempt.overdue():
            self._on_event(self._acquisition.lose("not renewed in time"))
        self._on_event(self._acquisition.on_time())
        self.on_change()
        if self._timer is not None and self._loop.now() >= self._timer:
            self._timer = None
            self._on_timer()

    def _on_timer(self) -> None:
        match self.state:
            case State.BACKOFF:
                self._acquire()
            case State.ON_ACQUIRE | State.ON_LOSE if self.attempt is not None:
                self.attempt.kill(_HOOK_TIMEOUT)
            case _:
                raise IllegalTransition(f"no timer is expected while {self.state.value}")

    # -- the hold -----------------------------------------------------------------------------------------

    def _on_event(self, event: Event | None) -> None:
        match event:
            case HoldWon():
                self._child_ended_by_loss = False
                self._enter(State.READY)
                self._prepare(State.ON_ACQUIRE if self._options.on_acquire is not None else State.RUNNING)
            case HoldRenewed() if self.state is State.READY and self.attempt is not None:
                self.attempt.try_start()
                self._follow_attempt()
            case HoldLost() if self.state is State.READY:
                self._release(AfterRelease.ACQUIRE)
            case HoldLost(reason) if self.attempt is not None:
                self.attempt.lose(reason)
            case AcquireFailed():
                self._on_acquire_failed(event)
            case ReleaseDone():
                self._on_release_done()
            case _:
                pass  # nothing happened, or nothing waits for it

    def _acquire(self) -> None:
        self._enter(State.ACQUIRING)
        self._on_event(self._acquisition.acquire())

    def _on_acquire_failed(self, failed: AcquireFailed) -> None:
        final = self._ending or failed.final
        if not final and not failed.leftovers:
            self._log("warning", "failed", name=self._options.name, msg=failed.message)
            self._back_off()
            return
        self._log.plain(failed.message)
        self.code = self._options.conflict_exit if failed.code == EXIT_NOT_ACQUIRED else failed.code
        self._ending = final
        if failed.leftovers:
            self._release()
        else:
            self._enter(State.DONE)

    def _release(self, then: AfterRelease | None = None) -> None:
        if self._running_attempt is not None:
            raise IllegalTransition(f"cannot release while something runs ({self.state.value})")
        self.attempt = None  # a start may still have waited
        self._after_release = then or (AfterRelease.END if self._ending else AfterRelease.BACK_OFF)
        self._enter(State.RELEASING)
        self._on_event(self._acquisition.release())

    def _on_release_done(self) -> None:
        match self._after_release:
            case AfterRelease.ACQUIRE:
                self._acquire()
            case AfterRelease.BACK_OFF:
                self._back_off()
            case AfterRelease.END:
                self._enter(State.DONE)

    def _back_off(self) -> None:
        options = self._options
        self._backoff_s = next_backoff(self._backoff_s, options.restart_min_s, options.restart_max_s, self._loop.jitter)
        self._enter(State.BACKOFF)
        self._log("info", "backoff", name=options.name, delay_s=self._backoff_s)
        self._timer = self._loop.now() + self._backoff_s

    # -- running ------------------------------------------------------------------------------------------

    def _prepare(self, state: State) -> None:
        """In READY: start what runs in `state`, once there is time enough left for it."""
        self.attempt = self._new_attempt(state)
        self.attempt.try_start()
        self._follow_attempt()

    def _new_attempt(self, state: State) -> Attempt:
        """Make the attempt that runs in `state`, bound to the hold unless that was lost."""
        hold = self._acquisition.hold
        if hold is None:
            raise IllegalTransition(f"cannot start anything without a hold ({self.state.value})")
        commands = {State.ON_ACQUIRE: self._options.on_acquire, State.ON_LOSE: self._options.on_lose}
        hook = self._hook_of(state)
        command, held = commands.get(state), hold.held
        return Attempt(
            AttemptPorts(
                start=lambda start_by: self._trees.start_tree(command, held, start_by),
                open_gate=self._trees.open_gate,
                reap=self._trees.reap,
                send=self._acquisition.send,
                now=self._loop.now,
            ),
            self._log,
            Bounds([hold] if hold.lost is None else [], self._options.kill_after_s),
            what="the child" if hook is None else f"the {hook} hook",
            about=self._acquisition.about(),
            hook=hook,
        )

    @staticmethod
    def _hook_of(state: State) -> str | None:
        """The hook that runs in this state, None for the command."""
        return None if state is State.RUNNING else state.value

    def _follow_attempt(self) -> None:
        """Enter the state that the attempt has reached."""
        attempt = self.attempt
        if attempt is None or attempt.state is AttemptState.WAITING:
            return
        if self.state is State.READY:
            self._enter(State.RUNNING if attempt.hook is None else State(attempt.hook))
            self._on_started(attempt)
        if attempt.over is not None:
            self.attempt = None
            about = self._acquisition.about()
            self._on_attempt_over(attempt.over)
            # others wait for the release, nobody for this
            self._clear_away(attempt, attempt.over, about)

    def _on_started(self, attempt: Attempt) -> None:
        if attempt.hook is None:
            self._child_started_at = self._loop.now()
        else:
            self._timer = self._loop.now() + self._options.hook_timeout_s

    def _on_attempt_over(self, over: AttemptOver) -> None:
        if over.error is not None:
            self._log.plain(over.error)
        match self.state:
            case State.RUNNING:
                self._on_child_over(over)
            case State.ON_ACQUIRE:
                self._on_acquire_over(over)
            case State.ON_LOSE:
                if over.code != 0:
                    self._log("warning", "hook-failed", **self._acquisition.about(), hook="on-lose", code=over.code)
                self._release()
            case _:
                raise IllegalTransition(f"nothing can have run while {self.state.value}")

    def _clear_away(self, attempt: Attempt, over: AttemptOver, about: Mapping[str, Field]) -> None:
        used = attempt.clear_away()
        if over.error is None and over.started and not over.late:
            event = "child-end" if attempt.hook is None else "hook-end"
            self._log("info", event, **about, hook=attempt.hook, cpu_s=used.cpu_s, max_rss_kb=used.max_rss_kb)

    def _on_acquire_over(self, over: AttemptOver) -> None:
        timed_out = over.killed_for == _HOOK_TIMEOUT
        if over.late and not self._acquisition.lost and not self._requests.count:
            self._release(AfterRelease.ACQUIRE)
        elif self._acquisition.lost or self._requests.count:
            if not self._requests.count:
                self.code = EXIT_LOST
            self._release()
        elif over.code != 0 or timed_out:
            reason = "timed out" if timed_out else "failed"
            self._log(
                "warning", "hook-failed", **self._acquisition.about(), hook="on-acquire", code=over.code, reason=reason
            )
            if self._ending:
                self._log.plain(f"the on-acquire hook {reason}: {self._options.name} was given up")
            self.code = self._options.conflict_exit
            self._release()
        else:
            self._enter(State.READY)
            self._prepare(State.RUNNING)

    def _on_child_over(self, over: AttemptOver) -> None:
        self._child_ended_by_loss = over.ended_by_loss
        if over.late and not over.ended_by_loss and not self._requests.count:
            self._release(AfterRelease.ACQUIRE)
            return
        self.code = EXIT_LOST if over.ended_by_loss else over.code
        self.ended_by = over.died_of
        if over.interrupted:
            self._ending = True
        if self._loop.now() - self._child_started_at >= self._options.restart_stable_s:
            self._backoff_s = self._options.restart_min_s
        if self._options.on_lose is None or over.error is not None:
            self._release()
            return
        self._enter(State.ON_LOSE)
        self.attempt = self._new_attempt(State.ON_LOSE)
        self.attempt.start()
        self._on_started(self.attempt)
        self._follow_attempt()

    # -- ending -------------------------------------------------------------------------------------------

    def _on_ending_signal(self, number: int) -> None:
        if not self._requests.add(number, self._loop.now()):
            if self._running_attempt is not None and number != self._requests.number:
                self._running_attempt.pass_on(number)
            return
        first = self._requests.count == 1
        self._ending = True
        self._log("info", "signal", name=self._options.name, signal=name_of(number))
        match self.state:
            case State.ACQUIRING | State.READY:
                self._end_by(number)
                self._release()
            case State.BACKOFF:
                self._end_by(number)
                self._enter(State.DONE)
            case State.RELEASING:
                if first and (self._options.restart or self._after_release is AfterRelease.ACQUIRE):
                    self._end_by(number)
                self._after_release = AfterRelease.END
                if not first:
                    self._on_event(self._acquisition.give_up_release())
            case State.RUNNING | State.ON_ACQUIRE | State.ON_LOSE if self.attempt is not None:
                lost = self._child_ended_by_loss or self.attempt.ended_by_loss
                if first and self.state is not State.RUNNING and not lost:
                    self._end_by(number)
                if first:
                    self.attempt.terminate("signal", number=number)
                else:
                    self.attempt.kill("second signal")

    @property
    def _running_attempt(self) -> Attempt | None:
        return self.attempt if self.attempt is not None and self.attempt.started else None

    def _end_by(self, number: int) -> None:
        """A signal to conch itself decides how it ends."""
        self.code, self.ended_by = EXIT_SIGNAL + number, number

    def _enter(self, state: State) -> None:
        self.state = checked(NEXT, self.state, state)
        self._timer = None
