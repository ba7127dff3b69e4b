"""The HTTP client for etcd's JSON gateway: a pool of connections to one endpoint, and streams.

It speaks over plain sockets: that is little to import and little to keep in memory.
"""

import time

from conch.etcd.answers import BadAnswer
from conch.etcd.endpoints import Endpoint
from conch.etcd.error_codes import BY_NAME
from conch.etcd.gateway_codec import answer, stream_answer
from conch.etcd.gateway_connection import ConnectionState, GatewayConnection
from conch.etcd.gateway_protocol import CHUNKED, CLOSE, LARGEST_BYTES, Head, chunk, content_length, request
from conch.etcd.store import Unfit
from conch.static_typing import Any, Callable, Iterator
from conch.threads import Lock

# Idle connections that are kept.
_IDLE = 4
# A stream that is silent for this long is asked whether it still works.
SILENCE_S = 5.0


class NoGateway(Unfit):
    """An HTTP server, but not etcd's gateway: it is switched off, or this is no etcd."""


class HungUp(ConnectionError):
    """The server took the request, or some of it, and closed the connection."""


class Gateway:
    """A pool of connections to one endpoint, kept open for the next request; from any thread."""

    def __init__(self, endpoint: Endpoint, tls: Any, first_address: int = 0) -> None:
        """`tls` is an `ssl.SSLContext`, or None; `first_address` says which of the host's addresses is tried first."""
        self.conch_endpoint = endpoint
        self._first_address = first_address
        self._tls = tls
        self._lock = Lock()
        self._open: list[GatewayConnection] = []  # all but the closed ones
        self._closed = False
        self._answered_at: float | None = None

    @property
    def encrypted(self) -> bool:
        """Whether it speaks TLS."""
        return self._tls is not None

    @property
    def answered_lately(self) -> bool:
        """Whether it answered a request within the time that a stream may be silent."""
        return self._answered_at is not None and time.monotonic() - self._answered_at < SILENCE_S

    def ask(self, path: str, body: bytes, token: str | None, timeout_s: float) -> Any:
        """Send a request and return the JSON of its answer.

        Raises `GatewayError`, `NoGateway`, `BadAnswer` or `OSError`; a request that failed may have been served.
        """
        deadline = time.monotonic() + timeout_s
        connection = self._acquire(deadline)
        try:
            connection.send(self._request(path, (content_length(body),), token, body), deadline)
            head = connection.head(deadline)
            data = _joined(connection.body(deadline))
        except BaseException as raised:
            self.discard(connection)
            if isinstance(raised, ConnectionError):
                raise HungUp(raised.strerror or str(raised)) from None
            raise
        self._answered_at = time.monotonic()
        self._release(connection, kept=head.headers.get(b"connection", b"").lower() != b"close")
        return _answer(head, data)

    def stream(self, path: str, body: bytes, token: str | None, timeout_s: float, *, ended: bool) -> "Stream":
        """Send a request whose answer goes on, a line of JSON at a time; and the request too, unless it is `ended`.

        The timeout is for the beginning of the answer.
        """
        deadline = time.monotonic() + timeout_s
        connection = self._connect(deadline)  # the idle ones are for requests, which are more urgent
        try:
            if ended:
                sent = self._request(path, (content_length(body), CLOSE), token, body)
            else:
                sent = self._request(path, (CHUNKED, CLOSE), token, chunk(body))
            connection.send(sent, deadline)
            head = connection.head(deadline)
            if head.status != 200:
                _answer(head, _joined(connection.body(deadline)))
                raise BadAnswer(f"HTTP status {head.status} for a stream")
        except BaseException:
            self.discard(connection)
            raise
        return Stream(self, connection, extensible=not ended and not self.encrypted)

    def interrupt(self, connection: GatewayConnection) -> None:
        """Wake the thread that waits on this connection, if there still is one; it will discard the connection."""
        with self._lock:
            if connection.state is ConnectionState.ACTIVE:
                connection.interrupt()

    def discard(self, connection: GatewayConnection) -> None:
        """Close a connection that failed, or whose stream is over; from the thread that is active on it."""
        with self._lock:
            self._close(connection)

    def close(self) -> None:
        """Close all connections; the requests that are under way on them fail."""
        with self._lock:
            self._closed = True
            for connection in list(self._open):
                if connection.state is ConnectionState.ACTIVE:
                    connection.interrupt()  # its thread closes it
                elif connection.state is ConnectionState.IDLE:
                    self._close(connection)

    def _request(self, path: str, framing: tuple[bytes, ...], token: str | None, body: bytes) -> bytes:
        return request(path, str(self.conch_endpoint), framing, token, body)

    def _acquire(self, deadline: float) -> GatewayConnection:
        """Return an idle connection, or a new one."""
        with self._lock:
            self._check_open()
            for connection in reversed(self._idle()):  # the one that was used last
                if connection.is_usable():
                    connection.activate()
                    return connection
                self._close(connection)
        return self._connect(deadline)

    def _connect(self, deadline: float) -> GatewayConnection:
        connection = GatewayConnection(self.conch_endpoint, self._tls, deadline, self._first_address)
        with self._lock:
            self._open.append(connection)
            try:
                self._check_open()
            except BaseException:
                self._close(connection)
                raise
        return connection

    def _release(self, connection: GatewayConnection, *, kept: bool) -> None:
        """Keep a connection whose request was answered for the next one, or close it."""
        with self._lock:
            active = connection.state is ConnectionState.ACTIVE  # else it was interrupted
            if active and kept and connection.reusable and len(self._idle()) < _IDLE:
                connection.release()
                self._open.remove(connection)
                self._open.append(connection)
            else:
                self._close(connection)

    def _idle(self) -> list[GatewayConnection]:
        return [connection for connection in self._open if connection.state is ConnectionState.IDLE]

    def _close(self, connection: GatewayConnection) -> None:
        self._open.remove(connection)
        connection.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ConnectionAbortedError("the connection was closed")


