"""The judge of etcd's answers, fed with anything: a record comes out that etcd could have meant, or a bad answer."""

import json
from base64 import b64encode
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from conch.etcd import gateway_codec as codec
from conch.etcd import grpc_codec
from conch.etcd.answers import BadAnswer
from conch.etcd.gateway_codec import GatewayError
from conch.etcd.store import (
    CreateRevisionIs,
    Delete,
    Header,
    KeyValue,
    Lease,
    ModRevisionIs,
    Put,
    Range,
    RangeResult,
    Txn,
    TxnResult,
)
from conch.etcd.watch import Answer
from conch.record import replace

etcdrpc: Any = vars(grpc_codec)["etcdrpc"]  # as the driver loads it

LEASE = 77
EVERYONE = Range(b"q/", b"q0", newest_first=True, limit=2)
TXN = Txn((CreateRevisionIs(b"q/k", 0),), (Put(b"q/k", b"v", LEASE), EVERYONE, Delete(b"x")), (Range(b"q/k"),))

HEADER = {"cluster_id": "9", "member_id": "17637856514436962721", "revision": "5", "raft_term": "2"}
KV = {"key": b64encode(b"q/k").decode(), "create_revision": "5", "mod_revision": "5", "version": "1", "lease": "77"}
GOOD: dict[str, dict[str, Any]] = {
    "header": {"header": HEADER},
    "granted": {"header": HEADER, "ID": "77", "TTL": "10"},
    "renewed": {"header": HEADER, "ID": "77"},
    "found": {"header": HEADER, "kvs": [KV], "count": "1"},
    "won": {
        "header": HEADER,
        "succeeded": True,
        "responses": [
            {"response_put": {"header": {"revision": "5"}}},
            {"response_range": {"header": {"revision": "5"}, "kvs": [KV], "count": "1"}},
            {"response_delete_range": {}},
        ],
    },
    "lost": {"header": HEADER, "responses": [{"response_range": {"kvs": [KV], "count": "1"}}]},
    "made": {"header": HEADER, "created": True},
    "event": {"header": HEADER, "events": [{"kv": KV}, {"type": "DELETE", "kv": {"key": "cQ==", "mod_revision": "6"}}]},
    "compacted": {"header": {"raft_term": "2"}, "canceled": True, "compact_revision": "3"},
    "token": {"header": HEADER, "token": "abc.12"},
}


def transaction(answer: dict[str, Any]) -> TxnResult:
    return codec.transaction(TXN, answer)


READ: dict[str, Callable[[dict[str, Any]], Any]] = {
    "header": codec.header,
    "granted": lambda answer: codec.granted(LEASE, answer),
    "renewed": lambda answer: codec.renewed(LEASE, answer),
    "found": lambda answer: codec.found(EVERYONE, answer),
    "won": transaction,
    "lost": transaction,
    "made": codec.watch_answer,
    "event": codec.watch_answer,
    "compacted": codec.watch_answer,
    "token": codec.token,
}
ODD = (
    st.none()
    | st.booleans()
    | st.sampled_from([0, -1, 5, 2**63 - 1, 2**63, 2**64, 10**30, 1.5, "", "0", "-1", "5", "٣", "1e3", "x" * 50, "a=b"])
    | st.text(st.characters(), max_size=8)
    | st.just([])
    | st.just({})
    | st.lists(st.integers() | st.none() | st.just({}), min_size=1, max_size=2)
    | st.just({"error": {"code": 5}})
)
ANY = st.recursive(
    ODD,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["header", "kvs", "responses", "response_range", "events", "kv", "error", "result", "code"])
            | st.text(max_size=4),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


