"""The link between supervisor and keeper: small messages over a socket pair, and the newest deadline.

Sends never block. The deadline is not sent but published in a page that both share: however long the
supervisor was stopped, it finds the newest one and nothing else, and a renewal wakes nobody.
"""

import errno
import json
import mmap
import socket
import struct
import zlib
from collections import deque

from conch.record import Record, fields_of
from conch.static_typing import Any, ClassVar

_MESSAGE_BYTES = 262144
_TEXT_CHARACTERS = 2000


class ChannelError(Exception):
    """A message that does not belong on the link: a defect of conch."""


class Message(Record):
    """What goes over the link; each kind is a subclass with plain fields."""

    kind: ClassVar[str] = ""
    whole: ClassVar[bool] = False  # its texts are never cut


class Answered(Message):
    """etcd answered and granted this lease: from now on there may be something to give back."""

    kind: ClassVar[str] = "answered"
    lease: int


class Queued(Message):
    """We wait in line, with this create-revision."""

    kind: ClassVar[str] = "queued"
    rev: int


class Held(Message):
    """The hold is ours. `deadline` is in seconds of CLOCK_BOOTTIME, `ttl_s` is what etcd granted."""

    kind: ClassVar[str] = "held"
    number: int
    rev: int
    lease: int
    key: str
    ttl_s: float
    deadline: float


class Renewed(Message):
    """The newest confirmed deadline of acquisition `number`."""

    kind: ClassVar[str] = "renewed"
    number: int
    deadline: float


class Lost(Message):
    """The hold of acquisition `number` is gone for certain."""

    kind: ClassVar[str] = "lost"
    number: int
    reason: str


class Failed(Message):
    """The acquisition failed, with the exit code of the contract; unless `leftovers` it left nothing in etcd."""

    kind: ClassVar[str] = "failed"
    code: int
    message: str
    leftovers: bool = False


class Released(Message):
    """The lease was given back, or `reason` says why that is unknown."""

    kind: ClassVar[str] = "released"
    reason: str = ""


class Note(Message):
    """A line for the log: the keeper itself writes none."""

    kind: ClassVar[str] = "note"
    level: str
    event: str
    text: dict[str, str | int | float]


class Acquire(Message):
    """Queue up. `give_up_at` is in seconds of CLOCK_BOOTTIME; `abandon` is the lease of a crashed keeper."""

    kind: ClassVar[str] = "acquire"
    number: int
    give_up_at: float | None = None
    abandon: int | None = None


class Running(Message):
    """A process group `pid` is about to exec; all it starts carries `tree` in its environment.

    It must not outlive any of the `holds`, by their numbers (a hook after a loss has none), nor the supervisor.
    """

    kind: ClassVar[str] = "running"
    pid: int
    tree: str
    holds: list[int]
    kill_after_s: float
    run: str = ""


class Ended(Message):
    """The tree of a run was seen empty."""

    kind: ClassVar[str] = "ended"
    run: str = ""


class Release(Message):
    """Give the lease back; a keeper that does not know it revokes `lease`."""

    kind: ClassVar[str] = "release"
    lease: int | None = None


class Begin(Message):
    """To the keeper of many runs, first of all: these runs live, these have ended and are reported next.

    `leases` are those of the keeper before: what they hold is ours.
    """

    kind: ClassVar[str] = "begin"
    live: list[str]
    ended: list[str]
    first: bool
    leases: list[int]


class Begun(Message):
    """It has dealt with what was before, and etcd has answered: from now on only a signal is its end."""

    kind: ClassVar[str] = "begun"


class Start(Message):
    """Run this under these holds, of which `Held` told; its first attempt not after `start_by`.

    An attempt lasts at most `limit_s`, the first `first_limit_s`; one that fails or
    takes longer is followed by up to `retries` more.
    """

    kind: ClassVar[str] = "start"
    whole: ClassVar[bool] = True
    run: str
    label: str
    command: list[str]
    environment: dict[str, str]
    directory: str | None
    holds: list[int]
    start_by: float
    first_limit_s: float
    limit_s: float
    kill_after_s: float
    retries: int
    retry_delay_s: float


class Kill(Message):
    """End this run; `reason` goes into what is reported of it."""

    kind: ClassVar[str] = "kill"
    run: str
    reason: str


class Finished(Message):
    """A run is over and its tree empty: `ended` by itself, `timeout`, `killed`, or `unstarted`.

    `started` is wall-clock time (seconds since the epoch) of the last attempt, 0 if there was none.
    """

    kind: ClassVar[str] = "finished"
    run: str
    outcome: str
    code: int | None
    attempt: int
    started: float
    duration_s: float
    reason: str


class Recorded(Message):
    """The keeper has the end of this run safe."""

    kind: ClassVar[str] = "recorded"
    run: str


class Drain(Message):
    """Start nothing more."""

    kind: ClassVar[str] = "drain"


class Reload(Message):
    """Read anew what may have changed on disk: zones, certificates, the password."""

    kind: ClassVar[str] = "reload"


_KINDS: dict[str, type[Message]] = {
    c.kind: c
    for c in (
        *(Answered, Queued, Held, Renewed, Lost, Failed, Released, Note, Acquire, Running, Ended, Release),
        *(Begin, Begun, Start, Kill, Finished, Recorded, Drain, Reload),
    )
}


def encode(message: Message) -> bytes:
    """The message as it goes over the link."""
    values = fields_of(message)
    return json.dumps({"kind": message.kind, **(values if message.whole else _cut(values))}).encode()


