"""HTTP/1.1 as etcd's JSON gateway speaks it, over plain sockets: little to import, little to keep in memory."""

import select
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence

from conch.etcd.answers import BadAnswer
from conch.etcd.endpoints import Endpoint
from conch.etcd.error_codes import BY_NAME
from conch.etcd.gateway_codec import answer, stream_answer
from conch.etcd.store import Unfit
from conch.static_typing import Any

_READ_BYTES = 65536
_HEAD_BYTES = 65536
_LARGEST_BYTES = 64 << 20
_IDLE = 4
# How long a stream may be silent before it is asked after.
SILENCE_S = 5.0
_LENGTH = b"Content-Length: %d"
# A server in Go reads no more of a request once it answers, unless the connection is not to be used again.
_CLOSE = b"Connection: close"
_CHUNKED = b"Transfer-Encoding: chunked"


class NoGateway(Unfit):
    """An HTTP server, but not etcd's gateway: it is switched off, or this is no etcd."""


class HungUp(ConnectionError):
    """It took the request, or some of it, and closed the connection."""


class Gateway:
    """Connections to one endpoint, kept open for the next request; from any thread."""

    def __init__(self, endpoint: Endpoint, tls: Any, turn: int = 0) -> None:
        """`tls` is an `ssl.SSLContext`, or None; `turn` says which of the host's addresses is tried first."""
        self.conch_endpoint = endpoint
        self._turn = turn
        self._tls = tls
        self._lock = threading.Lock()
        self._idle: list[_Wire] = []
        self._busy: set[_Wire] = set()
        self._closed = False
        self._answered_at = 0.0

    @property
    def encrypted(self) -> bool:
        """Whether it speaks TLS."""
        return self._tls is not None

    @property
    def answered_lately(self) -> bool:
        """Whether it answered a request within the time that a stream may be silent."""
        return time.monotonic() - self._answered_at < SILENCE_S

    def ask(self, path: str, body: bytes, token: str | None, timeout_s: float) -> Any:
        """Send a request and return the JSON of its answer.

        Raises `GatewayError`, `NoGateway`, `BadAnswer` or `OSError`; a request that failed may have been served.
        """
        until = time.monotonic() + timeout_s
        wire = self._take(until)
        try:
            wire.send(path, (_LENGTH % len(body),), body, token, until)
            status, headers = wire.head(until)
            data = _whole(wire.body(headers, until))
        except BaseException as raised:
            self._drop(wire)
            if isinstance(raised, ConnectionError):
                raise HungUp(raised.strerror or str(raised)) from None
            raise
        self._answered_at = time.monotonic()
        self._keep(wire, reusable=wire.clean and headers.get(b"connection", b"").lower() != b"close")
        return _answer(status, headers, data)

    def stream(self, path: str, body: bytes, token: str | None, timeout_s: float, *, ended: bool) -> "Stream":
        """Send a request whose answer goes on, a line of JSON at a time; and the request too, unless it is `ended`.

        The time is for the answer's beginning.
        """
        until = time.monotonic() + timeout_s
        wire = self._connect(until)  # those that wait are for requests, which are in more of a hurry
        try:
            if ended:
                wire.send(path, (_LENGTH % len(body), _CLOSE), body, token, until)
            else:
                wire.send(path, (_CHUNKED, _CLOSE), _chunk(body), token, until)
            status, headers = wire.head(until)
            if status != 200:
                _answer(status, headers, _whole(wire.body(headers, until)))
                raise BadAnswer(f"HTTP status {status} for a stream")
        except BaseException:
            self._drop(wire)
            raise
        return Stream(self, wire, headers, ended=ended)

    def end(self, wire: "_Wire") -> None:
        """A stream is over."""
        self._drop(wire)

    def close(self) -> None:
        """Close all connections; what is under way on them fails."""
        with self._lock:
            self._closed = True
            wires, self._idle = [*self._idle, *self._busy], []
        for wire in wires:
            wire.shut()
        for wire in wires:
            if wire not in self._busy:
                wire.close()

    def _take(self, until: float) -> "_Wire":
        with self._lock:
            if self._closed:
                raise ConnectionAbortedError("the connection was closed")
            while self._idle:
                wire = self._idle.pop()
                if wire.usable():
                    self._busy.add(wire)
                    return wire
                wire.close()
        return self._connect(until)

    def _connect(self, until: float) -> "_Wire":
        wire = _Wire(self.conch_endpoint, self._tls, until, self._turn)
        if not self._enter(wire):
            wire.close()
            raise ConnectionAbortedError("the connection was closed")
        return wire

    def _enter(self, wire: "_Wire") -> bool:
        with self._lock:
            if not self._closed:
                self._busy.add(wire)
            return not self._closed

    def _keep(self, wire: "_Wire", *, reusable: bool) -> None:
        with self._lock:
            self._busy.discard(wire)
            if reusable and not self._closed and len(self._idle) < _IDLE:
                self._idle.append(wire)
                return
        wire.close()

    def _drop(self, wire: "_Wire") -> None:
        with self._lock:
            self._busy.discard(wire)
        wire.close()


