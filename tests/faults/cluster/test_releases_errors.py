"""Each error in `conch.etcd.error_codes`, provoked from the etcd on PATH: its code, its text, and conch's reaction.

Run on each release, this shows where a release words or numbers an error differently.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa
from cryptography.hazmat.primitives.serialization import Encoding, PrivateFormat, PublicFormat

from conch.dev import Cluster
from conch.etcd import error_codes
from conch.etcd.auth import LoginState
from conch.etcd.call_errors import CallError
from conch.etcd.connection import Connection
from conch.etcd.endpoints import parse_endpoints
from conch.etcd.error_codes import EtcdError
from conch.etcd.failover import FailOver
from conch.etcd.gateway_store import HttpStore
from conch.etcd.grpc_store import GrpcStore
from conch.etcd.store import Compacted, Full, LeaseExists, LeaseGone, Put, Range, Refused, Rejected, Unreachable
from tests.support.conch import wait_for
from tests.support.etcdctl import etcdctl, told
from tests.support.members import add_learner

KEY = Range(b"/e/k")
PUT = [Put(b"/e/k", b"v")]


class Noting(FailOver[Any]):
    """Records etcd's errors, and calls the endpoints in their order."""

    def __init__(self, connection: Connection) -> None:
        super().__init__(connection)
        self._endpoints = list(connection.endpoints)
        self.seen: list[CallError] = []

    def _call_error(self, raised: Exception) -> CallError:
        self.seen.append(super()._call_error(raised))  # type: ignore[safe-super]  # a driver's
        return self.seen[-1]

    def check(self, *expected: EtcdError) -> None:
        """Check that one of these errors was answered."""
        found = [one for one in self.seen if any(row.matches(one.code, one.details) for row in expected)]
        assert found, (expected, self.seen)

    def send(self, token: str) -> None:
        """Use this token from now on."""
        self._login._enter(LoginState.LOGGED_IN, token)


class NotingGrpc(Noting, GrpcStore):
    """Over gRPC."""


class NotingHttp(Noting, HttpStore):
    """Over the gateway."""


Kind = type[NotingGrpc] | type[NotingHttp]


@pytest.fixture(params=[NotingGrpc, NotingHttp], ids=["grpc", "http"])
def kind(request: pytest.FixtureRequest) -> Kind:
    """Each driver."""
    found: Kind = request.param
    return found


def opened(kind: Kind, endpoints: str, user: str | None = None, password: str | None = None) -> Any:
    """Return a store that calls its endpoints in their order."""
    return kind(
        Connection(parse_endpoints(endpoints), user=user, password=password, transport=kind.__name__[6:].lower())
    )


