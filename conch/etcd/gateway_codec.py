"""Between what the store asks and the JSON of etcd's gateway: requests to bytes, answers to records.

Pure. Whatever arrives, an answer is read to a record, or raises `GatewayError` (an error of etcd) or `BadAnswer`.

As protobuf's mapping to JSON has it: 64-bit numbers are texts (or numbers), bytes are base64, what has its default
(zero, false, no keys) is left out, and a null stands for the default. Fields that we do not know are ignored.
"""

import json
from base64 import b64encode
from binascii import a2b_base64
from collections.abc import Sequence

from conch.etcd import answers
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
    TxnResult,
    ValueBelow,
)
from conch.etcd.watch import Answer
from conch.static_typing import Any

# An error says what it is in its first words.
_WORDS = 1000
_LAST_CODE = 16  # of gRPC's status codes
_PROBE_ID = 2**62  # etcd counts from 0
_SIGNED, _UNSIGNED = (-(2**63), 2**63), (0, 2**64)
# The kinds of responses in a transaction, by their names.
_KINDS: dict[str, type[Operation]] = {"response_range": Range, "response_put": Put, "response_delete_range": Delete}


class GatewayError(Exception):
    """The gateway answered an error: gRPC's code and etcd's words."""

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


def read(what: Range) -> bytes:
    """Ask for keys."""
    return _body(_range(what))


def local_read(key: bytes) -> bytes:
    """Ask for something that any member answers by itself."""
    return _body({"key": _text(key), "limit": "1", "serializable": True})


def transact(compare: Sequence[Compare], success: Sequence[Operation], failure: Sequence[Operation]) -> bytes:
    """Ask for a transaction."""
    return _body(
        {
            "compare": [_compare(one) for one in compare],
            "success": [_operation(one) for one in success],
            "failure": [_operation(one) for one in failure],
        }
    )


def watch(what: Range, revision: int, *, deletes_only: bool) -> bytes:
    """Ask for the events of a range from a revision on."""
    request: dict[str, Any] = {"key": _text(what.key), "start_revision": str(revision)}
    if what.end:
        request["range_end"] = _text(what.end)
    if deletes_only:
        request["filters"] = ["NOPUT"]
    return _body({"create_request": request})


def probe() -> bytes:
    """Ask a stream of watches whether it still is one: for a watch of nothing, which every release refuses at once.

    (A request for progress is not answered, on later patches of 3.5 and from 3.6 on, while a watch begins at a revision
    that is still to come: as all do that follow a listing, until something is written.)

    It has a number of its own: where our user may not watch it, 3.5.1 takes the first watch of the stream, which has 0,
    for the one that it refuses, and sends no more of its events.
    """
    nothing = _text(b"-")
    return _body({"create_request": {"key": nothing, "range_end": nothing, "watch_id": str(_PROBE_ID)}})


def _body(request: dict[str, Any]) -> bytes:
    return json.dumps(request).encode()


def _text(data: bytes) -> str:
    return b64encode(data).decode()


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
    if what.max_create_revision:
        request["max_create_revision"] = str(what.max_create_revision)
    if what.keys_only:
        request["keys_only"] = True
    return request


def _compare(one: Compare) -> dict[str, Any]:
    match one:
        case CreateRevisionIs(key, revision):
            return {"result": "EQUAL", "target": "CREATE", "key": _text(key), "create_revision": str(revision)}
        case ModRevisionIs(key, revision):
            return {"result": "EQUAL", "target": "MOD", "key": _text(key), "mod_revision": str(revision)}
        case ValueBelow(key, value):
            return {"result": "LESS", "target": "VALUE", "key": _text(key), "value": _text(value)}


def _operation(one: Operation) -> dict[str, Any]:
    match one:
        case Range():
            return {"request_range": _range(one)}
        case Put(key, value, lease):
            return {"request_put": {"key": _text(key), "value": _text(value), "lease": str(lease)}}
        case Delete(key):
            return {"request_delete_range": {"key": _text(key)}}


# -- answers --------------------------------------------------------------------------------------------------


