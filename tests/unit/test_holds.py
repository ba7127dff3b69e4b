"""Who holds, as somebody sees it who takes no part: each change once, none left out, through every break."""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any

import pytest

from conch import holds
from conch.etcd.connection import Connection
from conch.etcd.endpoints import parse_endpoints
from conch.etcd.store import Compacted, Event, Header, KeyValue, Range, RangeResult, Refused, Unreachable
from conch.holder import Holder, with_held_since
from conch.log import Log
from conch.times import rfc3339

QUEUE = "/p/elect/o/"
CONNECTION = Connection(parse_endpoints("127.0.0.1:1"))


class Recorder(Log):
    """Keeps the events that are logged."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.events: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, level: str, event: str, **fields: Any) -> None:
        self.events.append((event, fields))


def contender(name: str, created: int, *, value: str = "v", modified: int | None = None) -> KeyValue:
    return KeyValue((QUEUE + name).encode(), value.encode(), created, modified or created, 1)


def put(name: str, created: int, **fields: Any) -> Event:
    return Event(contender(name, created, **fields), deleted=False)


def gone(name: str, at: int) -> Event:
    return Event(KeyValue((QUEUE + name).encode(), b"", 0, at, 0), deleted=True)


class Bed:
    """The readings and watches of one queue, each the next of a script; an exception is raised."""

    def __init__(self, *readings: Any, watches: Sequence[Sequence[Any]] = ()) -> None:
        self.readings = list(readings)
        self.watches = [list(watch) for watch in watches]
        self.log = Recorder()
        self.asked: list[Range] = []
        self.began: list[int] = []
        self.cancelled = 0
        self.interrupt: Callable[[str], None] = lambda event: None

    # the store

    def range(self, what: Range, *, timeout_s: float) -> RangeResult:
        self.asked.append(what)
        answer = self.readings.pop(0)
        if isinstance(answer, Exception):
            raise answer
        revision, *kvs = answer
        return RangeResult(Header(revision, 1, 1), tuple(kvs), len(kvs))

    def watch(self, what: Sequence[tuple[Range, int]], *, log: Callable[[str], None]) -> "Bed":
        ((watched, revision),) = what
        assert watched == holds.contenders(QUEUE)
        self.began.append(revision)
        self.interrupt = log
        return self

    def __iter__(self) -> Iterator[Sequence[Event]]:
        for step in self.watches.pop(0):
            if isinstance(step, Exception):
                raise step
            yield step
        raise Compacted("the end of the script")

    def cancel(self) -> None:
        self.cancelled += 1

    def shown(self, count: int) -> list[str | None]:
        """The first changes that are shown: who is first, or None."""
        store: Any = self
        firsts = holds.watch_first(store, QUEUE, CONNECTION, self.log)
        found = [None if kv is None else kv.key.decode().removeprefix(QUEUE) for kv in islice(firsts, count)]
        firsts.close()  # type: ignore[attr-defined]
        return found


@pytest.fixture(autouse=True)
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made; none takes time."""
    pauses: list[float] = []
    monkeypatch.setattr(time, "sleep", pauses.append)
    return pauses


def test_contenders_are_all_keys_of_the_queue_first_in_line_first() -> None:
    what = holds.contenders(QUEUE)
    inside, beside = [f"{QUEUE}{key}".encode() for key in ("1", "zz", "a/b")], [b"/p/elect/o", b"/p/elect/o0", b"/p/x"]
    assert all(what.key <= key < what.end for key in inside)
    assert not any(what.key <= key < what.end for key in beside)
    assert what.oldest_first


# -- changes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("listed", "events", "shown"),
    [
        ([], [], [None]),
        ([contender("a", 5)], [], ["a"]),
        # the oldest is first, whatever its key
        ([contender("a", 7), contender("b", 5)], [], ["b"]),
        # somebody queues behind, somebody behind leaves: no change
        ([contender("a", 5)], [[put("b", 11)], [gone("b", 12)]], ["a"]),
        # a hand-over
        ([contender("a", 5), contender("b", 6)], [[gone("a", 11)]], ["a", "b"]),
        # vacant for a while
        ([contender("a", 5)], [[gone("a", 11)], [put("b", 12)]], ["a", None, "b"]),
        # each of several changes that arrive together
        (
            [contender("a", 5)],
            [[gone("a", 11), put("b", 12), gone("b", 13), put("c", 14)]],
            ["a", None, "b", None, "c"],
        ),
        # those of one revision are one change: never is it vacant in between
        ([contender("a", 5)], [[gone("a", 11), put("b", 11)]], ["a", "b"]),
        # the same key, made anew or with another value, is a change
        ([contender("a", 5)], [[gone("a", 11), put("a", 11)]], ["a", "a"]),
        ([contender("a", 5)], [[put("a", 5, value="w", modified=11)]], ["a", "a"]),
        ([contender("a", 5)], [[put("a", 5, modified=11)]], ["a"]),
        # a key that was never seen goes
        ([contender("a", 5)], [[gone("x", 11)]], ["a"]),
    ],
)
def test_changes(listed: list[KeyValue], events: list[Any], shown: list[str | None]) -> None:
    """Each once, in order; the end of the script is a listing where somebody else is first."""
    bed = Bed((10, *listed), (99, contender("end", 90)), watches=[events, []])
    assert bed.shown(len(shown) + 1) == [*shown, "end"]


