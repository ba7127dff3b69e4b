"""conchd with too few threads or descriptors, or without a package."""

import json
import os
import resource
import socket
import subprocess
import sys

import pytest

from tests.support.conch import CONCH, Bench, as_other_user
from tests.support.cron import Fleet

# the limit of processes counts all processes of a user, and does not apply to root
NEEDS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user without other processes")


def one_line(done: "subprocess.CompletedProcess[str]", says: str) -> None:
    """Check for exit code 69 and for one line outside the log that gives the reason."""
    assert done.returncode == 69, done.stderr
    plain = [line for line in done.stderr.splitlines() if not line.startswith("ts=")]
    assert len(plain) == 1, done.stderr
    assert says in plain[0], done.stderr
    assert "level=error" not in done.stderr


@NEEDS_ROOT
@pytest.mark.parametrize("limit", [1, 2, 3, 6, 10])
def test_conchd_with_too_few_threads(conch: Bench, limit: int) -> None:
    """It neither hangs nor retries for ever: it prints one line and exits 69."""
    command = [*as_other_user(f"--nproc={limit}"), CONCH, "conchd", "--state-dir", "s"]
    done = subprocess.run(
        command, env=conch.environment, cwd=conch.folder, capture_output=True, text=True, timeout=30, check=False
    )
    one_line(done, "cannot start the process that talks to etcd")
    assert conch.keys() == []


@NEEDS_ROOT
@pytest.mark.parametrize("limit", [12, 18])
def test_conchd_without_threads_for_grpc_takes_the_gateway(fleet: Fleet, limit: int) -> None:
    """It logs this once and works."""
    daemon = fleet.start(
        "a", program=[*as_other_user(f"--nproc={limit}"), CONCH], env={"CONCH_TRANSPORT": "auto", "XDG_STATE_HOME": ""}
    )
    assert "gateway" in daemon.wait_event("no-grpc")["msg"]
    fleet.add("j", "@yearly")
    assert fleet.result("j", fleet.run_now("j"))["state"] == "ok"
    assert len(daemon.events("no-grpc")) == 1
    assert daemon.events("keeper-failed", "keeper-died") == []


def without(package: str) -> list[str]:
    """Return the command line of a conch that lacks a package."""
    code = f"import sys; sys.modules[{package!r}] = None; from conch.cli.main import main; main()"
    return [sys.executable, "-c", code]


@pytest.mark.parametrize("package", ["grpc", "etcd3", "google.protobuf"])
def test_conchd_without_grpc_takes_the_gateway(fleet: Fleet, package: str) -> None:
    """It logs this once and works."""
    daemon = fleet.start("a", program=without(package), env={"CONCH_TRANSPORT": "auto"})
    assert "cannot load gRPC" in daemon.wait_event("no-grpc")["msg"]
    fleet.add("j", "@yearly")
    assert fleet.result("j", fleet.run_now("j"))["state"] == "ok"
    assert len(daemon.events("no-grpc")) == 1


@pytest.mark.parametrize("command", ["conchd --state-dir s", "elect o -- true", "elect o --who", "cron ls"])
def test_grpc_that_is_demanded_and_not_there(conch: Bench, command: str) -> None:
    """It prints one line and exits 69."""
    done = subprocess.run(
        [*without("grpc"), *command.split()],
        env={**conch.environment, "CONCH_TRANSPORT": "grpc"},
        cwd=conch.folder,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    one_line(done, "cannot load gRPC")


@pytest.mark.parametrize("limit", [14, 40])
def test_conchd_with_too_few_descriptors(conch: Bench, limit: int) -> None:
    """Before it starts, it prints how many descriptors it has and needs."""
    done = subprocess.run(
        ["prlimit", f"--nofile={limit}", CONCH, "conchd", "--state-dir", "s"],
        env=conch.environment,
        cwd=conch.folder,
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )
    one_line(done, f"the limit of open files is {limit} (ulimit -n)")


def test_job_whose_zone_cannot_be_opened_is_put_off(fleet: Fleet) -> None:
    """It is not reported as unreadable; it runs once there are descriptors again, like the jobs that ran before."""
    fleet.add("before", "@every 1s")
    daemon = fleet.start("a")
    fleet.results("before", 1)
    keeper = daemon.keeper()
    usual = resource.prlimit(keeper, resource.RLIMIT_NOFILE)
    try:
        resource.prlimit(keeper, resource.RLIMIT_NOFILE, (3, usual[1]))
        fleet.add("j", "@every 1s", "--tz", "Europe/Berlin")
        assert "Too many open files" in daemon.wait_event("postponed")["msg"]
        have = len(fleet.ticks("result", "before"))
        fleet.results("before", have + 1)
    finally:
        resource.prlimit(keeper, resource.RLIMIT_NOFILE, usual)
    fleet.results("j", 1)
    assert daemon.events("unreadable") == []
    assert daemon.keeper() == keeper


@NEEDS_ROOT
def test_lack_of_threads_while_it_works(fleet: Fleet) -> None:
    """The existing threads still answer status requests and claim and run ticks."""
    daemon = fleet.start(
        "a", "--status-addr", "0", program=[*as_other_user("--nproc=4096"), CONCH], env={"CONCH_TRANSPORT": "http"}
    )
    port = int(daemon.wait_event("status")["addr"].rpartition(":")[2])

    def answer(path: str = "/healthz") -> bytes:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(f"GET {path} HTTP/1.0\r\n\r\n".encode())
            return client.recv(100)

    assert b" 200 " in answer()
    keeper = daemon.keeper()
    subprocess.run([*as_other_user(f"--pid={keeper}", "--nproc=1:")], check=True)
    for path in ("/healthz", "/metrics", "/cron", "/elect", "/sema") * 8:
        assert b" 200 " in answer(path), path
    jobs = [f"j{number}" for number in range(12)]
    for name in jobs:
        job = {"schedule": "@every 1s", "cmd": ["true"], "overlap": "allow"}
        fleet.bench.etcd.put(f"{fleet.bench.prefix}/cron/job/{name}", json.dumps(job))
    for name in jobs:
        fleet.results(name, 2)
    subprocess.run([*as_other_user(f"--pid={keeper}", "--nproc=4096:")], check=True)
    assert b" 200 " in answer("/cron")
    assert daemon.keeper() == keeper
