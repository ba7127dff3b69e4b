"""The driver and the keeper's parts against a real etcd."""

import secrets
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from conch.core import clock
from conch.etcd.connection import Connection
from conch.etcd.endpoints import parse_endpoints
from conch.etcd.grpc_store import GrpcStore
from conch.etcd.store import (
    CreateRevisionIs,
    Delete,
    Event,
    Header,
    Lease,
    LeaseGone,
    Put,
    Range,
    RangeResult,
    Rejected,
    Store,
    Unreachable,
    Watch,
)
from conch.keeper.hold_spec import QueueSpec
from conch.keeper.queue import PlaceLost, Queue
from conch.keeper.session import Session
from conch.keys import prefix_end
from conch.record import replace
from tests.conftest import OwnEtcd
from tests.support.conch import Bench, new_store, wait_for
from tests.support.proxy import Proxy


def new_lease() -> int:
    return secrets.randbits(62) | 1


@pytest.fixture(params=["grpc", "http"])
def transport(request: pytest.FixtureRequest) -> str:
    """Both drivers have the same contract."""
    return str(request.param)


@pytest.fixture
def store(conch: Bench, transport: str) -> Iterator[Store]:
    """A store on the test run's etcd."""
    store = new_store(conch.endpoints, transport=transport)
    yield store
    store.close()


@pytest.fixture
def proxy(conch: Bench) -> Iterator[Proxy]:
    """A proxy in front of the test run's etcd."""
    proxy = Proxy(conch.endpoints)
    yield proxy
    proxy.close()


@pytest.fixture
def lease(store: Store) -> Iterator[int]:
    """A lease of a minute."""
    lease = new_lease()
    store.grant(lease, 60, timeout_s=5)
    yield lease
    store.revoke(lease, timeout_s=5)


def test_lease_life(store: Store) -> None:
    """It is granted, renewed and revoked; a second revocation is no error, and a renewal then has TTL 0."""
    lease = new_lease()
    granted = store.grant(lease, 7, timeout_s=5)
    assert granted.ttl_s == 7
    assert store.keep_alive(lease, timeout_s=5).ttl_s == 7
    store.revoke(lease, timeout_s=5)
    store.revoke(lease, timeout_s=5)
    assert store.keep_alive(lease, timeout_s=5).ttl_s == 0


def test_grant_of_anothers_lease_is_rejected(store: Store, lease: int) -> None:
    """Only a repeated try of our own may find its id in use."""
    with pytest.raises(Rejected):
        store.grant(lease, 7, timeout_s=5)


def test_ttl_that_etcd_grants_counts(store: Store) -> None:
    """etcd raises a TTL below its minimum."""
    lease = new_lease()
    assert store.grant(lease, 1, timeout_s=5).ttl_s == 2
    store.revoke(lease, timeout_s=5)


def test_put_under_a_dead_lease_is_lease_gone(store: Store, conch: Bench) -> None:
    """The caller can then get a new lease."""
    with pytest.raises(LeaseGone):
        store.txn([], [Put(f"{conch.prefix}/x".encode(), b"v", 12345)], timeout_s=5)


def test_transactions_and_ranges(store: Store, conch: Bench, lease: int) -> None:
    """Order, limit, max_create_revision and count; odd bytes and empty values."""
    base = f"{conch.prefix}/r/".encode()
    keys = [base + bytes([255 - i, 0, 10]) for i in range(5)]
    for i, key in enumerate(keys):
        done = store.txn([CreateRevisionIs(key, 0)], [Put(key, b"\x00\xff" * i, lease)], timeout_s=5)
        assert done.succeeded
    everything = Range(base, prefix_end(base), oldest_first=True)
    found = store.range(everything, timeout_s=5)
    assert [kv.key for kv in found.kvs] == keys
    assert [kv.value for kv in found.kvs] == [b"\x00\xff" * i for i in range(5)]
    assert {kv.lease for kv in found.kvs} == {lease}
    newest = replace(everything, oldest_first=False, newest_first=True, limit=2, keys_only=True)
    answer = store.range(newest, timeout_s=5)
    assert [kv.key for kv in answer.kvs] == [keys[4], keys[3]]
    assert answer.count == 5
    earlier = replace(newest, max_create_revision=found.kvs[1].create_revision)
    assert [kv.key for kv in store.range(earlier, timeout_s=5).kvs] == [keys[1], keys[0]]
    refused = store.txn([CreateRevisionIs(keys[0], 0)], [Delete(keys[1])], [Range(keys[0])], timeout_s=5)
    assert not refused.succeeded
    assert refused.ranges[0].kvs[0].key == keys[0]
    assert store.txn([], [Delete(keys[1])], timeout_s=5).succeeded
    assert store.range(everything, timeout_s=5).count == 4


