"""A fleet of daemons: each tick runs on exactly one host."""

import json
import os
import signal
import statistics
import time
import urllib.request
from collections import Counter
from itertools import pairwise

import pytest

from tests.conftest import OwnEtcd
from tests.support.conch import alive, throughout, wait_for
from tests.support.cron import Fleet, until_second
from tests.support.etcdctl import etcdctl


def proposals(endpoint: str) -> float:
    """Return how many raft proposals etcd has committed."""
    with urllib.request.urlopen(f"http://{endpoint}/metrics", timeout=5) as answer:
        for line in answer.read().decode().splitlines():
            if line.startswith("etcd_server_proposals_committed_total"):
                return float(line.split()[1])
    raise AssertionError("no such metric")


def leases(fleet: Fleet) -> int:
    """Return how many leases etcd has."""
    return len(etcdctl("--endpoints", fleet.bench.endpoints, "lease", "list").splitlines()) - 1


def started_on(fleet: Fleet, name: str) -> dict[int, str]:
    """Return the host that claimed each tick."""
    return {tick: str(claim["host"]) for tick, claim in fleet.ticks("fire", name).items()}


def test_three_daemons_run_every_tick_exactly_once(fleet: Fleet) -> None:
    """For 30 s, each tick of a one-second job has a claim, a run and a result in its second; all hosts take part."""
    for host in ("a", "b", "c"):
        fleet.start(host)
        time.sleep(0.3)  # the daemons start one after the other, as in a deployment
    fleet.add("j", "@every 1s", "--overlap", "allow", command="echo $CONCH_TICK $CONCH_HOLD_KEY >> log")
    first = until_second() + 1
    fleet.results("j", 32, timeout_s=60)
    fleet.bench.run("cron", "pause", "j")
    wait_for(lambda: len(fleet.ticks("fire", "j")) == len(fleet.ticks("result", "j")), "no run is open")
    claims, results = fleet.ticks("fire", "j"), fleet.ticks("result", "j")
    period = range(first, first + 30)
    assert set(period) <= set(claims) == set(results)
    assert {result["state"] for result in results.values()} == {"ok"}
    runs = Counter(int(line.split()[0]) for line in fleet.bench.file("log").read_text().splitlines())
    assert runs == Counter(claims.keys()), "one run a claim"
    for tick in period:
        started = Fleet.unix(results[tick]["started"])
        assert tick <= started <= tick + 1
        assert results[tick]["node"] == claims[tick]["host"]
    spread = Counter(claim["host"] for claim in claims.values())
    assert set(spread) == {"a", "b", "c"}
    assert max(spread.values()) < 25


@pytest.mark.parametrize("overlap", ["forbid", "allow", "replace"])
def test_job_that_takes_longer_than_its_interval(fleet: Fleet, overlap: str) -> None:
    """`forbid` skips, `allow` overlaps, `replace` ends the old run first; each tick has one claim and one result."""
    for host in ("a", "b", "c"):
        fleet.start(host)
    marks = "echo start $CONCH_TICK $(date +%s.%N) >> log; trap 'exit 1' TERM; "
    marks += "trap 'echo end $CONCH_TICK $(date +%s.%N) >> log' EXIT; "
    fleet.add("j", "@every 1s", "--overlap", overlap, command=marks + "for i in $(seq 20); do sleep 0.1; done")
    wait_for(lambda: len(fleet.ticks("fire", "j")) >= 9, "nine ticks", 40)
    fleet.bench.run("cron", "pause", "j")
    wait_for(lambda: set(fleet.ticks("fire", "j")) == set(fleet.ticks("result", "j")), "all are over", 30)
    results = fleet.ticks("result", "j")
    ticks = sorted(results)
    assert ticks == list(range(ticks[0], ticks[0] + len(ticks)))
    states = [results[tick]["state"] for tick in ticks]
    events = sorted(
        (float(at), int(tick), what)
        for what, tick, at in map(str.split, fleet.bench.file("log").read_text().splitlines())
    )
    running: set[int] = set()
    most = 0
    for _, tick, _what in events:
        running ^= {tick}
        most = max(most, len(running))
    started = Counter(tick for _, tick, what in events if what == "start")
    assert max(started.values()) == 1
    if overlap == "allow":
        assert set(states) == {"ok"}
        assert most >= 2
    else:
        assert most == 1
    if overlap == "forbid":
        assert set(states) == {"ok", "skipped"}
        assert all("alive" in results[tick]["reason"] for tick in ticks if results[tick]["state"] == "skipped")
        assert ("ok", "ok") not in list(pairwise(states))
    if overlap == "replace":
        assert states[-1] == "ok"
        assert set(states[:-1]) <= {"killed", "skipped"}
        assert states.count("killed") >= 5
        assert all("replaced" in results[tick]["reason"] for tick in ticks[:-1])


