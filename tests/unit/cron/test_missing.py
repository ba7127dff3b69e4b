"""Ticks that nobody claimed in time, counted exactly."""

from conch.cron.missing import Missed, joined
from conch.cron.schedule import parse_schedule

MINUTELY = parse_schedule("* * * * *")
START = 1_800_000_000  # a full minute


def test_ticks_of_a_schedule_but_for_those_that_were_taken() -> None:
    """A request that was served in between, at a second that is no tick, takes none of them."""
    month = Missed(START, START + 30 * 86400, MINUTELY)
    assert month.count() == 43201
    assert month.left({START, START + 60, START + 61, START - 60, START + 31 * 86400}) == 43199
    assert month.newest() == START + 30 * 86400
    assert Missed(START, START + 119, MINUTELY).newest() == START + 60


def test_single_ticks() -> None:
    """Each is there, or taken."""
    assert Missed(START, START, 1).left({START}) == 0
    assert Missed(START, START, 1).left({START + 1}) == 1


def test_the_list_of_what_waits_has_an_end() -> None:
    """The number of ticks stays."""
    waiting = [Missed(START, START + 3600, MINUTELY), *(Missed(START + at, START + at, 1) for at in range(7200, 7300))]
    assert joined(waiting[:64]) == waiting[:64]
    assert joined(waiting) == [Missed(START, START + 7299, 61 + 100)]
