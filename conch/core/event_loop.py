"""What every supervising process has: its signals, its timer, its keeper and the channel to it."""

import os
import select

from conch.core import clock, keeper_process, linux, procfs
from conch.core.channel import Channel
from conch.core.messages import Message, Renewed
from conch.core.spawn import Dispositions
from conch.core.states import ENDING, PASSED_ON
from conch.errors import EXIT_DEFECT
from conch.line_writer import LineWriter
from conch.log import Log
from conch.plain_signal import signal
from conch.plain_socket import socket
from conch.static_typing import TYPE_CHECKING, Callable, Collection

if TYPE_CHECKING:
    from collections import deque
else:
    try:
        from _collections import deque
    except ImportError:  # nobody promises this name
        from collections import deque

_NOTED = frozenset({*ENDING, *PASSED_ON, signal.SIGCHLD})
# In the background, conch must be able to take the terminal back and to write to it.
_IGNORED = frozenset({signal.SIGTTOU, signal.SIGTTIN})
# How long a keeper may take to exit by itself at the end, before it is killed.
_KEEPER_LEAVES_S = 1.0
# How long messages are handled before all else has its turn: orders to start many runs arrive together.
_SLICE_S = 0.1


class Signals:
    """Turns signals into bytes on a descriptor, whichever thread gets them; knows the dispositions for children."""

    def __init__(self, ignored: Collection[int] = _IGNORED) -> None:
        self._out, self._in = socket.socketpair()
        self._noted: list[int] = []
        self._out.setblocking(False)
        self._in.setblocking(False)
        reset: set[int] = {signal.SIGPIPE, signal.SIGXFSZ}  # Python itself ignores these
        for number in ignored:
            if signal.getsignal(number) != signal.SIG_IGN:
                reset.add(number)
            signal.signal(number, signal.SIG_IGN)
        for number in _NOTED:
            self.note(number)
        signal.set_wakeup_fd(self._in.fileno(), warn_on_full_buffer=False)
        mask = signal.pthread_sigmask(signal.SIG_UNBLOCK, _NOTED)
        self.dispositions = Dispositions(tuple(reset), frozenset(mask))

    def fileno(self) -> int:
        """The descriptor to poll."""
        return self._out.fileno()

    def note(self, number: int) -> None:
        """Record this signal. If it was ignored when conch started (nohup, a shell's &), it stays ignored."""
        if number == signal.SIGCHLD or signal.getsignal(number) != signal.SIG_IGN:
            signal.signal(number, self._note)

    @staticmethod
    def heard(number: int) -> bool:
        """Whether this signal is recorded; if not, it was ignored when conch started."""
        return signal.getsignal(number) != signal.SIG_IGN

    def _note(self, number: int, _frame: object) -> None:
        """Only record the signal. The descriptor wakes the loop; a flood may fill it but loses nothing."""
        self._noted.append(number)

    def close(self) -> None:
        """Stop waking the loop; signals are still recorded, so that none ends conch while it exits."""
        signal.set_wakeup_fd(-1)
        self._out.close()
        self._in.close()

    def take(self) -> list[int]:
        """Return the signals that arrived since the last call, in order."""
        try:
            while self._out.recv(4096):
                pass
        except BlockingIOError:
            pass  # all read
        noted, self._noted = self._noted, []
        return noted


