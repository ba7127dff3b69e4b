"""One run of conchd: its attempts, its limits, and how it ends, on a clock of the test's own."""

import signal
from collections.abc import Callable
from typing import Any

import pytest

from conch.core.cgroup import Usage
from conch.core.deadline import Hold
from conch.core.messages import Finished, Held, Message, Start
from conch.core.states import End
from conch.core.task import TASK_NEXT, Task, TaskState
from conch.errors import IllegalTransition
from conch.log import Log
from conch.record import replace

TERM, KILL = signal.SIGTERM, signal.SIGKILL
BEGAN, WALL = 1000.0, 1_800_000_000.0
LIMIT_S, DELAY_S, KILL_AFTER_S = 60.0, 5.0, 3.0


class Tree:
    """A process tree that does what the test says."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.run_id = "r"
        self.cgroup = ""
        self.code: int | None = None
        self.left = False
        self.end = End()
        self.used = Usage(0.0, None)
        self.signals: list[int] = []

    def exit_code(self) -> int | None:
        return self.code

    def empty(self) -> bool:
        return self.code is not None and not self.left

    def signal_group(self, number: int) -> None:
        raise AssertionError("the tree is meant")

    def signal_tree(self, number: int) -> None:
        if number != signal.SIGCONT:
            self.signals.append(number)
        if number == KILL:
            self.code, self.left = 128 + KILL, False

    def refused(self) -> list[int]:
        return []

    def clear_away(self) -> Usage:
        return self.used


class Recorder(Log):
    """Keeps the names and the fields of what is logged."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.events: list[str] = []
        self.fields: list[dict[str, Any]] = []

    def __call__(self, level: str, event: str, **fields: Any) -> None:
        self.events.append(event)
        self.fields.append(fields)


class Bed:
    """A run that may be repeated twice, and its ports."""

    def __init__(self, *holds: Hold | None, start_by: float = 100.0, first_limit_s: float = LIMIT_S) -> None:
        self.time = BEGAN
        self.sent: list[Message] = []
        self.trees: list[Tree] = []
        self.outputs: dict[str, str] = {}
        self.asked: list[tuple[int, float | None]] = []
        self.fails: OSError | None = None
        self.retries = True
        self.log = Recorder()
        order = Start(
            *("r", "j", "12:00", ["true"], {}, None, [1]),
            *(BEGAN + start_by, first_limit_s, LIMIT_S, KILL_AFTER_S, 2, DELAY_S),
        )
        self.task = Task(
            order, holds, self, self.sent.append, lambda: self.time, may_retry=lambda: self.retries, log=self.log
        )

    def wall(self) -> float:
        return self.time - BEGAN + WALL

    def start_tree(self, order: Start, attempt: int, start_by: float | None) -> Tree:
        self.asked.append((attempt, None if start_by is None else start_by - BEGAN))
        if self.fails is not None:
            raise self.fails
        self.trees.append(Tree(100 + len(self.trees)))
        return self.trees[-1]

    def open_gate(self, tree: Any) -> None:
        pass

    def take_output(self, run: str) -> str:
        return self.outputs.pop(run, "")

    def reap(self, tree: Any) -> End:
        return tree.end  # type: ignore[no-any-return]

    # what a test says

    def started(self) -> "Bed":
        self.task.start()
        assert self.task.state is TaskState.RUNNING
        return self

    def at(self, seconds: float) -> "Bed":
        """Time passes; the task is woken when it wants to be."""
        for _ in range(1000):
            wake = self.task.wake_at
            if wake is None or wake > BEGAN + seconds:
                break
            self.time = max(self.time, wake)
            self.task.on_time(self.time)
        self.time = BEGAN + seconds
        self.task.on_time(self.time)
        return self

    def ends(self, code: int, *, end: End | None = None, left: bool = False) -> "Bed":
        """The main process ends, with or without all that it started."""
        tree = self.trees[-1]
        tree.code, tree.left, tree.end = code, left, end or End()
        self.task.advance()
        return self

    @property
    def said(self) -> tuple[str, int | None, int, str]:
        """How it ended: the one report, which is also kept."""
        (report,) = [message for message in self.sent if isinstance(message, Finished)]
        assert report == self.task.finished
        assert self.task.state is TaskState.FINISHED
        return report.outcome, report.code, report.attempt, report.reason


def hold(deadline_s: float = 1000.0, ttl_s: float = 10.0) -> Hold:
    return Hold(Held(1, 5, 7, "/k", ttl_s, BEGAN + deadline_s))


# -- the start ------------------------------------------------------------------------------------------------


