"""Translates between the store's calls and the JSON of etcd's gateway: requests to bytes, answers to records.

Pure. Whatever arrives, an answer is read to a record, or raises `GatewayError` (an error of etcd) or `BadAnswer`.
Fields that we do not know are ignored.
"""

from binascii import b2a_base64

from conch import json_text
from conch.etcd import answers
from conch.etcd import gateway_fields as fields
from conch.etcd.answers import BadAnswer
from conch.etcd.store import (
    Compare,
    CreateRevisionIs,
    Delete,
    Header,
    KeyValue,
    Lease,
    ModRevisionIs,
    Operation,
    Put,
    Range,
    RangeResult,
    Txn,
    TxnResult,
    TxnResults,
    ValueBelow,
)
from conch.etcd.watch import Answer
from conch.static_typing import Any, Sequence

# An error says what it is at its beginning.
_MESSAGE_CHARS = 1000
_LAST_CODE = 16  # of gRPC's status codes
_PROBE_ID = 2**62  # etcd counts from 0
# The kinds of responses in a transaction, by their names.
_KINDS: dict[str, type[Operation]] = {"response_range": Range, "response_put": Put, "response_delete_range": Delete}


class GatewayError(Exception):
    """The gateway answered an error: gRPC's code and etcd's message."""

    def __init__(self, code: int, message: str) -> None:
        super().__init__(message)
        self.code = code


# -- requests -------------------------------------------------------------------------------------------------


def login(user: str, password: str) -> bytes:
    """Ask for a token."""
    return _body({"name": user, "password": password})


def grant(lease: int, ttl_s: int) -> bytes:
    """Ask for a lease with this id."""
    return _body({"TTL": str(ttl_s), "ID": str(lease)})


def lease_id(lease: int) -> bytes:
    """Renew a lease, or revoke it."""
    return _body({"ID": str(lease)})


def read_range(what: Range) -> bytes:
    """Ask for keys."""
    return _body(_range(what))


def local_read(key: bytes) -> bytes:
    """Ask for a key as any member has it, without the leader."""
    return _body({"key": _base64(key), "limit": "1", "serializable": True})


def transact(txn: Txn) -> bytes:
    """Ask for a transaction."""
    return _body(_txn(txn))


def transact_all(parts: Sequence[Txn], never: Sequence[Operation]) -> bytes:
    """Ask for several transactions as one; `never` is a branch that is not taken."""
    return _body(
        {
            "success": [{"request_txn": _txn(part)} for part in parts],
            "failure": [_operation(operation) for operation in never],
        }
    )


def watch(what: Range, revision: int, *, deletes_only: bool) -> bytes:
    """Ask for the events of a range from a revision on."""
    request: dict[str, Any] = {"key": _base64(what.key), "start_revision": str(revision)}
    if what.end:
        request["range_end"] = _base64(what.end)
    if deletes_only:
        request["filters"] = ["NOPUT"]
    return _body({"create_request": request})


def probe() -> bytes:
    """Ask whether a stream of watches still works, by a watch of an empty range: every release refuses it immediately.

    (A request for progress is not answered, on later patches of 3.5 and from 3.6 on, while a watch begins at a future
    revision: as every watch does that follows a listing, until something is written.)

    It has an id of its own: where our user may not watch it, 3.5.1 takes the first watch of the stream, which has id 0,
    for the refused one, and sends no more of its events.
    """
    nothing = _base64(b"-")
    return _body({"create_request": {"key": nothing, "range_end": nothing, "watch_id": str(_PROBE_ID)}})


def _body(request: dict[str, Any]) -> bytes:
    return json_text.dumps(request).encode()


def _base64(data: bytes) -> str:
    return b2a_base64(data, newline=False).decode()


def _range(what: Range) -> dict[str, Any]:
    request: dict[str, Any] = {"key": _base64(what.key)}
    if what.end:
        request["range_end"] = _base64(what.end)
    if what.limit:
        request["limit"] = str(what.limit)
    if what.newest_first or what.oldest_first:
        request["sort_target"] = "CREATE"
        request["sort_order"] = "DESCEND" if what.newest_first else "ASCEND"
    elif what.last_first:
        request["sort_target"], request["sort_order"] = "KEY", "DESCEND"
    if what.max_create_revision:
        request["max_create_revision"] = str(what.max_create_revision)
    if what.keys_only:
        request["keys_only"] = True
    return request


def _txn(txn: Txn) -> dict[str, Any]:
    return {
        "compare": [_compare(condition) for condition in txn.compare],
        "success": [_operation(operation) for operation in txn.success],
        "failure": [_operation(operation) for operation in txn.failure],
    }


def _compare(condition: Compare) -> dict[str, Any]:
    match condition:
        case CreateRevisionIs(key, revision):
            return {"result": "EQUAL", "target": "CREATE", "key": _base64(key), "create_revision": str(revision)}
        case ModRevisionIs(key, revision):
            return {"result": "EQUAL", "target": "MOD", "key": _base64(key), "mod_revision": str(revision)}
        case ValueBelow(key, value):
            return {"result": "LESS", "target": "VALUE", "key": _base64(key), "value": _base64(value)}


def _operation(operation: Operation) -> dict[str, Any]:
    match operation:
        case Range():
            return {"request_range": _range(operation)}
        case Put(key, value, lease):
            return {"request_put": {"key": _base64(key), "value": _base64(value), "lease": str(lease)}}
        case Delete(key, end):
            return {"request_delete_range": {"key": _base64(key), **({"range_end": _base64(end)} if end else {})}}


