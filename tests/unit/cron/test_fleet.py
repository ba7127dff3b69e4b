"""Whose turn it is: every host computes the same line from the registrations, and every host has a place of its own."""

import hashlib
import json
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest

from conch.cron import fleet as fleet_module
from conch.cron.features import CAN
from conch.cron.fleet import TURN_S, Fleet, Turn
from conch.cron.fleet_clock import FleetClock
from conch.cron.placement import Place
from conch.etcd.store import KeyValue
from tests.support.parts import job
from tests.support.virtual_loop import Log

JOB = job()
HOSTS = [f"h{number}" for number in range(7)]


def fleet(host: str, others: list[str] = HOSTS) -> Fleet:
    made = Fleet(host, FleetClock(), Log())
    for other in others:
        register(made, other)
    return made


def register(made: Fleet, host: str, **fields: Any) -> None:
    made.add(host, KeyValue(host.encode(), json.dumps(fields).encode(), 1, 1, 1))


def test_every_host_has_a_place_of_its_own_in_the_same_line() -> None:
    """The line of the hashes of job, tick and host: daemons of every release must agree on it."""
    fleets = {host: fleet(host) for host in HOSTS}
    firsts: Counter[str] = Counter()
    for tick in range(1_800_000_000, 1_800_000_700):
        line = sorted(HOSTS, key=lambda host: hashlib.sha256(f"j\0{tick}\0{host}".encode()).digest())
        turns = [fleets[host].turn(JOB, tick) for host in line]
        assert [turn.wait_s for turn in turns] == [number * TURN_S for number in range(len(HOSTS))]
        assert [set(turn.before) for turn in turns] == [
            {host.encode() for host in line[:number]} for number in range(len(HOSTS))
        ]
        assert [host for host in HOSTS if fleets[host].is_first("j", tick)] == line[:1]
        firsts[line[0]] += 1
    assert len(firsts) == len(HOSTS)
    assert min(firsts.values()) > 50  # the work spreads evenly


@pytest.mark.parametrize("field", ["draining", "clock_off"])
def test_host_that_takes_no_ticks_is_not_waited_for(field: str) -> None:
    """As soon as its registration says so, and until it does not any more."""
    made = fleet("h0", ["h0", "h1"])
    tick = next(tick for tick in range(1_800_000_000, 1_800_001_000) if made.turn(JOB, tick).before)
    register(made, "h1", **{field: True})
    assert made.turn(JOB, tick) == Turn(0.0, [])
    register(made, "h1")
    assert made.turn(JOB, tick) == Turn(TURN_S, [b"h1"])
    made.remove("h1")
    assert made.turn(JOB, tick) == Turn(0.0, [])
    register(made, "h0", **{field: True})
    assert made.turn(JOB, tick) == Turn(0.0, [])  # we are asked only if we take it


def test_line_is_among_the_hosts_that_may_run_the_job() -> None:
    """A job for one host costs the others nothing: that host waits for nobody."""
    made = Fleet("h0", FleetClock(), Log(), tags=["gpu"])
    for host in HOSTS:
        register(made, host, tags=["gpu"] if host in ("h0", "h1") else [], can=sorted(CAN))
    tagged, each = job(schedule=["@daily"], on=["gpu"]), job(schedule=["@daily"], each=True)
    ticks = range(1_800_000_000, 1_800_000_300)
    assert {host for tick in ticks for host in made.turn(tagged, tick).before} == {b"h1"}
    assert {made.turn(each, tick) for tick in ticks if made.turn(each, tick).before} == set()
    made.set_cordoned("h1", cordoned=True)
    assert not any(made.turn(tagged, tick).before for tick in ticks)
    assert b"h1" not in {host for tick in ticks for host in made.turn(JOB, tick).before}
    made.set_cordoned("h1", cordoned=False)
    register(made, "h1", tags=["gpu"])  # an earlier release
    assert not any(made.turn(tagged, tick).before for tick in ticks)
    assert b"h1" in {host for tick in ticks for host in made.turn(JOB, tick).before}


def test_place_of_a_job() -> None:
    """Claimed here, left to others, or reported by one host of all if none may run it."""
    fleets = {host: Fleet(host, FleetClock(), Log(), tags=["x"] if host == "h0" else []) for host in HOSTS}
    wanted, nowhere = job(schedule=["@daily"], on=["x"]), job(schedule=["@daily"], on=["y"])
    assert fleets["h1"].place(wanted) is Place.NONE  # no host is known yet
    for made in fleets.values():
        for host in HOSTS:
            register(made, host, tags=["x"] if host == "h0" else [], can=sorted(CAN))
    places = {host: fleets[host].place(wanted) for host in HOSTS}
    assert places == {"h0": Place.CLAIM, **dict.fromkeys(HOSTS[1:], Place.NONE)}
    (reporter,) = [host for host in HOSTS if fleets[host].place(nowhere) is Place.REPORT]
    for made in fleets.values():
        made.remove(reporter)
    left = [host for host in HOSTS if host != reporter]
    assert len([host for host in left if fleets[host].place(nowhere) is Place.REPORT]) == 1
    for made in fleets.values():
        made.set_cordoned("h0", cordoned=True)
    assert len([host for host in left if fleets[host].place(wanted) is Place.REPORT]) == 1
    assert fleets["h0"].place(wanted) is not Place.CLAIM


def test_what_moves_a_job_is_passed_on_once() -> None:
    """A registration that is only renewed moves nothing."""
    moves: list[None] = []
    made = Fleet("h0", FleetClock(), Log(), moved=lambda: moves.append(None))
    for fields in ({}, {"at": 5.0}, {"tags": ["x"]}, {"tags": ["x"], "at": 6.0}, {"draining": True}):
        register(made, "h1", **fields)
    made.set_cordoned("h2", cordoned=True)
    made.set_cordoned("h2", cordoned=True)
    made.remove("h1")
    made.remove("h1")
    assert len(moves) == 5


def test_turn_costs_one_digest_a_host(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is computed by every host for every tick."""
    digests: Counter[str] = Counter()
    sha256 = hashlib.sha256

    def counted(data: bytes) -> Any:
        digests["made"] += 1
        return sha256(data)

    made = fleet("h3")
    monkeypatch.setattr(fleet_module, "hashlib", SimpleNamespace(sha256=counted))
    made.turn(JOB, 1_800_000_000)
    assert digests["made"] == len(HOSTS)
