"""Edits around a tick: it follows the old or the new definition, or is recorded with a reason; none is lost."""

import asyncio
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
from conch.cron.claim_outcomes import Changed, Outcome
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


class DelayedEvents:
    """Withholds watch events from a host's scheduler until they are released."""

    def __init__(self, host: Slow) -> None:
        self._host = host
        self._kept: list[Sequence[Event]] = []
        watcher = host.scheduler.parts.watcher
        self._released = False
        self._deliver, watcher._events = watcher._events, self._receive

    def _receive(self, events: Sequence[Event]) -> None:
        if self._released:
            self._deliver(events)
        else:
            self._kept.append(events)

    def release(self) -> None:
        """Deliver the withheld events in order, and every later event immediately."""

        def now() -> None:
            self._released = True
            for events in self._kept:
                self._deliver(events)

        self._host.scheduler.ask(lambda: now(), 5)


def run_first_tick(bed: Bed, host: Slow, **fields: Any) -> int:
    """Add a job of two-second ticks and wait until one runs; return that tick."""
    bed.put(schedule="@every 2s", env={"E": "old"}, **{**PATIENT, **fields})
    wait_for(lambda: [tick for name, tick in host.orders if name == "j"], "the first tick runs")
    return max(tick for name, tick in host.orders if name == "j")


# -- a tick that is due before the scheduler sees an edit --------------------------------------------------


def test_due_tick_of_an_edited_job_runs_as_the_new_definition_says(bed: Bed) -> None:
    """The claim under the old definition fails; the new one has this tick too, and runs it."""
    host = bed.host()
    tick = run_first_tick(bed, host) + 2
    DelayedEvents(host)
    bed.put(schedule="@every 1s", env={"E": "new"}, **PATIENT)
    assert host.wait_start(tick).environment["E"] == "new"


@pytest.mark.parametrize(
    ("edit", "reason"),
    [({"schedule": "@yearly"}, "the job was changed"), ({"paused": True}, "the job was paused")],
    ids=["schedule", "paused"],
)
def test_due_tick_that_an_edit_removes_is_recorded_with_the_reason(bed: Bed, edit: dict[str, Any], reason: str) -> None:
    """It does not run, but its claim and its result say that it was skipped and why."""
    host = bed.host()
    tick = run_first_tick(bed, host) + 2
    DelayedEvents(host)
    bed.put(**{"schedule": "@every 2s", **PATIENT, **edit})
    result = bed.fleet.result("j", tick)
    assert (result["state"], result["reason"]) == ("skipped", reason)
    assert ("j", tick) not in host.orders
    claim = bed.fleet.value("fire", "j", tick)
    assert claim is not None
    assert claim["skip"] is True


@pytest.mark.parametrize("again", [False, True])
def test_due_tick_of_a_removed_job_is_not_claimed(bed: Bed, again: bool) -> None:
    """A job of that name that is added right then is another job, whose first tick comes later."""
    host = bed.host()
    tick = run_first_tick(bed, host) + 2
    DelayedEvents(host)
    bed.bench.etcd.delete(f"{bed.bench.prefix}/cron/job/j")
    if again:
        time.sleep(max(0.0, tick + 0.02 - time.time()))
        bed.put(schedule="@every 2s", **PATIENT)
        host.wait_start(tick + 2)
    else:
        wait_for(lambda: time.time() > tick + 1, "its time has passed")
    assert bed.fleet.value("fire", "j", tick) is None


# -- ticks between an edit and its watch event ---------------------------------------------------------------


def claimed(bed: Bed, name: str) -> set[int]:
    return set(bed.fleet.ticks("fire", name))


