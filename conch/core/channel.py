"""The channel between supervisor and keeper: messages over a socket pair, and the page of deadlines.

Sends never block. A deadline is not sent but published in a page that both share: however long the
supervisor was stopped, it finds the newest one and nothing else, and a renewal wakes nobody.
"""

import errno

from conch.core.deadline_page import DeadlinePage
from conch.core.messages import ChannelError, Message, Renewed, decode, encode
from conch.plain_socket import socket

_MESSAGE_BYTES = 262144
# Up to this size, messages share a packet. JSON on one line has no line end of its own.
_PACKET_BYTES = 32768


class Channel:
    """One end of the channel. Never blocks; messages that the socket does not take now wait in memory."""

    def __init__(self, end: socket.socket, page: DeadlinePage) -> None:
        end.setblocking(False)
        end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _MESSAGE_BYTES)
        self._socket = end
        self._page = page
        self._outbox: list[bytes] = []
        self._followed: dict[int, Renewed | None] = {0: None} if page.places == 1 else {}
        self.closed = False

    def fileno(self) -> int:
        """Return the descriptor to poll for reading, and for writing while `pending`."""
        return self._socket.fileno()

    @property
    def pending(self) -> bool:
        """Whether messages wait for the socket to take them."""
        return bool(self._outbox) and not self.closed

    def send(self, *messages: Message) -> None:
        """Send in order, now or when the other side has read; a renewal replaces the one before.

        As many as fit share a packet: it costs more than a message, for it wakes the other side. All are sent by one
        thread, but for renewals, which any may send: they are only published.
        """
        packet = b""
        for message in messages:
            if isinstance(message, Renewed):
                self._page.publish(message)
                continue
            data = encode(message)
            if packet and len(packet) + len(data) >= _PACKET_BYTES:
                self._outbox.append(packet)
                packet = b""
            packet = packet + b"\n" + data if packet else data
        if packet:
            self._outbox.append(packet)
            self.flush()

    def send_spec(self, data: bytes) -> None:
        """Send the first message to a keeper that was forked early, which receives it by `wait_for_spec`."""
        self._outbox.append(data)
        self.flush()

    def wait_for_spec(self) -> bytes:
        """Return the first message, once it arrives; empty if the other side is gone."""
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
                self._outbox.pop(0)
        except BlockingIOError:
            pass  # the other side is slow or stopped; the poll for writing brings us back
        except (BrokenPipeError, ConnectionResetError):
            # The other side is gone. What it sent before can still be read; the end of file follows.
            self._outbox.clear()
        except OSError as error:
            if error.errno not in (errno.ENOBUFS, errno.ENOMEM):
                raise ChannelError(f"cannot send {self._outbox[0][:80]!r}: {error.strerror}") from None

    def drain(self) -> list[Message]:
        """Return all that has arrived, the newest deadlines last; set `closed` when the other side is gone."""
        messages: list[Message] = []
        while not self.closed:
            try:
                data = self._socket.recv(_MESSAGE_BYTES)
            except BlockingIOError:
                break
            except ConnectionResetError:
                # The other side died with messages unread; the kernel reports that once, then delivers what it sent.
                continue
            if data:
                messages += map(decode, data.split(b"\n"))
            else:
                self.closed = True
        for place, seen in self._followed.items():
            newest = self._page.read(place)
            if newest is not None and newest != seen:
                self._followed[place] = newest
                messages.append(newest)
        return messages

    def follow(self, numbers: set[int]) -> None:
        """Make `drain` return the deadlines of these holds only; with one place it always returns that one."""
        if self._page.places > 1:
            places = {number % self._page.places for number in numbers}
            self._followed = {place: self._followed.get(place) for place in places}

    def close(self) -> None:
        """Close the socket; the other side reads the end of file."""
        self.closed = True
        self._socket.close()


def pair(holds: int = 1) -> tuple[Channel, Channel]:
    """Return the supervisor's and the keeper's end, with room for the deadlines of this many holds at a time."""
    page = DeadlinePage(holds)
    supervisor, keeper = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    return Channel(supervisor, page), Channel(keeper, page)
