"""What etcd has, passed on to the parts: listings, events, keys that nobody can read, and runs of another boot."""

import asyncio
import json
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from conch.core.origin import Origin
from conch.cron.active_run import ActiveRun, RunState
from conch.cron.fleet import Fleet
from conch.cron.inventory import Inventory
from conch.cron.planner import Planner
from conch.cron.run_log import Entry
from conch.cron.ticks import PAUSE_MOST_S, REMOVED, Registration
from conch.cron.unreadable import Unreadable
from conch.cron.watcher import Listing
from conch.cron.workers import Chores
from conch.etcd.store import Event, Header, KeyValue, Range, RangeResult
from conch.keys import Keys, prefix_end
from tests.support.parts import ME, TICK, World, pending
from tests.support.virtual_loop import Log, VirtualLoop

KEYS = Keys("/p")
TTL_S = 10
# An earlier boot of this host, and one that lives.
EARLIER, OURS = (Origin("m", "", boot, "n", 7, 5) for boot in ("earlier", "ours"))


def kv(key: str, value: object = b"", rev: int = 9, *, mod: int | None = None, lease: int = 1) -> KeyValue:
    data = value if isinstance(value, bytes) else json.dumps(value).encode()
    return KeyValue(key.encode(), data, rev, mod or rev, lease)


def definition(name: str = "j", rev: int = 9, **fields: Any) -> KeyValue:
    return kv(KEYS.cron("job", name), {"schedule": "@every 1s", "cmd": ["true"], **fields}, rev, lease=0)


def run_key(name: str = "j", rev: int = 9, lease: int = 1) -> KeyValue:
    return kv(KEYS.cron("run", name), {"run": "r"}, rev, lease=lease)


def fire(tick: int = TICK, name: str = "j", value: object = b"{}", rev: int = 9, mod: int | None = None) -> KeyValue:
    return kv(KEYS.cron("fire", name, tick), value, rev, mod=mod)


def now(number: int = TICK, name: str = "j") -> KeyValue:
    return kv(KEYS.cron("now", name, number))


def node(host: str = "b", rev: int = 9, **fields: Any) -> KeyValue:
    return kv(KEYS.node(host), {"at": 1.5, **fields}, rev)


class Port:
    """The scheduler as the inventory sees it."""

    def __init__(self, bed: "Bed") -> None:
        self._bed = bed
        self.spec = SimpleNamespace(keys=KEYS, identity=ME, ttl_s=TTL_S)
        self.log, self.tasks, self.conclude = bed.log, bed.tasks, bed.concluded.append

    @property
    def is_releasing(self) -> bool:
        return self._bed.releasing

    def on_claim(self, tick_id: tuple[str, int], is_ours: Callable[[Any], bool]) -> None:
        whose = "ours" if is_ours(pending()) else "theirs"
        self._bed.calls.append(f"claim {tick_id[0]} {tick_id[1] - TICK} {whose}")


class Node:
    """Our registration."""

    def __init__(self, bed: "Bed") -> None:
        self._bed = bed

    @property
    def registration(self) -> Registration | None:
        return self._bed.registration

    @property
    def published_at(self) -> float:
        return self._bed.published_at

    def answer(self) -> None:
        self._bed.calls.append("answer")

    def on_key_gone(self) -> None:
        self._bed.calls.append("node.on_key_gone")


