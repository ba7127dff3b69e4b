"""One listing, then one watch, and both again: in which order what is heard is passed on, and after which breaks."""

import threading
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest

from conch.cron import watcher as watcher_module
from conch.cron.watcher import Listing, Watcher, keys_of
from conch.etcd.store import Compacted, Event, Header, KeyValue, Range, RangeResult, Refused, StoreError, WentBack
from conch.keys import Keys
from tests.support.parts import lost_reply
from tests.support.virtual_loop import Log

KEYS = Keys("/p")
_KINDS = ("job", "fire", "now", "run", "kill", "cordon")
PREFIXES = (*(f"/p/cron/{kind}/".encode() for kind in _KINDS), b"/p/node/")


def event(name: str, *, deleted: bool = False) -> Event:
    return Event(KeyValue(name.encode(), b"", 1, 1, 0), deleted)


class TestIsOver(BaseException):
    """Nothing more is scripted: it ends the watcher's thread."""

    __test__ = False


class Watch:
    """Yields what is scripted; an exception is raised, a callable is called in between."""

    def __init__(self, script: Sequence[Any]) -> None:
        self.script = list(script)
        self.cancelled = False

    def __iter__(self) -> Iterator[Sequence[Event]]:
        for step in self.script:
            if self.cancelled:
                return
            if isinstance(step, BaseException):
                raise step
            if callable(step):
                step()
            else:
                yield step

    def cancel(self) -> None:
        self.cancelled = True


class Bed:
    """A watcher whose listings and watches are scripted; `passed_on` is what the scheduler's thread hears."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *watches: Any, listings: Sequence[Any] = ()) -> None:
        monkeypatch.setattr(watcher_module, "_RETRY_S", 0.0)
        self.log = Log()
        self.watches = list(watches)
        self.listings = list(listings)
        self.revision = 10
        self.opened: list[Watch] = []
        self.watched: list[list[tuple[Range, int]]] = []
        self.asked: list[Range] = []
        self.passed_on: list[Any] = []
        self.on_interruption: Callable[[str], None] = lambda event: None
        self.run_ids = {"r"}
        store: Any = self
        self.watcher = Watcher(
            *(store, KEYS, self.log),
            call=lambda function, *arguments: function(*arguments),
            run_ids=lambda: set(self.run_ids),
            listed=self._listed,
            events=lambda events: self.passed_on.append([event.kv.key.decode() for event in events]),
            watching=lambda works: self.passed_on.append("works" if works else "interrupted"),
            timeout_s=5.0,
        )

    def _listed(self, listing: Listing, run_ids: set[str]) -> None:
        (revision,) = {found.header.revision for _, found in listing}
        self.passed_on.append(("listed", revision, sorted(run_ids)))

    # the store

    def range(self, what: Range, *, timeout_s: float) -> RangeResult:
        if what.key == PREFIXES[0]:
            step = self.listings.pop(0) if self.listings else None
            if isinstance(step, Exception):
                raise step
            if step is not None:
                step()
            self.revision += 1
        self.asked.append(what)
        return RangeResult(Header(self.revision, 1, 1), (KeyValue(what.key + b"x", b"", 1, 1, 0),), 1)

    def watch(self, watched: list[tuple[Range, int]], *, log: Callable[[str], None]) -> Watch:
        self.on_interruption = log
        self.watched.append(watched)
        if not self.watches:
            raise TestIsOver
        step = self.watches.pop(0)
        if isinstance(step, Exception):
            raise step
        self.opened.append(Watch(step))
        return self.opened[-1]

    def run(self, watched: list[tuple[Range, int]] | None = None) -> "Bed":
        with pytest.raises(TestIsOver):
            self.watcher._run(watched)
        return self

    def revisions(self) -> list[set[int]]:
        """From which revisions on each watch was opened."""
        return [{revision for _, revision in watched} for watched in self.watched]


# -- what is listed and watched -------------------------------------------------------------------------------


def test_everything_is_listed_and_watched_from_then_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """No revision is left out in between, none comes twice. Claims are of interest only as they are made."""
    bed = Bed(monkeypatch)
    watched = bed.watcher.list_all(5.0, {"r"})
    assert tuple(what.key for what in bed.asked) == PREFIXES
    assert [what.end != b"" for what in bed.asked] == [True, False, True, True, True, True, True]
    assert [(what, revision) for what, revision in watched] == [(what, 12) for what in bed.watcher.ranges()]
    assert [what.limit for what, _ in watched] == [0] * 7
    assert bed.passed_on == [("listed", 11, ["r"])]


def test_ranges_cover_each_kind_and_nothing_beside_it(monkeypatch: pytest.MonkeyPatch) -> None:
    covered = {
        KEYS.cron("job", "j"): True,
        KEYS.cron("fire", "j", 1_800_000_000): True,
        KEYS.cron("now", "j", 1_800_000_000): True,
        KEYS.cron("run", "j"): True,
        KEYS.node("a"): True,
        KEYS.cron("result", "j", 1_800_000_000): False,
        KEYS.cron("floor", "j"): False,
        KEYS.office("o"): False,
        "/p/cron/jobs": False,
    }
    ranges = Bed(monkeypatch).watcher.ranges()
    assert {key: any(what.key <= key.encode() < what.end for what in ranges) for key in covered} == covered


def test_keys_of_a_listing() -> None:
    kvs = [KeyValue(key, b"", 1, 1, 0) for key in (b"a", b"b", b"c")]
    listing = [
        (Range(b"a"), RangeResult(Header(1, 1, 1), tuple(kvs[:2]), 2)),
        (Range(b"c"), RangeResult(Header(1, 1, 1), tuple(kvs[2:]), 1)),
    ]
    assert keys_of(listing) == {kv.key: kv for kv in kvs}


# -- in which order -------------------------------------------------------------------------------------------


def test_listing_then_events_in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Bed(monkeypatch, [[event("a"), event("b")], [event("c")]]).run()
    assert bed.passed_on[:4] == [("listed", 11, ["r"]), "works", ["a", "b"], ["c"]]
    assert bed.log.lines == []


def test_start_that_has_listed_already_only_watches(monkeypatch: pytest.MonkeyPatch) -> None:
    bed = Bed(monkeypatch, [[event("a")]])
    watched = [(Range(b"k"), 7)]
    bed.run(watched)
    assert bed.watched[0] == watched
    assert bed.passed_on[:2] == ["works", ["a"]]


@pytest.mark.parametrize("end", [Compacted("compacted"), WentBack("wiped"), None], ids=["compacted", "wiped", "ended"])
def test_everything_is_listed_anew_where_the_watch_cannot_go_on(
    monkeypatch: pytest.MonkeyPatch, end: Exception | None
) -> None:
    """It is no fault: the listing shows what has gone meanwhile."""
    bed = Bed(monkeypatch, [[event("a")], *([end] if end else [])], [[event("b")]]).run()
    assert bed.passed_on[:6] == [("listed", 11, ["r"]), "works", ["a"], ("listed", 12, ["r"]), "works", ["b"]]
    assert bed.revisions()[:2] == [{12}, {13}]
    assert bed.log.lines == []


def test_run_keys_are_asked_for_before_each_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    """A run key that is made during the listing may be missing in it, without having gone."""
    bed: Bed = Bed(monkeypatch, [], listings=[lambda: bed.run_ids.add("s"), None])
    bed.run()
    assert [said for said in bed.passed_on if said != "works"][:2] == [
        ("listed", 11, ["r"]),
        ("listed", 12, ["r", "s"]),
    ]


# -- faults ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["listing", "opening", "watching"])
@pytest.mark.parametrize("error", [lost_reply(), Refused("etcdserver: permission denied")], ids=["lost", "refused"])
def test_fault_is_logged_once_and_outlived(monkeypatch: pytest.MonkeyPatch, where: str, error: StoreError) -> None:
    """While it lasts nothing that is known counts as new; afterwards everything is listed, and that is logged too."""
    bed = Bed(
        monkeypatch,
        *([error] * 2 if where == "opening" else [[error]] * 2 if where == "watching" else []),
        [[event("a")]],
        listings=[error] * 2 if where == "listing" else [],
    ).run()
    last = len(bed.passed_on) - 1 - bed.passed_on[::-1].index(["a"])
    assert bed.passed_on[last - 2][0] == "listed"
    assert bed.passed_on[last - 1] == "works"
    assert bed.passed_on.count("interrupted") == 2
    failures = bed.log.events("watch-failed")
    assert str(error) in failures[0]["msg"]
    # a listing that was answered ends the fault
    assert len(failures) == (1 if where == "listing" else 2)
    assert [over["times"] for over in bed.log.events("fault-over")] == ([2] if where == "listing" else [])


def test_interruption_that_the_watch_bears_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is listed anew; the scheduler hears that it may miss events, and when that is over."""
    bed: Bed = Bed(
        monkeypatch,
        [lambda: bed.on_interruption("watch-interrupted"), lambda: bed.on_interruption("watch-resumed"), [event("a")]],
    )
    bed.run()
    assert bed.passed_on[:5] == [("listed", 11, ["r"]), "works", "interrupted", "works", ["a"]]
    assert [name for _, name, _ in bed.log.lines] == ["watch-interrupted", "watch-resumed"]


