"""Finding and signalling the processes of a run, whatever they do to escape.

A run's tree consists of its process group and of the descendants that left it. The supervisor is their subreaper, so
they are its recursive children. A keeper, which is no ancestor, finds them by the run's id in their environment.
"""

import errno
import os
import select

from conch.core import clock
from conch.core.cgroup import Cgroup
from conch.plain_signal import signal
from conch.record import Record
from conch.static_typing import Callable, Collection, Iterable, Mapping, Sequence

RUN_ID_VARIABLE = "CONCH_TREE"
UNSEEN = "?"  # the state of a process that stands for others
# These errors say nothing about the process in question.
_CANNOT_READ = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})


class Stat(Record):
    """What /proc says of a process; `start` (clock ticks since boot) distinguishes it from a later one of its pid.

    One that is `unseen` may have the directory of the cgroup that shows it.
    """

    pid: int
    state: str
    parent: int
    group: int
    threads: int
    start: int
    cgroup: str = ""

    @property
    def dead(self) -> bool:
        """Whether the process only waits to be reaped. A leader that ended before its threads is a zombie that runs."""
        return self.state in "ZX" and self.threads <= 1


def stat(pid: int) -> Stat | None:
    """Read /proc/PID/stat; return None if there is no such process, or we may not see it.

    `OSError` if /proc cannot be read (no descriptor is left, say): a process that was not seen must not pass for dead.
    """
    try:
        fd = os.open(f"/proc/{pid}/stat", os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.read(fd, 1024)
        finally:
            os.close(fd)
    except OSError as error:
        if error.errno in _CANNOT_READ:
            raise
        return None
    # the name in parentheses may hold anything, so what counts begins after the last one
    rest = data[data.rindex(b")") + 2 :].split(None, 20)
    return Stat(pid, chr(rest[0][0]), int(rest[1]), int(rest[2]), int(rest[17]), int(rest[19]), "")


def processes() -> dict[int, Stat]:
    """Return all processes by pid; `OSError` if /proc cannot be read. Not a snapshot: new forks may be missing."""
    found = (stat(int(name)) for name in os.listdir("/proc") if name.isdecimal())
    return {entry.pid: entry for entry in found if entry is not None}


def children(known: Collection[int]) -> dict[int, Stat]:
    """Return the children of the main thread, which calls this, but the `known` ones; or more, as `processes` does.

    None that lived all the time is missing: a child leaves the kernel's list only when its parent has waited for it,
    and what is adopted meanwhile comes last. Where the kernel keeps no list, all processes are returned.
    """
    own_pid = os.getpid()
    try:
        fd = os.open(f"/proc/self/task/{own_pid}/children", os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return processes()
    try:
        data = b"".join(iter(lambda: os.read(fd, 65536), b""))
    finally:
        os.close(fd)
    found = (stat(pid) for pid in map(int, data.split()) if pid not in known)
    return {entry.pid: entry for entry in found if entry is not None}


def descendants(root: int, among: Mapping[int, Stat], exclude: Callable[[Stat], bool]) -> list[Stat]:
    """Return the recursive children of `root`, parents first, without the excluded ones and their descendants."""
    return descend(root, by_parent(among), exclude)


def by_parent(among: Mapping[int, Stat]) -> dict[int, list[Stat]]:
    """Return the children of each process that has some: made once, it serves many calls of `descend`."""
    found: dict[int, list[Stat]] = {}
    for entry in among.values():
        found.setdefault(entry.parent, []).append(entry)
    return found


def descend(root: int, children: Mapping[int, list[Stat]], exclude: Callable[[Stat], bool]) -> list[Stat]:
    """As `descendants`, among processes that are sorted by parent."""
    found: list[Stat] = []
    unvisited = [root]
    while unvisited:
        below = [child for child in children.get(unvisited.pop(), []) if not exclude(child)]
        found += below
        unvisited += [child.pid for child in below]
    return found


def group_sizes(entries: Iterable[Stat]) -> dict[int, int]:
    """Return how many of these processes each process group has."""
    sizes: dict[int, int] = {}
    for entry in entries:
        sizes[entry.group] = sizes.get(entry.group, 0) + 1
    return sizes


def run_ids_of(pid: int) -> list[str] | None:
    """Return the ids of the runs that a process was started in, from its environment; `OSError` if unreadable now.

    None if it shows no environment: it is gone, belongs to another user, is a zombie or just in exec, or has wiped it.
    """
    environment = _environment(pid, pid)
    if not environment:
        # a first thread that has ended shows none, as a zombie does, but its other threads do
        try:
            threads = os.listdir(f"/proc/{pid}/task")
        except OSError as error:
            if error.errno in _CANNOT_READ:
                raise
            return None
        environment = next(
            filter(None, (_environment(pid, int(thread)) for thread in threads if int(thread) != pid)), b""
        )
    if not environment:
        return None
    name = f"{RUN_ID_VARIABLE}=".encode()
    found = (entry[len(name) :] for entry in environment.split(b"\0") if entry.startswith(name))
    return [run_id.decode("utf-8", "replace") for entry in found for run_id in entry.split(b",")]


def _environment(pid: int, thread: int) -> bytes:
    try:
        with open(f"/proc/{pid}/task/{thread}/environ", "rb") as file:
            return file.read()
    except OSError as error:
        if error.errno in _CANNOT_READ:
            raise
        return b""


def carries(pid: int, run_id: str) -> bool:
    """Whether the process was started with this run's id in its environment; `OSError` if unreadable now."""
    return run_id in (run_ids_of(pid) or ())


class Target(Record):
    """A run as a process knows it that is not its ancestor: the pid, run id and start time of its first process.

    `cgroup` is the directory of its cgroup, or empty.
    """

    pid: int
    run_id: str
    since: int
    cgroup: str = ""


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
        pass  # gone, or it belongs to another user: the tree is then not seen empty
    finally:
        os.close(pidfd)


def kill_from_outside(targets: Sequence[Target]) -> list[list[Stat]]:
    """SIGKILL runs from a process that is not their ancestor; return the processes of each that were seen alive.

    A run's processes are found by group, cgroup and environment; one that is older than the first process of every run
    needs no check of its environment. `OSError` if /proc cannot be read.
    """
    for target in targets:
        try:
            os.killpg(target.pid, signal.SIGKILL)  # most of the run, however many other processes there are
        except (ProcessLookupError, PermissionError):
            pass  # the group is gone, or was never made
    for target in targets:
        _kill_contained(target)
    found: list[list[Stat]] = [[] for _ in targets]
    by_pid = {target.pid: at for at, target in enumerate(targets)}
    by_run_id = {target.run_id: at for at, target in enumerate(targets)}
    oldest = min((target.since for target in targets), default=0)
    own_pid = os.getpid()
    for entry in processes().values():
        if entry.dead or entry.pid == own_pid:
            continue
        owner = by_pid.get(entry.pid, by_pid.get(entry.group))
        if owner is None and entry.start >= oldest:
            owner = next((by_run_id[run_id] for run_id in run_ids_of(entry.pid) or () if run_id in by_run_id), None)
        if owner is not None:
            found[owner].append(entry)
            signal_exactly(entry, signal.SIGKILL)
    for at, target in enumerate(targets):
        if not found[at] and _is_populated(target):
            found[at].append(unseen(target.pid, target.since, target.cgroup))
    return found


def _kill_contained(target: Target) -> None:
    """SIGKILL what is in the target's cgroup."""
    if target.cgroup:
        try:
            Cgroup(target.cgroup).kill()
        except OSError:
            pass  # a kill is repeated


def _is_populated(target: Target) -> bool:
    """Whether a process lives in the target's cgroup, or that cannot be told."""
    if not target.cgroup:
        return False
    try:
        return Cgroup(target.cgroup).populated()
    except OSError:
        return True


def unseen(pid: int, since: int = 0, cgroup: str = "") -> Stat:
    """Return what stands for processes that cannot be seen, and so may be alive: those of a run, by its first one."""
    return Stat(pid, UNSEEN, 0, pid, 1, since, cgroup)


def wait_for_ends(entries: Iterable[Stat], timeout_s: float) -> None:
    """Return when all these processes have ended, or after the timeout; that of those `unseen` only a cgroup shows."""
    deadline = clock.now() + timeout_s
    for entry in entries:
        poller = select.poll()
        if entry.state == UNSEEN:
            empty = entry.cgroup and Cgroup(entry.cgroup).wait_until_empty(max(0.0, deadline - clock.now()))
            if not empty:
                poller.poll(max(0.0, deadline - clock.now()) * 1000)
            continue
        try:
            pidfd = os.pidfd_open(entry.pid)
        except OSError:
            continue
        try:
            poller.register(pidfd, select.POLLIN)
            poller.poll(max(0.0, deadline - clock.now()) * 1000)
        finally:
            os.close(pidfd)


def tagged(run_ids: Collection[str]) -> list[Stat]:
    """Return the living processes with one of these run ids in their environment; `OSError` if unreadable now."""
    own_pid = os.getpid()
    return [
        entry
        for entry in processes().values()
        if not entry.dead and entry.pid != own_pid and any(carries(entry.pid, run_id) for run_id in run_ids)
    ]
