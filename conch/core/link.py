"""The link between supervisor and keeper: small messages over a socket pair, and the newest deadline.

Sends never block. The deadline is not sent but published in a page that both share: however long the
supervisor was stopped, it finds the newest one and nothing else, and a renewal wakes nobody.
"""

import json
import mmap
import socket
import struct
import zlib
from collections import deque
from dataclasses import asdict, dataclass, fields
from typing import Any, ClassVar

_MESSAGE_BYTES = 65536
_TEXT_CHARACTERS = 2000


class LinkError(Exception):
    """A message that does not belong on the link: a defect of conch."""


@dataclass(frozen=True, slots=True)
class Message:
    """What goes over the link; each kind is a subclass with plain fields."""

    kind: ClassVar[str] = ""


@dataclass(frozen=True, slots=True)
class Answered(Message):
    """etcd answered and granted this lease: from now on there may be something to give back."""

    kind: ClassVar[str] = "answered"
    lease: int


@dataclass(frozen=True, slots=True)
class Queued(Message):
    """We wait in line, with this create-revision."""

    kind: ClassVar[str] = "queued"
    rev: int


@dataclass(frozen=True, slots=True)
class Held(Message):
    """The hold is ours. `deadline` is in seconds of CLOCK_BOOTTIME, `ttl_s` is what etcd granted."""

    kind: ClassVar[str] = "held"
    number: int
    rev: int
    lease: int
    key: str
    ttl_s: float
    deadline: float


@dataclass(frozen=True, slots=True)
class Renewed(Message):
    """The newest confirmed deadline of acquisition `number`."""

    kind: ClassVar[str] = "renewed"
    number: int
    deadline: float


@dataclass(frozen=True, slots=True)
class Lost(Message):
    """The hold of acquisition `number` is gone for certain."""

    kind: ClassVar[str] = "lost"
    number: int
    reason: str


@dataclass(frozen=True, slots=True)
class Failed(Message):
    """The acquisition failed and left nothing in etcd; with the exit code of the contract."""

    kind: ClassVar[str] = "failed"
    code: int
    message: str


@dataclass(frozen=True, slots=True)
class Released(Message):
    """The lease was given back, or `reason` says why that is unknown."""

    kind: ClassVar[str] = "released"
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Note(Message):
    """A line for the log: the keeper itself writes none."""

    kind: ClassVar[str] = "note"
    level: str
    event: str
    text: dict[str, str | int | float]


@dataclass(frozen=True, slots=True)
class Acquire(Message):
    """Queue up. `give_up_at` is in seconds of CLOCK_BOOTTIME; `abandon` is the lease of a crashed keeper."""

    kind: ClassVar[str] = "acquire"
    number: int
    give_up_at: float | None = None
    abandon: int | None = None


@dataclass(frozen=True, slots=True)
class Running(Message):
    """A process group `pid` is about to exec; all it starts carries `tree` in its environment.

    `bound`: it must not outlive the hold (a hook after a loss is not, but it dies with the supervisor too).
    """

    kind: ClassVar[str] = "running"
    pid: int
    tree: str
    bound: bool = True


@dataclass(frozen=True, slots=True)
class Ended(Message):
    """The tree was seen empty."""

    kind: ClassVar[str] = "ended"


@dataclass(frozen=True, slots=True)
class Release(Message):
    """Give the lease back; a keeper that does not know it revokes `lease`."""

    kind: ClassVar[str] = "release"
    lease: int | None = None


_KINDS: dict[str, type[Message]] = {
    c.kind: c for c in (Answered, Queued, Held, Renewed, Lost, Failed, Released, Note, Acquire, Running, Ended, Release)
}


def encode(message: Message) -> bytes:
    """The message as it goes over the link."""
    return json.dumps({"kind": message.kind, **_cut(asdict(message))}).encode()


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
        raise LinkError(f"not a message: {data[:80]!r}") from None
    if set(values) != {field.name for field in fields(kind)}:
        raise LinkError(f"wrong fields for {kind.kind}: {sorted(values)}")
    return kind(**values)


class Slot:
    """One deadline in shared memory, written by the keeper and read by the supervisor; the newest wins.

    A checksum tells a reader that it saw half a write: it then keeps what it had, which is older and so safe.
    """

    _FORM = struct.Struct("=qd")
    _SUM = struct.Struct("=I")

    def __init__(self) -> None:
        self._page = mmap.mmap(-1, mmap.PAGESIZE)

    def publish(self, renewed: Renewed) -> None:
        """Make this the deadline that the reader finds."""
        record = self._FORM.pack(renewed.number, renewed.deadline)
        self._page[: self._FORM.size + self._SUM.size] = record + self._SUM.pack(zlib.crc32(record))

    def read(self) -> Renewed | None:
        """The newest deadline, or None if there is none or it is just being written."""
        data = bytes(self._page[: self._FORM.size + self._SUM.size])
        record, checksum = data[: self._FORM.size], data[self._FORM.size :]
        if self._SUM.unpack(checksum)[0] != zlib.crc32(record):
            return None
        number, deadline = self._FORM.unpack(record)
        return Renewed(number, deadline)


class Link:
    """One end of the link. Never blocks; what the socket does not take now waits in memory."""

    def __init__(self, end: socket.socket, slot: Slot) -> None:
        end.setblocking(False)
        self._socket = end
        self._slot = slot
        self._outbox: deque[bytes] = deque()
        self._seen: Renewed | None = None
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
            self._slot.publish(message)
            return
        self._outbox.append(encode(message))
        self.flush()

    def flush(self) -> None:
        """Send what the socket takes now."""
        try:
            while self._outbox and not self.closed:
                self._socket.send(self._outbox[0])
                self._outbox.popleft()
        except BlockingIOError:
            pass  # the other side is slow or stopped; the poll for writing brings us back
        except OSError:
            # The other side is gone. What it sent before is still to be read, and ends with its end.
            self._outbox.clear()

    def drain(self) -> list[Message]:
        """All that has arrived, the newest deadline last; sets `closed` when the other side is gone."""
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
        newest = self._slot.read()
        if newest is not None and newest != self._seen:
            self._seen = newest
            messages.append(newest)
        return messages

    def close(self) -> None:
        """Let the other side see the end."""
        self.closed = True
        self._socket.close()


def pair() -> tuple[Link, Link]:
    """A link's two ends: supervisor's and keeper's."""
    slot = Slot()
    left, right = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Link(left, slot), Link(right, slot)
