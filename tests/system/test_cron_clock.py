"""Clocks that differ between hosts or are set: no tick runs twice, and no single wrong clock starts one early."""

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
    """Start hosts; end them after the test."""
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
    """Check that each tick ran once and not early, and that none is missing in between."""
    runs = all_runs(*hosts)
    ticks = Counter(tick for tick, _ in runs)
    assert set(ticks.values()) <= {1}, ticks
    for tick, at in runs:
        assert -early_s <= at - tick < 2.0, (tick, at)
    assert sorted(ticks) == list(range(min(ticks), max(ticks) + 1))


@pytest.mark.parametrize("step_s", [3600.0, -3600.0])
def test_clock_of_one_of_three_is_set_by_an_hour(conch: Bench, start: Start, step_s: float) -> None:
    """It warns and follows the others' clocks; no tick runs twice, early or never, even when it is set back."""
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
    """The others publish their time as soon as it appears."""
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
    """Neither knows who is right: both warn, no tick runs twice, and the other one continues as before."""
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
    """Ticks are absolute instants, so those in the repeated time have already run."""
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


def test_lone_clock_set_ahead_misses_late_ticks_and_logs_them_once(conch: Bench, start: Start) -> None:
    """An hour of missed ticks is one line in the log, and present ticks run."""
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


def test_clock_that_leaps_a_month_does_not_stall(conch: Bench, start: Start) -> None:
    """Each of 60 one-minute jobs counts exactly what it missed, some 43,200 ticks; a one-second job misses none."""
    host = start("a")
    for number in range(60):
        put(conch, f"m{number}", schedule="* * * * *")
    add(conch)
    wait_for(lambda: len(host.runs) >= 2, "two runs")
    wait_for(lambda: len(host.scheduler.parts.planner.jobs) == 61, "all jobs are known")
    # others ran two ticks of m0 (one has only its result left), and a request between two ticks
    planned = host.scheduler.ask(lambda: host.scheduler.parts.planner.jobs["m0"].next_tick, 5)
    assert planned is not None
    conch.etcd.put(f"{conch.prefix}/cron/fire/m0/{planned + 600}", "{}")
    conch.etcd.put(f"{conch.prefix}/cron/result/m0/{planned + 6000}", "{}")
    conch.etcd.put(f"{conch.prefix}/cron/fire/m0/{planned + 1234}", "{}")
    counted: list[dict[str, object]] = []  # the log merges several jobs into one line
    count_missed = host.scheduler.parts.missed._count

    def note(**fields: Any) -> None:
        counted.append(fields)
        count_missed(**fields)

    host.scheduler.parts.missed._count = note  # type: ignore[method-assign]
    host.set_clock(30 * 86400.0)
    leapt = time.time()

    def one_second_ticks() -> list[int]:
        return sorted(tick for tick, _ in host.runs if tick > leapt + 86400 and tick % 60)

    wait_for(lambda: len(one_second_ticks()) >= 5, "it goes on")
    ticks = one_second_ticks()
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


def test_thousands_of_jobs_do_not_delay_ticks(conch: Bench, start: Start) -> None:
    """They are read and planned in slices, so that other calls wait for less than half of the time."""
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
    """Two or more others that agree outvote us; a single one, or others that differ, do not."""
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
        ([60.0], "silent", False),  # nobody knows: both yield
        ([60.0], None, True),  # until etcd's hosts were asked
        ([60.0, 60.5], 60.0, True),
        ([-60.0, -60.5], "silent", True),
        ([0.5, 60.0], None, False),  # the other one is wrong
        ([60.0, -60.0], "silent", True),  # all differ
        ([60.0, -60.0], 0.0, False),
        ([0.0, 60.0, 60.0], 0.0, False),
        ([0.0, 60.0, 60.0], 60.0, True),
        ([60.0, 60.5], 0.0, True),  # an etcd on this very host repeats its clock
        ([5.0 - NOW], None, False),  # a clock in 1970 has no vote
    ],
)
def test_clock_that_most_others_contradict_is_off(others: list[float], etcd: float | str | None, off: bool) -> None:
    """It differs by more than five seconds from more clocks than agree with it."""
    fleet = FleetClock(lambda: NOW)
    for number, ahead_s in enumerate(others):
        fleet.heard(str(number), NOW + ahead_s)
    if etcd is not None:
        assert fleet.wants_etcd == fleet.contradicted
        fleet.heard_etcd(None if isinstance(etcd, str) else NOW + etcd)
        assert not fleet.wants_etcd
    assert fleet.off is off


def test_time_of_etcd_is_remembered() -> None:
    """A clock that etcd has shown to be off stays off while etcd does not answer."""
    fleet = FleetClock(lambda: NOW)
    fleet.heard("other", NOW - 60)
    fleet.heard_etcd(NOW - 60)
    assert fleet.off
    fleet.heard_etcd(None)
    assert fleet.off


def test_silent_member_does_not_hide_the_time_of_others(conch: Bench) -> None:
    """Each member gets a share of the time limit."""
    with socket.create_server(("127.0.0.1", 0)) as silent:
        endpoints = parse_endpoints(f"127.0.0.1:{silent.getsockname()[1]},{conch.endpoints}")
        found = etcd_time(Connection(endpoints), within_s=4.0)
    assert found == pytest.approx(time.time(), abs=2)


def test_clock_older_than_this_release_is_off_without_other_hosts() -> None:
    """A host without a battery clock boots in 1970."""
    assert FleetClock(lambda: 1000.0).off
    assert not FleetClock().off


def test_host_whose_clock_is_off_claims_nothing_until_it_is_right(conch: Bench, start: Start) -> None:
    """It logs this and reports it in its health; the other hosts run every tick."""
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
    """It waits for the other hosts to publish their time, but only for three seconds."""
    add(conch)
    there = f"{conch.prefix}/node/there"
    conch.etcd.put(there, json.dumps({"at": time.time()}))
    wrong = start("a", ahead_s=600.0)
    throughout(1.3, lambda: None)  # at least one tick passes
    assert wrong.runs == []
    conch.etcd.put(there, json.dumps({"at": time.time()}))
    wrong.wait_event("clock-off")
    assert wrong.runs == []
    conch.etcd.delete(there)  # now it follows its own clock
    wrong.wait_event("clock-right")
    wait_for(lambda: wrong.runs, "it runs")


@pytest.mark.parametrize("ahead_s", [60.0, -60.0])
def test_etcd_decides_between_two_clocks(conch: Bench, start: Start, ahead_s: float) -> None:
    """Of two hosts, the one that is wrong claims nothing, the other every tick."""
    right, wrong = start("a"), start("b")
    add(conch)
    wait_for(lambda: wrong.runs and right.runs, "both run")
    wrong.set_clock(ahead_s)
    wrong.wait_event("clock-off")
    count, stepped = len(right.runs), len(wrong.runs)
    wait_for(lambda: len(right.runs) >= count + 5, "the right one goes on")
    assert len(wrong.runs) <= stepped + 1  # a tick that it had claimed already
    check(right, wrong)


def test_clock_in_1970_runs_nothing(conch: Bench, start: Start) -> None:
    """It runs nothing, alone or among others, and does not disturb them; once it is set, it takes part."""
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
