"""The states of conchd, with their transitions."""

from conch.enums import Enum


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