@pytest.fixture(scope="module")
def plain() -> Iterator[Cluster]:
    with Cluster() as cluster:
        yield cluster


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster with users and JWT: a token carries the revision of the users at its login."""
    folder = tmp_path_factory.mktemp("jwt")
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    private, public = folder / "jwt.key", folder / "jwt.pub"
    private.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.TraditionalOpenSSL, serialization.NoEncryption()))
    public.write_bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))
    token = f"jwt,pub-key={public},priv-key={private},sign-method=RS256,ttl=10m"
    with Cluster(arguments=["--auth-token", token]) as cluster:
        ctl = ["--endpoints", cluster.endpoints]
        etcdctl(*ctl, "user", "add", "root:rootpw")
        etcdctl(*ctl, "user", "grant-role", "root", "root")
        etcdctl(*ctl, "user", "add", "nobody:nobodypw")
        etcdctl(*ctl, "user", "add", "certified", "--no-password")
        etcdctl(*ctl, "auth", "enable")
        yield cluster


def test_leases(plain: Cluster, kind: Kind) -> None:
    """A lease that does not exist, and one that already exists."""
    store = opened(kind, plain.endpoints)
    with pytest.raises(LeaseGone):
        store.txn([], [Put(b"/e/k", b"v", 12345)], timeout_s=5)
    store.check(error_codes.LEASE_GONE)
    store.grant(777, 60, timeout_s=5)
    with pytest.raises(LeaseExists):
        store.grant(777, 60, timeout_s=5)
    store.check(error_codes.LEASE_EXISTS)
    store.revoke(777, timeout_s=5)
    store.revoke(777, timeout_s=5)
    store.close()


def test_writes_that_are_too_large(plain: Cluster, kind: Kind) -> None:
    """The answers are final and clear: nothing was written."""
    store = opened(kind, plain.endpoints)
    with pytest.raises(Rejected, match="too many operations") as many:
        store.txn([], [Put(b"/e/%d" % i, b"") for i in range(129)], timeout_s=5)
    store.check(error_codes.TOO_MANY_OPERATIONS)
    with pytest.raises(Rejected, match="too large") as large:
        store.txn([], [Put(b"/e/k", b"x" * 1_700_000)], timeout_s=5)
    store.check(error_codes.TOO_LARGE)
    assert not many.value.unclear
    assert not large.value.unclear
    store.close()


def test_login_where_authentication_is_off(plain: Cluster, kind: Kind) -> None:
    """Requests are served without a login."""
    store = opened(kind, plain.endpoints, "root", "rootpw")
    store.range(KEY, timeout_s=5)
    store.check(error_codes.NOT_ENABLED)
    store.close()


def test_compacted_history(plain: Cluster, kind: Kind) -> None:
    """A watch from there ends with an error."""
    store = opened(kind, plain.endpoints)
    first = store.txn([], PUT, timeout_s=5).header.revision
    revision = store.txn([], PUT, timeout_s=5).header.revision
    etcdctl("--endpoints", plain.endpoints, "compact", str(revision))
    with closing(iter(store.watch([(KEY, first)]))) as events, pytest.raises(Compacted):
        next(events)
    store.close()


def test_full(kind: Kind) -> None:
    """The quota is used up."""
    with Cluster(arguments=["--quota-backend-bytes", str(2 * 1024 * 1024)]) as cluster:
        store = opened(kind, cluster.endpoints)
        with pytest.raises(Full):
            for i in range(200):  # data that is not on disk yet does not count
                store.txn([], [Put(b"/e/%d" % i, b"x" * 500_000)], timeout_s=10)
        store.check(error_codes.FULL)
        store.close()


def test_refusals(guarded: Cluster, kind: Kind) -> None:
    """A wrong password, a password for a user who has none, no user, and a user without permissions."""
    for user, password, expected in (
        ("root", "wrong", error_codes.WRONG_PASSWORD),
        ("noone", "wrong", error_codes.WRONG_PASSWORD),
        ("certified", "any", error_codes.NO_PASSWORD),
        (None, None, error_codes.USER_EMPTY),
        ("nobody", "nobodypw", error_codes.DENIED),
    ):
        store = opened(kind, guarded.endpoints, user, password)
        with pytest.raises(Refused):
            store.txn([], PUT, timeout_s=10)
        store.check(expected)
        store.close()


@pytest.mark.parametrize("user", [None, "nobody"])
def test_watch_that_is_refused(guarded: Cluster, kind: Kind, user: str | None) -> None:
    """The watch ends with the error that etcd gives; 3.4 reports even a missing user as permission denied."""
    store = opened(kind, guarded.endpoints, user, user and f"{user}pw")
    watch = store.watch([(KEY, 1)])
    limit = threading.Timer(15, watch.cancel)
    limit.start()
    with closing(iter(watch)) as events, pytest.raises(Refused, match=r"permission denied|user name is empty"):
        next(events)
    limit.cancel()
    store.close()


def test_tokens(guarded: Cluster, kind: Kind) -> None:
    """An unknown token, or one from before a change of users, costs no more than a new login."""
    store = opened(kind, guarded.endpoints, "root", "rootpw")
    store.send("nonsense")
    store.range(KEY, timeout_s=10)
    store.check(error_codes.INVALID_TOKEN)
    role = f"other-{kind.__name__}"
    etcdctl("--endpoints", guarded.endpoints, "--user", "root:rootpw", "role", "add", role)
    store.txn([], PUT, timeout_s=10)
    store.check(*error_codes.TOO_OLD)  # 3.5.1 does not translate it
    store.close()


def test_watch_logs_in_once_authentication_is_switched_on(kind: Kind) -> None:
    """A store that found it off logs in, and does not take the refusal for an answer."""
    with Cluster() as cluster:
        ctl = ["--endpoints", cluster.endpoints]
        store = opened(kind, cluster.endpoints, "root", "rootpw")
        store.txn([], PUT, timeout_s=5)
        for command in ("user add root:rootpw", "user grant-role root root", "auth enable"):
            etcdctl(*ctl, *command.split())
        watch = store.watch([(KEY, 1)])
        limit = threading.Timer(15, watch.cancel)
        limit.start()
        with closing(iter(watch)) as events:
            assert next(events)
        limit.cancel()
        store.close()


def test_member_without_a_leader_says_so(kind: Kind) -> None:
    """One of three is left: even the gateway reports that there is no leader, so nobody waits for a timeout."""
    with Cluster(3) as cluster:
        store = opened(kind, cluster.members[0].endpoint)
        store.range(KEY, timeout_s=5)
        for member in cluster.members[1:]:
            cluster.kill(member)

        def said() -> bool:
            with pytest.raises(Unreachable):
                store.range(KEY, timeout_s=1)
            return any(error_codes.NO_LEADER.matches(one.code, one.details) for one in store.seen)

        wait_for(said, "no leader")
        with pytest.raises(Unreachable, match="it has no leader"):
            store.range(KEY, timeout_s=1)
        store.close()


@pytest.fixture(scope="module")
def learner() -> Iterator[str]:
    """The endpoints of a learner and of the only voting member."""
    with Cluster() as cluster:
        endpoint = add_learner(cluster).endpoint
        wait_for(lambda: told("--endpoints", endpoint, "endpoint", "status"), "the learner", 30)
        yield f"{endpoint},{cluster.members[0].endpoint}"


def test_learner_is_passed_over(learner: str, kind: Kind) -> None:
    """Whatever its code (14, or 9 since 3.6), the next endpoint is called, for each call and for a watch."""
    lease = 4321
    calls: list[Callable[[Any], object]] = [
        lambda store: store.range(KEY, timeout_s=5),
        lambda store: store.grant(lease, 60, timeout_s=5),
        lambda store: store.keep_alive(lease, timeout_s=5),
        lambda store: store.txn([], PUT, timeout_s=5),
        lambda store: store.revoke(lease, timeout_s=5),
    ]
    for call in calls:
        store = opened(kind, learner)
        call(store)
        store.check(error_codes.LEARNER)
        store.close()
    store = opened(kind, learner)
    watch = store.watch([(KEY, 1)])
    limit = threading.Timer(15, watch.cancel)
    limit.start()
    with closing(iter(watch)) as events:
        assert next(events)
    limit.cancel()
    store.close()