def answer(status: int, data: bytes) -> dict[str, Any]:
    """The object that a request was answered with; raises `GatewayError` if it is an error of etcd.

    Up to etcd 3.5 an error has its words in `error`, too; from 3.6 on in `message` alone.
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
    """The object in a line of a stream; its answer stands in `result`, its error in `error`."""
    try:
        parsed = json.loads(line)
    except (ValueError, RecursionError):
        raise BadAnswer(f"it answers no JSON: {line[:60]!r}") from None
    whole = _object(parsed, "it")
    error = whole.get("error")
    if error is not None:
        raise _error(error if isinstance(error, dict) else whole)
    result = whole.get("result")
    return whole if result is None else _object(result, "result")


def token(answer: dict[str, Any]) -> str:
    """The token of a login; it can stand in a header."""
    return answers.token(_words(answer, "token"))


def head(answer: dict[str, Any]) -> Header:
    """The header, that every answer has."""
    header = _header(answer)
    return answers.head(
        _number(header, "revision", _SIGNED),
        _number(header, "member_id", _UNSIGNED),
        _number(header, "raft_term", _UNSIGNED),
    )


def granted(asked: int, answer: dict[str, Any]) -> Lease:
    """The lease as granted."""
    return answers.granted(asked, head(answer), _number(answer, "ID", _SIGNED), _number(answer, "TTL", _SIGNED))


def renewed(asked: int, answer: dict[str, Any]) -> Lease:
    """The lease as renewed; a TTL of 0 says that it is gone."""
    return answers.renewed(asked, head(answer), _number(answer, "ID", _SIGNED), _number(answer, "TTL", _SIGNED))


def found(what: Range, answer: dict[str, Any]) -> RangeResult:
    """The keys of a range."""
    return answers.found(what, head(answer), _keys(answer), _number(answer, "count", _SIGNED))


def transaction(
    compare: Sequence[Compare], success: Sequence[Operation], failure: Sequence[Operation], answer: dict[str, Any]
) -> TxnResult:
    """What a transaction did."""
    responses = [_response(one) for one in _list(answer, "responses")]
    succeeded = _flag(answer, "succeeded")
    return answers.transaction(compare, success, failure, head(answer), succeeded=succeeded, responses=responses)


def watch_answer(answer: dict[str, Any]) -> Answer:
    """One answer of a stream of watches."""
    header = _header(answer)  # of a watch that is cancelled it has no revision
    return Answer(
        _number(answer, "watch_id", _SIGNED),
        _flag(answer, "created"),
        _flag(answer, "canceled"),
        _words(answer, "cancel_reason"),
        _number(answer, "compact_revision", _UNSIGNED),
        tuple(
            answers.event(_key_value(_part(one, "kv")), deleted=_is_deletion(one)) for one in _list(answer, "events")
        ),
        Header(
            _number(header, "revision", _SIGNED),
            _number(header, "member_id", _UNSIGNED),
            _number(header, "raft_term", _UNSIGNED),
        ),
    )


def _error(answer: dict[str, Any]) -> GatewayError:
    code = _number(answer, "code", _SIGNED) or _number(answer, "grpc_code", _SIGNED)
    if not 0 < code <= _LAST_CODE:
        raise BadAnswer("an odd answer: an error that is none of etcd's")
    words = _words(answer, "message") or _words(answer, "error")
    return GatewayError(code, words[:_WORDS] or "an error without words")


def _header(answer: dict[str, Any]) -> dict[str, Any]:
    return _part(answer, "header")


def _response(one: dict[str, Any]) -> answers.Response:
    kinds = [name for name in _KINDS if one.get(name) is not None]
    if len(kinds) != 1:
        raise BadAnswer("an odd answer: a part of a transaction that was not asked for")
    kind, made = _KINDS[kinds[0]], _part(one, kinds[0])
    return (Range, _keys(made), _number(made, "count", _SIGNED)) if kind is Range else (kind, (), 0)


def _is_deletion(event: dict[str, Any]) -> bool:
    kind = event.get("type")
    if kind is None or kind == "PUT":
        return False
    if kind == "DELETE":
        return True
    raise BadAnswer(f"an odd answer: type is {_shown(kind)}")


def _keys(answer: dict[str, Any]) -> tuple[KeyValue, ...]:
    return tuple(answers.key_value(_key_value(kv)) for kv in _list(answer, "kvs"))


def _key_value(kv: dict[str, Any]) -> KeyValue:
    return KeyValue(
        _bytes(kv, "key"),
        _bytes(kv, "value"),
        _number(kv, "create_revision", _SIGNED),
        _number(kv, "mod_revision", _SIGNED),
        _number(kv, "lease", _SIGNED),
    )


# -- fields ---------------------------------------------------------------------------------------------------


def _odd(field: str, value: Any) -> BadAnswer:
    return BadAnswer(f"an odd answer: {field} is {_shown(value)}")


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "a list" if isinstance(value, list) else "an object"
    return "null" if value is None else f"{value!r:.60}"


def _object(value: Any, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _odd(field, value)
    return value


def _part(answer: dict[str, Any], field: str) -> dict[str, Any]:
    """A part that must be there."""
    return _object(answer.get(field), field)


def _list(answer: dict[str, Any], field: str) -> list[dict[str, Any]]:
    value = answer.get(field)
    if value is None:
        return []
    if not isinstance(value, list):
        raise _odd(field, value)
    return [_object(one, f"one of {field}") for one in value]


def _number(answer: dict[str, Any], field: str, bounds: tuple[int, int]) -> int:
    value = answer.get(field)
    if value is None:
        return 0
    number: int | None = None
    if isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, str) and len(value) <= 20 and value.isascii() and value.removeprefix("-").isdigit():
        number = int(value)
    if number is None or not bounds[0] <= number < bounds[1]:
        raise _odd(field, value)
    return number


def _flag(answer: dict[str, Any], field: str) -> bool:
    value = answer.get(field)
    if value is not None and not isinstance(value, bool):
        raise _odd(field, value)
    return bool(value)


def _words(answer: dict[str, Any], field: str) -> str:
    value = answer.get(field)
    if value is not None and not isinstance(value, str):
        raise _odd(field, value)
    return value or ""


def _bytes(answer: dict[str, Any], field: str) -> bytes:
    text = _words(answer, field)
    try:
        return a2b_base64(text.encode("ascii"), strict_mode=True) if text else b""
    except ValueError:
        raise _odd(field, text) from None
