"""Schedules, fed with anything."""

from hypothesis import given, settings
from hypothesis import strategies as st

from conch.cron.schedule import parse_schedule
from conch.cron.values import FIRST_TICK, LAST_TICK
from conch.errors import BadInput
from tests.support.fuzz import ARGUMENT, DIGITS, check_message

FIELDS = st.text("0123456789*/-,?LW#HhjanMONsu()", max_size=8)
ZONES = st.sampled_from(["UTC", "Europe/Berlin", "../UTC", "/etc/localtime", "", "posixrules", "a" * 300]) | ARGUMENT


@settings(max_examples=200)
@given(
    ARGUMENT | st.lists(FIELDS, min_size=3, max_size=7).map(" ".join) | DIGITS.map("@every ".__add__),
    ZONES,
    st.sampled_from([0, -1, FIRST_TICK, LAST_TICK, -(10**11), 10**12]) | st.integers(-(10**12), 10**12),
)
def test_schedules(text: str, zone: str, after: int) -> None:
    """Any text is bad input or a schedule whose ticks grow, also far in the past and future."""
    try:
        schedule = parse_schedule(text, zone=zone, name="j")
    except BadInput as error:
        check_message(error)
        return
    tick = schedule.next_after(after)
    assert tick is None or tick > after