def _cut(data: dict[str, Any]) -> dict[str, Any]:
    """Messages are small: long texts are cut, also those of a note."""
    return {
        name: value[:_TEXT_CHARACTERS] if isinstance(value, str) else _cut(value) if isinstance(value, dict) else value
        for name, value in data.items()
    }


def decode(data: bytes) -> Message:
    """The message that was encoded; raises `LinkError` for anything else."""
    try:
        values: dict[str, Any] = json.loads(data)
        kind = _KINDS[values.pop("kind")]
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        raise ChannelError(f"not a message: {data[:80]!r}") from None
    if set(values) != set(kind._fields):
        raise ChannelError(f"wrong fields for {kind.kind}: {sorted(values)}")
    return kind(**values)


class DeadlinePage:
    """The newest deadline of each hold in shared memory, written by the keeper and read by the supervisor.

    A checksum tells a reader that it saw half a write: it then keeps what it had, which is older and so safe.
    Hold `number` has place `number % places`; the numbers of holds at one time must not share one.
    """

    _FORM = struct.Struct("=qd")
    _SUM = struct.Struct("=I")
    _BYTES = _FORM.size + _SUM.size

    def __init__(self, places: int = 1) -> None:
        self.places = places
        self._page = mmap.mmap(-1, places * self._BYTES)

    def publish(self, renewed: Renewed) -> None:
        """Make this the deadline that the reader finds."""
        record = self._FORM.pack(renewed.number, renewed.deadline)
        at = renewed.number % self.places * self._BYTES
        self._page[at : at + self._BYTES] = record + self._SUM.pack(zlib.crc32(record))

    def read(self, place: int = 0) -> Renewed | None:
        """The newest deadline of a place, or None if there is none or it is just being written."""
        at = place * self._BYTES
        data = bytes(self._page[at : at + self._BYTES])
        record, checksum = data[: self._FORM.size], data[self._FORM.size :]
        if self._SUM.unpack(checksum)[0] != zlib.crc32(record):
            return None
        number, deadline = self._FORM.unpack(record)
        return Renewed(number, deadline)


class Channel:
    """One end of the link. Never blocks; what the socket does not take now waits in memory."""

    def __init__(self, end: socket.socket, board: DeadlinePage) -> None:
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MESSAGE_BYTES)
        self._socket = end
        self._board = board
        self._outbox: deque[bytes] = deque()
        self._followed: dict[int, Renewed | None] = {0: None} if board.places == 1 else {}
        self.closed = False

    def fileno(self) -> int:
        """The descriptor to poll for reading, and for writing while `pending`."""
        return self._socket.fileno()

    @property
    def pending(self) -> bool:
        """Whether messages wait for the socket to take them."""
        return bool(self._outbox) and not self.closed

    def send(self, message: Message) -> None:
        """Send in order, now or when the other side has read; a renewal only replaces the one before."""
        if isinstance(message, Renewed):
            self._board.publish(message)
            return
        self._outbox.append(encode(message))
        self.flush()

    def send_spec(self, data: bytes) -> None:
        """The first word to a keeper that was forked before anything was known; it takes it by `wait_for_brief`."""
        self._outbox.append(data)
        self.flush()

    def wait_for_spec(self) -> bytes:
        """The first word, once it comes; empty if the other side is gone."""
        self._socket.setblocking(True)
        try:
            return self._socket.recv(_MESSAGE_BYTES)
        except ConnectionResetError:
            return b""
        finally:
            self._socket.setblocking(False)

    def flush(self) -> None:
        """Send what the socket takes now."""
        try:
            while self._outbox and not self.closed:
                self._socket.send(self._outbox[0])
                self._outbox.popleft()
        except BlockingIOError:
            pass  # the other side is slow or stopped; the poll for writing brings us back
        except (BrokenPipeError, ConnectionResetError):
            # The other side is gone. What it sent before is still to be read, and ends with its end.
            self._outbox.clear()
        except OSError as error:
            if error.errno not in (errno.ENOBUFS, errno.ENOMEM):
                raise ChannelError(f"cannot send {self._outbox[0][:80]!r}: {error.strerror}") from None

    def drain(self) -> list[Message]:
        """All that has arrived, the newest deadlines last; sets `closed` when the other side is gone."""
        messages: list[Message] = []
        while not self.closed:
            try:
                data = self._socket.recv(_MESSAGE_BYTES)
            except BlockingIOError:
                break
            except ConnectionResetError:
                # It died with mail unread; the kernel says so once, then hands over what it had sent.
                continue
            if data:
                messages.append(decode(data))
            else:
                self.closed = True
        for place, seen in self._followed.items():
            newest = self._board.read(place)
            if newest is not None and newest != seen:
                self._followed[place] = newest
                messages.append(newest)
        return messages

    def follow(self, numbers: set[int]) -> None:
        """From now on `drain` tells of the deadlines of these holds alone; with one place it always does."""
        if self._board.places > 1:
            places = {number % self._board.places for number in numbers}
            self._followed = {place: self._followed.get(place) for place in places}

    def close(self) -> None:
        """Let the other side see the end."""
        self.closed = True
        self._socket.close()


def pair(holds: int = 1) -> tuple[Channel, Channel]:
    """A link's two ends, supervisor's and keeper's, with room for the deadlines of so many holds at a time."""
    board = DeadlinePage(holds)
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(left, board), Channel(right, board)
