"""The states of conchd, with their transitions, and what its supervisor acts through."""

from conch.core.states import KeeperPorts
from conch.core.task import TaskPorts
from conch.enums import Enum
from conch.static_typing import Protocol


class DaemonPorts(KeeperPorts, TaskPorts, Protocol):
    """What the decisions act through; `conch.core.daemon_loop` is the real one."""

    def now(self) -> float: ...
    def jitter(self, low: float, high: float) -> float: ...


class DaemonState(Enum):
    """Where conchd is."""

    STARTING = "starting"  # its first keeper settles earlier runs and waits for etcd
    RUNNING = "running"
    DRAINING = "draining"  # no new runs; those that run may go on for the drain time
    STOPPING = "stopping"  # every run was told to end
    RECORDING = "recording"  # nothing runs; the ends of runs are still being recorded
    RELEASING = "releasing"
    DONE = "done"


DAEMON_NEXT: dict[DaemonState, frozenset[DaemonState]] = {
    DaemonState.STARTING: frozenset({DaemonState.RUNNING, DaemonState.DRAINING, DaemonState.DONE}),
    DaemonState.RUNNING: frozenset({DaemonState.DRAINING}),
    DaemonState.DRAINING: frozenset({DaemonState.STOPPING, DaemonState.RELEASING, DaemonState.DONE}),
    DaemonState.STOPPING: frozenset({DaemonState.RECORDING, DaemonState.RELEASING, DaemonState.DONE}),
    DaemonState.RECORDING: frozenset({DaemonState.RELEASING, DaemonState.DONE}),
    # back if the keeper dies while there is something to record
    DaemonState.RELEASING: frozenset({DaemonState.DRAINING, DaemonState.STOPPING, DaemonState.DONE}),
    DaemonState.DONE: frozenset(),
}
