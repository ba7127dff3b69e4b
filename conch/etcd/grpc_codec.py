"""Translates between the store's calls and etcd's own messages: no protobuf type leaves the driver.

An answer is read to a record, or raises `BadAnswer`.
"""

from conch.etcd import answers, grpc_descriptors
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

grpc_descriptors.install()

from etcd3 import etcdrpc  # noqa: E402 - after its protobuf modules can be loaded

# The kinds of responses in a transaction, by their names.
_KINDS: dict[str, type[Operation]] = {"response_range": Range, "response_put": Put, "response_delete_range": Delete}


def range_request(what: Range) -> Any:
    sorted_by_age = what.newest_first or what.oldest_first
    order = etcdrpc.RangeRequest
    return etcdrpc.RangeRequest(
        key=what.key,
        range_end=what.end,
        limit=what.limit,
        sort_order=order.DESCEND
        if what.newest_first or what.last_first
        else order.ASCEND
        if what.oldest_first
        else order.NONE,
        sort_target=order.CREATE if sorted_by_age else order.KEY,
        max_create_revision=what.max_create_revision,
        keys_only=what.keys_only,
    )


def compare_request(condition: Compare) -> Any:
    kind = etcdrpc.Compare
    match condition:
        case CreateRevisionIs(key, revision):
            return kind(result=kind.EQUAL, target=kind.CREATE, key=key, create_revision=revision)
        case ModRevisionIs(key, revision):
            return kind(result=kind.EQUAL, target=kind.MOD, key=key, mod_revision=revision)
        case ValueBelow(key, value):
            return kind(result=kind.LESS, target=kind.VALUE, key=key, value=value)


def operation_request(operation: Operation) -> Any:
    match operation:
        case Range():
            return etcdrpc.RequestOp(request_range=range_request(operation))
        case Put(key, value, lease):
            return etcdrpc.RequestOp(request_put=etcdrpc.PutRequest(key=key, value=value, lease=lease))
        case Delete(key, end):
            return etcdrpc.RequestOp(request_delete_range=etcdrpc.DeleteRangeRequest(key=key, range_end=end))


def txn_request(txn: Txn) -> Any:
    return etcdrpc.TxnRequest(
        compare=[compare_request(condition) for condition in txn.compare],
        success=[operation_request(operation) for operation in txn.success],
        failure=[operation_request(operation) for operation in txn.failure],
    )


def txns_request(parts: Sequence[Txn], never: Sequence[Operation]) -> Any:
    return etcdrpc.TxnRequest(
        success=[etcdrpc.RequestOp(request_txn=txn_request(part)) for part in parts],
        failure=[operation_request(operation) for operation in never],
    )


def header(answer: Any) -> Header:
    """Read the header, which every answer has."""
    return answers.header(answer.header.revision, answer.header.member_id, answer.header.raft_term)


def token(answer: Any) -> str:
    """Read the token of a login; it can be sent as a header."""
    return answers.token(answer.token)


def granted(asked: int, answer: Any) -> Lease:
    """Read a lease as granted."""
    return answers.granted(asked, header(answer), answer.ID, answer.TTL)


def renewed(asked: int, answer: Any) -> Lease:
    """Read a lease as renewed; a TTL of 0 says that it is gone."""
    return answers.renewed(asked, header(answer), answer.ID, answer.TTL)


def range_result(what: Range, answer: Any) -> RangeResult:
    """Read the keys of a range."""
    return answers.found(what, header(answer), _keys(answer), answer.count)


def txn_result(txn: Txn, answer: Any, at: Header | None = None) -> TxnResult:
    """Read what a transaction did; `at` is the header of the answer that it is a part of."""
    responses = [_response(response) for response in answer.responses]
    return answers.transaction(txn, at or header(answer), succeeded=answer.succeeded, responses=responses)


def txns_result(parts: Sequence[Txn], answer: Any) -> TxnResults:
    """Read what several transactions did that were made as one."""
    at = header(answer)
    nested = [response.response_txn for response in answer.responses if response.HasField("response_txn")]
    answers.same_number(parts, nested, succeeded=answer.succeeded)
    return TxnResults(at, tuple(txn_result(part, each, at) for part, each in zip(parts, nested, strict=True)))


def watch_answer(answer: Any) -> Answer:
    """Read one answer of a stream of watches."""
    if not answer.HasField("header"):
        raise BadAnswer("an odd answer: it has no header")
    events = tuple(answers.event(_key_value(event.kv), deleted=event.type == event.DELETE) for event in answer.events)
    unchecked = Header(answer.header.revision, answer.header.member_id, answer.header.raft_term)
    return Answer(
        answer.watch_id,
        answer.created,
        answer.canceled,
        answer.cancel_reason,
        answer.compact_revision,
        events,
        unchecked,
    )


def _response(response: Any) -> answers.Response:
    name = response.WhichOneof("response")
    if name not in _KINDS:
        raise BadAnswer("an odd answer: a part of a transaction that was not asked for")
    result = getattr(response, name)
    return (Range, _keys(result), result.count) if name == "response_range" else (_KINDS[name], (), 0)


def _keys(answer: Any) -> tuple[KeyValue, ...]:
    return tuple(answers.key_value(_key_value(kv)) for kv in answer.kvs)


def _key_value(kv: Any) -> KeyValue:
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.lease)