def test_no_endpoint_is_unreachable_in_time(transport: str) -> None:
    """The error has the reason of each endpoint."""
    dead = new_store("127.0.0.1:1,127.0.0.1:2", transport=transport)
    began = clock.now()
    with pytest.raises(Unreachable, match=r"127\.0\.0\.1:1: .*127\.0\.0\.1:2|127\.0\.0\.1:2: .*127\.0\.0\.1:1"):
        dead.range(Range(b"x"), timeout_s=0.5)
    assert clock.now() - began < 3
    dead.close()


def test_dead_endpoint_is_left_for_a_live_one(conch: Bench, transport: str) -> None:
    """The order in which they are tried does not matter."""
    for _ in range(4):
        store = new_store(f"127.0.0.1:1,{conch.endpoints}", transport=transport)
        assert store.range(Range(b"x"), timeout_s=5).count == 0
        store.close()


def collect(watch: Any, into: list[Event]) -> threading.Thread:
    """Read a watch in a thread."""

    def read() -> None:
        for events in watch:
            into.extend(events)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    return thread


def test_watch_sees_each_event_once_across_restarts_of_etcd(own: OwnEtcd, transport: str) -> None:
    """It begins at the requested revision, keeps the order, and ends when it is cancelled."""
    store = new_store(own.bench.endpoints, transport=transport)
    base = f"{own.bench.prefix}/w/".encode()
    first = store.txn([], [Put(base + b"0", b"")], timeout_s=5).header.revision
    watch = store.watch([(Range(base, prefix_end(base)), first), (Range(b"other"), first)])
    seen: list[Event] = []
    thread = collect(watch, seen)
    for i in range(1, 60):
        store.txn([], [Put(base + str(i).encode(), b"")], timeout_s=20)
        if i % 20 == 10:
            own.cluster.restart(own.member)
    wait_for(lambda: len(seen) >= 60, "60 events")
    assert [event.kv.key for event in seen] == [base + str(i).encode() for i in range(60)]
    watch.cancel()
    thread.join(10)
    assert not thread.is_alive()
    for i in range(60):
        store.txn([], [Delete(base + str(i).encode())], timeout_s=5)
    store.close()


# -- the queue --------------------------------------------------------------------------------------------


def contenders(store: Store, prefix: str, slots: int, count: int) -> list[tuple[Queue, int]]:
    """Put so many contenders into the queue, each with a lease."""
    found = []
    for _ in range(count):
        lease = new_lease()
        store.grant(lease, 60, timeout_s=5)
        queue = Queue(store, QueueSpec(f"{prefix}/q/", slots), lease)
        place = queue.enter(b"v", timeout_s=5)
        found.append((queue, place.rev))
    return found


def collect_keys(watch: Watch) -> tuple[list[bytes], threading.Thread]:
    """Collect the keys of a watch's events in a thread that ends with the watch."""
    seen: list[bytes] = []
    reader = threading.Thread(target=lambda: seen.extend(one.kv.key for events in watch for one in events), daemon=True)
    reader.start()
    return seen, reader


def test_watch_of_many_keys_reports_each_however_slowly_it_was_requested(
    conch: Bench, proxy: Proxy, transport: str, lease: int
) -> None:
    """The server may answer the first request before it has read the rest; none may be left out."""
    proxy.dribble.set()
    store = new_store(proxy.endpoint, transport=transport)
    keys = [f"{conch.prefix}/many/{number:03}".encode() for number in range(12)]
    revision = store.range(Range(b"/x"), timeout_s=5).header.revision
    watch = store.watch([(Range(key), revision + 1) for key in keys])
    seen, reader = collect_keys(watch)
    for key in keys:
        store.txn([], [Put(key, b"x", lease)], timeout_s=5)
    wait_for(lambda: len(seen) == len(keys), "an event of each key", 4)
    watch.cancel()
    reader.join(5)
    store.close()
    assert sorted(seen) == keys


