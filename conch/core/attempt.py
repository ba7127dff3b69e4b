"""One attempt to run something under its holds, from the decision to start it until its tree was seen empty."""

from conch.core.cgroup import Usage
from conch.core.deadline import Bounds
from conch.core.messages import Ended, Message, Running
from conch.core.states import ATTEMPT_NEXT, AttemptState, End, ProcessTree
from conch.errors import EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, IllegalTransition, checked
from conch.log import Field, Log
from conch.plain_signal import name_of, signal
from conch.record import Record
from conch.static_typing import Callable, Mapping

# The pause before a tree gets SIGKILL again, for what was forked meanwhile; it doubles up to the second value.
_KILL_AGAIN_S, _KILL_AGAIN_MOST_S = 0.05, 1.0
_STILL_RUNNING = "still running"


class AttemptPorts(Record):
    """What an attempt acts through."""

    start: Callable[[float | None], ProcessTree]  # behind its gate, to exec by this time; or OSError
    open_gate: Callable[[ProcessTree], None]
    reap: Callable[[ProcessTree], End]
    send: Callable[[Message], None]  # to the keeper, if there is one
    now: Callable[[], float]  # seconds of CLOCK_BOOTTIME


class AttemptOver(Record):
    """How an attempt ended.

    `started` is False if no process was forked. `late` says that too little time was left, so the command did not
    run; `error` says why else it did not. `ended_by_loss` says that the loss of a hold ended the main process, and
    `killed_for` is the cause that the owner gave for a SIGKILL, if it asked for one.
    """

    code: int
    started: bool = True
    late: bool = False
    error: str | None = None
    died_of: int | None = None
    interrupted: bool = False
    ended_by_loss: bool = False
    killed_for: str | None = None


