"""The processes of one run as their ancestor sees them: signal them all, and prove that none is left."""

import marshal
import os
from _thread import get_native_id

from conch.core.cgroup import Cgroup, Usage
from conch.core.procfs import Stat, descendants, group_sizes, processes, signal_exactly
from conch.plain_signal import signal
from conch.static_typing import Callable, Collection, Mapping, Sequence

# What the main process says first if it could not enter its cgroup.
UNCONTAINED = "cannot enter its cgroup"
# How often to scan again while only zombies of a tree were found.
_SCANS = 50
# Children of every kind, and of the calling thread only; Python names neither.
_WALL, _WNOTHREAD = 0x40000000, 0x20000000


class Process:
    """A started run: the main process behind its gate, then its whole tree.

    The main process stays unreaped until `reap`, so its pid and group belong to nobody else until then.
    """

    def __init__(
        self,
        pid: int,
        run_id: str,
        gate: int,
        errors: int,
        exclude: Callable[[Stat], bool],
        cgroup: Cgroup | None,
        start_by: float | None,
        some_hidden: bool,
    ) -> None:
        """`start_by`, and the variables added to `environment`, reach the process when the gate is opened."""
        self.start_by = start_by
        self.environment: dict[str, str] = {}
        self.pid = pid
        self.run_id = run_id
        self._gate = gate
        self._errors = errors
        self._exclude = exclude
        self._cgroup = cgroup
        self.uncontained = ""
        self._own_usage = Usage(0.0, None)  # of the main process, and of those of its descendants that were waited for
        self._contained: set[int] = set()  # what was in the cgroup when it was last signalled
        self._some_hidden = some_hidden
        self._refused: set[int] = set()  # the processes that we may not kill
        self._reported: set[int] = set()  # those of them that `refused` has returned

    def open_gate(self) -> None:
        """Let the main process exec. Until then nothing of the command has run."""
        final = marshal.dumps((self.start_by, self.environment))
        unsent = len(final).to_bytes(4) + final
        try:
            while unsent:
                unsent = unsent[os.write(self._gate, unsent) :]
        except BrokenPipeError:
            pass  # it is dead already
        os.close(self._gate)

    def untouched(self) -> bool:
        """Whether the main process waits behind its gate as it was forked, with no signal pending for the command."""
        try:
            with open(f"/proc/{self.pid}/status", "rb", buffering=0) as file:
                lines = file.read(8192).split(b"\n")
        except OSError:
            return False
        pending = [line.split()[1] for line in lines if line.startswith((b"SigPnd:", b"ShdPnd:"))]
        return len(pending) == 2 and not any(int(mask, 16) for mask in pending) and self.exit_code() is None

    def discard(self) -> None:
        """Kill the main process behind its gate: nothing of the command will ever run."""
        os.close(self._gate)
        os.kill(self.pid, signal.SIGKILL)
        self.reap()
        self.clear_away()

    @property
    def cgroup(self) -> str:
        """The directory of its cgroup; empty if it has none."""
        return "" if self._cgroup is None else self._cgroup.path

    def exit_code(self) -> int | None:
        """Return the main process's exit code as a shell shows it (128+n for signal n), None while it lives."""
        result = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        if result is None:
            return None
        if result.si_code == os.CLD_EXITED:
            return result.si_status
        return 128 + result.si_status

    def died_of(self) -> int | None:
        """Return the signal that the main process died of, if it did."""
        result = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        return None if result is None or result.si_code == os.CLD_EXITED else result.si_status

    def stopped_by(self) -> int | None:
        """Return the signal that stopped the main process since the last call, if one did."""
        try:
            result = os.waitid(os.P_PID, self.pid, os.WSTOPPED | os.WNOHANG)
        except ChildProcessError:
            return None  # it has ended: asked for stops alone, the kernel knows no such child any more
        return None if result is None else result.si_status

    def exec_error(self) -> str | None:
        """Return why the command was not run, once the main process has ended; None if it was.

        Sets `uncontained` to the reason if it ran without its cgroup.
        """
        text = os.read(self._errors, 4096).decode("utf-8", "replace")
        if text.startswith(UNCONTAINED):
            reason, newline, rest = text.partition("\n")
            if newline:
                self.uncontained, text = reason, rest
        return text or None

    def members(self, among: Mapping[int, Stat]) -> list[Stat]:
        """Return the processes of the tree among these, without the main one."""
        return [entry for entry in descendants(os.getpid(), among, self._exclude) if entry.pid != self.pid]

    def empty(self) -> bool:
        """Whether nothing of the tree lives; its main process may still wait to be reaped."""
        if self.exit_code() is None:
            return False
        try:
            # the kernel's answer covers even the processes that /proc hides from us
            if not nothing_lives() and (self._some_hidden or not self._scan_for_emptiness()):
                return False
            # no descendant lives: if one is still in the cgroup, the kernel is about to note its end
            return self._cgroup is None or self._cgroup.wait_until_empty()
        except OSError:
            return False  # /proc cannot be read now

    def is_settling(self) -> bool:
        """Whether all of the cgroup has ended, and the kernel is only about to note it; `OSError` if unreadable."""
        cgroup = self._cgroup
        return cgroup is not None and cgroup.populated() and not cgroup.pids() and not cgroup.wait_until_empty(0.0)

    def populated(self) -> bool:
        """Whether a process lives in the cgroup, if there is one; `OSError` if that cannot be read."""
        return self._cgroup is not None and self._cgroup.populated()

    def _scan_for_emptiness(self) -> bool:
        """Scan all processes, where children of ours live that do not belong to the tree.

        A process that lived when a scan began is found alive, or as a zombie that only we can reap. So a scan that
        finds neither proves that the tree is empty, however fast its processes fork and end.
        """
        for _ in range(_SCANS):
            found = self.members(processes())
            if not found:
                return True
            if not all(entry.dead for entry in found):
                return False
            for entry in found:
                try:
                    os.waitpid(entry.pid, os.WNOHANG)
                except ChildProcessError:
                    pass  # a child of another process
        return False

    def signal_group(self, number: int) -> None:
        """Signal the process group."""
        try:
            try:
                os.killpg(self.pid, number)
            except ProcessLookupError:
                os.kill(self.pid, number)  # just forked: it has not made its session yet, and is the whole tree
        except (ProcessLookupError, PermissionError):
            pass  # the whole group has ended, or belongs to other users

    def signal_contained(self, number: int) -> None:
        """Signal what is in the cgroup, if there is one, and not in the group."""
        if self._cgroup is None:
            return
        self._contained = set()
        try:
            contained = self._cgroup.pids()
            if number == signal.SIGKILL:
                self._cgroup.kill()
            else:
                self._cgroup.signal(number, except_group=self.pid)
            self._contained = contained
        except OSError:
            pass  # what is in it is signalled as a descendant; a kill is repeated

    def signal_tree(self, number: int) -> None:
        """Signal the group, the cgroup, and every descendant that left both."""
        self.signal_group(number)
        self.signal_contained(number)
        try:
            self.signal_escaped(number, processes())
        except OSError:
            return  # /proc cannot be read now; a kill is repeated

    def signal_escaped(self, number: int, scan: Mapping[int, Stat]) -> None:
        """Signal the descendants that left group and cgroup."""
        tree = descendants(os.getpid(), scan, self._exclude)
        self.signal_those_escaped(number, tree, group_sizes(scan.values()))

    def signal_those_escaped(self, number: int, tree: Sequence[Stat], sizes: Mapping[int, int]) -> None:
        """Signal those of the tree that left group and cgroup: by a new group where all of that belongs to the tree.

        `sizes` are those of all process groups in the scan that showed the tree.
        """
        escaped = [entry for entry in tree if entry.group != self.pid and entry.pid not in self._contained]
        if number == signal.SIGKILL:
            self._note_refusals(tree)
        ours = group_sizes(escaped)
        for group in ours:
            if ours[group] == sizes[group]:
                try:
                    os.killpg(group, number)  # also reaches processes forked since the scan
                except (ProcessLookupError, PermissionError):
                    pass  # the whole group has ended, or belongs to other users
        for entry in escaped:
            if ours[entry.group] < sizes[entry.group] and not entry.dead:
                signal_exactly(entry, number)

    def _note_refusals(self, tree: Sequence[Stat]) -> None:
        for entry in tree:
            if entry.pid in self._contained:
                continue  # its cgroup was killed, whoever it belongs to
            try:
                os.kill(entry.pid, 0)
            except ProcessLookupError:
                pass  # it ended since the scan
            except PermissionError:
                self._refused.add(entry.pid)

    def refused(self) -> list[int]:
        """Return the processes of the tree that the latest SIGKILL showed we may not kill; each is returned once."""
        unreported = sorted(self._refused - self._reported)
        self._reported |= self._refused
        return unreported

    def reap(self) -> None:
        """Reap the main process, whose pid may be reused from now on. `clear_away` is to follow."""
        _, _, used = os.wait4(self.pid, 0)
        os.close(self._errors)
        self._own_usage = Usage(used.ru_utime + used.ru_stime, used.ru_maxrss)

    def clear_away(self) -> Usage:
        """Remove the cgroup of a run that was reaped; return what the run used.

        Without a cgroup that is what the main process used, and those of its descendants that were waited for.
        """
        cpu_s, max_rss_kb = self._own_usage.cpu_s, self._own_usage.max_rss_kb
        if self._cgroup is not None:
            contained = self._cgroup.usage()
            if contained is not None:
                cpu_s = contained.cpu_s
                max_rss_kb = max_rss_kb if contained.max_rss_kb is None else contained.max_rss_kb
            self._cgroup.remove()
        return Usage(round(cpu_s, 3), max_rss_kb)


def nothing_lives() -> bool:
    """Return whether no child of the main thread lives: none that it forked, and no orphaned descendant.

    True is a proof: orphaned descendants of a subreaper become children of its first thread. The answer is one system
    call, and so true at one time, however many processes there are. False proves nothing: the child that lives may
    not belong to the run.
    """
    if get_native_id() != os.getpid():
        return False
    try:
        # asked for stopped children only, the kernel does not wait for dead ones (exit.c, wait_consider_child)
        os.waitid(os.P_ALL, 0, os.WSTOPPED | os.WNOHANG | os.WNOWAIT | _WALL | _WNOTHREAD)
    except ChildProcessError:
        return True
    return False


def reap_orphans(kept: Collection[int | None]) -> None:
    """Reap the orphaned descendants that have ended; the children `kept` are reaped elsewhere."""
    try:
        while True:
            ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            if ended is None or ended.si_pid in kept:
                return  # others may wait behind this one; as zombies they do no harm
            os.waitpid(ended.si_pid, os.WNOHANG)
    except ChildProcessError:
        pass  # no children at all
