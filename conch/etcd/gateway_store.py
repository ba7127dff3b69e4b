"""The driver on etcd's JSON gateway instead of gRPC, for commands that must start fast and stay small."""

from conch.etcd import gateway_codec as codec
from conch.etcd.answers import BadAnswer
from conch.etcd.call_errors import CallError, granted_before
from conch.etcd.certificates import tls_context
from conch.etcd.connection import Connection
from conch.etcd.endpoints import Endpoint
from conch.etcd.failover import FailOver
from conch.etcd.gateway_codec import GatewayError
from conch.etcd.gateway_http import Gateway, HungUp, NoGateway
from conch.etcd.gateway_watch import ALIVE_S, WatchStream
from conch.etcd.store import (
    Compare,
    Header,
    Lease,
    LeaseGone,
    Operation,
    Range,
    RangeResult,
    Txn,
    TxnResult,
    TxnResults,
)
from conch.etcd.timeline import Timeline
from conch.etcd.watch import DriverWatch
from conch.static_typing import Any, Callable, Sequence, TypeVar

_Read = TypeVar("_Read")
_Call = Callable[[Gateway, str | None, float], _Read]

_LOGIN_S = 2.0
_OPEN_S = 2.0


class HttpStore(FailOver[Gateway]):
    """`Store` over the JSON gateway. Raises `NoGateway` where there is none."""

    failures: tuple[type[Exception], ...] = (OSError, GatewayError, BadAnswer, ValueError)
    # a watch goes on to another member; a request's caller may choose another driver
    _watch_failures: tuple[type[Exception], ...] = (*failures, NoGateway)

    def __init__(self, connection: Connection, timeline: Timeline | None = None, *, tentative: bool = False) -> None:
        """`tentative`: until the first well-formed answer, raise `NoGateway` for a malformed one."""
        super().__init__(connection, timeline)
        self._tentative = tentative
        self._opened: dict[Endpoint, int] = {}
        if connection.transport == "http":
            self.failures = self._watch_failures  # there is no other driver: another endpoint may have a gateway

    def _open(self, endpoint: Endpoint) -> Gateway:
        # an address that accepts connections and answers nothing must not be the first again
        first_address = self._opened.get(endpoint, 0)
        self._opened[endpoint] = first_address + 1
        # certificates are read anew for each connection: they may have been replaced
        return Gateway(endpoint, tls_context(self._connection) if endpoint.tls else None, first_address)

    def _call_error(self, raised: Exception) -> CallError:
        if isinstance(raised, GatewayError):
            return CallError(raised.code, str(raised))
        if isinstance(raised, TimeoutError):
            return CallError(None, "deadline exceeded")
        if isinstance(raised, OSError) and raised.filename and not isinstance(raised, ConnectionError):
            return CallError(None, f"cannot read {raised.filename}: {raised.strerror}")
        refused = getattr(raised, "verify_message", None)  # of ssl, which may not be loaded
        if refused is not None:
            mismatch = "mismatch" in refused or "not valid for" in refused
            return CallError(None, "hostname verification" if mismatch else f"CERTIFICATE_VERIFY_FAILED: {refused}")
        return CallError(None, str(getattr(raised, "strerror", None) or raised) or type(raised).__name__)

    def _authenticate(self, client: Gateway, user: str, password: str, timeout_s: float) -> str:
        return self._ask("/v3/auth/authenticate", codec.login(user, password), codec.token)(client, None, timeout_s)

    def _ask(self, path: str, body: bytes, read: Callable[[dict[str, Any]], _Read]) -> "_Call[_Read]":
        """Return a call that sends a request and reads its answer; `read` may raise `BadAnswer`."""

        def call(client: Gateway, token: str | None, limit_s: float) -> _Read:
            try:
                answer = read(client.ask(path, body, token, limit_s))
            except GatewayError:
                self._tentative = False
                raise
            except (BadAnswer, HungUp) as raised:
                if self._tentative:
                    raise NoGateway(f"etcd's JSON gateway is not there: {raised}") from None
                raise
            self._tentative = False
            return answer

        return call

    # -- calls --------------------------------------------------------------------------------------------

    def grant(self, lease: int, ttl_s: int, *, timeout_s: float) -> Lease:
        """See `Store`."""
        ask = self._ask("/v3/lease/grant", codec.grant(lease, ttl_s), lambda answer: codec.granted(lease, answer))
        return self._call(
            "get a lease", timeout_s, ask, lambda error, tried_before: granted_before(lease, ttl_s, error, tried_before)
        )

    def keep_alive(self, lease: int, *, timeout_s: float) -> Lease:
        """See `Store`."""
        ask = self._ask("/v3/lease/keepalive", codec.lease_id(lease), lambda answer: codec.renewed(lease, answer))
        return self._call(f"renew lease {lease:x}", timeout_s, ask)

    def revoke(self, lease: int, *, timeout_s: float) -> None:
        """See `Store`."""
        try:
            self._call(
                f"revoke lease {lease:x}",
                timeout_s,
                self._ask("/v3/lease/revoke", codec.lease_id(lease), codec.header),
            )
        except LeaseGone:
            pass  # it expired, or an earlier try was made and its answer lost

    def range(self, what: Range, *, timeout_s: float) -> RangeResult:
        """See `Store`."""
        ask = self._ask("/v3/kv/range", codec.read_range(what), lambda answer: codec.found(what, answer))
        return self._call(f"read {what.key.decode('utf-8', 'replace')}", timeout_s, ask)

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
        ask = self._ask("/v3/kv/txn", codec.transact(txn), lambda answer: codec.transaction(txn, answer))
        return self._call("make a transaction", timeout_s, ask)

    def txns(self, parts: Sequence[Txn], *, timeout_s: float) -> TxnResults:
        """See `Store`."""
        body = codec.transact_all(parts, self.never_taken(parts))
        ask = self._ask("/v3/kv/txn", body, lambda answer: codec.transactions(parts, answer))
        return self._call("make transactions", timeout_s, ask)

    def watch(
        self,
        what: Sequence[tuple[Range, int]],
        *,
        deletes_only: bool = False,
        log: Callable[[str], None] = lambda _event: None,
        blind: Callable[[], None] = lambda: None,
    ) -> DriverWatch:
        """See `Store`."""
        ended = False  # whether the next stream's request ends before its answer begins

        def open_stream(ranges: Sequence[tuple[Range, int]]) -> WatchStream:
            nonlocal ended
            client = self.connected()
            try:
                token = self._token(client, _LOGIN_S)
                requests = b"".join(codec.watch(*watched, deletes_only=deletes_only) for watched in ranges)
                alive = self._ask("/v3/kv/range", codec.local_read(ranges[0][0].key), codec.header)
                stream = client.stream("/v3/watch", requests, token, _OPEN_S, ended=ended)
                return WatchStream(
                    client, stream, len(ranges), deletes_only, lambda: _check_alive(alive, client, token)
                )
            except self._watch_failures as raised:
                ended = not ended  # a proxy between us and etcd may accept no request that goes on
                try:
                    self._classify("watch", self._call_error(raised), str(client.conch_endpoint))
                finally:
                    self.drop_connection(client)
                raise

        return self._new_watch(what, open_stream, self._watch_failures, log, blind)


def _check_alive(ask: "_Call[Header]", client: Gateway, token: str | None) -> None:
    """Raise unless the member answers a request: a stopped one keeps a silent stream open for ever."""
    if client.answered_lately:
        return
    try:
        ask(client, token, ALIVE_S)
    except GatewayError:
        pass  # it answers
