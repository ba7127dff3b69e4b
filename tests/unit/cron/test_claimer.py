"""Claiming one tick: every outcome of the transaction, and everything that can happen before and between tries."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest

from conch.cron.claim_outcomes import Again, Busy, Changed, NodeGone, Outcome, Taken, Won
from conch.cron.claimer import Claimer, ClaimPorts
from conch.cron.fleet_clock import FleetClock
from conch.cron.group_commit import GroupCommit
from conch.cron.job import Job, parse
from conch.cron.shared_leases import SharedLeases
from conch.cron.ticks import (
    CHANGED,
    REMOVED,
    STOPPING,
    TOO_LATE,
    Claim,
    PendingTick,
    Registration,
    TickGivenUp,
    TickLost,
    TickOver,
    TickSkipped,
    TickState,
    TickWaits,
    TickWon,
    TrackedJob,
)
from conch.cron.transactions import Transactions
from conch.cron.waiting_room import WaitingRoom
from conch.cron.writes import Faults, Unsent, WriteKind, Writes
from conch.etcd.store import KeyValue, StoreError, Unreachable
from conch.holder import Holder
from tests.support.virtual_loop import DirectWorkers, Log, VirtualLoop, tasks_of

TICK = int(VirtualLoop.EPOCH)
ME = Holder("a", 1, "2026-01-01T00:00:00Z", "conchd")
WON = Won(20, 77, 20)


def job(**fields: Any) -> Job:
    return parse("j", json.dumps({"schedule": "@every 1s", "cmd": ["true"], **fields}).encode())


def lost_reply() -> Unreachable:
    error = Unreachable("no endpoint answered")
    error.unclear = True
    return error


def run_key(run: str = "other", tick: int = TICK - 60) -> KeyValue:
    return KeyValue(b"/run/j", json.dumps({"tick": tick, "host": "b", "run": run}).encode(), 9, 9, 1)


Answer = Outcome | Exception | Callable[[], Outcome]


class Answers:
    """The port to claims: gives the next answer of a script, and notes how each was asked."""

    def __init__(self, script: list[Answer]) -> None:
        self.script = script
        self.asked: list[str] = []

    async def _next(self, how: str, *, sending: Any, has_floor: bool) -> Outcome:
        await asyncio.sleep(0.001)
        if not sending.is_wanted():
            raise Unsent
        self.asked.append(how)
        answer = self.script.pop(0)
        if callable(answer):
            answer = answer()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def claim(self, *given: Any, **options: Any) -> Outcome:
        return await self._next("run", **options)

    async def claim_to_wait(self, *given: Any, **options: Any) -> Outcome:
        return await self._next("wait", **options)

    async def claim_to_skip(self, *given: Any, **options: Any) -> Outcome:
        return await self._next("skip", **options)

    def is_ours(self, kv: KeyValue, tick: PendingTick) -> bool:
        return bool(json.loads(kv.value).get("run") == tick.run)


class RunLog:
    def __init__(self) -> None:
        self.written: list[Any] = []

    def write(self, *entries: Any) -> bool:
        self.written += entries
        return True


class Bed:
    """A claimer, and what the other parts would answer it."""

    def __init__(self, loop: VirtualLoop, log: Log, script: list[Answer], **fields: Any) -> None:
        self.loop = loop
        self.log = log
        self.job_key: bytes | None = fields.pop("job_key", None)
        self.tracked: TrackedJob | None = TrackedJob(job(**fields), 5, job(**fields).ticks())
        self.registration: Registration | None = Registration(3, 8, 4)
        self.draining, self.not_here = False, ""
        self.closed = ""
        self.closed_while_busy = False
        self.read: list[tuple[str, KeyValue]] = []
        self.reported: list[bytes] = []
        self.answers = Answers(script)
        self.run_log = RunLog()
        self.counts: Counter[tuple[str, str]] = Counter()
        self.tick = PendingTick(self.tracked.job, 5, TICK, TICK + 30.0, "mine")
        tasks, workers, faults = tasks_of(loop), DirectWorkers(0.001), Faults(log)
        self.writes = Writes(tasks, workers, faults)
        room = WaitingRoom(
            tasks,
            self.writes,
            faults,
            why_closed=self._why_closed,
            free=lambda: 1,
            draining=lambda: self.draining,
            wall_clock=loop.wall,
            now=loop.time,
        )
        self.writes.connect(probers=(room.probe,), resumed=(room.admit,))
        ports = ClaimPorts(
            tracked=lambda name: self.tracked,
            registration=lambda: self.registration,
            draining=lambda: self.draining,
            read_job=self._read_job,
            unreadable=lambda key, why: self.reported.append(key),
            waiting=lambda: 1,
            why_not_here=lambda _: self.not_here,
        )
        store: Any = self.answers
        run_log: Any = self.run_log
        transactions = Transactions(store, SharedLeases(store, "/p"), tasks, workers)
        commit = GroupCommit(run_log, tasks, workers)
        self.claimer = Claimer(
            *(store, ports, room, transactions, self.writes, commit, FleetClock(loop.wall), ME, self.counts),
            job_key=self.job_key,
            timeout_s=5.0,
        )

    def _why_closed(self, probe: bool) -> str:
        if self.closed_while_busy and self.claimer.under_way:
            return "as many runs as this daemon may have: 1"
        return self.closed or ("etcd takes no writes" if self.writes.is_open and not probe else "")

    def _read_job(self, name: str, kv: KeyValue) -> None:
        self.read.append((name, kv))
        assert self.tracked is not None
        self.tracked.rev = kv.mod_revision

    def claim(self) -> Claim:
        return self.loop.run(self.claimer.claim(self.tick))


@pytest.mark.parametrize(
    ("fields", "busy", "script", "claim", "asked"),
    [
        ({}, None, [WON], TickWon(20, 20, 77, 3), ["run"]),
        ({"overlap": "allow"}, None, [Won(20, 77, None)], TickWon(20, None, 77, 3), ["run"]),
        ({}, None, [Taken("claimed by another")], TickLost(), ["run"]),
        ({}, None, [Again(True), WON], TickWon(20, 20, 77, 3), ["run", "run"]),
        ({}, None, [NodeGone(), WON], TickWon(20, 20, 77, 3), ["run", "run"]),
        ({}, None, [Busy(None), WON], TickWon(20, 20, 77, 3), ["run", "run"]),
        (
            {"overlap": "forbid"},
            None,
            [Busy(run_key()), Won(20, 77, None)],
            TickSkipped("the run of 2027-01-15T07:59:00Z on b is alive"),
            ["run", "skip"],
        ),
        ({"overlap": "replace"}, run_key(), [Won(20, 77, None)], TickWaits(20), ["wait"]),
        # an earlier try of ours was made, in another way than the newest
        ({"overlap": "replace"}, run_key(), [Won(20, 77, 20)], TickOver(20, 20, TOO_LATE), ["wait"]),
        ({}, None, [Won(20, 77, None)], TickOver(20, None, TOO_LATE), ["run"]),
        # the run key that the second try finds is its own
        ({}, run_key("mine"), [WON], TickWon(20, 20, 77, 3), ["run"]),
    ],
)
def test_outcomes(
    loop: VirtualLoop,
    log: Log,
    fields: dict[str, Any],
    busy: KeyValue | None,
    script: list[Answer],
    claim: Claim,
    asked: list[str],
) -> None:
    """Each outcome of the transaction leads to an answer, or to another try that knows better."""
    bed = Bed(loop, log, list(script), **fields)
    assert bed.tracked is not None
    bed.tracked.run = busy
    assert bed.claim() == claim
    assert bed.answers.asked == asked
    assert bed.claimer.under_way == 0
    assert bed.tick.state is TickState.WAITING


def test_won_claim_is_on_disk_before_it_is_answered(loop: VirtualLoop, log: Log) -> None:
    """A run that could start and is not in the log would be forgotten by a crash."""
    bed = Bed(loop, log, [WON])
    bed.claim()
    assert [(entry.run, entry.rev, entry.run_rev) for entry in bed.run_log.written] == [("mine", 20, 20)]
    waits = Bed(loop, log, [Won(20, 77, None)], overlap="replace")
    assert waits.tracked is not None
    waits.tracked.run = run_key()
    waits.claim()
    assert waits.run_log.written == []


@pytest.mark.parametrize("script", [[lost_reply(), WON], [lost_reply(), lost_reply(), lost_reply(), WON]])
def test_lost_reply_makes_the_tick_unclear_and_is_tried_again(
    loop: VirtualLoop, log: Log, script: list[Answer]
) -> None:
    """One log line for the fault, a pause before each try, and the tick is ours in the end."""
    bed = Bed(loop, log, list(script))
    assert bed.claim() == TickWon(20, 20, 77, 3)
    assert bed.tick.unclear
    assert len(log.events("claim-failed")) == 1
    assert loop.seconds - 1000.0 >= 0.05


def test_unclear_tick_that_is_too_late_is_given_up_unclear(loop: VirtualLoop, log: Log) -> None:
    """Whoever gives it up must close it: the claim may have been made."""
    bed = Bed(loop, log, [lost_reply() for _ in range(200)])
    assert bed.claim() == TickGivenUp(None)
    assert bed.tick.unclear
    assert loop.wall() > TICK + 30


def test_refusal_does_not_make_it_unclear(loop: VirtualLoop, log: Log) -> None:
    """Etcd answered that it made nothing."""
    refusal = StoreError("etcdserver: permission denied")
    refusal.unclear = False
    bed = Bed(loop, log, [refusal, WON])
    assert bed.claim() == TickWon(20, 20, 77, 3)
    assert not bed.tick.unclear


def _stop(bed: Bed) -> None:
    bed.draining = True
    bed.tick.alarm.ring()


def _remove(bed: Bed) -> None:
    bed.tracked = None
    bed.tick.alarm.ring()


@pytest.mark.parametrize(
    ("event", "claim"),
    [
        (lambda bed: bed.tick.cancel(), TickLost()),
        (_stop, TickGivenUp(STOPPING)),
        (_remove, TickGivenUp(REMOVED)),
        (lambda bed: None, TickGivenUp(None)),
    ],
)
def test_tick_that_waits_hears_of_it(loop: VirtualLoop, log: Log, event: Callable[[Bed], None], claim: Claim) -> None:
    """Another host's claim, the end of the daemon or of the job, and its deadline end the wait for room."""
    bed = Bed(loop, log, [])
    bed.closed = "as many runs as this daemon may have: 1"
    loop.at(1.0, lambda: event(bed))
    assert bed.claim() == claim
    assert bed.answers.asked == []
    assert log.events("held-back")


