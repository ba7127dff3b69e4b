"""Odd answers: no traceback, one clear line, the documented exit code, and the next endpoint is asked."""

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.conch import Bench, wait_for
from tests.support.odd import HEADER, OddGateway, empty_grpc, shapes

# Time enough for an answer; a machine that is busy with other tests needs one of the later ones.
LIMITS = ("400ms", "2s", "10s")
COMMANDS = {
    "elect": ("elect", "o", "--", "touch", "ran"),
    "elect-nonblock": ("elect", "o", "-n", "--", "touch", "ran"),
    "elect-who": ("elect", "o", "--who"),
    "elect-watch": ("elect", "o", "--watch"),
    "elect-assert": ("elect", "o", "--assert"),
    "sema": ("sema", "s", "--max", "2", "--spread", "--", "touch", "ran"),
    "sema-who": ("sema", "s", "--who"),
    "cron-add": ("cron", "add", "j", "--schedule", "@daily", "--", "true"),
    "cron-rm": ("cron", "rm", "j"),
    "cron-show": ("cron", "show", "j"),
    "cron-pause": ("cron", "pause", "j"),
    "cron-resume": ("cron", "resume", "j"),
    "cron-run": ("cron", "run", "j"),
    "cron-ls": ("cron", "ls", "--last"),
    "cron-history": ("cron", "history", "j"),
    "cron-next": ("cron", "next", "--job", "j"),
    "conchd": ("conchd", "--state-dir", "state"),
}


@pytest.fixture
def gateway(conch: Bench) -> Iterator[OddGateway]:
    """The test run's etcd behind a gateway that rewrites answers as a test says."""
    front = OddGateway(conch.endpoints, {})
    yield front
    front.close()


def env(front: OddGateway, transport: str = "http", **more: str) -> dict[str, str]:
    return {"CONCH_TRANSPORT": transport, "CONCH_ENDPOINTS": front.endpoint, **more}


def plain_lines(text: str) -> list[str]:
    """Return the lines that are no log lines."""
    return [line for line in text.splitlines() if not line.startswith("ts=")]


def refused(conch: Bench, command: tuple[str, ...], environment: dict[str, str]) -> str:
    """Run a command that must exit 69 soon after the dial timeout, with one line about an answer; return the line."""
    line = ""
    for limit in LIMITS:
        began = time.monotonic()
        done = conch.run(*command, env={"CONCH_DIAL_TIMEOUT": limit, "CONCH_COMMAND_TIMEOUT": limit, **environment})
        assert done.returncode == 69, done.stderr
        assert time.monotonic() - began < 20
        assert done.stdout == ""
        (line,) = plain_lines(done.stderr)
        assert line.startswith("conch: cannot "), line
        assert not conch.file("ran").exists()
        if "no answer in time" not in line:
            break
    return line


@pytest.mark.parametrize("transport", ["http", "auto"])
@pytest.mark.parametrize("name", COMMANDS)
def test_server_whose_answers_are_all_odd(conch: Bench, gateway: OddGateway, name: str, transport: str) -> None:
    """Every command exits 69 with a line that says what is odd and at which endpoint."""
    gateway.rewrite = {"": shapes(list(COMMANDS).index(name))}
    line = refused(conch, COMMANDS[name], env(gateway, transport))
    if not (name == "conchd" and transport == "auto"):  # it uses gRPC, which does not get that far
        assert f"{gateway.endpoint}: " in line
        assert "odd answer" in line or "no JSON" in line or "bad answer" in line, line
        assert gateway.asked.total() > 0


@pytest.mark.parametrize(
    "name", ["elect", "elect-nonblock", "elect-who", "elect-watch", "cron-ls", "cron-run", "conchd"]
)
def test_grpc_server_whose_answers_are_empty(conch: Bench, name: str) -> None:
    """An empty message is valid protobuf: taken literally, the office would be vacant and the job unknown."""
    with empty_grpc() as endpoint:
        line = refused(conch, COMMANDS[name], {"CONCH_TRANSPORT": "grpc", "CONCH_ENDPOINTS": endpoint})
    assert "header" in line


@pytest.mark.parametrize("transport", ["http", "auto"])
@pytest.mark.parametrize("name", ["elect-who", "elect", "cron-ls"])
def test_next_endpoint_is_asked(conch: Bench, gateway: OddGateway, name: str, transport: str) -> None:
    """An endpoint that answers oddly costs nothing but time."""
    gateway.rewrite = {"": shapes()}
    both = env(gateway, transport, CONCH_ENDPOINTS=f"{gateway.endpoint},{conch.endpoints}")

    def asked() -> bool:
        done = conch.run(*COMMANDS[name], env=both)
        assert done.returncode == (1 if name == "elect-who" else 0), done.stderr
        assert plain_lines(done.stderr) == []
        return gateway.asked.total() > 0  # which endpoint comes first is random

    wait_for(asked, "the odd one was the first to be asked")