def places(value: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where the parts of a value are."""
    parts = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [place for name, part in parts for place in [(*at, name), *places(part, (*at, name))]]


def bent(value: Any, at: tuple[Any, ...], part: Any, *, drop: bool) -> Any:
    """A copy with one part put in place of another, or left out."""
    copy = json.loads(json.dumps(value))
    holder = copy
    for name in at[:-1]:
        holder = holder[name]
    if drop:
        del holder[at[-1]]
    else:
        holder[at[-1]] = part
    return copy


@st.composite
def nearly_good(draw: st.DrawFn) -> tuple[str, Any]:
    """An answer of etcd in which a few parts are odd or missing."""
    kind = draw(st.sampled_from(sorted(GOOD)))
    answer: Any = GOOD[kind]
    for _ in range(draw(st.integers(1, 2))):
        if found := places(answer):
            answer = bent(answer, draw(st.sampled_from(found)), draw(ANY), drop=draw(st.booleans()))
    return kind, answer


def judged(kind: str, data: bytes) -> Any:
    """What the judge makes of an answer's bytes; anything but a verdict fails the test."""
    try:
        return READ[kind](codec.answer(200, data))
    except (BadAnswer, GatewayError) as error:
        check_verdict(error)
        return None


def check_verdict(error: Exception) -> None:
    """It says something, and not too much; an error of etcd has one of gRPC's codes."""
    assert 0 < len(str(error)) <= (1000 if isinstance(error, GatewayError) else 300)
    assert not isinstance(error, GatewayError) or 1 <= error.code <= 16


def check(kind: str, record: Any) -> None:
    """What a caller relies on without looking."""
    match record:
        case Lease(head, ttl_s):
            check(kind, head)
            assert type(ttl_s) is int
            assert 0 <= ttl_s <= 9_000_000_000
            assert ttl_s > 0 or kind == "renewed"
        case Header(revision, member, term):
            assert 0 < revision < 2**63 - 1
            assert min(member, term) > 0
        case TxnResult(head, succeeded, ranges):
            check(kind, head)
            assert len(ranges) == 1
            if succeeded:
                assert (ranges[0].kvs[0].key, ranges[0].kvs[0].create_revision) == (b"q/k", head.revision)
            else:
                assert ranges[0].kvs[0].key == b"q/k"
        case RangeResult(head, kvs, count):
            check(kind, head)
            assert count >= 0
            assert len(kvs) <= 2
            assert all(b"q/" <= kv.key < b"q0" and 0 < kv.create_revision <= kv.mod_revision for kv in kvs)
        case Answer():
            assert all(0 < one.kv.mod_revision < 2**63 - 1 and one.kv.key for one in record.events)
            assert isinstance(record.cancel_reason, str)
        case str():
            assert record.isascii()
            assert record.isprintable()
            assert record
        case _:
            raise AssertionError(f"not a record: {record!r}")


@pytest.mark.parametrize("kind", sorted(GOOD))
def test_answers_of_etcd_are_read(kind: str) -> None:
    """As etcd sends them: alone, and as a line of a stream."""
    alone = judged(kind, json.dumps(GOOD[kind]).encode())
    assert alone is not None
    check(kind, alone)
    assert judged(kind, json.dumps({"result": GOOD[kind]}).encode() + b"\n") == alone


@given(nearly_good())
@example(("found", {"header": None}))
@example(("found", {"header": [HEADER]}))
@example(("found", {"header": HEADER, "kvs": [5]}))
@example(("found", {"header": HEADER, "kvs": [None]}))
@example(("token", {"token": 5}))
def test_odd_parts_are_a_bad_answer(answer: tuple[str, Any]) -> None:
    """Whatever is odd or missing: a record that holds what its readers rely on, or a bad answer, and no exception."""
    kind, value = answer
    record = judged(kind, json.dumps(value).encode())
    if record is not None:
        check(kind, record)


@given(st.sampled_from(sorted(GOOD)), ANY | st.lists(ANY) | st.integers())
def test_any_json_is_a_bad_answer(kind: str, value: Any) -> None:
    """None of it says that an office is vacant, or a lease gone."""
    record = judged(kind, json.dumps(value).encode())
    if record is not None:
        check(kind, record)
        assert kind not in ("found", "won", "lost", "granted", "renewed")


@given(st.sampled_from(sorted(GOOD)), st.binary(max_size=60), st.integers(100, 599))
@example("found", b"[" * 100_000, 200)
@example("found", b"1" * 10_000, 200)
@example("found", b'{"header":NaN}', 200)
@example("found", b'\xff\xfe{"header":1}', 200)
def test_any_bytes_are_a_bad_answer(kind: str, data: bytes, status: int) -> None:
    """Whatever the status says."""
    with pytest.raises((BadAnswer, GatewayError)):
        READ[kind](codec.answer(status, data))


@pytest.mark.parametrize(
    "body",
    [
        {"error": "lost", "message": "lost", "code": 5, "details": []},  # 3.4, 3.5
        {"code": 5, "message": "lost", "details": []},  # from 3.6 on
        {"error": "lost", "code": 5},  # as conch reads it, too
    ],
)
def test_error_is_read_in_the_form_of_every_release(body: dict[str, Any]) -> None:
    """Its code and its words."""
    with pytest.raises(GatewayError, match="^lost$") as raised:
        codec.answer(404, json.dumps(body).encode())
    assert raised.value.code == 5


@given(ANY, st.integers(300, 599))
@example({"error": "x", "code": 5, "message": 5}, 404)
@example({"error": "x", "code": "5"}, 404)
@example({"error": "x"}, 404)
@example({"error": {"grpc_code": 14, "message": None}}, 503)
def test_error_bodies(value: Any, status: int) -> None:
    """An error of etcd has one of gRPC's codes and a text; all else that comes with such a status is a bad answer."""
    with pytest.raises((BadAnswer, GatewayError)) as raised:
        codec.answer(status, json.dumps(value).encode())
    check_verdict(raised.value)


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        ("found", {"kvs": [{**KV, "key": "eA=="}]}),
        ("found", {"kvs": [KV, KV, KV]}),
        ("found", {"kvs": [{**KV, "key": "cS9r!"}]}),
        ("found", {"kvs": [{**KV, "create_revision": None}]}),
        ("found", {"kvs": [{**KV, "lease": str(2**63)}]}),
        ("found", {"header": {**HEADER, "revision": None}}),
        ("found", {"header": {**HEADER, "raft_term": "0"}}),
        ("granted", {"TTL": None}),
        ("granted", {"TTL": str(10**18)}),
        ("granted", {"ID": "78"}),
        ("renewed", {"ID": "78"}),
        ("renewed", {"TTL": "-7"}),
        ("won", {"succeeded": "yes"}),
        ("won", {"responses": GOOD["won"]["responses"][:2]}),
        ("won", {"responses": GOOD["won"]["responses"][::-1]}),
        ("won", {"responses": [GOOD["won"]["responses"][0], {"response_range": {}}, {"response_delete_range": {}}]}),
        ("lost", {"responses": None}),
        ("lost", {"responses": [{"response_range": {}}]}),
        ("made", {"header": None}),
        ("event", {"events": [{}]}),
        ("event", {"events": [{"type": "TRUNCATE", "kv": KV}]}),
        ("token", {"token": "a\r\nX: b"}),
    ],
)
def test_answer_that_etcd_never_gives(kind: str, changes: dict[str, Any]) -> None:
    """Well-formed, and yet not an answer to what was asked."""
    with pytest.raises(BadAnswer):
        READ[kind](codec.answer(200, json.dumps({**GOOD[kind], **changes}).encode()))


