"""An etcd that is slow or overloaded does not count as unreachable."""

import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator

import pytest

from tests.conftest import OwnEtcd
from tests.support.conch import Bench, Wrapper, throughout
from tests.support.fronts import Front, Overloaded, Slow
from tests.support.proxy import Proxy

QUICK = ("--dial-timeout", "300ms")
WAYS = [("elect", "o"), ("elect", "o", "-n"), ("sema", "s", "--max", "3")]
HTTP = {"CONCH_TRANSPORT": "http"}


@pytest.fixture
def fronts() -> Iterator[list[Front]]:
    """The fronts that a test puts before etcd; they are closed afterwards."""
    made: list[Front] = []
    yield made
    for front in made:
        front.close()


@pytest.mark.parametrize("way", WAYS, ids=" ".join)
def test_first_answer_may_take_as_long_as_a_request(conch: Bench, fronts: list[Front], way: tuple[str, ...]) -> None:
    """The dial timeout is only for endpoints that nobody serves."""
    front = Slow(conch.endpoints)
    fronts.append(front)
    front.delay_s = 1.5
    done = conch.run(*way, *QUICK, "--endpoints", front.endpoint, "--", "true")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("look", [("elect", "o", "--who"), ("sema", "s", "--who")], ids=" ".join)
def test_queries_wait_as_long_as_a_request_too(conch: Bench, fronts: list[Front], look: tuple[str, ...]) -> None:
    """The answer is vacant, not unknown."""
    front = Slow(conch.endpoints)
    fronts.append(front)
    front.delay_s = 1.5
    assert conch.run(*look, *QUICK, "--endpoints", front.endpoint).returncode == 1


def test_too_many_requests_are_waited_out(conch: Bench, fronts: list[Front]) -> None:
    """etcd is there and reports its own limit."""
    front = Overloaded(conch.endpoints)
    fronts.append(front)
    relief = threading.Timer(3, front.relieved.set)
    relief.start()
    done = conch.run("elect", "o", *QUICK, "--endpoints", front.endpoint, "--", "true", env=HTTP)
    assert done.returncode == 0, done.stderr
    assert front.refused > 1
    assert front.relieved.is_set()


@pytest.mark.parametrize(
    ("flags", "least_s", "most_s"),
    [(["--wait", "3s", "--", "true"], 2.9, 8), (["-n", "--command-timeout", "2s", "--", "true"], 1.9, 6)],
    ids=["--wait", "--nonblock"],
)
def test_endpoint_that_never_answers_exits_69_in_the_end(
    conch: Bench, flags: list[str], least_s: float, most_s: float
) -> None:
    """conch exits after --wait, or with --nonblock after the time of one request."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        began = time.monotonic()
        done = conch.run("elect", "o", *QUICK, "--endpoints", f"127.0.0.1:{silent.getsockname()[1]}", *flags)
        assert done.returncode == 69, done.stderr
        assert least_s < time.monotonic() - began < most_s


def crowd(own: OwnEtcd, count: int) -> None:
    """Start so many wrappers of an election and a semaphore while etcd is stopped; all run in the end."""
    os.kill(own.member.pid, signal.SIGSTOP)
    try:
        wrappers = [
            own.bench.start(*(("elect", "o") if at % 2 else ("sema", "s", "--max", "3")), *QUICK, "--", "true")
            for at in range(count)
        ]
        for wrapper in wrappers:
            wrapper.wait_event("acquiring", timeout_s=60)
        wrappers[-1].wait_event("retry", timeout_s=60)
    finally:
        os.kill(own.member.pid, signal.SIGCONT)
    assert [wrapper.wait(120) for wrapper in wrappers] == [0] * count


@pytest.mark.timeout(600)
def test_all_that_start_at_the_same_time_are_served(own: OwnEtcd, request: pytest.FixtureRequest) -> None:
    """etcd does not answer at that time; with `--schedules` there are 300 of them."""
    crowd(own, 300 if request.config.getoption("--schedules") else 12)


@pytest.mark.parametrize("method", ["LeaseKeepAlive", "Range"])
def test_renewal_succeeds_beside_one_that_hangs(conch: Bench, proxied: Callable[[], Proxy], method: str) -> None:
    """Each request that is never answered costs less than half a second, however much time is left."""
    proxy = proxied()
    wrapper = conch.hold("o", "--ttl", "20s", "--endpoints", proxy.endpoint)
    # the first try, then a short one, and beside it a longer one
    proxy.fault(method, "hang", times=3)
    assert float(wrapper.wait_event("renewed")["gap_s"]) < 1.5
    wrapper.signal(signal.SIGTERM)
    wrapper.wait()


def check_held(wrapper: Wrapper) -> None:
    assert wrapper.process.poll() is None, wrapper.err
    assert not wrapper.events("lost"), wrapper.err


def test_hold_is_kept_while_each_answer_takes_more_than_a_second(conch: Bench, fronts: list[Front]) -> None:
    """Renewals overlap: each is late, none is abandoned, and each counts from when it was sent."""
    front = Slow(conch.endpoints)
    fronts.append(front)
    # over gRPC this front would delay the protocol's own frames, too
    wrapper = conch.hold("o", "--endpoints", front.endpoint, env=HTTP)
    front.delay_s = 1.6
    throughout(16, lambda: check_held(wrapper))
    front.delay_s = 0.0
    wrapper.signal(signal.SIGTERM)
    wrapper.wait()
