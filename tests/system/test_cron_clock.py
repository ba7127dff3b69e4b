"""Clocks that differ between hosts, and clocks that are set: no tick runs twice, and none early by one's mistake."""

import json
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from conch.cron.fleet_clock import FleetClock
from conch.etcd.connection import Connection
from conch.etcd.endpoints import parse_endpoints
from conch.etcd.server_clock import etcd_time
from conch.etcd.store import Event, KeyValue, Put
from tests.support.conch import Bench, new_store, throughout, wait_for
from tests.support.cron import Fleet
from tests.support.host import Host

Start = Callable[..., Host]
NOW = 1_800_000_000.0


@pytest.fixture
def start(conch: Bench, tmp_path: Path) -> Iterator[Start]:
    """Starts hosts and ends them."""
    hosts: list[Host] = []

    def one(name: str, ahead_s: float = 0.0) -> Host:
        hosts.append(Host(conch, name, tmp_path / f"host-{name}", ahead_s))
        hosts[-1].wait_event("registered")
        return hosts[-1]

    yield one
    for host in hosts:
        host.close()
    conch.etcd.delete_prefix(conch.prefix + "/cron/")


def put(conch: Bench, name: str, schedule: str) -> None:
    job = {"schedule": schedule, "cmd": ["true"], "overlap": "allow"}
    conch.etcd.put(f"{conch.prefix}/cron/job/{name}", json.dumps(job))


def add(conch: Bench, schedule: str = "@every 1s") -> None:
    put(conch, "j", schedule)


def all_runs(*hosts: Host) -> list[tuple[int, float]]:
    return [run for host in hosts for run in host.runs]


def check(*hosts: Host, early_s: float = 0.05) -> None:
    """Each tick once, not before its time, and none missing in between."""
    runs = all_runs(*hosts)
    ticks = Counter(tick for tick, _ in runs)
    assert set(ticks.values()) <= {1}, ticks
    for tick, at in runs:
        assert -early_s <= at - tick < 2.0, (tick, at)
    assert sorted(ticks) == list(range(min(ticks), max(ticks) + 1))


@pytest.mark.parametrize("step_s", [3600.0, -3600.0])
def test_clock_of_one_of_three_is_set_by_an_hour(conch: Bench, start: Start, step_s: float) -> None:
    """It warns, goes by the others' clocks, and no tick runs twice, early or not at all; nor when it is set back."""
    hosts = [start(name) for name in ("a", "b", "c")]
    add(conch)
    wait_for(lambda: len(all_runs(*hosts)) >= 3, "three runs")
    wait_for(lambda: len(hosts[0].scheduler.spec.clock._others) == 2, "they know each other's clocks")
    hosts[0].set_clock(step_s)
    note = hosts[0].wait_event("clock-skew")
    assert note.text["skew_s"] == pytest.approx(step_s, abs=1)
    count = len(all_runs(*hosts))
    wait_for(lambda: len(all_runs(*hosts)) >= count + 4, "it goes on")
    hosts[0].set_clock(0.0)
    count = len(all_runs(*hosts))
    wait_for(lambda: len(all_runs(*hosts)) >= count + 3, "and on")
    check(*hosts)


def test_newcomer_with_a_wrong_clock_is_warned_and_corrected(conch: Bench, start: Start) -> None:
    """The others tell it their time as soon as it appears."""
    hosts = [start(name) for name in ("a", "b")]
    add(conch)
    wait_for(lambda: len(all_runs(*hosts)) >= 2, "two runs")
    late = start("c", ahead_s=30.0)
    late.wait_event("clock-skew")
    began = time.time()
    wait_for(lambda: len([1 for _, at in all_runs(*hosts, late) if at > began + 0.5]) >= 5, "it goes on")
    ticks = Counter(tick for tick, _ in all_runs(*hosts, late))
    assert set(ticks.values()) == {1}
    assert not [tick for tick, at in all_runs(*hosts, late) if at > began + 0.5 and tick > at + 0.05]


