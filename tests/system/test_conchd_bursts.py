"""Many ticks at one second: each runs once, whatever is lost or killed in the middle, and they share requests."""

import json
import os
import re
import signal
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from conch.dev import Cluster
from conch.etcd.store import Put
from conch.keys import Keys
from tests.support.conch import Bench, new_store, wait_for
from tests.support.cron import Fleet, once
from tests.support.proxy import Proxy

# A few seconds for all the jobs to be known before their tick.
_LEAD_S = 4
# Jobs that are added by one transaction, also by one that must be small.
_AT_ONCE = 10


class Burst:
    """Jobs `j0` to `jN` that are due once, at the same second; each run writes its name."""

    def __init__(self, fleet: Fleet, count: int, *, overlap: str = "forbid", lead_s: float = _LEAD_S) -> None:
        self.fleet = fleet
        self.names = [f"j{number}" for number in range(count)]
        self.tick = int(time.time() + lead_s) + 1
        cmd = ["sh", "-c", "echo $CONCH_NAME >> ran"]
        job = {"schedule": once(self.tick), "cmd": cmd, "overlap": overlap, "cwd": str(self.folder)}
        keys, value = Keys(fleet.bench.prefix), json.dumps(job).encode()
        store = new_store(fleet.bench.endpoints)
        for at in range(0, count, _AT_ONCE):
            puts = [Put(keys.cron("job", name).encode(), value) for name in self.names[at : at + _AT_ONCE]]
            store.txn([], puts, timeout_s=5)
        store.close()
        assert time.time() < self.tick, "this machine is too slow"

    @property
    def folder(self) -> Path:
        return self.fleet.bench.folder

    def ran(self) -> Counter[str]:
        """How often each job has run."""
        path = self.folder / "ran"
        return Counter(path.read_text().split()) if path.exists() else Counter()

    def keys(self, kind: str) -> Counter[str]:
        """How many claims (`fire`) or results (`result`) each job has."""
        found = self.fleet.bench.etcd.get_prefix(f"{self.fleet.bench.prefix}/cron/{kind}/", keys_only=True)
        return Counter(meta.key.decode().split("/")[-2] for _, meta in found)

    def results(self, timeout_s: float = 60.0) -> Counter[str]:
        """Wait until every tick has a result; how many have which state."""
        wait_for(lambda: len(self.keys("result")) == len(self.names), "every tick has a result", timeout_s)
        prefix = f"{self.fleet.bench.prefix}/cron/result/"
        return Counter(json.loads(value)["state"] for value, _ in self.fleet.bench.etcd.get_prefix(prefix))

    def claimers(self) -> dict[str, str]:
        """Which host has claimed each job's tick."""
        found = self.fleet.bench.etcd.get_prefix(f"{self.fleet.bench.prefix}/cron/fire/")
        return {meta.key.decode().split("/")[-2]: json.loads(value)["host"] for value, meta in found}


def proposals(endpoint: str) -> int:
    """How many proposals etcd has committed."""
    with urllib.request.urlopen(f"http://{endpoint}/metrics", timeout=5) as answer:
        found = re.search(r"^etcd_server_proposals_committed_total ([0-9.e+]+)", answer.read().decode(), re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


@pytest.mark.timeout(180)
def test_ticks_of_one_second_share_requests(own_fleet: Fleet) -> None:
    """Three daemons, 200 ticks: each runs once, and etcd makes fewer proposals than ticks, claims and results alike."""
    for host in "abc":
        own_fleet.start(host)
    burst = Burst(own_fleet, 200)
    time.sleep(max(0.0, burst.tick - time.time() - 0.2))
    before = proposals(own_fleet.bench.endpoints)
    assert burst.results() == Counter(ok=200)
    made = proposals(own_fleet.bench.endpoints) - before
    assert burst.ran() == Counter(burst.names)
    assert burst.keys("fire") == Counter(burst.names)
    print(f"{made} proposals for 200 ticks")
    assert made < 150


@pytest.fixture(params=[("--max-txn-ops", "16"), ("--max-request-bytes", "4096")], ids=["operations", "bytes"])
def narrow(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Fleet]:
    """Daemons on an etcd that takes only small requests."""
    with Cluster(arguments=request.param) as cluster:
        fleet = Fleet(Bench(cluster.endpoints, "narrow", tmp_path))
        yield fleet
        fleet.clean()
        fleet.bench.finish()


@pytest.mark.timeout(180)
def test_etcd_that_takes_only_small_requests(narrow: Fleet) -> None:
    """Requests are split until it takes them, and no tick is lost to that."""
    narrow.start("a")
    burst = Burst(narrow, 100)
    assert burst.results() == Counter(ok=100)
    assert burst.ran() == Counter(burst.names)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("how", ["reset", "drop"])
@pytest.mark.parametrize("skip", [0, 1, 2])  # it makes at least two requests of claims, and one of results
def test_reply_that_is_lost_in_the_middle(conch: Bench, fleet: Fleet, how: str, skip: int) -> None:
    """Each of the ticks in that request has one result in the end, and none runs twice."""
    proxy = Proxy(conch.endpoints)
    fleet.start("a", "--endpoints", proxy.endpoint, "--command-timeout", "1s")
    fleet.start("b")
    burst = Burst(fleet, 150)
    time.sleep(max(0.0, burst.tick - time.time() - 0.1))
    fault = proxy.fault("Txn", how, skip=skip)
    burst.results(90)
    assert fault.hit.is_set()
    assert max(burst.ran().values()) == 1
    assert burst.keys("fire") == Counter(burst.names)
    skipped = 150 - len(burst.ran())
    print(f"{skipped} of 150 did not run")
    fleet.clean()
    proxy.close()


@pytest.mark.timeout(240)
@pytest.mark.parametrize("overlap", ["allow", "forbid"])
@pytest.mark.parametrize(("what", "when"), [("keeper", "fire"), ("conchd", "fire"), ("keeper", "result")])
def test_daemon_that_is_killed_in_the_middle(fleet: Fleet, what: str, when: str, overlap: str) -> None:
    """No tick runs twice, here or elsewhere, and the ticks that it had not claimed are claimed and run by the other."""
    daemon = fleet.start("a", "--ttl", "3s")
    fleet.start("b", "--ttl", "3s")
    burst = Burst(fleet, 300, overlap=overlap, lead_s=5)
    wait_for(lambda: burst.keys(when), "the first claims or results")
    os.kill(daemon.keeper() if what == "keeper" else daemon.pid, signal.SIGKILL)
    killed_after = len(burst.keys("fire"))
    wait_for(lambda: len(burst.keys("fire")) == 300, "every tick is claimed", 120)
    claimed_by = burst.claimers()
    if what == "conchd":
        fleet.start("a", "--ttl", "3s")

    def settled() -> bool:
        """What was claimed by the host that died, and is not in its wal, has no result."""
        before = len(burst.keys("result"))
        time.sleep(2.0)
        return before == len(burst.keys("result"))

    wait_for(settled, "the results are in", 120)
    print(f"killed after {killed_after} claims; {len(burst.ran())} ran, {len(burst.keys('result'))} have results")
    assert max(burst.ran().values()) == 1
    assert burst.keys("fire") == Counter(burst.names)
    assert {claimed_by[name] for name in burst.names if name not in burst.ran()} <= {"a"}
    assert "b" in claimed_by.values()