@pytest.mark.parametrize("hosts", [3, 5])
def test_a_tick_costs_two_proposals_however_many_hosts_there_are(own_fleet: Fleet, own: OwnEtcd, hosts: int) -> None:
    """One proposal is the claim, one the result; the number of leases does not grow with the ticks."""
    fleet = own_fleet
    for number in range(hosts):
        fleet.start(f"h{number}", "--ttl", "30s")
    fleet.add("j", "@every 1s", "--overlap", "allow")
    fleet.results("j", 3)
    before, had, held = proposals(own.cluster.endpoints), len(fleet.ticks("result", "j")), leases(fleet)
    fleet.results("j", had + 10)
    after, has = proposals(own.cluster.endpoints), len(fleet.ticks("result", "j"))
    cost = (after - before) / (has - had)
    print(f"{hosts} daemons: {cost:.2f} proposals a tick")
    assert cost <= 2.5
    assert leases(fleet) <= held + 2  # a new hour or day may have begun


def test_ticks_of_a_dead_host_are_run_by_others(fleet: Fleet) -> None:
    """Both processes of a host are killed: the other host runs every later tick."""
    daemons = {host: fleet.start(host, "--ttl", "5s") for host in ("a", "b")}
    fleet.add("j", "@every 1s", "--overlap", "allow")
    fleet.results("j", 2)
    keeper = daemons["a"].keeper()
    daemons["a"].signal(signal.SIGKILL)
    os.kill(keeper, signal.SIGKILL)
    died = int(time.time())
    wait_for(lambda: len([t for t in fleet.ticks("result", "j") if t > died + 1]) >= 8, "eight more")
    ticks = sorted(tick for tick in fleet.ticks("fire", "j") if tick > died + 1)
    assert ticks == list(range(ticks[0], ticks[0] + len(ticks)))
    assert ticks[0] <= died + 3
    results = fleet.ticks("result", "j")
    assert {results[tick]["node"] for tick in ticks[:-1]} == {"b"}


def test_lag_is_small(fleet: Fleet) -> None:
    """Runs start soon after their tick, so conchd does not poll; the benchmark has the figures."""
    for host in ("a", "b", "c"):
        fleet.start(host)
    fleet.add("j", "@every 1s", "--overlap", "allow", command="date +%s.%N >> log")
    fleet.results("j", 10)
    lags = [float(line) % 1 for line in fleet.bench.file("log").read_text().split()]
    assert statistics.median(lags) < 0.25


def test_past_ticks_are_never_claimed(fleet: Fleet) -> None:
    """These are ticks before conchd's start, while it was stopped, or while the job was paused."""
    fleet.add("j", "@every 2s", "--overlap", "allow")
    time.sleep(2.1)  # ticks pass while no daemon runs
    before = time.time()
    daemon = fleet.start("a")
    fleet.results("j", 1)
    daemon.signal(signal.SIGTERM)
    assert daemon.wait() == 0
    gone = time.time()
    throughout(2.5, lambda: None)
    again = time.time()
    fleet.start("a").wait_event("registered")
    fleet.results("j", len(fleet.ticks("result", "j")) + 1)
    fleet.bench.run("cron", "pause", "j")
    count = len(fleet.ticks("fire", "j"))
    paused = time.time()
    throughout(2.5, lambda: None)
    resumed = time.time()
    fleet.bench.run("cron", "resume", "j")
    fleet.results("j", count + 1)
    ticks = fleet.ticks("fire", "j")
    assert min(ticks) > before - 1
    for low, high in ((gone + 1, again), (paused + 1, resumed)):
        assert not [tick for tick in ticks if low < tick < high - 0.001], (ticks, low, high)


def test_broken_jobs_are_reported_by_key_and_harm_no_other(fleet: Fleet) -> None:
    """Manually written values: junk, wrong types, not UTF-8, a megabyte, odd keys."""
    daemon = fleet.start("a")
    etcd, prefix = fleet.bench.etcd, fleet.bench.prefix
    bad = {
        "junk": b"{",
        "types": b'{"schedule": 5, "cmd": "x"}',
        "bytes": b"\xff\xfe\x00",
        "big": json.dumps({"schedule": "@every 1s", "cmd": ["true"], "pad": "x" * 10**6}).encode(),
        "never": json.dumps({"schedule": "0 0 30 2 *", "cmd": ["true"]}).encode(),
        "odd name": json.dumps({"schedule": "@every 1s", "cmd": ["true"]}).encode(),
    }
    for name, value in bad.items():
        etcd.put(f"{prefix}/cron/job/{name}", value)
    for key in ("fire/x/-5", "fire/x/99", "now/x/abc", "run/nobody", "fire/x/y/1700000000"):
        etcd.put(f"{prefix}/cron/{key}", "?")
    fleet.add("good", "@every 1s")
    fleet.results("good", 3)
    keys = {line["key"] for line in daemon.events("unreadable")}
    assert {f"{prefix}/cron/job/{name}" for name in bad} <= keys
    assert len(daemon.events("unreadable")) < 20
    assert alive(daemon.pid)
    assert not fleet.ticks("fire", "odd name")
