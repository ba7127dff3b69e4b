"""The supervisor's one event loop: descriptors, signals, processes and the terminal, for the decisions to use."""

import os
import select
import signal
import socket
from collections.abc import Callable, Mapping, Sequence

from conch.core import clock, process, system, tree
from conch.core.link import Held, Link, Message, pair
from conch.core.plan import ENDING, PASSED_ON, End, Plan
from conch.core.process import Dispositions, Process, Spec
from conch.core.run import Tree
from conch.core.supervisor import Supervisor
from conch.core.terminal import Terminal
from conch.core.tree import Stat
from conch.log import Log

_NOTED = frozenset({*ENDING, *PASSED_ON, signal.SIGCHLD})
# A conch in the background must be able to take the terminal back and to write to it.
_IGNORED = frozenset({signal.SIGTTOU, signal.SIGTTIN})
# How long a keeper may take to leave by itself at the end, before it is killed.
_KEEPER_LEAVES_S = 1.0


class Signals:
    """Turns signals into bytes on a descriptor; knows what to give back to children."""

    def __init__(self) -> None:
        self._out, self._in = socket.socketpair()
        self._noted: list[int] = []
        self._out.setblocking(False)
        self._in.setblocking(False)
        reset = {signal.SIGPIPE, signal.SIGXFSZ}  # Python itself ignores these
        for number in _IGNORED:
            if signal.getsignal(number) != signal.SIG_IGN:
                reset.add(number)
            signal.signal(number, signal.SIG_IGN)
        for number in _NOTED:
            # what was ignored when conch started (nohup, a shell's &) stays ignored, here and in the child
            if number == signal.SIGCHLD or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._note)
        signal.set_wakeup_fd(self._in.fileno(), warn_on_full_buffer=False)
        mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, _NOTED)
        self.dispositions = Dispositions(tuple(reset), frozenset(mask))

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self._out.fileno()

    def _note(self, number: int, _frame: object) -> None:
        """All that a handler does. The descriptor wakes the loop; a flood may fill it, but loses nothing here."""
        self._noted.append(number)

    def take(self) -> list[int]:
        """The signals that arrived since the last call, in order."""
        try:
            while self._out.recv(4096):
                pass
        except BlockingIOError:
            pass  # all read
        noted, self._noted = self._noted, []
        return noted


