"""Servers between conch and etcd, or instead of etcd: each accepts connections and forwards them in its own way."""

import contextlib
import queue
import random
import socket
import threading
import time
from collections.abc import Iterator

_SETTINGS = b"\0\0\0\4\0\0\0\0\0"


@contextlib.contextmanager
def unmet() -> Iterator[str]:
    """Yield an endpoint, and fail if anything has connected to it.

    Its address on loopback is its own: a client of another test that is late for a server with this port, which the
    kernel gives again and again, does not meet it.
    """
    address = f"127.{random.randint(1, 254)}.{random.randint(0, 255)}.{random.randint(1, 254)}"
    with socket.create_server((address, 0)) as server:
        server.setblocking(False)
        yield f"{address}:{server.getsockname()[1]}"
        with contextlib.suppress(BlockingIOError):
            _, client = server.accept()
            raise AssertionError(f"{client} connected")


class Front:
    """Forwards bytes in both directions; subclasses change that."""

    def __init__(self, target: str) -> None:
        host, port = target.rsplit(":", 1)
        self._target = (host, int(port))
        self._server = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._server.getsockname()[1]}"
        self._sockets: list[socket.socket] = []
        self.watches = 0  # requests for watches over HTTP that were forwarded
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._server.accept()
                self._sockets.append(client)
                threading.Thread(target=self._quietly, args=(client,), daemon=True).start()

    def _quietly(self, client: socket.socket) -> None:
        with contextlib.suppress(OSError):
            self.serve(client)
        client.close()

    def serve(self, client: socket.socket) -> None:
        """Serve one connection until it ends."""
        server = self.connect()
        threading.Thread(target=self.pump, args=(server, client), daemon=True).start()
        self.pump(client, server)

    def connect(self) -> socket.socket:
        server = socket.create_connection(self._target)
        self._sockets.append(server)
        return server

    def pump(self, source: socket.socket, sink: socket.socket, first: bytes = b"") -> None:
        with contextlib.suppress(OSError):
            if first:
                sink.sendall(first)
            while data := source.recv(65536):
                self.pass_on(data, sink)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)

    def pass_on(self, data: bytes, sink: socket.socket) -> None:
        sink.sendall(data)

    def close(self) -> None:
        for end in [self._server, *self._sockets]:
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


class GrpcOnly(Front):
    """A client port without HTTP/1.1, like etcd's with `--listen-client-http-urls`: sends its settings and hangs up."""

    def serve(self, client: socket.socket) -> None:
        if client.recv(3, socket.MSG_PEEK) == b"PRI":
            super().serve(client)
        else:
            client.recv(65536)
            client.sendall(_SETTINGS)


class WholeRequests(Front):
    """An HTTP proxy that forwards a request only when it has received all of it."""

    def serve(self, client: socket.socket) -> None:
        server = self.connect()
        threading.Thread(target=self.pump, args=(server, client), daemon=True).start()
        data = b""
        while True:
            while b"\r\n\r\n" not in data:
                data += self._some(client)
            head, _, rest = data.partition(b"\r\n\r\n")
            if b"chunked" in head:
                while not rest.endswith(b"\r\n0\r\n\r\n"):
                    rest += self._some(client)
                data, rest = b"", rest
            else:
                length = int(head.lower().split(b"content-length:")[1].split(b"\r\n")[0])
                while len(rest) < length:
                    rest += self._some(client)
                rest, data = rest[:length], rest[length:]
            server.sendall(head + b"\r\n\r\n" + rest)
            self.watches += b"POST /v3/watch" in head

    def _some(self, client: socket.socket) -> bytes:
        data = client.recv(65536)
        if not data:
            raise ConnectionResetError
        return data


class NoWatches(Front):
    """Hangs up on every client that requests a watch."""

    def pass_on(self, data: bytes, sink: socket.socket) -> None:
        if b"POST /v3/watch" in data:
            raise ConnectionResetError
        super().pass_on(data, sink)


class Balancer(Front):
    """Serves each connection separately: after `freeze`, watches from before it receive nothing more."""

    def __init__(self, target: str) -> None:
        self._frozen_at = 0.0
        self.confirmed = 0  # watches that etcd has confirmed
        super().__init__(target)

    def freeze(self) -> None:
        self._frozen_at = time.monotonic()

    def serve(self, client: socket.socket) -> None:
        server, made_at, watch = self.connect(), time.monotonic(), threading.Event()

        def pump(source: socket.socket, sink: socket.socket) -> None:
            with contextlib.suppress(OSError):
                while data := source.recv(65536):
                    if b"POST /v3/watch" in data:
                        watch.set()
                        self.watches += 1
                    if not watch.is_set() or made_at >= self._frozen_at:
                        sink.sendall(data)
                        self.confirmed += data.count(b'"created":true')

        threading.Thread(target=pump, args=(server, client), daemon=True).start()
        pump(client, server)


class Slow(Front):
    """Forwards answers `delay_s` late, but not the preface of HTTP/2."""

    delay_s = 0.0

    def serve(self, client: socket.socket) -> None:
        server = self.connect()
        late: queue.SimpleQueue[tuple[float, bytes]] = queue.SimpleQueue()
        if client.recv(3, socket.MSG_PEEK) == b"PRI":
            server.sendall(client.recv(65536))
            client.sendall(server.recv(65536))
        threading.Thread(target=self.pump, args=(client, server), daemon=True).start()
        threading.Thread(target=self._take, args=(server, late), daemon=True).start()
        while True:
            due_at, data = late.get()
            time.sleep(max(0.0, due_at - time.monotonic()))
            if not data:
                break
            client.sendall(data)

    def _take(self, server: socket.socket, late: "queue.SimpleQueue[tuple[float, bytes]]") -> None:
        data = b"-"
        while data:
            try:
                data = server.recv(65536)
            except OSError:
                data = b""
            late.put((time.monotonic() + self.delay_s, data))


class Overloaded(Front):
    """Answers requests over HTTP like an etcd that has too many of them, until it is `relieved`."""

    def __init__(self, target: str) -> None:
        self.relieved = threading.Event()
        self.refused = 0
        super().__init__(target)

    def serve(self, client: socket.socket) -> None:
        if self.relieved.is_set():
            super().serve(client)
            return
        client.recv(65536)
        self.refused += 1
        body = b'{"error":"etcdserver: too many requests","message":"etcdserver: too many requests","code":8}'
        client.sendall(b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body))
