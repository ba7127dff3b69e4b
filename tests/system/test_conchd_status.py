"""conchd's status over HTTP: what it shows, and that no client can harm it."""

import json
import os
import resource
import secrets
import select
import signal
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any

import psutil
import pytest
from prometheus_client.parser import text_string_to_metric_families

from conch import __version__
from conch.cron.values import STATES
from tests.conftest import OwnEtcd
from tests.support.conch import CONCH, Bench, Wrapper, throughout, wait_for
from tests.support.cron import Fleet
from tests.support.metrics import difference, requests

NEVER = "@yearly"
Family = dict[str, dict[tuple[tuple[str, str], ...], float]]


def get(address: str, path: str) -> tuple[int, str, str]:
    """Return the code, body and content type of an answer."""
    try:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=15) as answer:
            return answer.status, answer.read().decode(), answer.headers["Content-Type"]
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode(), error.headers["Content-Type"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a daemon on host `web-7.example.org` that also accepts two configured names."""
    bench = Bench(os.environ["CONCH_TESTS_ETCD"], secrets.token_hex(8), tmp_path_factory.mktemp("served"))
    fleet = Fleet(bench)
    names = {"CONCH_STATUS_HOST": "status.example.com, Other"}
    yield address_of(fleet.start("web-7.example.org", "--status-addr", "0", env=names))
    fleet.clean()
    bench.finish()
    bench.check_etcd()


def fetch(address: str, path: str) -> Any:
    """Return the JSON of an answer."""
    code, body, kind = get(address, path)
    assert (code, kind) == (200, "application/json"), body
    return json.loads(body)


def health(address: str) -> int:
    return get(address, "/healthz")[0]


def samples(address: str) -> Family:
    """Return the samples of /metrics by name and labels, as Prometheus's own parser reads them."""
    code, body, kind = get(address, "/metrics")
    assert code == 200, body
    assert kind.startswith("text/plain; version=0.0.4")
    found: Family = {}
    for family in text_string_to_metric_families(body):
        assert family.documentation
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def address_of(daemon: Wrapper) -> str:
    return daemon.wait_event("status")["addr"]


def start(fleet: Fleet, *flags: str, host: str = "a") -> tuple[Wrapper, str]:
    """Start a daemon with a status server on a free port; return it and its address."""
    daemon = fleet.start(host, "--status-addr", "0", *flags)
    return daemon, address_of(daemon)


def exchange(address: str, data: bytes, *, timeout_s: float = 15.0) -> bytes:
    """Send raw bytes; return all that comes back until the other side closes."""
    host, port = address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), timeout_s) as client:
        try:
            client.sendall(data)
        except OSError:
            pass  # the server closed first and need not read the rest
        got = b""
        try:
            while piece := client.recv(65536):
                got += piece
        except ConnectionResetError:
            pass
        return got


def check_still_works(fleet: Fleet, address: str, name: str) -> None:
    """Check that the server answers and ticks still run."""
    before = len(fleet.ticks("result", name))
    wait_for(lambda: health(address) == 200, "an answer")
    fleet.results(name, before + 2)


# -- what it shows ----------------------------------------------------------------------------------------


def test_cron(fleet: Fleet) -> None:
    """Jobs by name with their next and newest tick, and the runs of this host."""
    _, address = start(fleet)
    assert fetch(address, "/cron") == {"jobs": [], "running": []}
    fleet.add("b", NEVER, "--tz", "Europe/Berlin", command="exit 3")
    fleet.add("a", "0 0 30 12 *", "--paused")
    fleet.add("c", NEVER, command="exec sleep 1000")
    tick = fleet.run_now("b")
    fleet.result("b", tick)
    running = fleet.run_now("c")
    wait_for(lambda: fetch(address, "/cron")["running"], "the run")
    shown = fetch(address, "/cron?x=1")
    (run,) = shown["running"]
    assert (run["name"], run["tick_unix"], fleet.unix(run["tick"])) == ("c", running, running)
    a, b, c = shown["jobs"]
    assert set(b) == {
        "name", "schedule", "tz", "cmd", "paused", "next_tick", "last_tick", "node", "exit", "state", "duration_s",
    }  # fmt: skip
    assert [job["name"] for job in (a, b, c)] == ["a", "b", "c"]
    assert (a["paused"], a["last_tick"], a["state"]) == (True, None, None)
    assert (b["schedule"], b["tz"], b["cmd"], b["paused"]) == (NEVER, "Europe/Berlin", ["sh", "-c", "exit 3"], False)
    assert (fleet.unix(b["last_tick"]), b["node"], b["state"], b["exit"]) == (tick, "a", "failed", 3)
    assert fleet.unix(b["next_tick"]) > time.time()
    assert b["duration_s"] >= 0
    assert (c["state"], fleet.unix(c["last_tick"])) == ("claimed", running)


def test_cron_agrees_with_ls(fleet: Fleet) -> None:
    """It has the same fields and values as `cron ls --last --json`."""
    _, address = start(fleet)
    fleet.add("j", "0 0 1 1 *", command="true")
    fleet.result("j", fleet.run_now("j"))
    done = fleet.bench.run("cron", "ls", "--last", "--json")
    (listed,) = fleet.bench.jsons(done.stdout)
    (shown,) = fetch(address, "/cron")["jobs"]
    assert {name: shown.get(name) for name in listed} == listed


def test_elect_and_sema(fleet: Fleet) -> None:
    """They show who holds and who waits under this prefix; of an unreadable value, only its key."""
    bench = fleet.bench
    _, address = start(fleet)
    assert fetch(address, "/elect") == []
    assert fetch(address, "/sema") == []
    leader = bench.hold("db")
    bench.queue("db")
    for event in ("child-start", "child-start", "queued"):
        bench.start("sema", "s", "--max", "2", "--", "sleep", "1000").wait_event(event)
    (office,) = fetch(address, "/elect")
    assert set(office) == {"office", "host", "pid", "started", "cmd", "rev", "lease", "waiting"}
    assert (office["office"], office["pid"], office["waiting"]) == ("db", leader.pid, 1)
    assert int(office["lease"], 16) == leader.lease()
    shown = fetch(address, "/sema")
    assert [(one["name"], one["max"], one["rank"], one["state"]) for one in shown] == [
        ("s", 2, 0, "HELD"),
        ("s", 2, 1, "HELD"),
        ("s", 2, 2, "WAIT"),
    ]
    assert [one["rev"] for one in shown] == sorted(one["rev"] for one in shown)
    assert set(shown[0]) == {"name", "max", "state", "rank", "host", "pid", "started", "cmd", "rev", "lease"}
    key = f"{bench.prefix}/elect/odd/{0x123:x}"
    bench.etcd.put(key, b"\xff no JSON")
    bench.etcd.put(f"{bench.prefix}/elect/too/deep/1", b"{}")
    bench.etcd.put(f"{bench.prefix}/sema/s/many/1", b"{}")
    try:
        found = {one["office"]: one for one in fetch(address, "/elect")}
        assert found.keys() == {"db", "odd", "too"}
        for name, unreadable in (("odd", key), ("too", f"{bench.prefix}/elect/too/deep/1")):
            odd = found[name]
            assert (odd["host"], odd["pid"], odd["lease"], odd["unreadable"]) == (None, None, "0", unreadable)
        assert len(fetch(address, "/sema")) == 3
    finally:
        for one in (key, f"{bench.prefix}/elect/too/deep/1", f"{bench.prefix}/sema/s/many/1"):
            bench.etcd.delete(one)


def test_keys_that_conch_did_not_make(fleet: Fleet) -> None:
    """Keys within a queue are shown by their place, others are skipped; each is logged once."""
    bench = fleet.bench
    daemon, address = start(fleet)
    holder = bench.start("sema", "s", "--max", "2", "--", "sleep", "1000")
    holder.child()
    queued = ["sema/s/2/marker", "sema/s/2/5F", "sema/s/2/a/b", "sema/s/2/é"]
    none = [
        "sema/s/" + "9" * 5000 + "/1",
        "sema/s/02/1",
        "sema/s/٢/1",
        "sema/s/0/1",
        "sema/ü/2/1",
        "sema/s/2",
        "sema//",
        "elect/x",
        "elect/a b/1",
        "cron/fire/j/1e9",
        "cron/job/a/b",
        "cron/now/j/" + "9" * 5000,
        "node/a b",
    ]
    for key in (*queued, *none):
        bench.etcd.put(f"{bench.prefix}/{key}", b"x")
    good = json.dumps({"host": "h", "pid": 1, "started": "s", "cmd": "c"})
    bench.etcd.put(f"{bench.prefix}/sema/s/2/1", good)
    try:
        for _ in range(3):
            shown = fetch(address, "/sema")
            assert [one["state"] for one in shown] == ["HELD", "HELD", *["WAIT"] * 4]
            assert shown[0]["pid"] == holder.pid
            assert [one["unreadable"] for one in shown[1:5]] == [f"{bench.prefix}/{key}" for key in queued]
            assert "unreadable" not in shown[5]
            assert fetch(address, "/elect") == []
            for key in none:
                bench.etcd.put(f"{bench.prefix}/{key}", b"y")
        expected = {f"{bench.prefix}/{key}"[:400] for key in (*queued, *none)}

        def named() -> list[str]:
            return [line["key"][:400] for line in daemon.events("unreadable")]

        wait_for(lambda: set(named()) == expected, "each key in the log")
        assert len(named()) == len(expected)
        done = bench.run("sema", "s", "--who", "--json")
        first, last = bench.jsons(done.stdout)
        assert (first["pid"], first["state"], first["rank"]) == (holder.pid, "HELD", 0)
        assert (last["host"], last["state"], last["rank"]) == ("h", "WAIT", 5)
        for key in queued:
            assert f"{bench.prefix}/{key}" in done.stderr
        assert done.stderr.count("without a lease it keeps its place until it is deleted") == len(queued)
    finally:
        for key in (*queued, *none, "sema/s/2/1"):
            bench.etcd.delete(f"{bench.prefix}/{key}")


def test_spread_semaphores_are_shown_like_others(fleet: Fleet) -> None:
    """A contender that still queues within its host is not shown."""
    _, address = start(fleet)
    holder = fleet.bench.start("sema", "s", "--max", "2", "--spread", "--", "sleep", "1000")
    holder.child()
    fleet.bench.start("sema", "s", "--max", "2", "--spread", "--", "sleep", "1000").wait_event("queued")
    assert [(one["state"], one["pid"]) for one in fetch(address, "/sema")] == [("HELD", holder.pid)]


def test_metrics(fleet: Fleet) -> None:
    """Runs by state, start lag, claims, lease time left, log backlog, health; counters only grow."""
    _, address = start(fleet, "--ttl", "6s")
    first = samples(address)
    assert {dict(labels)["state"] for labels in first["conch_runs_total"]} == set(STATES)
    assert sum(first["conch_runs_total"].values()) == 0
    fleet.add("ok", NEVER)
    fleet.add("bad", NEVER, command="exit 1")
    fleet.add("slow", NEVER, "--run-ttl", "1s", "--kill-after", "200ms", command="exec sleep 1000")
    fleet.add("long", NEVER, command="exec sleep 1000")
    fleet.add("beat", "@every 1s")
    for name in ("ok", "bad", "slow"):
        fleet.result(name, fleet.run_now(name))
    fleet.run_now("long")
    fleet.results("beat", 2)
    wait_for(lambda: samples(address)["conch_start_lag_seconds_count"][()] >= 6, "the long run, and all others")
    found = samples(address)
    runs = {dict(labels)["state"]: value for labels, value in found["conch_runs_total"].items()}
    assert runs["ok"] >= 3
    assert (runs["failed"], runs["timeout"], runs["lost"]) == (1, 1, 0)
    assert found["conch_claims_total"][(("outcome", "won"),)] >= 6
    assert found["conch_claims_total"][(("outcome", "lost"),)] == 0
    assert found["conch_ticks_missed_total"][()] == 0
    assert 0 < found["conch_lease_left_seconds"][()] <= 6
    assert found["conch_journal_backlog"][()] >= 0
    assert found["conch_healthy"][()] == 1
    buckets = found["conch_start_lag_seconds_bucket"]
    ordered = [value for _, value in sorted((float(dict(labels)["le"]), value) for labels, value in buckets.items())]
    assert ordered == sorted(ordered), "buckets are cumulative"
    assert ordered[-1] == found["conch_start_lag_seconds_count"][()] >= 6
    assert 0 <= found["conch_start_lag_seconds_sum"][()] < 60 * ordered[-1]
    for name, values in first.items():
        if name.endswith(("_total", "_bucket", "_count")):
            assert all(found[name][labels] >= value for labels, value in values.items()), name


def test_each_result_is_counted_once(fleet: Fleet) -> None:
    """The counters of two hosts together count each result once."""
    addresses = [start(fleet, host=host)[1] for host in ("a", "b")]
    fleet.add("beat", "@every 1s")
    fleet.results("beat", 4)
    fleet.bench.run("cron", "pause", "beat")
    wait_for(lambda: fleet.ticks("fire", "beat").keys() == fleet.ticks("result", "beat").keys(), "all results")

    def counted() -> bool:
        ended = sum(samples(one)["conch_runs_total"][(("state", "ok"),)] for one in addresses)
        return ended == len(fleet.ticks("result", "beat"))

    wait_for(counted, "each result counted once")


# -- health -----------------------------------------------------------------------------------------------


def test_healthz(fleet: Fleet) -> None:
    """200 while conchd can claim a tick, 503 with the reason while it drains."""
    daemon, address = start(fleet)
    assert get(address, "/healthz")[:2] == (200, "ok\n")
    fleet.add("j", NEVER, command="while [ ! -e go ]; do sleep 0.02; done")
    tick = fleet.run_now("j")
    wait_for(lambda: fleet.value("fire", "j", tick), "the claim")
    wait_for(lambda: fetch(address, "/cron")["running"], "the run")
    daemon.signal(signal.SIGTERM)
    wait_for(lambda: health(address) == 503, "503")
    assert get(address, "/healthz")[1].strip()
    assert samples(address)["conch_healthy"][()] == 0
    fleet.bench.file("go").touch()
    assert daemon.wait() == 0
    with pytest.raises(OSError, match="refused"):
        socket.create_connection(tuple(address.rsplit(":", 1)), 5)  # type: ignore[arg-type]


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_healthz_without_etcd(own: OwnEtcd, own_fleet: Fleet, number: int) -> None:
    """503 while etcd is dead or hangs, 200 and ticks once it is back; /metrics answers throughout."""
    daemon, address = start(own_fleet, "--ttl", "4s")
    own_fleet.add("beat", "@every 1s")
    own_fleet.results("beat", 1)
    if number == signal.SIGKILL:
        own.cluster.kill(own.member)
    else:
        os.kill(own.member.pid, signal.SIGSTOP)
    answers: dict[str, object] = {}
    try:
        wait_for(lambda: health(address) == 503, "503", 30)
        assert get(address, "/healthz")[1].count("\n") == 1
        for path in ("/cron", "/elect", "/sema"):
            try:
                code, body, _ = get(address, path)
                answers[path] = (code, body.count("\n"))
            except OSError as error:
                answers[path] = repr(error)
        assert_unhealthy_metrics(address)
    finally:
        if number == signal.SIGKILL:
            own.cluster.restart(own.member)
            own.cluster.wait_ready()
        else:
            os.kill(own.member.pid, signal.SIGCONT)
    wait_for(lambda: health(address) == 200, "200 again", 30)
    before = len(own_fleet.ticks("result", "beat"))
    own_fleet.results("beat", before + 2)
    wait_for(lambda: samples(address)["conch_journal_backlog"][()] <= 1, "what waited is delivered")
    assert daemon.process.poll() is None
    assert answers == dict.fromkeys(("/cron", "/elect", "/sema"), (503, 1))


def assert_unhealthy_metrics(address: str) -> None:
    """Check the metrics, which need no etcd."""
    assert samples(address)["conch_healthy"][()] == 0
    wait_for(lambda: sum(samples(address).get("conch_etcd_errors_total", {}).values()) > 0, "errors counted")
    wait_for(lambda: samples(address)["conch_lease_left_seconds"][()] <= 0, "no lease left")


def test_healthz_while_the_supervisor_is_stopped(fleet: Fleet) -> None:
    """conchd cannot start a run, so it is unhealthy although its keeper answers."""
    daemon, address = start(fleet, "--ttl", "4s")
    fleet.add("beat", "@every 1s")
    fleet.results("beat", 1)
    daemon.signal(signal.SIGSTOP)
    try:
        wait_for(lambda: health(address) == 503, "503", 30)
    finally:
        daemon.signal(signal.SIGCONT)
    wait_for(lambda: health(address) == 200, "200 again", 30)
    check_still_works(fleet, address, "beat")


# -- clients ----------------------------------------------------------------------------------------------


def test_only_get(fleet: Fleet) -> None:
    """Other methods get 405 and other paths 404, each with one plain line."""
    _, address = start(fleet)
    for method in ("POST", "PUT", "DELETE", "PATCH", "OPTIONS", "FROBNICATE"):
        got = exchange(address, f"{method} /cron HTTP/1.0\r\nContent-Length: 0\r\n\r\n".encode())
        head, _, body = got.partition(b"\r\n\r\n")
        assert head.split(b" ")[1] == b"405", (method, got)
        assert body.count(b"\n") == 1, method
    head, _, body = exchange(address, b"HEAD /healthz HTTP/1.0\r\n\r\n").partition(b"\r\n\r\n")
    assert head.split(b" ")[1] in (b"200", b"405")
    assert body == b"", "an answer to HEAD has no body"
    for path in ("/", "/cron/", "/metrics/../cron", "/%2e%2e/etc/passwd", "/healthz%00"):
        code, body_text, _ = get(address, path)
        assert (code, body_text.count("\n")) == (404, 1), path


ODD = {
    "nothing": b"\r\n\r\n",
    "garbage": bytes(range(256)) * 4,
    "no version": b"GET\r\n\r\n",
    "http/0.9": b"GET /healthz\r\n\r\n",
    "http/9": b"GET /healthz HTTP/9.9\r\n\r\n",
    "tls": bytes.fromhex("16030100a5010000a10303") + bytes(160),
    "long line": b"GET /" + b"a" * 200_000 + b" HTTP/1.0\r\n\r\n",
    "long header": b"GET /healthz HTTP/1.0\r\nX: " + b"a" * 200_000 + b"\r\n\r\n",
    "many headers": b"GET /healthz HTTP/1.0\r\n" + b"X: y\r\n" * 10_000 + b"\r\n",
    "odd header": b"GET /healthz HTTP/1.0\r\nno colon\r\n\xff: \xfe\r\n\r\n",
    "huge body": b"GET /healthz HTTP/1.0\r\nContent-Length: 999999999999\r\n\r\n",
    "bad length": b"POST /healthz HTTP/1.1\r\nContent-Length: -1\r\n\r\n",
    "expect": b"GET /healthz HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\n\r\n",
    "newline in path": b"GET /a\nb HTTP/1.0\r\n\r\n",
    "pipelined": b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n" * 100,
}


def test_odd_requests_do_no_harm(fleet: Fleet) -> None:
    """Each is answered or disconnected quickly; stderr has only log lines, and ticks still run."""
    daemon, address = start(fleet)
    fleet.add("beat", "@every 1s")
    fleet.results("beat", 1)
    for name, data in ODD.items():
        began = time.monotonic()
        got = exchange(address, data)
        assert time.monotonic() - began < 8, name
        assert b"Traceback" not in got, name
        assert health(address) == 200, name
    check_still_works(fleet, address, "beat")
    assert daemon.process.poll() is None
    assert [line for line in daemon.err.splitlines() if not line.startswith("ts=")] == []


def test_clients_that_leave_early(fleet: Fleet) -> None:
    """They reset the connection in the middle of a request or an answer."""
    daemon, address = start(fleet)
    host, port = address.rsplit(":", 1)
    fleet.add("beat", "@every 1s")
    fleet.results("beat", 1)
    for data in (b"", b"GE", b"GET /metrics HTTP/1.0\r\n", b"GET /metrics HTTP/1.0\r\n\r\n") * 20:
        with socket.create_connection((host, int(port)), 10) as client:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, bytes([1, 0, 0, 0, 0, 0, 0, 0]))
            client.sendall(data)
    check_still_works(fleet, address, "beat")
    assert [line for line in daemon.err.splitlines() if not line.startswith("ts=")] == []


def send_a_byte(client: socket.socket) -> None:
    """Send one more byte of a header that never ends."""
    try:
        client.send(b"x")
    except OSError:
        pass  # the server closed the connection, as it should


def test_slow_and_idle_clients(fleet: Fleet) -> None:
    """With a hundred idle clients and thirty slow ones, ticks still run, and later the server answers again."""
    daemon, address = start(fleet)
    host, port = address.rsplit(":", 1)
    fleet.add("beat", "@every 1s")
    fleet.results("beat", 1)
    threads = psutil.Process(daemon.keeper()).num_threads()
    with ExitStack() as stack:
        slow = []
        for number in range(130):
            client = stack.enter_context(socket.create_connection((host, int(port)), 10))
            if number % 4 == 0:
                client.sendall(b"GET /healthz HTTP/1.0\r\nX: ")
                slow.append(client)
        before = len(fleet.ticks("result", "beat"))

        def check_meanwhile() -> None:
            for client in slow:
                send_a_byte(client)
            assert psutil.Process(daemon.keeper()).num_threads() < threads + 80

        throughout(3, check_meanwhile)
        assert len(fleet.ticks("result", "beat")) >= before + 2

        def answers() -> bool:
            for client in slow:
                send_a_byte(client)
            try:
                return health(address) == 200
            except OSError:
                return False

        wait_for(answers, "an answer although they are all still connected", 20)
    check_still_works(fleet, address, "beat")
    wait_for(lambda: psutil.Process(daemon.keeper()).num_threads() <= threads + 2, "the threads have ended")


def test_client_that_does_not_read_its_answer(fleet: Fleet) -> None:
    """Other clients are answered meanwhile."""
    _, address = start(fleet)
    host, port = address.rsplit(":", 1)
    with ExitStack() as stack:
        for _ in range(5):
            client = stack.enter_context(socket.socket())
            client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            client.connect((host, int(port)))
            client.sendall(b"GET /metrics HTTP/1.0\r\n\r\n")
        assert health(address) == 200


def crowd(stack: ExitStack, address: str, count: int, data: bytes) -> list[socket.socket]:
    """Connect clients that send `data` and read nothing."""
    host, port = address.rsplit(":", 1)
    clients = []
    for _ in range(count):
        client = stack.enter_context(socket.socket())
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.settimeout(20)
        client.connect((host, int(port)))
        clients.append(client)
        try:
            client.sendall(data)
        except OSError:
            pass  # the server has closed it already
    return clients


def is_answered(client: socket.socket) -> bool:
    """Whether an answer or the end of the connection can be read."""
    poll = select.poll()
    poll.register(client, select.POLLIN)
    return bool(poll.poll(0))


HALVES = {
    "nothing": b"",
    "half a line": b"GET /healthz HT",
    "half a header": b"GET /healthz HTTP/1.1\r\nHost: localh",
    "half a long header": b"GET /healthz HTTP/1.1\r\nX: " + b"x" * 15_000,
}