def test_null_stands_for_the_default() -> None:
    """As protobuf's mapping to JSON says: no keys, and not a bad answer."""
    nothing = codec.found(EVERYONE, {"header": HEADER, "kvs": None, "count": None, "more": None})
    assert nothing == RangeResult(Header(5, 17637856514436962721, 2), (), 0)
    gone = codec.renewed(LEASE, {"header": HEADER, "ID": "77", "TTL": "-1"})
    assert gone.ttl_s == 0  # as etcd's own proxy says it


@pytest.mark.parametrize("tells", [True, False], ids=["before 3.7", "3.7"])
def test_lease_of_a_key_that_is_read_alone_is_told_by_no_release(tells: bool) -> None:
    """What rested on it would fail on the newest release alone."""
    kv = {"key": b64encode(b"q/k").decode(), "create_revision": "5", "mod_revision": "5", "version": "1"}
    answered = {"header": HEADER, "kvs": [{**kv, "lease": "77"} if tells else kv], "count": "1"}
    assert codec.found(replace(EVERYONE, keys_only=True), answered).kvs == (KeyValue(b"q/k", b"", 5, 5, 0),)
    assert not tells or codec.found(EVERYONE, answered).kvs[0].lease == LEASE


# -- gRPC -----------------------------------------------------------------------------------------------------


def header(**changes: int) -> Any:
    return etcdrpc.ResponseHeader(**{"member_id": 3, "revision": 5, "raft_term": 2, **changes})


def key(name: bytes = b"q/k", **changes: int) -> Any:
    return messages_kv(key=name, **{"create_revision": 5, "mod_revision": 5, **changes})


messages_kv = type(etcdrpc.RangeResponse().kvs.add())


