"""The transactions of ticks: a claim or result is created once, recognised when repeated, and trimmed for good."""

import secrets
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from conch.cron.claim_outcomes import Again, Busy, Changed, NodeGone, Outcome, Taken, Won
from conch.cron.claim_store import ClaimStore
from conch.cron.job import decode
from conch.cron.result_store import Delivered, ResultStore
from conch.cron.ticks import PendingTick, Registration
from conch.cron.values import Result, claim_value
from conch.etcd.connection import Connection
from conch.etcd.endpoints import parse_endpoints
from conch.etcd.grpc_store import GrpcStore
from conch.etcd.store import Delete, KeyValue, Put, Range
from conch.holder import Holder
from conch.keys import Keys
from tests.conftest import OwnEtcd
from tests.support.conch import Bench, wait_for
from tests.support.etcdctl import etcdctl
from tests.support.proxy import Proxy
from tests.support.sending import AtOnce, result_of

ME = Holder("a", 1, "2026-01-01T00:00:00Z", "conchd")
TICK = 1_900_000_000
NOW = float(TICK)


class Bed:
    """A registered node and a job on a real etcd."""

    def __init__(self, endpoints: str, prefix: str, overlap: str = "forbid", history: int = 1000) -> None:
        self.keys = Keys(prefix)
        self.store = GrpcStore(Connection(parse_endpoints(endpoints)))
        self.results = ResultStore(self.store, self.keys, history)
        self.claims = ClaimStore(self.store, self.keys, "a", self.results)
        self.sending = AtOnce(self.store, self.results.leases)
        self.lease = secrets.randbits(62) | 1
        self.store.grant(self.lease, 120, timeout_s=5)
        self.node = Registration(1, self.lease, self.put(self.keys.node("a"), b"{}", self.lease))
        self.job = decode("j", {"schedule": "@every 1s", "cmd": ["true"], "overlap": overlap})
        self.rev = self.put(self.keys.cron("job", "j"), self.job.encode())

    def put(self, key: str, value: bytes, lease: int = 0) -> int:
        return self.store.txn([], [Put(key.encode(), value, lease)], timeout_s=5).header.revision

    def due(self, tick: int = TICK, **how: Any) -> PendingTick:
        return PendingTick(self.job, self.rev, tick, tick + 60.0, secrets.token_hex(8), **how)

    def claim(self, due: PendingTick, *, has_floor: bool = False) -> Any:
        return result_of(self.claims.claim(due, self.node, ME, NOW, has_floor=has_floor, sending=self.sending))

    def claim_to_skip(
        self, due: PendingTick, why: str = "", old: Sequence[int] = (), *, has_floor: bool = False
    ) -> Outcome:
        return result_of(
            self.claims.claim_to_skip(
                due, self.node, ME, NOW, None, why, old, has_floor=has_floor, sending=self.sending
            )
        )

    def get(self, kind: str, *path: object) -> KeyValue | None:
        found = self.store.range(Range(self.keys.cron(kind, *map(str, path)).encode()), timeout_s=5).kvs
        return found[0] if found else None

    def deliver(
        self, tick: int, run_rev: int | None, old: tuple[int, ...] = (), *, has_floor: bool = False
    ) -> Delivered:
        result = Result("a", "ok", 0, NOW, 0.1, 1)
        return result_of(
            self.results.deliver("j", tick, result, run_rev, old, NOW, has_floor=has_floor, sending=self.sending)
        )

    def close(self) -> None:
        self.store.revoke(self.lease, timeout_s=5)
        self.store.close()


@pytest.fixture
def bed(conch: Bench) -> Iterator[Bed]:
    """A node and a job on the test run's etcd."""
    bed = Bed(conch.endpoints, conch.prefix)
    yield bed
    bed.close()
    conch.etcd.delete_prefix(conch.prefix)


def test_claim_is_created_once_and_recognised_when_repeated(bed: Bed) -> None:
    """Claiming again for the same run is Won with the same revision; for another run it is Taken."""
    due = bed.due()
    won = bed.claim(due)
    assert isinstance(won, Won)
    assert won.run_rev == won.rev
    assert bed.claim(due) == won
    other = bed.claim(bed.due())
    assert isinstance(other, Taken)
    fire, run = bed.get("fire", "j", TICK), bed.get("run", "j")
    assert fire is not None
    assert run is not None
    assert (fire.create_revision, run.create_revision) == (won.rev, won.rev)
    assert run.lease == bed.lease
    assert fire.lease == won.lease != bed.lease