@pytest.mark.parametrize("step_s", [3600.0, -3600.0])
def test_clock_of_one_of_two_is_set_by_an_hour(conch: Bench, start: Start, step_s: float) -> None:
    """Nobody can tell who is right: both warn, both yield, no tick runs twice, the other goes on as before."""
    hosts = [start(name) for name in ("a", "b")]
    add(conch)
    wait_for(lambda: len(all_runs(*hosts)) >= 3, "three runs")
    wait_for(lambda: hosts[0].scheduler.spec.clock._others, "it knows the other's clock")
    hosts[0].set_clock(step_s)
    hosts[0].wait_event("clock-skew")
    hosts[1].wait_event("clock-skew")
    stepped = time.time()
    wait_for(lambda: len([1 for tick, at in hosts[1].runs if at > stepped]) >= 4, "the other goes on")
    hosts[0].set_clock(0.0)
    throughout(2.0, lambda: None)
    ticks = Counter(tick for tick, _ in all_runs(*hosts))
    assert set(ticks.values()) == {1}
    for tick, at in hosts[1].runs:
        assert -0.05 <= at - tick < 2.0


def test_lone_clock_set_back_runs_nothing_again(conch: Bench, start: Start) -> None:
    """The repeated time is passed over: its ticks were absolute instants, and are done."""
    host = start("a")
    add(conch)
    wait_for(lambda: len(host.runs) >= 3, "three runs")
    host.set_clock(-5.0)
    throughout(2.5, lambda: None)
    host.set_clock(0.0)
    count = len(host.runs)
    wait_for(lambda: len(host.runs) >= count + 2, "it goes on")
    ticks = Counter(tick for tick, _ in host.runs)
    assert set(ticks.values()) == {1}


def test_lone_clock_set_ahead_misses_what_is_too_late_and_says_so_once(conch: Bench, start: Start) -> None:
    """An hour of ticks is one line, and the present goes on."""
    host = start("a")
    add(conch)
    wait_for(lambda: len(host.runs) >= 2, "two runs")
    host.set_clock(3600.0)
    count = len(host.runs)
    wait_for(lambda: len(host.runs) >= count + 3, "it goes on")
    note = host.wait_event("missed")
    assert 3500 < int(note.text["ticks"]) <= 3600
    assert len(host.events("missed")) <= 2
    ticks = Counter(tick for tick, _ in host.runs)
    assert set(ticks.values()) == {1}


def test_clock_that_leaps_a_month_passes_over_it_at_once(conch: Bench, start: Start) -> None:
    """60 jobs a minute miss 43,200 ticks each, counted exactly, less what others did; another job misses no tick."""
    host = start("a")
    for number in range(60):
        put(conch, f"m{number}", schedule="* * * * *")
    add(conch)
    wait_for(lambda: len(host.runs) >= 2, "two runs")
    wait_for(lambda: len(host.scheduler.parts.planner.jobs) == 61, "all jobs are known")
    # of one job others have run two ticks (one has its result alone by now), and a request between two ticks
    planned = host.scheduler.ask(lambda: host.scheduler.parts.planner.jobs["m0"].next_tick, 5)
    assert planned is not None
    conch.etcd.put(f"{conch.prefix}/cron/fire/m0/{planned + 600}", "{}")
    conch.etcd.put(f"{conch.prefix}/cron/result/m0/{planned + 6000}", "{}")
    conch.etcd.put(f"{conch.prefix}/cron/fire/m0/{planned + 1234}", "{}")
    counted: list[dict[str, object]] = []  # the log puts those of several jobs into one line
    count_missed = host.scheduler.parts.missed._count

    def note(**fields: Any) -> None:
        counted.append(fields)
        count_missed(**fields)

    host.scheduler.parts.missed._count = note  # type: ignore[method-assign]
    host.set_clock(30 * 86400.0)
    leapt = time.time()

    def of_each_second() -> list[int]:
        return sorted(tick for tick, _ in host.runs if tick > leapt + 86400 and tick % 60)

    wait_for(lambda: len(of_each_second()) >= 5, "it goes on")
    ticks = of_each_second()
    assert ticks == [tick for tick in range(ticks[0], ticks[-1] + 1) if tick % 60]
    assert ticks[0] < leapt + 30 * 86400 + 4
    wait_for(lambda: len(counted) >= 61, "all are counted")
    found = {str(fields["job"]): fields for fields in counted}
    for number in range(60):
        text = found[f"m{number}"]
        first, last = Fleet.unix(str(text["tick"])), Fleet.unix(str(text["until"]))
        assert first == planned
        assert 43190 < int(str(text["ticks"])) <= 43202
        assert text["ticks"] == (last - first) // 60 + 1 - (2 if number == 0 else 0)


