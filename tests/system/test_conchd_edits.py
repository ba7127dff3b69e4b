"""Edits around a tick: it belongs to one of the two definitions, or a row says why not; none is lost in between."""

import errno
import itertools
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from conch.cron import planner
from conch.cron.claim_store import Changed, Outcome
from conch.cron.job import Job, parse
from conch.etcd.store import Event
from conch.times import rfc3339
from tests.support.conch import throughout, wait_for
from tests.support.cron import Fleet, until_second
from tests.system.test_conchd_races import Bed, Slow

PATIENT: dict[str, Any] = {"overlap": "allow", "start_deadline": 30.0}


@pytest.fixture
def bed(fleet: Fleet, tmp_path: Path) -> Iterator[Bed]:
    bed = Bed(fleet, tmp_path)
    yield bed
    bed.close()


class LateNews:
    """Keeps what the watch has seen from a host's scheduler until it is released."""

    def __init__(self, host: Slow) -> None:
        self._host = host
        self._kept: list[Sequence[Event]] = []
        watcher = host.scheduler.parts.watcher
        self._released = False
        self._heard, watcher._events = watcher._events, self._hear

    def _hear(self, events: Sequence[Event]) -> None:
        if self._released:
            self._heard(events)
        else:
            self._kept.append(events)

    def release(self) -> None:
        """Let it know, in order, and all that comes then."""

        def now() -> None:
            self._released = True
            for events in self._kept:
                self._heard(events)

        self._host.scheduler.ask(lambda: now(), 5)


def began(bed: Bed, host: Slow, **fields: Any) -> int:
    """A job of two-second ticks whose first has just begun to run; which tick that is."""
    bed.put(schedule="@every 2s", env={"E": "old"}, **{**PATIENT, **fields})
    wait_for(lambda: [tick for name, tick in host.orders if name == "j"], "the first tick runs")
    return max(tick for name, tick in host.orders if name == "j")


# -- a tick that is due while the news of an edit are on their way -----------------------------------------


def test_due_tick_of_an_edited_job_runs_as_the_new_definition_says(bed: Bed) -> None:
    """The claim for the old one fails; the tick is the new one's too, and runs as that."""
    host = bed.host()
    tick = began(bed, host) + 2
    LateNews(host)
    bed.put(schedule="@every 1s", env={"E": "new"}, **PATIENT)
    assert host.wait_start(tick).environment["E"] == "new"


@pytest.mark.parametrize(
    ("edit", "reason"),
    [({"schedule": "@yearly"}, "the job was changed"), ({"paused": True}, "the job was paused")],
    ids=["schedule", "paused"],
)
def test_due_tick_that_an_edit_takes_away_has_a_row_that_says_so(bed: Bed, edit: dict[str, Any], reason: str) -> None:
    """No run, and no tick without a trace."""
    host = bed.host()
    tick = began(bed, host) + 2
    LateNews(host)
    bed.put(**{"schedule": "@every 2s", **PATIENT, **edit})
    result = bed.fleet.result("j", tick)
    assert (result["state"], result["reason"]) == ("skipped", reason)
    assert ("j", tick) not in host.orders
    claim = bed.fleet.value("fire", "j", tick)
    assert claim is not None
    assert claim["skip"] is True


@pytest.mark.parametrize("again", [False, True])
def test_due_tick_of_a_removed_job_leaves_none(bed: Bed, again: bool) -> None:
    """Also where one of that name was added at once: it is another job, whose first tick comes later."""
    host = bed.host()
    tick = began(bed, host) + 2
    LateNews(host)
    bed.bench.etcd.delete(f"{bed.bench.prefix}/cron/job/j")
    if again:
        time.sleep(max(0.0, tick + 0.02 - time.time()))
        bed.put(schedule="@every 2s", **PATIENT)
        host.wait_start(tick + 2)
    else:
        wait_for(lambda: time.time() > tick + 1, "its time has passed")
    assert bed.fleet.value("fire", "j", tick) is None


# -- ticks between an edit and its news ----------------------------------------------------------------------


def claimed(bed: Bed, name: str) -> set[int]:
    return set(bed.fleet.ticks("fire", name))


def test_ticks_between_an_edit_and_its_news_are_claimed(bed: Bed) -> None:
    """From when the job says that it was added; none from before."""
    host = bed.host()
    late = LateNews(host)
    added = until_second(0.2)
    bed.put("n", schedule="@every 1s", added_at=rfc3339(added), **PATIENT)
    wait_for(lambda: time.time() > added + 3.1, "three ticks")
    assert not claimed(bed, "n")
    late.release()
    wait_for(lambda: {added + 1, added + 2, added + 3} <= claimed(bed, "n"), "they are claimed")
    assert min(claimed(bed, "n")) == added + 1


def test_ticks_between_an_edit_and_its_news_that_are_too_late_are_counted(bed: Bed) -> None:
    """Each tick from the edit on is claimed or missed."""
    host = bed.host()
    late = LateNews(host)
    added = until_second(0.2)
    bed.put("n", schedule="@every 1s", added_at=rfc3339(added), overlap="allow", start_deadline=1.0)
    wait_for(lambda: time.time() > added + 4.1, "four ticks")
    late.release()
    wait_for(lambda: claimed(bed, "n"), "it goes on")
    first = min(claimed(bed, "n"))
    assert first > added + 1
    wait_for(lambda: host.scheduler.counts["missed", ""] >= first - added - 1, "those before it are counted")