class Stream:
    """A request that can be added to, and the lines of its answer, until it is closed.

    `on_silence` is called after `silence_s()` without an answer, and may raise to end the stream.
    """

    def __init__(self, gateway: Gateway, wire: "_Wire", headers: dict[bytes, bytes], *, ended: bool) -> None:
        self.on_silence: Callable[[], None] = lambda: None
        self.silence_s: Callable[[], float] = lambda: SILENCE_S
        self._ended = ended
        self._gateway = gateway
        self._wire = wire
        self._headers = headers

    def __iter__(self) -> Iterator[Any]:
        """Yield each line's JSON; ends when the gateway ends it. Raises as `Gateway.ask` does."""
        rest = b""
        self._wire.on_silence = self.on_silence
        self._wire.silence_s = self.silence_s
        for data in self._wire.body(self._headers, None):
            *lines, rest = (rest + data).split(b"\n")
            if len(rest) > _LARGEST_BYTES:
                raise BadAnswer("a line without end")
            for line in lines:
                if line.strip():
                    yield stream_answer(line)

    def add(self, body: bytes) -> bool:
        """Add to the request, from any thread; False: that cannot be done, open another."""
        if self._ended or self._gateway.encrypted:
            return False  # OpenSSL's connections are not for two threads at once
        try:
            self._wire.add(_chunk(body))
        except OSError:
            return False
        return True

    def cancel(self) -> None:
        """End the iteration, from any thread."""
        self._wire.shut()

    def close(self) -> None:
        """Give the connection back; from the thread that iterates."""
        self._gateway.end(self._wire)


class _Wire:
    """One connection. Every wait has an end, except for the next line of a stream."""

    def __init__(self, endpoint: Endpoint, tls: Any, until: float, turn: int) -> None:
        self._socket: Any = _connect(endpoint, until, turn)
        self._rest = b""
        self._adding = threading.Lock()
        self.clean = True
        self.on_silence: Callable[[], None] = lambda: None
        self.silence_s: Callable[[], float] = lambda: SILENCE_S
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            # a peer that vanished is noticed while nothing is sent, as by a watch
            self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in ((socket.TCP_KEEPIDLE, 5), (socket.TCP_KEEPINTVL, 1), (socket.TCP_KEEPCNT, 2)):
                self._socket.setsockopt(socket.IPPROTO_TCP, option, value)
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, 7000)
            if tls is not None:
                self._socket.settimeout(_left(until))
                self._socket = tls.wrap_socket(self._socket, server_hostname=endpoint.host)
        except BaseException:
            self._socket.close()
            raise
        self._host = str(endpoint).encode()

    def usable(self) -> bool:
        """Whether it is as we left it: not closed by the other side, nothing unasked on it."""
        poller = select.poll()
        poller.register(self._socket, select.POLLIN)
        return not poller.poll(0)

    def send(self, path: str, framing: Sequence[bytes], body: bytes, token: str | None, until: float) -> None:
        """Send a request; asked so, a member without a leader says that at once instead of leaving us to wait."""
        head = b"POST %s HTTP/1.1\r\nHost: %s\r\nGrpc-Metadata-hasleader: true\r\n%s\r\n" % (
            path.encode(),
            self._host,
            b"\r\n".join(framing),
        )
        if token is not None:
            head += b"Authorization: %s\r\n" % token.encode("latin-1", "replace")
        self._socket.settimeout(_left(until))
        self._socket.sendall(head + b"\r\n" + body)

    def add(self, chunk: bytes) -> None:
        """Send more of a request, from any thread, whole; raises `OSError`."""
        with self._adding:
            self._socket.sendall(chunk)

    def head(self, until: float) -> tuple[int, dict[bytes, bytes]]:
        """The status and the headers (names in lower case) of the answer."""
        while b"\r\n\r\n" not in self._rest:
            if len(self._rest) > _HEAD_BYTES:
                raise BadAnswer("headers without end")
            self._rest += self._receive(until)
        head, _, self._rest = self._rest.partition(b"\r\n\r\n")
        first, *lines = head.split(b"\r\n")
        words = first.split(None, 2)
        speaks_http = len(words) > 1 and words[0].startswith(b"HTTP/1.") and len(words[1]) == 3 and words[1].isdigit()
        if not speaks_http:
            raise BadAnswer("it does not speak HTTP (does it want https?)")
        headers = {}
        for line in lines:
            name, _, value = line.partition(b":")
            headers[name.strip().lower()] = value.strip()
        return int(words[1]), headers

    def body(self, headers: dict[bytes, bytes], until: float | None) -> Iterator[bytes]:
        """The parts of the answer as they arrive."""
        self.clean = False
        if headers.get(b"transfer-encoding", b"").lower() == b"chunked":
            while size := self._chunk_size(until):
                yield self._exactly(size + 2, until)[:-2]
            while self._line(until):
                pass  # trailers
        else:
            try:
                size = int(headers.get(b"content-length", b""))
            except ValueError:
                raise BadAnswer("an answer of unknown length") from None
            if not 0 <= size <= _LARGEST_BYTES:
                raise BadAnswer("an answer of odd length")
            yield self._exactly(size, until)
        self.clean = not self._rest

    def shut(self) -> None:
        """Wake whoever waits on it."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:
            pass  # it is not connected any more

    def close(self) -> None:
        """Give the descriptor back."""
        self._socket.close()

    def _chunk_size(self, until: float | None) -> int:
        try:
            size = int(self._line(until).partition(b";")[0], 16)
        except ValueError:
            raise BadAnswer("a chunk of unknown length") from None
        if not 0 <= size <= _LARGEST_BYTES:
            raise BadAnswer("a chunk of odd length")
        return size

    def _line(self, until: float | None) -> bytes:
        while b"\r\n" not in self._rest:
            if len(self._rest) > _HEAD_BYTES:
                raise BadAnswer("a line without end")
            self._rest += self._receive(until)
        line, _, self._rest = self._rest.partition(b"\r\n")
        return line

    def _exactly(self, size: int, until: float | None) -> bytes:
        parts, have = [self._rest], len(self._rest)
        while have < size:
            parts.append(self._receive(until))
            have += len(parts[-1])
        whole = b"".join(parts)
        self._rest = whole[size:]
        return whole[:size]

    def _receive(self, until: float | None) -> bytes:
        while True:
            self._socket.settimeout(self.silence_s() if until is None else _left(until))
            try:
                data: bytes = self._socket.recv(_READ_BYTES)
                break
            except TimeoutError:
                if until is not None:
                    raise
                self.on_silence()
        if not data:
            raise ConnectionResetError("socket closed")
        return data


def _connect(endpoint: Endpoint, until: float, turn: int = 0) -> socket.socket:
    """A connection to the first of the host's addresses, from the `turn`-th on, that takes one."""
    problem: OSError = TimeoutError("no answer in time")
    addresses = _resolve(endpoint, until)
    first = turn % len(addresses)
    addresses = addresses[first:] + addresses[:first]
    for at, (family, kind, protocol, _, address) in enumerate(addresses):
        one = socket.socket(family, kind, protocol)
        try:
            # those still to be tried get their share
            one.settimeout(_left(until) / (len(addresses) - at))
            one.connect(address)
        except OSError as error:
            one.close()
            problem = error
            continue
        return one
    raise problem


