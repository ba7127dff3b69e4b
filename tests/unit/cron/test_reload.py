"""What is read anew: zones that change while jobs follow them, and everything at a SIGHUP."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conch.cron import zones
from conch.cron.planner import Planner
from conch.cron.reload import Reload
from conch.cron.workers import Chores
from conch.errors import BadInput
from conch.etcd.store import KeyValue, Renewal
from tests.support.parts import TICK, World, lost_reply
from tests.support.virtual_loop import Log, VirtualLoop
from tests.support.zones import Zones

DAY_S = 86400
ZONE, OTHER = "Test/Zone", "Test/Other"


class Bed(World):
    """A reload beside a planner, on a database of its own; `renewals` are what is read besides the zones."""

    def __init__(self, loop: VirtualLoop, log: Log, database: Zones) -> None:
        super().__init__(loop, log)
        self.database = database
        self.calls: list[tuple[float, str]] = []
        self.renewals: list[Any] = []
        self.renewed = 0
        self.missed: list[str] = []
        chores = Chores(self.tasks)
        self.planner = Planner(
            *(self.clock, chores, log),
            moments=lambda revision: (None, None),
            due=lambda tick: None,
            missed=lambda name, missed: self.missed.append(name),
            is_clock_off=lambda: False,
            now=loop.time,
        )
        self.reload = Reload(
            *(self.planner, self.tasks, self.workers, chores, log),
            renew=self._renew,
            set_release=self._call("release"),
            list_again=self._call("list again"),
            remove_job=self._call("remove"),
            job_key=lambda name: f"/job/{name}",
        )

    def _call(self, what: str) -> Callable[..., None]:
        return lambda *names: self.calls.append((round(self.now()), " ".join([what, *names])))

    def _renew(self) -> list[Renewal]:
        self.renewed += 1
        answer = self.renewals.pop(0) if self.renewals else []
        if isinstance(answer, Exception):
            raise answer
        return list(answer)

    def define(self, name: str, zone: str, schedule: str = "0 12 * * *", rev: int = 5) -> bool:
        value = json.dumps({"schedule": schedule, "cmd": ["true"], "tz": zone}).encode()
        return self.planner.on_job(name, KeyValue(b"/job/" + name.encode(), value, rev, rev, 0))

    def next_hour(self, name: str) -> float | None:
        """When the job is due next, in hours of its day in UTC."""
        tick = self.planner.jobs[name].next_tick
        return None if tick is None else tick % 86400 / 3600

    def go(self, seconds: float) -> None:
        self.loop.run(asyncio.sleep(seconds))
        self.check()


@pytest.fixture
def bed(loop: VirtualLoop, log: Log, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bed:
    monkeypatch.setattr(zones, "_loaded", {})
    database = Zones(tmp_path / "zones")
    monkeypatch.setenv("TZDIR", str(database.folder))
    for zone in (ZONE, OTHER):
        database.zone(zone, 0)
    return Bed(loop, log, database)


def changes(bed: Bed, offset_s: int = 3600, release: str = "2026b", zone: str = ZONE) -> None:
    """The zone gets another offset, and the database another release."""
    bed.database.zone(zone, offset_s)
    bed.database.release(release)


# -- zones, by themselves -------------------------------------------------------------------------------------


def test_change_is_found_within_the_hour(bed: Bed, log: Log) -> None:
    """Jobs in that zone are planned by the new rules, others stay; the release of our zones is published."""
    bed.define("j", ZONE)
    bed.define("k", OTHER)
    planned = bed.planner.jobs["k"].planned
    bed.reload.start()
    bed.go(60.0)
    changes(bed)
    bed.go(3500.0)
    assert bed.calls == []
    bed.go(100.0)
    assert (bed.next_hour("j"), bed.next_hour("k")) == (11.0, 12.0)
    assert bed.planner.jobs["k"].planned == planned
    assert [call for _, call in bed.calls] == ["release 2026b"]
    assert bed.reload.release == "2026b"
    assert log.events("zones-changed") == [{"tzdata": "2026b", "zones": ZONE}]


def test_after_a_change_it_looks_again_soon(bed: Bed) -> None:
    """The database is being replaced, file by file perhaps; once nothing more changes, hourly as before."""
    bed.define("j", ZONE)
    bed.define("k", OTHER)
    bed.reload.start()
    bed.reload.check_zones_soon()
    changes(bed)
    bed.go(61.0)
    changes(bed, zone=OTHER)
    bed.go(60.0)
    assert bed.next_hour("k") == 11.0
    bed.go(60.0)
    changes(bed, release="2026c")
    bed.go(3000.0)
    assert bed.reload.release == "2026b"
    bed.go(700.0)
    assert bed.reload.release == "2026c"


@pytest.mark.parametrize(("soon", "within_s"), [(True, 61.0), (False, 3661.0)])
def test_when_another_host_has_another_release(bed: Bed, soon: bool, within_s: float) -> None:
    """Ours may have been changed, too."""
    bed.reload.start()
    bed.go(10.0)
    bed.database.release("2026b")
    if soon:
        bed.reload.check_zones_soon()
    bed.go(within_s - 120.0 if not soon else 0.0)
    assert bed.calls == []
    bed.go(120.0 if not soon else within_s)
    assert [call for _, call in bed.calls] == ["release 2026b"]


def test_rules_that_did_not_change_plan_nothing_anew(bed: Bed) -> None:
    """A new release may not concern any zone in use."""
    bed.define("j", ZONE)
    planned = bed.planner.jobs["j"].planned
    bed.database.release("2026b")
    bed.reload.on_request()
    bed.go(1.0)
    assert bed.planner.jobs["j"].planned == planned
    assert bed.reload.release == "2026b"


@pytest.mark.parametrize(
    ("hour", "offset_s", "after_s"),
    [
        (8, 3600, DAY_S - 3600),
        (8, -3600, DAY_S + 3600),  # the clock goes back to 7: the second 8 of this day is passed over
        (8, -2 * 3600, DAY_S + 2 * 3600),
        (9, -3600, 2 * 3600),
        (11, 3600, 2 * 3600),
    ],
)
def test_fixed_time_does_not_come_again_by_the_new_rules(bed: Bed, hour: int, offset_s: int, after_s: int) -> None:
    """It is eight by the old rules, and the tick of eight is past."""
    bed.define("j", ZONE, f"0 {hour} * * *")
    bed.planner.jobs["j"].past = TICK
    changes(bed, offset_s)
    bed.reload.on_request()
    bed.go(1.0)
    assert bed.planner.jobs["j"].next_tick == TICK + after_s


def test_job_that_was_removed_meanwhile(bed: Bed) -> None:
    """It is planned in a chore, and may be gone by then."""
    bed.define("j", ZONE)
    changes(bed)
    bed.reload._follow_zones(zones.scan())
    del bed.planner.jobs["j"]
    bed.go(1.0)
    assert bed.planner.jobs == {}


def test_job_that_the_new_rules_make_unreadable(bed: Bed, log: Log) -> None:
    """It is reported like a definition that cannot be read, and followed no more."""

    def ticks() -> None:
        raise BadInput("it will never fire")

    bed.define("j", ZONE)
    tracked = bed.planner.jobs["j"]
    broken: Any = SimpleNamespace(tz=ZONE, ticks=ticks)
    tracked.job = broken
    changes(bed)
    bed.reload.on_request()
    bed.go(1.0)
    assert [call for _, call in bed.calls] == ["release 2026b", "remove j"]
    assert log.events("unreadable") == [{"key": "/job/j", "msg": "it will never fire"}]
    assert bed.planner.unreadable == {"j": (5, tracked.value)}


@pytest.mark.parametrize(("changed", "listed"), [(True, True), (False, False)])
def test_job_of_a_zone_that_is_new(bed: Bed, changed: bool, listed: bool) -> None:
    """It could not be read before; everything is listed once more."""
    assert not bed.define("j", "Test/New")
    if changed:
        bed.database.zone("Test/New", 0)
        bed.database.release("2026b")
    bed.reload.on_request()
    bed.go(1.0)
    assert ("list again" in [call for _, call in bed.calls]) is listed
    assert (bed.planner.unreadable == {}) is listed


def test_database_that_cannot_be_read_changes_nothing(bed: Bed, log: Log, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is tried again an hour later."""
    bed.define("j", ZONE)
    changes(bed)
    monkeypatch.setattr(zones, "scan", lambda: zones.Scan([], "", "Too many open files"))
    bed.reload.on_request()
    bed.go(1.0)
    assert bed.next_hour("j") == 12.0
    assert (bed.reload.release, bed.calls) == ("2026a", [])
    assert log.events("not-reloaded") == [{"what": "zones", "msg": "Too many open files; the old rules stay"}]
    assert log.events("reloaded") == [{"msg": "read anew: nothing"}]