def test_thousands_of_jobs_hold_no_ticks_up(conch: Bench, start: Start) -> None:
    """They are read and planned in slices: whoever asks meanwhile waits for a small part of the time that they take."""
    host = start("a")
    store = new_store(conch.endpoints)
    value = json.dumps({"schedule": "H H * * *", "tz": "Europe/Berlin", "cmd": ["true"]}).encode()
    names = [f"{conch.prefix}/cron/job/j{number}".encode() for number in range(5000)]
    for first in range(0, len(names), 100):
        store.txn([], [Put(name, value) for name in names[first : first + 100]], timeout_s=10)
    store.close()
    wait_for(lambda: len(host.scheduler.parts.planner.jobs) == 5000, "all are known")

    def check(asked: Callable[[], None], done: Callable[[], bool]) -> None:
        waits = []
        host.scheduler.call(asked)
        began = time.monotonic()
        while not host.scheduler.ask(done, 20):
            before = time.monotonic()
            host.scheduler.ask(lambda: None, 20)
            waits.append(time.monotonic() - before)
        assert len(waits) >= 2, (waits, time.monotonic() - began)
        assert max(waits) < (time.monotonic() - began) / 2

    jobs, chores = host.scheduler.parts.planner.jobs, host.scheduler.parts.chores
    arrived = [KeyValue(name, value, 1, 2**40, 0) for name in names]

    def edit() -> None:
        host.scheduler.parts.inventory.on_events([Event(kv, deleted=False) for kv in arrived])

    check(edit, lambda: not chores)
    assert all(known.rev == 2**40 for known in jobs.values())
    # the clock is set back beyond what was planned, and all is planned anew
    for known in jobs.values():
        known.past += 10**6
    check(host.scheduler.parts.planner._plan_all_anew, lambda: not chores)
    assert all(known.past < time.time() + 10 for known in jobs.values())
    shown = {job.name: tick for job, tick in host.scheduler.parts.planner.upcoming()}
    assert shown["j7"] == jobs["j7"].schedule.next_after(jobs["j7"].past)


def test_fleet_clock_votes() -> None:
    """Two or more others that agree outvote us; one, or a quarrel, does not."""
    wall = NOW
    fleet = FleetClock(lambda: wall)
    assert (fleet.skew_s(), fleet.now()) == (0.0, wall)
    fleet.heard("a", NOW - 100)
    assert fleet.skew_s() == pytest.approx(100, abs=0.1)
    assert fleet.now() == wall
    fleet.heard("b", NOW - 99.5)
    assert fleet.now() == pytest.approx(NOW - 99.75, abs=0.1)
    fleet.heard("b", NOW - 500)
    assert fleet.now() == wall
    fleet.forget("a")
    fleet.forget("b")
    assert fleet.skew_s() == 0.0


@pytest.mark.parametrize(
    ("others", "etcd", "off"),
    [
        ([], None, False),
        ([4.5], None, False),
        ([1.0, -4.0, 2.0], None, False),
        ([60.0], 0.0, False),  # etcd's hosts decide between two
        ([60.0], 60.0, True),
        ([60.0], "silent", False),  # nobody can tell: both yield
        ([60.0], None, True),  # until etcd's hosts were asked
        ([60.0, 60.5], 60.0, True),
        ([-60.0, -60.5], "silent", True),
        ([0.5, 60.0], None, False),  # the other one is wrong
        ([60.0, -60.0], "silent", True),  # all differ
        ([60.0, -60.0], 0.0, False),
        ([0.0, 60.0, 60.0], 0.0, False),
        ([0.0, 60.0, 60.0], 60.0, True),
        ([60.0, 60.5], 0.0, True),  # an etcd on this very host repeats its clock
        ([5.0 - NOW], None, False),  # one that stands in 1970 has no vote
    ],
)
def test_clock_that_most_others_contradict_is_off(others: list[float], etcd: float | str | None, off: bool) -> None:
    """More than five seconds from more clocks than agree with it."""
    fleet = FleetClock(lambda: NOW)
    for number, ahead_s in enumerate(others):
        fleet.heard(str(number), NOW + ahead_s)
    if etcd is not None:
        assert fleet.wants_etcd == fleet.contradicted
        fleet.heard_etcd(None if isinstance(etcd, str) else NOW + etcd)
        assert not fleet.wants_etcd
    assert fleet.off is off


