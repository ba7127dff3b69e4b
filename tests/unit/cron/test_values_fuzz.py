"""Claims and results as they stand in etcd, fed with anything."""

import json

from hypothesis import given
from hypothesis import strategies as st

from conch.cron.values import FIRST_TICK, LAST_TICK, fields_of, row, whole_tick
from conch.holder import UnreadableHolder
from tests.support.fuzz import HOLDER, RESULT, anything


@given(st.none() | anything(HOLDER), st.none() | anything(RESULT))
def test_rows_of_ticks(claim: bytes | None, result: bytes | None) -> None:
    """Any claim and result are unreadable, or a row that can be written as JSON."""
    try:
        shown = row("j", FIRST_TICK, claim, result)
    except UnreadableHolder:
        return
    json.dumps(shown, allow_nan=False).encode()


@given(anything(HOLDER))
def test_fields_and_ticks_of_values(value: bytes) -> None:
    """Any value gives a mapping, perhaps empty; its tick is an integer in range, or None."""
    tick = whole_tick(fields_of(value).get("tick"))
    assert tick is None or FIRST_TICK <= tick <= LAST_TICK
