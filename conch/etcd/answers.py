"""Checks etcd's answers, whichever driver read them: an answer that etcd never gives raises `BadAnswer`.

Taken literally, an answer that lacks parts would say "vacant", "gone" or "held". So it counts as no answer of that
endpoint, and the next one is asked.
"""

from conch.etcd.store import (
    Compare,
    CreateRevisionIs,
    Delete,
    Event,
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
    ValueBelow,
)
from conch.static_typing import Sequence

# The next revision still fits into etcd's 64 bits.
_LARGEST = 2**63 - 2
# etcd grants no longer leases.
_LONGEST_TTL_S = 9_000_000_000
# The TTL with which etcd's own proxy says that a lease is gone.
_EXPIRED = -1

# The result of one operation of a transaction: its kind, and for a range the keys found and their count.
Response = tuple[type[Operation], tuple[KeyValue, ...], int]


class BadAnswer(Exception):
    """The bytes that arrived are not an answer of etcd."""


def token(text: str) -> str:
    """Return the token of a login; it will be sent as a header."""
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise BadAnswer("an odd answer: a login without a token")
    return text


def header(revision: int, member: int, term: int) -> Header:
    """Return the header of an answer; none of its numbers is ever zero."""
    if not (0 < revision <= _LARGEST and 0 < member < 2**64 and 0 < term < 2**64):
        raise BadAnswer("an odd answer: its header lacks revision, member or term")
    return Header(revision, member, term)


def key_value(kv: KeyValue) -> KeyValue:
    """Return a key that exists."""
    if not kv.key or not 0 < kv.create_revision <= kv.mod_revision <= _LARGEST:
        raise BadAnswer("an odd answer: a key without name or revisions")
    return kv


def event(kv: KeyValue, *, deleted: bool) -> Event:
    """Return a change of a key; a deleted one has no create-revision."""
    if deleted and kv.key and 0 < kv.mod_revision <= _LARGEST:
        return Event(kv, deleted)
    return Event(key_value(kv), deleted)


def granted(asked: int, header: Header, lease: int, ttl_s: int) -> Lease:
    """Return the lease that was asked for, as granted."""
    if lease != asked or not 0 < ttl_s <= _LONGEST_TTL_S:
        raise BadAnswer("an odd answer: of another lease, or without its TTL")
    return Lease(header, ttl_s)


def renewed(asked: int, header: Header, lease: int, ttl_s: int) -> Lease:
    """Return the lease that was asked for, as renewed; a TTL of 0 says that it is gone."""
    if lease == asked and ttl_s in (0, _EXPIRED):
        return Lease(header, 0)
    return granted(asked, header, lease, ttl_s)


def covers(what: Range, key: bytes) -> bool:
    """Return whether a key lies in a range."""
    if not what.end:
        return key == what.key
    return what.key <= key and (key < what.end or what.end == b"\0")


def found(what: Range, header: Header, kvs: tuple[KeyValue, ...], count: int) -> RangeResult:
    """Return the keys of a range; any other key is a bad answer."""
    if not 0 <= count <= _LARGEST or (what.limit and len(kvs) > what.limit):
        raise BadAnswer("an odd answer: more keys than asked for, or their count is odd")
    if not all(covers(what, kv.key) for kv in kvs):
        raise BadAnswer("an odd answer: keys that were not asked for")
    if what.keys_only:  # 3.7 leaves the leases out: see `Range`
        kvs = tuple(KeyValue(kv.key, b"", kv.create_revision, kv.mod_revision, 0) if kv.lease else kv for kv in kvs)
    return RangeResult(header, kvs, count)


def same_number(parts: Sequence[Txn], results: Sequence[object], *, succeeded: bool) -> None:
    """Raise unless there is one result for each of several transactions that were made as one."""
    if not succeeded or len(parts) != len(results):
        raise BadAnswer("an odd answer: other parts than the transaction asked for")


def transaction(txn: Txn, header: Header, *, succeeded: bool, responses: Sequence[Response]) -> TxnResult:
    """Return what a transaction did: one response per operation of its branch, in agreement with its compares."""
    branch = txn.success if succeeded else txn.failure
    if (not txn.compare and not succeeded) or [kind for kind, _, _ in responses] != [
        type(operation) for operation in branch
    ]:
        raise BadAnswer("an odd answer: other parts than the transaction asked for")
    known = _known(txn.compare, succeeded=succeeded)
    ranges = []
    for operation, (_, kvs, count) in zip(branch, responses, strict=True):
        match operation:
            case Put(key):
                # created by this transaction if its compares prove that it was not there
                known[key] = header.revision if known.get(key) == 0 else known.get(key)
            case Delete(key, end):
                known[key] = 0
                known |= {other: 0 for other in known if key <= other < end}
            case Range():
                result = found(operation, header, kvs, count)
                _check_known(operation, result, known, written_at=header.revision)
                ranges.append(result)
    return TxnResult(header, succeeded, tuple(ranges))


def _known(compare: Sequence[Compare], *, succeeded: bool) -> dict[bytes, int | None]:
    """Return the create-revisions that the compares prove: 0 if there is no such key, None if there is, of any age."""
    known: dict[bytes, int | None] = {}
    if succeeded:
        for condition in compare:
            match condition:
                case CreateRevisionIs(key, revision):
                    known[key] = revision
                case ModRevisionIs(key, revision):
                    known[key] = None if revision else 0
                case ValueBelow(key):
                    known[key] = None
    elif len(compare) == 1 and isinstance(compare[0], CreateRevisionIs) and compare[0].revision == 0:
        known[compare[0].key] = None
    return known


def _check_known(what: Range, result: RangeResult, known: dict[bytes, int | None], *, written_at: int) -> None:
    """Raise unless each key is found as the compares and puts prove it to be."""
    for key, revision in known.items():
        if not covers(what, key) or what.max_create_revision:
            continue
        shown = {kv.key: kv.create_revision for kv in result.kvs}.get(key, 0)
        newest = what.newest_first and revision == written_at
        if newest and (not result.kvs or result.kvs[0].key != key):
            raise BadAnswer("an odd answer: the key just made is not the newest")
        if newest or not what.end:
            wrong = not shown if revision is None else shown != revision
            if wrong:
                raise BadAnswer("an odd answer: a key is not as its transaction left it")