def test_tick_waits_until_there_is_room(loop: VirtualLoop, log: Log) -> None:
    """It is claimed within a fifth of a second of that."""
    bed = Bed(loop, log, [WON])
    bed.closed = "the supervisor is stopped"
    loop.at(3.0, lambda: setattr(bed, "closed", ""))
    assert bed.claim() == TickWon(20, 20, 77, 3)
    assert 3.0 <= loop.seconds - 1000.0 <= 3.25


@pytest.mark.parametrize(
    ("edit", "claim", "asked"),
    [
        ({"schedule": "@every 1s"}, TickWon(20, 20, 77, 3), ["run"]),
        ({"schedule": "@yearly"}, TickSkipped(CHANGED), ["skip"]),
        ({"schedule": "@every 1s", "paused": True}, TickSkipped("the job was paused"), ["skip"]),
    ],
)
def test_edit_before_the_claim(
    loop: VirtualLoop, log: Log, edit: dict[str, Any], claim: Claim, asked: list[str]
) -> None:
    """A tick that the new definition has runs as that one says; another leaves a row that says why it does not run."""
    won = WON if asked == ["run"] else Won(20, 77, None)
    bed = Bed(loop, log, [won])
    changed = job(**edit)
    bed.tracked = TrackedJob(changed, 6, changed.ticks())
    assert bed.claim() == claim
    assert bed.answers.asked == asked
    assert bed.tick.job_rev == 6