@pytest.mark.parametrize(
    ("path", "what"),
    [("/v3/lease/grant", "get a lease"), ("/v3/kv/txn", "make a transaction"), ("/v3/kv/range", "read ")],
)
def test_odd_answer_on_the_way_to_a_hold(conch: Bench, gateway: OddGateway, path: str, what: str) -> None:
    """The request was served, only its answer is odd: nothing runs, and no key is left."""
    gateway.rewrite = {path: shapes(3)}
    assert what in refused(conch, COMMANDS["elect-nonblock"], env(gateway))
    wait_for(lambda: not conch.keys(), "nothing is left")


def test_transaction_without_what_it_read_is_no_hold(conch: Bench, gateway: OddGateway) -> None:
    """An answer that says that we queue, but omits the keys ahead, must not start anything."""

    def without_keys(answer: bytes) -> Any:
        data = json.loads(answer)
        for one in data.get("responses", ()):
            if "response_range" in one:
                one["response_range"].pop("kvs", None)
        return data

    conch.hold("o")
    gateway.rewrite = {"/v3/kv/txn": without_keys}
    late = conch.run("elect", "o", "--wait", "4s", "--", "touch", "ran", env=env(gateway))
    assert (late.returncode, conch.file("ran").exists()) == (75, False), late.stderr
    assert "odd answer" in late.stderr


@pytest.mark.parametrize("path", ["/v3/lease/keepalive", "/v3/kv/range"])
def test_odd_answer_to_a_renewal_or_its_confirmation(conch: Bench, gateway: OddGateway, path: str) -> None:
    """It does not count: the command is ended by the last confirmed deadline, and conch exits 70."""
    wrapper = conch.hold("o", "--ttl", "2s", env=env(gateway))
    gateway.rewrite = {path: shapes()}
    assert wrapper.wait() == 70
    assert "odd answer" in wrapper.wait_event("renew-failed")["msg"]
    assert plain_lines(wrapper.err) == []


def test_odd_answer_to_the_release(conch: Bench, gateway: OddGateway) -> None:
    """conch exits with the command's code and logs that the lease expires by itself."""
    gateway.rewrite = {"/v3/lease/revoke": lambda _: {}}
    done = conch.run("elect", "o", "--command-timeout", "1s", "--", "sh", "-c", "exit 3", env=env(gateway))
    assert done.returncode == 3, done.stderr
    assert "expires by itself" in done.stderr


@pytest.mark.parametrize(
    "lines",
    [
        [{"header": None}],
        [{"result": {"header": HEADER, "created": True}}, {"result": {"header": HEADER, "events": [5]}}],
        [{"result": {"header": HEADER, "events": [{"kv": {"key": "eA==", "mod_revision": "9"}, "type": "DELETE"}]}}],
        [{"error": {"message": 5}}],
    ],
    ids=["header", "events", "unasked", "error"],
)
def test_odd_watch(conch: Bench, gateway: OddGateway, lines: list[Any]) -> None:
    """A waiter polls now and then, so it is promoted; streams are requested with pauses in between."""
    gateway.rewrite = {"/v3/watch": lambda _: lines}
    first = conch.hold("o")
    began = time.monotonic()
    second = conch.queue("o", command="echo ran >> ran", env=env(gateway))
    watcher = conch.start("elect", "o", "--watch", env=env(gateway))
    watcher.wait_event("watch-interrupted")
    asked, for_s = gateway.asked["/v3/watch"], time.monotonic() - began
    assert asked < 2 * (6 + 4 * for_s)  # pauses start at 0.05 s and double up to a second
    first.signal(15)
    assert second.wait(30) == 0, second.err
    assert conch.read("ran") == "ran\n"
    assert plain_lines(second.err) == []
    watcher.signal(15)
    assert watcher.wait() == 143
    assert plain_lines(watcher.err) == []


@pytest.mark.parametrize("answer", [{}, {"token": 5}, {"token": "a\r\nX: b"}, {"header": HEADER, "token": ""}])
def test_odd_login(conch: Bench, gateway: OddGateway, answer: Any) -> None:
    """conch tries the next endpoint and in the end exits 69."""
    gateway.rewrite = {"/v3/auth/authenticate": lambda _: answer}
    as_user = {"CONCH_USER": "u", "CONCH_PASSWORD": "p"}
    assert "odd answer" in refused(conch, COMMANDS["elect-who"], env(gateway, **as_user))