def test_what_etcd_told_of_the_time_stays_known() -> None:
    """A host whose clock is off does not go by it because etcd is silent for a moment."""
    fleet = FleetClock(lambda: NOW)
    fleet.heard("other", NOW - 60)
    fleet.heard_etcd(NOW - 60)
    assert fleet.off
    fleet.heard_etcd(None)
    assert fleet.off


def test_silent_member_does_not_hide_what_time_others_show(conch: Bench) -> None:
    """Each is given its share of the time."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoints = parse_endpoints(f"127.0.0.1:{silent.getsockname()[1]},{conch.endpoints}")
        found = etcd_time(Connection(endpoints), within_s=4.0)
    assert found == pytest.approx(time.time(), abs=2)


def test_clock_from_before_this_release_is_off_with_nobody_to_ask() -> None:
    """A host without a battery clock begins in 1970."""
    assert FleetClock(lambda: 1000.0).off
    assert not FleetClock().off


def test_host_whose_clock_is_off_claims_nothing_until_it_is_mended(conch: Bench, start: Start) -> None:
    """It says so, in its health too; the others go on as if it were not there."""
    hosts = [start(name) for name in ("a", "b")]
    add(conch)
    wait_for(lambda: len(all_runs(*hosts)) >= 2, "two runs")
    wrong = start("c", ahead_s=60.0)
    assert wrong.wait_event("clock-off").text["skew_s"] == pytest.approx(60, abs=1)
    assert "s ahead of the others': claiming nothing" in wrong.scheduler.ask(wrong.scheduler.healthy, 5)
    count = len(all_runs(*hosts))
    wait_for(lambda: len(all_runs(*hosts)) >= count + 5, "the others go on")
    assert wrong.runs == []
    wrong.set_clock(0.0)
    wrong.wait_event("clock-right")
    wait_for(lambda: wrong.runs, "it claims again")
    assert wrong.scheduler.ask(wrong.scheduler.healthy, 5) == ""
    check(*hosts, wrong)


def test_newcomer_claims_nothing_before_it_knows_the_time(conch: Bench, start: Start) -> None:
    """It waits for those that are there to tell theirs, if only for three seconds."""
    add(conch)
    there = f"{conch.prefix}/node/there"
    conch.etcd.put(there, json.dumps({"at": time.time()}))
    wrong = start("a", ahead_s=600.0)
    throughout(1.3, lambda: None)  # at least one tick's moment passes
    assert wrong.runs == []
    conch.etcd.put(there, json.dumps({"at": time.time()}))
    wrong.wait_event("clock-off")
    assert wrong.runs == []
    conch.etcd.delete(there)  # now it goes by its own clock
    wrong.wait_event("clock-right")
    wait_for(lambda: wrong.runs, "it runs")


@pytest.mark.parametrize("ahead_s", [60.0, -60.0])
def test_etcd_decides_between_two_clocks(conch: Bench, start: Start, ahead_s: float) -> None:
    """The wrong one of two claims nothing, the right one every tick."""
    right, wrong = start("a"), start("b")
    add(conch)
    wait_for(lambda: wrong.runs and right.runs, "both run")
    wrong.set_clock(ahead_s)
    wrong.wait_event("clock-off")
    count, stepped = len(right.runs), len(wrong.runs)
    wait_for(lambda: len(right.runs) >= count + 5, "the right one goes on")
    assert len(wrong.runs) <= stepped + 1  # what it had claimed already
    check(right, wrong)


def test_clock_in_1970_runs_nothing(conch: Bench, start: Start) -> None:
    """Neither alone nor among others, whom its time does not disturb; once it is set it takes part."""
    lost = start("a", ahead_s=1000.0 - time.time())
    lost.wait_event("clock-off")
    add(conch)
    other = start("b")
    wait_for(lambda: len(other.runs) >= 4, "the other runs them")
    assert other.events("clock-skew") == other.events("clock-off") == []
    assert lost.runs == []
    assert lost.events("unreadable") == []
    lost.set_clock(0.0)
    wait_for(lambda: lost.runs, "it takes part")
    check(lost, other)
