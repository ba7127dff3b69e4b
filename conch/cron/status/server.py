"""The HTTP server: an asyncio loop in one thread, with uvicorn's HTTP/1.1 for each client, and limits of our own.

A client has five seconds to send its request and five to read the response, whatever it does meanwhile. When the limit
of clients is reached, the one that has been longest without a complete request is disconnected for the next one.
"""

import asyncio
import logging
import resource
import socket
import sys
from collections.abc import Callable, Sequence

import h11
from uvicorn.config import Config
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.server import ServerState

from conch.cron.status.app import build
from conch.cron.status.hosts import Hosts
from conch.cron.status.views import Status
from conch.enums import Enum

_REQUEST_S = _READ_S = 5.0
# Longer than any answer takes to compute.
_ANSWER_S = 10.0
_MAX_CLIENTS, _BACKLOG = 64, 1024
# How long a client is connected at least before it can be disconnected for another.
_MIN_S = 0.05
_HEADER_BYTES = 16 * 1024
# How much is read and ignored after a refused request: else the client would not get to read why.
_IGNORED_BYTES = 1024 * 1024
# How much of an unread response the kernel buffers.
_UNREAD_BYTES = 64 * 1024
_PAUSE_S = 0.1

Log = Callable[..., None]


class State(Enum):
    """The life of a client; clients in an earlier state are disconnected first when the limit is reached."""

    RECEIVING = 0
    RESPONDING = 1  # it reads the response
    WAITING = 2  # for the answer to be computed
    GONE = 3


_LIMITS_S = {State.RECEIVING: _REQUEST_S, State.WAITING: _ANSWER_S, State.RESPONDING: _READ_S}
_TRANSITIONS = {
    State.RECEIVING: {State.WAITING, State.RESPONDING, State.GONE},
    State.WAITING: {State.RESPONDING, State.GONE},
    State.RESPONDING: {State.GONE},
    State.GONE: set(),
}


