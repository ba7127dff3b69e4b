"""Several transactions made as one, by both drivers on a real etcd."""

from collections.abc import Iterator

import pytest

from conch.dev import Cluster
from conch.etcd.store import (
    CreateRevisionIs,
    Delete,
    Full,
    LeaseGone,
    Put,
    Range,
    Refused,
    Store,
    TooBig,
    Txn,
)
from conch.keys import prefix_end
from tests.faults.cluster.test_users import enable_authentication
from tests.support.conch import Bench, new_store
from tests.support.etcdctl import etcdctl


@pytest.fixture(params=["grpc", "http"])
def transport(request: pytest.FixtureRequest) -> str:
    """Both drivers have the same contract."""
    return str(request.param)


@pytest.fixture
def store(conch: Bench, transport: str) -> Iterator[Store]:
    """A store on the test run's etcd, of which the test uses the keys below `base`."""
    store = new_store(conch.endpoints, transport=transport)
    yield store
    store.close()
    conch.etcd.delete_prefix(conch.prefix)


@pytest.fixture
def base(conch: Bench) -> bytes:
    return f"{conch.prefix}/t/".encode()


def create(key: bytes, value: bytes = b"new", *more: Put | Delete | Range) -> Txn:
    """Create a key; if it is there already, read it."""
    return Txn((CreateRevisionIs(key, 0),), (Put(key, value), *more), (Range(key),))


def keys_of(store: Store, base: bytes) -> dict[bytes, bytes]:
    found = store.range(Range(base, prefix_end(base)), timeout_s=5).kvs
    return {kv.key.removeprefix(base): kv.value for kv in found}


def test_each_of_several_transactions_fails_alone(store: Store, base: bytes) -> None:
    """All are made at one revision; each answers with its own branch and what it read."""
    store.txn([], [Put(base + b"2", b"old"), Put(base + b"gone", b"")], timeout_s=5)
    every = Range(base, prefix_end(base))
    parts = [
        create(base + b"1", b"one", Range(base + b"gone"), Delete(base + b"gone")),
        create(base + b"2", b"two"),
        create(base + b"3", b"three", every),
        Txn((CreateRevisionIs(base + b"none", 7),), (Put(base + b"none", b""),)),
        Txn((), (every,)),
    ]
    before = store.range(every, timeout_s=5).header.revision
    answer = store.txns(parts, timeout_s=5)
    assert [result.succeeded for result in answer.results] == [True, False, True, False, True]
    assert answer.header.revision > before
    assert {result.header for result in answer.results} == {answer.header}
    one, two, three, none, rest = (result.ranges for result in answer.results)
    assert [kv.key for kv in one[0].kvs] == [base + b"gone"]
    assert [(kv.key, kv.value) for kv in two[0].kvs] == [(base + b"2", b"old")]
    assert {kv.key.removeprefix(base) for kv in three[0].kvs} == {b"1", b"2", b"3"}
    assert none == ()
    assert len(rest[0].kvs) == 3
    assert keys_of(store, base) == {b"1": b"one", b"2": b"old", b"3": b"three"}
    created = {kv.create_revision for kv in rest[0].kvs if not kv.key.endswith(b"2")}
    assert created == {answer.header.revision}


def test_transactions_that_are_repeated_change_nothing(store: Store, base: bytes) -> None:
    """As when the first answer was lost."""
    parts = [create(base + b"%d" % number) for number in range(40)]
    first = store.txns(parts, timeout_s=5)
    again = store.txns(parts, timeout_s=5)
    assert all(result.succeeded for result in first.results)
    assert not any(result.succeeded for result in again.results)
    assert {kv.create_revision for result in again.results for kv in result.ranges[0].kvs} == {first.header.revision}


def test_more_operations_than_etcd_takes(store: Store, base: bytes) -> None:
    """That is known for what it is, and nothing is written."""
    parts = [create(base + b"%d" % number, b"", Put(base + b"%d/more" % number, b"")) for number in range(65)]
    with pytest.raises(TooBig) as refused:
        store.txns(parts, timeout_s=5)
    assert not refused.value.unclear
    assert keys_of(store, base) == {}
    assert all(result.succeeded for result in store.txns(parts[:60], timeout_s=5).results)


def test_more_bytes_than_etcd_takes(store: Store, base: bytes) -> None:
    with pytest.raises(TooBig):
        store.txns([create(base + b"%d" % number, b"x" * 500_000) for number in range(4)], timeout_s=5)
    assert keys_of(store, base) == {}


def test_missing_lease_of_one_refuses_all(store: Store, base: bytes) -> None:
    with pytest.raises(LeaseGone) as refused:
        store.txns([create(base + b"1"), Txn((), (Put(base + b"2", b"", 12345),))], timeout_s=5)
    assert not refused.value.unclear
    assert keys_of(store, base) == {}


@pytest.fixture(scope="module")
def guarded() -> Iterator[Cluster]:
    """An etcd with a user that may write below `/mine/` only, and read everything."""
    with Cluster() as cluster:
        ctl = ["--endpoints", cluster.endpoints]
        etcdctl(*ctl, "role", "add", "mine")
        etcdctl(*ctl, "role", "grant-permission", "mine", "--prefix=true", "readwrite", "/mine/")
        etcdctl(*ctl, "role", "grant-permission", "mine", "--prefix=true", "read", "/")
        etcdctl(*ctl, "user", "add", "me:pw")
        etcdctl(*ctl, "user", "grant-role", "me", "mine")
        etcdctl(*ctl, "put", "/other/there", "kept")
        enable_authentication(ctl)
        yield cluster


@pytest.mark.parametrize(
    "forbidden",
    [
        create(b"/other/new"),
        Txn((), (Delete(b"/other/there"),)),
        Txn((CreateRevisionIs(b"/other/there", 0),), (), (Put(b"/other/there", b"changed"),)),
        Txn((), (Range(b"/other/there"), Put(b"/other/there", b"changed"))),
    ],
    ids=["create", "delete", "failure", "put"],
)
def test_one_that_our_role_may_not_make_refuses_all(guarded: Cluster, transport: str, forbidden: Txn) -> None:
    """Every release of etcd looks at what those within a transaction write, or is shown that by the outer one."""
    store = new_store(guarded.endpoints, transport=transport, user="me", password="pw")
    key = f"/mine/{transport}/".encode()
    with pytest.raises(Refused) as refused:
        store.txns([create(key + b"1"), forbidden, create(key + b"2")], timeout_s=5)
    assert not refused.value.unclear
    assert keys_of(store, key) == {}
    assert keys_of(store, b"/other/") == {b"there": b"kept"}
    assert all(r.succeeded for r in store.txns([create(key + b"1"), create(key + b"2")], timeout_s=5).results)
    store.txn([], [Delete(key + b"1"), Delete(key + b"2")], timeout_s=5)
    store.close()


def test_full_etcd_takes_none(transport: str) -> None:
    """Not above its quota, as single ones, whatever the release."""
    with Cluster(arguments=("--quota-backend-bytes", "1000000")) as cluster:
        store = new_store(cluster.endpoints, transport=transport)
        with pytest.raises(Full):
            for number in range(5000):  # etcd knows its size as of its last commit only
                store.txn([], [Put(b"/fill/%d" % number, b"x" * 20_000)], timeout_s=5)
        with pytest.raises(Full) as refused:
            store.txns([create(b"/t/1"), create(b"/t/2")], timeout_s=5)
        assert not refused.value.unclear
        assert keys_of(store, b"/t/") == {}
        store.close()
