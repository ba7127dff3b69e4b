"""Somebody is told of what fails: the log, the commands of `--on-failure`, and pings, as users see them."""

import http.server
import os
import pwd
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

import psutil
import pytest

from tests.support.conch import Bench, alive, wait_for
from tests.support.cron import Fleet

NEVER = "@yearly"  # only `cron run` asks for ticks
RECORD = 'printf "%s|" "$CONCH_NAME" "$CONCH_TICK" "$CONCH_STATE" "$CONCH_EXIT" "$CONCH_DURATION" >> {}; echo >> {}'


def record(path: Path) -> str:
    """Return a command that appends what it was told to a file, one line each time."""
    return RECORD.format(path, path)


def rows(path: Path) -> list[list[str]]:
    """Return what such commands have written so far."""
    text = path.read_text() if path.exists() else ""
    return [line.split("|")[:-1] for line in text.split("\n")[:-1]]


# -- the log ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("command", "flags", "state", "code"),
    [("exit 3", (), "failed", "3"), ("sleep 60", ("--run-ttl", "0.3"), "timeout", "143"), ("true", (), None, None)],
)
def test_failed_run_is_an_error_in_a_quiet_log(
    fleet: Fleet, command: str, flags: tuple[str, ...], state: str | None, code: str | None
) -> None:
    """It is the only line about the run, and says which job and tick it was, how it ended and why."""
    daemon = fleet.start("a", "--quiet", ready=False)
    wait_for(lambda: fleet.node("a"), "the daemon is registered")
    fleet.add("j", NEVER, *flags, command=command)
    tick = fleet.run_now("j")
    fleet.result("j", tick)
    if state is None:
        assert "job=j" not in daemon.err
        return
    line = daemon.wait_event("run-failed")
    assert (line["level"], line["job"], line["state"], line["exit"]) == ("error", "j", state, code)
    assert fleet.unix(line["tick"]) == tick
    assert line["tick"].endswith("Z")
    assert ("reason" in line) == (state == "timeout")
    assert line["attempt"] == "1"


def test_events_of_a_run_have_one_shape(fleet: Fleet) -> None:
    """Those of both processes name the job and the tick in fields of their own."""
    daemon = fleet.start("a", "--on-failure", "true")
    fleet.add("j", NEVER, "--retries", "1", "--retry-delay", "0", command="exit 3")
    fleet.run_now("j")
    daemon.wait_event("hook-end")
    names = ("child-start", "child-exit", "retry", "run-end", "run-failed", "hook-start", "hook-exit", "hook-end")
    lines = daemon.events(*names)
    assert {line["event"] for line in lines} == set(names)
    assert {line["job"] for line in lines} == {"j"}
    assert len({line["tick"] for line in lines}) == 1
    assert all(line["exit"] == "3" for line in lines if line["event"] in ("child-exit", "retry", "run-end"))


# -- commands ---------------------------------------------------------------------------------------------------


def test_commands_of_job_and_host(fleet: Fleet, tmp_path: Path) -> None:
    """Both are run after a failure, with what is to be known in the environment, and neither after a success."""
    host, own = tmp_path / "host", tmp_path / "own"
    daemon = fleet.start("a", "--on-failure", record(host))
    show = f'stat -c "%a %s" "$CONCH_OUTPUT" > {tmp_path}/stat; echo $CONCH_OUTPUT > {tmp_path}/name; {record(own)}'
    fleet.add("j", NEVER, "--on-failure", show, command="exit 3")
    fleet.add("good", NEVER, "--on-failure", record(own))
    fleet.result("good", fleet.run_now("good"))
    tick = fleet.run_now("j")
    daemon.wait_event("hook-end", 2)
    for path in (host, own):
        ((name, at, state, code, duration),) = rows(path)
        assert (name, at, state, code) == ("j", str(tick), "failed", "3")
        assert 0 <= float(duration) < 10
    assert (tmp_path / "stat").read_text().split()[0] == "600"
    output = Path((tmp_path / "name").read_text().strip())
    wait_for(lambda: not output.exists(), "the output is removed")
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
    assert not output.parent.exists()


