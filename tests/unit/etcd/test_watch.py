"""A watch over streams of our own: what it yields, and what it does when they break."""

from typing import Any

import pytest

from conch.etcd.answers import BadAnswer
from conch.etcd.store import Event, KeyValue, Range, Refused
from conch.etcd.timeline import Timeline
from conch.etcd.watch import Answer, DriverWatch, IllegalWatchState, WatchState
from conch.record import replace

CREATED = Answer(0, True, False, "", 0, ())
KEY = KeyValue(b"q/k", b"", 6, 6, 0)
WRITTEN = replace(CREATED, created=False, events=(Event(KEY, False),))
DELETED = replace(WRITTEN, events=(Event(replace(KEY, create_revision=0, mod_revision=7), True),))


class Script:
    """A stream that says what a test wants, and ends."""

    def __init__(self, answers: list[Answer | Exception]) -> None:
        self.client = self
        self._answers = answers

    def __iter__(self) -> Any:
        for answer in self._answers:
            if isinstance(answer, Exception):
                raise answer
            yield answer

    def add(self, what: Range, revision: int) -> bool:
        return True

    def cancel(self) -> None: ...
    def close(self) -> None: ...


EVERYTHING = [(Range(b"q/", b"q0"), 5)]


def watched(
    *streams: list[Answer | Exception], ranges: list[tuple[Range, int]] = EVERYTHING
) -> tuple[list[Event], list[str], int]:
    """The events of a watch over these streams, what it reported, how often as unavailable; then it is cancelled."""
    reported: list[str] = []
    unavailable: list[None] = []
    rest = list(streams)

    def open_stream(_: Any) -> Script:
        if not rest:
            watch.cancel()
            return Script([])
        return Script(rest.pop(0))

    watch = DriverWatch(
        ranges,
        open_stream,
        drop_connection=lambda _: None,
        invalidate_token=lambda: None,
        failures=(BadAnswer,),
        report=reported.append,
        on_unavailable=lambda: unavailable.append(None),
        timeline=Timeline(),
        confirm=lambda _: None,
    )
    found = [event for events in watch for event in events]
    assert watch.state is WatchState.ENDED
    return found, reported, len(unavailable)


@pytest.mark.parametrize(
    "odd",
    [
        [WRITTEN],
        [CREATED, CREATED],
        [CREATED, replace(CREATED, watch_id=1)],
        [CREATED, replace(WRITTEN, watch_id=4)],
        [CREATED, replace(WRITTEN, events=(Event(replace(KEY, key=b"x"), False),))],
        [CREATED, replace(WRITTEN, events=(*DELETED.events, *WRITTEN.events))],
        [CREATED, replace(CREATED, created=False, canceled=True, compact_revision=4)],
        [BadAnswer("odd")],
    ],
)
def test_watch_leaves_a_stream_that_says_odd_things(odd: list[Answer | Exception]) -> None:
    """No event is lost for it, or taken from it; a better stream brings them."""
    assert watched(odd, [CREATED, WRITTEN, DELETED])[0] == [*WRITTEN.events, *DELETED.events]


def test_watch_whose_streams_promise_and_bring_nothing_says_so() -> None:
    """A stream that was confirmed and ends was useless: the watch pauses for longer, and reports it once."""
    useless: list[Answer | Exception] = [CREATED, BadAnswer("odd")]
    events, reported, unavailable = watched(*[useless] * 5, [CREATED, WRITTEN])
    assert events == [*WRITTEN.events]
    assert reported == ["watch-interrupted", "watch-resumed"]
    assert unavailable == 1


TWO = [(Range(b"q/", b"q0"), 5), (Range(b"r"), 5)]
REFUSED = replace(CREATED, watch_id=-1, canceled=True, cancel_reason="rpc error: etcdserver: permission denied")
SECOND = replace(CREATED, watch_id=1)


def test_watch_ends_when_a_later_range_is_refused_again() -> None:
    """The first time it may be the token; the earlier range, which is allowed, has no say in it."""
    refused: list[Answer | Exception] = [CREATED, WRITTEN, REFUSED]
    with pytest.raises(Refused, match="permission denied"):
        watched(refused, refused, [CREATED, SECOND], ranges=TWO)
    with pytest.raises(Refused, match="permission denied"):
        watched([REFUSED], [REFUSED], [CREATED, SECOND], ranges=TWO)


def test_refusal_that_a_new_login_mends_is_forgotten() -> None:
    """Once all ranges are watched, the next refusal is the first one again."""
    refused: list[Answer | Exception] = [CREATED, REFUSED]
    mended: list[Answer | Exception] = [CREATED, SECOND, BadAnswer("odd")]
    events, _, _ = watched(refused, mended, refused, mended, refused, [CREATED, SECOND, WRITTEN], ranges=TWO)
    assert events == [*WRITTEN.events]


def test_watch_is_iterated_once() -> None:
    """An ended watch stays ended; whoever goes on from there begins another."""
    watch = DriverWatch(
        EVERYTHING,
        lambda _: Script([]),
        drop_connection=lambda _: None,
        invalidate_token=lambda: None,
        failures=(BadAnswer,),
        report=lambda _: None,
        on_unavailable=lambda: None,
        timeline=Timeline(),
        confirm=lambda _: None,
    )
    watch.cancel()
    assert list(watch) == []
    with pytest.raises(IllegalWatchState, match="ended"):
        list(watch)
