"""One attempt, driven by a table of events, fake ports and a clock of the test's own."""

import signal
from collections.abc import Callable
from typing import Any

import pytest

from conch.core.attempt import Attempt, AttemptOver, AttemptPorts
from conch.core.cgroup import Usage
from conch.core.deadline import Bounds, Hold
from conch.core.messages import Ended, Held, Message, Running
from conch.core.procfs import Stat
from conch.core.states import ATTEMPT_NEXT, AttemptState, End
from conch.errors import IllegalTransition, checked
from conch.log import Log

TERM, INT, KILL, CONT = signal.SIGTERM, signal.SIGINT, signal.SIGKILL, signal.SIGCONT
TTL = 10.0  # margin 0.5, grace 10/3: SIGTERM by deadline - 3.833, SIGKILL by deadline - 0.5
TERM_AT, KILL_AT = TTL - 0.5 - TTL / 3, TTL - 0.5
READY_BY = TERM_AT - TTL / 5
LEFT = Stat(999, "S", 1, 999, 1, 1)


class FakePort:
    """Ports, clock and process tree of one attempt; notes what was done, in order."""

    def __init__(self, *, holds: int = 1, kill_after_s: float = 5.0, **what: Any) -> None:
        self.time = 0.0
        self.did: list[Any] = []
        self.fail_start: OSError | None = None
        self.end = End()
        # the tree
        self.pid = 100
        self.run_id = "cafe"
        self.cgroup = "/c/cafe"
        self.code: int | None = None
        self.left: list[Stat] = []
        self.may_not_kill: list[int] = []
        self.holds = [Hold(Held(number + 1, 5, 7, "/k", TTL, TTL)) for number in range(holds)]
        events = self.events = list[str]()

        class Recorder(Log):
            def __call__(self, level: str, event: str, **fields: Any) -> None:
                events.append(event)

        self.attempt = Attempt(
            AttemptPorts(self.start, self.open_gate, self.reap, self.did.append, lambda: self.time),
            Recorder(),
            Bounds(self.holds, kill_after_s),
            what="the child",
            about={"name": "o"},
            **what,
        )

    def start(self, start_by: float | None) -> "FakePort":
        self.did.append(("start", start_by))
        if self.fail_start is not None:
            raise self.fail_start
        return self

    def open_gate(self, tree: Any) -> None:
        self.did.append("open gate")

    def reap(self, tree: Any) -> End:
        self.did.append("reap")
        return self.end

    def exit_code(self) -> int | None:
        return self.code

    def empty(self) -> bool:
        return self.code is not None and not self.left

    def signal_group(self, number: int) -> None:
        self.did.append(("group", number))

    def signal_tree(self, number: int) -> None:
        self.did.append(("tree", number))

    def refused(self) -> list[int]:
        refused, self.may_not_kill = self.may_not_kill, []
        return refused

    def clear_away(self) -> Usage:
        self.did.append("clear away")
        return Usage(0.25, 9000)

    # what a test says

    def started(self) -> "FakePort":
        """Started at 0; what was done until then is forgotten."""
        self.attempt.try_start()
        assert self.attempt.state is AttemptState.RUNNING
        self.did.clear()
        return self

    def at(self, seconds: float) -> "FakePort":
        """Time passes; every moment that the attempt asked for is served on the way, as its owner does."""
        for _ in range(1000):
            wake = self.attempt.wake_at
            if wake is None or wake > seconds:
                break
            self.time = max(self.time, wake)
            self.serve()
        self.time = seconds
        self.serve()
        return self

    def serve(self) -> None:
        if self.attempt.overdue():
            self.attempt.lose("not renewed in time")
        self.attempt.advance()

    def ends(self, code: int, end: End | None = None) -> AttemptOver:
        """All processes end, and this is seen."""
        self.code, self.left, self.end = code, [], end or End()
        self.attempt.advance()
        assert self.attempt.over is not None
        return self.attempt.over

    @property
    def signals(self) -> list[tuple[str, int]]:
        return [done for done in self.did if isinstance(done, tuple) and done[0] in ("group", "tree")]


def test_keeper_knows_the_tree_before_its_gate_opens_and_its_end_before_it_is_reaped() -> None:
    """The pid may be another process's right after it is reaped."""
    port = FakePort(run="r")
    port.attempt.try_start()
    running: Message = Running(100, "cafe", [1], 5.0, "r", "/c/cafe")
    assert port.did == [("start", pytest.approx(TERM_AT)), running, "open gate"]
    assert port.ends(3) == AttemptOver(3)
    assert port.did[3:] == [Ended("r"), "reap"]
    assert port.events == ["child-start", "child-exit"]