def test_unclear_tick_of_an_edited_job_is_not_claimed_again(loop: VirtualLoop, log: Log) -> None:
    """If it was claimed, it was under the old definition."""
    bed = Bed(loop, log, [])
    assert bed.tracked is not None
    bed.tracked.rev = 6
    bed.tick.unclear = True
    assert bed.claim() == TickGivenUp(CHANGED)


def test_job_that_was_removed_and_added_again_has_other_ticks(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log, [])
    assert bed.tracked is not None
    bed.tracked.rev = bed.tracked.created = 6
    assert bed.claim() == TickLost()


def test_answer_that_knows_a_newer_definition_is_read(loop: VirtualLoop, log: Log) -> None:
    """The claim's answer is ahead of the watch; nobody can have the tick by the old definition any more."""
    newer = KeyValue(b"/job/j", b"{}", 1, 7, 0)
    bed = Bed(loop, log, [Changed(newer), WON])
    bed.tick.unclear = False
    assert bed.claim() == TickWon(20, 20, 77, 3)
    assert bed.read == [("j", newer)]


def test_answer_never_brings_a_removed_job_back(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log, [Changed(None)])
    assert bed.claim() == TickGivenUp(REMOVED)
    assert bed.read == []


@pytest.mark.parametrize("requested", [False, True])
def test_floor_that_cannot_be_read_is_reported(loop: VirtualLoop, log: Log, requested: bool) -> None:
    """A scheduled tick counts as missed; a request is tried at another second."""
    bed = Bed(loop, log, [Taken("its floor cannot be read", b"/floor/j")])
    bed.tick.request_rev = 9 if requested else 0
    assert bed.claim() == (TickLost() if requested else TickGivenUp(None))
    assert bed.reported == [b"/floor/j"]


