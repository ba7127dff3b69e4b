"""Time zone rules that change under a running daemon, and what it reads again on SIGHUP."""

import datetime
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.conch import CONCH, Bench, alive, throughout, wait_for
from tests.support.cron import Fleet
from tests.support.zones import Zones

ZONE = "Test/Clock"


@pytest.fixture
def fleet(conch: Bench) -> Iterator[Fleet]:
    fleet = Fleet(conch)
    yield fleet
    fleet.clean()


@pytest.fixture
def zones(tmp_path: Path) -> Zones:
    return Zones(tmp_path / "zones")


def noon_at(instant: int) -> int:
    """Return the UTC offset of a clock that shows noon at this instant."""
    offset = (43200 - instant) % 86400
    return offset if offset < 50000 else offset - 86400


def add(fleet: Fleet, zones: Zones, name: str, schedule: str, *flags: str) -> None:
    job = ["cron", "add", name, "--schedule", schedule, "--tz", ZONE, *flags, "--", "true"]
    done = fleet.bench.run(*job, env=zones.env)
    assert done.returncode == 0, done.stderr


def test_changed_rules_repeat_no_fixed_time_and_count_skipped_ticks(fleet: Fleet, zones: Zones) -> None:
    """A clock set back shows noon again, but noon's job does not repeat; future ticks follow the new rules."""
    noon = int(time.time()) + 6
    zones.zone(ZONE, noon_at(noon))
    daemon = fleet.start("a", env=zones.env)
    add(fleet, zones, "noon", "0 12 * * *")
    add(fleet, zones, "later", "5 12 * * *")
    add(fleet, zones, "skipped", "30 12 * * *", "--start-deadline", "1s")
    fleet.result("noon", noon)
    zones.zone(ZONE, noon_at(noon) - 8)
    zones.release("2026b")
    daemon.signal(signal.SIGHUP)
    line = daemon.wait_event("zones-changed")
    assert (line["tzdata"], line["zones"]) == ("2026b", ZONE)
    assert "zones (2026b)" in daemon.wait_event("reloaded")["msg"]
    wait_for(lambda: time.time() > noon + 11, "it was noon again", 20)
    assert set(fleet.ticks("fire", "noon")) == {noon}
    # by the next rules five past noon comes soon; by those after, half past twelve was three seconds ago
    later = int(time.time()) + 5
    zones.zone(ZONE, noon_at(later) + 300)
    daemon.signal(signal.SIGHUP)
    daemon.wait_event("zones-changed", 2)
    fleet.result("later", later)
    zones.zone(ZONE, noon_at(int(time.time()) - 3) + 1800)
    daemon.signal(signal.SIGHUP)
    daemon.wait_event("zones-changed", 3)
    missed = daemon.wait_event("missed")
    assert (missed["job"], missed["ticks"]) == ("skipped", "1")
    assert set(fleet.ticks("fire", "noon")) == {noon}
    assert set(fleet.ticks("fire", "later")) == {later}
    assert not fleet.ticks("fire", "skipped")


def test_job_whose_zone_is_released_later_is_read_then(fleet: Fleet, zones: Zones) -> None:
    """It is unreadable until SIGHUP after a release that has its zone."""
    daemon = fleet.start("a", env=zones.env)
    fleet.bench.etcd.put(
        f"{fleet.bench.prefix}/cron/job/j", '{"schedule": "* * * * *", "tz": "Test/Clock", "cmd": ["true"]}'
    )
    assert "unknown time zone" in daemon.wait_event("unreadable")["msg"]
    tick = int(time.time()) + 5
    zones.zone(ZONE, (-tick) % 60)
    zones.release("2026b")
    daemon.signal(signal.SIGHUP)
    daemon.wait_event("reloaded")
    fleet.result("j", tick)