def test_it_runs_and_its_end_is_reported() -> None:
    bed = Bed(hold()).at(2.0).started()
    bed.at(5.0).ends(0)
    assert bed.said == ("ended", 0, 1, "")
    report = bed.task.finished
    assert report is not None
    assert (report.run, report.started, report.duration_s) == ("r", WALL + 2.0, 3.0)
    assert (bed.task.running, bed.task.wake_at, bed.task.lost_from) == (False, None, None)


@pytest.mark.parametrize("holds", [(None,), (hold(), None), "lost"], ids=["unknown", "one unknown", "lost"])
def test_nothing_starts_without_each_of_its_holds(holds: Any) -> None:
    """The keeper ordered it under a hold that is lost by now, or was lost with an earlier keeper."""
    if holds == "lost":
        holds = (hold(),)
        holds[0].lost = "deleted"
    bed = Bed(*holds)
    bed.task.start()
    assert bed.said == ("unstarted", None, 0, "the hold was lost before the start")
    assert bed.asked == []


def test_it_waits_until_its_hold_leaves_time() -> None:
    """And starts at the renewal, not with it."""
    late = hold(5.0)
    bed = Bed(late)
    bed.task.start()
    assert bed.asked == []
    late.renew(BEGAN + 20.0)
    bed.at(2.0)
    assert bed.task.state is TaskState.RUNNING
    assert len(bed.asked) == 1


@pytest.mark.parametrize(
    ("holds", "start_by_s"), [((), 10.0), ((hold(12.0),), 12.0 - 0.5 - KILL_AFTER_S), ((hold(60.0),), 10.0)]
)
def test_it_may_start_by_the_earlier_of_order_and_holds(holds: tuple[Hold, ...], start_by_s: float) -> None:
    bed = Bed(*holds, start_by=10.0)
    bed.task.start()
    assert bed.asked == [(1, start_by_s)]


def test_result_says_what_all_attempts_used() -> None:
    """The CPU time of all of them together, the peak memory of the largest."""
    bed = Bed(hold()).started()
    for code, used in ((1, Usage(0.25, 9000)), (1, Usage(0.5, None)), (0, Usage(1.0, 7000))):
        bed.trees[-1].used = used
        bed.ends(code).at(bed.time - BEGAN + DELAY_S)
    assert bed.said == ("ended", 0, 3, "")
    assert bed.task.finished is not None
    assert (bed.task.finished.cpu_s, bed.task.finished.max_rss_kb) == (1.75, 9000)


def test_order_that_comes_too_late_starts_nothing() -> None:
    bed = Bed(start_by=10.0).at(10.1)
    bed.task.start()
    assert bed.said == ("unstarted", None, 0, "too late to start")


def test_process_that_found_that_it_was_too_late_is_no_attempt() -> None:
    """It did not run the command: there is another try if there is time, and else the order came too late."""
    bed = Bed(hold()).started()
    bed.ends(126, end=End(late=True))
    assert [attempt for attempt, _ in bed.asked] == [1, 1]
    bed.time = BEGAN + 101.0
    bed.ends(126, end=End(late=True))
    assert bed.said == ("unstarted", None, 0, "too late to start")


@pytest.mark.parametrize(
    ("error", "code"), [(FileNotFoundError(2, "No such file"), 127), (OSError(11, "Try again"), 126)]
)
def test_start_that_fails_is_repeated_like_a_command_that_failed(error: OSError, code: int) -> None:
    bed = Bed()
    bed.fails = error
    bed.task.start()
    bed.at(100.0)
    assert [attempt for attempt, _ in bed.asked] == [1, 2, 3]
    assert bed.said == ("ended", code, 3, f"cannot start it: {error.strerror}")


# -- attempts -------------------------------------------------------------------------------------------------


def test_attempts_and_their_pauses() -> None:
    """The order's time to start is that of the first one."""
    bed = Bed(start_by=10.0).started()
    bed.at(20.0).ends(1)
    assert bed.task.state is TaskState.PAUSED
    assert not bed.task.running
    bed.at(24.9)
    assert len(bed.asked) == 1
    bed.at(25.0).ends(2)
    bed.at(30.0).ends(3)
    assert bed.asked == [(1, 10.0), (2, None), (3, None)]
    assert bed.said == ("ended", 3, 3, "")


def test_no_attempt_after_one_that_succeeded() -> None:
    bed = Bed().started().ends(1).at(5.0).ends(0)
    assert bed.said == ("ended", 0, 2, "")


def test_no_attempt_once_conchd_stops() -> None:
    bed = Bed().started()
    bed.retries = False
    bed.ends(1)
    assert bed.said == ("ended", 1, 1, "")


