"""Between etcd's own messages and ours: no protobuf type leaves the driver."""

from conch.etcd import protobuf
from conch.etcd.store import (
    Below,
    Compare,
    CreatedAt,
    Delete,
    Head,
    KeyValue,
    ModifiedAt,
    Operation,
    Put,
    Range,
    RangeResult,
)
from conch.hints import Any

protobuf.install()

from etcd3 import etcdrpc  # noqa: E402 - after its protobuf modules can be loaded


def head_of(header: Any) -> Head:
    return Head(header.revision, header.member_id, header.raft_term)


def key_value(kv: Any) -> KeyValue:
    """A key out of etcd's own message."""
    return KeyValue(kv.key, kv.value, kv.create_revision, kv.mod_revision, kv.lease)


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
        max_create_revision=what.created_by,
        keys_only=what.keys_only,
    )


def range_result(answer: Any, head: Head | None = None) -> RangeResult:
    return RangeResult(head or head_of(answer.header), tuple(key_value(kv) for kv in answer.kvs), answer.count)


def compare_request(one: Compare) -> Any:
    kind = etcdrpc.Compare
    match one:
        case CreatedAt(key, revision):
            return kind(result=kind.EQUAL, target=kind.CREATE, key=key, create_revision=revision)
        case ModifiedAt(key, revision):
            return kind(result=kind.EQUAL, target=kind.MOD, key=key, mod_revision=revision)
        case Below(key, value):
            return kind(result=kind.LESS, target=kind.VALUE, key=key, value=value)


def operation(one: Operation) -> Any:
    match one:
        case Range():
            return etcdrpc.RequestOp(request_range=range_request(one))
        case Put(key, value, lease):
            return etcdrpc.RequestOp(request_put=etcdrpc.PutRequest(key=key, value=value, lease=lease))
        case Delete(key):
            return etcdrpc.RequestOp(request_delete_range=etcdrpc.DeleteRangeRequest(key=key))
