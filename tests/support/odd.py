"""Servers with odd answers: etcd's gateway with some answers rewritten, and a gRPC server of empty messages."""

import contextlib
import http.client
import json
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle
from typing import Any

import grpc

from tests.support.fronts import Front

HEADER = {"member_id": "3", "revision": "5", "raft_term": "2"}
# Well-formed JSON that etcd never answers to any request.
SHAPES = [
    {"header": None},
    {},
    [],
    {"header": HEADER, "kvs": [5], "TTL": [], "responses": 5, "token": 5},
    {"result": None},
    {"header": [HEADER], "kvs": []},
    {"error": 5},
    {"result": {"header": {**HEADER, "revision": -5}}},
    {"header": {**HEADER, "revision": str(2**63)}, "ID": "1", "TTL": "1"},
    5,
    {"error": {"code": "OK", "message": ["x"]}},
    {"header": {**HEADER, "raft_term": "two"}, "TTL": "٣"},
    None,
    {"error": None, "header": "x"},
]

Rewrite = Callable[[bytes], Any]


class OddGateway(Front):
    """etcd's gateway with the answers to some paths rewritten; it hangs up on gRPC.

    A rewriter gets the answer of the real etcd, which has executed the request. Its return value is sent as JSON; for
    a watch it is a list of lines, after which the stream ends. The path "" stands for all paths without a rewriter of
    their own; their requests do not reach etcd.
    """

    def __init__(self, target: str, rewrite: dict[str, Rewrite]) -> None:
        self.rewrite = rewrite
        self.asked: Counter[str] = Counter()
        super().__init__(target)

    def serve(self, client: socket.socket) -> None:
        if client.recv(3, socket.MSG_PEEK) == b"PRI":
            return
        with client.makefile("rb") as stream:
            while line := stream.readline():
                path = line.split(b" ")[1].decode()
                headers = http.client.parse_headers(stream)
                self.asked[path] += 1
                everything = self.rewrite.get("")
                rewrite = self.rewrite.get(path, everything)
                if path == "/v3/watch":
                    self._watch(client, stream, line, headers, rewrite)
                    return
                body = stream.read(int(headers["Content-Length"]))
                answer = (200, b"") if rewrite is everything is not None else self._real_answer(path, body)
                if rewrite is not None:
                    answer = 200, json.dumps(rewrite(answer[1])).encode()
                self._answer(client, *answer)

    def _real_answer(self, path: str, body: bytes) -> tuple[int, bytes]:
        etcd = http.client.HTTPConnection(*self._target, timeout=20)
        try:
            etcd.request("POST", path, body)
            answer = etcd.getresponse()
            return answer.status, answer.read()
        finally:
            etcd.close()

    def _answer(self, client: socket.socket, status: int, body: bytes) -> None:
        head = f"HTTP/1.1 {status} x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        client.sendall(head.encode() + body)

    def _watch(self, client: socket.socket, stream: Any, line: bytes, headers: Any, rewrite: Rewrite | None) -> None:
        request = line + b"".join(f"{name}: {value}\r\n".encode() for name, value in headers.items()) + b"\r\n"
        if rewrite is None:
            server = self.connect()
            threading.Thread(target=self.pump, args=(server, client), daemon=True).start()
            server.sendall(request + stream.peek())
            stream.read(len(stream.peek()))
            self.pump(client, server)
            return
        lines = rewrite(b"")
        text = b"".join(json.dumps(item).encode() + b"\n" for item in (lines if isinstance(lines, list) else [lines]))
        client.sendall(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n\r\n" % (len(text), text)
        )


def shapes(first: int = 0) -> Rewrite:
    """Return a rewriter that answers with each odd shape in turn, from a chosen one on."""
    lock, following = threading.Lock(), cycle(SHAPES[first % len(SHAPES) :] + SHAPES[: first % len(SHAPES)])

    def rewrite(_: bytes) -> Any:
        with lock:
            return next(following)

    return rewrite


@contextlib.contextmanager
def empty_grpc() -> Iterator[str]:
    """Yield the endpoint of a gRPC server that answers every call of etcd's with an empty message."""

    class Empty(grpc.GenericRpcHandler):  # type: ignore[misc]
        def service(self, details: Any) -> Any:
            if details.method.endswith(("/Watch", "/LeaseKeepAlive")):
                return grpc.stream_stream_rpc_method_handler(lambda requests, _: iter([b""]))
            return grpc.unary_unary_rpc_method_handler(lambda request, _: b"")

    server = grpc.server(ThreadPoolExecutor(4), handlers=(Empty(),))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield f"127.0.0.1:{port}"
    server.stop(None).wait()
