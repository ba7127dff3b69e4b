"""The HTTP server: a loop of asyncio in one thread, with uvicorn's HTTP/1.1 for each client, and limits of our own.

A client has five seconds to send its request and five to take the answer, whatever it does meanwhile. When there are
as many as there may be, the one that has been longest without a complete request makes room for the next one.
"""

import asyncio
import enum
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

_REQUEST_S = _TAKE_S = 5.0
# More than any answer takes to be made.
_ANSWER_S = 10.0
_CLIENTS, _BACKLOG = 64, 1024
# What a client has at least before it makes room.
_LEAST_S = 0.05
_HEADER_BYTES = 16 * 1024
# Of what comes after a request that is refused: it is read so that the client gets to read why.
_SPARE_BYTES = 1024 * 1024
# What the kernel keeps of an answer that is not read.
_UNREAD_BYTES = 64 * 1024
_PAUSE_S = 0.1

Tell = Callable[..., None]


class State(enum.Enum):
    """Where a client is; the order is the one in which clients make room."""

    RECEIVING = 0
    TAKING = 1  # the answer
    WAITING = 2  # for the answer to be made
    GONE = 3


_LIMITS_S = {State.RECEIVING: _REQUEST_S, State.WAITING: _ANSWER_S, State.TAKING: _TAKE_S}
_NEXT = {
    State.RECEIVING: {State.WAITING, State.TAKING, State.GONE},
    State.WAITING: {State.TAKING, State.GONE},
    State.TAKING: {State.GONE},
    State.GONE: set(),
}


class Client(H11Protocol):
    """One connection: one request, one answer, and a limit to the time of each."""

    def __init__(self, config: Config, shared: ServerState, gone: "Callable[[Client], None]") -> None:
        super().__init__(config, shared, {"client": self})
        self._gone = gone
        self._room = _HEADER_BYTES + 1  # h11 refuses a request when this is used up without a whole one
        self._spare = _SPARE_BYTES
        self.state = State.RECEIVING
        self.since = self.loop.time()
        self._timer = self.loop.call_later(_REQUEST_S, self.end)

    def _enter(self, state: State) -> None:
        if state not in _NEXT[self.state]:
            raise RuntimeError(f"a client cannot go from {self.state.name} to {state.name}")
        self.state, self.since = state, self.loop.time()
        self._timer.cancel()
        if state is State.GONE:
            self._gone(self)
        else:
            self._timer = self.loop.call_later(_LIMITS_S[state], self.end)

    def begin_answer(self) -> None:
        """From now on the client has its time to take the answer."""
        if self.state is not State.GONE:
            self._enter(State.TAKING)

    def end(self) -> None:
        """Hang up at once."""
        if self.state is not State.GONE:
            self._enter(State.GONE)
            if self.transport is not None:
                self.transport.abort()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """It may have had to make room before it came to this."""
        super().connection_made(transport)
        if self.state is State.GONE:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        """It is gone, with all that it was sent or not."""
        super().connection_lost(exc)
        self.end()

    def data_received(self, data: bytes) -> None:
        """A part of the request; what comes after it is not read."""
        if self.state is State.TAKING:
            self._spare -= len(data)
            if self._spare < 0:
                self.end()
        elif self.state is State.RECEIVING:
            piece = data[: self._room]
            self._room -= len(piece)
            super().data_received(piece)
            if self.cycle is not None and self.state is State.RECEIVING:
                self._enter(State.WAITING)
                self.flow.pause_reading()

    def send_400_response(self, msg: str) -> None:
        """Say what is wrong with the request; uvicorn calls this where h11 says so."""
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
        self.begin_answer()
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
    """Accepts clients on a socket that listens, and keeps their number within bounds."""

    def __init__(self, listener: socket.socket, config: Config, most: int) -> None:
        self._listener = listener
        self._config = config
        self._most = most
        self._shared = ServerState()
        self._shared.default_headers = [(b"connection", b"close"), (b"x-content-type-options", b"nosniff")]
        self._clients: set[Client] = set()
        self._greetings: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Serve for ever."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                connection, _ = await loop.sock_accept(self._listener)
            except ConnectionAbortedError:
                continue  # it has left already
            except (OSError, MemoryError):  # no descriptor to spare, for one
                if not self._hang_up_on_one():
                    await asyncio.sleep(_PAUSE_S)
                await asyncio.sleep(0)  # for its descriptor to be closed
                continue
            await self._make_room()
            client = Client(self._config, self._shared, self._clients.discard)
            self._clients.add(client)
            greeting = loop.create_task(self._greet(client, connection))
            self._greetings.add(greeting)
            greeting.add_done_callback(self._greetings.discard)

    async def _greet(self, client: Client, connection: socket.socket) -> None:
        try:
            await asyncio.get_running_loop().connect_accepted_socket(lambda: client, connection)
        except (OSError, MemoryError):
            connection.close()
            client.end()

    def _hang_up_on_one(self) -> bool:
        """End the client that has been longest without a complete request, if it had its moment."""
        idle = [one for one in self._clients if one.state is State.RECEIVING]
        first = min(idle, key=lambda client: client.since, default=None)
        if first is None or first.since + _LEAST_S > asyncio.get_running_loop().time():
            return False
        first.end()
        return True

    async def _make_room(self) -> None:
        """Wait until one more client may come; of those that are there, one goes that has had a moment at least."""
        loop = asyncio.get_running_loop()
        while len(self._clients) >= self._most:
            first = min(self._clients, key=lambda client: (client.state.value, client.since))
            left_s = first.since + _LEAST_S - loop.time()
            if left_s > 0:
                await asyncio.sleep(left_s)
            else:
                first.end()


def run(address: tuple[str, int], names: Sequence[str], status: Status, tell: Tell) -> None:
    """Serve for ever in this thread. Raises `OSError` or `OverflowError` if the address cannot be had."""
    for name in ("uvicorn.error", "asyncio"):
        logging.getLogger(name).disabled = True  # stderr is for our own log, and clients must not fill it
    with _listen(address) as listener, asyncio.Runner() as runner:
        config = Config(
            build(status, Hosts(names), tell),
            interface="asgi3",
            http="h11",
            lifespan="off",
            ws="none",
            proxy_headers=False,
            log_config=None,
            access_log=False,
            h11_max_incomplete_event_size=_HEADER_BYTES,
        )
        # the keeper has other needs of descriptors than ours
        most = min(_CLIENTS, max(1, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))
        host, port = listener.getsockname()[:2]
        tell("info", "status", addr=f"[{host!s}]:{port}" if ":" in str(host) else f"{host!s}:{port}")
        runner.run(Server(listener, config, most).run())


def _listen(address: tuple[str, int]) -> socket.socket:
    listener = socket.socket(socket.AF_INET6 if ":" in address[0] else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _UNREAD_BYTES)  # each client's gets it, too
        listener.bind(address)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
    except BaseException:
        listener.close()
        raise
    return listener
