"""The pool of the gateway's HTTP client, against a server of our own on a real socket."""

import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from conch.etcd.endpoints import Endpoint
from conch.etcd.gateway_connection import ConnectionState, GatewayConnection, IllegalConnectionState
from conch.etcd.gateway_http import Gateway, HungUp

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}"
LAST = b"HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 2\r\n\r\n{}"
BEGUN = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"


class Server:
    """Answers each request with the same bytes; `cut` ends the connections that are open."""

    def __init__(self) -> None:
        self.answer = OK
        self.clients: list[socket.socket] = []
        self.asked = threading.Semaphore(0)
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.endpoint = Endpoint("127.0.0.1", self._listening.getsockname()[1])
        self._accepting = threading.Thread(target=self._accept, daemon=True)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listening.accept()
            except OSError:
                return
            self.clients.append(client)
            threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        try:
            while client.recv(65536):
                self.asked.release()
                client.sendall(self.answer)
        except OSError:
            pass  # it was cut

    def cut(self) -> None:
        for client in self.clients:
            client.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        self._listening.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        self._listening.close()
        for client in self.clients:
            client.close()


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    yield server
    server.close()


@pytest.fixture
def gateway(server: Server) -> Iterator[Gateway]:
    gateway = Gateway(server.endpoint, None)
    yield gateway
    gateway.close()


def ask(gateway: Gateway, timeout_s: float = 5.0) -> None:
    assert gateway.ask("/x", b"{}", None, timeout_s) == {}


def raised_in_thread(call: Callable[[], object]) -> tuple[threading.Thread, list[BaseException]]:
    """Start a call that is to fail."""
    raised: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except Exception as error:
            raised.append(error)

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    return thread, raised


def test_one_connection_serves_one_request_after_the_other(server: Server, gateway: Gateway) -> None:
    """It is reused as long as its answers are read to their ends."""
    for _ in range(5):
        ask(gateway)
    assert len(server.clients) == 1


@pytest.mark.parametrize("answer", [LAST, OK + b"H"], ids=["close", "surplus"])
def test_connection_that_is_over_is_not_reused(server: Server, gateway: Gateway, answer: bytes) -> None:
    """The server says so, or sends what nobody asked for."""
    server.answer = answer
    ask(gateway)
    ask(gateway)
    assert len(server.clients) == 2


def test_idle_connection_that_the_server_closed_is_replaced(server: Server, gateway: Gateway) -> None:
    """The request does not fail for it."""
    ask(gateway)
    server.cut()
    time.sleep(0.05)  # the end arrives
    ask(gateway)
    assert len(server.clients) == 2


def test_request_that_is_not_answered_ends_at_its_deadline(server: Server, gateway: Gateway) -> None:
    """Its connection is not used again: the answer may still come."""
    server.answer = OK[:-1]
    began = time.monotonic()
    with pytest.raises(TimeoutError):
        ask(gateway, 0.2)
    assert 0.2 <= time.monotonic() - began < 2
    server.answer = OK
    ask(gateway)
    assert len(server.clients) == 2


def test_closed_pool_fails_what_is_under_way_and_opens_nothing(server: Server, gateway: Gateway) -> None:
    """The thread that waits is woken long before its deadline."""
    server.answer = b"HTTP/1.1 "
    thread, raised = raised_in_thread(lambda: ask(gateway, 60))
    assert server.asked.acquire(timeout=5)
    gateway.close()
    thread.join(5)
    assert [type(error) for error in raised] == [HungUp]
    with pytest.raises(ConnectionAbortedError):
        ask(gateway)
    assert len(server.clients) == 1


def test_stream_is_ended_from_another_thread(server: Server, gateway: Gateway) -> None:
    """More than once, and after its end, too."""
    server.answer = BEGUN
    stream = gateway.stream("/w", b"{}", None, 5, ended=False)
    thread, raised = raised_in_thread(lambda: list(stream.answers(lambda: 60, lambda: None)))
    stream.cancel()
    stream.cancel()
    thread.join(5)
    assert [type(error) for error in raised] == [ConnectionResetError]
    stream.close()
    stream.cancel()


def test_silence_on_a_stream_is_reported_and_may_end_it(server: Server, gateway: Gateway) -> None:
    """Lines before it are not lost, however the chunks cut them."""
    server.answer = BEGUN + b'4\r\n{"a"\r\n7\r\n:1}\n\n{}\r\n'
    stream = gateway.stream("/w", b"{}", None, 5, ended=True)
    silences: list[None] = []

    def on_silence() -> None:
        silences.append(None)
        if len(silences) == 2:
            raise TimeoutError("silent")

    answers = stream.answers(lambda: 0.05, on_silence)
    assert next(answers) == {"a": 1}
    with pytest.raises(TimeoutError, match="silent"):
        next(answers)
    stream.close()
    assert not stream.add(b"{}")  # its request is over


def test_connection_does_what_its_state_allows(server: Server) -> None:
    """All else is a defect, and says both states."""
    connection = GatewayConnection(server.endpoint, None, time.monotonic() + 5, 0)
    with pytest.raises(IllegalConnectionState, match="from active to active"):
        connection.activate()
    connection.release()
    with pytest.raises(IllegalConnectionState, match="from idle to interrupted"):
        connection.interrupt()
    connection.activate()
    connection.interrupt()
    with pytest.raises(IllegalConnectionState, match="from interrupted to idle"):
        connection.release()
    connection.close()
    assert connection.state is ConnectionState.CLOSED
    with pytest.raises(IllegalConnectionState):
        connection.close()