@pytest.mark.parametrize(
    "read",
    [
        lambda: grpc_codec.header(etcdrpc.LeaseRevokeResponse()),
        lambda: grpc_codec.header(etcdrpc.LeaseRevokeResponse(header=header(raft_term=0))),
        lambda: grpc_codec.token(etcdrpc.AuthenticateResponse(header=header())),
        lambda: grpc_codec.granted(LEASE, etcdrpc.LeaseGrantResponse(ID=LEASE, TTL=10)),
        lambda: grpc_codec.granted(LEASE, etcdrpc.LeaseGrantResponse(header=header(), ID=LEASE)),
        lambda: grpc_codec.renewed(LEASE, etcdrpc.LeaseKeepAliveResponse(header=header(), ID=78, TTL=10)),
        lambda: grpc_codec.renewed(LEASE, etcdrpc.LeaseKeepAliveResponse()),
        lambda: grpc_codec.range_result(EVERYONE, etcdrpc.RangeResponse()),
        lambda: grpc_codec.range_result(EVERYONE, etcdrpc.RangeResponse(header=header(), kvs=[key(b"x")])),
        lambda: grpc_codec.range_result(EVERYONE, etcdrpc.RangeResponse(header=header(), kvs=[key(create_revision=0)])),
        lambda: grpc_codec.txn_result(TXN, etcdrpc.TxnResponse(header=header(), succeeded=True)),
        lambda: grpc_codec.txn_result(TXN, etcdrpc.TxnResponse(header=header())),
        lambda: grpc_codec.txn_result(Txn((), ()), etcdrpc.TxnResponse(header=header())),
        lambda: grpc_codec.txn_result(
            TXN,
            etcdrpc.TxnResponse(
                header=header(), responses=[etcdrpc.ResponseOp(response_put=etcdrpc.PutResponse(header=header()))]
            ),
        ),
        lambda: grpc_codec.txn_result(TXN, etcdrpc.TxnResponse(header=header(), responses=[etcdrpc.ResponseOp()])),
        lambda: grpc_codec.watch_answer(etcdrpc.WatchResponse(created=True)),
    ],
)
def test_grpc_answers_that_etcd_never_gives(read: Callable[[], Any]) -> None:
    """Without its header, of another kind than asked, or about something else: a bad answer here, too."""
    with pytest.raises(BadAnswer):
        read()


def test_compares_prove_what_is_there() -> None:
    """A key that was compared with its revision, or just put, cannot be missing from what the transaction read."""
    compare = (CreateRevisionIs(b"a", 3), ModRevisionIs(b"b", 4))
    txn = Txn(compare, (Range(b"a"), Range(b"b"), Put(b"c", b""), Range(b"c")))

    def answer(a: Any, b: Any, c: Any) -> Any:
        made = [etcdrpc.ResponseOp(response_range=etcdrpc.RangeResponse(kvs=kvs)) for kvs in (a, b, c)]
        made.insert(2, etcdrpc.ResponseOp(response_put=etcdrpc.PutResponse()))
        return etcdrpc.TxnResponse(header=header(), succeeded=True, responses=made)

    a, b, c = key(b"a", create_revision=3), key(b"b", create_revision=1, mod_revision=4), key(b"c", create_revision=2)
    assert len(grpc_codec.txn_result(txn, answer([a], [b], [c])).ranges) == 3
    for odd in (answer([], [b], [c]), answer([a], [], [c]), answer([a], [b], []), answer([key(b"a")], [b], [c])):
        with pytest.raises(BadAnswer):
            grpc_codec.txn_result(txn, odd)


NESTED = GOOD["lost"] | {"header": None}
BOTH: dict[str, Any] = {
    "header": HEADER,
    "succeeded": True,
    "responses": [{"response_txn": GOOD["won"]}, {"response_txn": NESTED}],
}


def test_answer_to_several_transactions() -> None:
    """Each has its own branch; the header is that of all, whatever stands in theirs."""
    answer = codec.transactions([TXN, TXN], BOTH)
    assert [result.succeeded for result in answer.results] == [True, False]
    assert {result.header for result in answer.results} == {answer.header} == {codec.header(BOTH)}


@pytest.mark.parametrize(
    "odd",
    [
        BOTH | {"succeeded": False},
        BOTH | {"succeeded": None},
        BOTH | {"header": None},
        BOTH | {"responses": []},
        BOTH | {"responses": BOTH["responses"][:1]},
        BOTH | {"responses": BOTH["responses"] * 2},
        BOTH | {"responses": [{"response_txn": GOOD["won"]}, {"response_range": {}}]},
        BOTH | {"responses": [{"response_txn": GOOD["won"]}, {"response_txn": {}}]},
        BOTH | {"responses": [{"response_txn": GOOD["won"]}, {"response_txn": NESTED | {"succeeded": True}}]},
    ],
)
def test_answers_to_several_transactions_that_etcd_never_gives(odd: dict[str, Any]) -> None:
    """A missing part would give one job the answer of another."""
    with pytest.raises(BadAnswer):
        codec.transactions([TXN, TXN], odd)
    responses = []
    for response in odd["responses"]:
        nested = response.get("response_txn", {})
        parts = [etcdrpc.ResponseOp(response_range=etcdrpc.RangeResponse()) for _ in nested.get("responses", ())]
        txn = etcdrpc.TxnResponse(succeeded=bool(nested.get("succeeded")), responses=parts)
        responses.append(etcdrpc.ResponseOp(response_txn=txn))
    succeeded, at = bool(odd["succeeded"]), header() if odd["header"] else None
    with pytest.raises(BadAnswer):
        grpc_codec.txns_result([TXN, TXN], etcdrpc.TxnResponse(header=at, succeeded=succeeded, responses=responses))
