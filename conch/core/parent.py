"""What every supervising process has: its signals, its timer, its keeper and the link to it."""

import os
import select
import signal
import socket
from collections.abc import Callable, Collection

from conch.core import system, tree
from conch.core.link import Link, Message, pair
from conch.core.plan import ENDING, PASSED_ON
from conch.core.process import Dispositions
from conch.log import Lines, Log

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


class Parent:
    """Starts, hears and ends the keeper; waits for descriptors, signals and moments."""

    def __init__(
        self, keeper_main: Callable[[Link], None], log: Log, *, holds: int = 1, kept_open: Collection[int] = ()
    ) -> None:
        """`holds` is how many may be held at a time; the descriptors `kept_open` are the keeper's too."""
        self.log = log
        self.keeper: int | None = None
        self._keeper_main = keeper_main
        self._holds = holds
        self._kept_open = kept_open
        self._link: Link | None = None
        self._writing: set[int] = set()
        self.signals = Signals()
        self._timer = system.Timer()
        self.poller = select.poll()
        self.poller.register(self.signals, select.POLLIN)
        self.poller.register(self._timer.fileno(), select.POLLIN)
        system.become_subreaper()

    def wait(self, until: float | None) -> list[tuple[int, int]]:
        """Return at the moment `until` (CLOCK_BOOTTIME), or when any descriptor is ready: which, as poll tells."""
        self._timer.arm(until)
        if self._link is not None:
            events = select.POLLIN | (select.POLLOUT if self._link.pending else 0)
            self.poller.modify(self._link, events)
        ready = self.poller.poll()
        self._timer.clear()
        return ready

    def want_write(self, lines: Lines) -> None:
        """Have `wait` return when lines that wait could be written."""
        fd = lines.fileno()
        if lines.pending and fd not in self._writing:
            self._writing.add(fd)
            self.poller.register(fd, select.POLLOUT)
        elif not lines.pending and fd in self._writing:
            self._writing.remove(fd)
            self.poller.unregister(fd)

    def receive(self, on_message: Callable[[Message], None], on_death: Callable[[], None]) -> None:
        """Pass on what the keeper sent, then its death if it ended."""
        link = self._link
        if link is None:
            return
        link.flush()
        for message in link.drain():
            on_message(message)
        if link.closed and link is self._link:
            on_death()

    def follow(self, holds: set[int]) -> None:
        """Hear of the deadlines of these holds."""
        if self._link is not None:
            self._link.follow(holds)

    def start_keeper(self) -> None:
        """Fork the keeper: a session of its own, deaf to signals, with none of our descriptors but link and stderr."""
        ours, theirs = pair(self._holds)
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
        self.keeper = pid
        self._link = ours
        self.poller.register(ours, select.POLLIN)

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
                if int(name) > 2 and int(name) != link.fileno() and int(name) not in self._kept_open:
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
        if self.keeper is not None:
            os.kill(self.keeper, signal.SIGKILL)
            os.waitpid(self.keeper, 0)
            self.keeper = None
        if self._link is not None:
            self.poller.unregister(self._link)
            self._link.close()
            self._link = None

    def send(self, message: Message) -> None:
        """Send to the keeper."""
        if self._link is not None:
            self._link.send(message)

    def dismiss_keeper(self) -> None:
        """The keeper ends when the link closes; it is not left behind in any case."""
        if self._link is not None:
            self.poller.unregister(self._link)
            self._link.close()
            self._link = None
        if self.keeper is not None:
            entry = tree.stat(self.keeper)
            if entry is not None:
                tree.wait_for_ends([entry], _KEEPER_LEAVES_S)
            self.drop_keeper()