class Attempt:
    """Starts a run, and ends it for certain: SIGTERM, then SIGKILL to all of it until nothing is left.

    Terminating is final: the kill can only come earlier, and no renewal takes it back. `over` says how the attempt
    ended, once it did; the keeper was told of the tree before its gate opened, and of its end before it was reaped.
    """

    def __init__(
        self,
        ports: AttemptPorts,
        log: Log,
        bounds: Bounds,
        *,
        what: str,
        about: Mapping[str, Field],
        run: str = "",
        start_by: float | None = None,
        hook: str | None = None,
    ) -> None:
        """Nothing starts after `start_by`, whatever the holds allow.

        `what` names the run in messages, `hook` in log lines if it is a hook; `about` goes into each log line. The
        keeper knows the run as `run`.
        """
        self._ports = ports
        self._log = log
        self._bounds = bounds
        self._what = what
        self._run = run
        self._exit_field = "exit" if run else "code"  # the events of conchd's runs are of one shape
        self._start_by = start_by
        self.hook = hook
        self._about: dict[str, Field] = {**about, "hook": hook}
        self._tree: ProcessTree | None = None
        self._code: int | None = None  # of the main process
        self._retry_at: float | None = None
        self._kill_at: float | None = None
        self._kill_again_at: float | None = None
        self._kill_again_s = _KILL_AGAIN_S
        self._group_only = False  # the latest signal was the user's own, which the group alone gets
        self._signalled = False  # by the user, at any time
        self._killed_for: str | None = None
        self.state = AttemptState.WAITING
        self.lost: str | None = None
        self.ended_by_loss = False
        self.over: AttemptOver | None = None

    @property
    def started(self) -> bool:
        """Whether there are processes, or were."""
        return self._tree is not None

    @property
    def lost_from(self) -> float | None:
        """When the holds must be taken for lost unless they are renewed: in time to end the run, or to start none."""
        if self.lost is not None or self.state is AttemptState.OVER:
            return None
        return self._bounds.sigkill_at if self.state is AttemptState.WAITING else self._bounds.sigterm_at

    def overdue(self) -> bool:
        """Whether the holds must be taken for lost now."""
        lost_from = self.lost_from
        return lost_from is not None and self._ports.now() >= lost_from

    @property
    def wake_at(self) -> float | None:
        """When there is something to do without an event: `overdue` to ask, or `advance` to call."""
        if self.state is AttemptState.OVER:
            return None
        times = (self._retry_at, self._kill_at, self._kill_again_at, self.lost_from)
        return min((at for at in times if at is not None), default=None)

    def main_alive(self) -> bool:
        """Whether the main process still runs."""
        return self._tree is not None and self._tree.exit_code() is None

    def killed_or_alive(self) -> bool:
        """Whether the main process runs, or died of a SIGKILL just now: perhaps the keeper's, who was first to act."""
        return self._code is None and self._require_tree().exit_code() in (None, 128 + signal.SIGKILL)

    # -- starting -----------------------------------------------------------------------------------------

    def try_start(self) -> None:
        """Start the run if its holds leave enough time; else wait, and try again at a renewal or in a while."""
        if self.state is not AttemptState.WAITING:
            raise IllegalTransition(f"cannot start what is {self.state.value}")
        now = self._ports.now()
        if self._start_by is not None and now > self._start_by:
            self._conclude(AttemptOver(EXIT_NOT_EXECUTABLE, started=False, late=True))
            return
        # Conch was stopped for long, or the last renewal is old by now: a newer one may be on its way.
        self._retry_at = self._bounds.retry_at(now)
        if self._retry_at is None:
            self.start()

    def start(self) -> None:
        """Start the run. Its main process itself checks, last before exec, that there is still time."""
        times = [at for at in (self._bounds.start_by, self._start_by) if at is not None]
        try:
            tree = self._ports.start(min(times, default=None))
        except OSError as error:
            code = EXIT_NOT_FOUND if isinstance(error, FileNotFoundError) else EXIT_NOT_EXECUTABLE
            text = f"cannot start {self._what}: {error.strerror or error}"
            self._conclude(AttemptOver(code, started=False, error=text))
            return
        self._enter(AttemptState.RUNNING)
        self._tree = tree
        self.announce()  # the keeper knows the tree before anything of it can run
        self._log("info", "hook-start" if self.hook else "child-start", **self._about, pid=tree.pid)
        self._ports.open_gate(tree)

    def announce(self) -> None:
        """Tell the keeper of the tree, unless none was started yet."""
        if self._tree is not None:
            bounds = self._bounds
            tree = self._tree
            self._ports.send(
                Running(tree.pid, tree.run_id, bounds.numbers, bounds.kill_after_s, self._run, tree.cgroup)
            )

    # -- ending -------------------------------------------------------------------------------------------

    def lose(self, reason: str) -> None:
        """A hold is lost: end the run in time. A start that still waits is given up."""
        if self.lost is not None:
            return
        self.lost = reason
        if self.state is AttemptState.WAITING:
            self._conclude(AttemptOver(EXIT_NOT_EXECUTABLE, started=False, ended_by_loss=True))
            return
        self.ended_by_loss = self.killed_or_alive() and not self._signalled
        self.terminate("lost", kill_by=self._bounds.sigkill_at)

    def terminate(self, cause: str, *, number: int = signal.SIGTERM, kill_by: float | None = None) -> None:
        """Signal the tree to end, and kill it after kill-after, or by `kill_by` if that is earlier.

        A user's own signal goes to the group alone, as a terminal would send it.
        """
        tree = self._require_tree()
        if self.state is AttemptState.KILLING:
            return
        self._enter(AttemptState.TERMINATING)
        now = self._ports.now()
        kill_at = min(at for at in (now + self._bounds.kill_after_s, self._kill_at, kill_by) if at is not None)
        self._kill_at = kill_at
        self._group_only = cause == "signal"
        self._signalled = self._signalled or self._group_only
        self._log(
            "info" if self._group_only else "warning",
            "term-sent",
            **self._about,
            cause=cause,
            signal=name_of(number),
            kill_in_s=max(0.0, kill_at - now),
        )
        send = tree.signal_group if self._group_only else tree.signal_tree
        send(number)
        send(signal.SIGCONT)  # a stopped process takes no other signal than SIGKILL

    def kill(self, cause: str) -> None:
        """SIGKILL the tree now, and again until it is empty."""
        tree = self._require_tree()
        if self.state is not AttemptState.KILLING:
            self._log("warning", "kill-sent", **self._about, cause=cause)
        if cause != _STILL_RUNNING:
            self._killed_for = cause
        self._enter(AttemptState.KILLING)
        self._kill_at = None
        self._kill_again_at = self._ports.now() + self._kill_again_s
        self._kill_again_s = min(2 * self._kill_again_s, _KILL_AGAIN_MOST_S)
        tree.signal_tree(signal.SIGKILL)
        for pid in tree.refused():
            text = "it belongs to another user and cannot be killed: the hold is kept while it runs"
            self._log("warning", "kill-refused", **self._about, pid=pid, msg=text)

    def pass_on(self, number: int) -> None:
        """Send a signal to the group that does not ask it to end."""
        self._require_tree().signal_group(number)

    def advance(self) -> None:
        """Check the processes and the clock, and do what is due."""
        if self.state is AttemptState.OVER:
            return
        now = self._ports.now()
        if self.state is AttemptState.WAITING:
            if self._retry_at is not None and now >= self._retry_at:
                self.try_start()
            return
        tree = self._require_tree()
        if self._code is None:
            self._code = tree.exit_code()
            if self._code is not None:
                about = {**self._about, self._exit_field: self._code}
                self._log("info", "hook-exit" if self.hook else "child-exit", **about)
        if any(at is not None and now >= at for at in (self._kill_at, self._kill_again_at)):
            self.kill(_STILL_RUNNING)
        if self._code is None:
            return
        if tree.empty():
            self._end(tree, self._code)
        elif self.state is AttemptState.RUNNING or (self.state is AttemptState.TERMINATING and self._group_only):
            # what the main process left running may not have got the signal that ended it
            self.terminate("left running")

    def _end(self, tree: ProcessTree, code: int) -> None:
        # before it is reaped: right after that, the pid may belong to another process
        self._ports.send(Ended(self._run))
        end = self._ports.reap(tree)
        self._conclude(
            AttemptOver(
                code,
                late=end.late,
                error=end.error,
                died_of=end.died_of,
                interrupted=end.interrupted,
                ended_by_loss=self.ended_by_loss,
                killed_for=self._killed_for,
            )
        )

    def clear_away(self) -> Usage:
        """Remove what is left of a run that is over; return what it used. To be called once, after `over` was set.

        Nothing of the run lives any more, so the owner first does what others wait for.
        """
        if self.state is not AttemptState.OVER:
            raise IllegalTransition(f"cannot clear away what is {self.state.value}")
        return Usage(0.0, None) if self._tree is None else self._tree.clear_away()

    def _conclude(self, over: AttemptOver) -> None:
        self._enter(AttemptState.OVER)
        self.over = over

    def _enter(self, state: AttemptState) -> None:
        self.state = checked(ATTEMPT_NEXT, self.state, state)

    def _require_tree(self) -> ProcessTree:
        """Return the tree; raise `IllegalTransition` if there is none yet, or no more."""
        if self._tree is None or self.state is AttemptState.OVER:
            raise IllegalTransition(f"there is nothing to signal: the attempt is {self.state.value}")
        return self._tree
