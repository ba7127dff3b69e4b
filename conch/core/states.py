"""What the wrapper's decisions are made of: its states, what the user asked for, and what it acts through."""

import signal
from collections.abc import Callable
from enum import Enum

from conch.core.attempt import Tree
from conch.core.messages import Held, Message
from conch.errors import EXIT_NOT_ACQUIRED
from conch.record import Record
from conch.static_typing import Protocol

ENDING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})
# A signal that follows another sooner is the same request: `timeout`, a service manager and an outer conch signal both
# conch and its group.
SAME_REQUEST_S = 1.0
PASSED_ON = frozenset({signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGCONT})


class State(Enum):
    """Where the wrapper is."""

    ACQUIRING = "acquiring"
    READY = "ready"
    ON_ACQUIRE = "on-acquire"
    RUNNING = "running"
    ON_LOSE = "on-lose"
    RELEASING = "releasing"
    BACKOFF = "backoff"
    DONE = "done"


NEXT: dict[State, frozenset[State]] = {
    State.ACQUIRING: frozenset({State.READY, State.RELEASING, State.BACKOFF, State.DONE}),
    State.READY: frozenset({State.ON_ACQUIRE, State.RUNNING, State.RELEASING}),
    State.ON_ACQUIRE: frozenset({State.READY, State.RELEASING}),
    State.RUNNING: frozenset({State.ON_LOSE, State.RELEASING}),
    State.ON_LOSE: frozenset({State.RELEASING}),
    State.RELEASING: frozenset({State.ACQUIRING, State.BACKOFF, State.DONE}),
    State.BACKOFF: frozenset({State.ACQUIRING, State.DONE}),
    State.DONE: frozenset(),
}


class IllegalTransition(Exception):
    """An event that makes no sense in a state: a defect of conch."""


class RunOptions(Record):
    """What to do with a hold; durations in seconds."""

    name: str
    kill_after_s: float = 5.0
    wait_s: float | None = None
    nonblock: bool = False
    on_acquire: str | None = None
    on_lose: str | None = None
    hook_timeout_s: float = 30.0
    restart: bool = False
    restart_min_s: float = 1.0
    restart_max_s: float = 30.0
    restart_stable_s: float = 60.0
    dial_timeout_s: float = 5.0
    conflict_exit: int = EXIT_NOT_ACQUIRED
    command_timeout_s: float = 5.0


class Ports(Protocol):
    """What the decisions act through; `conch.core.wrapper_loop` is the real one."""

    def now(self) -> float: ...
    def jitter(self, low: float, high: float) -> float: ...
    def start_keeper(self) -> None: ...  # or OSError
    def drop_keeper(self) -> bool: ...  # SIGKILL and reap; whether it had ended of a defect
    def send(self, message: Message) -> None: ...
    def start_tree(self, hook: str | None, hold: Held, start_by: float | None) -> Tree: ...  # or OSError
    def open_gate(self, tree: Tree) -> None: ...
    def reap(self, tree: Tree) -> "End": ...


class End(Record):
    """What only the parent learns at the end of a run.

    `error` says why the command was not run, `late` that too little time was left, `died_of` which signal ended it;
    `interrupted` that it had the terminal and died of SIGINT, SIGQUIT or SIGHUP, or that the terminal is gone.
    """

    error: str | None = None
    late: bool = False
    died_of: int | None = None
    interrupted: bool = False


def next_backoff(previous_s: float, low_s: float, high_s: float, jitter: Callable[[float, float], float]) -> float:
    """Exponential back-off with decorrelated jitter (AWS Architecture Blog, 2015), in seconds."""
    return min(high_s, jitter(low_s, max(low_s, previous_s * 3)))