class Client(H11Protocol):
    """One connection: one request and one response, each with a time limit."""

    def __init__(self, config: Config, shared: ServerState, on_gone: "Callable[[Client], None]") -> None:
        super().__init__(config, shared, {"client": self})
        self._on_gone = on_gone
        self._header_left = _HEADER_BYTES + 1  # h11 refuses a request that is incomplete when this is used up
        self._ignored_left = _IGNORED_BYTES
        self.state = State.RECEIVING
        self.since = self.loop.time()
        self._timer = self.loop.call_later(_REQUEST_S, self.end)

    def _enter(self, state: State) -> None:
        if state not in _TRANSITIONS[self.state]:
            raise RuntimeError(f"a client cannot go from {self.state.name} to {state.name}")
        self.state, self.since = state, self.loop.time()
        self._timer.cancel()
        if state is State.GONE:
            self._on_gone(self)
        else:
            self._timer = self.loop.call_later(_LIMITS_S[state], self.end)

    def begin_response(self) -> None:
        """Start the time limit for reading the response."""
        if self.state is not State.GONE:
            self._enter(State.RESPONDING)

    def end(self) -> None:
        """Close the connection without waiting for anything."""
        if self.state is not State.GONE:
            self._enter(State.GONE)
            if self.transport is not None:
                self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start, unless the client was disconnected for another one before it came to this."""
        super().connection_made(transport)
        if self.state is State.GONE:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """Note that the client is gone, whatever it has read."""
        super().connection_lost(exc)
        self.end()

    def data_received(self, data: bytes) -> None:
        """Take a part of the request; ignore what comes after it."""
        if self.state is State.RESPONDING:
            self._ignored_left -= len(data)
            if self._ignored_left < 0:
                self.end()
        elif self.state is State.RECEIVING:
            piece = data[: self._header_left]
            self._header_left -= len(piece)
            super().data_received(piece)
            if self.cycle is not None and self.state is State.RECEIVING:
                self._enter(State.WAITING)
                self.flow.pause_reading()

    def send_400_response(self, msg: str) -> None:
        """Answer what is wrong with the request; uvicorn calls this when h11 refuses it."""
        error = sys.exception()
        if self.conn.our_state is not h11.IDLE:
            self.end()
            return
        status = error.error_status_hint if isinstance(error, h11.RemoteProtocolError) else 400
        body = f"{error or msg}\n".encode("ascii", "backslashreplace")
        headers = [
            *self.server_state.default_headers,
            (b"content-type", b"text/plain; charset=utf-8"),
            (b"content-length", b"%d" % len(body)),
        ]
        self.begin_response()
        for event in (
            h11.Response(status_code=status, headers=headers),
            h11.Data(data=body),
            h11.EndOfMessage(),
        ):
            self.transport.write(self.conn.send(event) or b"")
        if self.transport.can_write_eof():
            self.transport.write_eof()
        else:
            self.transport.close()


class Server:
    """Accepts clients on a listening socket, and limits their number."""

    def __init__(self, listener: socket.socket, config: Config, max_clients: int) -> None:
        self._listener = listener
        self._config = config
        self._max_clients = max_clients
        self._shared = ServerState()
        self._shared.default_headers = [(b"connection", b"close"), (b"x-content-type-options", b"nosniff")]
        self._clients: set[Client] = set()
        self._attaching: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve for ever."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except ConnectionAbortedError:
                continue  # the client has left already
            except (OSError, MemoryError):  # for example no free descriptor
                if not self._disconnect_idle():
                    await asyncio.sleep(_PAUSE_S)
                await asyncio.sleep(0)  # lets the loop close its descriptor
                continue
            await self._make_room()
            client = Client(self._config, self._shared, self._clients.discard)
            self._clients.add(client)
            task = loop.create_task(self._attach(client, connection))
            self._attaching.add(task)
            task.add_done_callback(self._attaching.discard)

    async def _attach(self, client: Client, connection: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: client, connection)
        except (OSError, MemoryError):
            connection.close()
            client.end()

    def _disconnect_idle(self) -> bool:
        """Disconnect the client that has been longest without a complete request, if it had its minimum of time."""
        idle = [client for client in self._clients if client.state is State.RECEIVING]
        first = min(idle, key=lambda client: client.since, default=None)
        if first is None or first.since + _MIN_S > asyncio.get_running_loop().time():
            return False
        first.end()
        return True

    async def _make_room(self) -> None:
        """Wait until one more client may connect; disconnect one that had its minimum of time if necessary."""
        loop = asyncio.get_running_loop()
        while len(self._clients) >= self._max_clients:
            first = min(self._clients, key=lambda client: (client.state.value, client.since))
            left_s = first.since + _MIN_S - loop.time()
            if left_s > 0:
                await asyncio.sleep(left_s)
            else:
                first.end()


def run(address: tuple[str, int], names: Sequence[str], status: Status, log: Log) -> None:
    """Serve for ever in this thread. Raises `OSError` or `OverflowError` if the address cannot be bound."""
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).disabled = True  # stderr is for our own log, and clients must not fill it
    with _listen(address) as listener, asyncio.Runner() as runner:
        config = Config(
            build(status, Hosts(names), log),
            interface="asgi3",
            http="h11",
            lifespan="off",
            ws="none",
            proxy_headers=False,
            log_config=None,
            access_log=False,
            h11_max_incomplete_event_size=_HEADER_BYTES,
        )
        # the keeper needs descriptors for more than the status
        max_clients = min(_MAX_CLIENTS, max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))
        host, port = listener.getsockname()[:2]
        log("info", "status", addr=f"[{host!s}]:{port}" if ":" in str(host) else f"{host!s}:{port}")
        runner.run(Server(listener, config, max_clients).run())


def _listen(address: tuple[str, int]) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNREAD_BYTES)  # each client's socket inherits it
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener
