"""`cron run`: each request gets a tick of its own from the daemons, once and in order."""

import json
import os
import re
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.conftest import OwnEtcd
from tests.support.conch import Bench, Wrapper, conch_that_runs, throughout, wait_for
from tests.support.cron import Fleet
from tests.support.host import Host
from tests.support.metrics import difference, requests
from tests.support.proxy import Proxy

UNTIL_GO = "echo $CONCH_TICK >> runs; while [ ! -e go ]; do sleep 0.05; done"


def start_request(fleet: Fleet, name: str = "j") -> Wrapper:
    """Start a `cron run` and wait until its request is in etcd."""
    asked = fleet.bench.start("cron", "run", name)
    wait_for(lambda: fleet.bench.keys_below(f"cron/now/{name}/"), "the request is made")
    return asked


def check_nothing_is_left(fleet: Fleet) -> None:
    """Check that no request is left, nor a key beside one."""
    assert fleet.bench.keys_below("cron/now/") + fleet.bench.keys_below("cron/asked/") == []


def job(bench: Bench, name: str = "j", **fields: object) -> None:
    """Write a job."""
    fields = {"schedule": "@yearly", "cmd": ["true"], "overlap": "allow", **fields}
    bench.etcd.put(f"{bench.prefix}/cron/job/{name}", json.dumps(fields))


# -- clocks ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ahead_s", [-(10**9), -600, -90, 90, 300, 10**10])
def test_clock_of_the_client_plays_no_part(fleet: Fleet, ahead_s: int) -> None:
    """The job runs immediately, at a tick of the right time, which is printed."""
    fleet.start("a")
    fleet.add("j", "@yearly", command="echo $CONCH_TICK >> runs")
    wrong = f"import time; right = time.time; time.time = lambda: right() + {ahead_s}"
    began = time.time()
    asked = fleet.bench.start("cron", "run", "j", program=[conch_that_runs(wrong, fleet.bench.folder)])
    assert asked.wait() == 0, asked.err
    tick = fleet.unix(asked.out.strip())
    assert began - 1 <= tick <= time.time() + 1
    assert fleet.bench.read("runs") == f"{tick}\n"
    assert fleet.result("j", tick)["state"] == "ok"
    assert [one["tick_unix"] for one in fleet.history("j")] == [tick]
    check_nothing_is_left(fleet)


def test_request_follows_the_fleets_clock(conch: Bench, tmp_path: Path) -> None:
    """One of three hosts is an hour off and corrected by the other two."""
    hosts = [Host(conch, name, tmp_path / name, 3600.0 if name == "a" else 0.0) for name in ("a", "b", "c")]
    try:
        hosts[0].wait_event("clock-skew")
        job(conch)
        fleet = Fleet(conch)
        ticks = [fleet.run_now("j") for _ in range(6)]
        assert all(abs(tick - time.time()) < 60 for tick in ticks)
        assert ticks == sorted(set(ticks))
    finally:
        for host in hosts:
            host.close()
        conch.etcd.delete_prefix(conch.prefix + "/cron/")


# -- many requests --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", ["allow", "forbid", "replace"])
def test_forty_simultaneous_requests_each_get_their_own_tick(fleet: Fleet, overlap: str) -> None:
    """Each printed tick is in the history once; no request is refused, and no tick is the schedule's."""
    for host in ("a", "b", "c"):
        fleet.start(host)
    fleet.add("j", "@every 7s", "--overlap", overlap, command="echo $CONCH_TICK >> runs")
    with ThreadPoolExecutor(8) as pool:
        done = list(pool.map(lambda _: fleet.bench.run("cron", "run", "j"), range(40)))
    assert [(one.returncode, one.stderr) for one in done] == [(0, "")] * 40
    ticks = [fleet.unix(one.stdout.strip()) for one in done]
    assert len(set(ticks)) == 40
    assert not [tick for tick in ticks if tick % 7 == 0]
    fleet.bench.run("cron", "pause", "j")
    wait_for(lambda: set(ticks) <= set(fleet.ticks("result", "j")), "all are over")
    history = [one["tick_unix"] for one in fleet.history("j")]
    assert len(set(history)) == len(history)
    states = {tick: one["state"] for tick, one in fleet.ticks("result", "j").items() if tick in ticks}
    if overlap == "allow":
        assert set(states.values()) == {"ok"}
    elif overlap == "forbid":
        assert set(states.values()) <= {"ok", "skipped"}
    ran = [int(line) for line in fleet.bench.file("runs").read_text().split()]
    assert len(set(ran)) == len(ran)
    assert {tick for tick, state in states.items() if state == "ok"} <= set(ran)
    check_nothing_is_left(fleet)


def test_ticks_are_in_the_order_of_the_requests(fleet: Fleet) -> None:
    """This holds whatever numbers are in the requests' keys, and whichever of three hosts claims them."""
    fleet.add("j", "@yearly", "--overlap", "allow")
    number = int(time.time())
    asked = [fleet.ask("j", number - 7 * at) for at in range(15)]
    daemons = [fleet.start(host) for host in ("a", "b", "c")]
    asked += [fleet.ask("j", number - 7 * at) for at in range(15, 25)]
    ticks = [fleet.claimed("j", one) for one in asked]
    assert ticks == sorted(set(ticks))
    results = fleet.results("j", 25)
    assert {one["state"] for one in results.values()} == {"ok"}
    assert len({one["node"] for one in results.values()}) > 1
    assert all(fleet.unix(one["started"]) <= ticks[0] + 20 for one in results.values())
    assert not [line for daemon in daemons for line in daemon.events("missed")]


def test_requests_cost_no_more_with_many_hosts(own_fleet: Fleet, own: OwnEtcd) -> None:
    """Each costs a read, a claim and a result, with one host or with four."""

    def cost() -> float:
        before = requests(own.cluster.endpoints)
        asked = [own_fleet.ask("j") for _ in range(20)]
        ticks = [own_fleet.claimed("j", one) for one in asked]
        wait_for(lambda: set(ticks) <= set(own_fleet.ticks("result", "j")), "all are over")
        return difference(before, requests(own.cluster.endpoints)).get("Txn", 0) / 20

    own_fleet.start("a")
    own_fleet.add("j", "@yearly", "--overlap", "allow")
    own_fleet.result("j", own_fleet.request("j"))
    alone = cost()
    for host in ("b", "c", "d"):
        own_fleet.start(host)
    assert cost() < 2 * alone + 1


def test_request_without_a_free_second_is_refused(fleet: Fleet) -> None:
    """A job of every second leaves no second for a request; once it is paused, its seconds are free."""
    fleet.start("a")
    fleet.add("j", "@every 1s", "--overlap", "allow")
    done = fleet.bench.run("cron", "run", "j")
    assert (done.returncode, done.stdout) == (1, "")
    assert "every second" in done.stderr
    fleet.bench.run("cron", "pause", "j")
    assert fleet.result("j", fleet.run_now("j"))["state"] == "ok"


# -- hosts ----------------------------------------------------------------------------------------------------


def test_dead_host_costs_a_turn(conch: Bench, tmp_path: Path) -> None:
    """A registered host that does nothing ranks first for half of the requests; each is still claimed soon."""
    host = Host(conch, "a", tmp_path / "a")
    lease = conch.etcd.lease(60)
    try:
        host.wait_event("registered")
        conch.etcd.put(f"{conch.prefix}/node/dead", "{}", lease)
        job(conch)
        fleet = Fleet(conch)
        began = time.monotonic()
        ticks = [fleet.request("j") for _ in range(16)]
        assert len(set(ticks)) == 16
        assert time.monotonic() - began < 15
    finally:
        host.close()
        lease.revoke()
        conch.etcd.delete_prefix(conch.prefix + "/cron/")


def test_request_that_is_older_than_the_daemon_is_taken(fleet: Fleet) -> None:
    """Its client still waits for it."""
    fleet.add("j", "@yearly")
    fleet.bench.etcd.put(f"{fleet.bench.prefix}/node/other", "{}")
    asked = start_request(fleet)
    throughout(1.2, lambda: None)  # its second has passed
    began = time.time()
    fleet.start("a")
    assert asked.wait() == 0, asked.err
    tick = fleet.unix(asked.out.strip())
    assert tick >= int(began)
    assert fleet.result("j", tick)["state"] == "ok"
    fleet.bench.etcd.delete(f"{fleet.bench.prefix}/node/other")


def test_daemon_of_the_previous_release_claims_the_second_in_the_key(fleet: Fleet) -> None:
    """It deletes the request and names it in its claim; `cron run` waits for nothing else."""
    fleet.add("j", "@yearly")
    etcd, prefix = fleet.bench.etcd, fleet.bench.prefix
    etcd.put(f"{prefix}/node/old", "{}")
    number = int(time.time())
    etcd.put(f"{prefix}/cron/result/j/{number + 60}", "{}")  # the result of another tick
    asked = start_request(fleet)
    (key,) = fleet.bench.keys_below("cron/now/j/")
    tick = int(key.rpartition("/")[2])
    assert tick >= number
    lease = etcd.get(key)[1].lease_id
    claim = {"host": "old", "pid": 1, "started": "x", "cmd": "x", "tick": tick, "run": "r", "request": f"{lease:x}"}
    etcd.transaction(
        compare=[etcd.transactions.create(key) > 0],
        success=[
            etcd.transactions.put(f"{prefix}/cron/fire/j/{tick}", json.dumps(claim)),
            etcd.transactions.delete(key),
        ],
        failure=[],
    )
    assert asked.wait() == 0, asked.err
    assert fleet.unix(asked.out.strip()) == tick
    etcd.delete(f"{prefix}/node/old")


def test_full_daemon_takes_it_once_there_is_room(fleet: Fleet) -> None:
    """The request waits; its tick is the second in which it is claimed, or later."""
    fleet.start("a", "--max-runs", "1")
    fleet.add("long", "@yearly", command=UNTIL_GO)
    fleet.add("j", "@yearly")
    fleet.run_now("long")
    fleet.bench.read("runs")
    asked = start_request(fleet)
    throughout(1.5, lambda: asked.process.poll() is None or pytest.fail(asked.err))
    went = time.time()
    fleet.bench.file("go").touch()
    assert asked.wait() == 0, asked.err
    assert fleet.unix(asked.out.strip()) >= int(went)


def test_requests_that_wait_for_room_get_ticks_of_their_starts(fleet: Fleet) -> None:
    """Requests for several jobs wait for one place; the tick of each is at most a second before its start."""
    fleet.start("a", "--max-runs", "1")
    names = [f"j{number}" for number in range(4)]
    for name in names:
        fleet.add(name, "@yearly", command="echo $CONCH_TICK $(date +%s) >> runs; exec sleep 2")
    asked = [fleet.bench.start("cron", "run", name) for name in names]
    for one in asked:
        assert one.wait(60) == 0, one.err
    for line in fleet.bench.read("runs", len(names)).splitlines():
        tick, began = map(int, line.split())
        assert began - tick <= 1


# -- how a request ends ---------------------------------------------------------------------------------------


@pytest.fixture
def nobody(fleet: Fleet) -> Iterator[Fleet]:
    """A job, and a registered host that takes no request."""
    fleet.add("j", "@yearly")
    fleet.bench.etcd.put(f"{fleet.bench.prefix}/node/dead", "{}")
    yield fleet
    fleet.bench.etcd.delete(f"{fleet.bench.prefix}/node/dead")


def test_signal_at_any_time_is_handled(nobody: Fleet) -> None:
    """This includes one that arrives just before it begins to wait."""
    for _ in range(12):
        asked = start_request(nobody)
        asked.signal(signal.SIGTERM)
        assert asked.wait(10) == 128 + signal.SIGTERM
        check_nothing_is_left(nobody)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_signal_withdraws_the_request(nobody: Fleet, number: int) -> None:
    """It is withdrawn immediately, and nobody runs it later."""
    asked = start_request(nobody)
    asked.signal(number)
    assert asked.wait(10) == 128 + number
    assert asked.out == ""
    check_nothing_is_left(nobody)
    nobody.start("a")
    tick = nobody.run_now("j")
    nobody.result("j", tick)
    assert set(nobody.ticks("fire", "j")) == {tick}


def test_killed_client_leaves_only_keys_that_expire(nobody: Fleet) -> None:
    """All its keys are under one lease of two minutes at most."""
    asked = start_request(nobody)
    etcd = nobody.bench.etcd
    leases = {etcd.get(key)[1].lease_id for key in nobody.bench.keys_below("cron/") if "/job/" not in key}
    (lease,) = leases
    assert 0 < etcd.get_lease_info(lease).grantedTTL <= 120
    asked.kill()
    etcd.revoke_lease(lease)
    check_nothing_is_left(nobody)


