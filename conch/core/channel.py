"""The channel between supervisor and keeper: messages over a socket pair, and the page of deadlines.

Sends never block. A deadline is not sent but published in a page that both share: however long the
supervisor was stopped, it finds the newest one and nothing else, and a renewal wakes nobody.
"""

import errno
import socket
from collections import deque

from conch.core.deadline_page import DeadlinePage
from conch.core.messages import ChannelError, Message, Renewed, decode, encode

_MESSAGE_BYTES = 262144


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
