"""Which second a request gets."""

import json

import pytest

from conch.cron.schedule import parse_schedule
from conch.cron.seconds import REACH, free_second, seconds_from
from conch.etcd.store import KeyValue
from conch.keys import Keys

NOW = 1_900_000_001


def key(kind: str, tick: int, **fields: object) -> KeyValue:
    return KeyValue(f"/p/cron/{kind}/j/{tick}".encode(), json.dumps(fields).encode(), 1, 1, 1)


@pytest.mark.parametrize(
    ("expression", "taken", "second"),
    [
        (None, (), 0),
        (None, (0, 1, 3), 2),
        ("@every 2s", (), 0),
        ("@every 2s", (0,), 2),
        ("@every 1s", (), None),
        ("* * * * *", (), 0),
    ],
)
def test_first_second_that_is_free(expression: str | None, taken: tuple[int, ...], second: int | None) -> None:
    """It is no tick of the schedule and has no claim."""
    schedule = None if expression is None else parse_schedule(expression)
    found = free_second(schedule, NOW, NOW + REACH, {NOW + at for at in taken})
    assert found == (None if second is None else NOW + second)


def test_what_has_no_second_within_reach() -> None:
    """All of them are taken."""
    assert free_second(None, NOW, NOW + REACH, range(NOW, NOW + REACH)) is None
    assert free_second(parse_schedule("@every 2s"), NOW, NOW + 1, {NOW}) is None


@pytest.mark.parametrize(
    ("claims", "floor", "lowest"),
    [
        ([], b"", 0),
        ([key("fire", NOW)], b"", 0),
        ([key("fire", NOW + 3, request="5f")], b"", 4),
        ([key("fire", NOW + 3, request="5f"), key("fire", NOW + 9)], b"", 4),
        ([], str(NOW + 6).encode(), 7),
        ([], b"\xff", 0),
        ([], b"9" * 30, 0),
        ([], b"5", 0),
    ],
)
def test_requests_lie_above_those_before_them_and_above_the_floor(
    claims: list[KeyValue], floor: bytes, lowest: int
) -> None:
    """Claims of the schedule alone do not push them on."""
    found = seconds_from(Keys("/p"), NOW, floor, claims, [key("result", NOW + 1)])
    assert found.lowest == NOW + lowest
    assert found.taken == {*(int(kv.key.rpartition(b"/")[2]) for kv in claims), NOW + 1}
