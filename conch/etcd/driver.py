"""The driver on the `etcd3` package: its client for one endpoint, our own fail-over between them."""

import os
import random
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar

from conch.config import Connection
from conch.etcd import protobuf
from conch.etcd.endpoints import Endpoint
from conch.etcd.store import (
    Compare,
    Head,
    Lease,
    LeaseExists,
    LeaseGone,
    Operation,
    Range,
    RangeResult,
    Refused,
    Rejected,
    TxnResult,
    Unreachable,
)
from conch.etcd.watch import DriverWatch

protobuf.install()
# gRPC writes to stderr by itself; what it has to say is in the errors
os.environ.setdefault("GRPC_VERBOSITY", "NONE")

import etcd3  # noqa: E402 - after its protobuf modules can be loaded
import grpc  # noqa: E402
from etcd3 import etcdrpc  # noqa: E402

from conch.etcd.login import Login  # noqa: E402
from conch.etcd.messages import compare_request, head_of, operation, range_request, range_result  # noqa: E402
from conch.etcd.reasons import reason  # noqa: E402

_Answer = TypeVar("_Answer")

# One try on one endpoint; it doubles from round to round, for an etcd that is slow rather than gone.
_TRY_S = 2.0
# What an endpoint gets at least, when many are to be asked in little time.
_SHARE_LEAST_S = 0.3
# Short to the end: sleeping through the end of a fault may cost a hold, and there is one requester a lease.
_PAUSE_S, _PAUSE_MOST_S = 0.05, 0.25

_TRY_ELSEWHERE = frozenset(
    {
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.UNKNOWN,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAUTHENTICATED,
    }
)

# ValueError is gRPC's word for a channel that another thread has closed.
# OSError is a certificate file that is not there just now.
_FAILURES = (grpc.RpcError, etcd3.Etcd3Exception, ValueError, OSError)

_NEEDS_LEADER = ("hasleader", "true")

# Answers of other codes that do not last.
_PASSING = ("too many requests",)

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
    """The system's certificate authorities in one file, for https endpoints without `--cacert`."""
    import ssl

    known = ("/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem")
    for path in (ssl.get_default_verify_paths().cafile, *known):
        if path is not None and os.access(path, os.R_OK):
            return path
    raise Refused("https endpoints need --cacert: this system has no certificate authorities in one file")


