"""One HTTP connection to etcd's JSON gateway: its socket and its state."""

import select

from conch.enums import Enum
from conch.etcd.dial import dial, left_s
from conch.etcd.endpoints import Endpoint
from conch.etcd.gateway_protocol import AnswerParser, Head, chunk
from conch.plain_socket import socket
from conch.static_typing import Any, Callable, Iterator
from conch.threads import Lock

_READ_BYTES = 65536
# A peer that vanished is noticed while nothing is sent, as by a watch.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 2))
_USER_TIMEOUT_MS = 7000


class ConnectionState(Enum):
    """Who may use a connection."""

    ACTIVE = "active"  # the thread whose request or stream is under way on it
    IDLE = "idle"  # the next request: the last answer was read to its end
    INTERRUPTED = "interrupted"  # nobody: it was shut down, and the thread that was active on it is to close it
    CLOSED = "closed"


_NEXT = {
    ConnectionState.ACTIVE: frozenset({ConnectionState.IDLE, ConnectionState.INTERRUPTED, ConnectionState.CLOSED}),
    ConnectionState.IDLE: frozenset({ConnectionState.ACTIVE, ConnectionState.CLOSED}),
    ConnectionState.INTERRUPTED: frozenset({ConnectionState.CLOSED}),
    ConnectionState.CLOSED: frozenset[ConnectionState](),
}


class IllegalConnectionState(Exception):
    """A connection was asked for what its state does not allow: a defect of conch."""


class GatewayConnection:
    """A connection, active from the start; only its pool changes the state, under the pool's lock.

    Every wait has a deadline, except for the next line of a stream.
    """

    def __init__(self, endpoint: Endpoint, tls: Any, deadline: float, first: int) -> None:
        """Connect, and do the TLS handshake if `tls` is an `ssl.SSLContext`; `first` is as for `dial`."""
        self.state = ConnectionState.ACTIVE
        self._socket: Any = dial(endpoint, deadline, first)
        self._parser = AnswerParser()
        self._adding = Lock()
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in _KEEPALIVE:
                self._socket.setsockopt(socket.IPPROTO_TCP, option, value)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)
            if tls is not None:
                self._socket.settimeout(left_s(deadline))
                self._socket = tls.wrap_socket(self._socket, server_hostname=endpoint.host)
        except BaseException:
            self._socket.close()
            raise

    # -- state: called by the pool ---------------------------------------------------------------------------

    def activate(self) -> None:
        """Reserve it for the calling thread's next request."""
        self._enter(ConnectionState.ACTIVE)

    def release(self) -> None:
        """Keep it for the next request."""
        self._enter(ConnectionState.IDLE)

    def interrupt(self) -> None:
        """Wake the thread that waits on it; that one closes it."""
        self._enter(ConnectionState.INTERRUPTED)
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # the peer has ended the connection already

    def close(self) -> None:
        """Return the descriptor to the system."""
        self._enter(ConnectionState.CLOSED)
        self._socket.close()

    def _enter(self, state: ConnectionState) -> None:
        if state not in _NEXT[self.state]:
            raise IllegalConnectionState(f"a connection cannot go from {self.state.value} to {state.value}")
        self.state = state

    # -- input and output: called by the thread that is active on it ------------------------------------------

    @property
    def reusable(self) -> bool:
        """Whether the last answer was read to its end, and nothing came after it."""
        return self._parser.complete and not self._parser.surplus

    def is_usable(self) -> bool:
        """Return whether an idle connection is as we left it: not closed by the peer, and no bytes unasked for."""
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        return not poller.poll(0)

    def send(self, request: bytes, deadline: float) -> None:
        """Send a request, or the beginning of one."""
        self._parser = AnswerParser()
        self._socket.settimeout(left_s(deadline))
        self._socket.sendall(request)

    def add(self, data: bytes) -> None:
        """Send a further chunk of a request, from any thread, in one piece; raises `OSError`."""
        with self._adding:
            self._socket.sendall(chunk(data))

    def head(self, deadline: float) -> Head:
        """Wait for the answer's status and headers."""
        while (head := self._parser.head()) is None:
            self._parser.feed(self._receive(left_s(deadline)))
        return head

    def body(self, deadline: float) -> Iterator[bytes]:
        """Yield the body as it arrives, all of it before the deadline."""
        return self._body(lambda: self._receive(left_s(deadline)))

    def endless_body(self, silence_s: Callable[[], float], on_silence: Callable[[], None]) -> Iterator[bytes]:
        """Yield the body as it arrives; call `on_silence`, which may raise, after each `silence_s()` without any."""

        def receive() -> bytes:
            while True:
                try:
                    return self._receive(silence_s())
                except TimeoutError:
                    on_silence()

        return self._body(receive)

    def _body(self, receive: Callable[[], bytes]) -> Iterator[bytes]:
        while not self._parser.complete:
            data = self._parser.data()
            if data:
                yield data
            elif not self._parser.complete:
                self._parser.feed(receive())

    def _receive(self, timeout_s: float) -> bytes:
        self._socket.settimeout(timeout_s)
        data: bytes = self._socket.recv(_READ_BYTES)
        if not data:
            raise ConnectionResetError("socket closed")
        return data
