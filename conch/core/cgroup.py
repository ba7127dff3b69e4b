"""A cgroup (v2) for each run: the kernel's own list of its processes, whatever they do to escape.

Its children are born in it, and only who may write to another cgroup leaves it. So a kill of it reaches all of the run,
and when it says that it is empty, it is. The kernel's Documentation/admin-guide/cgroup-v2.rst has the rules.
"""

import errno
import os
import select
import time

from conch.plain_signal import signal
from conch.record import Record
from conch.static_typing import Iterator

PREFIX = "conch-"
# How many cgroups one conch looks at to find those that are left.
_LOOK_AT = 64
# How long a freeze may take, in seconds: what cannot be frozen is killed all the same, and again until it is empty.
_FREEZE_S = 0.2
# How long the kernel may take to note the end of a process that its parent knows to be dead, in seconds.
_SETTLE_S = 0.1
_PAUSE_S = 0.001
# How many processes are signalled at once: each takes a descriptor.
_AT_ONCE = 64
_NO_DESCRIPTORS = frozenset({errno.EMFILE, errno.ENFILE})
_GONE = frozenset({errno.ENOENT, errno.ENODEV})


class Usage(Record):
    """What a run has used: CPU time in seconds, peak memory in KiB (None: unknown)."""

    cpu_s: float
    max_rss_kb: int | None


