"""A daemon on an etcd that refuses writes: its requests, log, counters and health, and its recovery."""

import json
import re
import secrets
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import etcd3
import pytest
from etcd3 import etcdrpc

from conch.cron.claim_outcomes import Won
from conch.cron.claim_store import ClaimStore
from conch.cron.job import decode
from conch.cron.result_store import ResultStore
from conch.cron.ticks import PendingTick, Registration
from conch.dev import Cluster
from conch.etcd.connection import Connection
from conch.etcd.endpoints import parse_endpoints
from conch.etcd.grpc_store import GrpcStore
from conch.etcd.store import Full, LeaseGone, Put, Range, StoreError, TxnResult
from conch.holder import Holder
from conch.keys import Keys
from tests.conftest import OwnEtcd
from tests.support.conch import Bench, Wrapper, wait_for
from tests.support.cron import Fleet
from tests.support.etcdctl import etcdctl
from tests.support.metrics import difference, requests
from tests.support.proxy import Proxy
from tests.support.sending import AtOnce, result_of

JOBS, PERIOD_S, WINDOW_S = 40, 5, 10
# In a window: a probe about every two seconds, reads for missed ticks, a renewal and its read every two seconds.
MOST_REQUESTS, MOST_LINES = 120, 20


QUOTA = ("--quota-backend-bytes", str(4 * 1024 * 1024))


@pytest.fixture
def small(tmp_path: Path) -> Iterator[tuple[Cluster, Fleet]]:
    """Daemons on an etcd with a quota of 4 MiB."""
    with Cluster(arguments=QUOTA) as cluster:
        bench = Bench(cluster.endpoints, secrets.token_hex(8), tmp_path)
        fleet = Fleet(bench)
        yield cluster, fleet
        fleet.clean()
        bench.finish()


def health(address: str) -> tuple[int, str]:
    """Return the code and body of /healthz."""
    try:
        with urllib.request.urlopen(f"http://{address}/healthz", timeout=15) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def wait_unhealthy(address: str, reason: str) -> None:
    """Wait until /healthz answers 503 with this reason; it may have another one before."""

    def says_so() -> bool:
        code, body = health(address)
        return code == 503 and reason in body

    wait_for(says_so, f"503: {reason}", 30)


def ticks_missed(address: str) -> int:
    """Return the number of missed ticks in /metrics."""
    with urllib.request.urlopen(f"http://{address}/metrics", timeout=15) as answer:
        found = re.search(r"^conch_ticks_missed_total ([0-9.e+]+)$", answer.read().decode(), re.MULTILINE)
    assert found is not None
    return int(float(found[1]))


def fill(cluster: Cluster) -> None:
    """Write useless keys until etcd is full."""
    with pytest.raises(AssertionError, match="space exceeded"):
        for number in range(200):
            etcdctl("--endpoints", cluster.endpoints, "put", f"/fill/{number}", "x" * 100_000)


def make_room(cluster: Cluster) -> None:
    """Free space as an operator would: delete, compact, defragment, clear the alarm."""
    ctl = ("--endpoints", cluster.endpoints)
    etcdctl(*ctl, "del", "/fill/", "--prefix")
    ((_, status),) = ((one, one["Status"]) for one in json.loads(etcdctl(*ctl, "endpoint", "status", "-w", "json")))
    etcdctl(*ctl, "compact", str(status["header"]["revision"]))
    etcdctl(*ctl, "defrag")
    etcdctl(*ctl, "alarm", "disarm")


# The events that report a fault, not those of single skipped ticks.
FAULT_EVENTS = ("claim-failed", "not-delivered", "refresh-failed", "fault-over", "missed", "held-back")


def put_jobs(fleet: Fleet, overlap: str = "allow") -> None:
    """Write every job straight to etcd."""
    job = json.dumps({"schedule": f"@every {PERIOD_S}s", "cmd": ["true"], "overlap": overlap})
    for number in range(JOBS):
        fleet.bench.etcd.put(f"{fleet.bench.prefix}/cron/job/j{number}", job)