def test_hosts_with_other_releases_of_the_zones_are_named(fleet: Fleet, zones: Zones, tmp_path: Path) -> None:
    """Each host warns once and names them; after the upgrade it does not warn again."""
    other = Zones(tmp_path / "other", "2026b")
    daemons = [fleet.start("a", env=zones.env), fleet.start("b", env=other.env)]
    for daemon in daemons:
        assert daemon.wait_event("zones-differ")["hosts"] == "2026a: a; 2026b: b"

    def registered() -> list[object]:
        return [(fleet.node(host) or {}).get("tzdata") for host in ("a", "b")]

    assert registered() == ["2026a", "2026b"]
    zones.release("2026b")
    daemons[0].signal(signal.SIGHUP)
    wait_for(lambda: registered() == ["2026b", "2026b"], "the upgrade")
    fleet.start("c", env=other.env)
    assert [len(daemon.events("zones-differ")) for daemon in daemons] == [1, 1]


def test_sighup_ends_neither_conchd_nor_a_run(fleet: Fleet) -> None:
    """conchd reloads at each SIGHUP; a run continues and does not receive it."""
    daemon = fleet.start("a")
    fleet.add("j", "@yearly", command="trap 'echo HUP > heard' HUP; echo $$ > pid; while :; do sleep 0.1; done")
    fleet.run_now("j")
    [run] = fleet.bench.pids("pid", 1)
    for count in (1, 2):
        daemon.signal(signal.SIGHUP)
        daemon.wait_event("reloaded", count)
    throughout(0.5, lambda: None)
    assert alive(run)
    assert not fleet.bench.file("heard").exists()
    assert daemon.process.poll() is None
    assert not daemon.events("draining", "registration-lost", "not-reloaded")


def test_sighup_while_it_starts_ends_nothing(conch: Bench) -> None:
    """conchd continues to dial etcd, and exits 69 when nothing answers."""
    daemon = conch.start(
        "conchd", "--state-dir", str(conch.folder / "state"), "--endpoints", "127.0.0.1:1", "--dial-timeout", "3s"
    )
    daemon.keeper()
    for _ in range(3):
        daemon.signal(signal.SIGHUP)
    assert daemon.wait() == 69


def test_sighup_that_was_ignored_stays_ignored(fleet: Fleet) -> None:
    """Under nohup, conchd does not reload."""
    daemon = fleet.start("a", program=["nohup", CONCH])
    daemon.signal(signal.SIGHUP)
    fleet.add("j", "@yearly")
    fleet.result("j", fleet.run_now("j"))
    assert not daemon.events("reloaded")


def test_commands_use_the_same_zone_database(conch: Bench, zones: Zones) -> None:
    """`cron next` obeys `TZDIR`, too."""
    zones.zone(ZONE, 3 * 3600 + 7)
    done = conch.run("cron", "next", "0 12 * * *", "--tz", ZONE, "-n", "1", env=zones.env)
    assert done.returncode == 0, done.stderr
    assert datetime.datetime.fromisoformat(done.stdout.strip()).utcoffset() == datetime.timedelta(hours=3, seconds=7)
    assert conch.run("cron", "next", "0 12 * * *", "--tz", ZONE).returncode == 64


@pytest.mark.parametrize("how", ["add", "next"])
def test_expression_that_matches_only_a_gap_is_a_usage_error(conch: Bench, how: str) -> None:
    """It is rejected like any other that never fires."""
    expression = "* 2 25-31 3 */7"
    words = ["add", "j", "--schedule", expression] if how == "add" else ["next", expression]
    done = conch.run("cron", *words, "--tz", "Europe/Berlin", *(["--", "true"] if how == "add" else []))
    assert done.returncode == 64
    assert "it will never fire" in done.stderr


def test_job_that_matches_only_a_gap_is_unreadable_and_costs_no_ticks(fleet: Fleet) -> None:
    """No tick of another job is missing."""
    daemon = fleet.start("a")
    fleet.bench.etcd.put(
        f"{fleet.bench.prefix}/cron/job/gap",
        '{"schedule": "* 2 25-31 3 */7", "tz": "Europe/Berlin", "cmd": ["true"]}',
    )
    assert "it will never fire" in daemon.wait_event("unreadable")["msg"]
    fleet.add("j", "@every 1s")
    ticks = sorted(fleet.results("j", 4))
    assert ticks[:4] == list(range(ticks[0], ticks[0] + 4))