class Stream:
    """A request that can be added to, and the lines of its answer, until it is closed."""

    def __init__(self, gateway: Gateway, connection: GatewayConnection, *, extensible: bool) -> None:
        self._extensible = extensible
        self._gateway = gateway
        self._connection = connection

    def answers(self, silence_s: Callable[[], float], on_silence: Callable[[], None]) -> Iterator[Any]:
        """Yield each line's JSON, until the gateway ends the answer. Raises as `Gateway.ask` does.

        `on_silence` is called after each `silence_s()` without bytes, and may raise to end the stream.
        """
        rest = bytearray()
        for data in self._connection.endless_body(silence_s, on_silence):
            rest += data
            if b"\n" in data:
                *lines, rest = rest.split(b"\n")
                for line in lines:
                    if line.strip():
                        yield stream_answer(bytes(line))
            if len(rest) > LARGEST_BYTES:
                raise BadAnswer("a line without end")

    def add(self, body: bytes) -> bool:
        """Add to the request, from any thread; False: that cannot be done, open another stream.

        (A connection of OpenSSL is not for two threads at a time.)
        """
        if not self._extensible:
            return False
        try:
            self._connection.add(body)
        except OSError:
            return False
        return True

    def cancel(self) -> None:
        """End the iteration, from any thread."""
        self._gateway.interrupt(self._connection)

    def close(self) -> None:
        """Close the connection; from the thread that iterates."""
        self._gateway.discard(self._connection)


def _joined(parts: Iterator[bytes]) -> bytes:
    """Return the body of an answer that is to have an end."""
    data = bytearray()
    for part in parts:
        data += part
        if len(data) > LARGEST_BYTES:
            raise BadAnswer("an answer without end")
    return bytes(data)


def _answer(head: Head, data: bytes) -> dict[str, Any]:
    if head.status in (404, 405) and not head.headers.get(b"content-type", b"").startswith(b"application/json"):
        raise NoGateway("etcd's JSON gateway is switched off there, or it is no etcd: try --transport grpc")
    if data.startswith(BY_NAME.encode()):
        raise NoGateway("etcd's JSON gateway takes no client certificate with a common name: try --transport grpc")
    return answer(head.status, data)
