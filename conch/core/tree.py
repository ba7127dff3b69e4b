"""Finding and signalling the processes of a run, whatever they do to be missed.

A tree is a process group; the descendants that left it (the supervisor is their subreaper, so they are its
recursive children); and, for a keeper, which is no ancestor, whatever carries the run's id in its environment.
"""

import errno
import os
import select
import signal
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass

from conch.core import clock

TREE_VARIABLE = "CONCH_TREE"
# These say nothing of the process that was looked at.
_CANNOT_LOOK = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


@dataclass(frozen=True, slots=True)
class Stat:
    """What /proc says of a process; `start` (clock ticks since boot) tells it from a later one of the same pid."""

    pid: int
    state: str
    parent: int
    group: int
    threads: int
    start: int

    @property
    def dead(self) -> bool:
        """Whether it only waits to be reaped. A leader that ended before its threads is a zombie that runs."""
        return self.state in "ZX" and self.threads <= 1


def stat(pid: int) -> Stat | None:
    """Read /proc/PID/stat; None if there is no such process, or we may not see it.

    `OSError` if we cannot look (no descriptor is left, say): what was not seen must not be taken for dead.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as file:
            data = file.read(1024)
    except OSError as error:
        if error.errno in _CANNOT_LOOK:
            raise
        return None
    # the name in parentheses may hold anything, so what counts begins after the last one
    rest = data[data.rindex(b")") + 2 :].split()
    return Stat(pid, chr(rest[0][0]), int(rest[1]), int(rest[2]), int(rest[17]), int(rest[19]))


def processes() -> dict[int, Stat]:
    """All processes by pid; `OSError` if we cannot look. Not a snapshot: what forks meanwhile may be missing."""
    found = (stat(int(name)) for name in os.listdir("/proc") if name.isdecimal())
    return {entry.pid: entry for entry in found if entry is not None}


def descendants(root: int, among: Mapping[int, Stat], spare: Callable[[Stat], bool]) -> list[Stat]:
    """The recursive children of `root`, parents before children, without those spared and what is below them."""
    by_parent: dict[int, list[Stat]] = {}
    for entry in among.values():
        by_parent.setdefault(entry.parent, []).append(entry)
    found: list[Stat] = []
    ahead = [root]
    while ahead:
        children = [child for child in by_parent.get(ahead.pop(), []) if not spare(child)]
        found += children
        ahead += [child.pid for child in children]
    return found


def carries(pid: int, tree: str) -> bool:
    """Whether the process was started with this run's id in its environment; `OSError` if we cannot look."""
    try:
        with open(f"/proc/{pid}/environ", "rb") as file:
            environment = file.read()
    except OSError as error:
        if error.errno in _CANNOT_LOOK:
            raise
        return False  # gone, or of another user
    name = f"{TREE_VARIABLE}=".encode()
    return any(
        tree.encode() in entry[len(name) :].split(b",") for entry in environment.split(b"\0") if entry.startswith(name)
    )


def members_from_outside(pid: int, tree: str, since: int) -> list[Stat]:
    """The living processes of a run as one sees them that is not its ancestor: by group and environment.

    `since` is the start of its first process: what is older needs no look into its environment.
    """
    me = os.getpid()
    return [
        entry
        for entry in processes().values()
        if not entry.dead
        and entry.pid != me
        and (pid in (entry.group, entry.pid) or (entry.start >= since and carries(entry.pid, tree)))
    ]


def signal_exactly(entry: Stat, number: int) -> None:
    """Signal this very process, never a later one that got its pid."""
    try:
        pidfd = os.pidfd_open(entry.pid)
    except OSError:
        return  # it is gone
    try:
        current = stat(entry.pid)
        if current is not None and current.start == entry.start:
            signal.pidfd_send_signal(pidfd, number)
    except OSError:
        pass  # gone, or of another user: the tree is then not seen empty
    finally:
        os.close(pidfd)


def kill_from_outside(pid: int, tree: str, since: int) -> list[Stat]:
    """SIGKILL a run from a process that is not its ancestor; return what of it was seen alive. `OSError` as above."""
    try:
        os.killpg(pid, signal.SIGKILL)  # the most of it, at once and however many other processes there are
    except (ProcessLookupError, PermissionError):
        pass  # the group is gone, or was never made
    found = members_from_outside(pid, tree, since)
    for entry in found:
        signal_exactly(entry, signal.SIGKILL)
    return found


def wait_for_ends(entries: Iterable[Stat], timeout_s: float) -> None:
    """Return when all these processes have ended, or after the timeout."""
    until = clock.now() + timeout_s
    for entry in entries:
        try:
            pidfd = os.pidfd_open(entry.pid)
        except OSError:
            continue
        try:
            poller = select.poll()
            poller.register(pidfd, select.POLLIN)
            poller.poll(max(0.0, until - clock.now()) * 1000)
        finally:
            os.close(pidfd)


def carriers(trees: Collection[str]) -> list[Stat]:
    """The living processes that carry any of these runs' ids in their environment; `OSError` if we cannot look."""
    me = os.getpid()
    return [
        entry
        for entry in processes().values()
        if not entry.dead and entry.pid != me and any(carries(entry.pid, one) for one in trees)
    ]
