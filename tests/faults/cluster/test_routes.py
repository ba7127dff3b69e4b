"""Between conch and the members: etcd's own grpc-proxy, and host names with several addresses."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conch.dev import find_etcd
from tests.support.conch import CONCH, Bench, throughout, wait_for
from tests.support.etcdbin import newest_etcd
from tests.support.fronts import Front


class GrpcProxy:
    """A real `etcd grpc-proxy` on a port of its own."""

    def __init__(self, members: str, folder: Path, *flags: str, binary: str = "", port: int = 0) -> None:
        if not port:
            with socket.create_server(("127.0.0.1", 0)) as free:
                port = free.getsockname()[1]
        self.endpoint = f"127.0.0.1:{port}"
        started = ["grpc-proxy", "start", f"--endpoints={members}", f"--listen-addr={self.endpoint}", *flags]
        with (folder / "grpc-proxy.log").open("ab") as log:
            self._process = subprocess.Popen([binary or find_etcd(), *started], stdout=log, stderr=log)
        wait_for(self._serves, "the proxy serves")

    def _serves(self) -> bool:
        # as any client would; all that the proxy cannot do is renew once and close
        asked = subprocess.run(
            ["etcdctl", "--endpoints", self.endpoint, "get", "ready"],
            env={**os.environ, "PATH": f"{os.environ['PATH']}:{Path(sys.executable).parent}"},
            capture_output=True,
            check=False,
        )
        return asked.returncode == 0

    def close(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()


@pytest.fixture
def grpc_proxy(conch: Bench, tmp_path: Path) -> Iterator[Callable[..., GrpcProxy]]:
    """Make grpc-proxies in front of the test run's etcd."""
    proxies: list[GrpcProxy] = []

    def make(*flags: str, binary: str = "", port: int = 0) -> GrpcProxy:
        proxies.append(GrpcProxy(conch.endpoints, tmp_path, *flags, binary=binary, port=port))
        return proxies[-1]

    yield make
    for proxy in proxies:
        proxy.close()


MakeGrpcProxy = Callable[..., GrpcProxy]


@pytest.mark.parametrize(("binary", "flags"), [(find_etcd, ()), (newest_etcd, ("--advertise-client-url=",))])
def test_grpc_proxy_is_refused_before_anything_starts(
    conch: Bench, grpc_proxy: MakeGrpcProxy, binary: Callable[[], str], flags: tuple[str, ...]
) -> None:
    """elect, sema and conchd soon exit 69, with one line that names the proxy."""
    endpoint = grpc_proxy(*flags, binary=binary()).endpoint
    ran = conch.folder / "ran"
    commands = [
        ("elect", "o", "--", "touch", str(ran)),
        ("elect", "o", "--restart", "--", "touch", str(ran)),
        ("elect", "o", "--nonblock", "--", "touch", str(ran)),
        ("sema", "s", "--max", "2", "--spread", "--", "touch", str(ran)),
        ("conchd", "--state-dir", str(conch.folder / "state")),
    ]
    env = {"CONCH_ENDPOINTS": endpoint, "CONCH_TRANSPORT": "auto", "CONCH_QUIET": "1", "CONCH_DIAL_TIMEOUT": "30s"}
    for command in commands:
        began = time.monotonic()
        done = conch.run(*command, env=env)
        assert done.returncode == 69, done.stderr
        assert "grpc-proxy" in done.stderr
        assert sum(line.startswith("conch: ") for line in done.stderr.splitlines()) == 1
        assert time.monotonic() - began < 15
    assert not ran.exists()
    assert not list(conch.etcd.get_prefix(f"{conch.prefix}/", keys_only=True))