def test_first_that_says_later_since_when_it_holds_is_shown_once() -> None:
    """With the time at which it came first, unless it says another; one that was there already as it is."""
    waited, since = HOLDER.encode().decode(), "2026-01-01T00:00:09Z"
    says = with_held_since(HOLDER.encode(), since).decode()
    listed = [contender("a", 5, value=waited), contender("b", 6, value=waited), contender("c", 7, value=says)]
    events = [[gone("a", 11)], [put("b", 6, value=says, modified=12)], [gone("b", 13)], [gone("c", 14)]]
    store: Any = Bed((10, *listed), watches=[events])
    before = rfc3339(time.time())
    shown = list(islice(holds.watch_first(store, QUEUE, CONNECTION, store.log), 4))
    assert [None if kv is None else kv.create_revision for kv in shown] == [5, 6, 7, None]
    times = [Holder.decode(kv.value).since for kv in shown if kv is not None]
    assert times[::2] == [HOLDER.started, since]
    assert before <= times[1] <= rfc3339(time.time())


def test_watch_begins_right_after_what_was_read() -> None:
    bed = Bed((10,), (20, contender("a", 15)), watches=[[], []])
    bed.shown(2)
    assert bed.began[0] == 11


def test_what_was_read_is_shown_before_the_watch_begins() -> None:
    """A watch may take long to open."""
    bed = Bed((10, contender("a", 5)))
    assert bed.shown(1) == ["a"]
    assert bed.began == []


# -- breaks ---------------------------------------------------------------------------------------------------


def test_compacted_history_is_read_anew_and_shown_only_if_it_changed() -> None:
    bed = Bed(
        (10, contender("a", 5)),
        (20, contender("a", 5), contender("b", 15)),
        (30, contender("b", 15)),
        watches=[[Compacted("x")], [Compacted("x")], []],
    )
    assert bed.shown(2) == ["a", "b"]
    assert bed.began == [11, 21]
    assert bed.cancelled == 2


def test_first_reading_must_be_answered(slept: list[float]) -> None:
    """Whoever asks for the first time hears that etcd is not there."""
    with pytest.raises(Unreachable):
        Bed(Unreachable("no endpoint answered")).shown(1)
    assert slept == []


def test_later_readings_are_repeated_until_etcd_answers(slept: list[float]) -> None:
    away = Unreachable("no endpoint answered")
    bed = Bed((10, contender("a", 5)), away, away, (20, contender("b", 15)), watches=[[Compacted("x")], []])
    assert bed.shown(2) == ["a", "b"]
    assert bed.log.events == [("retry", {"msg": "no endpoint answered"})] * 2
    assert slept == [1.0, 1.0]


@pytest.mark.parametrize("error", [Refused("permission denied"), Unreachable("never by itself")])
def test_watch_that_fails_for_good_ends_it(error: Exception) -> None:
    """And is cancelled."""
    bed = Bed((10, contender("a", 5)), watches=[[error]])
    with pytest.raises(type(error)):
        bed.shown(2)
    assert bed.cancelled == 1


def test_whoever_stops_looking_ends_the_watch() -> None:
    bed = Bed((10, contender("a", 5)), watches=[[[put("b", 11)], [gone("a", 12)], [gone("b", 13)]]])
    assert bed.shown(2) == ["a", "b"]
    assert bed.cancelled == 1


def test_interruption_is_logged_with_its_queue() -> None:
    bed = Bed((10,), (20, contender("a", 15)), watches=[[], []])
    bed.shown(2)
    bed.interrupt("watch-interrupted")
    assert bed.log.events == [("watch-interrupted", {"queue": QUEUE})]


# -- one reading ----------------------------------------------------------------------------------------------


def test_slow_etcd_has_the_command_timeout() -> None:
    """One that accepts connections is asked again; how long a try takes is `first_answer`'s."""
    bed = Bed(Unreachable("slow", accepted=lambda: True), (10,))
    store: Any = bed
    assert holds.read_queue(store, holds.contenders(QUEUE), CONNECTION).header.revision == 10
    assert len(bed.asked) == 2


def test_etcd_that_is_away_is_not_waited_for() -> None:
    store: Any = Bed(Unreachable("away"), (10,))
    with pytest.raises(Unreachable):
        holds.read_queue(store, holds.contenders(QUEUE), CONNECTION)


# -- holders --------------------------------------------------------------------------------------------------

HOLDER = Holder("h", 7, "2026-01-01T00:00:00Z", "true")


def test_holder_is_read() -> None:
    log = Recorder()
    assert holds.holder_of(KeyValue(b"/k", HOLDER.encode(), 1, 1, 1), log) == HOLDER
    assert log.events == []


@pytest.mark.parametrize(
    ("value", "why"),
    [
        (b"", "no JSON"),
        (b"[]", "not a JSON object"),
        (b"\xff\xfe", "no JSON"),
        (b"[" * 100_000, "no JSON"),
        (json.dumps({"host": "h"}).encode(), "must be strings"),
        (json.dumps({"host": "h", "pid": True, "started": "s", "cmd": "c"}).encode(), "pid must be a number"),
    ],
)
@pytest.mark.parametrize("lease", [0, 1])
def test_unreadable_holder_is_logged_with_its_key(value: bytes, why: str, lease: int) -> None:
    """It has its place in the queue all the same: without a lease it keeps it until somebody deletes it."""
    log = Recorder()
    assert holds.holder_of(KeyValue(b"/k\xff", value, 1, 1, lease), log) is None
    ((event, fields),) = log.events
    assert (event, fields["key"]) == ("unreadable", "/k\ufffd")
    assert why in fields["msg"]
    assert ("until it is deleted" in fields["msg"]) is (lease == 0)