@pytest.mark.parametrize("started", [False, True])
def test_hold_lost_between_attempts(started: bool) -> None:
    """The next one is not started; how the one before ended is known."""
    held = hold()
    bed = Bed(held)
    if started:
        bed.started().ends(4)
    else:
        held.deadline = BEGAN + 1.0  # leaves no time
        bed.task.start()
    assert bed.task.lost_from is not None
    bed.task.lose("deleted")
    outcome, code = ("killed", 4) if started else ("unstarted", None)
    assert bed.said == (outcome, code, int(started), "the hold was lost: deleted")
    bed.at(50.0)
    assert len(bed.asked) == int(started)


# -- limits ---------------------------------------------------------------------------------------------------


def test_attempt_that_takes_too_long_is_ended_and_repeated() -> None:
    """The first has what is left of the run's time, each other the whole."""
    bed = Bed(first_limit_s=20.0).started().at(19.9)
    assert bed.trees[0].signals == []
    bed.at(20.0)
    assert bed.trees[0].signals == [TERM]
    bed.ends(143)
    assert bed.task.state is TaskState.PAUSED
    bed.at(25.0).at(25.0 + LIMIT_S)
    assert bed.trees[1].signals == [TERM]
    bed.retries = False
    bed.ends(0)
    assert bed.said == ("timeout", 0, 2, "it took longer than 60 s")


def test_attempt_that_ignores_it_is_killed() -> None:
    bed = Bed().started().at(LIMIT_S + KILL_AFTER_S)
    assert bed.trees[0].signals == [TERM, KILL]


def test_attempt_after_one_that_took_too_long_counts_by_itself() -> None:
    bed = Bed().started().at(LIMIT_S).ends(143)
    bed.at(LIMIT_S + DELAY_S).ends(0)
    assert bed.said == ("ended", 0, 2, "")


def test_leftovers_that_take_too_long_do_not_make_it_a_timeout() -> None:
    """The command had ended in time."""
    bed = Bed().started().at(LIMIT_S - 0.5).ends(0, left=True).at(LIMIT_S)
    bed.trees[0].left = False
    bed.task.advance()
    assert bed.said == ("ended", 0, 1, "")


def test_limit_is_that_of_the_attempt() -> None:
    """It does not run during a pause."""
    bed = Bed().started().at(LIMIT_S - 1).ends(1)
    assert bed.task.wake_at == BEGAN + LIMIT_S - 1 + DELAY_S
    bed.at(LIMIT_S + DELAY_S)
    assert bed.task.state is TaskState.RUNNING
    assert bed.trees[1].signals == []


# -- ending ---------------------------------------------------------------------------------------------------


def test_end() -> None:
    """By SIGTERM, then SIGKILL; the reason that is given first counts, and nothing is repeated."""
    bed = Bed().started()
    bed.task.end("conchd is stopping")
    bed.task.end("replaced")
    assert (bed.task.state, bed.trees[0].signals) == (TaskState.ENDING, [TERM])
    bed.at(KILL_AFTER_S)
    assert bed.trees[0].signals == [TERM, KILL]
    bed.task.advance()
    assert bed.said == ("killed", 137, 1, "conchd is stopping")
    bed.at(100.0)
    assert len(bed.asked) == 1


def test_run_that_had_ended_by_itself_keeps_its_result() -> None:
    """Only what it left running is ended; and though it failed, it is not repeated."""
    bed = Bed().started().ends(3, left=True)
    bed.task.end("conchd is stopping")
    assert bed.task.state is TaskState.CONCLUDING
    bed.trees[0].left = False
    bed.task.advance()
    assert bed.said == ("ended", 3, 1, "")


def test_leftovers_of_such_a_run_do_not_outlive_a_lost_hold() -> None:
    bed = Bed(hold()).started().ends(0, left=True)
    bed.task.end("conchd is stopping")
    bed.task.lose("deleted")
    assert bed.task.state is TaskState.ENDING
    bed.at(KILL_AFTER_S)
    assert bed.trees[0].signals[-1] == KILL
    bed.task.advance()
    assert bed.said == ("killed", 0, 1, "the hold was lost: deleted")


@pytest.mark.parametrize(
    ("reach", "outcome", "code", "attempts"),
    [
        (lambda bed: None, "unstarted", None, 0),
        (lambda bed: bed.started().ends(4), "killed", 4, 1),
    ],
    ids=["before the first attempt", "between two"],
)
def test_end_without_processes(reach: Callable[[Bed], object], outcome: str, code: int | None, attempts: int) -> None:
    bed = Bed()
    reach(bed)
    bed.task.end_waiting("conchd is stopping")
    assert bed.said == (outcome, code, attempts, "conchd is stopping")


