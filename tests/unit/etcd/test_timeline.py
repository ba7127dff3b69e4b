"""Whether etcd's revision went back, by the answers in the order in which they arrive."""

import pytest

from conch.etcd.store import Header, Lease, RangeResult
from conch.etcd.timeline import Timeline


def read(revision: int, term: int = 2) -> RangeResult:
    return RangeResult(Header(revision, 1, term), (), 0)


def renewal(revision: int, term: int = 2) -> Lease:
    return Lease(Header(revision, 1, term), 10)


class Heard:
    """A timeline, and how often it said that the revision went back."""

    def __init__(self) -> None:
        self.told: list[str] = []
        self.woken = 0
        self.line = Timeline(lambda event, _text: self.told.append(event))
        self.line.follow(self.wake)

    def wake(self) -> None:
        self.woken += 1

    def hears(self, *answers: RangeResult | Lease) -> "Heard":
        """Each was asked when the one before had arrived."""
        for answer in answers:
            self.line.note_answer(answer, self.line.newest)
        return self


@pytest.mark.parametrize(
    ("answers", "times"),
    [
        ([read(5), read(5), read(9)], 0),
        ([read(9), read(5)], 1),
        ([read(9), read(5), read(5), read(6)], 1),
        ([read(9), read(5), read(8), read(2)], 2),
        ([read(9), renewal(5)], 0),
        ([renewal(9), read(5)], 1),
        ([read(9, term=7), read(9, term=6)], 1),
        ([read(9, term=7), read(50, term=2)], 1),
        ([read(9), renewal(9, term=50), read(9)], 0),
    ],
    ids=str,
)
def test_answers_in_turn(answers: list[RangeResult | Lease], times: int) -> None:
    """A linearizable answer that is behind what was known tells it, once; a member's own header does not."""
    heard = Heard().hears(*answers)
    assert heard.told == ["revision-went-back"] * times
    assert heard.woken == times


def test_answers_that_cross() -> None:
    """What was asked before a newer answer came, or before it went back, may be behind that."""
    heard = Heard().hears(read(5))
    before = heard.line.newest
    heard.hears(read(9))
    heard.line.note_answer(read(6), before)
    assert heard.told == []
    heard.hears(read(3))
    heard.line.note_answer(read(9), before)
    assert (heard.line.newest.revision, len(heard.told)) == (3, 1)


def test_events_count() -> None:
    """What a watch has shown was there."""
    heard = Heard().hears(read(5))
    heard.line.note_event(9, heard.line.newest)
    assert heard.hears(read(6)).told == ["revision-went-back"]


def test_moments_bound_when_a_revision_was_made() -> None:
    """After the last answer below it was asked for, and before the first that has it came."""
    line = Timeline()
    assert line.moments(5) == (None, None)
    for sent_at, revision in ((100.0, 3), (101.0, 4), (102.0, 7), (103.0, 9)):
        line.note_answer(read(revision), line.newest, sent_at)
    assert line.moments(3)[0] is None
    after, before = line.moments(5)
    assert after == 101.0
    assert before is not None
    assert line.moments(9)[0] == 102.0
    assert line.moments(10) == (103.0, None)


def test_moments_are_of_linearizable_answers_and_are_forgotten_when_etcd_went_back() -> None:
    """A member's own header may lag; another history's revisions say nothing of this one."""
    line = Timeline()
    line.note_answer(renewal(3), line.newest, 100.0)
    assert line.moments(5) == (None, None)
    line.note_answer(read(4), line.newest, 101.0)
    before = line.newest
    line.note_answer(read(2), line.newest, 102.0)
    line.note_answer(read(8), before, 103.0)
    assert line.moments(5) == (None, None)
    line.note_answer(read(3), line.newest, 104.0)
    assert line.moments(5) == (104.0, None)


def test_moments_of_many_answers_are_few() -> None:
    """The bounds of an old revision get wider, then unknown; they are never wrong."""
    line = Timeline()
    for number in range(100_000):
        line.note_answer(read(number + 1), line.newest, number / 1000)
    assert len(line._moments) <= 256
    for revision in (50, 75_000, 99_990):
        after, _ = line.moments(revision)
        assert after is None or after <= (revision - 1) / 1000
    assert line.moments(99_990)[0] is not None