class Cgroup:
    """The cgroup of one run, or of several below it, by its directory.

    Its owner holds a lock on the directory as long as it lives, whereby an empty cgroup that a dead conch left is told
    from one that is about to be entered. All methods may raise `OSError`, unless the cgroup has gone: then it is empty.
    """

    def __init__(self, path: str, *, required: bool = False) -> None:
        """`required`: nothing of the run may start that is not in it."""
        self.path = path
        self.required = required
        self._lock: int | None = None

    @classmethod
    def create(cls, path: str, *, required: bool = False) -> "Cgroup":
        """Make the cgroup and lock it; one of this name that a dead conch has left empty is replaced.

        Another conch may take ours for left before it is locked, and remove it: that takes it no time to speak of.
        """
        until = time.monotonic() + _SETTLE_S
        while True:
            try:
                os.mkdir(path, 0o755)
            except FileExistsError:
                if not remove_if_left(path):
                    if time.monotonic() > until:
                        raise
                    time.sleep(_PAUSE_S)
                continue
            try:
                lock = _lock_if_there(path)
            except OSError:
                os.rmdir(path)
                raise
            if lock is not None:
                cgroup = cls(path, required=required)
                cgroup._lock = lock
                return cgroup

    def fork(self) -> int:
        """As `os.fork`, of a child that is born in it; for its owner, see `linux.fork_into`."""
        from conch.core import linux  # late: the keeper forks nothing

        if self._lock is None:
            raise ValueError(f"{self.path} is not ours")
        return linux.fork_into(self._lock)

    def enter(self) -> None:
        """Move the calling process into it."""
        _write(f"{self.path}/cgroup.procs", b"0")

    def populated(self) -> bool:
        """Whether a process lives in it or below it. One that has ended and is to be reaped does not."""
        return b"populated 1" in _read_or_empty(f"{self.path}/cgroup.events")

    def wait_until_empty(self, timeout_s: float = _SETTLE_S) -> bool:
        """Wait until nothing lives in it, at most for this time; return whether it is so."""
        return self._wait_for(b"populated 0", timeout_s)

    def _wait_for(self, line: bytes, timeout_s: float) -> bool:
        until = time.monotonic() + timeout_s
        try:
            events = os.open(f"{self.path}/cgroup.events", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            return error.errno in _GONE
        try:
            poller = select.poll()
            poller.register(events, select.POLLPRI)
            while True:
                try:
                    if line in os.pread(events, 4096, 0):
                        return True
                except OSError as error:
                    return error.errno in _GONE
                left_s = until - time.monotonic()
                if left_s <= 0:
                    return False
                poller.poll(left_s * 1000)
        finally:
            os.close(events)

    def pids(self) -> set[int]:
        """Return the processes in it and below it, those that only wait to be reaped left out."""
        return {
            int(pid)
            for folder in self._folders()
            for pid in _read_or_empty(f"{folder}/cgroup.procs", also=errno.EOPNOTSUPP).split()
        }

    def signal(self, number: int, *, except_group: int | None = None) -> None:
        """Signal each process in it and below it, those of one process group left out."""
        unsignalled = self.pids()
        while unsignalled:
            self._signal_some(unsignalled, number, except_group)

    def _signal_some(self, unsignalled: set[int], number: int, except_group: int | None) -> None:
        """Signal as many as there are descriptors for, and take them out of the set."""
        pidfds: dict[int, int] = {}
        try:
            while unsignalled and len(pidfds) < _AT_ONCE:
                pid = unsignalled.pop()
                try:
                    pidfds[pid] = os.pidfd_open(pid)
                except OSError as error:
                    if error.errno not in _NO_DESCRIPTORS:
                        continue  # it has ended, or is outside of our pid namespace
                    if not pidfds:
                        raise
                    last, pidfd = pidfds.popitem()
                    unsignalled |= {pid, last}
                    os.close(pidfd)  # the list below takes one, too
                    if not pidfds:
                        raise
                    break
            # one whose pid is still listed was ours when its descriptor was opened, or has ended since
            for pid in pidfds.keys() & self.pids():
                try:
                    if os.getpgid(pid) != except_group:
                        signal.pidfd_send_signal(pidfds[pid], number)
                except OSError:
                    pass  # it has ended, or belongs to another user
        finally:
            for pidfd in pidfds.values():
                os.close(pidfd)

    def kill(self) -> None:
        """SIGKILL everything in it and below it, also what is just being forked."""
        try:
            _write(f"{self.path}/cgroup.kill", b"1")
        except OSError:
            if os.path.isdir(self.path):
                self.freeze_and_kill()

    def freeze_and_kill(self) -> None:
        """As `kill`, for kernels before 5.14: what is frozen cannot fork, and dies of SIGKILL all the same.

        What cannot be frozen is killed one by one; it may fork meanwhile.
        """
        try:
            _write(f"{self.path}/cgroup.freeze", b"1")
        except OSError:
            self.signal(signal.SIGKILL)
            return
        try:
            self._wait_for(b"frozen 1", _FREEZE_S)
            self.signal(signal.SIGKILL)
        finally:
            _write(f"{self.path}/cgroup.freeze", b"0")

    def usage(self) -> Usage | None:
        """Return what all of it has used so far; None if the cgroup does not say. Peak memory needs its controller."""
        try:
            fields = dict(line.split() for line in _read_or_empty(f"{self.path}/cpu.stat").splitlines())
            peak = _read_or_empty(f"{self.path}/memory.peak")
            return Usage(int(fields[b"usage_usec"]) / 1e6, int(peak) // 1024 if peak.strip() else None)
        except (OSError, KeyError, ValueError):
            return None

    def remove(self) -> bool:
        """Remove it and what is below it, if nothing lives there; return whether it is gone."""
        try:
            os.rmdir(self.path)
            gone = True
        except OSError as error:
            gone = error.errno in _GONE or self._remove_all()
        self.close()
        return gone

    def _remove_all(self) -> bool:
        try:
            self.wait_until_empty()
            for folder in reversed(list(self._folders())):
                os.rmdir(folder)
        except OSError as error:
            return error.errno in _GONE
        return True

    def close(self) -> None:
        """Give up the lock."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _folders(self) -> Iterator[str]:
        """Yield the directories from this one down, each before what is below it."""
        yield self.path
        below = [self.path]
        while below:
            try:
                entries = list(os.scandir(below.pop()))
            except OSError as error:
                if error.errno not in _GONE:
                    raise
                continue
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    below.append(entry.path)
                    yield entry.path


def path_of(parent: str, run_id: str) -> str:
    """Return the directory of the cgroup of a run."""
    return f"{parent}/{PREFIX}{run_id}"


def remove_if_left(path: str) -> bool:
    """Remove a cgroup whose conch is dead, if nothing lives in it; return whether it is gone."""
    try:
        lock = _lock_if_there(path)
    except OSError:
        return False
    if lock is None:
        return not os.path.isdir(path)
    try:
        cgroup = Cgroup(path)
        return not cgroup.populated() and cgroup.remove()
    except OSError:
        return False
    finally:
        os.close(lock)


def remove_left(parent: str) -> None:
    """Remove the empty cgroups that dead conchs have left below `parent`, if that is not "".

    Where there are many, as when many conchs start together, each looks at some.
    """
    if not parent:
        return
    try:
        names = [name for name in os.listdir(parent) if _is_ours(name)]
        for name in names if len(names) <= _LOOK_AT else sorted(names, key=lambda _: os.urandom(4))[:_LOOK_AT]:
            remove_if_left(f"{parent}/{name}")
    except OSError:
        pass  # the next one may


def _is_ours(name: str) -> bool:
    """Whether a directory has the name of a run's cgroup."""
    run_id = name.removeprefix(PREFIX)
    return len(run_id) == 16 != len(name) and not set(run_id) - set("0123456789abcdef")


def _lock_if_there(path: str) -> int | None:
    """Lock a directory; None if it is not there, was made anew just now, or is locked by another process."""
    import fcntl

    try:
        folder = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    locked = False
    try:
        fcntl.flock(folder, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locked = os.path.samestat(os.fstat(folder), os.stat(path))
    except (BlockingIOError, FileNotFoundError):
        pass
    finally:
        if not locked:
            os.close(folder)
    return folder if locked else None


def _write(path: str, data: bytes) -> None:
    file = os.open(path, os.O_WRONLY | os.O_CLOEXEC)
    try:
        os.write(file, data)
    finally:
        os.close(file)


def _read_or_empty(path: str, *, also: int | None = None) -> bytes:
    """Return what a file of a cgroup says, nothing if the cgroup has gone, the file is not there, or `also`."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            return b"".join(iter(lambda: os.read(file, 65536), b""))
        finally:
            os.close(file)
    except OSError as error:
        if error.errno in _GONE or error.errno == also:
            return b""
        raise