def test_new_keeper_is_told_of_what_runs_only() -> None:
    """What was not started is nothing to enforce."""
    port = FakePort()
    port.attempt.announce()
    assert port.did == []
    port.started().attempt.announce()
    assert port.did == [Running(100, "cafe", [1], 5.0, "", "/c/cafe")]


@pytest.mark.parametrize(
    ("holds", "own", "told"), [(0, None, None), (0, 3.0, 3.0), (1, None, TERM_AT), (1, 3.0, 3.0), (1, 9.0, TERM_AT)]
)
def test_process_is_told_the_earliest_time_to_start_by(holds: int, own: float | None, told: float | None) -> None:
    """That of its holds, or of its order."""
    port = FakePort(holds=holds, start_by=own)
    port.attempt.try_start()
    assert port.did[0] == ("start", None if told is None else pytest.approx(told))


def test_start_waits_for_time_enough() -> None:
    """A renewal lets it start; tried again in a while."""
    port = FakePort()
    port.time = READY_BY
    port.attempt.try_start()
    assert (port.attempt.state, port.did) == (AttemptState.WAITING, [])
    assert port.attempt.wake_at == pytest.approx(READY_BY + TTL / 12)
    port.at(TERM_AT + 1)
    assert port.attempt.state is AttemptState.WAITING
    port.holds[0].renew(20.0)
    port.attempt.try_start()
    assert port.attempt.state is AttemptState.RUNNING


def test_start_that_waits_in_vain_is_given_up_with_the_hold() -> None:
    """Nothing was forked, nobody is told of anything."""
    port = FakePort()
    port.time = READY_BY
    port.attempt.try_start()
    assert not port.at(KILL_AT - 0.01).attempt.over
    over = port.at(KILL_AT).attempt.over
    assert over is not None
    assert (over.started, port.did) == (False, [])


def test_start_after_the_time_of_its_order() -> None:
    """Late, and not started."""
    port = FakePort(holds=0, start_by=3.0)
    port.time = 3.1
    port.attempt.try_start()
    assert port.attempt.over == AttemptOver(126, started=False, late=True)
    assert port.did == []


@pytest.mark.parametrize(
    ("error", "code"),
    [(FileNotFoundError(2, "No such file"), 127), (PermissionError(13, "Denied"), 126), (OSError(11, "Busy"), 126)],
)
def test_fork_that_fails(error: OSError, code: int) -> None:
    """The keeper hears nothing of it."""
    port = FakePort()
    port.fail_start = error
    port.attempt.try_start()
    assert port.attempt.over == AttemptOver(code, started=False, error=f"cannot start the child: {error.strerror}")
    assert len(port.did) == 1


def test_hold_that_is_not_renewed() -> None:
    """SIGTERM at deadline-margin-grace, SIGKILL at deadline-margin, repeated until the tree is empty."""
    port = FakePort(kill_after_s=60.0).started().at(TERM_AT - 0.01)
    assert port.signals == []
    port.at(TERM_AT)
    assert port.signals == [("tree", TERM), ("tree", CONT)]
    port.at(KILL_AT - 0.01)
    assert len(port.signals) == 2
    port.code, port.left = 137, [LEFT]
    port.at(KILL_AT + 20)
    assert 5 < port.signals.count(("tree", KILL)) < 40
    assert "reap" not in port.did
    assert port.ends(137).ended_by_loss


def test_earliest_hold_ends_it() -> None:
    """Though the other one was renewed."""
    port = FakePort(holds=2).started()
    port.holds[0].renew(100.0)
    assert port.at(TERM_AT).signals == [("tree", TERM), ("tree", CONT)]


def test_terminating_is_final() -> None:
    """A renewal does not put the kill off, a later reason for it neither; an earlier one brings it forward."""
    port = FakePort(kill_after_s=3.0).started().at(TERM_AT)
    port.holds[0].renew(100.0)
    port.attempt.terminate("again")
    assert port.at(TERM_AT + 3).signals[-1] == ("tree", KILL)
    slow = FakePort(holds=0, kill_after_s=60.0).started()
    slow.attempt.terminate("x")
    slow.attempt.terminate("y", kill_by=2.0)
    assert slow.at(2).signals[-1] == ("tree", KILL)