class Bed(World):
    """An inventory beside a real planner and fleet; `calls` is what the other parts heard."""

    def __init__(self, loop: VirtualLoop, log: Log) -> None:
        super().__init__(loop, log)
        self.calls: list[str] = []
        self.live: list[ActiveRun] = []
        self.concluded: list[Entry] = []
        self.published_at = -100.0
        self.ours: set[str] = set()
        self.chores = Chores(self.tasks)
        self.fleet = Fleet("a", self.clock, log)
        self.planner = Planner(
            *(self.clock, self.chores, log),
            moments=lambda revision: (None, None),
            due=lambda tick: None,
            missed=lambda name, missed: None,
            is_clock_off=lambda: False,
            now=loop.time,
        )
        parts: list[Any] = [
            Port(self),
            SimpleNamespace(is_ours=lambda found, tick: tick.run in self.ours),
            self.chores,
            self.planner,
            SimpleNamespace(
                on_request=self._call("request"),
                on_gone=self._call("request gone"),
                keep_only=lambda there: self.calls.append("keep_only"),
                serve=self._call("serve"),
            ),
            SimpleNamespace(
                live=lambda: [run for run in self.live if not run.is_over],
                end_without_key=lambda run: self.calls.append(f"end_without_key {run.entry.run}"),
                on_run_key_gone=self._call("run key gone"),
            ),
            SimpleNamespace(
                wake=self._call("wake"),
                stop=self._call("stop"),
                on_claim=lambda tracked, tick: self.calls.append(f"replace {tracked.job.name} {tick - TICK}"),
            ),
            Node(self),
            self.fleet,
            SimpleNamespace(
                meet=lambda nodes: self.calls.append(f"meet {' '.join(sorted(nodes))}"),
                on_time=self._call("time"),
                on_host_gone=self._call("clock gone"),
                on_interrupted_watch=self._call("interrupted"),
            ),
            SimpleNamespace(check_zones_soon=self._call("check_zones_soon")),
            Unreadable(log),
        ]
        self.inventory = Inventory(*parts, list_again=self._call("list again"))

    def _call(self, name: str) -> Callable[..., None]:
        def said(argument: object) -> str:
            return argument.key.decode().rpartition("/")[2] if isinstance(argument, KeyValue) else str(argument)

        return lambda *arguments: self.calls.append(" ".join([name, *map(said, arguments)]))

    def run(self, run: str = "r", name: str = "j", rev: int | None = 5, **fields: Any) -> ActiveRun:
        self.live.append(ActiveRun(Entry(run, name, TICK, 4, rev), **fields))
        return self.live[-1]

    def list_(self, *kvs: KeyValue, revision: int = 20, run_ids: Sequence[str] = ()) -> list[str]:
        """What the parts hear of a listing."""
        del self.calls[:]
        prefixes = [KEYS.cron(kind).encode() for kind in ("job", "fire", "now", "run")] + [KEYS.node().encode()]
        listing: Listing = [
            (
                Range(prefix, prefix_end(prefix)),
                RangeResult(Header(revision, 1, 1), tuple(one for one in kvs if one.key.startswith(prefix)), 0),
            )
            for prefix in prefixes
        ]
        self.inventory.on_list(listing, set(run_ids))
        return self.calls

    def hear(self, *kvs: KeyValue) -> list[str]:
        """What the parts hear of keys that are written."""
        del self.calls[:]
        self.inventory.on_events([Event(one, deleted=False) for one in kvs])
        return self.calls

    def loses(self, *keys: str, rev: int = 30) -> list[str]:
        """What the parts hear of keys that are deleted."""
        del self.calls[:]
        self.inventory.on_events([Event(KeyValue(key.encode(), b"", 0, rev, 0), deleted=True) for key in keys])
        return self.calls

    def go(self, seconds: float = 1.0) -> list[str]:
        del self.calls[:]
        self.loop.run(asyncio.sleep(seconds))
        self.check()
        return self.calls


@pytest.fixture
def bed(loop: VirtualLoop, log: Log) -> Bed:
    return Bed(loop, log)


# -- jobs -----------------------------------------------------------------------------------------------------


def test_job_is_planned_and_its_requests_are_served(bed: Bed) -> None:
    assert bed.hear(definition()) == ["serve j"]
    assert bed.planner.jobs["j"].rev == 9
    bed.hear(definition(rev=10, schedule="@every 2s"))
    assert bed.planner.jobs["j"].rev == 10


def test_removed_job(bed: Bed, log: Log) -> None:
    """A tick that waits for the run before it is stopped. What was never known goes silently."""
    bed.hear(definition())
    assert bed.loses(KEYS.cron("job", "j"), KEYS.cron("job", "k")) == [f"stop j {REMOVED}"]
    assert bed.planner.jobs == {}
    assert log.events("job-removed") == [{"job": "j"}]


def test_definition_that_cannot_be_read_removes_the_job(bed: Bed, log: Log) -> None:
    """Whatever it was: nothing runs by an outdated definition."""
    bed.hear(definition())
    assert bed.hear(kv(KEYS.cron("job", "j"), b"{", 10)) == [f"stop j {REMOVED}"]
    assert bed.planner.jobs == {}
    assert len(log.events("unreadable")) == 1


