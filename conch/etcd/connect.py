"""Which driver talks to etcd: the light one where it can, else gRPC."""

import time
from collections.abc import Callable, Sequence

from conch.config import Connection
from conch.etcd.http import NoGateway
from conch.etcd.light import HttpStore
from conch.etcd.store import (
    Compare,
    Head,
    Lease,
    LeaseExists,
    Operation,
    Range,
    RangeResult,
    Refused,
    Store,
    TxnResult,
    Watch,
)
from conch.hints import TypeVar

_Answer = TypeVar("_Answer")
# What the other driver has at least, where the first one used up the time.
_LEAST_S = 0.5


def open_store(connection: Connection, *, members_only: bool = False) -> Store:
    """The store for a connection's transport. Nothing is sent yet.

    `members_only` is for whoever is to hold something: an etcd grpc-proxy, which cannot prove a renewal, is not used.
    (It has no JSON gateway.)
    """
    if connection.transport == "grpc":
        return _grpc(connection, members_only=members_only)
    if connection.transport == "http":
        return HttpStore(connection)
    return AutoStore(connection, members_only=members_only)


def _grpc(connection: Connection, *, members_only: bool) -> Store:
    from conch.etcd.driver import GrpcStore  # late: it takes 100 ms and 25 MB

    return GrpcStore(connection, members_only=members_only)


class AutoStore:
    """The light driver, until it meets an etcd without a gateway, or one that knows us by our certificate.

    (Through the gateway etcd does not see the client's certificate, and finds no user name.)
    """

    def __init__(self, connection: Connection, *, members_only: bool = False) -> None:
        self._connection = connection
        self._members_only = members_only
        self._store: Store = HttpStore(connection, tentative=True)

    def _ask(self, timeout_s: float, call: Callable[[Store, float], _Answer]) -> _Answer:
        store, until = self._store, time.monotonic() + timeout_s
        try:
            return call(store, timeout_s)
        except NoGateway:
            pass
        except Refused as error:
            known_by_certificate = self._connection.cert is not None and self._connection.user is None
            if not known_by_certificate or "user name is empty" not in str(error) or store is not self._store:
                raise
        if store is self._store:
            self._store = _grpc(self._connection, members_only=self._members_only)
            store.close()
        return call(self._store, max(_LEAST_S, until - time.monotonic()))

    def grant(self, lease: int, ttl_s: int, *, timeout_s: float) -> Lease:
        """See `Store`."""
        store = self._store
        try:
            return self._ask(timeout_s, lambda store, left_s: store.grant(lease, ttl_s, timeout_s=left_s))
        except LeaseExists:
            if store is self._store:
                raise
            return Lease(Head(0, 0, 0), ttl_s)  # the other driver's try was made, and its answer lost

    def keep_alive(self, lease: int, *, timeout_s: float) -> Lease:
        """See `Store`."""
        return self._ask(timeout_s, lambda store, left_s: store.keep_alive(lease, timeout_s=left_s))

    def revoke(self, lease: int, *, timeout_s: float) -> None:
        """See `Store`."""
        self._ask(timeout_s, lambda store, left_s: store.revoke(lease, timeout_s=left_s))

    def range(self, what: Range, *, timeout_s: float) -> RangeResult:
        """See `Store`."""
        return self._ask(timeout_s, lambda store, left_s: store.range(what, timeout_s=left_s))

    def txn(
        self,
        compare: Sequence[Compare],
        success: Sequence[Operation],
        failure: Sequence[Operation] = (),
        *,
        timeout_s: float,
    ) -> TxnResult:
        """See `Store`."""
        return self._ask(timeout_s, lambda store, left_s: store.txn(compare, success, failure, timeout_s=left_s))

    def watch(
        self,
        what: Sequence[tuple[Range, int]],
        *,
        deletes_only: bool = False,
        tell: Callable[[str], None] = lambda _event: None,
        blind: Callable[[], None] = lambda: None,
    ) -> Watch:
        """See `Store`. It stays with the driver that answers now."""
        return self._store.watch(what, deletes_only=deletes_only, tell=tell, blind=blind)

    def close(self) -> None:
        """See `Store`."""
        self._store.close()