# -- SIGHUP ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("renewals", "read", "refused"),
    [
        ([], "zones (2026a)", []),
        ([Renewal("certificates"), Renewal("password")], "zones (2026a), certificates, password", []),
        (
            [Renewal("certificates", "no such file"), Renewal("password")],
            "zones (2026a), password",
            [{"what": "certificates", "msg": "no such file; the old one stays"}],
        ),
    ],
)
def test_request_says_what_was_read(
    bed: Bed, log: Log, renewals: list[Renewal], read: str, refused: list[dict[str, str]]
) -> None:
    bed.renewals = [renewals]
    bed.reload.on_request()
    bed.go(1.0)
    assert log.events("reloaded") == [{"msg": f"read anew: {read}"}]
    assert log.events("not-reloaded") == refused


def test_requests_meanwhile_are_one_more(bed: Bed, log: Log) -> None:
    """What was read before the last of them may be old."""
    bed.workers.call_s = 1.0
    for at in (0.0, 0.2, 0.5, 0.9):
        bed.loop.at(at, bed.reload.on_request)
    bed.go(5.0)
    assert bed.renewed == 2
    assert len(log.events("reloaded")) == 2
    bed.reload.on_request()
    bed.go(5.0)
    assert bed.renewed == 3


def test_request_that_failed_does_not_stop_the_next(bed: Bed, log: Log) -> None:
    bed.renewals = [lost_reply(), [Renewal("password")]]
    bed.reload.on_request()
    bed.go(1.0)
    assert log.events("reloaded") == []
    bed.reload.on_request()
    bed.go(1.0)
    assert log.events("reloaded") == [{"msg": "read anew: zones (2026a), password"}]
