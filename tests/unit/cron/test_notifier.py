"""Who is told how a run ended: this host's command, the job's command, and the job's pings."""

import asyncio
from typing import Any

import pytest

from conch.cron.active_run import ActiveRun, RunState
from conch.cron.notifier import Notifier
from conch.cron.on_failure import Notice
from conch.cron.ping import Ping
from conch.cron.run_log import Entry
from conch.cron.values import FAILED, STATES, Result
from tests.support.parts import TICK, World, job, tracked
from tests.support.virtual_loop import Log, VirtualLoop

URL = "http://h/p"


class Bed(World):
    def __init__(self, loop: VirtualLoop, log: Log, host: str | None = None, key: bytes | None = None) -> None:
        super().__init__(loop, log)
        self.told: list[Notice] = []
        self.pings: list[Ping] = []
        self.then: list[int] = []
        self.tracked = None
        commands: Any = type("Commands", (), {"run": self._run})()
        self.notifier = Notifier(
            *(commands, self.tasks, self.faults, log, self.counts),
            tracked=lambda name: self.tracked,
            host_command=host,
            job_key=key,
        )
        pinger: Any = type("Pings", (), {"put": lambda _, ping: self.pings.append(ping)})()
        self.notifier.pinger = pinger

    async def _run(self, notice: Notice) -> None:
        await asyncio.sleep(0.01)
        self.told.append(notice)

    def ended(self, result: Result, *, begun: bool = True, **fields: Any) -> "Bed":
        """A run of a job with these fields, or of a job that is not known, ends."""
        run = ActiveRun(Entry("r", "j", TICK, 20), state=RunState.RUNNING, job=job(**fields) if fields else None)
        if begun:
            self.notifier.started(run)
        self.notifier.ended(run, result, lambda: self.then.append(len(self.told)))
        return self.wait(0.1)

    def wait(self, seconds: float) -> "Bed":
        self.loop.run(asyncio.sleep(seconds))
        self.check()
        return self


@pytest.mark.parametrize("state", STATES)
def test_commands_are_told_of_failures_alone(loop: VirtualLoop, log: Log, state: str) -> None:
    """The supervisor may forget the run when it has been asked to run them, not before."""
    bed = Bed(loop, log, host="page").ended(
        Result("a", state, 3, TICK + 1.0, 2.5, 1, "why\n", output="o"), on_failure="m"
    )
    assert [notice.command for notice in bed.told] == (["page", "m"] if state in FAILED else [])
    assert bed.then == [len(bed.told)]
    for notice in bed.told:
        assert (notice.job, notice.tick, notice.output) == ("j", "2027-01-15T08:00:00Z", "o")
        assert dict(notice.environment) == {
            "CONCH_NAME": "j",
            "CONCH_TICK": str(TICK),
            "CONCH_STATE": state,
            "CONCH_EXIT": "3",
            "CONCH_REASON": "why\\n",
            "CONCH_DURATION": "2.5",
        }


def test_variables_of_the_job_are_for_its_own_command(loop: VirtualLoop, log: Log) -> None:
    """They cannot change what this host's does, nor what is told."""
    env = {"A": "b", "CONCH_STATE": "ok"}
    bed = Bed(loop, log, host="page").ended(Result("a", "lost"), on_failure="m", env=env)
    host, own = bed.told
    assert "A" not in host.environment
    assert (own.environment["A"], own.environment["CONCH_STATE"]) == ("b", "lost")
    assert (own.environment["CONCH_EXIT"], own.environment["CONCH_DURATION"]) == ("", "")


@pytest.mark.parametrize("begun", [True, False])
@pytest.mark.parametrize("state", STATES)
def test_pings_of_a_run(loop: VirtualLoop, log: Log, state: str, begun: bool) -> None:
    """One when it begins, one at its end; none for a tick that never ran."""
    bed = Bed(loop, log).ended(Result("a", state, reason="why", output="tail"), begun=begun, ping=URL)
    end = "" if state == "ok" else "fail" if begun or state in FAILED else None
    expected = [("start", "")] * begun + ([] if end is None else [(end, "tail")])
    assert [(ping.end, ping.body) for ping in bed.pings] == expected
    assert {ping.url for ping in bed.pings} <= {URL}


def test_failure_without_output_is_pinged_with_its_reason(loop: VirtualLoop, log: Log) -> None:
    assert Bed(loop, log).ended(Result("a", "lost", reason="why"), ping=URL).pings[-1].body == "why"


def test_run_of_an_earlier_conchd(loop: VirtualLoop, log: Log) -> None:
    """Its job is known once it is read; this host's own command does not wait for that."""
    bed = Bed(loop, log, host="page").ended(Result("a", "lost"), begun=False)
    assert ([notice.command for notice in bed.told], bed.then) == (["page"], [1])
    bed.tracked = tracked(on_failure="m", ping=URL)
    bed.wait(1.0)
    assert [notice.command for notice in bed.told] == ["page", "m"]
    assert [ping.end for ping in bed.pings] == ["fail"]


def test_job_that_was_removed_is_not_waited_for(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log).ended(Result("a", "lost"), begun=False).wait(100.0)
    assert not bed.tasks.pending
    assert bed.told == []


@pytest.mark.parametrize("signed", [True, False])
def test_command_of_an_earlier_run_must_be_signed(loop: VirtualLoop, log: Log, signed: bool) -> None:
    """Who can write to etcd could else have anything run, by waiting for a crash."""
    bed = Bed(loop, log, key=b"k" * 32)
    bed.tracked = tracked(on_failure="m", ping=URL)
    bed.tracked.job = bed.tracked.job.signed(b"k" * 32 if signed else b"x" * 32)
    bed.ended(Result("a", "lost"), begun=False).wait(100.0)
    assert (len(bed.told), len(bed.pings)) == ((1, 1) if signed else (0, 0))


@pytest.mark.parametrize(("host", "ticks"), [("page", 1), ("page", 7), (None, 7)])
def test_missed_ticks(loop: VirtualLoop, log: Log, host: str | None, ticks: int) -> None:
    bed = Bed(loop, log, host=host)
    bed.notifier.missed("j", TICK, TICK + 60, ticks)
    bed.wait(0.1)
    assert len(bed.told) == bool(host)
    for notice in bed.told:
        assert (notice.environment["CONCH_STATE"], notice.environment["CONCH_TICK"]) == ("missed", str(TICK))
        assert ("7 ticks" in notice.environment["CONCH_REASON"]) == (ticks == 7)