@pytest.mark.parametrize(
    ("fields", "reason"),
    [({}, "the job is not signed"), ({"sig": "00"}, "the job's signature is not by our key, or is for another prefix")],
)
def test_unsigned_job_is_only_recorded(loop: VirtualLoop, log: Log, fields: dict[str, Any], reason: str) -> None:
    bed = Bed(loop, log, [Won(20, 77, None)], job_key=b"k" * 32, **fields)
    assert bed.claim() == TickSkipped(reason)
    assert bed.answers.asked == ["skip"]


def test_claim_that_is_won_as_the_daemon_ends_does_not_run(loop: VirtualLoop, log: Log) -> None:
    def drain() -> Outcome:
        bed.draining = True
        return WON

    bed = Bed(loop, log, [drain])
    assert bed.claim() == TickOver(20, 20, STOPPING)


def test_claim_that_is_not_sent_when_the_daemon_ends_is_not_made(loop: VirtualLoop, log: Log) -> None:
    """Other hosts can claim it."""
    bed = Bed(loop, log, [])
    loop.at(0.0005, lambda: setattr(bed, "draining", True))
    assert bed.claim() == TickGivenUp(STOPPING)


def test_claim_that_is_not_sent_when_another_host_has_the_tick_is_not_made(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log, [])
    loop.at(0.0005, bed.tick.cancel)
    assert bed.claim() == TickLost()


@pytest.mark.parametrize("failure", ["error", "unsent"])
def test_tick_that_waits_for_its_next_try_takes_no_room(loop: VirtualLoop, log: Log, failure: str) -> None:
    """Otherwise as many failed claims as a daemon may have runs would keep one another waiting until all are late."""
    bed = Bed(loop, log, [lost_reply(), WON] if failure == "error" else [WON])
    bed.closed_while_busy = True
    if failure == "unsent":
        bed.writes.failed("claim-failed", lost_reply())
        assert bed.writes.is_open
    assert bed.claim() == TickWon(20, 20, 77, 3)
    assert loop.seconds - 1000.0 < 5
    assert bed.claimer.under_way == 0


def test_answer_after_a_refusal_lets_the_others_try(loop: VirtualLoop, log: Log) -> None:
    """The tick is not refused any more, and ticks that etcd refused need not wait for turns."""
    refusal = StoreError("etcdserver: permission denied")
    refusal.unclear = False
    bed = Bed(loop, log, [refusal, WON])
    bed.claim()
    assert not bed.tick.refused
    assert bed.writes.may_retry(WriteKind.CLAIM)


def test_edit_and_edit_back(loop: VirtualLoop, log: Log) -> None:
    """A tick that an edit took away and another gives back runs, for as long as the newest definition allows."""
    bed = Bed(loop, log, [WON])
    bed.tick.void = CHANGED
    changed = job(start_deadline=300)
    bed.tracked = TrackedJob(changed, 6, changed.ticks())
    assert bed.claim() == TickWon(20, 20, 77, 3)
    assert bed.answers.asked == ["run"]
    assert bed.tick.deadline == TICK + 300


def test_request_is_claimed_for_the_job_as_it_is(loop: VirtualLoop, log: Log) -> None:
    """An unclear request keeps its tick, and its next try is for the newest definition."""
    bed = Bed(loop, log, [WON])
    bed.tick.request_rev, bed.tick.unclear = 9, True
    changed = job(env={"A": "b"})
    bed.tracked = TrackedJob(changed, 6, changed.ticks())
    assert bed.claim() == TickWon(20, 20, 77, 3)
    assert (bed.tick.job, bed.tick.job_rev) == (changed, 6)


def test_request_of_an_edited_job_gets_another_second(loop: VirtualLoop, log: Log) -> None:
    """Nothing was sent for it yet."""
    bed = Bed(loop, log, [])
    bed.tick.request_rev = 9
    assert bed.tracked is not None
    bed.tracked.rev = 6
    assert bed.claim() == TickGivenUp(CHANGED)


def test_probe_ends_with_an_answer(loop: VirtualLoop, log: Log) -> None:
    """The next try of a tick that was a probe waits like all others if writes fail again meanwhile."""
    newer = KeyValue(b"/job/j", b"{}", 1, 7, 0)
    bed = Bed(loop, log, [lost_reply(), Changed(newer), WON], start_deadline=60)
    bed.tick.changes = 20  # it pauses before the next try
    seen: list[bool] = []

    def open_again() -> None:
        if len(bed.answers.asked) == 2 and not seen:
            seen.append(bed.writes.is_open)
            bed.writes.connect(probers=(), resumed=())
            bed.writes.failed("not-delivered", lost_reply())
            loop.at(3.0, bed.writes.on_success)
            seen.append(True)

    for i in range(400):
        loop.at(0.002 * i, open_again)
    assert bed.claim() == TickWon(20, 20, 77, 3)
    assert seen == [False, True]
    assert loop.seconds - 1000.0 >= 3.0
