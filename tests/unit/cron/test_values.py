"""Claims and results as bytes in etcd, and the rows made of them."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from conch.cron.values import STATES, Result, claim_value, fields_of, row
from conch.holder import Holder, UnreadableHolder
from conch.times import rfc3339
from tests.support.jobs import ANY, TICK, text_of

ROW = {"name", "tick", "tick_unix", "state", "exit", "node", "started", "duration_s", "attempt", "reason"}
ROW |= {"cpu_s", "max_rss_kb"}


HOLDER = Holder("h", 7, "2026-01-01T00:00:00Z", "conchd")


def test_claim_value_is_a_holder_and_more() -> None:
    """Who, which run and which tick, in one line; odd bytes in the command do no harm."""
    value = claim_value(Holder("h", 7, "s", "a \udcff é"), "r1", TICK)
    assert b"\n" not in value
    holder = Holder.decode(value)
    assert (holder.host, holder.pid, holder.started) == ("h", 7, "s")
    assert (fields_of(value)["tick"], fields_of(value)["run"]) == (TICK, "r1")


@pytest.mark.parametrize("value", [b"", b"[]", b"5", b"null", b"\xff", b"{", b"[" * 100000])
def test_value_without_fields(value: bytes) -> None:
    """Is taken for an empty object."""
    assert fields_of(value) == {}


RESULTS = st.builds(
    Result,
    node=st.text(st.characters()),
    state=st.sampled_from(STATES),
    exit=st.none() | st.integers(0, 255),
    started=st.none() | st.floats(0, 4e9),
    duration_s=st.floats(0, 1e6),
    attempt=st.integers(0, 1001),
    reason=st.text(st.characters()),
    cpu_s=st.floats(0, 1e6),
    max_rss_kb=st.none() | st.integers(0, 2**31 - 1),
)


@given(RESULTS)
def test_result_comes_back_as_a_row(result: Result) -> None:
    """With the field names of the contract."""
    value = result.encode()
    assert b"\n" not in value
    assert set(json.loads(value)) >= {"node", "exit", "started", "duration", "state", "reason", "attempt"}
    assert row("j", TICK, None, value) == {
        "name": "j",
        "tick": "2023-11-14T22:13:20Z",
        "tick_unix": TICK,
        "state": result.state,
        "exit": result.exit,
        "node": result.node,
        "started": None if result.started is None else rfc3339(result.started),
        "duration_s": result.duration_s,
        "attempt": result.attempt,
        "reason": result.reason or None,
        "cpu_s": None if result.max_rss_kb is None else result.cpu_s,
        "max_rss_kb": result.max_rss_kb,
    }


def test_claim_without_a_result_is_claimed() -> None:
    """By its host, and with nothing else to say."""
    shown = row("j", TICK, claim_value(HOLDER, "r", TICK), None)
    assert set(shown) == ROW
    known = {"name": "j", "tick": "2023-11-14T22:13:20Z", "tick_unix": TICK, "state": "claimed", "node": "h"}
    assert {field: value for field, value in shown.items() if value is not None} == known


def test_result_goes_before_its_claim() -> None:
    """Also where the claim cannot be read."""
    for claim in (None, b"junk", claim_value(HOLDER, "r", TICK)):
        assert row("j", TICK, claim, Result("n", "ok", exit=0).encode())["state"] == "ok"


@pytest.mark.parametrize("result", [b"", b"junk", b"[]", b"{}", b'{"state": "ok"}', b'{"state": 1, "node": "n"}'])
def test_broken_result_is_unreadable(result: bytes) -> None:
    """And not passed off as claimed."""
    with pytest.raises(UnreadableHolder):
        row("j", TICK, claim_value(HOLDER, "r", TICK), result)


FIELDS = st.fixed_dictionaries(
    {},
    optional={
        "state": st.sampled_from(STATES) | ANY,
        "node": st.text() | ANY,
        **dict.fromkeys(("exit", "started", "duration", "attempt", "reason", "host", "pid", "cmd"), ANY),
    },
)


VALUES = st.none() | st.binary(max_size=50) | ANY.map(text_of) | FIELDS.map(text_of)


def check_row(claim: bytes | None, result: bytes | None) -> None:
    """It has all fields of the contract, of their types, and can be shown as JSON and as text."""
    try:
        shown = row("j", TICK, claim, result)
    except UnreadableHolder:
        return
    assert set(shown) == ROW
    json.dumps(shown, allow_nan=False)
    for field in ("exit", "attempt", "duration_s"):
        value = shown[field]
        assert value is None or (isinstance(value, int | float) and not isinstance(value, bool))
    assert shown["duration_s"] is None or f"{shown['duration_s']:.1f}"
    for field in ("state", "node", "started", "reason"):
        assert shown[field] is None or isinstance(shown[field], str)


@given(VALUES, VALUES)
def test_any_values_are_a_row_or_unreadable(claim: bytes | None, result: bytes | None) -> None:
    """Nothing but `UnreadableHolder` is raised."""
    check_row(claim, result)


@pytest.mark.parametrize("field", ["exit", "attempt", "duration", "started", "reason"])
@pytest.mark.parametrize(
    "value", ["true", "NaN", "Infinity", "1e400", pytest.param("1" + "0" * 400, id="huge"), '"x"', "[]", "null", "-1"]
)
def test_odd_fields_of_a_result_written_by_hand(field: str, value: str) -> None:
    """They do not reach people or programs as what is no number, and break nothing."""
    check_row(None, b'{"state": "ok", "node": "n", "%s": %s}' % (field.encode(), value.encode()))
