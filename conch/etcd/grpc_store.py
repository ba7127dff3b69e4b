"""The driver on the `etcd3` package: its client for one endpoint, our own fail-over between them."""

import os
import queue
import time
from functools import partial

from conch.etcd import grpc_descriptors
from conch.etcd.answers import BadAnswer
from conch.etcd.call_errors import CallError, granted_before
from conch.etcd.connection import Connection
from conch.etcd.endpoints import Endpoint
from conch.etcd.failover import FailOver
from conch.etcd.store import (
    Compare,
    Lease,
    LeaseGone,
    Operation,
    Range,
    RangeResult,
    Refused,
    Txn,
    TxnResult,
    TxnResults,
    Unfit,
)
from conch.etcd.timeline import Timeline
from conch.etcd.watch import Answer, DriverWatch
from conch.static_typing import Any, Callable, Iterator, Sequence

grpc_descriptors.install()
# gRPC writes to stderr by itself; the errors have the same text
os.environ.setdefault("GRPC_VERBOSITY", "NONE")
# gRPC's own resolver tries one address of a name that has several in /etc/hosts; the system's returns all of them
os.environ.setdefault("GRPC_DNS_RESOLVER", "native")

import etcd3  # noqa: E402 - after its protobuf modules can be loaded
import grpc  # noqa: E402
from etcd3 import etcdrpc  # noqa: E402

from conch.etcd import grpc_codec  # noqa: E402
from conch.etcd.grpc_codec import range_request  # noqa: E402

# gRPC raises ValueError for a channel that another thread has closed; OSError is a missing certificate file.
_FAILURES = (grpc.RpcError, etcd3.Etcd3Exception, BadAnswer, ValueError, OSError, Unfit)

_NEEDS_LEADER = ("hasleader", "true")

_LOGIN_S = 2.0

# Every member of etcd serves this without a login; `etcd grpc-proxy` never does.
_HEALTH = "/grpc.health.v1.Health/Check"
_PROXY = (
    "it is no member of etcd but its grpc-proxy, which answers renewals by a timer of its own: "
    "give conch the members themselves, or etcd's gateway"
)

_OPTIONS = (
    ("grpc.enable_http_proxy", 0),
    ("grpc.use_local_subchannel_pool", 1),  # else a new channel gets the hung connection of the old one
    ("grpc.keepalive_time_ms", 5000),  # etcd refuses more frequent pings
    ("grpc.keepalive_timeout_ms", 1500),
    ("grpc.http2.ping_timeout_ms", 1500),
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.max_receive_message_length", -1),
)


def system_certificates() -> str:
    """Return the file with the system's certificate authorities, for https endpoints without `--cacert`."""
    import ssl

    known = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
    for path in (ssl.get_default_verify_paths().cafile, *known):
        if path is not None and os.access(path, os.R_OK):
            return path
    raise Refused("https endpoints need --cacert: this system has no certificate authorities in one file")


