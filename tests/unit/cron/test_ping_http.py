"""One HTTP request: a limit on all of it, no redirects, TLS verified, and no secret in what is said of a failure."""

import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import trustme

from conch.cron.ping_http import post

SECRET = "5f3a-secret"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nOK"
Serve = Callable[[socket.socket], None]


@contextmanager
def server(serve: Serve, context: ssl.SSLContext | None = None) -> Iterator[str]:
    """Serve one connection after the other; the URL has secrets in each part that can have some."""
    listener = socket.create_server(("127.0.0.1", 0))
    ending = threading.Event()

    def run() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            with client:
                try:
                    if context is None:
                        serve(client)
                    else:
                        with context.wrap_socket(client, server_side=True) as secured:
                            serve(secured)
                except OSError:
                    pass  # the client has left

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    scheme = "http" if context is None else "https"
    yield f"{scheme}://u:{SECRET}@127.0.0.1:{listener.getsockname()[1]}/{SECRET}?key={SECRET}"
    ending.set()
    listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


def request(client: socket.socket) -> bytes:
    """Read a whole request."""
    data = b""
    while b"\r\n\r\n" not in data:
        data += client.recv(65536)
    head, _, body = data.partition(b"\r\n\r\n")
    length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0] or b"0")
    while len(body) < length:
        body += client.recv(65536)
    return head + b"\r\n\r\n" + body


def answers(*what: bytes) -> Serve:
    def serve(client: socket.socket) -> None:
        request(client)
        for piece in what:
            client.sendall(piece)

    return serve


def test_request() -> None:
    """A POST of the body, with the query as it is, and the user's name and password as credentials."""
    got: list[bytes] = []

    def serve(client: socket.socket) -> None:
        got.append(request(client))
        client.sendall(OK)

    with server(serve) as url:
        assert post(url, "übel\n".encode(), 5.0) == ""
    head, _, body = got[0].partition(b"\r\n\r\n")
    assert head.startswith(f"POST /{SECRET}?key={SECRET} HTTP/1.1".encode())
    assert b"authorization: basic " in head.lower()
    assert body == "übel\n".encode()


def drip(client: socket.socket) -> None:
    request(client)
    for byte in b"HTTP/1.1 200 OK\r\nX-Slow: " + b"x" * 1000:
        client.sendall(bytes([byte]))
        time.sleep(0.05)  # the server is slow on purpose: each read of the client succeeds in time


def hang(client: socket.socket) -> None:
    request(client)
    client.recv(1)


def close(client: socket.socket) -> None:
    request(client)


@pytest.mark.parametrize(
    ("serve", "why"),
    [
        (answers(b"HTTP/1.1 500 Oops\r\n\r\n"), "HTTP 500"),
        (answers(b"HTTP/1.1 404 Not found\r\n\r\n"), "HTTP 404"),
        (answers(b"HTTP/1.1 204 Fine\r\n\r\n"), ""),
        (answers(b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\nclosed mid-way"), ""),
        (answers(b"HTTP/1.1 2"), "its answer is not HTTP"),
        (close, "the connection was closed before the answer"),
        (hang, "no answer within 0.5 s"),
        (drip, "no answer within 0.5 s"),
        (answers(b"no HTTP at all\r\n\r\n"), "its answer is not HTTP"),
        (answers(b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500), "its answer is not HTTP"),
    ],
)
def test_servers_of_all_kinds(serve: Serve, why: str) -> None:
    """The limit is one on the whole request, and no secret is in the reason."""
    with server(serve) as url:
        began = time.monotonic()
        found = post(url, b"", 0.5)
        assert time.monotonic() - began < 3
    assert found == why
    assert SECRET not in found


def test_redirect_is_not_followed() -> None:
    """It would take the secret to another host."""
    reached: list[bytes] = []
    there = "HTTP/1.1 302 Found\r\nLocation: {}\r\n\r\n"
    with (
        server(lambda client: reached.append(request(client))) as other,
        server(answers(there.format(other).encode())) as url,
    ):
        assert post(url, b"", 5.0) == "HTTP 302: redirects are not followed"
    assert reached == []


def test_refused_and_unknown() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    assert post(f"http://127.0.0.1:{port}/{SECRET}", b"", 5.0) == "Connection refused"
    found = post(f"http://nowhere.invalid/{SECRET}", b"", 5.0)
    assert found == "the name of its host cannot be resolved"


def test_tls_is_verified(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against the system's authorities; SSL_CERT_FILE names others."""
    authority = trustme.CA()
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    file = tmp_path / "ca.pem"
    authority.cert_pem.write_to_path(file)
    with server(answers(OK), context) as url:
        found = post(url, b"", 5.0)
        assert found.startswith("TLS: ")
        assert SECRET not in found
        monkeypatch.setenv("SSL_CERT_FILE", str(file))
        assert post(url, b"", 5.0) == ""
        assert post(url.replace("127.0.0.1", "localhost"), b"", 5.0).startswith("TLS: ")  # another name