@pytest.mark.parametrize("count", [40, 400])
def test_half_requests_do_not_starve_other_clients(fleet: Fleet, count: int) -> None:
    """However many are open, each request for /healthz is answered meanwhile, and ticks still run."""
    daemon, address = start(fleet)
    fleet.add("beat", "@every 1s")
    fleet.results("beat", 1)
    keeper = psutil.Process(daemon.keeper())
    threads, descriptors = keeper.num_threads(), keeper.num_fds()
    with ExitStack() as stack:
        clients: list[socket.socket] = []
        for data in HALVES.values():
            clients += crowd(stack, address, count // len(HALVES), data)
        for _ in range(10):
            for client in clients[::3]:
                send_a_byte(client)
            assert get(address, "/healthz")[:2] == (200, "ok\n")
            assert keeper.num_fds() < descriptors + 80
            assert keeper.num_threads() < threads + 20, "a client costs no thread"
        check_still_works(fleet, address, "beat")
    wait_for(lambda: keeper.num_fds() < descriptors + 10, "nothing of theirs is left")
    assert daemon.keeper() == keeper.pid


def test_clients_have_a_limited_time(fleet: Fleet) -> None:
    """The server itself disconnects clients that send half a request, or a byte now and then."""
    _, address = start(fleet)
    with ExitStack() as stack:
        idle, slow = crowd(stack, address, 2, b"GET /healthz HTTP/1.1\r\nX: ")

        def both() -> bool:
            send_a_byte(slow)
            return is_answered(idle) and is_answered(slow)

        wait_for(both, "both are hung up on", 20)


def test_large_answers_that_nobody_reads(fleet: Fleet) -> None:
    """Each costs less than half its size in memory; other clients are answered, in full."""
    bench = fleet.bench
    _, address = start(fleet)
    fleet.add("beat", "@every 1s")
    value = json.dumps({"host": "h", "pid": 1, "started": "s", "cmd": "x" * 10_000})
    for number in range(300):
        bench.etcd.put(f"{bench.prefix}/elect/o{number}/1", value)
    try:
        size = len(get(address, "/elect")[1])
        assert size > 3_000_000
        keeper = psutil.Process(fleet.daemons["a"].keeper())
        before = keeper.memory_info().rss
        with ExitStack() as stack:
            clients = crowd(stack, address, 30, b"GET /elect HTTP/1.0\r\n\r\n")
            wait_for(lambda: all(is_answered(client) for client in clients), "the beginning of each answer")
            assert keeper.memory_info().rss - before < 30 * size / 2, "less than a copy each"
            for _ in range(5):
                assert health(address) == 200
                assert len(get(address, "/elect")[1]) == size
            check_still_works(fleet, address, "beat")
    finally:
        bench.etcd.delete_prefix(f"{bench.prefix}/elect/")


def test_reads_of_a_slow_etcd_delay_nobody_and_are_shared(own: OwnEtcd, own_fleet: Fleet) -> None:
    """Thirty clients ask for /cron while etcd is stopped: /healthz answers before them, and few reads serve all."""
    _, address = start(own_fleet)
    own_fleet.add("j", NEVER)
    own_fleet.result("j", own_fleet.run_now("j"))
    assert len(fetch(address, "/cron")["jobs"]) == 1
    before = requests(own.member.endpoint)
    with ExitStack() as stack:
        os.kill(own.member.pid, signal.SIGSTOP)
        try:
            clients = crowd(stack, address, 30, b"GET /cron HTTP/1.0\r\n\r\n")
            for _ in range(3):
                assert get(address, "/healthz")[1].count("\n") == 1
                assert [client.recv(1000) for client in clients if is_answered(client)] == []
        finally:
            os.kill(own.member.pid, signal.SIGCONT)
        wait_for(lambda: all(is_answered(client) for client in clients), "an answer for all of them")
        assert {client.recv(12)[:9] for client in clients} == {b"HTTP/1.1 "}
    assert difference(before, requests(own.member.endpoint)).get("Txn", 0) < 15


def test_lack_of_descriptors(fleet: Fleet) -> None:
    """Without a free descriptor clients wait, and the server does not spin; with one they are answered."""
    daemon, address = start(fleet)
    fleet.add("beat", "@every 1s")
    fleet.results("beat", 1)
    keeper = psutil.Process(daemon.keeper())
    usual = resource.prlimit(keeper.pid, resource.RLIMIT_NOFILE)
    with ExitStack() as stack:
        resource.prlimit(keeper.pid, resource.RLIMIT_NOFILE, (3, usual[1]))
        try:
            clients = crowd(stack, address, 20, b"GET /healthz HTTP/1.0\r\n\r\n")
            began, used = time.monotonic(), sum(keeper.cpu_times()[:2])
            before = len(fleet.ticks("result", "beat"))
            fleet.results("beat", before + 2)
            assert sum(keeper.cpu_times()[:2]) - used < (time.monotonic() - began) / 6
            assert [client.recv(1000) for client in clients if is_answered(client)] == []
        finally:
            resource.prlimit(keeper.pid, resource.RLIMIT_NOFILE, usual)
        wait_for(lambda: all(is_answered(client) for client in clients), "an answer for all of them")
        assert {client.recv(12) for client in clients} == {b"HTTP/1.1 200"}
    assert daemon.keeper() == keeper.pid


def test_few_descriptors_from_the_start(fleet: Fleet) -> None:
    """Clients may use only a part of them, so that the keeper has enough for its other work."""
    daemon = fleet.start("a", "--status-addr", "0", program=["prlimit", "--nofile=64", CONCH])
    address = address_of(daemon)
    fleet.add("beat", "@every 1s")
    with ExitStack() as stack:
        for _ in range(5):
            crowd(stack, address, 100, b"GET /healthz HT")
            assert health(address) == 200
            assert psutil.Process(daemon.keeper()).num_fds() < 56
        fleet.add("zone", "@every 1s", "--tz", "Europe/Berlin")
        fleet.results("zone", 1)
        check_still_works(fleet, address, "beat")
    assert not daemon.events("postponed")


# -- hosts ------------------------------------------------------------------------------------------------


def code_of(address: str, request: str) -> int:
    """Return the status code of the answer to a raw request."""
    got = exchange(address, request.encode("latin-1"))
    assert got.startswith(b"HTTP/1.1 "), got
    assert got.partition(b"\r\n\r\n")[2].count(b"\n") == 1, got
    return int(got[9:12])


@pytest.mark.parametrize(
    ("code", "head"),
    [
        (200, "GET /healthz HTTP/1.1\r\nHost: localhost"),
        (200, "GET /healthz HTTP/1.1\r\nHost: LocalHost.:80"),
        (200, "GET /healthz HTTP/1.1\r\nHost: 10.1.2.3:9400"),
        (200, "GET /healthz HTTP/1.1\r\nHost: [2001:db8::1]:80"),
        (200, "GET /healthz HTTP/1.1\r\nHost: Web-7"),
        (200, "GET /healthz HTTP/1.1\r\nHost: web-7.example.org:1"),
        (200, "GET /healthz HTTP/1.1\r\nHost: " + os.uname().nodename.upper()),
        (200, "GET /healthz HTTP/1.1\r\nHost: " + os.uname().nodename.partition(".")[0]),
        (200, "GET /healthz HTTP/1.1\r\nHost: status.example.com"),
        (200, "GET /healthz HTTP/1.1\r\nHost: other"),
        (200, "GET /healthz HTTP/1.0"),
        (200, "GET http://localhost:1/healthz HTTP/1.1\r\nHost: localhost"),
        (421, "GET /healthz HTTP/1.1\r\nHost: evil.example"),
        (421, "GET /healthz HTTP/1.0\r\nHost: evil.example"),
        (421, "HEAD /healthz HTTP/1.1\r\nHost: evil.example"),
        (421, "GET /cron HTTP/1.1\r\nHost: localhost.evil.example"),
        (421, "GET /healthz HTTP/1.1\r\nHost: 127.0.0.1.evil.example:80"),
        (421, "GET /healthz HTTP/1.1\r\nHost: example.com"),
        (421, "GET /healthz HTTP/1.1\r\nHost: 0x7f000001"),
        (421, "GET /healthz HTTP/1.1\r\nHost:"),
        (421, "GET http://evil.example/healthz HTTP/1.1\r\nHost: localhost"),
        (421, "GET http://localhost/healthz HTTP/1.1\r\nHost: evil.example"),
        (400, "GET /healthz HTTP/1.1"),
        (400, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: localhost"),
        (400, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil.example"),
        (400, "GET /healthz HTTP/1.1\r\nHost: a@localhost"),
        (400, "GET /healthz HTTP/1.1\r\nHost: localhost/x"),
        (400, "GET /healthz HTTP/1.1\r\nHost: [::1"),
        (400, "GET ftp://localhost/healthz HTTP/1.1\r\nHost: localhost"),
        (400, "GET healthz HTTP/1.1\r\nHost: localhost"),
        (413, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nContent-Length: 5"),
        (413, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked"),
        (431, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + "x" * 20_000),
        (431, "GET /healthz HTTP/1.1\r\nHost: localhost\r\nX: " + "x" * 900_000),
        (505, "GET /healthz HTTP/9.9\r\nHost: localhost"),
    ],
)
def test_requests_for_a_foreign_host_name_are_refused(served: str, code: int, head: str) -> None:
    """conchd accepts its addresses, localhost, its own names and the configured ones; others get 421."""
    if head.startswith("HEAD"):
        assert exchange(served, head.encode() + b"\r\n\r\n")[9:12] == str(code).encode()
    else:
        assert code_of(served, head + "\r\n\r\n") == code


# -- the address ------------------------------------------------------------------------------------------


def listening(daemon: Wrapper) -> list[tuple[str, int]]:
    """Return the TCP sockets that the daemon or its keeper listens on."""
    found = []
    for pid in (daemon.pid, daemon.keeper()):
        for one in psutil.Process(pid).net_connections("tcp"):
            if one.status == psutil.CONN_LISTEN:
                found.append((one.laddr.ip, one.laddr.port))
    return found


def test_off_by_default(fleet: Fleet) -> None:
    """Without --status-addr there is no listening socket."""
    daemon = fleet.start("a")
    assert listening(daemon) == []
    assert not daemon.events("status")


def test_bare_port_is_loopback_only(fleet: Fleet) -> None:
    """It listens on 127.0.0.1 and nothing else."""
    daemon, address = start(fleet)
    assert listening(daemon) == [("127.0.0.1", int(address.rsplit(":", 1)[1]))]


def test_address_from_the_environment(fleet: Fleet) -> None:
    """CONCH_STATUS_ADDR sets it, for all interfaces too."""
    daemon = fleet.start("a", env={"CONCH_STATUS_ADDR": "0.0.0.0:0"})
    wait_for(lambda: daemon.events("status"), "the server")
    ((ip, port),) = listening(daemon)
    assert ip == ".".join("0000")
    assert health(f"127.0.0.1:{port}") == 200


def test_address_of_ipv6(fleet: Fleet) -> None:
    """It is written in brackets, as in every URL; the log shows it in that form."""
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("no IPv6 here")
    daemon = fleet.start("a", "--status-addr", "[::1]:0")
    address = address_of(daemon)
    assert address.startswith("[::1]:")
    assert health(address) == 200


@pytest.mark.parametrize("address", ["x:y", ":", ":80", "localhost:", "99999", "-1", "1.2.3.4:70000", "/x"])
def test_address_that_is_malformed(conch: Bench, address: str) -> None:
    """conchd exits 64 with a message."""
    done = conch.run("conchd", "--state-dir", "s", "--status-addr", address)
    assert done.returncode == 64
    assert done.stderr.strip().splitlines()[-1]


@pytest.mark.parametrize("address", ["taken", "192.0.2.1:80", "no.such.host.invalid:80"])
def test_address_that_cannot_be_bound(fleet: Fleet, address: str) -> None:
    """conchd logs this, and ticks run."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        if address == "taken":
            address = str(other.getsockname()[1])
        daemon = fleet.start("a", "--status-addr", address)
        line = daemon.wait_event("status-failed")
        assert address.rsplit(":", 1)[-1] in line["msg"]
        fleet.add("beat", "@every 1s")
        fleet.results("beat", 2)
        assert listening(daemon) == []


def test_new_keeper_serves_again(fleet: Fleet) -> None:
    """It uses the port that the old keeper had until it died."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        port = probe.getsockname()[1]
    daemon = fleet.start("a", "--status-addr", str(port))
    wait_for(lambda: daemon.events("status"), "the server")
    assert health(f"127.0.0.1:{port}") == 200
    os.kill(daemon.keeper(), signal.SIGKILL)
    daemon.wait_event("status", 2)
    wait_for(lambda: health(f"127.0.0.1:{port}") == 200, "an answer of the new keeper")


# -- metrics of jobs --------------------------------------------------------------------------------------


def of_job(found: Family, metric: str, name: str) -> dict[str, float]:
    """Return the values of a job's series by state, or under the empty text."""
    return {
        dict(labels).get("state", ""): value
        for labels, value in found.get(metric, {}).items()
        if ("job", name) in labels
    }


def test_metrics_of_jobs(fleet: Fleet) -> None:
    """Runs by state, and when the last ones ended; a removed job has none any more."""
    _, address = start(fleet)
    fleet.add("j", NEVER, command="test -e ok || exit 3")
    began = time.time()
    fleet.result("j", fleet.run_now("j"))
    wait_for(lambda: of_job(samples(address), "conch_job_runs_total", "j"), "the job's metrics")
    found = samples(address)
    assert of_job(found, "conch_job_runs_total", "j") == {**dict.fromkeys(STATES, 0.0), "failed": 1.0}
    assert of_job(found, "conch_job_last_success_timestamp_seconds", "j") == {}
    assert began - 1 < of_job(found, "conch_job_last_failure_timestamp_seconds", "j")[""] < time.time() + 1
    fleet.bench.file("ok").touch()
    fleet.result("j", fleet.run_now("j"))
    wait_for(lambda: of_job(samples(address), "conch_job_runs_total", "j")["ok"] == 1, "a good run")
    found = samples(address)
    assert began - 1 < of_job(found, "conch_job_last_success_timestamp_seconds", "j")[""] < time.time() + 1
    assert 0 <= of_job(found, "conch_job_last_duration_seconds", "j")[""] < 10
    assert of_job(found, "conch_job_running", "j") == {"": 0.0}
    fleet.bench.run("cron", "rm", "j")
    wait_for(lambda: not of_job(samples(address), "conch_job_runs_total", "j"), "the end of its series")


def test_last_success_survives_a_restart(fleet: Fleet) -> None:
    """It comes from the results in etcd, for the jobs whose last run this host made."""
    daemon, address = start(fleet)
    fleet.add("j", NEVER)
    fleet.result("j", fleet.run_now("j"))
    metric = "conch_job_last_success_timestamp_seconds"
    wait_for(lambda: of_job(samples(address), metric, "j"), "the job's metrics")
    at = of_job(samples(address), metric, "j")[""]
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
    _, address = start(fleet)
    wait_for(lambda: of_job(samples(address), metric, "j"), "the job's metrics")
    assert abs(of_job(samples(address), metric, "j")[""] - at) <= 1.0
    _, other = start(fleet, host="b")
    wait_for(lambda: samples(other)["conch_jobs"][()] == 1, "the job is known")
    assert of_job(samples(other), metric, "j") == {}


def test_error_series_are_there_from_the_start(served: str) -> None:
    """A rate of what was never there would miss the first error."""
    found = samples(served)
    for name in ("conch_etcd_errors_total", "conch_pings_total", "conch_on_failure_commands_total"):
        assert found[name]
        assert set(found[name].values()) == {0.0}
    assert found["conch_ticks_missed_total"] == {(): 0.0}
    assert found["conch_build_info"] == {(("version", __version__),): 1.0}
    for name in ("conch_registered", "conch_watch_up", "conch_healthy"):
        assert found[name] == {(): 1.0}
    assert found["conch_clock_off"] == {(): 0.0}


@pytest.mark.parametrize("path", ["/metrics", "/healthz", "/cron", "/elect", "/sema", "/nothing"])
def test_head_is_answered(served: str, path: str) -> None:
    """As GET, without the body."""
    head, _, body = exchange(served, f"HEAD {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()).partition(b"\r\n\r\n")
    assert int(head.split()[1]) == (404 if path == "/nothing" else 200)
    assert body == b""
    assert int(head.lower().partition(b"content-length: ")[2].split()[0]) > 0