def test_loss_counts_once() -> None:
    """The second message about it changes nothing."""
    port = FakePort(kill_after_s=1.0).started()
    port.attempt.lose("revoked")
    port.attempt.lose("again")
    assert port.attempt.lost == "revoked"
    assert len(port.signals) == 2
    assert port.attempt.wake_at == 1.0


@pytest.mark.parametrize(
    ("before", "code", "by_loss"),
    [("nothing", None, True), ("nothing", 137, True), ("nothing", 5, False), ("signal", None, False)],
)
def test_what_a_loss_ended(before: str, code: int | None, by_loss: bool) -> None:
    """What had ended by itself or was signalled by the user keeps its code; SIGKILL may have been the keeper's."""
    port = FakePort().started()
    if before == "signal":
        port.attempt.terminate("signal", number=INT)
    port.code = code
    port.attempt.lose("x")
    assert port.ends(143 if code is None else code).ended_by_loss is by_loss


def test_users_signal_goes_to_the_group_and_what_it_left_running_gets_a_sigterm() -> None:
    """The leftovers may not have heard it."""
    port = FakePort().started()
    port.attempt.terminate("signal", number=INT)
    assert port.signals == [("group", INT), ("group", CONT)]
    port.code, port.left = 130, [LEFT]
    port.attempt.advance()
    port.attempt.advance()
    assert port.signals[2:] == [("tree", TERM), ("tree", CONT)]


def test_signal_that_is_passed_on_ends_nothing() -> None:
    """SIGHUP, SIGUSR1 and the like."""
    port = FakePort().started()
    port.attempt.pass_on(signal.SIGUSR1)
    assert port.signals == [("group", signal.SIGUSR1)]
    assert port.attempt.state is AttemptState.RUNNING


def test_kill_says_why_and_whom_it_may_not_kill() -> None:
    """Once."""
    port = FakePort(holds=0).started()
    port.may_not_kill = [55]
    port.attempt.kill("hook-timeout")
    port.attempt.terminate("lost")  # it is being killed already
    port.at(3)
    assert port.signals.count(("tree", TERM)) == 0
    assert port.events == ["child-start", "kill-sent", "kill-refused"]
    assert port.ends(137) == AttemptOver(137, killed_for="hook-timeout")


def test_what_only_the_parent_learns_is_reported() -> None:
    """As the process was reaped."""
    end = End(error="cannot run x", late=True, died_of=2, interrupted=True)
    assert FakePort().started().ends(126, end) == AttemptOver(
        126, late=True, error="cannot run x", died_of=2, interrupted=True
    )


def test_hook_has_its_own_log_lines() -> None:
    """With the name of the hook."""
    port = FakePort(hook="on-lose").started()
    port.ends(0)
    assert port.events == ["hook-start", "hook-exit"]


def test_what_is_over_stays_over() -> None:
    """Nothing is signalled any more: the pid may be another process's."""
    port = FakePort().started()
    port.ends(0)
    port.did.clear()
    attempt = port.attempt
    calls: list[Callable[[], None]] = [
        lambda: attempt.kill("x"), lambda: attempt.terminate("x"), lambda: attempt.lose("x"),
        lambda: attempt.pass_on(TERM), attempt.try_start,
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(IllegalTransition):
            call()
    attempt.advance()
    assert port.did == []
    assert attempt.wake_at is None


def test_nothing_can_be_signalled_before_the_start() -> None:
    """And a start happens once."""
    attempt = FakePort().attempt
    calls: list[Callable[[], None]] = [
        lambda: attempt.kill("x"), lambda: attempt.terminate("x"), lambda: attempt.pass_on(TERM)
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(IllegalTransition):
            call()
    attempt.try_start()
    with pytest.raises(IllegalTransition, match="running"):
        attempt.try_start()


@pytest.mark.parametrize("state", AttemptState)
@pytest.mark.parametrize("following", AttemptState)
def test_states_only_move_down(state: AttemptState, following: AttemptState) -> None:
    """Terminating and killing may be repeated; what is over is final."""
    order = list(AttemptState)
    if following in ATTEMPT_NEXT[state]:
        assert order.index(following) >= order.index(state)
        assert checked(ATTEMPT_NEXT, state, following) is following
    else:
        with pytest.raises(IllegalTransition, match=f"from {state.value} to {following.value}"):
            checked(ATTEMPT_NEXT, state, following)