def test_run_key_of_a_lost_registration_starts_nothing(bed: Bed) -> None:
    """A repeated try finds it while the old lease lives. Its run would outlive it: the next one could start beside."""
    due, waits = bed.due(), bed.due(TICK + 60)
    assert bed.claim(due).run_rev is not None
    old, lease = bed.node, secrets.randbits(62) | 1
    bed.store.grant(lease, 120, timeout_s=5)
    bed.store.txn([], [Delete(bed.keys.node("a").encode())], timeout_s=5)
    bed.node = Registration(2, lease, bed.put(bed.keys.node("a"), b"{}", lease))
    assert bed.claim(due).run_rev is None
    # the same for a tick that waited for its run key
    bed.store.txn([], [Delete(bed.keys.cron("run", "j").encode())], timeout_s=5)
    fire = bed.put(bed.keys.cron("fire", "j", waits.tick), claim_value(ME, waits.run, waits.tick))
    run_value = claim_value(ME, waits.run, waits.tick)
    bed.put(bed.keys.cron("run", "j"), run_value, old.lease)
    taken = result_of(bed.claims.take_run(waits, fire, bed.node, ME, NOW, sending=bed.sending))
    assert isinstance(taken, Busy)
    bed.store.txn([], [Delete(bed.keys.cron("run", "j").encode())], timeout_s=5)
    again = bed.put(bed.keys.cron("run", "j"), run_value, lease)
    taken = result_of(bed.claims.take_run(waits, fire, bed.node, ME, NOW, sending=bed.sending))
    assert isinstance(taken, Won)
    assert taken.run_rev == again
    bed.store.revoke(lease, timeout_s=5)


def test_claim_whose_reply_was_lost_is_recognised(conch: Bench) -> None:
    """When the driver repeats the transaction, it finds the claim that the first try made."""
    proxy = Proxy(conch.endpoints)
    bed = Bed(conch.endpoints, conch.prefix)
    store = GrpcStore(Connection(parse_endpoints(proxy.endpoint)))
    results = ResultStore(store, bed.keys)
    claims, sending = ClaimStore(store, bed.keys, "a", results), AtOnce(store, results.leases)
    fault = proxy.fault("Txn", "reset", skip=0)
    bed.claim(bed.due(TICK - 5))  # so that the shared lease exists
    won = result_of(claims.claim(bed.due(TICK), bed.node, ME, NOW, has_floor=False, sending=sending))
    assert fault.hit.is_set()
    assert isinstance(won, Busy)  # the run of the first tick is alive
    bed.deliver(TICK - 5, bed.get("run", "j").create_revision)  # type: ignore[union-attr]
    fault = proxy.fault("Txn", "reset", skip=0)
    won = result_of(claims.claim(bed.due(TICK), bed.node, ME, NOW, has_floor=False, sending=sending))
    assert fault.hit.is_set()
    assert isinstance(won, Won)
    proxy.close()
    bed.close()
    conch.etcd.delete_prefix(conch.prefix)


def test_what_prevents_a_claim(bed: Bed) -> None:
    """A live run, a result, a withdrawn request, a changed job, the floor or a lost registration prevents it."""
    first = bed.claim(bed.due(TICK))
    assert isinstance(first, Won)
    busy = bed.claim(bed.due(TICK + 1))
    assert isinstance(busy, Busy)
    assert busy.run is not None
    bed.deliver(TICK, first.run_rev)
    assert bed.get("run", "j") is None
    bed.put(bed.keys.cron("result", "j", TICK + 2), b"{}")
    assert isinstance(bed.claim(bed.due(TICK + 2)), Taken)
    assert isinstance(bed.claim(bed.due(TICK + 3, request_rev=5)), Taken)
    old = bed.due(TICK + 4)
    bed.rev = bed.put(bed.keys.cron("job", "j"), bed.job.encode())
    changed = bed.claim(old)
    assert isinstance(changed, Changed)
    assert changed.job is not None
    assert changed.job.mod_revision == bed.rev
    bed.put(bed.keys.cron("floor", "j"), str(TICK + 10).encode())
    assert bed.claim(bed.due(TICK + 5)) == Again(True)
    assert isinstance(bed.claim(bed.due(TICK + 10), has_floor=True), Taken)
    assert isinstance(bed.claim(bed.due(TICK + 11), has_floor=True), Won)
    bed.node = Registration(1, bed.lease, bed.node.rev + 1)
    assert bed.claim(bed.due(TICK + 12), has_floor=True) == NodeGone()


def test_lease_that_is_gone_means_not_registered(bed: Bed) -> None:
    """etcd refuses to put the run key under it, so no part of the claim is made."""
    bed.store.revoke(bed.lease, timeout_s=5)
    bed.put(bed.keys.node("a"), b"{}")
    outcome = bed.claim(bed.due())
    assert outcome == NodeGone()
    assert bed.get("fire", "j", TICK) is None


