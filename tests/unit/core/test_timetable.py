"""When each of many runs has something to do next."""

import random

from conch.core.timetable import Timetable


def test_times_come_due_in_order_and_once() -> None:
    """A time that was replaced or taken back never does."""
    table = Timetable()
    for run, at in (("a", 3.0), ("b", 1.0), ("c", 2.0), ("d", 1.5)):
        table.set(run, at)
    table.set("b", 2.5)
    table.set("c", 2.0)
    table.set("d", None)
    assert table.first == 2.0
    assert table.take_due(1.9) == []
    assert table.take_due(2.5) == ["c", "b"]
    assert table.take_due(2.5) == []
    assert table.first == 3.0
    table.set("a", None)
    assert table.first is None


def test_as_a_plain_search_finds_them() -> None:
    """Whatever is set, replaced, taken back and comes due."""
    seed = random.randrange(2**32)
    draw, table, times = random.Random(seed), Timetable(), dict[str, float]()
    for now in range(2000):
        run = f"r{draw.randrange(30)}"
        at = draw.choice((None, now + draw.randrange(1, 40) + 0.5))
        table.set(run, at)
        times.pop(run, None)
        if at is not None:
            times[run] = at
        assert table.first == min(times.values(), default=None), f"seed {seed}"
        due = table.take_due(now)
        assert sorted(due) == sorted(run for run, at in times.items() if at <= now), f"seed {seed}"
        for run in due:
            del times[run]


def test_memory_does_not_grow_with_the_runs_that_were() -> None:
    """Their times, perhaps hours ahead, are forgotten with them."""
    table = Timetable()
    for number in range(10_000):
        table.set(f"r{number}", 1e6 + number)
        table.set(f"r{number}", None)
    assert len(table) < 1000