def window(cluster: Cluster, daemon: Wrapper) -> tuple[int, int]:
    """Return how many requests etcd handles, and how many lines the daemon logs, in a window."""
    before, lines = requests(cluster.endpoints), daemon.err.count("\n")
    time.sleep(WINDOW_S)
    asked = difference(before, requests(cluster.endpoints))
    # renewals have a pace of their own: they are refused, too, if the lease has keys that the role may not write
    asked.pop("LeaseKeepAlive", None)
    print(asked)
    return sum(asked.values()), daemon.err.count("\n") - lines


@pytest.mark.timeout(240)
def test_full_etcd_costs_little_is_reported_and_is_survived(small: tuple[Cluster, Fleet]) -> None:
    """The ticks of 40 jobs cannot be claimed: few requests and lines, 503 with the reason, missed ticks counted."""
    cluster, fleet = small
    daemon = fleet.start("a", "--status-addr", "0")
    address = daemon.wait_event("status")["addr"]
    put_jobs(fleet)
    fleet.results("j0", 1)
    assert health(address)[0] == 200
    fill(cluster)
    wait_unhealthy(address, "space exceeded")
    wait_for(lambda: ticks_missed(address) >= JOBS, "missed ticks are counted", 40)
    windows = [window(cluster, daemon) for _ in range(3)]
    assert all(asked <= MOST_REQUESTS and said <= MOST_LINES for asked, said in windows), windows
    assert health(address)[0] == 503
    missed = ticks_missed(address)
    assert missed >= 2 * WINDOW_S // PERIOD_S * JOBS
    make_room(cluster)
    wait_for(lambda: health(address) == (200, "ok\n"), "200 again", 30)
    known = len(fleet.ticks("result", "j0"))
    fleet.results("j0", known + 2)
    wait_for(lambda: "claim-failed" in {event["fault"] for event in daemon.events("fault-over")}, "its end is told")
    missed = ticks_missed(address)
    time.sleep(PERIOD_S)
    assert ticks_missed(address) == missed
    claimed = [set(fleet.ticks("fire", f"j{number}")) for number in range(JOBS)]
    first = min(min(one) for one in claimed)
    last = min(max(one) for one in claimed)
    lost = [tick for one in claimed for tick in range(first, last + 1, PERIOD_S) if tick not in one]
    # each is counted once; the very first ticks may be from before their job existed
    assert missed <= len(lost) <= missed + JOBS

    def said() -> int:
        return sum(int(event["ticks"]) for event in daemon.events("missed"))

    wait_for(lambda: said() == missed, "all of them are in the log")
    assert not re.search(r"Traceback", daemon.err)


@pytest.mark.timeout(180)
def test_full_etcd_and_its_end_are_noticed_without_a_tick(small: tuple[Cluster, Fleet]) -> None:
    """No tick is due: the registration shows the fault and, within seconds, its end."""
    cluster, fleet = small
    daemon = fleet.start("a", "--status-addr", "0")
    address = daemon.wait_event("status")["addr"]
    fill(cluster)
    other = fleet.start("b", ready=False)  # a writes its registration only once a minute
    wait_for(lambda: health(address)[0] == 503, "503", 90)
    other.wait_event("not-registered")
    make_room(cluster)
    wait_for(lambda: health(address)[0] == 200, "200 again", 20)
    other.wait_event("registered")


# -- other lasting refusals --------------------------------------------------------------------------------


def alarm(cluster: Cluster, action: int) -> None:
    """Raise (1) or clear (2) the alarm of a corrupt cluster, under which etcd refuses all writes."""
    etcd = etcd3.client(port=cluster.members[0].client_port)
    status = etcd.status()
    request = etcdrpc.AlarmRequest(action=action, memberID=status.leader.id, alarm=2)
    etcdrpc.MaintenanceStub(etcd.channel).Alarm(request, 5)
    etcd.close()


class Corrupt:
    """An etcd that has found different data on its members."""

    word = "corrupt"

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self.env: dict[str, str] = {}

    def begin(self) -> None:
        alarm(self._cluster, 1)

    def end(self) -> None:
        alarm(self._cluster, 2)

    def close(self) -> None:
        pass


