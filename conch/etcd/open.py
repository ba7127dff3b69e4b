"""Chooses the driver: etcd's JSON gateway where that works, else gRPC; says why if gRPC cannot be used."""

import os
import time

from conch import threads
from conch.etcd.connection import Connection
from conch.etcd.error_codes import USER_EMPTY
from conch.etcd.gateway_http import NoGateway
from conch.etcd.gateway_store import HttpStore
from conch.etcd.store import (
    Compare,
    Header,
    Lease,
    LeaseExists,
    Operation,
    Range,
    RangeResult,
    Refused,
    Renewal,
    Store,
    StoreError,
    Txn,
    TxnResult,
    TxnResults,
    Unreachable,
    Watch,
)
from conch.etcd.timeline import Log, Timeline
from conch.limits import lacking
from conch.static_typing import Callable, Sequence, TypeVar

_Answer = TypeVar("_Answer")
# The least time for the second driver, where the first one used up the timeout.
_LEAST_S = 0.5
# What gRPC was seen to use, besides a thread per processor (4 to 16 of them), and what we need beside it.
_GRPC_THREADS, _GRPC_DESCRIPTORS = 16, 24


class NoGrpc(StoreError):
    """gRPC is not installed, or the system lacks the resources that it needs."""


def open_store(
    connection: Connection,
    log: Log = lambda _event, _text: None,
    *,
    prefer_grpc: bool = False,
    members_only: bool = False,
) -> Store:
    """Return the store for a connection's transport; nothing is sent yet. Raises `NoGrpc` if only gRPC is allowed.

    `log` is called with the event and text of each warning. With `prefer_grpc`, `auto` tries gRPC before the gateway.
    `members_only` is for a caller that will hold something: an etcd grpc-proxy, which cannot prove a renewal (and has
    no JSON gateway), is not used.
    """
    timeline = Timeline(log)
    if connection.transport == "grpc":
        return _grpc(connection, timeline, members_only=members_only)
    if connection.transport == "http":
        return HttpStore(connection, timeline)
    if not prefer_grpc:
        return AutoStore(connection, timeline, members_only=members_only)
    try:
        return _grpc(connection, timeline, members_only=members_only)
    except NoGrpc as error:
        log("no-grpc", f"{error}: etcd's JSON gateway is used instead")
        return HttpStore(connection, timeline)


def _grpc(connection: Connection, timeline: Timeline, *, members_only: bool) -> Store:
    # gRPC aborts or hangs, in C code, if it cannot start a thread once it is loaded
    lack = lacking(threads=_GRPC_THREADS + min(max(os.cpu_count() or 1, 4), 16), descriptors=_GRPC_DESCRIPTORS)
    if lack:
        raise NoGrpc(f"cannot use gRPC: {lack}")
    threads.guard_others()
    try:
        from conch.etcd.grpc_store import GrpcStore  # late: it takes 100 ms and 25 MB
    except (ImportError, OSError, MemoryError) as error:
        raise NoGrpc(f"cannot load gRPC: {error or type(error).__name__}") from None
    return GrpcStore(connection, timeline, members_only=members_only)


class AutoStore:
    """Uses the gateway, until it meets an etcd without one, or one that knows us by our certificate.

    (Through the gateway etcd does not see the client's certificate, and finds no user name.)
    """

    def __init__(self, connection: Connection, timeline: Timeline, *, members_only: bool = False) -> None:
        self._connection = connection
        self._timeline = timeline
        self._members_only = members_only
        self._store: Store = HttpStore(connection, timeline, tentative=True)

    def _ask(self, timeout_s: float, call: Callable[[Store, float], _Answer]) -> _Answer:
        store, until = self._store, time.monotonic() + timeout_s
        why = ""
        try:
            return call(store, timeout_s)
        except NoGateway as error:
            why = str(error)
        except Refused as error:
            known_by_certificate = self._connection.cert is not None and self._connection.user is None
            if not known_by_certificate or not USER_EMPTY.is_in(str(error)) or store is not self._store:
                raise
            why = str(error)
        if store is self._store:
            try:
                self._store = _grpc(self._connection, self._timeline, members_only=self._members_only)
            except NoGrpc as error:
                raise NoGrpc(f"{why}; {error}") from None
            store.close()
        try:
            return call(self._store, max(_LEAST_S, until - time.monotonic()))
        except Unreachable as error:
            raise Unreachable(f"{error}; without gRPC: {why}" if why else str(error), error.accepted) from None

    def grant(self, lease: int, ttl_s: int, *, timeout_s: float) -> Lease:
        """See `Store`."""
        store = self._store
        try:
            return self._ask(timeout_s, lambda store, left_s: store.grant(lease, ttl_s, timeout_s=left_s))
        except LeaseExists:
            if store is self._store:
                raise
            return Lease(Header(0, 0, 0), ttl_s)  # the first driver's try was served, and its answer lost

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

    def txns(self, parts: Sequence[Txn], *, timeout_s: float) -> TxnResults:
        """See `Store`."""
        return self._ask(timeout_s, lambda store, left_s: store.txns(parts, timeout_s=left_s))

    def watch(
        self,
        what: Sequence[tuple[Range, int]],
        *,
        deletes_only: bool = False,
        log: Callable[[str], None] = lambda _event: None,
        blind: Callable[[], None] = lambda: None,
    ) -> Watch:
        """See `Store`. The watch keeps the driver that is in use now."""
        return self._store.watch(what, deletes_only=deletes_only, log=log, blind=blind)

    def each_member(self) -> Sequence[Store]:
        """See `Store`. The stores keep the driver that is in use now."""
        return self._store.each_member()

    def renew(self, probe: Range, *, timeout_s: float) -> Sequence[Renewal]:
        """See `Store`. For the driver that is in use now."""
        return self._store.renew(probe, timeout_s=timeout_s)

    def moments(self, revision: int) -> tuple[float | None, float | None]:
        """See `Store`."""
        return self._timeline.moments(revision)

    def close(self) -> None:
        """See `Store`."""
        self._store.close()
