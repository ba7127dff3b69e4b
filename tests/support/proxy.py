"""A TCP proxy before a member of etcd that breaks things at a chosen moment, down to the reply of a chosen call."""

import contextlib
import socket
import threading
import time
from dataclasses import dataclass, field

import hpack

_PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
_HEADERS, _CONTINUATION = 1, 9
_END_HEADERS, _PADDED, _PRIORITY = 0x4, 0x8, 0x20


@dataclass
class Fault:
    """What happens to the replies of the next calls of a method: `drop`, `reset`, `hang` or `delay` (by `delay_s`).

    `drop` loses only that reply, `hang` also everything after it on the connection.
    """

    method: str
    how: str
    delay_s: float = 0.0
    skip: int = 0
    times: int = 1
    hit: threading.Event = field(default_factory=threading.Event)


class Proxy:
    """Listens on loopback. `calls` lists the methods seen, `connections` counts the accepted connections."""

    def __init__(self, target: str) -> None:
        host, port = target.rsplit(":", 1)
        self._target = (host, int(port))
        self._server = socket.create_server(("127.0.0.1", 0))
        self.endpoint = f"127.0.0.1:{self._server.getsockname()[1]}"
        self.connections = 0
        self.http2 = False
        self.calls: list[str] = []
        self._faults: list[Fault] = []
        self._lock = threading.Lock()
        self._open: list[socket.socket] = []
        self._pairs: list[_Pair] = []
        self._closed = False
        # set: bytes in that direction vanish; the connections stay open
        self.lose_requests = threading.Event()
        self.lose_replies = threading.Event()
        # set: each connection is closed as soon as it is accepted
        self.refuse = threading.Event()
        # set: requests arrive a few bytes at a time (HTTP/1.1 only)
        self.dribble = threading.Event()
        threading.Thread(target=self._accept, daemon=True).start()

    def fault(self, method: str, how: str, *, delay_s: float = 0.0, skip: int = 0, times: int = 1) -> Fault:
        """Arm a fault for the replies of `times` calls of this method, after the next `skip` calls."""
        fault = Fault(method, how, delay_s, skip, times)
        with self._lock:
            self._faults.append(fault)
        return fault

    def blackhole(self) -> None:
        """Both directions go silent."""
        self.lose_requests.set()
        self.lose_replies.set()

    def heal(self) -> None:
        """Forward bytes again, and disarm all faults.

        A connection that has lost bytes is reset, because TCP never loses bytes and then continues.
        """
        with self._lock:
            self._faults.clear()
            broken = [pair for pair in self._pairs if pair.lost]
            self._pairs = [pair for pair in self._pairs if not pair.lost]
        self.lose_requests.clear()
        self.lose_replies.clear()
        self.refuse.clear()
        for pair in broken:
            pair.end()

    def cut(self) -> None:
        """Reset all connections."""
        with self._lock:
            sockets, self._open = self._open, []
        for end in sockets:
            with contextlib.suppress(OSError):
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                end.shutdown(socket.SHUT_RDWR)
                end.close()

    def close(self) -> None:
        """Stop listening and reset all connections."""
        self._closed = True
        with contextlib.suppress(OSError):
            self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        self.cut()

    def _accept(self) -> None:
        while not self._closed:
            try:
                client, _ = self._server.accept()
            except OSError:
                return
            self.connections += 1
            if self.refuse.is_set():
                client.close()
                continue
            try:
                server = socket.create_connection(self._target)
            except OSError:
                client.close()
                continue
            with self._lock:
                self._open += [client, server]
            with self._lock:
                self._pairs.append(_Pair(self, client, server))

    def take_fault(self, method: str) -> Fault | None:
        """Note a call and return the fault that hits it, if any."""
        with self._lock:
            self.calls.append(method)
            for fault in self._faults:
                if fault.method == method:
                    if fault.skip:
                        fault.skip -= 1
                        return None
                    fault.times -= 1
                    if fault.times <= 0:
                        self._faults.remove(fault)
                    return fault
        return None


# The paths of gRPC's methods in etcd's JSON gateway.
_PATHS = {
    b"/v3/kv/range": "Range",
    b"/v3/kv/txn": "Txn",
    b"/v3/lease/grant": "LeaseGrant",
    b"/v3/lease/keepalive": "LeaseKeepAlive",
    b"/v3/lease/revoke": "LeaseRevoke",
    b"/v3/watch": "Watch",
    b"/v3/auth/authenticate": "Authenticate",
}


