"""What a lasting fault costs: its probes, and its lines in the log."""

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from conch.cron.faults import Breaker, Lasting
from conch.cron.missing import merged


class Log:
    """A log and its clock."""

    def __init__(self, **how: Any) -> None:
        self.now = 1000.0
        self.lines: list[tuple[str, dict[str, Any]]] = []
        self.fault = Lasting("claim-failed", self.tell, now=lambda: self.now, **how)

    def tell(self, level: str, event: str, **fields: Any) -> None:
        assert level == "warning"
        self.lines.append((event, fields))


def test_breaker_opens_at_the_first_failure_and_closes_at_the_first_success() -> None:
    """It says so once each, and gives the newest reason meanwhile."""
    breaker = Breaker()
    assert not breaker.succeeded()
    assert [breaker.failed("a"), breaker.failed("b")] == [True, False]
    assert (breaker.is_open, breaker.reason) == (True, "b")
    assert [breaker.succeeded(), breaker.succeeded()] == [True, False]
    assert (breaker.is_open, breaker.reason) == (False, "")
    assert breaker.failed("")
    assert breaker.is_open


def test_pauses_double_up_to_three_seconds_and_begin_anew_after_a_success() -> None:
    """Each with a random part of up to a half."""
    breaker = Breaker(spread=lambda: 1.0)
    breaker.failed("a")
    assert [round(breaker.next_pause_s(), 1) for _ in range(8)] == [0.1, 0.2, 0.4, 0.8, 1.6, 3.0, 3.0, 3.0]
    breaker.succeeded()
    breaker.failed("a")
    assert breaker.next_pause_s() == 0.1
    lowest = Breaker(spread=lambda: 0.0)
    lowest.failed("a")
    assert lowest.next_pause_s() == 0.05


def test_lasting_fault_is_a_line_at_its_begin_one_a_minute_and_one_at_its_end() -> None:
    """With how often it happened between them."""
    log = Log()
    for _ in range(1040):
        log.fault.failed(msg="full")
        log.now += 0.125
    log.fault.over()
    assert log.lines == [
        ("claim-failed", {"msg": "full"}),
        ("claim-failed", {"msg": "full", "times": 480}),
        ("claim-failed", {"msg": "full", "times": 480}),
        ("fault-over", {"fault": "claim-failed", "times": 1040, "for_s": 130.0}),
    ]


def test_single_failure_is_one_line() -> None:
    """And the next fault begins anew."""
    log = Log()
    for _ in range(3):
        log.fault.failed(msg="reset")
        log.fault.over()
        log.fault.over()
    assert log.lines == [("claim-failed", {"msg": "reset"})] * 3


@given(st.lists(st.tuples(st.integers(1, 5), st.floats(0.0, 100.0)), min_size=1))
def test_every_missed_tick_is_in_some_line(gaps: list[tuple[int, float]]) -> None:
    """Whatever the pauses: the lines' sums and bounds cover all of them, and there are few."""
    log = Log(merge=merged)
    at = 0
    for ticks, pause_s in gaps:
        log.fault.failed(job="j", tick=f"{at:05}", until=f"{at + ticks - 1:05}", ticks=ticks)
        at += ticks
        log.now += pause_s
    log.fault.over()
    lines = [fields for event, fields in log.lines if event == "claim-failed"]
    assert sum(fields["ticks"] for fields in lines) == at
    covered = {one for fields in lines for one in range(int(fields["tick"]), int(fields["until"]) + 1)}
    assert covered == set(range(at))
    assert len(lines) <= 2 + sum(pause_s for _, pause_s in gaps) / 60


def test_line_of_several_jobs_names_none() -> None:
    """It says from when until when, and how many."""
    one = {"job": "a", "tick": "2", "until": "3", "ticks": 2}
    both = merged(one, {"job": "b", "tick": "1", "until": "1", "ticks": 1})
    assert both == {"tick": "1", "until": "3", "ticks": 3}
    assert merged(both, one) == {"tick": "1", "until": "3", "ticks": 5}
    assert merged(one, one)["job"] == "a"