class Denied:
    """A role that loses its permission to write."""

    word = "permission denied"

    def __init__(self, cluster: Cluster) -> None:
        self._ctl = ["--endpoints", cluster.endpoints]
        for user in ("root", "conch"):
            etcdctl(*self._ctl, "user", "add", f"{user}:{user}pw")
            etcdctl(*self._ctl, "role", "add", user)
            etcdctl(*self._ctl, "user", "grant-role", user, user)
        self.end()
        etcdctl(*self._ctl, "auth", "enable")
        self._ctl += ["--user", "root:rootpw"]
        self.env = {"CONCH_USER": "conch", "CONCH_PASSWORD": "conchpw"}

    def begin(self) -> None:
        self._may("read")

    def end(self) -> None:
        self._may("readwrite")

    def _may(self, what: str) -> None:
        etcdctl(*self._ctl, "role", "grant-permission", "conch", "--prefix=true", what, "/")

    def close(self) -> None:
        etcdctl(*self._ctl, "auth", "disable")


class DeniedInPart(Denied):
    """A role that may write all but run keys, or all but results: etcd refuses some writes and makes the others."""

    def __init__(self, cluster: Cluster, prefix: str, kept: Sequence[str]) -> None:
        self._prefix = prefix
        self._kept = kept
        super().__init__(cluster)

    def begin(self) -> None:
        etcdctl(*self._ctl, "role", "revoke-permission", "conch", "/", "--prefix=true")
        self._may("read")
        for kind in self._kept:
            path = f"{self._prefix}/{kind}/"
            etcdctl(*self._ctl, "role", "grant-permission", "conch", "--prefix=true", "readwrite", path)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("refused", ["cron/run", "cron/result"])
def test_lasting_refusal_of_some_writes_costs_little(own_fleet: Fleet, own: OwnEtcd, refused: str) -> None:
    """A write that succeeds does not set off all refused ones again: few requests and lines, 503 with the reason."""
    fleet = own_fleet
    put_jobs(fleet, overlap="forbid")
    kept = {"cron/fire", "cron/result", "cron/run", "cron/floor", "node"} - {refused}
    fault = DeniedInPart(own.cluster, fleet.bench.prefix, sorted(kept))
    try:
        daemon = fleet.start("a", "--status-addr", "0", env=fault.env)
        address = daemon.wait_event("status")["addr"]
        wait_for(lambda: daemon.events("run-end", "child-exit", "child-start"), "ticks run")
        fault.begin()
        wait_for(lambda: health(address)[0] == 503, "503", 30)
        time.sleep(PERIOD_S)
        told = len(daemon.events(*FAULT_EVENTS))
        asked, _ = window(own.cluster, daemon)
        assert asked <= 2 * MOST_REQUESTS
        assert len(daemon.events(*FAULT_EVENTS)) - told <= MOST_LINES
        wait_unhealthy(address, fault.word)
        fault.end()
        wait_for(lambda: health(address)[0] == 200, "200 again", 40)
    finally:
        fault.end()
        fault.close()
    known = len(fleet.ticks("result", "j0"))
    fleet.results("j0", known + 2)


@pytest.mark.timeout(180)
@pytest.mark.parametrize("kind", [Corrupt, Denied])
def test_any_lasting_refusal_costs_little(own_fleet: Fleet, own: OwnEtcd, kind: type[Corrupt | Denied]) -> None:
    """Whatever etcd refuses: few requests and lines, 503 with the reason, and ticks again when it is over."""
    fleet = own_fleet
    put_jobs(fleet)
    fault = kind(own.cluster)
    try:
        daemon = fleet.start("a", "--status-addr", "0", env=fault.env)
        address = daemon.wait_event("status")["addr"]
        wait_for(lambda: daemon.events("run-end", "child-exit", "child-start"), "ticks run")
        fault.begin()
        wait_unhealthy(address, fault.word)
        time.sleep(PERIOD_S)
        asked, said = window(own.cluster, daemon)
        assert asked <= MOST_REQUESTS
        assert said <= MOST_LINES
        assert health(address)[0] == 503
        fault.end()
        wait_for(lambda: health(address)[0] == 200, "200 again", 30)
    finally:
        fault.end()
        fault.close()
    known = len(fleet.ticks("result", "j0"))
    fleet.results("j0", known + 2)


# -- what a refusal means ----------------------------------------------------------------------------------


def store_of(*endpoints: str) -> GrpcStore:
    return GrpcStore(Connection(parse_endpoints(",".join(endpoints))))