# -- listing again --------------------------------------------------------------------------------------------


def test_list_again_ends_the_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    bed: Bed = Bed(monkeypatch, [[event("a")], lambda: bed.watcher.list_again(), [event("never seen")]], [[event("b")]])
    bed.run()
    assert bed.passed_on[:6] == [("listed", 11, ["r"]), "works", ["a"], ("listed", 12, ["r"]), "works", ["b"]]


def test_list_again_during_a_listing(monkeypatch: pytest.MonkeyPatch) -> None:
    """What was read before may be old: the watch that follows ends immediately, and everything is listed again."""
    bed: Bed = Bed(monkeypatch, [[event("never seen")]], [[event("b")]], listings=[lambda: bed.watcher.list_again()])
    bed.run()
    assert bed.passed_on[:5] == [("listed", 11, ["r"]), "works", ("listed", 12, ["r"]), "works", ["b"]]


def test_list_again_before_the_first_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    """As when a first listing cannot be taken in: it was made before the watcher's thread began."""
    bed = Bed(monkeypatch, [[event("never seen")]], [[event("b")]])
    bed.watcher.list_again()
    bed.run([(Range(b"k"), 7)])
    assert bed.passed_on[:4] == ["works", ("listed", 11, ["r"]), "works", ["b"]]


def test_thread_does_not_keep_the_process(monkeypatch: pytest.MonkeyPatch) -> None:
    started: list[Any] = []
    monkeypatch.setattr(threading.Thread, "start", lambda thread: started.append(thread))
    Bed(monkeypatch).watcher.start(None)
    (thread,) = started
    assert thread.daemon