def test_many_definitions_are_read_in_chores(bed: Bed, loop: VirtualLoop) -> None:
    """So that ticks do not wait for thousands of them; of each job the newest is read, and none that is removed."""
    names = [f"j{at}" for at in range(5)]
    loop.seconds += 1.0
    bed.inventory._read_until = 0.0
    for name in names:
        bed.inventory._on_definition(name, definition(name))
    bed.inventory._on_definition("j0", definition("j0", rev=11))
    assert bed.planner.jobs == {}
    bed.loses(KEYS.cron("job", "j1"))
    bed.hear(definition("j9"))  # after the others, also if there were time now
    assert bed.planner.jobs == {}
    bed.go()
    assert sorted(bed.planner.jobs) == ["j0", "j2", "j3", "j4", "j9"]
    assert bed.planner.jobs["j0"].rev == 11


# -- claims, requests, run keys -------------------------------------------------------------------------------


def test_claim(bed: Bed) -> None:
    """Whose it is says its value. One that is put again, to be kept for longer, is none."""
    assert bed.hear(fire()) == ["claim j 0 theirs"]
    bed.ours.add("mine")
    assert bed.hear(fire(TICK + 1)) == ["claim j 1 ours"]
    assert bed.hear(fire(rev=9, mod=12)) == []


@pytest.mark.parametrize(
    ("overlap", "value", "replaces"),
    [("replace", {}, True), ("replace", {"skip": True}, False), ("allow", {}, False), ("replace", b"\xff", True)],
)
def test_claim_of_a_newer_tick_replaces(bed: Bed, overlap: str, value: object, replaces: bool) -> None:
    """Not one that is only recorded as skipped."""
    bed.hear(definition(overlap=overlap))
    assert ("replace j 5" in bed.hear(fire(TICK + 5, value=value))) is replaces


def test_expired_claim_that_is_gone_need_not_be_removed(bed: Bed) -> None:
    bed.hear(definition())
    bed.planner.jobs["j"].expired_ticks = {TICK, TICK + 1}
    bed.loses(KEYS.cron("fire", "j", TICK), KEYS.cron("fire", "k", TICK))
    assert bed.planner.jobs["j"].expired_ticks == {TICK + 1}


def test_request(bed: Bed) -> None:
    assert bed.hear(now()) == [f"request j {TICK} {TICK}"]
    assert bed.loses(KEYS.cron("now", "j", TICK)) == [f"request gone j {TICK}"]


def test_run_key(bed: Bed, log: Log) -> None:
    """It stands in the way of the job's next run until it is gone."""
    assert bed.hear(run_key()) == []  # of a job that is not known yet
    bed.hear(definition(), run_key())
    assert bed.planner.jobs["j"].run is not None
    assert bed.loses(KEYS.cron("run", "j")) == ["run key gone j  30", "wake j"]
    assert bed.planner.jobs["j"].run is None
    assert log.lines == []


def test_run_key_that_was_made_again_since_is_kept(bed: Bed) -> None:
    """Events of a read that came before may be older than what was read."""
    bed.hear(definition(), run_key(rev=40))
    bed.loses(KEYS.cron("run", "j"), rev=30)
    assert bed.planner.jobs["j"].run is not None


def test_run_key_without_a_lease_is_reported(bed: Bed, log: Log) -> None:
    """No conch made it, and it keeps the job from running for ever."""
    bed.hear(definition(), run_key(lease=0))
    assert bed.planner.jobs["j"].run is not None
    assert "without a lease" in log.events("unreadable")[0]["msg"]


# -- hosts ----------------------------------------------------------------------------------------------------


def test_new_host_learns_our_time(bed: Bed) -> None:
    """And we its own; a host that writes again is no new one."""
    assert bed.hear(node()) == ["time b 1.5", "answer"]
    assert bed.hear(node(rev=10)) == ["time b 1.5"]
    assert bed.fleet.nodes["b"]["at"] == 1.5


@pytest.mark.parametrize(("since_s", "answers"), [(3.0, False), (10.0, True)])
def test_host_whose_clock_is_off_asks_for_the_time(bed: Bed, since_s: float, answers: bool) -> None:
    """Once per pause, whoever asks."""
    bed.hear(node())
    bed.published_at = bed.loop.seconds - since_s
    assert ("answer" in bed.hear(node(rev=10, clock_off=True))) is answers


def test_our_own_registration_says_nothing_new(bed: Bed) -> None:
    assert bed.hear(node("a")) == []
    assert "a" in bed.fleet.nodes


def test_host_that_is_gone(bed: Bed) -> None:
    """The name of ours may be free now: a namesake had it."""
    bed.hear(node(), node("a"))
    assert bed.loses(KEYS.node("b")) == ["clock gone b"]
    assert bed.loses(KEYS.node("a")) == ["clock gone a", "node.on_key_gone"]
    assert bed.fleet.nodes == {}