def test_end_waiting_spares_what_runs() -> None:
    bed = Bed().started()
    bed.task.end_waiting("conchd is stopping")
    assert bed.task.state is TaskState.RUNNING


def test_late_process_of_a_run_that_was_ended_meanwhile() -> None:
    """It is not tried again."""
    bed = Bed().started()
    bed.task.end("replaced")
    bed.ends(126, end=End(late=True))
    assert bed.said == ("unstarted", None, 0, "replaced")
    assert len(bed.asked) == 1


def test_lost_hold_ends_it_once() -> None:
    bed = Bed(hold(60.0)).started()
    bed.task.lose("deleted")
    bed.task.lose("deleted, too")
    assert bed.log.events.count("lost") == 1
    assert bed.trees[0].signals == [TERM]
    bed.at(KILL_AFTER_S)
    bed.task.advance()
    assert bed.said == ("killed", 137, 1, "the hold was lost: deleted")
    bed.task.lose("later")
    assert bed.log.events.count("lost") == 1


def test_kill() -> None:
    """Immediately; of what does not run there is nothing to kill."""
    bed = Bed()
    bed.task.kill("signal")
    bed.started()
    bed.task.kill("signal")
    assert bed.trees[0].signals == [KILL]


def test_run_that_is_not_to_start() -> None:
    bed = Bed()
    bed.task.finish_unstarted("conchd is stopping")
    assert bed.said == ("unstarted", None, 0, "conchd is stopping")


@pytest.mark.parametrize("call", ["end", "end_waiting", "lose", "kill"])
def test_what_is_finished_stays_so(call: str) -> None:
    """Its end is reported once: the second report would be recorded for a run that nobody knows any more."""
    bed = Bed().started().ends(0)
    getattr(bed.task, call)("x")
    bed.task.advance()
    bed.task.announce()
    bed.at(500.0)
    assert bed.said == ("ended", 0, 1, "")
    for state in TaskState:
        with pytest.raises(IllegalTransition):
            bed.task._enter(state)


def test_new_keeper_is_told_of_what_runs() -> None:
    bed = Bed()
    bed.task.announce()
    assert bed.sent == []
    bed.started()
    first = list(bed.sent)
    bed.task.announce()
    assert bed.sent == first * 2


@pytest.mark.parametrize(
    ("state", "following"),
    [
        (TaskState.ENDING, TaskState.PAUSED),
        (TaskState.CONCLUDING, TaskState.PAUSED),
        (TaskState.CONCLUDING, TaskState.RUNNING),
        (TaskState.PAUSED, TaskState.RUNNING),
        (TaskState.RUNNING, TaskState.RUNNING),
    ],
)
def test_what_is_ended_is_never_begun_again(state: TaskState, following: TaskState) -> None:
    assert following not in TASK_NEXT[state]


def test_events_of_a_run_have_one_shape() -> None:
    """Job and tick are fields of their own in each, and the exit code is `exit`."""
    bed = Bed(hold()).started()
    bed.trees[-1].code = 3
    bed.task.advance()
    bed.task.end("stop")
    lines = bed.log.fields
    assert bed.log.events == ["child-start", "child-exit", "retry", "run-end"]
    assert all((line["job"], line["tick"]) == ("j", "12:00") and "run" not in line for line in lines)
    assert [line["exit"] for line in lines[1:]] == [3, 3, 3]
    assert (lines[-1]["state"], lines[-1]["reason"], lines[-1]["attempt"]) == ("killed", "stop", 1)


# -- output ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("keep", "code", "kept"),
    [("failed", 0, ""), ("failed", 3, "tail"), ("always", 0, "tail"), ("always", 3, "tail"), ("never", 3, "")],
)
def test_output_is_reported_as_the_order_says(keep: str, code: int, kept: str) -> None:
    """After which ends; it is taken in any case, so that nothing of a run is left."""
    bed = Bed(hold())
    bed.retries = False
    bed.outputs["r"] = "tail"
    bed.task.order = replace(bed.task.order, keep_output=keep)
    bed.started().ends(code)
    assert bed.task.finished is not None
    assert bed.task.finished.output == kept
    assert bed.outputs == {}


def test_times_are_those_of_the_whole_run() -> None:
    """The first attempt's start, and how long all attempts took with the pauses between them."""
    bed = Bed(hold()).at(2.0).started()
    bed.at(3.0).ends(1)
    bed.at(3.0 + DELAY_S)
    bed.at(4.0 + DELAY_S).ends(0)
    report = bed.task.finished
    assert report is not None
    assert (report.started, report.duration_s, report.attempt) == (WALL + 2.0, 2.0 + DELAY_S, 2)