def test_watch_that_grows_keeps_its_stream(conch: Bench, proxy: Proxy, transport: str, lease: int) -> None:
    """Events of added keys arrive over the same stream, even those from before the addition."""
    store = new_store(proxy.endpoint, transport=transport)
    keys = [f"{conch.prefix}/many/{number:03}".encode() for number in range(30)]
    revision = store.range(Range(b"/x"), timeout_s=5).header.revision
    watch = store.watch([(Range(keys[0]), revision + 1)])
    seen, reader = collect_keys(watch)
    store.txn([], [Put(keys[0], b"x", lease)], timeout_s=5)
    wait_for(lambda: len(seen) == 1, "the first event", 4)
    for number, key in enumerate(keys[1:]):
        if number % 2:
            store.txn([], [Put(key, b"x", lease)], timeout_s=5)
        watch.add(Range(key), revision + 1)
        if not number % 2:
            store.txn([], [Put(key, b"x", lease)], timeout_s=5)
    wait_for(lambda: len(seen) == len(keys), "an event of each key", 4)
    watch.cancel()
    reader.join(5)
    store.close()
    assert sorted(seen) == keys
    assert proxy.calls.count("Watch") == 1


@pytest.mark.parametrize("slots", [1, 2, 3])
def test_first_n_hold_and_each_watches_the_n_right_ahead(store: Store, conch: Bench, slots: int) -> None:
    """Whichever holder leaves, exactly the next in line holds."""
    line = contenders(store, conch.prefix, slots, 6)
    revs = [rev for _, rev in line]
    assert revs == sorted(set(revs))
    while line:
        for i, (queue, rev) in enumerate(line):
            place = queue.read(rev, timeout_s=5)
            assert place.held == (i < slots)
            ahead = [other.key.encode() for other, _ in line[:i]]
            assert list(place.ahead) == ([] if i < slots else ahead[-slots:][::-1])
        leaving = line.pop(min(len(line) - 1, secrets.randbelow(slots)))[0]
        store.revoke(leaving.lease, timeout_s=5)


def test_entering_twice_keeps_the_first_place(store: Store, conch: Bench) -> None:
    """A repeated create finds its own key, so a lost answer makes no second contender."""
    (first, rev), (second, _) = contenders(store, conch.prefix, 1, 2)
    again = first.enter(b"v", timeout_s=5)
    assert (again.rev, again.held) == (rev, True)
    assert second.enter(b"v", timeout_s=5).ahead == (first.key.encode(),)
    assert (
        store.range(Range(f"{conch.prefix}/q/".encode(), prefix_end(f"{conch.prefix}/q/".encode())), timeout_s=5).count
        == 2
    )
    for queue in (first, second):
        store.revoke(queue.lease, timeout_s=5)
    with pytest.raises(PlaceLost):
        first.read(rev, timeout_s=5)
    with pytest.raises(LeaseGone):
        first.enter(b"v", timeout_s=5)


# -- the session ------------------------------------------------------------------------------------------


class Bent(GrpcStore):
    """The real store, but the test changes its answers to those of a former leader that has woken up."""

    bend_alive: Any = staticmethod(lambda answer: answer)
    bend_read: Any = staticmethod(lambda answer: answer)

    def each_member(self) -> list[Any]:
        return [self]

    def keep_alive(self, lease: int, *, timeout_s: float) -> Lease:
        return self.bend_alive(super().keep_alive(lease, timeout_s=timeout_s))  # type: ignore[no-any-return]

    def range(self, what: Range, *, timeout_s: float) -> RangeResult:
        return self.bend_read(super().range(what, timeout_s=timeout_s))  # type: ignore[no-any-return]