def test_other_release_of_the_zones(bed: Bed) -> None:
    """Ours may have been replaced, too; it is looked at once per change."""
    bed.hear(node("a", tzdata="2026a"))
    assert "check_zones_soon" in bed.hear(node("b", tzdata="2026b"))
    assert "check_zones_soon" not in bed.hear(node("b", rev=10, tzdata="2026b"))


def test_time_of_a_host_that_is_listed_is_old(bed: Bed) -> None:
    """Only an event says what time it is there now."""
    assert bed.list_(node()) == ["keep_only", "meet b"]


# -- listings -------------------------------------------------------------------------------------------------


def test_what_is_not_listed_any_more_has_gone(bed: Bed) -> None:
    bed.hear(definition(), definition("k"), node(), node("c"))
    said = bed.list_(definition("k"), node("c"))
    assert sorted(bed.planner.jobs) == ["k"]
    assert sorted(bed.fleet.nodes) == ["c"]
    assert said == [f"stop j {REMOVED}", "clock gone b", "keep_only", "serve k", "meet c"]


def test_definition_that_waits_to_be_read_and_is_gone(bed: Bed) -> None:
    bed.inventory._read_until = 0.0
    bed.inventory._on_definition("j", definition())
    bed.list_()
    bed.go()
    assert bed.planner.jobs == {}


def test_claims_that_are_listed_are_of_no_interest(bed: Bed) -> None:
    """One of them is, for its revision."""
    assert bed.list_(fire()) == ["keep_only", "meet "]


def test_hosts_are_met_at_the_first_listing_alone(bed: Bed) -> None:
    """From then on each is heard of when it comes."""
    assert "meet b" in bed.list_(node())
    assert not any(call.startswith("meet") for call in bed.list_(node()))


@pytest.mark.parametrize(
    ("held", "there", "run_ids", "ended"),
    [
        (5, 5, [], False),
        (5, None, [], True),  # deleted by somebody while the watch was broken
        (5, 7, [], True),  # and made again by another host
        (25, None, [], False),  # made after the listing
        (25, None, ["r"], True),  # revisions of another etcd: it was there before the listing
        (None, None, [], False),  # it needs none
    ],
)
def test_run_whose_key_is_not_listed(
    bed: Bed, held: int | None, there: int | None, run_ids: list[str], ended: bool
) -> None:
    bed.run(rev=held)
    said = bed.list_(*([run_key(rev=there)] if there else []), revision=20, run_ids=run_ids)
    assert ("end_without_key r" in said) is ended


def test_run_that_has_ended_needs_no_key(bed: Bed) -> None:
    bed.run(state=RunState.ENDED)
    assert "end_without_key r" not in bed.list_()


@pytest.mark.parametrize("there", [True, False])
def test_job_whose_run_key_is_not_listed_is_free(bed: Bed, there: bool) -> None:
    """A tick that waits for it gets its turn."""
    bed.hear(definition(), run_key())
    said = bed.list_(definition(), *([run_key()] if there else []))
    assert ("wake j" in said) is not there
    assert (bed.planner.jobs["j"].run is not None) is there


# -- keys that nobody can read --------------------------------------------------------------------------------


@pytest.mark.parametrize("key", ["/p/node/", "/p/node/b/c", "/p/cron/job/a b", "/p/cron/fire/j/17", "/p/cron/now/j"])
def test_key_that_is_none_of_ours(bed: Bed, log: Log, key: str) -> None:
    """Anybody may write anything: it is reported once, and its deletion says nothing."""
    bed.hear(kv(key), kv(key, rev=10))
    assert [fields["key"] for fields in log.events("unreadable")] == [key]
    assert bed.loses(key) == []


@pytest.mark.parametrize("value", [b"", b"[]", b"\xff", b"[" * 100_000, b'{"at": "x"}', b'{"at": 1e999}'])
def test_any_value_of_any_key_is_borne(bed: Bed, value: bytes) -> None:
    """The daemon goes on, also with what comes after it."""
    for key in (KEYS.node("b"), KEYS.cron("job", "j"), KEYS.cron("run", "j"), KEYS.cron("fire", "j", TICK)):
        bed.hear(kv(key, value), definition("k"))
    assert sorted(bed.planner.jobs) == ["k"]