@pytest.mark.parametrize("how", ["removed", "full", "unreadable", "expired"])
def test_request_that_nobody_will_take_exits_1(nobody: Fleet, how: str) -> None:
    """One line says why; nothing is left."""
    asked = start_request(nobody)
    etcd, key = nobody.bench.etcd, f"{nobody.bench.prefix}/cron/job/j"
    if how == "removed":
        nobody.bench.run("cron", "rm", "j")
    elif how == "full":
        job(nobody.bench, schedule="@every 1s")
    elif how == "unreadable":
        etcd.put(key, "junk")
    else:
        etcd.revoke_lease(etcd.get(nobody.bench.keys_below("cron/now/j/")[0])[1].lease_id)
    assert asked.wait(10) == 1
    assert asked.out == ""
    assert asked.err.count("\n") == 1
    says = {
        "removed": "removed",
        "full": "every second",
        "unreadable": "cannot be read",
        "expired": "no conchd took it",
    }
    assert re.search(rf"cannot run j: .*{says[how]}", asked.err), asked.err
    check_nothing_is_left(nobody)


def test_job_that_is_edited_meanwhile_runs_in_its_new_form(nobody: Fleet) -> None:
    """A request runs the job as it is when a daemon claims it."""
    asked = start_request(nobody)
    nobody.add("j", "@yearly", command="echo new >> log")
    nobody.start("a")
    assert asked.wait() == 0, asked.err
    assert nobody.bench.read("log") == "new\n"


def test_outage_while_it_waits(own_fleet: Fleet, own: OwnEtcd) -> None:
    """It waits on, and finds its claim afterwards."""
    own_fleet.add("j", "@yearly")
    own_fleet.bench.etcd.put(f"{own_fleet.bench.prefix}/node/dead", "{}")
    asked = start_request(own_fleet)
    os.kill(own.member.pid, signal.SIGSTOP)
    throughout(7.0, lambda: asked.process.poll() is None or pytest.fail(asked.err))
    os.kill(own.member.pid, signal.SIGCONT)
    own_fleet.start("a")
    assert asked.wait() == 0, asked.err
    assert own_fleet.result("j", own_fleet.unix(asked.out.strip()))["state"] == "ok"
    own_fleet.bench.etcd.delete(f"{own_fleet.bench.prefix}/node/dead")


# -- answers that are lost ------------------------------------------------------------------------------------


@pytest.mark.parametrize("skip", range(5))
@pytest.mark.parametrize("how", ["drop", "reset"])
def test_lost_answer_to_the_client_makes_no_second_run(conch: Bench, tmp_path: Path, skip: int, how: str) -> None:
    """Any answer may be lost, of the request or of a read; a host claims the request before the second try."""
    # its ticks differ from the requests' numbers, so that no claim blocks a second request by chance
    host = Host(conch, "a", tmp_path / "a", 5000.0)
    proxy = Proxy(conch.endpoints)
    try:
        host.wait_event("registered")
        job(conch)
        proxy.fault("Txn", how, skip=skip)
        # the proxy understands only gRPC
        env = {"CONCH_ENDPOINTS": proxy.endpoint, "CONCH_TRANSPORT": "grpc"}
        asked = conch.start("cron", "run", "j", env=env)
        assert asked.wait(40) == 0, asked.err
        fleet = Fleet(conch)
        tick = fleet.unix(asked.out.strip())
        throughout(0.5, lambda: None)
        assert set(fleet.ticks("fire", "j")) == {tick}
        assert [one for one, _ in host.runs] == [tick]
    finally:
        host.close()
        proxy.close()
        conch.etcd.delete_prefix(conch.prefix + "/cron/")


def test_claim_whose_answer_was_lost_keeps_its_tick(conch: Bench, tmp_path: Path) -> None:
    """One request, one claim, one run, even if other requests follow it meanwhile."""
    proxy = Proxy(conch.endpoints)
    host = Host(Bench(proxy.endpoint, conch.mark, tmp_path), "a", tmp_path / "a", limit_s=0.7)
    try:
        host.wait_event("registered")
        job(conch)
        fleet = Fleet(conch)
        fleet.result("j", fleet.request("j"))
        fault = proxy.fault("Txn", "drop", skip=1)
        asked = [fleet.ask("j") for _ in range(5)]
        assert fault.hit.wait(10)
        ticks = [fleet.claimed("j", one) for one in asked]
        assert ticks == sorted(set(ticks))
        results = fleet.results("j", 6)
        assert {one["state"] for one in results.values()} == {"ok"}
        assert sorted(results) == sorted(tick for tick, _ in host.runs)
    finally:
        host.close()
        proxy.close()
        conch.etcd.delete_prefix(conch.prefix + "/cron/")