@pytest.mark.parametrize("fields", [{}, {"added_at": "2020-01-01T00:00:00Z"}, {"added_at": "9000-01-01T00:00:00Z"}])
def test_edit_that_does_not_say_when_counts_from_when_etcd_had_it(bed: Bed, fields: dict[str, Any]) -> None:
    """Written by etcdctl, or by a wrong clock: what etcd answered since tells from when on, and none is earlier."""
    host = bed.host()
    late = LateNews(host)
    added = until_second(0.2)
    bed.put("n", schedule="@every 1s", **fields, **PATIENT)
    wait_for(lambda: time.time() > added + 6.1, "six ticks")
    late.release()
    now = int(time.time())
    wait_for(lambda: len({tick for tick in claimed(bed, "n") if tick <= now}) >= 2, "some are claimed")
    wait_for(lambda: now + 1 in claimed(bed, "n"), "it goes on")
    assert min(claimed(bed, "n")) > added
    ticks = sorted(claimed(bed, "n"))
    assert ticks == list(range(ticks[0], ticks[-1] + 1))


# -- storms ---------------------------------------------------------------------------------------------------


def test_job_that_is_rewritten_all_the_time_loses_no_tick(fleet: Fleet) -> None:
    """Twenty jobs of one-second ticks on two hosts, rewritten as fast as can be: each tick has a claim."""
    names = [f"j{number}" for number in range(20)]
    text = json.dumps({"schedule": "@every 1s", "cmd": ["true"], "overlap": "allow", "start_deadline": 30})
    fleet.start("a")
    fleet.start("b")
    etcd, prefix = fleet.bench.etcd, fleet.bench.prefix
    for name in names:
        etcd.put(f"{prefix}/cron/job/{name}", text)
    stop = threading.Event()
    written = itertools.count()

    def rewrite() -> None:
        for name in itertools.cycle(names):
            if stop.is_set():
                return
            etcd.put(f"{prefix}/cron/job/{name}", text)
            next(written)

    thread = threading.Thread(target=rewrite)
    thread.start()
    try:
        began_at = int(time.time()) + 2
        wait_for(lambda: time.time() > began_at + 11, "its time")
    finally:
        stop.set()
        thread.join()
    wanted = set(range(began_at, began_at + 10))
    lost = {}
    wait_for(lambda: all(wanted <= set(fleet.ticks("fire", name)) for name in names) or time.time() > began_at + 45, "")
    for name in names:
        lost[name] = wanted - set(fleet.ticks("fire", name))
    assert not any(lost.values()), f"{sum(map(len, lost.values()))} of 200 are lost: {lost}"
    assert next(written) > 200


def test_edits_leave_nothing_behind(bed: Bed) -> None:
    """What was planned before each of many edits is not kept until it is due."""
    host = bed.host()
    for number in range(2500):
        bed.put(number=number)
    bed.put("last")
    wait_for(lambda: "last" in host.scheduler.parts.planner.jobs, "all are known")
    assert len(host.scheduler.parts.planner._heap) <= 1100


# -- claims under which nothing runs --------------------------------------------------------------------------


def test_claim_that_is_a_skip_ends_no_older_run(bed: Bed) -> None:
    """Under replace an older run gives way to a newer tick that is to run, not to one that is only recorded."""
    host = bed.host()
    bed.put(overlap="replace")
    tick = bed.request()
    order = host.wait_start(tick)
    claim = {"host": "b", "pid": 1, "started": "2026-01-01T00:00:00Z", "cmd": "conchd", "run": "b0", "skip": True}
    etcd, prefix = bed.bench.etcd, bed.bench.prefix
    etcd.put(f"{prefix}/cron/fire/j/{tick + 1}", json.dumps({**claim, "tick": tick + 1}))
    throughout(1.0, lambda: None)
    assert not host.was_killed(order)
    del claim["skip"]
    etcd.put(f"{prefix}/cron/fire/j/{tick + 2}", json.dumps({**claim, "tick": tick + 2}))
    wait_for(lambda: host.was_killed(order), "a daemon of before says nothing, and is given way to")


# -- what a claim's answer says of its job ------------------------------------------------------------------


def test_claims_answer_brings_no_removed_job_back(bed: Bed) -> None:
    """It tells of an edit; by the time that it is heard the job is gone, and stays so."""
    host = bed.host()
    began(bed, host)
    late = LateNews(host)
    claims = host.scheduler.parts.store
    claim, answered, go_on = claims.claim, threading.Event(), threading.Event()

    def slow(*given: Any, **how: Any) -> Outcome:
        outcome = claim(*given, **how)
        if isinstance(outcome, Changed):
            answered.set()
            go_on.wait(20)
        return outcome

    claims.claim = slow  # type: ignore[method-assign]
    bed.put(schedule="@every 2s", env={"E": "new"}, **PATIENT)
    assert answered.wait(20)
    bed.bench.etcd.delete(f"{bed.bench.prefix}/cron/job/j")
    late.release()
    wait_for(lambda: "j" not in host.scheduler.parts.planner.jobs, "it is removed")
    go_on.set()
    wait_for(lambda: not host.scheduler.parts.claimer.under_way, "the answer is heard")
    throughout(0.5, lambda: None)
    assert "j" not in host.scheduler.parts.planner.jobs


def test_job_in_a_claims_answer_that_cannot_be_read_just_now(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """No descriptor is left for its zone: it is postponed, as where the watch tells of it, and all goes on."""
    host = bed.host()
    tick = began(bed, host)
    LateNews(host)
    short = itertools.count()

    def parse_later(name: str, value: bytes) -> Job:
        if next(short) == 0:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return parse(name, value)

    monkeypatch.setattr(planner, "parse", parse_later)
    bed.put(schedule="@every 2s", env={"E": "new"}, **PATIENT)
    host.wait_event("postponed")
    wait_for(lambda: max(tick for name, tick in host.orders if name == "j") > tick, "later ticks run")