def test_refusal_is_clear_unless_an_earlier_try_was_not(small: tuple[Cluster, Fleet]) -> None:
    """A full etcd or a missing lease is a clear refusal; after a try whose answer was lost it is unclear."""
    cluster, _ = small
    store = store_of(cluster.endpoints)
    with pytest.raises(LeaseGone) as gone:
        store.txn([], [Put(b"/k", b"v", 12345)], timeout_s=5)
    fill(cluster)
    with pytest.raises(Full) as full:
        store.txn([], [Put(b"/k", b"v")], timeout_s=5)
    with pytest.raises(Full) as lease:
        store.grant(12345, 60, timeout_s=5)
    assert [raised.value.unclear for raised in (full, gone, lease)] == [False, False, False]
    store.close()
    proxy = Proxy(cluster.endpoints)
    store = store_of(proxy.endpoint)
    fault = proxy.fault("Txn", "reset")
    with pytest.raises(Full) as after:
        store.txn([], [Put(b"/k", b"v")], timeout_s=5)
    assert fault.hit.is_set()
    assert after.value.unclear
    store.close()
    proxy.refuse.set()
    proxy.cut()
    store = GrpcStore(Connection(parse_endpoints(proxy.endpoint)), members_only=True)
    with pytest.raises(StoreError) as away:
        store.txn([], [Put(b"/k", b"v")], timeout_s=1)
    assert not away.value.unclear  # it was never sent
    store.close()
    proxy.close()


class Large(GrpcStore):
    """Writes so much with each claim that claims cross the quota; counts how often etcd is full."""

    refused = 0

    def txn(self, compare: Any, success: Any, failure: Any = (), *, timeout_s: float) -> TxnResult:
        """Add a large key to the transaction."""
        more = [Put(b"/fill/" + one.key, b"x" * 20_000) for one in success if isinstance(one, Put)][:1]
        try:
            return super().txn(compare, [*success, *more], failure, timeout_s=timeout_s)
        except Full:
            self.refused += 1
            raise


def test_claim_that_etcd_makes_and_refuses_in_one_is_known_to_be_made() -> None:
    """etcd does so to requests that cross the quota; a claim that fails clearly does not exist, even among others."""
    made_all_the_same = 0
    for _ in range(5):
        with Cluster(arguments=QUOTA) as cluster:
            made_all_the_same += cross_the_quota(cluster)
        if made_all_the_same:
            break
    assert made_all_the_same, "etcd has made none of the claims that it refused: nothing was tested"


def cross_the_quota(cluster: Cluster) -> int:
    """Claim in parallel until each claimer is refused; return how many claims were both made and refused."""
    keys, me = Keys("/t"), Holder("a", 1, "2026-01-01T00:00:00Z", "conchd")
    job = decode("j", {"schedule": "@every 1s", "cmd": ["true"], "overlap": "allow"})
    store = store_of(cluster.endpoints)
    store.grant(7, 600, timeout_s=5)
    node = store.txn([], [Put(keys.node("a").encode(), b"{}", 7)], timeout_s=5).header.revision
    rev = store.txn([], [Put(keys.cron("job", "j").encode(), job.encode())], timeout_s=5).header.revision
    made: list[int] = []
    clearly_not: list[int] = []
    found: list[bool] = []

    def claim(first: int) -> None:
        large = Large(Connection(parse_endpoints(cluster.endpoints)))
        results = ResultStore(large, keys)
        claims, sending = ClaimStore(large, keys, "a", results), AtOnce(large, results.leases)
        for tick in range(first, first + 1000):
            due = PendingTick(job, rev, tick, tick + 60.0, secrets.token_hex(8))
            try:
                outcome = result_of(
                    claims.claim(due, Registration(1, 7, node), me, 1_900_000_000.0, has_floor=False, sending=sending)
                )
            except Full as error:
                if not error.unclear:
                    clearly_not.append(tick)
                break
            assert isinstance(outcome, Won)
            made.append(tick)
            if large.refused:
                found.append(True)
                break
        large.close()

    threads = [threading.Thread(target=claim, args=(1_900_000_000 + 1000 * number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    there = store.range(Range(b"/t/cron/fire/", b"/t/cron/fire0", keys_only=True), timeout_s=5).kvs
    ticks = {int(kv.key.rpartition(b"/")[2]) for kv in there}
    assert not ticks & set(clearly_not)
    assert set(made) <= ticks
    store.close()
    return len(found)