def accepts(endpoint: Endpoint, timeout_s: float) -> bool:
    """Whether somebody takes connections there, however slow to answer."""
    try:
        _connect(endpoint, time.monotonic() + timeout_s).close()
    except OSError:
        return False
    return True


def _resolve(endpoint: Endpoint, until: float) -> list[Any]:
    """The addresses of a host. The system's resolver takes no time limit, so it is left behind when ours is up."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.inet_pton(family, endpoint.host)
        except OSError:
            continue
        return [(family, socket.SOCK_STREAM, 0, "", (endpoint.host, endpoint.port))]
    found: list[list[Any]] = []

    def resolve() -> None:
        try:
            found.append(socket.getaddrinfo(endpoint.host, endpoint.port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError):  # the latter of a part that is empty or too long
            found.append([])

    resolver = threading.Thread(target=resolve, daemon=True)
    try:
        resolver.start()
    except RuntimeError:
        raise ConnectionError("cannot start a thread to resolve its name") from None
    resolver.join(_left(until))
    if not found or not found[0]:
        raise ConnectionError("name resolution failed")
    return found[0]


def _whole(parts: Iterator[bytes]) -> bytes:
    """The parts of an answer that is to have an end."""
    data, size = [], 0
    for part in parts:
        size += len(part)
        if size > _LARGEST_BYTES:
            raise BadAnswer("an answer without end")
        data.append(part)
    return b"".join(data)


def _chunk(data: bytes) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data)


def _left(until: float) -> float:
    left_s = until - time.monotonic()
    if left_s <= 0:
        raise TimeoutError("no answer in time")
    return left_s


def _answer(status: int, headers: dict[bytes, bytes], data: bytes) -> dict[str, Any]:
    if status in (404, 405) and not headers.get(b"content-type", b"").startswith(b"application/json"):
        raise NoGateway("etcd's JSON gateway is switched off there, or it is no etcd: try --transport grpc")
    if data.startswith(BY_NAME.encode()):
        raise NoGateway("etcd's JSON gateway takes no client certificate with a common name: try --transport grpc")
    return answer(status, data)