class SupervisorLoop:
    """Starts the keeper, receives its messages and ends it; waits for descriptors, signals and times."""

    def __init__(
        self,
        keeper_main: Callable[[Channel], None],
        log: Log,
        *,
        send_spec: bytes = b"",
        holds: int = 1,
        kept_open: Collection[int] = (),
    ) -> None:
        """`send_spec` tells a keeper that was forked early what a later one knows from `keeper_main`.

        `holds` is how many may be held at a time; the keeper keeps the descriptors `kept_open`.
        """
        self.log = log
        self.keeper: int | None = None
        self._keeper_main = keeper_main
        self._spec = send_spec
        self._holds = holds
        self._kept_open = kept_open
        self._channel: Channel | None = None
        self._arrived: deque[Message] = deque()  # and not handled yet
        self._writing: set[int] = set()
        self.signals = Signals()
        self._timer = linux.Timer()
        self.poller = select.poll()
        self.poller.register(self.signals, select.POLLIN)
        self.poller.register(self._timer.fileno(), select.POLLIN)
        linux.become_subreaper()

    def wait(self, until: float | None) -> list[tuple[int, int]]:
        """Wait until `until` (CLOCK_BOOTTIME) or until a descriptor is ready; return the ready ones as poll does.

        It does not wait while messages that have arrived are not handled yet.
        """
        self._timer.arm(0.0 if self._arrived else until)
        if self._channel is not None:
            events = select.POLLIN | (select.POLLOUT if self._channel.pending else 0)
            self.poller.modify(self._channel, events)
        ready = self.poller.poll()
        if any(fd == self._timer.fileno() for fd, _ in ready):
            self._timer.clear()
        return ready

    def close(self) -> None:
        """Close what was opened."""
        self.signals.close()
        self._timer.close()

    def want_write(self, lines: LineWriter) -> None:
        """Make `wait` return when pending lines could be written."""
        fd = lines.fileno()
        if lines.pending and fd not in self._writing:
            self._writing.add(fd)
            self.poller.register(fd, select.POLLOUT)
        elif not lines.pending and fd in self._writing:
            self._writing.remove(fd)
            self.poller.unregister(fd)

    def receive(
        self,
        on_message: Callable[[Message], None],
        on_death: Callable[[], None],
        *,
        at_once: tuple[type[Message], ...] = (),
    ) -> None:
        """Pass on the messages of the keeper, for at most 0.1 s a call; after the last one its death, if it ended.

        Those `at_once` are passed on when they arrive, and again in their turn.
        """
        channel = self._channel
        if channel is None:
            return
        channel.flush()
        arrived = channel.drain()
        # deadlines first: a message must not be handled with the deadline known when we last woke
        for message in arrived:
            if isinstance(message, (Renewed, *at_once)):
                on_message(message)
            if not isinstance(message, Renewed):
                self._arrived.append(message)
        until = clock.now() + _SLICE_S
        while self._arrived:
            on_message(self._arrived.popleft())
            if clock.now() >= until:
                break
        if channel.closed and channel is self._channel and not self._arrived:
            on_death()

    @property
    def has_messages(self) -> bool:
        """Whether messages have arrived that are not handled yet."""
        return bool(self._arrived)

    def follow(self, holds: set[int]) -> None:
        """Receive the deadlines of these holds."""
        if self._channel is not None:
            self._channel.follow(holds)

    # -- LoopPorts ----------------------------------------------------------------------------------------

    @staticmethod
    def now() -> float:
        """Return the seconds of CLOCK_BOOTTIME."""
        return clock.now()

    @staticmethod
    def jitter(low: float, high: float) -> float:
        """Return a random number between the two."""
        # `random` is slow to import, and cannot be imported where no descriptor is left
        return low + (high - low) * int.from_bytes(os.urandom(4)) / 0xFFFFFFFF

    def start_keeper(self) -> None:
        """Take the keeper that was forked early, if there is one and a spec for it; else fork one."""
        early = keeper_process.take_early() if self._spec else None
        if early is None:
            self.keeper, self._channel = keeper_process.fork_keeper(
                self._keeper_main, holds=self._holds, kept_open=self._kept_open
            )
        else:
            self.keeper, self._channel = early
            self._channel.send_spec(self._spec)
        self.poller.register(self._channel, select.POLLIN)

    def drop_keeper(self) -> bool:
        """SIGKILL the keeper and reap it; return whether it had ended because of a defect of its own."""
        defect = False
        self._arrived.clear()  # what it said of holds is not true of the next one's
        if self.keeper is not None:
            os.kill(self.keeper, signal.SIGKILL)
            _, status = os.waitpid(self.keeper, 0)
            defect = os.waitstatus_to_exitcode(status) == EXIT_DEFECT
            self.keeper = None
        if self._channel is not None:
            self.poller.unregister(self._channel)
            self._channel.close()
            self._channel = None
        return defect

    def send(self, message: Message) -> None:
        """Send to the keeper."""
        if self._channel is not None:
            self._channel.send(message)

    # -- the end ------------------------------------------------------------------------------------------

    def dismiss_keeper(self) -> None:
        """Close the channel, which ends the keeper; kill it if it does not exit in time."""
        if self._channel is not None:
            self.poller.unregister(self._channel)
            self._channel.close()
            self._channel = None
        if self.keeper is not None:
            entry = procfs.stat(self.keeper)
            if entry is not None:
                procfs.wait_for_ends([entry], _KEEPER_LEAVES_S)
            self.drop_keeper()
