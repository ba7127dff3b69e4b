"""Whether the supervisor takes orders."""

import os
from types import SimpleNamespace
from typing import Any

import pytest

from conch.core import procfs
from conch.cron.supervisor_check import SupervisorCheck


class Bed:
    """A check on a clock that the test sets, of a supervisor whose process is in the state `process`."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.seconds = 100.0
        self.process = "S"
        self.looks = 0
        self.check = SupervisorCheck(lambda: self.seconds)
        monkeypatch.setattr(procfs, "stat", self._stat)

    def _stat(self, pid: int) -> Any:
        self.looks += 1
        if self.process == "unreadable":
            raise OSError("too many open files")
        return None if self.process == "gone" else SimpleNamespace(state=self.process)


@pytest.fixture
def bed(monkeypatch: pytest.MonkeyPatch) -> Bed:
    return Bed(monkeypatch)


@pytest.mark.parametrize(
    ("ordered", "after_s", "parent", "process", "answers"),
    [
        (False, 5.0, True, "S", True),
        (True, 0.9, True, "S", True),
        (True, 1.1, True, "S", False),
        (False, 0.0, False, "S", False),
        (False, 0.0, True, "T", False),
        (False, 0.0, True, "t", False),
        (False, 0.0, True, "gone", False),
        (False, 0.0, True, "unreadable", True),
    ],
)
def test_supervisor_that_answers(
    bed: Bed, monkeypatch: pytest.MonkeyPatch, ordered: bool, after_s: float, parent: bool, process: str, answers: bool
) -> None:
    """It is alive, not stopped, and took the last orders within a second; an unreadable /proc says nothing."""
    bed.process = process
    if not parent:
        monkeypatch.setattr(os, "getppid", lambda: 1)
    if ordered:
        bed.check.ordered("r")
    bed.seconds += after_s
    assert bed.check.is_answering() == answers


def test_order_that_was_taken_is_no_more_waited_for(bed: Bed) -> None:
    """The oldest of the others counts."""
    bed.check.ordered("first")
    bed.seconds += 0.9
    bed.check.ordered("second")
    assert bed.check.untaken == 2
    bed.check.taken("first")
    bed.seconds += 0.9
    assert bed.check.is_answering()
    bed.seconds += 0.2
    assert not bed.check.is_answering()
    bed.check.taken("second")
    assert bed.check.is_answering()
    assert bed.check.untaken == 0


def test_supervisor_with_many_orders_takes_one_after_the_other(bed: Bed) -> None:
    """It is busy and not stopped, however long the last one waits."""
    for number in range(10):
        bed.check.ordered(str(number))
    for number in range(9):
        bed.seconds += 0.9
        assert bed.check.is_answering()
        bed.check.taken(str(number))
        bed.check.taken("another")  # whose end says nothing about these orders
    bed.seconds += 1.1
    assert not bed.check.is_answering()


def test_one_look_at_the_process_holds_for_a_hundredth_of_a_second(bed: Bed) -> None:
    """Many ticks claimed at one moment share it; that the supervisor is stopped is never assumed."""
    assert bed.check.is_answering()
    bed.process = "T"
    bed.seconds += 0.009
    assert bed.check.is_answering()
    assert bed.looks == 1
    bed.seconds += 0.001
    assert not bed.check.is_answering()
    assert not bed.check.is_answering()
    bed.process = "S"
    assert bed.check.is_answering()
    assert bed.looks == 4