def test_queries_and_jobs_go_through_a_grpc_proxy(conch: Bench, grpc_proxy: MakeGrpcProxy) -> None:
    """Commands that take no lease work."""
    env = {"CONCH_ENDPOINTS": grpc_proxy().endpoint, "CONCH_TRANSPORT": "auto"}
    holder = conch.hold("o")
    assert f"pid={holder.pid}" in conch.run("elect", "o", "--who", env=env).stdout
    watch = conch.start("elect", "o", "--watch", env=env)
    wait_for(lambda: f"pid={holder.pid}" in watch.out, "the leader")
    assert conch.run("cron", "add", "j", "--schedule", "@yearly", "--", "true", env=env).returncode == 0
    assert "j" in conch.run("cron", "ls", env=env).stdout
    conch.run("cron", "rm", "j", env=env)
    holder.signal(signal.SIGTERM)
    wait_for(lambda: watch.out.endswith("o -\n"), "vacant")


@pytest.mark.parametrize("transport", ["auto", "grpc", "http"])
def test_member_beside_a_grpc_proxy_is_used(conch: Bench, grpc_proxy: MakeGrpcProxy, transport: str) -> None:
    """Whichever of the two is tried first, the hold lasts longer than its TTL."""
    endpoints = f"{grpc_proxy().endpoint},{conch.endpoints}"
    holders = [conch.hold(f"o{i}", "--ttl", "2s", "--endpoints", endpoints, "--transport", transport) for i in range(4)]

    def check() -> None:
        for holder in holders:
            assert not holder.events("lost"), holder.err
            assert holder.process.poll() is None, holder.err

    throughout(3, check)


def test_member_that_becomes_a_grpc_proxy_renews_nothing_more(conch: Bench, grpc_proxy: MakeGrpcProxy) -> None:
    """The command dies and conch exits 70, as in any outage; the log says why."""
    front = Front(conch.endpoints)
    holder = conch.hold("o", "--ttl", "3s", "--endpoints", front.endpoint, "--transport", "grpc")
    child = holder.child()
    front.close()
    grpc_proxy(port=int(front.endpoint.rsplit(":", 1)[1]))
    assert holder.wait() == 70, holder.err
    assert not Path(f"/proc/{child}").exists()
    assert "grpc-proxy" in holder.err


class Names:
    """A host name with two addresses, of which the first does not answer, for commands under `shell`."""

    def __init__(self, folder: Path) -> None:
        self.hosts = folder / "hosts"
        self.hosts.write_text("127.0.0.1 localhost\n::1 twice\n127.0.0.1 twice\n")

    def shell(self) -> list[str]:
        """Return the prefix of a command that gives it our /etc/hosts."""
        return ["unshare", "-m", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"', str(self.hosts)]


@pytest.mark.skipif(os.geteuid() != 0, reason="a mount namespace needs root")
@pytest.mark.parametrize("first", ["refuses", "drops", "is silent"])
@pytest.mark.parametrize("transport", ["grpc", "http"])
def test_name_whose_first_address_does_not_answer_is_reached_by_the_next(
    conch: Bench, tmp_path: Path, transport: str, first: str
) -> None:
    """Every other client of etcd does this, too; the command runs for longer than a TTL."""
    member = Front(conch.endpoints)  # on a port of its own
    port = member.endpoint.rsplit(":", 1)[1]
    waiting: list[socket.socket] = []
    if first != "refuses":
        server = socket.create_server(("::1", int(port)), family=socket.AF_INET6, backlog=0 if first == "drops" else 64)
        waiting.append(server)
        for _ in range(8 if first == "drops" else 0):  # fills its queue
            waiting.append(socket.socket(socket.AF_INET6))
            waiting[-1].setblocking(False)
            waiting[-1].connect_ex(("::1", int(port)))
    try:
        flags = ["--endpoints", f"twice:{port}", "--transport", transport, "--ttl", "3s", "--quiet"]
        done = subprocess.run(
            [*Names(tmp_path).shell(), CONCH, "elect", "o", *flags, "--", "sleep", "4"],
            env=conch.environment,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    finally:
        member.close()
        for one in waiting:
            one.close()
    assert done.returncode == 0, done.stderr