# -- answers --------------------------------------------------------------------------------------------------


def answer(status: int, data: bytes) -> dict[str, Any]:
    """Parse the answer to a request; raises `GatewayError` if it is an error of etcd.

    Up to etcd 3.5 an error has its message in `error`, too; from 3.6 on in `message` alone.
    """
    try:
        result = stream_answer(data)
        if status != 200 and "code" in result and "message" in result:
            raise _error(result)
    except BadAnswer as error:
        raise BadAnswer(str(error) if status == 200 else f"HTTP status {status}, and {error}") from None
    if status != 200:
        raise BadAnswer(f"HTTP status {status}, and no error of etcd")
    return result


def stream_answer(line: bytes) -> dict[str, Any]:
    """Parse a line of a stream: its answer is in `result`, its error in `error`."""
    try:
        parsed = json_text.loads(line)
    except (ValueError, RecursionError):
        raise BadAnswer(f"it answers no JSON: {line[:60]!r}") from None
    answer = fields.as_object(parsed, "it")
    error = answer.get("error")
    if error is not None:
        raise _error(error if isinstance(error, dict) else answer)
    result = answer.get("result")
    return answer if result is None else fields.as_object(result, "result")


def token(answer: dict[str, Any]) -> str:
    """Read the token of a login; it can be sent as a header."""
    return answers.token(fields.text(answer, "token"))


def header(answer: dict[str, Any]) -> Header:
    """Read the header, which every answer has."""
    return answers.header(*_header_numbers(answer))


def granted(asked: int, answer: dict[str, Any]) -> Lease:
    """Read a lease as granted."""
    return answers.granted(asked, header(answer), fields.int64(answer, "ID"), fields.int64(answer, "TTL"))


def renewed(asked: int, answer: dict[str, Any]) -> Lease:
    """Read a lease as renewed; a TTL of 0 says that it is gone."""
    return answers.renewed(asked, header(answer), fields.int64(answer, "ID"), fields.int64(answer, "TTL"))


def found(what: Range, answer: dict[str, Any]) -> RangeResult:
    """Read the keys of a range."""
    return answers.found(what, header(answer), _keys(answer), fields.int64(answer, "count"))


def transaction(txn: Txn, answer: dict[str, Any], at: Header | None = None) -> TxnResult:
    """Read what a transaction did; `at` is the header of the answer that it is a part of."""
    responses = [_response(response) for response in fields.objects(answer, "responses")]
    succeeded = fields.flag(answer, "succeeded")
    return answers.transaction(txn, at or header(answer), succeeded=succeeded, responses=responses)


def transactions(parts: Sequence[Txn], answer: dict[str, Any]) -> TxnResults:
    """Read what several transactions did that were made as one."""
    at = header(answer)
    nested = [fields.part(response, "response_txn") for response in fields.objects(answer, "responses")]
    answers.same_number(parts, nested, succeeded=fields.flag(answer, "succeeded"))
    return TxnResults(at, tuple(transaction(part, each, at) for part, each in zip(parts, nested, strict=True)))


def watch_answer(answer: dict[str, Any]) -> Answer:
    """Read one answer of a stream of watches."""
    return Answer(
        fields.int64(answer, "watch_id"),
        fields.flag(answer, "created"),
        fields.flag(answer, "canceled"),
        fields.text(answer, "cancel_reason"),
        fields.uint64(answer, "compact_revision"),
        tuple(
            answers.event(_key_value(fields.part(event, "kv")), deleted=_is_deletion(event))
            for event in fields.objects(answer, "events")
        ),
        Header(*_header_numbers(answer)),  # unchecked: that of a watch that is cancelled has no revision
    )


def _error(answer: dict[str, Any]) -> GatewayError:
    code = fields.int64(answer, "code") or fields.int64(answer, "grpc_code")
    if not 0 < code <= _LAST_CODE:
        raise BadAnswer("an odd answer: an error that is none of etcd's")
    message = fields.text(answer, "message") or fields.text(answer, "error")
    return GatewayError(code, message[:_MESSAGE_CHARS] or "an error without a message")


def _header_numbers(answer: dict[str, Any]) -> tuple[int, int, int]:
    header = fields.part(answer, "header")
    return fields.int64(header, "revision"), fields.uint64(header, "member_id"), fields.uint64(header, "raft_term")


def _response(response: dict[str, Any]) -> answers.Response:
    kinds = [name for name in _KINDS if response.get(name) is not None]
    if len(kinds) != 1:
        raise BadAnswer("an odd answer: a part of a transaction that was not asked for")
    kind, result = _KINDS[kinds[0]], fields.part(response, kinds[0])
    return (Range, _keys(result), fields.int64(result, "count")) if kind is Range else (kind, (), 0)


def _is_deletion(event: dict[str, Any]) -> bool:
    kind = event.get("type")
    if kind is None or kind == "PUT":
        return False
    if kind == "DELETE":
        return True
    raise fields.odd("type", kind)


def _keys(answer: dict[str, Any]) -> tuple[KeyValue, ...]:
    return tuple(answers.key_value(_key_value(kv)) for kv in fields.objects(answer, "kvs"))


def _key_value(kv: dict[str, Any]) -> KeyValue:
    return KeyValue(
        fields.data(kv, "key"),
        fields.data(kv, "value"),
        fields.int64(kv, "create_revision"),
        fields.int64(kv, "mod_revision"),
        fields.int64(kv, "lease"),
    )
