"""One run of a process tree, from its start until the tree was seen empty."""

import signal
from enum import Enum

from conch.log import Field, Log
from conch.static_typing import Protocol

# Between one SIGKILL of a tree and the next, for what was forked meanwhile; it doubles up to the second.
_AGAIN_S, _AGAIN_MOST_S = 0.05, 1.0


class Tree(Protocol):
    """What a run asks of its processes; `conch.core.spawn.Process` is the real one."""

    pid: int
    tree: str

    def exit_code(self) -> int | None: ...
    def empty(self) -> bool: ...
    def signal_group(self, number: int) -> None: ...
    def signal_tree(self, number: int) -> None: ...
    def refused(self) -> list[int]: ...  # the processes that we were not allowed to kill, each told once


class Phase(Enum):
    """Where a run is; it only ever moves down this list."""

    RUNNING = "running"
    TERMINATING = "terminating"
    KILLING = "killing"
    GONE = "gone"


class Run:
    """Ends a tree for certain: SIGTERM, then SIGKILL to all of it until nothing is left.

    Terminating is final: later moments can only come nearer, and no renewal takes it back.
    All moments are seconds of CLOCK_BOOTTIME.
    """

    def __init__(self, tree: Tree, kill_after_s: float, log: Log, hook: str | None, **about: Field) -> None:
        """`hook` names it if it is one; `about` goes into its log lines."""
        self.tree = tree
        self._hook = hook
        self._about = {**about, "hook": hook}
        self.phase = Phase.RUNNING
        self.code: int | None = None
        self._kill_after_s = kill_after_s
        self._kill_at: float | None = None
        self._again_at: float | None = None
        self._again_s = _AGAIN_S
        self._told_group_only = False
        self._log = log

    @property
    def wake_at(self) -> float | None:
        """When `advance` has something to do without an event."""
        moments = [m for m in (self._kill_at, self._again_at) if m is not None]
        return min(moments, default=None) if self.phase is not Phase.GONE else None

    def terminate(self, now: float, cause: str, *, number: int = signal.SIGTERM, kill_by: float | None = None) -> None:
        """Signal the tree to end, and kill it after kill-after, or by `kill_by` if that is earlier.

        A user's own signal goes to the group alone, as a terminal would send it.
        """
        if self.phase in (Phase.KILLING, Phase.GONE):
            return
        kill_at = now + self._kill_after_s
        for other in (self._kill_at, kill_by):
            if other is not None:
                kill_at = min(kill_at, other)
        self._kill_at = kill_at
        self.phase = Phase.TERMINATING
        self._log(
            "info" if cause == "signal" else "warning",
            "term-sent",
            **self._about,
            cause=cause,
            signal=signal.Signals(number).name,
            kill_in_s=max(0.0, kill_at - now),
        )
        self._told_group_only = cause == "signal"
        send = self.tree.signal_group if self._told_group_only else self.tree.signal_tree
        send(number)
        send(signal.SIGCONT)  # a stopped process takes no other signal than SIGKILL

    def kill(self, now: float, cause: str) -> None:
        """SIGKILL the tree now, and again until it is empty."""
        if self.phase is Phase.GONE:
            return
        if self.phase is not Phase.KILLING:
            self.phase = Phase.KILLING
            self._log("warning", "kill-sent", **self._about, cause=cause)
        self._kill_at = None
        self._again_at = now + self._again_s
        self._again_s = min(2 * self._again_s, _AGAIN_MOST_S)
        self.tree.signal_tree(signal.SIGKILL)
        for pid in self.tree.refused():
            text = "it belongs to another user and cannot be killed: the hold is kept while it runs"
            self._log("warning", "kill-refused", **self._about, pid=pid, msg=text)

    def alive_or_killed(self) -> bool:
        """Whether the main process runs, or was killed (by a keeper that enforced a loss first)."""
        return self.code is None and self.tree.exit_code() in (None, 128 + signal.SIGKILL)

    def advance(self, now: float) -> None:
        """Look at the processes and the clock, and do what is due."""
        if self.phase is Phase.GONE:
            return
        if self.code is None:
            self.code = self.tree.exit_code()
            if self.code is not None:
                self._log("info", "hook-exit" if self._hook else "child-exit", **self._about, code=self.code)
        if (self._kill_at is not None and now >= self._kill_at) or (
            self._again_at is not None and now >= self._again_at
        ):
            self.kill(now, "still running")
        if self.code is None:
            return
        if self.tree.empty():
            self.phase = Phase.GONE
            self._kill_at = self._again_at = None
        elif self.phase is Phase.RUNNING or (self.phase is Phase.TERMINATING and self._told_group_only):
            # what it left running may not have heard the signal that ended the main process
            self.terminate(now, "left running")
