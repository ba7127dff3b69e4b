"""The light driver: etcd's JSON gateway instead of gRPC, for commands that must start fast and stay small."""

import json
from base64 import b64decode, b64encode
from collections.abc import Callable, Sequence

from conch.config import Connection
from conch.etcd.endpoints import Endpoint
from conch.etcd.failover import FailOver, Trouble, granted
from conch.etcd.http import SILENCE_S, BadAnswer, Gateway, GatewayError, HungUp, NoGateway, Stream
from conch.etcd.store import (
    Below,
    Compare,
    CreatedAt,
    Delete,
    Event,
    Head,
    KeyValue,
    Lease,
    LeaseGone,
    ModifiedAt,
    Operation,
    Put,
    Range,
    RangeResult,
    TxnResult,
)
from conch.etcd.watch import Answer, DriverWatch
from conch.hints import Any

_LOGIN_S = 2.0
_OPEN_S = 2.0
_ALIVE_S = 1.5
_QUIET_S = 15.0


class HttpStore(FailOver[Gateway]):
    """`Store` over the JSON gateway. Raises `NoGateway` where there is none."""

    failures: tuple[type[Exception], ...] = (OSError, GatewayError, BadAnswer, ValueError)
    # a watch goes on to another member; a request's caller may choose another driver
    _watch_failures: tuple[type[Exception], ...] = (*failures, NoGateway)

    def __init__(self, connection: Connection, *, tentative: bool = False) -> None:
        """`tentative`: unless something answers as a gateway does, raise `NoGateway` for whatever else it says."""
        super().__init__(connection)
        self._tentative = tentative
        self._opened: dict[Endpoint, int] = {}
        if connection.transport == "http":
            self.failures = self._watch_failures  # there is no other driver: another endpoint may have a gateway

    def _open(self, endpoint: Endpoint) -> Gateway:
        # An address that takes connections and answers nothing must not be the first again.
        turn = self._opened.get(endpoint, 0)
        self._opened[endpoint] = turn + 1
        # certificates are read anew for each connection: they may have been replaced
        return Gateway(endpoint, tls_context(self._connection) if endpoint.tls else None, turn)

    def _trouble(self, raised: Exception) -> Trouble:
        if isinstance(raised, GatewayError):
            return Trouble(raised.code, str(raised))
        if isinstance(raised, TimeoutError):
            return Trouble(None, "deadline exceeded")
        if isinstance(raised, OSError) and raised.filename and not isinstance(raised, ConnectionError):
            return Trouble(None, f"cannot read {raised.filename}: {raised.strerror}")
        refused = getattr(raised, "verify_message", None)  # of ssl, which may not be loaded
        if refused is not None:
            mismatch = "mismatch" in refused or "not valid for" in refused
            return Trouble(None, "hostname verification" if mismatch else f"CERTIFICATE_VERIFY_FAILED: {refused}")
        return Trouble(None, str(getattr(raised, "strerror", None) or raised) or type(raised).__name__)

    def _authenticate(self, client: Gateway, user: str, password: str, timeout_s: float) -> str:
        body = _body({"name": user, "password": password})
        answer = self._request(client, "/v3/auth/authenticate", body, None, timeout_s)
        token = answer.get("token")
        if not isinstance(token, str):
            raise BadAnswer("a login without a token")
        return token

    def _ask(self, path: str, request: dict[str, Any]) -> Callable[[Gateway, str | None, float], Any]:
        body = _body(request)
        return lambda client, token, limit_s: self._request(client, path, body, token, limit_s)

    def _request(self, client: Gateway, path: str, body: bytes, token: str | None, limit_s: float) -> Any:
        try:
            answer = client.ask(path, body, token, limit_s)
        except GatewayError:
            self._tentative = False
            raise
        except (BadAnswer, HungUp) as raised:
            if self._tentative:
                raise NoGateway(f"etcd's JSON gateway is not there: {raised}") from None
            raise
        self._tentative = False
        return answer

    # -- calls --------------------------------------------------------------------------------------------

    def grant(self, lease: int, ttl_s: int, *, timeout_s: float) -> Lease:
        """See `Store`."""
        ask = self._ask("/v3/lease/grant", {"TTL": str(ttl_s), "ID": str(lease)})

        def call(client: Gateway, token: str | None, limit_s: float) -> Lease:
            return _lease(ask(client, token, limit_s))

        return self._call("get a lease", timeout_s, call, lambda trouble, again: granted(trouble, again, lease, ttl_s))

    def keep_alive(self, lease: int, *, timeout_s: float) -> Lease:
        """See `Store`."""
        ask = self._ask("/v3/lease/keepalive", {"ID": str(lease)})
        return self._call(
            f"renew lease {lease:x}", timeout_s, lambda client, token, limit_s: _lease(ask(client, token, limit_s))
        )

    def revoke(self, lease: int, *, timeout_s: float) -> None:
        """See `Store`."""
        ask = self._ask("/v3/lease/revoke", {"ID": str(lease)})
        try:
            self._call(f"revoke lease {lease:x}", timeout_s, ask)
        except LeaseGone:
            pass  # it expired, or an earlier try was made and its answer lost

    def range(self, what: Range, *, timeout_s: float) -> RangeResult:
        """See `Store`."""
        ask = self._ask("/v3/kv/range", _range(what))
        return self._call(
            f"read {what.key.decode('utf-8', 'replace')}",
            timeout_s,
            lambda client, token, limit_s: _found(ask(client, token, limit_s)),
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
        request = {
            "compare": [_compare(one) for one in compare],
            "success": [_operation(one) for one in success],
            "failure": [_operation(one) for one in failure],
        }
        ask = self._ask("/v3/kv/txn", request)

        def call(client: Gateway, token: str | None, limit_s: float) -> TxnResult:
            answer = ask(client, token, limit_s)
            head = _head(answer)
            made = [one["response_range"] for one in answer.get("responses", ()) if "response_range" in one]
            return TxnResult(head, bool(answer.get("succeeded")), tuple(_found(one, head) for one in made))

        return self._call("make a transaction", timeout_s, call)

    def watch(
        self,
        what: Sequence[tuple[Range, int]],
        *,
        deletes_only: bool = False,
        tell: Callable[[str], None] = lambda _event: None,
        blind: Callable[[], None] = lambda: None,
    ) -> DriverWatch:
        """See `Store`."""
        ended = False

        def open_stream(wanted: Sequence[tuple[Range, int]]) -> "_Stream":
            nonlocal ended
            client = self.connected()
            try:
                token = self._token(client, _LOGIN_S)
                requests = b"".join(_body(_watched(one, revision, deletes_only)) for one, revision in wanted)
                alive = self._ask("/v3/kv/range", {**_range(wanted[0][0]), "limit": "1", "serializable": True})
                stream = client.stream("/v3/watch", requests, token, _OPEN_S, ended=ended)
                return _Stream(client, stream, len(wanted), deletes_only, lambda: _check_alive(alive, client, token))
            except self._watch_failures as raised:
                ended = not ended  # what is between us and etcd may take no request that goes on
                try:
                    self._judge("watch", self._trouble(raised), str(client.conch_endpoint))
                finally:
                    self.leave(client)
                raise

        return DriverWatch(what, open_stream, self.leave, self._login.forget, self._watch_failures, tell, blind)


def _check_alive(ask: Callable[[Gateway, str | None, float], Any], client: Gateway, token: str | None) -> None:
    """Raise unless the member answers something: a stopped one keeps a silent stream open for ever."""
    if client.answered_lately:
        return
    try:
        ask(client, token, _ALIVE_S)
    except GatewayError:
        pass  # it answers


class _Stream:
    """A watch's stream. After a silence it asks whether it still is one, and whether all its watches were made."""

    def __init__(
        self, client: Gateway, stream: Stream, asked: int, deletes_only: bool, check_alive: Callable[[], None]
    ) -> None:
        self.client = client
        self._stream = stream
        self._asked = asked
        self._confirmed = 0
        self._asked_before = -1  # at the silence before
        self._probed = False
        self._deletes_only = deletes_only
        self._check_alive = check_alive
        stream.on_silence = self._check
        stream.silence_s = self._silence_s

    def __iter__(self) -> Any:
        for answer in self._stream:
            self._probed = False
            made = _watch_answer(answer)
            self._confirmed += made.created
            yield made

    def add(self, what: Range, revision: int) -> bool:
        self._asked += 1
        return self._stream.add(_body(_watched(what, revision, self._deletes_only)))

    def cancel(self) -> None:
        self._stream.cancel()

    def close(self) -> None:
        self._stream.close()

    def _silence_s(self) -> float:
        if self._probed:
            return _ALIVE_S
        # who watches for deletions alone is a keeper: its renewals notice a silent member sooner
        return _QUIET_S if self._deletes_only and self._confirmed >= self._asked else SILENCE_S

    def _check(self) -> None:
        if self._probed:
            raise TimeoutError("the stream does not answer")
        if self._confirmed < self._asked == self._asked_before:  # what is between us and etcd may hold requests back
            raise BadAnswer("not all watches of a stream were confirmed")
        self._asked_before = self._asked
        # the stream itself is asked where it can be: other requests may go to another member
        self._probed = self._stream.add(_body({"progress_request": {}}))
        if not self._probed:
            self._check_alive()


def tls_context(connection: Connection) -> Any:
    """Certificates and host names are always verified. `OSError` that names a file that cannot be read."""
    import ssl  # late: only https pays for it

    for path in (connection.cacert, connection.cert, connection.key):
        if path is not None:
            open(path, "rb").close()
    context = ssl.create_default_context(cafile=connection.cacert)
    if connection.cert is not None:
        context.load_cert_chain(connection.cert, connection.key, password=lambda: "")
    return context


# -- between the gateway's JSON and ours: 64-bit numbers are texts, bytes are base64, zeros are left out -----------


def _body(request: dict[str, Any]) -> bytes:
    return json.dumps(request).encode()


def _text(data: bytes) -> str:
    return b64encode(data).decode()


def _number(answer: dict[str, Any], field: str) -> int:
    return int(answer.get(field, 0))


def _head(answer: dict[str, Any]) -> Head:
    header = answer.get("header", {})
    return Head(_number(header, "revision"), _number(header, "member_id"), _number(header, "raft_term"))


def _lease(answer: dict[str, Any]) -> Lease:
    return Lease(_head(answer), _number(answer, "TTL"))


def _key_value(kv: dict[str, Any]) -> KeyValue:
    return KeyValue(
        b64decode(kv.get("key", "")),
        b64decode(kv.get("value", "")),
        _number(kv, "create_revision"),
        _number(kv, "mod_revision"),
        _number(kv, "lease"),
    )


def _found(answer: dict[str, Any], head: Head | None = None) -> RangeResult:
    kvs = tuple(_key_value(kv) for kv in answer.get("kvs", ()))
    return RangeResult(head or _head(answer), kvs, _number(answer, "count"))


def _range(what: Range) -> dict[str, Any]:
    request: dict[str, Any] = {"key": _text(what.key)}
    if what.end:
        request["range_end"] = _text(what.end)
    if what.limit:
        request["limit"] = str(what.limit)
    if what.newest_first or what.oldest_first:
        request["sort_target"] = "CREATE"
        request["sort_order"] = "DESCEND" if what.newest_first else "ASCEND"
    elif what.last_first:
        request["sort_target"], request["sort_order"] = "KEY", "DESCEND"
    if what.created_by:
        request["max_create_revision"] = str(what.created_by)
    if what.keys_only:
        request["keys_only"] = True
    return request


def _compare(one: Compare) -> dict[str, Any]:
    match one:
        case CreatedAt(key, revision):
            return {"result": "EQUAL", "target": "CREATE", "key": _text(key), "create_revision": str(revision)}
        case ModifiedAt(key, revision):
            return {"result": "EQUAL", "target": "MOD", "key": _text(key), "mod_revision": str(revision)}
        case Below(key, value):
            return {"result": "LESS", "target": "VALUE", "key": _text(key), "value": _text(value)}


def _operation(one: Operation) -> dict[str, Any]:
    match one:
        case Range():
            return {"request_range": _range(one)}
        case Put(key, value, lease):
            return {"request_put": {"key": _text(key), "value": _text(value), "lease": str(lease)}}
        case Delete(key):
            return {"request_delete_range": {"key": _text(key)}}


def _watched(what: Range, revision: int, deletes_only: bool) -> dict[str, Any]:
    request: dict[str, Any] = {"key": _text(what.key), "start_revision": str(revision)}
    if what.end:
        request["range_end"] = _text(what.end)
    if deletes_only:
        request["filters"] = ["NOPUT"]
    return {"create_request": request}


def _watch_answer(answer: dict[str, Any]) -> Answer:
    events = tuple(
        Event(_key_value(one["kv"]), one.get("type") == "DELETE") for one in answer.get("events", ()) if "kv" in one
    )
    return Answer(
        _number(answer, "watch_id"),
        bool(answer.get("created")),
        bool(answer.get("canceled")),
        str(answer.get("cancel_reason", "")),
        _number(answer, "compact_revision"),
        events,
    )