def test_ticks_between_an_edit_and_its_event_are_claimed(bed: Bed) -> None:
    """The first claim is for the first tick after the job's `added_at`."""
    host = bed.host()
    late = DelayedEvents(host)
    added = until_second(0.2)
    bed.put("n", schedule="@every 1s", added_at=rfc3339(added), **PATIENT)
    wait_for(lambda: time.time() > added + 3.1, "three ticks")
    assert not claimed(bed, "n")
    late.release()
    wait_for(lambda: {added + 1, added + 2, added + 3} <= claimed(bed, "n"), "they are claimed")
    assert min(claimed(bed, "n")) == added + 1


def test_ticks_between_an_edit_and_its_event_that_are_too_late_are_counted(bed: Bed) -> None:
    """Each tick since the edit is claimed or counted as missed."""
    host = bed.host()
    late = DelayedEvents(host)
    added = until_second(0.2)
    bed.put("n", schedule="@every 1s", added_at=rfc3339(added), overlap="allow", start_deadline=1.0)
    wait_for(lambda: time.time() > added + 4.1, "four ticks")
    late.release()
    wait_for(lambda: claimed(bed, "n"), "it goes on")
    first = min(claimed(bed, "n"))
    assert first > added + 1
    wait_for(lambda: host.scheduler.counts["missed", ""] >= first - added - 1, "those before it are counted")


@pytest.mark.parametrize("fields", [{}, {"added_at": "2020-01-01T00:00:00Z"}, {"added_at": "9000-01-01T00:00:00Z"}])
def test_edit_without_a_credible_time_is_dated_by_etcds_answers(bed: Bed, fields: dict[str, Any]) -> None:
    """etcd's answers date an edit by etcdctl or by a wrong clock; no tick from before it is claimed."""
    host = bed.host()
    late = DelayedEvents(host)
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


# -- many edits -----------------------------------------------------------------------------------------------


def test_job_that_is_rewritten_all_the_time_loses_no_tick(fleet: Fleet) -> None:
    """Twenty jobs of one-second ticks on two hosts are rewritten without pause: each tick has a claim."""
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
    """Ticks planned under old definitions are removed before they are due."""
    host = bed.host()
    for number in range(2500):
        bed.put(number=number)
    bed.put("last")
    wait_for(lambda: "last" in host.scheduler.parts.planner.jobs, "all are known")
    assert len(host.scheduler.parts.planner._heap) <= 1100


# -- claims under which nothing runs --------------------------------------------------------------------------


def test_claim_that_is_a_skip_ends_no_older_run(bed: Bed) -> None:
    """`replace` ends an older run for a newer tick that will run, not for one that is recorded as skipped."""
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
    wait_for(lambda: host.was_killed(order), "a claim by an older conchd has no `skip`, and ends the run")


# -- a claim's answer that contains its job -----------------------------------------------------------------


def test_late_claim_answer_does_not_bring_back_a_removed_job(bed: Bed) -> None:
    """The answer contains an edit, but the job was removed before it arrived: the job stays removed."""
    host = bed.host()
    run_first_tick(bed, host)
    late = DelayedEvents(host)
    claims = host.scheduler.parts.store
    claim, answered, go_on = claims.claim, threading.Event(), threading.Event()

    async def slow(*given: Any, **how: Any) -> Outcome:
        outcome = await claim(*given, **how)
        if isinstance(outcome, Changed):
            answered.set()
            await asyncio.to_thread(go_on.wait, 20)
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


def test_job_in_a_claims_answer_that_cannot_be_read_yet(bed: Bed, monkeypatch: pytest.MonkeyPatch) -> None:
    """No descriptor is free for its zone: the job is postponed, as after a watch event, and later ticks run."""
    host = bed.host()
    tick = run_first_tick(bed, host)
    DelayedEvents(host)
    short = itertools.count()

    def parse_later(name: str, value: bytes) -> Job:
        if next(short) == 0:
            raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
        return parse(name, value)

    monkeypatch.setattr(planner, "parse", parse_later)
    bed.put(schedule="@every 2s", env={"E": "new"}, **PATIENT)
    host.wait_event("postponed")
    wait_for(lambda: max(tick for name, tick in host.orders if name == "j") > tick, "later ticks run")
