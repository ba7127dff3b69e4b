"""The states of the wrapper and of what it owns, with their transitions; its options and its ports."""

from conch.core.cgroup import Usage
from conch.core.messages import Held, Message
from conch.enums import Enum
from conch.errors import EXIT_NOT_ACQUIRED
from conch.plain_signal import signal
from conch.record import Record
from conch.static_typing import Callable, Protocol

ENDING = frozenset({signal.SIGTERM, signal.SIGINT, signal.SIGQUIT})
# A signal within this time after another is the same request: `timeout`, a service manager and an outer conch signal
# both conch and its group.
SAME_REQUEST_S = 1.0
PASSED_ON = frozenset({signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2, signal.SIGWINCH, signal.SIGCONT})


class State(Enum):
    """Where the wrapper is."""

    ACQUIRING = "acquiring"
    READY = "ready"  # holds; what runs next waits until the deadline leaves time for it
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


class AfterRelease(Enum):
    """What the wrapper does once its hold is released."""

    ACQUIRE = "acquire"  # nothing ran under the hold: queue again without a pause
    BACK_OFF = "back-off"
    END = "end"


class AcquisitionState(Enum):
    """Where the hold is."""

    IDLE = "idle"
    ASKING = "asking"
    HELD = "held"
    CANCELLING = "cancelling"  # etcd has answered nothing: there may be a request under way, and no lease
    RELEASING = "releasing"


ACQUISITION_NEXT: dict[AcquisitionState, frozenset[AcquisitionState]] = {
    AcquisitionState.IDLE: frozenset({AcquisitionState.ASKING}),
    # asks again through a second keeper if the first one died
    AcquisitionState.ASKING: frozenset(AcquisitionState),
    AcquisitionState.HELD: frozenset({AcquisitionState.RELEASING, AcquisitionState.IDLE}),
    AcquisitionState.CANCELLING: frozenset({AcquisitionState.RELEASING, AcquisitionState.IDLE}),
    AcquisitionState.RELEASING: frozenset({AcquisitionState.RELEASING, AcquisitionState.IDLE}),
}


class Contact(Enum):
    """How far any acquisition of this conch ever got."""

    NONE = 0
    ANSWERED = 1  # etcd answered
    QUEUED = 2  # it was in line: from now on nothing but a signal ends a restart


class AttemptState(Enum):
    """Where an attempt is; it only ever moves down this list."""

    WAITING = "waiting"  # not started: its holds leave too little time
    RUNNING = "running"
    TERMINATING = "terminating"
    KILLING = "killing"
    OVER = "over"


ATTEMPT_NEXT: dict[AttemptState, frozenset[AttemptState]] = {
    AttemptState.WAITING: frozenset({AttemptState.RUNNING, AttemptState.OVER}),
    AttemptState.RUNNING: frozenset({AttemptState.TERMINATING, AttemptState.KILLING, AttemptState.OVER}),
    # a second reason to terminate may bring the kill forward
    AttemptState.TERMINATING: frozenset({AttemptState.TERMINATING, AttemptState.KILLING, AttemptState.OVER}),
    # killed again until nothing is left
    AttemptState.KILLING: frozenset({AttemptState.KILLING, AttemptState.OVER}),
    AttemptState.OVER: frozenset(),
}


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


class ProcessTree(Protocol):
    """What an attempt needs of its processes; `conch.core.process_tree.Process` is the real one."""

    pid: int
    run_id: str

    @property
    def cgroup(self) -> str: ...  # its directory; empty: it has none

    def exit_code(self) -> int | None: ...
    def empty(self) -> bool: ...
    def signal_group(self, number: int) -> None: ...
    def signal_tree(self, number: int) -> None: ...
    def refused(self) -> list[int]: ...  # the processes that we were not allowed to kill, each reported once
    def clear_away(self) -> Usage: ...  # of what was reaped: remove its cgroup, return what all of it used


class End(Record):
    """What only the parent learns when it reaps a run.

    `error` says why the command was not run, `late` that too little time was left, `died_of` which signal ended it;
    `interrupted` that it had the terminal and died of SIGINT, SIGQUIT or SIGHUP, or that the terminal is gone.
    """

    error: str | None = None
    late: bool = False
    died_of: int | None = None
    interrupted: bool = False


class LoopPorts(Protocol):
    """What decisions on the keeper act through; `conch.core.event_loop.SupervisorLoop` is the real one."""

    def now(self) -> float: ...  # seconds of CLOCK_BOOTTIME
    def jitter(self, low: float, high: float) -> float: ...  # a random number between the two
    def start_keeper(self) -> None: ...  # or OSError
    def drop_keeper(self) -> bool: ...  # SIGKILL and reap; returns whether it had ended because of a defect
    def send(self, message: Message) -> None: ...


class TreePorts(Protocol):
    """What decisions on the wrapper's processes act through; `conch.core.wrapper_loop.WrapperLoop` is the real one."""

    def start_tree(self, hook: str | None, held: Held, start_by: float | None) -> ProcessTree: ...  # or OSError
    def open_gate(self, tree: ProcessTree) -> None: ...
    def reap(self, tree: ProcessTree) -> End: ...
    def contain(self) -> str: ...  # the form in which runs are contained now


class EndRequests:
    """Counts how often the user asked conch to end, by a signal."""

    def __init__(self) -> None:
        self.count = 0
        self.number = 0  # the signal of the latest request
        self._at = 0.0

    def add(self, number: int, now: float) -> bool:
        """Count a request; return False if the signal repeats the one before, which came less than a second ago."""
        if self.count and now - self._at < SAME_REQUEST_S:
            return False
        self.count += 1
        self._at, self.number = now, number
        return True


def next_backoff(previous_s: float, low_s: float, high_s: float, jitter: Callable[[float, float], float]) -> float:
    """Return the next pause in seconds: exponential, with decorrelated jitter (AWS Architecture Blog, 2015)."""
    return min(high_s, jitter(low_s, max(low_s, previous_s * 3)))