def grpc_error(error: BaseException) -> grpc.RpcError | None:
    """Return the gRPC error behind one of etcd3's exceptions, or the error itself if it is one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, grpc.RpcError):
            return seen
        seen = seen.__context__
    return None


def _metadata(token: str | None) -> tuple[tuple[str, str], ...]:
    # with `hasleader`, a member without a leader says so immediately, instead of keeping us waiting
    return (_NEEDS_LEADER,) if token is None else (("token", token), _NEEDS_LEADER)


def _call_options(token: str | None, timeout_s: float) -> dict[str, Any]:
    return {"timeout": timeout_s, "metadata": _metadata(token)}


class GrpcStore(FailOver[Any]):
    """`Store` on etcd3."""

    failures = _FAILURES

    def __init__(self, connection: Connection, timeline: Timeline | None = None, *, members_only: bool = False) -> None:
        """`members_only`: do not use an endpoint that is etcd's grpc-proxy. Renewals never do."""
        super().__init__(connection, timeline)
        self._members_only = members_only

    def _open(self, endpoint: Endpoint) -> Any:
        connection = self._connection
        # with the scheme dns, else gRPC takes a host called "unix" or "ipv4" for a scheme
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        client = etcd3.client(
            host=f"dns:///{host}",
            port=endpoint.port,
            ca_cert=(connection.cacert or system_certificates()) if endpoint.tls else None,
            cert_key=connection.key if endpoint.tls else None,
            cert_cert=connection.cert if endpoint.tls else None,
            grpc_options=_OPTIONS,
        )
        client.conch_endpoint = endpoint
        client.conch_member = False  # not known yet
        return client

    def _call_error(self, raised: Exception) -> CallError:
        error = grpc_error(raised)
        if error is not None:
            return CallError(error.code().value[0], str(error.details() or ""))
        if isinstance(raised, OSError) and raised.filename:
            return CallError(None, f"cannot read {raised.filename}: {raised.strerror}")
        # a client that another thread closed under us ("Cannot invoke RPC on closed channel!")
        return CallError(None, str(raised) or type(raised).__name__)

    def _token(self, client: Any, limit_s: float) -> str | None:
        if self._members_only:
            limit_s = self._check_member(client, limit_s)
        return super()._token(client, limit_s)

    @staticmethod
    def _check_member(client: Any, timeout_s: float) -> float:
        """Raise `Unfit` unless a member of etcd itself answers; return the time that is left.

        The answer to a keepalive proves a renewal only if etcd gave it, to this very keepalive. (A proxy's keepalives
        are sent by a timer, to any member; it returns the latest answer, or none.)
        """
        until = time.monotonic() + timeout_s
        if not client.conch_member:
            health = client.channel.unary_unary(_HEALTH, bytes, bytes).future(b"", timeout=timeout_s)
            if health.code() is grpc.StatusCode.UNIMPLEMENTED:
                raise Unfit(_PROXY)
            health.result()  # raises the error, if there was one
            client.conch_member = True
        return max(0.001, until - time.monotonic())

    def _authenticate(self, client: Any, user: str, password: str, timeout_s: float) -> str:
        request = etcdrpc.AuthenticateRequest(name=user, password=password)
        return grpc_codec.token(etcdrpc.AuthStub(client.channel).Authenticate(request, timeout_s))

    # -- calls --------------------------------------------------------------------------------------------

    def grant(self, lease: int, ttl_s: int, *, timeout_s: float) -> Lease:
        """See `Store`."""
        request = etcdrpc.LeaseGrantRequest(TTL=ttl_s, ID=lease)

        def call(client: Any, token: str | None, timeout_s: float) -> Lease:
            return grpc_codec.granted(lease, client.leasestub.LeaseGrant(request, **_call_options(token, timeout_s)))

        return self._call(
            "get a lease",
            timeout_s,
            call,
            partial(granted_before, lease, ttl_s),
        )

    def keep_alive(self, lease: int, *, timeout_s: float) -> Lease:
        """See `Store`."""
        request = etcdrpc.LeaseKeepAliveRequest(ID=lease)

        def call(client: Any, token: str | None, timeout_s: float) -> Lease:
            left_s = self._check_member(client, timeout_s)
            stream = client.leasestub.LeaseKeepAlive(iter((request,)), **_call_options(token, left_s))
            for answer in stream:
                return grpc_codec.renewed(lease, answer)
            raise ValueError("the stream ended without an answer")

        return self._call(f"renew lease {lease:x}", timeout_s, call)

    def revoke(self, lease: int, *, timeout_s: float) -> None:
        """See `Store`."""
        request = etcdrpc.LeaseRevokeRequest(ID=lease)
        try:
            self._call(
                f"revoke lease {lease:x}",
                timeout_s,
                lambda client, token, limit_s: grpc_codec.header(
                    client.leasestub.LeaseRevoke(request, **_call_options(token, limit_s))
                ),
            )
        except LeaseGone:
            pass  # it expired, or an earlier try was made and its answer lost

    def range(self, what: Range, *, timeout_s: float) -> RangeResult:
        """See `Store`."""
        request = range_request(what)
        return self._call(
            f"read {what.key.decode('utf-8', 'replace')}",
            timeout_s,
            lambda client, token, limit_s: grpc_codec.range_result(
                what, client.kvstub.Range(request, **_call_options(token, limit_s))
            ),
        )

    def txn(
        self,
        compare: Sequence[Compare],
        success: Sequence[Operation],
        failure: Sequence[Operation] = (),
        *,
        timeout_s: float,
    ) -> TxnResult:
        """See `Store`."""
        txn = Txn(tuple(compare), tuple(success), tuple(failure))
        request = grpc_codec.txn_request(txn)
        return self._call(
            "make a transaction",
            timeout_s,
            lambda client, token, limit_s: grpc_codec.txn_result(
                txn, client.kvstub.Txn(request, **_call_options(token, limit_s))
            ),
        )

    def txns(self, parts: Sequence[Txn], *, timeout_s: float) -> TxnResults:
        """See `Store`."""
        request = grpc_codec.txns_request(parts, self.never_taken(parts))
        return self._call(
            "make transactions",
            timeout_s,
            lambda client, token, limit_s: grpc_codec.txns_result(
                parts, client.kvstub.Txn(request, **_call_options(token, limit_s))
            ),
        )

    def watch(
        self,
        what: Sequence[tuple[Range, int]],
        *,
        deletes_only: bool = False,
        log: Callable[[str], None] = lambda _event: None,
        blind: Callable[[], None] = lambda: None,
    ) -> DriverWatch:
        """See `Store`."""
        filters = [etcdrpc.WatchCreateRequest.NOPUT] if deletes_only else []

        def request(what: Range, revision: int) -> Any:
            return etcdrpc.WatchRequest(
                create_request=etcdrpc.WatchCreateRequest(
                    key=what.key, range_end=what.end, start_revision=revision, filters=filters
                )
            )

        def open_stream(ranges: Sequence[tuple[Range, int]]) -> _Stream:
            client = self.connected()
            try:
                token = self._token(client, _LOGIN_S)
            except _FAILURES as raised:
                endpoint = str(client.conch_endpoint)
                why = self._classify("log in", self._call_error(raised), endpoint)
                self.drop_connection(client)
                raise ValueError(f"{endpoint}: {why}") from None
            return _Stream(client, token, request, ranges)

        return self._new_watch(what, open_stream, _FAILURES, log, blind)


class _Stream:
    """A watch's stream over gRPC; it takes further ranges while it runs."""

    def __init__(
        self,
        client: Any,
        token: str | None,
        request: Callable[[Range, int], Any],
        ranges: Sequence[tuple[Range, int]],
    ) -> None:
        self.client = client
        self._request = request
        self._requests: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self._call = etcdrpc.WatchStub(client.channel).Watch(iter(self._requests.get, None), metadata=_metadata(token))
        for what, revision in ranges:
            self.add(what, revision)

    def __iter__(self) -> Iterator[Answer]:
        return map(grpc_codec.watch_answer, self._call)

    def add(self, what: Range, revision: int) -> bool:
        self._requests.put(self._request(what, revision))
        return True

    def cancel(self) -> None:
        self._call.cancel()

    def close(self) -> None:
        self._requests.put(None)