class Loop:
    """Runs a `Supervisor` on the real system; it is its `Ports`."""

    def __init__(
        self,
        plan: Plan,
        command: Sequence[str],
        file: str,
        keeper_main: Callable[[Link], None],
        log: Log,
    ) -> None:
        self._name = plan.name
        self._command = command
        self._file = file
        self._keeper_main = keeper_main
        self._log = log
        self._me = os.getpid()
        # Python answers with a lazily changing environment; children get what conch was started with.
        self._environment: Mapping[str, str] = dict(os.environ)
        self._signals = Signals()
        self._terminal = Terminal()
        self._timer = system.Timer()
        self._poller = select.poll()
        self._poller.register(self._signals, select.POLLIN)
        self._poller.register(self._timer.fileno(), select.POLLIN)
        self._link: Link | None = None
        self._keeper: int | None = None
        self._child: Process | None = None
        self._is_hook = False
        self._lent = False
        self._strangers = self._find_strangers()
        system.become_subreaper()
        self._supervisor = Supervisor(plan, self, log)

    def run(self) -> int:
        """Work until the supervisor is done; return conch's exit code."""
        supervisor = self._supervisor
        supervisor.begin()
        while not supervisor.done:
            self._timer.arm(supervisor.wake_at)
            self._wait()
            self._timer.clear()
            self._read_link()
            supervisor.on_time()
            for number in self._signals.take():
                self._on_signal(number)
            self._log.flush()
        self._dismiss_keeper()
        return supervisor.code

    def _wait(self) -> None:
        if self._link is not None:
            events = select.POLLIN | (select.POLLOUT if self._link.pending else 0)
            self._poller.modify(self._link, events)
        self._poller.poll()

    def _read_link(self) -> None:
        link = self._link
        if link is None:
            return
        link.flush()
        for message in link.drain():
            self._supervisor.on_message(message)
        if link.closed and link is self._link:
            self._supervisor.on_keeper_death()

    def _on_signal(self, number: int) -> None:
        if number == signal.SIGCHLD:
            self._reap_orphans()
            self._stop_with_child()
            self._supervisor.on_change()
            return
        if number == signal.SIGCONT:
            self._continue_child()
        self._supervisor.on_signal(number)

    # -- Ports --------------------------------------------------------------------------------------------

    def now(self) -> float:
        """Seconds of CLOCK_BOOTTIME."""
        return clock.now()

    def jitter(self, low: float, high: float) -> float:
        """A random number between the two."""
        import random  # late: it is slow to import, and most runs need none

        return random.uniform(low, high)

    def start_keeper(self) -> None:
        """Fork the keeper: a session of its own, deaf to signals, with none of our descriptors but link and stderr."""
        ours, theirs = pair()
        before = signal.pthread_sigmask(signal.SIG_SETMASK, signal.valid_signals())
        try:
            pid = os.fork()
            if pid == 0:
                self._become_keeper(theirs)
        except OSError:
            ours.close()
            theirs.close()
            raise
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        self._keeper = pid
        self._link = ours
        self._poller.register(ours, select.POLLIN)

    def _become_keeper(self, link: Link) -> None:
        code = 1
        try:
            os.setsid()
            signal.set_wakeup_fd(-1)
            for number in signal.valid_signals() - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
                signal.signal(number, signal.SIG_IGN)
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, 0)
            os.dup2(null, 1)
            for name in os.listdir("/proc/self/fd"):
                if int(name) > 2 and int(name) != link.fileno():
                    try:
                        os.close(int(name))
                    except OSError:
                        pass  # the listing's own descriptor
            signal.pthread_sigmask(signal.SIG_SETMASK, ())
            self._keeper_main(link)
            code = 0
        except Exception:
            import traceback  # the top of a process: a defect is shown, and the supervisor fails closed

            traceback.print_exc()
        finally:
            os._exit(code)

    def drop_keeper(self) -> None:
        """SIGKILL the keeper and reap it."""
        if self._keeper is not None:
            os.kill(self._keeper, signal.SIGKILL)
            os.waitpid(self._keeper, 0)
            self._keeper = None
        if self._link is not None:
            self._poller.unregister(self._link)
            self._link.close()
            self._link = None

    def send(self, message: Message) -> None:
        """Send to the keeper."""
        if self._link is not None:
            self._link.send(message)

    def start_tree(self, hook: str | None, hold: Held, start_by: float | None) -> Tree:
        """Fork the hook or the child behind its gate; lend it the terminal if it is the child."""
        environment = {
            **self._environment,
            "CONCH_NAME": self._name,
            "CONCH_REV": str(hold.rev),
            "CONCH_LEASE": f"{hold.lease:x}",
            "CONCH_HOLD_KEY": hold.key,
        }
        if hook is None:
            spec = Spec(self._file, tuple(self._command), environment)
        else:
            spec = Spec("/bin/sh", ("/bin/sh", "-c", hook), environment, no_input=True)
        child = process.start(
            spec,
            tree=process.new_tree_id(),
            start_by=start_by,
            dispositions=self._signals.dispositions,
            spare=self._spared,
        )
        self._child = child
        self._is_hook = hook is not None
        self._lent = not self._is_hook and self._terminal.lend(child.pid)
        return child

    def open_gate(self, tree: Tree) -> None:
        """Let the main process exec."""
        if self._child is tree and self._child is not None:
            self._child.open_gate()

    def reap(self, tree: Tree) -> End:
        """Take the terminal back and let the main process go."""
        child = self._child
        if child is None or child is not tree:
            return End()
        died_of = child.died_of()
        error = child.exec_error()
        late = error == process.LATE
        if self._lent:
            self._terminal.take_back(child.pid, restore=died_of is not None)
        child.reap()
        self._child = None
        interrupted = self._lent and died_of in (signal.SIGINT, signal.SIGQUIT)
        self._lent = False
        return End(None if late else error, late, interrupted)

    # -- processes ----------------------------------------------------------------------------------------

    def _find_strangers(self) -> dict[int, Stat]:
        """What was below conch before it started anything (`job & exec conch …`): not ours to end."""
        everyone = tree.processes()
        below = tree.descendants(self._me, everyone, lambda _entry: False)
        return {entry.pid: entry for entry in below}

    def _spared(self, entry: Stat) -> bool:
        """Whether this child of conch is not part of what runs under the hold."""
        if entry.pid == self._keeper:
            return True
        if not self._strangers:
            return False
        before = self._strangers.get(entry.pid)
        if before is not None and before.start == entry.start:
            return True
        # An orphan of theirs that came to us: in one of their groups, and without the mark of our run.
        groups = {stranger.group for stranger in self._strangers.values()}
        marked = self._child is not None and tree.carries(entry.pid, self._child.tree)
        return entry.group in groups and not marked

    def _reap_orphans(self) -> None:
        """Reap what was orphaned below us and ended; the child and the keeper have their own moments."""
        kept = (self._keeper, self._child.pid if self._child else None)
        try:
            while True:
                ended = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
                if ended is None or ended.si_pid in kept:
                    return  # behind one of these others may wait; as zombies they do no harm
                os.waitpid(ended.si_pid, os.WNOHANG)
        except ChildProcessError:
            pass  # no children at all

    def _dismiss_keeper(self) -> None:
        """The keeper ends when the link closes; it is not left behind in any case."""
        if self._link is not None:
            self._poller.unregister(self._link)
            self._link.close()
            self._link = None
        if self._keeper is not None:
            entry = tree.stat(self._keeper)
            if entry is not None:
                tree.wait_for_ends([entry], _KEEPER_LEAVES_S)
            self.drop_keeper()

    # -- job control --------------------------------------------------------------------------------------

    def _stop_with_child(self) -> None:
        """A child of the terminal was stopped (Ctrl-Z, or a read in the background): stop too, as its shell expects."""
        child = self._child
        if child is None or self._is_hook or not self._terminal.ours:
            return
        stopped_by = child.stopped_by()
        if stopped_by is None or (stopped_by == signal.SIGSTOP and not self._lent):
            return
        if stopped_by in (signal.SIGTTIN, signal.SIGTTOU) and self._terminal.in_foreground():
            self._continue_child()  # brought to the foreground by a shell that saw no reason to continue us
            return
        self._terminal.take_back(child.pid)
        self._terminal.stop_ourselves()
        # Continued; or never stopped, because nobody could continue us (an orphaned process group).
        arrived = self._signals.take()
        self._read_link()
        self._supervisor.on_time()
        if signal.SIGCONT not in arrived and self._child is child:
            self._continue_child(only_with_terminal=True)
        for number in arrived:
            self._on_signal(number)

    def _continue_child(self, *, only_with_terminal: bool = False) -> None:
        """`fg` gives the terminal to the child again; `bg` only lets it run on."""
        child = self._child
        if child is None or self._is_hook or not self._terminal.ours:
            return
        self._lent = self._terminal.lend(child.pid) or self._lent
        if self._lent or not only_with_terminal:
            child.signal_group(signal.SIGCONT)