def test_command_follows_the_rules_of_runs(fleet: Fleet, tmp_path: Path) -> None:
    """It has a group of its own, nothing that it leaves behind lives on, and its failure is logged, not recorded."""
    pids = tmp_path / "pids"
    command = f"(trap '' TERM; setsid sleep 300) & echo $$ $! $(ps -o pgid= -p $$) > {pids}; exit 7"
    daemon = fleet.start("a")
    fleet.add("j", NEVER, "--on-failure", command, command="exit 3")
    tick = fleet.run_now("j")
    line = daemon.wait_event("hook-failed")
    assert (line["level"], line["hook"], line["exit"], line["state"]) == ("warning", "on-failure", "7", "failed")
    main, left, group = map(int, pids.read_text().split())
    assert main == group
    assert not psutil.pid_exists(left)
    assert fleet.result("j", tick)["exit"] == 3


def test_command_has_its_time_when_conchd_stops(fleet: Fleet, tmp_path: Path) -> None:
    """The drain waits for it as for a run."""
    done = tmp_path / "done"
    gate = tmp_path / "gate"
    daemon = fleet.start(
        "a", "--drain", "20s", "--on-failure", f"while ! test -e {gate}; do sleep 0.02; done; {record(done)}"
    )
    fleet.add("j", NEVER, command="exit 3")
    tick = fleet.run_now("j")
    fleet.result("j", tick)
    daemon.wait_event("hook-start")
    daemon.signal(signal.SIGTERM)
    daemon.wait_event("draining")
    gate.touch()
    assert daemon.wait() == 0
    assert [row[2] for row in rows(done)] == ["failed"]


def test_run_that_is_lost_in_a_crash(fleet: Fleet, tmp_path: Path) -> None:
    """The next conchd tells of it, as the job says now, and removes the files that were left."""
    own, host, name = tmp_path / "own", tmp_path / "host", tmp_path / "name"
    left = tmp_path / "left"
    command = f"sleep 300 & echo $! > {left}; echo $CONCH_OUTPUT > {name}; wait"
    first = fleet.start("a", "--on-failure", command)
    fleet.add("bad", NEVER, command="exit 3")
    fleet.add("j", NEVER, "--on-failure", record(own), command="sleep 300")
    tick = fleet.run_now("j")
    first.wait_event("child-start")
    fleet.run_now("bad")
    wait_for(lambda: name.exists() and name.read_text(), "the command runs")
    output = Path(name.read_text().strip())
    assert output.exists()
    processes = [first.process.pid, *(child.pid for child in psutil.Process(first.process.pid).children())]
    for pid in processes:
        os.kill(pid, signal.SIGSTOP)
    for pid in processes:
        os.kill(pid, signal.SIGKILL)
    first.wait()
    second = fleet.start("a", "--on-failure", record(host))
    line = second.wait_event("run-failed")
    assert (line["job"], line["state"]) == ("j", "lost")
    wait_for(lambda: rows(own) and rows(host), "both commands were run")
    assert rows(own) == rows(host) == [["j", str(tick), "lost", "", ""]]
    assert not output.exists()
    assert not alive(int(left.read_text()))  # the command was ended, too


