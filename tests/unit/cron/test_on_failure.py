"""Commands that are told of failures: a few at a time, in order, none lost in silence."""

from typing import Any

import pytest

from conch.core.messages import Finished, Recorded, Start
from conch.cron.on_failure import AT_A_TIME, HOOK, LIMIT_S, MOST_WAITING, Notice, OnFailure
from tests.support.parts import World
from tests.support.virtual_loop import Log, VirtualLoop

TICK = "2027-01-15T08:00:00Z"


class Files:
    def __init__(self) -> None:
        self.there: dict[str, str] = {}
        self.full = False

    def write(self, run: str, text: str) -> str:
        if self.full:
            raise OSError(28, "No space left on device")
        self.there[run] = text
        return f"/tmp/{run}"

    def remove(self, run: str) -> None:
        self.there.pop(run, None)


class Bed(World):
    def __init__(self, loop: VirtualLoop, log: Log) -> None:
        super().__init__(loop, log)
        self.files = Files()
        files: Any = self.files
        self.commands = OnFailure(
            files, self.supervisor, self.tasks, self.workers, self.faults, self.counts, now=self.now
        )

    def tell(self, count: int = 1) -> "Bed":
        for number in range(count):
            self.loop.run(self.commands.run(Notice("mail", f"j{number}", TICK, {"CONCH_STATE": "failed"}, "tail\n")))
        return self

    @property
    def started(self) -> list[Start]:
        return [message for message in self.supervisor.sent if isinstance(message, Start)]

    def ends(self, run: str, outcome: str = "ended", code: int | None = 0) -> None:
        assert self.commands.on_finished(Finished(run, outcome, code, 1, 1.0, 1.0, "conchd is stopping"))
        self.loop.run(self.workers.files(lambda: None))
        self.loop.run(self.workers.etcd(lambda: None))
        self.check()


def test_command_is_run_as_a_run_is(loop: VirtualLoop, log: Log) -> None:
    """By the shell, in 30 s, under no hold; its file is there before it starts, and gone after it."""
    bed = Bed(loop, log).tell()
    (order,) = bed.started
    assert order.command == ["/bin/sh", "-c", "mail"]
    assert (order.job, order.tick, order.hook, order.holds, order.retries) == ("j0", TICK, HOOK, [], 0)
    assert (order.first_limit_s, order.limit_s) == (LIMIT_S, LIMIT_S)
    assert order.environment == {"CONCH_STATE": "failed", "CONCH_OUTPUT": f"/tmp/{order.run}"}
    assert bed.files.there == {order.run: "tail\n"}
    bed.ends(order.run)
    assert bed.files.there == {}
    assert bed.supervisor.sent[-1] == Recorded(order.run)
    assert bed.counts == {("on_failure", "ok"): 1}


def test_run_of_a_job_is_not_ours(loop: VirtualLoop, log: Log) -> None:
    assert not Bed(loop, log).commands.on_finished(Finished("other", "ended", 0, 1, 1.0, 1.0, ""))


@pytest.mark.parametrize(("outcome", "code"), [("ended", 3), ("timeout", 143), ("killed", 137)])
def test_command_that_fails_is_counted(loop: VirtualLoop, log: Log, outcome: str, code: int) -> None:
    bed = Bed(loop, log).tell()
    bed.ends(bed.started[0].run, outcome, code)
    assert bed.counts == {("on_failure", "failed"): 1}


def test_storm_of_failures(loop: VirtualLoop, log: Log) -> None:
    """At most eight at a time, a thousand wait, in order; what is more is counted and logged."""
    bed = Bed(loop, log).tell(AT_A_TIME + MOST_WAITING + 5)
    assert len(bed.started) == AT_A_TIME
    assert bed.counts == {("on_failure", "dropped"): 5}
    assert len(log.events("on-failure-dropped")) == 1  # one line, not five
    for number in range(AT_A_TIME + MOST_WAITING):
        under_way = number + min(AT_A_TIME, AT_A_TIME + MOST_WAITING - number)
        assert len(bed.started) == under_way
        bed.ends(bed.started[number].run)
    assert [order.job for order in bed.started] == [f"j{number}" for number in range(AT_A_TIME + MOST_WAITING)]
    assert bed.counts["on_failure", "ok"] == AT_A_TIME + MOST_WAITING


def test_next_command_is_asked_for_before_the_last_is_forgotten(loop: VirtualLoop, log: Log) -> None:
    """Else a supervisor that drains would see nothing left, and end before the others had their turn."""
    bed = Bed(loop, log).tell(AT_A_TIME + 1)
    bed.ends(bed.started[0].run)
    assert bed.supervisor.sent[AT_A_TIME:] == [bed.started[AT_A_TIME], Recorded(bed.started[0].run)]


def test_daemon_that_stops_drops_what_waits(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log).tell(AT_A_TIME + 3)
    bed.ends(bed.started[0].run, "unstarted", None)
    assert bed.counts == {("on_failure", "dropped"): 4}
    assert log.events("on-failure-dropped")[0]["msg"] == "conchd is stopping"
    assert len(bed.started) == AT_A_TIME


def test_full_disk_costs_the_output_alone(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log)
    bed.files.full = True
    bed.tell()
    assert bed.started[0].environment["CONCH_OUTPUT"] == "/dev/null"
    assert log.events("output-not-written")