class Watched:
    """A session for a real key, and what it reported."""

    def __init__(self, conch: Bench, ttl_s: int = 3) -> None:
        self.store = Bent(Connection(parse_endpoints(conch.endpoints)))
        self.lease = new_lease()
        self.deadlines: list[float] = []
        self.told_at: list[float] = []  # when each deadline was reported
        self.losses: list[str] = []
        self.notes: list[str] = []
        self.wanted = True
        self.granted_at = clock.now()
        self.store.grant(self.lease, ttl_s, timeout_s=5)
        self.queue = Queue(self.store, QueueSpec(f"{conch.prefix}/s/", 1), self.lease)
        self.rev = self.queue.enter(b"v", timeout_s=5).rev
        self.session = Session(
            self.store, self.lease, ttl_s, self.granted_at,
            should_renew=lambda: self.wanted, renewed=self.renewed, lost=self.losses.append,
            log=self.note,
        )  # fmt: skip

    def start(self) -> None:
        self.session.follow(self.queue.key, self.rev)

    def renewed(self, deadline: float) -> None:
        self.told_at.append(clock.now())
        self.deadlines.append(deadline)

    def note(self, level: str, event: str, **fields: object) -> None:
        self.notes.append(event)

    def end(self) -> None:
        self.session.stop()
        self.store.bend_alive = self.store.bend_read = lambda answer: answer
        self.store.revoke(self.lease, timeout_s=5)
        self.store.close()


@pytest.fixture
def watched(conch: Bench) -> Iterator[Watched]:
    watched = Watched(conch)
    yield watched
    watched.end()


def test_deadline_counts_from_before_the_renewal_was_sent(watched: Watched) -> None:
    """A slow reply proves no additional time."""

    def slow(answer: Lease) -> Lease:
        threading.Event().wait(0.3)
        return answer

    watched.store.bend_alive = slow
    watched.start()
    wait_for(lambda: len(watched.deadlines) >= 2, "two renewals")
    for told_at, deadline in zip(watched.told_at, watched.deadlines, strict=False):
        assert deadline <= told_at - 0.3 + 3
    assert watched.session.deadline > watched.granted_at + 3


@pytest.mark.parametrize(
    "bend",
    [
        lambda read: replace(read, header=replace(read.header, term=read.header.term + 1)),
        lambda read: replace(read, header=replace(read.header, member=read.header.member + 1)),
    ],
    ids=["another term", "another member"],
)
def test_renewal_that_the_read_does_not_confirm_proves_nothing(watched: Watched, bend: Any) -> None:
    """A former leader that has woken up answers renewals, but the read comes from another term or member."""
    watched.store.bend_read = bend
    watched.start()
    wait_for(lambda: "doubt" in watched.notes, "doubt")
    assert watched.deadlines == []
    assert watched.losses == []
    watched.store.bend_read = lambda answer: answer
    wait_for(lambda: watched.deadlines, "a confirmed renewal")


@pytest.mark.parametrize(
    ("bend", "reason"),
    [
        (lambda read: replace(read, kvs=()), "our key is gone"),
        (lambda read: replace(read, kvs=(replace(read.kvs[0], create_revision=1),)), "our key is gone"),
        (lambda read: replace(read, kvs=(replace(read.kvs[0], lease=0),)), "our key was taken from its lease"),
    ],
)
def test_read_that_does_not_show_our_key_is_a_loss(watched: Watched, bend: Any, reason: str) -> None:
    """The key was deleted, created again by another, or detached from its lease."""
    watched.store.bend_read = bend
    watched.start()
    wait_for(lambda: watched.losses, "a loss")
    assert watched.losses == [reason]
    assert watched.deadlines == []


def test_ttl_of_zero_is_a_loss(watched: Watched) -> None:
    """etcd reports no error for a lease that it does not have."""
    watched.store.bend_alive = lambda _answer: Lease(Header(1, 1, 1), 0)
    watched.start()
    wait_for(lambda: watched.losses == ["the lease is gone"], "a loss")


def test_stopped_session_does_not_renew(watched: Watched) -> None:
    """It does not, even when a renewal is due: a hold that is being released must not live longer."""
    sent: list[Lease] = []
    watched.store.bend_alive = sent.append
    watched.start()
    watched.session.stop_quietly()
    wait_for(lambda: all(one.name != "session" for one in threading.enumerate()), "its thread ends at that moment")
    assert sent == []


def test_session_renews_about_every_fifth_of_the_ttl(watched: Watched) -> None:
    """It renews neither much more often nor much later."""
    watched.start()
    wait_for(lambda: len(watched.deadlines) >= 6, "six renewals")
    gaps = [b - a for a, b in zip(watched.deadlines, watched.deadlines[1:], strict=False)]
    assert all(gap > 0.4 for gap in gaps)
    assert sorted(gaps)[len(gaps) // 2] < 1.2