class _Pair:
    """One connection: reads HTTP/2 frames or HTTP/1.1 requests and forwards or loses them and their replies."""

    def __init__(self, proxy: Proxy, client: socket.socket, server: socket.socket) -> None:
        self._proxy = proxy
        self._client = client
        self._server = server
        self._decoder = hpack.Decoder()
        self._streams: dict[int, Fault] = {}
        self._silent = False
        self.lost = False
        self._fault: Fault | None = None
        threading.Thread(target=self._begin, daemon=True).start()

    def _begin(self) -> None:
        first = b""
        with contextlib.suppress(OSError):
            first = self._client.recv(3, socket.MSG_PEEK)
        speaks_http2 = first == _PREFACE[:3]
        self._proxy.http2 = self._proxy.http2 or speaks_http2
        threading.Thread(target=self._replies if speaks_http2 else self._plain_replies, daemon=True).start()
        if speaks_http2:
            self._requests()
        else:
            self._plain_requests()

    def _plain_requests(self) -> None:
        rest = b""
        with contextlib.suppress(OSError, EOFError):
            while True:
                while b"\r\n\r\n" not in rest:
                    rest += _some(self._client)
                head, _, rest = rest.partition(b"\r\n\r\n")
                path = head.split(b" ", 2)[1]
                self._fault = self._proxy.take_fault(_PATHS.get(path, path.decode()))
                if b"chunked" in head:
                    self._pass_on(head + b"\r\n\r\n" + rest)
                    while True:
                        self._pass_on(_some(self._client))
                lengths = [line for line in head.split(b"\r\n") if line.startswith(b"Content-Length")]
                if not lengths:
                    break  # not a client: another member that is looking for the member that had our port before
                length = int(lengths[0].split(b":")[1])
                while len(rest) < length:
                    rest += _some(self._client)
                body, rest = rest[:length], rest[length:]
                self._pass_on(head + b"\r\n\r\n" + body)
        self.end()

    def _pass_on(self, data: bytes) -> None:
        if self._proxy.lose_requests.is_set():
            self.lost = True
            return
        pieces = [data]
        if self._proxy.dribble.is_set():
            pieces = [data[at : at + 200] for at in range(0, len(data), 200)]
        for piece in pieces:
            self._server.sendall(piece)
            if len(pieces) > 1:
                time.sleep(0.02)

    def _plain_replies(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                data = _some(self._server)
                fault = self._fault
                if fault is not None:
                    fault.hit.set()
                    if fault.how == "reset":
                        break
                    if fault.how == "drop":
                        continue
                    if fault.how == "hang":
                        self._silent = True
                    elif fault.how == "delay":
                        self._fault = None
                        time.sleep(fault.delay_s)
                if self._silent or self._proxy.lose_replies.is_set():
                    self.lost = True
                else:
                    self._client.sendall(data)
        self.end()

    def _requests(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            self._server.sendall(_exactly(self._client, len(_PREFACE)))
            while True:
                frame = _frame(self._client)
                kind, flags, stream = frame[3], frame[4], int.from_bytes(frame[5:9]) & 0x7FFFFFFF
                if kind == _HEADERS:
                    self._note(flags, stream, frame[9:])
                if self._proxy.lose_requests.is_set():
                    self.lost = True
                else:
                    self._server.sendall(frame)
        self.end()

    def _note(self, flags: int, stream: int, payload: bytes) -> None:
        assert flags & _END_HEADERS, "gRPC's headers fit one frame"
        if flags & _PADDED:
            payload = payload[1 : -payload[0] or None]
        if flags & _PRIORITY:
            payload = payload[5:]
        headers = {str(name): str(value) for name, value in self._decoder.decode(payload)}
        fault = self._proxy.take_fault(headers.get(":path", "").rsplit("/", 1)[-1])
        if fault is not None:
            self._streams[stream] = fault

    def _replies(self) -> None:
        with contextlib.suppress(OSError, EOFError):
            while True:
                frame = _frame(self._server)
                stream = int.from_bytes(frame[5:9]) & 0x7FFFFFFF
                fault = self._streams.get(stream)
                if fault is not None:
                    fault.hit.set()
                    if fault.how == "reset":
                        break
                    if fault.how == "drop":
                        continue
                    if fault.how == "hang":
                        self._silent = True
                    elif fault.how == "delay":
                        del self._streams[stream]
                        time.sleep(fault.delay_s)
                if self._silent or self._proxy.lose_replies.is_set():
                    self.lost = True
                else:
                    self._client.sendall(frame)
        self.end()

    def end(self) -> None:
        """Close both sides."""
        for end in (self._client, self._server):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)
            end.close()


def _some(end: socket.socket) -> bytes:
    data = end.recv(65536)
    if not data:
        raise EOFError
    return data


def _exactly(end: socket.socket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        more = end.recv(count - len(data))
        if not more:
            raise EOFError
        data += more
    return data


def _frame(end: socket.socket) -> bytes:
    head = _exactly(end, 9)
    return head + _exactly(end, int.from_bytes(head[:3]))