def test_request_that_is_refused_is_reported(bed: Bed, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """As one without a lease."""

    def refuse(*_arguments: object) -> None:
        raise ValueError("a request needs a lease")

    monkeypatch.setattr(bed.inventory._requests, "on_request", refuse)
    bed.hear(now())
    assert log.events("unreadable") == [{"key": KEYS.cron("now", "j", TICK), "msg": "a request needs a lease"}]


def test_shortage_postpones(bed: Bed, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when no descriptor is left for a job's zone: everything is listed again in a while, once for all of them."""

    def short(*_arguments: object) -> bool:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(bed.planner, "on_job", short)
    assert bed.hear(definition(), definition("k")) == []
    assert [fields["key"] for fields in log.events("postponed")] == ["/p/cron/job/j", "/p/cron/job/k"]
    assert bed.go(PAUSE_MOST_S - 0.1) == []
    assert bed.go(1.0) == ["list again"]
    assert bed.go(10.0) == []
    bed.hear(definition())
    assert bed.go(10.0) == ["list again"]  # as often as it happens


def test_defect_is_none_of_that(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is an error of the system that is no shortage."""

    def broken(*_arguments: object) -> bool:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(bed.planner, "on_job", broken)
    with pytest.raises(OSError, match="Input/output error"):
        bed.hear(definition())


# -- the watch, and our registration --------------------------------------------------------------------------


def test_watch(bed: Bed) -> None:
    """Once it works again, times that were heard late are not trusted."""
    seen = []
    for works in (True, False, True, True):
        del bed.calls[:]
        bed.inventory.on_watching(works)
        seen.append((bed.inventory.is_watching, list(bed.calls)))
    assert seen == [(True, []), (False, []), (True, ["interrupted"]), (True, [])]


def test_registered_again(bed: Bed) -> None:
    """Perhaps in another etcd: everything is listed."""
    bed.inventory.on_registered()
    assert bed.calls == []
    bed.inventory.on_registered()
    assert bed.calls == ["list again"]


# -- runs of another boot -------------------------------------------------------------------------------------


def unproved(bed: Bed, origin: Origin | None = EARLIER) -> Entry:
    entry = Entry("r", "j", TICK, 4, 5, slot=77, origin=origin)
    bed.inventory.unproved.append(entry)
    return entry


def registered_as(origin: Origin) -> KeyValue:
    return node("b", origin=origin.fields())


@pytest.mark.parametrize(("living", "lost"), [(None, True), (OURS, True), (EARLIER, False)])
def test_run_of_another_boot(bed: Bed, living: Origin | None, lost: bool) -> None:
    """It is lost unless that boot is registered, as where this host is a copy; what it holds is not given back."""
    unproved(bed)
    bed.list_(*([registered_as(living)] if living else []))
    bed.go(2 * TTL_S - 1)
    assert bed.concluded == []  # it may only be about to register anew
    bed.go(2.0)
    assert bed.concluded == ([Entry("r", "j", TICK, 4, None, None, None, EARLIER)] if lost else [])
    bed.inventory.conclude_unproved()
    bed.go(50.0)
    assert len(bed.concluded) == lost


def test_boot_that_registers_meanwhile(bed: Bed) -> None:
    """It lives; once it is gone its runs are lost after all."""
    unproved(bed)
    bed.list_()
    bed.go(5.0)
    bed.hear(registered_as(EARLIER))
    bed.go(60.0)
    assert bed.concluded == []
    bed.loses(KEYS.node("b"))
    bed.go(60.0)
    assert len(bed.concluded) == 1


@pytest.mark.parametrize("why", ["not registered", "releasing", "not listed"])
@pytest.mark.parametrize("when", ["first", "later"])
def test_nothing_is_concluded_without_knowing_who_lives(bed: Bed, why: str, when: str) -> None:
    """Nor by a daemon that ends: the next one does it."""
    unproved(bed)
    if why == "not listed":
        bed.inventory.on_registered()
        bed.go(60.0)
        assert bed.concluded == []
        return
    if when == "later":
        bed.list_()
        bed.go(1.0)
    registration = bed.registration
    bed.registration = None if why == "not registered" else registration
    bed.releasing = why == "releasing"
    if when == "first":
        bed.list_()
    bed.go(60.0)
    assert bed.concluded == []
    bed.registration, bed.releasing = registration, False
    bed.inventory.on_registered()
    bed.go(60.0)
    assert len(bed.concluded) == 1


def test_run_that_was_settled_meanwhile(bed: Bed) -> None:
    entry = unproved(bed)
    bed.list_()
    bed.go(1.0)
    bed.inventory.unproved.remove(entry)
    bed.go(60.0)
    assert bed.concluded == []
