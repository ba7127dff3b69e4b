"""Attributing orphans to runs: processes that left their group and lost their parents become conchd's children."""

import os

from conch.core import clock, procfs
from conch.core.procfs import Stat
from conch.static_typing import Callable, Collection, Mapping

# The pause between two scans of /proc.
SCAN_PAUSE_S = 0.01


class Orphans:
    """Knows which run each orphan belongs to, by the run ids in its environment."""

    def __init__(self, runs: Collection[str], run_of_pid: Mapping[int, str], keeper: Callable[[], int | None]) -> None:
        """`runs` and `run_of_pid` (by the pid of the main process) are of the runs that live now; both change."""
        self._runs = runs
        self._run_of_pid = run_of_pid
        self._keeper = keeper
        self._pid = os.getpid()
        self._run_of_orphan: dict[tuple[int, int], str | None] = {}  # by pid and start
        self._unreadable: dict[tuple[int, int], float] = {}  # orphans that show no environment, since when
        self._preexisting = frozenset(
            (entry.pid, entry.start) for entry in procfs.descendants(self._pid, procfs.processes(), lambda _: False)
        )

    def attribute(self, scan: Mapping[int, Stat]) -> bool:
        """Find out which run each orphan of this scan belongs to; return whether that is clear for all of them.

        A zombie may be the parent of a process born after the scan began; one that is just in exec shows no
        environment for an instant. Both need another scan. A process without an environment in the second scan as
        well has wiped it: it belongs to no run.
        """
        clear = True
        known: dict[tuple[int, int], str | None] = {}
        unreadable: dict[tuple[int, int], float] = {}
        now = clock.now()
        for entry in scan.values():
            if entry.parent != self._pid or entry.pid in self._run_of_pid or entry.group in self._run_of_pid:
                continue
            identity = (entry.pid, entry.start)
            if entry.pid == self._keeper() or identity in self._preexisting:
                continue
            if entry.dead:
                clear = False
                reap_zombie(entry)
            elif self._run_of_orphan.get(identity) is not None:
                known[identity] = self._run_of_orphan[identity]
            else:
                run_ids = procfs.run_ids_of(entry.pid)
                if run_ids is None:
                    unreadable[identity] = self._unreadable.get(identity, now)
                    clear = clear and now - unreadable[identity] >= SCAN_PAUSE_S
                known[identity] = next((run_id for run_id in run_ids or () if run_id in self._runs), None)
        self._run_of_orphan, self._unreadable = known, unreadable
        return clear

    def excluded(self, entry: Stat, run: str) -> bool:
        """Whether this process is not part of the run: only conchd's own children can belong to another one."""
        if entry.parent != self._pid:
            return False
        owner = (
            self._run_of_pid.get(entry.pid)
            or self._run_of_pid.get(entry.group)
            or self._run_of_orphan.get((entry.pid, entry.start))
        )
        return owner != run


def reap_zombie(entry: Stat) -> None:
    """Reap a process that has ended, if it is our child."""
    try:
        os.waitpid(entry.pid, os.WNOHANG)
    except ChildProcessError:
        pass  # reaped already, or a child of another process
