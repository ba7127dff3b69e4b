"""Judges what etcd answered, whichever driver read it: what etcd never says raises `BadAnswer`.

Read as it stands, an answer without its parts would say "vacant", "gone" or "held". So it counts as no answer of that
endpoint, and the next one is asked.
"""

from collections.abc import Sequence

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
    TxnResult,
    ValueBelow,
)
from conch.record import replace

# The revision after it is still a number to etcd.
_LARGEST = 2**63 - 2
# etcd grants no longer leases.
_LONGEST_TTL_S = 9_000_000_000
# As etcd's own proxy answers the renewal of a lease that is gone.
_EXPIRED = -1

# What a transaction did for one operation: which kind, and the keys found and their count if it was a range.
Response = tuple[type[Operation], tuple[KeyValue, ...], int]


class BadAnswer(Exception):
    """What arrived is not an answer of etcd."""


def token(text: str) -> str:
    """What a login is answered with; it is sent as a header."""
    if not text or not text.isascii() or not text.isprintable() or " " in text:
        raise BadAnswer("an odd answer: a login without a token")
    return text


def head(revision: int, member: int, term: int) -> Header:
    """The header of an answer; none of its numbers is ever zero."""
    if not (0 < revision <= _LARGEST and 0 < member < 2**64 and 0 < term < 2**64):
        raise BadAnswer("an odd answer: its header lacks revision, member or term")
    return Header(revision, member, term)


def key_value(kv: KeyValue) -> KeyValue:
    """A key that is there."""
    if not kv.key or not 0 < kv.create_revision <= kv.mod_revision <= _LARGEST:
        raise BadAnswer("an odd answer: a key without name or revisions")
    return kv


def event(kv: KeyValue, *, deleted: bool) -> Event:
    """A change of a key; one that was deleted has no create-revision."""
    if deleted and kv.key and 0 < kv.mod_revision <= _LARGEST:
        return Event(kv, deleted)
    return Event(key_value(kv), deleted)


def granted(asked: int, head: Header, lease: int, ttl_s: int) -> Lease:
    """The lease that was asked for, as granted."""
    if lease != asked or not 0 < ttl_s <= _LONGEST_TTL_S:
        raise BadAnswer("an odd answer: of another lease, or without its TTL")
    return Lease(head, ttl_s)


def renewed(asked: int, head: Header, lease: int, ttl_s: int) -> Lease:
    """The lease that was asked for, as renewed; a TTL of 0 says that it is gone."""
    if lease == asked and ttl_s in (0, _EXPIRED):
        return Lease(head, 0)
    return granted(asked, head, lease, ttl_s)


def covers(what: Range, key: bytes) -> bool:
    """Whether a key lies in a range."""
    if not what.end:
        return key == what.key
    return what.key <= key and (key < what.end or what.end == b"\0")


def found(what: Range, head: Header, kvs: tuple[KeyValue, ...], count: int) -> RangeResult:
    """The keys of a range, and no others."""
    if not 0 <= count <= _LARGEST or (what.limit and len(kvs) > what.limit):
        raise BadAnswer("an odd answer: more keys than asked for, or their count is odd")
    if not all(covers(what, kv.key) for kv in kvs):
        raise BadAnswer("an odd answer: keys that were not asked for")
    if what.keys_only:  # the same of every release: see `Range`
        kvs = tuple(replace(kv, value=b"", lease=0) if kv.lease else kv for kv in kvs)
    return RangeResult(head, kvs, count)


def transaction(
    compare: Sequence[Compare],
    success: Sequence[Operation],
    failure: Sequence[Operation],
    head: Header,
    *,
    succeeded: bool,
    responses: Sequence[Response],
) -> TxnResult:
    """What a transaction did: one response an operation of the branch that ran, which must agree with its compares."""
    branch = success if succeeded else failure
    if (not compare and not succeeded) or [kind for kind, _, _ in responses] != [type(one) for one in branch]:
        raise BadAnswer("an odd answer: other parts than the transaction asked for")
    known = _known(compare, succeeded=succeeded)
    ranges = []
    for one, (_, kvs, count) in zip(branch, responses, strict=True):
        match one:
            case Put(key):
                # made now if it was compared with nothing
                known[key] = head.revision if known.get(key) == 0 else known.get(key)
            case Delete(key):
                known[key] = 0
            case Range():
                result = found(one, head, kvs, count)
                _check_known(one, result, known, made_now=head.revision)
                ranges.append(result)
    return TxnResult(head, succeeded, tuple(ranges))


def _known(compare: Sequence[Compare], *, succeeded: bool) -> dict[bytes, int | None]:
    """The create-revisions that the compares prove: 0 of a key that is not there, None of one that is."""
    known: dict[bytes, int | None] = {}
    if succeeded:
        for one in compare:
            match one:
                case CreateRevisionIs(key, revision):
                    known[key] = revision
                case ModRevisionIs(key, revision):
                    known[key] = None if revision else 0
                case ValueBelow(key):
                    known[key] = None
    elif len(compare) == 1 and isinstance(compare[0], CreateRevisionIs) and compare[0].revision == 0:
        known[compare[0].key] = None
    return known


def _check_known(what: Range, result: RangeResult, known: dict[bytes, int | None], *, made_now: int) -> None:
    """A key of which the compares and puts prove that it is there, or is not, must be found so."""
    for key, revision in known.items():
        if not covers(what, key) or what.max_create_revision:
            continue
        shown = {kv.key: kv.create_revision for kv in result.kvs}.get(key, 0)
        newest = what.newest_first and revision == made_now
        if newest and (not result.kvs or result.kvs[0].key != key):
            raise BadAnswer("an odd answer: the key just made is not the newest")
        if newest or not what.end:
            wrong = not shown if revision is None else shown != revision
            if wrong:
                raise BadAnswer("an odd answer: a key is not as its transaction left it")