def test_missed_ticks_are_told_to_the_host(fleet: Fleet, tmp_path: Path) -> None:
    told = tmp_path / "told"
    daemon = fleet.start("a", "--on-failure", record(told), "--max-runs", "1")
    fleet.add("long", NEVER, command="sleep 300")
    fleet.run_now("long")
    daemon.wait_event("child-start")
    fleet.add("j", "@every 1s", "--start-deadline", "0.5")
    wait_for(lambda: rows(told), "the command was run", 30)
    assert next(row[0] for row in rows(told)) == "j"
    assert {row[2] for row in rows(told)} == {"missed"}


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may run jobs as another user")
def test_command_has_the_rights_of_runs(fleet: Fleet, tmp_path: Path) -> None:
    """It can read the output, which nobody else can."""
    tmp_path.chmod(0o777)
    for parent in tmp_path.parents:
        if not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    out = tmp_path / "out"
    daemon = fleet.start("a", "--run-as", "nobody")
    fleet.add("j", NEVER, "--on-failure", f'id -u > {out}; cat "$CONCH_OUTPUT" >> {out}', command="exit 3")
    fleet.run_now("j")
    daemon.wait_event("hook-end")
    assert out.read_text().split() == [str(pwd.getpwnam("nobody").pw_uid)]


@pytest.mark.parametrize("command", ["", "  "])
def test_empty_command_is_refused(conch: Bench, command: str) -> None:
    done = conch.run("conchd", "--on-failure", command)
    assert (done.returncode, done.stderr.count("\n")) == (64, 1), done.stderr
    assert "--on-failure" in done.stderr


# -- pings ------------------------------------------------------------------------------------------------------


class Checks:
    """A service as healthchecks.io describes its own; it may fail at first."""

    def __init__(self) -> None:
        self.got: list[tuple[str, str, str]] = []  # path, id of the run, body
        self.failures = 0
        self.gate = threading.Event()
        self.gate.set()
        checks = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                assert checks.gate.wait(60)
                if checks.failures:
                    checks.failures -= 1
                    self.send_error(500)
                    return
                parts = urlsplit(self.path)
                checks.got.append((parts.path, parse_qs(parts.query)["rid"][0], body.decode()))
                self.send_response(200)
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.thread = threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True)
        self.thread.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}/ping/SECRET?create=1"

    def paths(self, count: int) -> list[str]:
        """Wait for so many pings and return their paths."""
        wait_for(lambda: len(self.got) >= count, f"{count} pings")
        return [path for path, _, _ in self.got]


@pytest.fixture
def checks() -> Iterator[Checks]:
    made = Checks()
    yield made
    made.gate.set()
    made.server.shutdown()
    made.server.server_close()
    made.thread.join(5)


@pytest.mark.parametrize(("command", "end"), [("true", ""), ("exit 3", "/fail")])
def test_run_with_retries_is_pinged_at_its_begin_and_at_its_end(
    fleet: Fleet, checks: Checks, command: str, end: str
) -> None:
    """Once each, whatever its attempts; what the service refuses at first is sent again."""
    checks.failures = 2
    fleet.start("a")
    fleet.add("j", NEVER, "--ping", checks.url, "--retries", "1", "--retry-delay", "0", command=command)
    fleet.result("j", fleet.run_now("j"))
    assert checks.paths(2) == ["/ping/SECRET/start", f"/ping/SECRET{end}"]
    assert len({rid for _, rid, _ in checks.got}) == 1


def test_service_that_hangs_delays_nothing_and_shows_no_secret(fleet: Fleet, checks: Checks) -> None:
    """Runs end, results are recorded, conchd stops in time, and says what it did not send."""
    checks.gate.clear()
    daemon = fleet.start("a", "--command-timeout", "2s")
    fleet.add("j", "@every 1s", "--overlap", "allow", "--ping", checks.url)
    fleet.results("j", 6)
    began = time.monotonic()
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
    assert time.monotonic() - began < 10
    assert daemon.events("pings-dropped")
    assert "SECRET" not in daemon.err


def test_failing_pings_are_logged_without_their_secret(fleet: Fleet, checks: Checks) -> None:
    checks.failures = 1000
    daemon = fleet.start("a")
    fleet.add("j", NEVER, "--ping", checks.url)
    fleet.result("j", fleet.run_now("j"))
    line = daemon.wait_event("ping-failed")
    assert (line["level"], line["job"], line["msg"]) == ("warning", "j", "HTTP 500")
    assert "SECRET" not in daemon.err