def test_result_is_created_once(bed: Bed) -> None:
    """A second delivery does not change it, and the run key is gone."""
    won = bed.claim(bed.due())
    assert bed.deliver(TICK, won.run_rev).is_wanted
    before = bed.get("result", "j", TICK)
    assert bed.deliver(TICK, won.run_rev).is_wanted
    assert bed.get("result", "j", TICK) == before
    assert bed.get("run", "j") is None


def test_result_does_not_delete_anothers_run_key(bed: Bed) -> None:
    """Our run key was deleted long ago; the key that is there belongs to the next run."""
    won = bed.claim(bed.due())
    bed.store.txn(
        [],
        [Delete(bed.keys.cron("run", "j").encode())],
        timeout_s=5,
    )
    bed.put(bed.keys.cron("run", "j"), b"{}")
    assert bed.deliver(TICK, won.run_rev).is_wanted
    assert bed.get("run", "j") is not None


def test_month_of_ticks_leaves_etcds_size_flat(own: OwnEtcd) -> None:
    """With a history of ten and compaction, 1,500 ticks take no more room than the first 300; keys stay bounded."""
    bed = Bed(own.bench.endpoints, own.bench.prefix, "allow", history=10)

    def run(first: int, count: int) -> None:
        old: tuple[int, ...] = ()
        has_floor = first != TICK
        for tick in range(first, first + count):
            assert isinstance(bed.claim(bed.due(tick), has_floor=has_floor), Won)
            delivered = bed.deliver(tick, None, old, has_floor=has_floor)
            old, has_floor = delivered.old, delivered.has_floor
            if tick % 50 == 0:
                revision = bed.store.range(Range(b"x"), timeout_s=5).header.revision
                etcdctl("--endpoints", own.bench.endpoints, "compaction", str(revision))

    run(TICK, 300)
    size = in_use(own)
    run(TICK + 300, 1200)
    count = bed.store.range(Range(bed.keys.cron("").encode(), b"0"), timeout_s=5).count
    assert count <= 30
    floor = bed.get("floor", "j")
    assert floor is not None
    assert int(floor.value) >= TICK + 1480
    assert isinstance(bed.claim(bed.due(TICK + 5), has_floor=True), Taken), "what was trimmed is never claimed again"
    wait_for(lambda: in_use(own) <= 1.5 * size + 200_000, f"{in_use(own)} bytes in use, {size} before")
    bed.close()
    own.bench.etcd.delete_prefix(own.bench.prefix)


def in_use(own: OwnEtcd) -> int:
    """Return how many bytes of etcd's database are in use."""
    import urllib.request

    with urllib.request.urlopen(f"http://{own.cluster.endpoints}/metrics", timeout=5) as answer:
        lines = answer.read().decode().splitlines()
    return next(
        int(float(one.split()[1])) for one in lines if one.startswith("etcd_mvcc_db_total_size_in_use_in_bytes")
    )


def test_shared_leases_last_as_long_as_documented(bed: Bed) -> None:
    """Claims last at least 25 h, results at least 14 days."""
    now = time.time()
    due = bed.due(int(now))
    won = result_of(bed.claims.claim(due, bed.node, ME, now, has_floor=False, sending=bed.sending))
    assert isinstance(won, Won)
    ok = Result("a", "ok")
    result_of(bed.results.deliver("j", int(now), ok, None, (), now, has_floor=False, sending=bed.sending))
    result = bed.get("result", "j", int(now))
    assert result is not None
    left = {lease: bed.store.keep_alive(lease, timeout_s=5).ttl_s for lease in (won.lease, result.lease)}
    assert left[won.lease] >= 25 * 3600
    assert left[result.lease] >= 14 * 86400


@pytest.fixture
def free(conch: Bench) -> Iterator[Bed]:
    """A node and a job without a run key, which would hide that another comparison is missing."""
    bed = Bed(conch.endpoints, conch.prefix, "allow")
    yield bed
    bed.close()
    conch.etcd.delete_prefix(conch.prefix)


def test_claim_of_an_allow_job_is_created_once_too(free: Bed) -> None:
    """Only its own key and our registration are compared."""
    won = free.claim(free.due())
    assert isinstance(won, Won)
    assert won.run_rev is None
    assert free.claim(free.due()) == Taken("claimed by another")
    free.node = Registration(1, free.lease, free.node.rev + 1)
    assert free.claim(free.due(TICK + 1)) == NodeGone()
    assert free.get("fire", "j", TICK + 1) is None


def test_second_result_of_an_allow_job_changes_nothing(free: Bed) -> None:
    """The first result keeps its value and revision."""
    free.claim(free.due())
    free.deliver(TICK, None)
    before = free.get("result", "j", TICK)
    assert free.deliver(TICK, None).is_wanted
    assert free.get("result", "j", TICK) == before