def grpc_error(error: BaseException) -> grpc.RpcError | None:
    """The gRPC error behind one of etcd3's exceptions, or the error itself if it is one."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, grpc.RpcError):
            return seen
        seen = seen.__context__
    return None


class GrpcStore:
    """`Store` on etcd3. One connection serves all calls; it moves to another endpoint when one fails."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._endpoints = random.sample(connection.endpoints, len(connection.endpoints))
        self._lock = threading.Lock()
        self._client: Any = None
        self._login = Login(connection)

    # -- connections --------------------------------------------------------------------------------------

    def _open(self, endpoint: Endpoint) -> Any:
        c = self._connection
        # named as DNS's, else gRPC takes a host called "unix" or "ipv4" for a scheme
        host = f"[{endpoint.host}]" if ":" in endpoint.host else endpoint.host
        client = etcd3.client(
            host=f"dns:///{host}",
            port=endpoint.port,
            ca_cert=(c.cacert or system_certificates()) if endpoint.tls else None,
            cert_key=c.key if endpoint.tls else None,
            cert_cert=c.cert if endpoint.tls else None,
            grpc_options=_OPTIONS,
        )
        client.conch_endpoint = endpoint
        return client

    def connected(self) -> Any:
        """The open client, or a new one to the next endpoint of the list."""
        with self._lock:
            if self._client is None:
                # rotated first: one that cannot be opened is not the next to be tried
                self._endpoints.append(self._endpoints.pop(0))
                self._client = self._open(self._endpoints[-1])
            return self._client

    def leave(self, client: Any) -> None:
        """Close a client that failed; the next call opens one to another endpoint."""
        with self._lock:
            if client is self._client:
                self._client = None
        client.close()

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            client, self._client = self._client, None
        if client is not None:
            client.close()

    def _call(
        self,
        what: str,
        timeout_s: float,
        call: Callable[[Any, dict[str, Any]], _Answer],
        verdict: Callable[[grpc.RpcError, bool], _Answer | None] = lambda _error, _again: None,
    ) -> _Answer:
        """Call on one endpoint after the other until one answers; in rounds, with back-off, until the timeout.

        `verdict(error, again)` may turn an error into an answer; `again` says that the call was tried before.
        """
        until = time.monotonic() + timeout_s
        try_s, pause_s, tries = _TRY_S, _PAUSE_S, 0
        failures: dict[str, str] = {}
        while True:
            members = len(self._endpoints)
            for at in range(members):
                left_s = until - time.monotonic()
                if left_s <= 0:
                    break
                # those that are still to be asked in this round get their share of the time
                limit_s = min(left_s, try_s, max(_SHARE_LEAST_S, left_s / (members - at)))
                ends_at = time.monotonic() + limit_s
                client = None
                try:
                    client = self.connected()
                    who = self._login.metadata(client, limit_s)
                    timeout_s_left = max(0.001, ends_at - time.monotonic())
                    # a member without a leader says so at once, asked this way, instead of leaving us to wait
                    return call(client, {"timeout": timeout_s_left, "metadata": (*who, _NEEDS_LEADER)})
                except _FAILURES as raised:
                    error = grpc_error(raised)
                    if error is not None and client is not None:
                        answer = verdict(error, tries > 0)
                        if answer is not None:
                            return answer
                    tries += 1
                    endpoint = str(client.conch_endpoint if client is not None else self._endpoints[-1])
                    failures[endpoint] = self._judge(what, error, raised, endpoint)
                    if client is not None:
                        self.leave(client)
            left_s = until - time.monotonic()
            if left_s <= 0:
                tried = "; ".join(f"{name}: {why}" for name, why in failures.items()) or "no time was left"
                raise Unreachable(f"cannot {what}: no endpoint answered within {timeout_s:.3g} s ({tried})")
            time.sleep(min(left_s, random.uniform(pause_s / 2, pause_s)))
            pause_s, try_s = min(2 * pause_s, _PAUSE_MOST_S), 2 * try_s

    def _judge(self, what: str, error: grpc.RpcError | None, raised: Exception, endpoint: str) -> str:
        """Why another endpoint is worth a try; raises what is an answer."""
        if error is None:
            if isinstance(raised, OSError) and raised.filename:
                return f"cannot read {raised.filename}: {raised.strerror}"
            # a client that another thread closed under us ("Cannot invoke RPC on closed channel!")
            return str(raised).splitlines()[0] if str(raised) else type(raised).__name__
        if self._login.heed(error, endpoint):
            return reason(error)
        code = error.code()
        details = str(error.details() or "").splitlines()[0] if error.details() else ""
        if code is grpc.StatusCode.INVALID_ARGUMENT and "authentication failed" in details:
            raise Refused(f"cannot {what}: etcd refuses the user or password")
        if code is grpc.StatusCode.PERMISSION_DENIED or (
            code is grpc.StatusCode.INVALID_ARGUMENT and "user name is empty" in details
        ):
            raise Refused(f"cannot {what}: etcd refuses it ({details})")
        if code is grpc.StatusCode.NOT_FOUND and "lease not found" in details:
            raise LeaseGone(f"cannot {what}: the lease is gone")
        if code in _TRY_ELSEWHERE or any(sign in details for sign in _PASSING):
            return reason(error)
        raise Rejected(f"cannot {what}: etcd answered: {details or code.name}")

    # -- calls --------------------------------------------------------------------------------------------

    def grant(self, lease: int, ttl_s: int, *, timeout_s: float) -> Lease:
        """See `Store`."""
        request = etcdrpc.LeaseGrantRequest(TTL=ttl_s, ID=lease)

        def call(client: Any, how: dict[str, Any]) -> Lease:
            answer = client.leasestub.LeaseGrant(request, **how)
            return Lease(head_of(answer.header), answer.TTL)

        def verdict(error: grpc.RpcError, again: bool) -> Lease | None:
            if again and error.code() is grpc.StatusCode.FAILED_PRECONDITION:
                return Lease(Head(0, 0, 0), ttl_s)  # an earlier try was made, its answer lost
            if error.code() is grpc.StatusCode.FAILED_PRECONDITION and "lease already exists" in (
                error.details() or ""
            ):
                raise LeaseExists(f"cannot get lease {lease:x}: it exists already")
            return None

        return self._call("get a lease", timeout_s, call, verdict)

    def keep_alive(self, lease: int, *, timeout_s: float) -> Lease:
        """See `Store`."""
        request = etcdrpc.LeaseKeepAliveRequest(ID=lease)

        def call(client: Any, how: dict[str, Any]) -> Lease:
            stream = client.leasestub.LeaseKeepAlive(iter((request,)), **how)
            for answer in stream:
                return Lease(head_of(answer.header), answer.TTL)
            raise ValueError("the stream ended without an answer")

        return self._call(f"renew lease {lease:x}", timeout_s, call)

    def revoke(self, lease: int, *, timeout_s: float) -> None:
        """See `Store`."""
        request = etcdrpc.LeaseRevokeRequest(ID=lease)
        try:
            self._call(
                f"revoke lease {lease:x}",
                timeout_s,
                lambda client, how: client.leasestub.LeaseRevoke(request, **how),
            )
        except LeaseGone:
            pass  # it expired, or an earlier try was made and its answer lost

    def range(self, what: Range, *, timeout_s: float) -> RangeResult:
        """See `Store`."""
        request = range_request(what)
        return self._call(
            f"read {what.key.decode('utf-8', 'replace')}",
            timeout_s,
            lambda client, how: range_result(client.kvstub.Range(request, **how)),
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
        request = etcdrpc.TxnRequest(
            compare=[compare_request(one) for one in compare],
            success=[operation(one) for one in success],
            failure=[operation(one) for one in failure],
        )

        def call(client: Any, how: dict[str, Any]) -> TxnResult:
            answer = client.kvstub.Txn(request, **how)
            head = head_of(answer.header)
            ranges = tuple(
                range_result(one.response_range, head)
                for one in answer.responses
                if one.WhichOneof("response") == "response_range"
            )
            return TxnResult(head, answer.succeeded, ranges)

        return self._call("make a transaction", timeout_s, call)

    def watch(
        self,
        what: Sequence[tuple[Range, int]],
        *,
        deletes_only: bool = False,
        tell: Callable[[str], None] = lambda _event: None,
    ) -> DriverWatch:
        """See `Store`."""
        filters = [etcdrpc.WatchCreateRequest.NOPUT] if deletes_only else []

        def request(one: Range, revision: int) -> Any:
            return etcdrpc.WatchRequest(
                create_request=etcdrpc.WatchCreateRequest(
                    key=one.key, range_end=one.end, start_revision=revision, filters=filters
                )
            )

        def open_stream(requests: Any) -> tuple[Any, Any]:
            client = self.connected()
            try:
                who = self._login.metadata(client, _TRY_S)
            except _FAILURES as raised:
                endpoint = str(client.conch_endpoint)
                why = self._judge("log in", grpc_error(raised), raised, endpoint)
                self.leave(client)
                raise ValueError(f"{endpoint}: {why}") from None
            stub = etcdrpc.WatchStub(client.channel)
            return client, stub.Watch(requests, metadata=(*who, _NEEDS_LEADER))

        return DriverWatch(what, request, open_stream, self.leave, self._login.forget, _FAILURES, tell)
