"""The decisions on many runs, driven by a table of messages and a clock of the test's own."""

import signal
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from conch.core.cgroup import Usage
from conch.core.daemon_supervisor import DaemonSupervisor
from conch.core.messages import (
    Begin,
    Begun,
    Drain,
    Ended,
    Failed,
    Finished,
    Held,
    Kill,
    Lost,
    Message,
    Note,
    Recorded,
    Release,
    Released,
    Renewed,
    Running,
    Start,
)
from conch.core.procfs import Stat
from conch.core.states import End
from conch.log import Log

TERM, INT, HUP, KILL, CONT, USR1 = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL, signal.SIGCONT, signal.SIGUSR1,
)  # fmt: skip
TTL = 10.0  # margin 0.5, grace 10/3: SIGTERM by deadline - 3.833, SIGKILL by deadline - 0.5
TERM_AT, KILL_AT = TTL - 0.5 - TTL / 3, TTL - 0.5
BEGAN = 1000.0
WALL = 1_700_000_000.0
LEFT = Stat(999, "S", 1, 999, 1, 1)


class FakeTree:
    """A process tree that does what the test says."""

    def __init__(self, pid: int, run: str) -> None:
        self.pid = pid
        self.run_id = run
        self.cgroup = ""
        self.code: int | None = None
        self.left: list[Stat] = []
        self.end = End()
        self.used = Usage(0.0, None)
        self.signals: list[tuple[float, int]] = []
        self.kill_by: float | None = None
        self.gone = False
        self.now: Any = None

    def exit_code(self) -> int | None:
        return self.code

    def empty(self) -> bool:
        return self.code is not None and not self.left

    def signal_group(self, number: int) -> None:
        raise AssertionError("nobody but the pool signals runs, and it means their trees")

    def refused(self) -> list[int]:
        return []

    def clear_away(self) -> Usage:
        return self.used

    def signal_tree(self, number: int) -> None:
        assert not self.gone, "its pid may be another's by now"
        self.signals.append((self.now(), number))

    @property
    def numbers(self) -> list[int]:
        """What it was sent, without the SIGCONT that comes with a SIGTERM."""
        return [number for _, number in self.signals if number != CONT]

    def sent_at(self, number: int) -> float:
        """When it was sent this first, on the test's clock."""
        return next(at for at, sent in self.signals if sent == number) - BEGAN


class World:
    """Ports, clock and log for a pool."""

    def __init__(
        self, *, drain_s: float = 30.0, release_s: float = 10.0, begun: bool = True, fail_keeper: bool = False
    ) -> None:
        self.time = BEGAN
        self.sent: list[Message] = []
        self.outputs: dict[str, str] = {}
        self.trees: list[FakeTree] = []
        self.starts: list[tuple[str, int, float | None]] = []
        self.keepers: list[float] = []
        self.has_keeper = False
        self.fail_start: OSError | None = None
        self.fail_keeper = fail_keeper
        self.low_jitter = True
        self.defect = False
        self.events: list[str] = []
        world = self

        class Recorder(Log):
            def __call__(self, level: str, event: str, **fields: Any) -> None:
                world.events.append(event)

            def plain(self, message: str) -> None:
                world.events.append(f"plain: {message}")

        self.pool = DaemonSupervisor(self, self, Recorder(), drain_s=drain_s, release_s=release_s)
        self.pool.begin()
        if begun:
            self.hears(Begun())

    # PoolPorts

    def now(self) -> float:
        return self.time

    def wall(self) -> float:
        return self.time - BEGAN + WALL

    def jitter(self, low: float, high: float) -> float:
        return low if self.low_jitter else high

    def start_keeper(self) -> None:
        assert not self.has_keeper, "there is one"
        if self.fail_keeper:
            raise OSError(11, "Resource temporarily unavailable")
        self.has_keeper = True
        self.keepers.append(self.time - BEGAN)

    def drop_keeper(self) -> bool:
        self.has_keeper = False
        return self.defect

    def send(self, message: Message) -> None:
        assert self.has_keeper, f"nobody to send to: {message}"
        if isinstance(message, Finished):
            assert all(tree.gone for tree in self.trees if tree.run_id == message.run), "its tree lives"
        self.sent.append(message)

    def start_tree(self, order: Start, attempt: int, start_by: float | None) -> FakeTree:
        self.starts.append((order.run, attempt, None if start_by is None else start_by - BEGAN))
        if self.fail_start is not None:
            raise self.fail_start
        tree = FakeTree(100 + len(self.trees), order.run)
        tree.now = self.now
        self.trees.append(tree)
        return tree

    def open_gate(self, tree: Any) -> None:
        last = self.sent[-1]
        assert not self.has_keeper or (isinstance(last, Running) and last.pid == tree.pid), "the keeper must know first"

    def take_output(self, run: str) -> str:
        return self.outputs.pop(run, "")

    def reap(self, tree: Any) -> End:
        assert not self.has_keeper or self.sent[-1] == Ended(tree.run_id), "the keeper must know first"
        assert not tree.gone
        tree.gone = True
        return tree.end  # type: ignore[no-any-return]

    # what a test says

    def at(self, seconds: float) -> "World":
        """Time passes; every moment that the pool asked for is served on the way, and never in vain for long."""
        target = BEGAN + seconds
        in_vain = 0
        while (wake := self.pool.wake_at) is not None and wake <= target and not self.pool.done:
            in_vain = in_vain + 1 if wake <= self.time else 0
            assert in_vain < 20, f"it spins: wants to be woken at {wake - BEGAN}, which is over"
            self.time = max(self.time, wake)
            self.pool.on_time()
        self.time = max(self.time, target)
        self.pool.on_time()
        return self

    def hears(self, *messages: Message) -> "World":
        for message in messages:
            self.pool.on_message(message)
        return self

    def held(self, number: int = 1, deadline: float = TTL, ttl: float = TTL) -> "World":
        return self.hears(Held(number, 5, 7, "/k", ttl, BEGAN + deadline))

    def renewed(self, deadline: float, number: int = 1) -> "World":
        return self.hears(Renewed(number, BEGAN + deadline))

    def starts_run(self, run: str = "a", **what: Any) -> "World":
        return self.hears(order(run, **what))

    def signalled(self, *numbers: int) -> "World":
        for number in numbers:
            self.pool.on_signal(number)
        return self

    def ends(self, code: int, which: int = -1, end: End | None = None) -> "World":
        """The main process and all it started end, and this is seen."""
        tree = self.trees[which]
        tree.code, tree.left, tree.end = code, [], end or End()
        self.pool.on_change({tree.run_id})
        return self

    def dies(self) -> "World":
        """The keeper."""
        self.pool.on_keeper_death()
        return self

    @property
    def tree(self) -> FakeTree:
        return self.trees[-1]

    @property
    def finished(self) -> list[Finished]:
        return [message for message in self.sent if isinstance(message, Finished)]

    @property
    def outcome(self) -> tuple[str, str, int | None, int]:
        """The only end that was reported."""
        (one,) = self.finished
        return one.run, one.outcome, one.code, one.attempt

    def kinds(self, since: int = 0) -> list[str]:
        return [message.kind for message in self.sent[since:]]


def order(run: str = "a", **what: Any) -> Start:
    """An order with the usual values; moments are the test's."""
    fields: dict[str, Any] = {
        "job": run,
        "tick": "2027-01-15T08:00:00Z",
        "command": ["x"],
        "environment": {},
        "directory": None,
        "holds": [],
        "start_by": 10_000.0,
        "first_limit_s": 600.0,
        "limit_s": 600.0,
        "kill_after_s": 5.0,
        "retries": 0,
        "retry_delay_s": 30.0,
    }
    fields |= what
    fields["start_by"] += BEGAN
    return Start(run=run, **fields)


# -- a good run -------------------------------------------------------------------------------------------


def test_a_good_run() -> None:
    """The keeper knows the tree before it runs, its emptiness before it is reaped, and then its end, once."""
    world = World().starts_run("a").at(3).ends(0)
    assert world.kinds() == ["begin", "running", "ended", "finished"]
    assert world.finished == [Finished("a", "ended", 0, 1, WALL, 3.0, "")]
    assert world.events == ["child-start", "child-exit", "run-end"]
    assert world.hears(Recorded("a")).pool.tasks == {}
    assert not world.pool.done


def test_first_words_to_the_keeper() -> None:
    """There is nothing before it, and it is the first."""
    assert World(begun=False).sent == [Begin([], [], True, [])]


def test_leftovers_are_ended_before_the_end_is_told() -> None:
    """SIGTERM to what is left, SIGKILL after kill-after; the code is the main process's."""
    world = World().starts_run(kill_after_s=2.0)
    world.tree.code, world.tree.left = 4, [LEFT]
    world.pool.on_change({"a"})
    assert world.tree.numbers == [TERM]
    world.at(1.9)
    assert world.tree.numbers == [TERM]
    world.at(2)
    assert world.tree.numbers == [TERM, KILL]
    assert world.finished == []
    assert world.ends(4).outcome == ("a", "ended", 4, 1)


def test_duplicate_order_is_ignored() -> None:
    """While the run lives, and while its end is not recorded."""
    world = World().starts_run("a").starts_run("a").ends(0).starts_run("a")
    assert len(world.starts) == len(world.finished) == 1


def test_exec_that_fails_says_why() -> None:
    """With the code that the child left."""
    world = World().starts_run().ends(127, end=End(error="cannot run x: No such file or directory"))
    assert world.outcome == ("a", "ended", 127, 1)
    assert world.finished[0].reason == "cannot run x: No such file or directory"


def test_fork_that_fails_is_a_failed_attempt() -> None:
    """126, and it is tried again as any other."""
    world = World()
    world.fail_start = OSError(11, "Resource temporarily unavailable")
    world.starts_run(retries=1, retry_delay_s=4.0)
    assert world.finished == []
    world.at(4)
    assert world.starts == [("a", 1, 10_000.0), ("a", 2, None)]
    assert world.outcome == ("a", "ended", 126, 2)
    assert "Resource temporarily unavailable" in world.finished[0].reason


@pytest.mark.parametrize(
    ("error", "code"), [(FileNotFoundError(2, "No such file"), 127), (PermissionError(13, "Permission denied"), 126)]
)
def test_command_that_is_not_there_or_not_executable(error: OSError, code: int) -> None:
    """127 and 126, as everywhere in conch."""
    world = World()
    world.fail_start = error
    assert world.starts_run().outcome == ("a", "ended", code, 1)


def test_order_that_comes_too_late() -> None:
    """Nothing is started."""
    world = World().at(5).starts_run(start_by=4.9)
    assert world.outcome == ("a", "unstarted", None, 0)
    assert world.starts == []


# -- deadlines --------------------------------------------------------------------------------------------


def test_deadline_that_is_not_renewed() -> None:
    """SIGTERM to the tree at deadline-margin-grace, SIGKILL at deadline-margin; what is not bound runs on."""
    world = World().held().starts_run("free").starts_run("a", holds=[1])
    assert world.starts[-1] == ("a", 1, pytest.approx(TERM_AT))
    world.at(TERM_AT - 0.01)
    assert world.tree.signals == []
    world.at(TERM_AT)
    assert world.tree.signals == [(BEGAN + TERM_AT, TERM), (BEGAN + TERM_AT, CONT)]
    world.at(KILL_AT - 0.01)
    assert KILL not in world.tree.numbers
    world.at(KILL_AT)
    assert world.tree.numbers == [TERM, KILL]
    assert world.ends(137).outcome == ("a", "killed", 137, 1)
    assert "lost" in world.finished[0].reason
    world.at(100)
    assert world.trees[0].signals == []


def test_renewals_push_the_moments_on_and_only_forward() -> None:
    """Each newer deadline counts, an older one does not, one of another hold neither."""
    world = World().held().starts_run(holds=[1])
    for second in range(1, 60):
        world.at(second).renewed(second + TTL)
    world.renewed(5).renewed(1000, number=2)
    world.at(59 + TERM_AT - 0.01)
    assert world.tree.signals == []
    world.at(59 + TERM_AT)
    assert world.tree.numbers == [TERM]


def test_terminating_is_final() -> None:
    """A renewal that comes too late takes nothing back."""
    world = World().held().starts_run(holds=[1]).at(TERM_AT).renewed(100).at(TERM_AT + 5)
    assert world.tree.sent_at(KILL) == pytest.approx(KILL_AT)


@pytest.mark.parametrize("earlier", [1, 2])
def test_run_under_two_holds_ends_by_the_earlier(earlier: int) -> None:
    """Renewing the other one does not help."""
    world = World().held(1, 20).held(2, 20).starts_run(holds=[1, 2])
    world.at(5).renewed(100, number=3 - earlier).at(20)
    assert world.tree.sent_at(TERM) == pytest.approx(10 + TERM_AT)
    assert world.tree.sent_at(KILL) == pytest.approx(10 + KILL_AT)


def test_only_the_runs_of_a_hold_end_with_it() -> None:
    """The other hold is renewed."""
    world = World().held(1).held(2).starts_run("a", holds=[1]).starts_run("b", holds=[2])
    world.at(1).renewed(100, number=2).at(50)
    assert world.trees[0].numbers[:2] == [TERM, KILL]
    assert world.trees[1].signals == []


def test_long_kill_after_does_not_outlive_a_lost_deadline() -> None:
    """A run that was told to end an hour at most from now, then etcd goes away: SIGKILL by deadline-margin."""
    for ending in (Kill("a", "replaced"), None):
        world = World().held().starts_run(holds=[1], kill_after_s=3600, first_limit_s=2.0)
        world.at(2)
        if ending is not None:
            world.hears(ending)
        world.renewed(20).at(20)
        assert world.tree.sent_at(TERM) == 2
        assert world.tree.sent_at(KILL) == pytest.approx(10 + KILL_AT)


def test_no_start_when_too_little_time_is_left() -> None:
    """It waits for a renewal and then starts."""
    world = World().at(TERM_AT - TTL / 5).held().starts_run(holds=[1])
    assert world.starts == []
    world.at(TERM_AT - 0.3)
    assert world.starts == []
    world.renewed(TTL + 5).at(TERM_AT + 1)
    assert world.starts == [("a", 1, pytest.approx(5 + TERM_AT))]
    assert world.finished == []


def test_start_that_waits_in_vain_is_given_up() -> None:
    """Nothing ran."""
    world = World().at(TERM_AT - 0.5).held().starts_run(holds=[1]).at(TTL)
    assert world.starts == []
    assert world.outcome == ("a", "unstarted", None, 0)


def test_start_that_waits_for_a_renewal_past_its_last_moment() -> None:
    """The renewal does come, but then it is too late for the tick."""
    world = World().at(TERM_AT - 0.5).held().starts_run(holds=[1], start_by=TERM_AT - 0.4)
    world.renewed(100).at(20)
    assert world.outcome == ("a", "unstarted", None, 0)


@pytest.mark.parametrize("unknown", [True, False])
def test_hold_that_is_lost_before_the_start(unknown: bool) -> None:
    """Never started, whether it was lost or never heard of."""
    world = World().held(1)
    if not unknown:
        world.held(2).starts_run("b", holds=[2])  # keeps it known
        world.hears(Lost(2, "revoked"))
    world.starts_run("a", holds=[1, 2])
    assert [f.outcome for f in world.finished if f.run == "a"] == ["unstarted"]
    assert [run for run, *_ in world.starts] == ([] if unknown else ["b"])


def test_start_by_of_the_order_binds_the_first_attempt_only() -> None:
    """It is the earlier of that and the deadline's; without holds a retry has none."""
    world = World().held(deadline=100).starts_run("a", holds=[1], start_by=3.0, retries=1, retry_delay_s=5.0)
    assert world.starts == [("a", 1, 3.0)]
    world.ends(1).at(5)
    assert world.starts[1] == ("a", 2, pytest.approx(90 + TERM_AT))


def test_child_that_found_itself_late_is_judged_anew() -> None:
    """It did not run and is no attempt: started again while there is time, else reported as unstarted."""
    world = World().held(deadline=20).starts_run(holds=[1]).ends(126, end=End(late=True))
    assert [attempt for _, attempt, _ in world.starts] == [1, 1]
    assert world.ends(0).outcome == ("a", "ended", 0, 1)
    world = World().starts_run(start_by=2).at(2.1).ends(126, end=End(late=True))
    assert world.outcome == ("a", "unstarted", None, 0)
    assert len(world.starts) == 1


def test_late_child_that_waits_for_a_renewal_longer_than_its_limit() -> None:
    """The time of the attempt that was none does not run on: nothing spins, and it starts once there is time."""
    world = World().held(deadline=TTL).starts_run(holds=[1], first_limit_s=2.5, limit_s=2.5).at(TERM_AT - 1.6)
    world.pool.tasks["a"].limit_at = BEGAN + TERM_AT - 1.0  # its attempt's time is nearly over
    world.ends(126, end=End(late=True)).at(TERM_AT - 0.1)
    world.renewed(100).at(TERM_AT + 1)
    assert [attempt for _, attempt, _ in world.starts] == [1, 1]


def test_late_child_of_a_run_that_is_to_end() -> None:
    """Nothing of it ever ran."""
    world = World().starts_run().hears(Kill("a", "replaced")).ends(126, end=End(late=True))
    assert world.outcome == ("a", "unstarted", None, 0)


# -- loss -------------------------------------------------------------------------------------------------


def test_loss_told_by_the_keeper() -> None:
    """SIGTERM at once, SIGKILL after kill-after, or by the deadline if that is earlier; nothing for the others."""
    world = World().held(1, 100).starts_run("free").starts_run("a", holds=[1], kill_after_s=2.0)
    world.at(1).hears(Lost(1, "revoked"), Lost(1, "revoked"))
    assert world.tree.numbers == [TERM]
    world.at(2.9)
    assert world.tree.numbers == [TERM]
    world.at(3)
    assert world.tree.numbers == [TERM, KILL]
    assert world.trees[0].signals == []
    assert world.ends(137).outcome == ("a", "killed", 137, 1)
    assert "revoked" in world.finished[0].reason
    late = World().held().starts_run(holds=[1], kill_after_s=60.0).at(1).hears(Lost(1, "revoked")).at(TTL)
    assert late.tree.sent_at(KILL) == pytest.approx(KILL_AT)


def test_renewal_after_a_loss_takes_nothing_back() -> None:
    """Nor does a hold of the same number."""
    world = World().held().starts_run(holds=[1], kill_after_s=2.0).hears(Lost(1, "x")).renewed(100).held(1, 100).at(2)
    assert world.tree.numbers == [TERM, KILL]


def test_loss_between_attempts_ends_the_run() -> None:
    """There is no next attempt; the last one's code is told."""
    world = World().held(1, 1000).starts_run(holds=[1], retries=3, retry_delay_s=10).ends(3).at(5)
    assert world.finished == []
    world.hears(Lost(1, "revoked"))
    assert world.outcome == ("a", "killed", 3, 1)
    assert len(world.at(100).starts) == 1


def test_kill_is_repeated_until_the_tree_is_empty() -> None:
    """And only then its end is told."""
    world = World().held().starts_run(holds=[1], kill_after_s=1.0).hears(Lost(1, "x")).at(1)
    world.tree.code, world.tree.left = 137, [LEFT]
    world.pool.on_change({"a"})
    world.at(30)
    assert world.finished == []
    assert 5 < world.tree.numbers.count(KILL) < 60
    assert world.ends(137).outcome == ("a", "killed", 137, 1)


# -- run-ttl, retries, kill -------------------------------------------------------------------------------


def test_run_ttl() -> None:
    """SIGTERM, then SIGKILL after kill-after; the outcome is a timeout even if it then exits with 0."""
    world = World().starts_run(first_limit_s=7.0, limit_s=7.0, kill_after_s=2.0).at(6.9)
    assert world.tree.signals == []
    world.at(7)
    assert world.tree.numbers == [TERM]
    world.at(9)
    assert world.tree.numbers == [TERM, KILL]
    assert world.ends(137).outcome == ("a", "timeout", 137, 1)
    world = World().starts_run(first_limit_s=7.0, limit_s=7.0).at(7).ends(0)
    assert world.outcome == ("a", "timeout", 0, 1)
    assert "7 s" in world.finished[0].reason


def test_first_attempt_has_a_limit_of_its_own() -> None:
    """It waited for a slot meanwhile; later ones have the whole time."""
    world = World().starts_run(first_limit_s=2.0, limit_s=10.0, retries=1, retry_delay_s=1.0).at(2)
    assert world.trees[0].sent_at(TERM) == 2
    world.ends(143).at(30)
    assert world.trees[1].sent_at(TERM) == 2 + 1 + 10


def test_retries() -> None:
    """After failures and timeouts, as many as ordered, each after the delay; the last attempt is what is told."""
    world = World().starts_run(retries=3, retry_delay_s=5.0, first_limit_s=10.0, limit_s=10.0)
    world.at(1).ends(3).at(5.9)
    assert [attempt for _, attempt, _ in world.starts] == [1]
    world.at(6)
    assert [attempt for _, attempt, _ in world.starts] == [1, 2]
    world.at(16).ends(0).at(21)  # a timeout
    assert [attempt for _, attempt, _ in world.starts] == [1, 2, 3]
    assert world.finished == []
    world.at(22).ends(143).at(27).at(28).ends(9).at(200)
    assert world.finished == [Finished("a", "ended", 9, 4, WALL, 28.0, "")]
    assert len(world.starts) == 4


def test_success_is_not_repeated() -> None:
    """Nor is a retry that succeeds."""
    world = World().starts_run(retries=5).ends(0).at(100)
    assert world.outcome == ("a", "ended", 0, 1)
    world = World().starts_run(retries=5, retry_delay_s=1).ends(1).at(1).ends(0).at(100)
    assert world.outcome == ("a", "ended", 0, 2)


def test_retry_under_a_hold_waits_for_time_enough() -> None:
    """As a first attempt does."""
    world = World().held(deadline=20).starts_run(holds=[1], retries=1, retry_delay_s=15).ends(1).at(15.5)
    assert len(world.starts) == 1
    world.renewed(100).at(17)
    assert len(world.starts) == 2


def test_kill_while_running() -> None:
    """SIGTERM, SIGKILL after kill-after, no retry; a second one changes nothing."""
    world = World().starts_run(retries=3, kill_after_s=2.0).at(1).hears(Kill("a", "replaced"))
    assert world.tree.numbers == [TERM]
    world.at(2).hears(Kill("a", "again")).at(2.9)
    assert world.tree.numbers == [TERM]
    world.at(3)
    assert world.tree.numbers == [TERM, KILL]
    assert world.ends(137).at(100).outcome == ("a", "killed", 137, 1)
    assert world.finished[0].reason == "replaced"


@pytest.mark.parametrize(("noted", "state"), [(False, "killed"), (True, "ended")])
def test_kill_that_the_keeper_was_first_to_enforce(noted: bool, state: str) -> None:
    """The supervisor was stopped. A run whose SIGKILL it has seen before died of something else."""
    world = World().starts_run().at(1)
    world.tree.code, world.tree.left = 137, [LEFT]
    if noted:
        world.pool.on_change({"a"})
    world.hears(Kill("a", "its key is gone"))
    assert world.ends(137).outcome == ("a", state, 137, 1)


def test_kill_between_attempts() -> None:
    """It is over at once; what comes after that means nothing."""
    world = World().starts_run(retries=3).ends(4).hears(Kill("a", "replaced"), Kill("a", "again"))
    assert world.outcome == ("a", "killed", 4, 1)
    assert len(world.at(100).starts) == 1


def test_kill_of_an_unknown_run() -> None:
    """It is over by now."""
    assert World().hears(Kill("b", "x"), Recorded("b"), Renewed(9, 1.0), Lost(9, "x")).finished == []


def test_kill_of_what_waits_for_a_renewal() -> None:
    """It never started."""
    world = World().at(TERM_AT - 0.5).held().starts_run(holds=[1]).hears(Kill("a", "replaced"))
    assert world.outcome == ("a", "unstarted", None, 0)


def test_end_of_a_run_whose_time_ran_out_while_its_leftovers_ended() -> None:
    """The command itself was in time: that is no timeout."""
    world = World().starts_run(first_limit_s=7.0, limit_s=7.0, kill_after_s=2.0).at(6.5)
    world.tree.code, world.tree.left = 0, [LEFT]
    world.pool.on_change({"a"})
    world.at(7.5)
    assert world.ends(0).outcome == ("a", "ended", 0, 1)


# -- the keeper -------------------------------------------------------------------------------------------


def test_keeper_that_dies_ends_what_is_bound_and_nothing_else() -> None:
    """What holds nothing runs on, and the new keeper is told of it."""
    world = World().held().starts_run("free").starts_run("bound", holds=[1], kill_after_s=1.0).at(1).dies()
    assert world.trees[1].numbers == [TERM]
    assert world.trees[0].signals == []
    world.ends(143).at(1.9)
    world.at(10).hears(Begun())
    assert world.trees[0].signals == []
    assert len(world.keepers) == 2
    begin = next(m for m in world.sent if isinstance(m, Begin) and not m.first)
    assert begin == Begin(["free"], ["bound"], False, [7])
    after = world.sent[world.sent.index(begin) + 1 :]
    assert after == [Running(100, "free", [], 5.0, "free"), world.finished[0]]
    assert world.outcome == ("bound", "killed", 143, 1)
    assert world.ends(0, 0).finished[-1].run == "free"
    assert len(world.starts) == 2


def test_new_keeper_is_told_what_leases_are_ours() -> None:
    """Though nothing ran under them; also of one before it that held nothing when it died."""
    world = World().held().at(1).dies().at(10)
    assert world.sent[-1] == Begin([], [], False, [7])
    world.hears(Begun()).dies().at(60)
    assert world.sent[-1] == Begin([], [], False, [7])


def test_new_keeper_waits_for_the_end_of_what_was_bound() -> None:
    """A run that ignores SIGTERM is killed first; meanwhile nothing spins."""
    world = World().held(1, 1000).starts_run("a", holds=[1], kill_after_s=20.0).dies().at(20)
    assert world.tree.sent_at(KILL) == 20
    world.at(25)
    assert world.keepers == [0]
    world.ends(137).at(26)
    assert len(world.keepers) == 2


def test_keepers_that_die_again_and_again_are_replaced_with_a_growing_pause() -> None:
    """Not beyond half a minute; a keeper that lived a minute starts it anew."""
    world = World()
    world.low_jitter = False
    moment, pauses = 0.0, []
    for lived in (0, 0, 0, 0, 0, 0, 0, 61):
        moment += lived
        world.at(moment).dies().at(moment + 31)
        pauses.append(round(world.keepers[-1] - moment, 3))
        moment = world.keepers[-1]
        world.time = BEGAN + moment
    assert pauses == [0.3, 0.9, 2.7, 8.1, 24.3, 30, 30, 0.3]


def test_end_of_a_run_does_not_shorten_the_pause_before_the_next_keeper() -> None:
    """A keeper that dies of something must not be started by every run that ends."""
    world = World()
    for name in "abcdef":
        world.starts_run(name)
    world.low_jitter = False
    for _ in range(4):
        world.dies().at(world.time - BEGAN + 31)
        world.time = BEGAN + world.keepers[-1]
    count = len(world.keepers)
    world.dies()
    died = world.time - BEGAN
    for which in range(6):
        world.at(died + which / 10).ends(0, which)
    world.at(died + 10)
    assert len(world.keepers) == count
    world.at(died + 31)
    assert len(world.keepers) == count + 1


def test_keeper_that_cannot_be_started_is_tried_again() -> None:
    """Runs go on meanwhile."""
    world = World().starts_run()
    world.fail_keeper = True
    world.dies().at(10).ends(0).at(29)
    assert "keeper-failed" in world.events
    assert world.finished == []
    world.fail_keeper = False
    assert world.at(61).outcome == ("a", "ended", 0, 1)


def test_ends_are_told_again_until_they_are_recorded() -> None:
    """To each new keeper, with what it needs to know before."""
    world = World().starts_run("a").starts_run("b").ends(0, 0).ends(1, 1)
    world.hears(Recorded("a")).dies().at(5)
    assert world.sent[-2:] == [Begin([], ["b"], False, []), Finished("b", "ended", 1, 1, WALL, 0.0, "")]
    world.hears(Begun()).dies().at(15)
    assert world.sent[-1] == Finished("b", "ended", 1, 1, WALL, 0.0, "")
    world.hears(Begun(), Recorded("b")).dies().at(30)
    assert world.sent[-1] == Begin([], [], False, [])
    assert len(world.starts) == 2


def test_retries_go_on_without_a_keeper() -> None:
    """What holds nothing needs none; the new keeper hears of the attempt that runs."""
    world = World().starts_run("a", retries=1, retry_delay_s=0.01).ends(1).dies().at(0.05)
    assert world.starts == [("a", 1, 10_000.0), ("a", 2, None)]
    world.at(5)
    assert world.sent[-2:] == [Begin(["a"], [], False, []), Running(101, "a", [], 5.0, "a")]


def test_holds_of_a_dead_keeper_mean_nothing_to_the_next() -> None:
    """What waits for its next attempt under one ends too."""
    world = World().held(1, 1000).starts_run("a", holds=[1], retries=3).ends(1).dies().at(5)
    assert world.outcome == ("a", "killed", 1, 1)
    world.hears(Begun()).starts_run("b", holds=[1])
    assert world.finished[-1].outcome == "unstarted"


def test_what_ended_is_no_reason_to_hear_of_its_hold() -> None:
    """A hold a run would else be followed for ever."""
    world = World().held(1).held(7).starts_run(holds=[7])
    assert world.pool.holds == {1, 7}
    world.ends(0).hears(Lost(7, "given back"), Recorded("a"))
    assert world.pool.holds == {1}


def test_failure_of_a_later_keeper_does_not_leave_runs_behind() -> None:
    """Conchd does not end before the trees of what still runs are gone."""
    world = World().starts_run("a").dies().at(5).hears(Failed(69, "cannot use /state: No space left on device"))
    assert world.trees[0].gone or not world.pool.done


# -- the end ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [TERM, INT, signal.SIGQUIT])
def test_signal_before_it_has_begun(number: int) -> None:
    """128+n; there is nothing to wait for."""
    world = World(begun=False).signalled(number)
    assert (world.pool.done, world.pool.code) == (True, 128 + number)
    assert not world.has_keeper


def test_failure_before_it_has_begun() -> None:
    """The keeper's code and words."""
    world = World(begun=False).hears(Failed(69, "no etcd"))
    assert (world.pool.done, world.pool.code) == (True, 69)
    assert "plain: no etcd" in world.events


def test_first_keeper_that_dies_is_the_end() -> None:
    """One line and 69; so is one that cannot be started."""
    world = World(begun=False).dies()
    assert (world.pool.done, world.pool.code, len(world.keepers)) == (True, 69, 1)
    assert [event for event in world.events if event.startswith("plain: ")] == world.events


def test_first_keeper_that_cannot_be_forked_is_the_end() -> None:
    """One line and 69."""
    world = World(begun=False, fail_keeper=True)
    assert (world.pool.done, world.pool.code, world.keepers) == (True, 69, [])
    assert world.events == ["plain: cannot start the process that talks to etcd: Resource temporarily unavailable"]


def test_drain_with_nothing_to_wait_for() -> None:
    """Drain, release, 0."""
    world = World().signalled(TERM)
    assert world.sent[-2:] == [Drain(), Release()]
    assert not world.pool.done
    world.hears(Released())
    assert (world.pool.done, world.pool.code) == (True, 0)


@pytest.mark.parametrize("number", [TERM, INT, signal.SIGQUIT])
def test_first_signal_waits_for_runs(number: int) -> None:
    """Each end is recorded before everything is given back."""
    world = World(drain_s=30).starts_run("a").starts_run("b").signalled(number).at(29)
    assert world.kinds()[-1] == "drain"
    assert all(tree.signals == [] for tree in world.trees)
    world.ends(0, 0).ends(3, 1)
    assert world.kinds()[-1] == "finished"
    world.hears(Recorded("a"))
    assert world.kinds()[-1] == "finished"
    world.hears(Recorded("b"))
    assert world.kinds()[-1] == "release"
    assert world.hears(Released("etcd is away")).pool.done
    assert world.pool.code == 0


@pytest.mark.parametrize("begun", [True, False])
def test_sighup_is_passed_on_and_ends_nothing(*, begun: bool) -> None:
    """The keeper reads anew; runs go on, and conchd too, however often it comes, while it drains as well."""
    world = World(begun=begun)
    if begun:
        world.starts_run("a")
    world.signalled(HUP).signalled(HUP)
    assert world.kinds()[-2:] == ["reload", "reload"]
    assert not world.pool.done
    assert all(tree.signals == [] for tree in world.trees)
    if begun:
        world.signalled(TERM).at(5).signalled(HUP)
        assert world.kinds()[-2:] == ["drain", "reload"]
        assert all(tree.signals == [] for tree in world.trees)
        world.ends(0).hears(Recorded("a"))
        assert world.hears(Released()).pool.done
        world.signalled(HUP)


def test_sighup_without_a_keeper_is_for_the_next_one() -> None:
    """Which reads everything at its start."""
    world = World().dies().signalled(HUP)
    assert "reload" not in world.kinds()
    assert not world.pool.done


def test_other_signals_mean_nothing() -> None:
    """There is no child to pass them on to."""
    world = World().starts_run().signalled(USR1, CONT, signal.SIGWINCH)
    assert world.kinds()[-1] == "running"


def test_drain_time_is_over() -> None:
    """SIGTERM, then SIGKILL; the ends are recorded as any."""
    world = World(drain_s=10).starts_run("a", kill_after_s=2.0).signalled(TERM).at(9.9)
    assert world.tree.signals == []
    world.at(10)
    assert world.tree.numbers == [TERM]
    world.at(12)
    assert world.tree.numbers == [TERM, KILL]
    assert world.ends(137).outcome == ("a", "killed", 137, 1)
    assert world.finished[0].reason == "conchd is stopping"
    assert world.hears(Recorded("a"), Released()).pool.done


def test_retries_are_not_waited_for() -> None:
    """One that waits ends at once; one that fails meanwhile is not tried again."""
    world = World().starts_run("a", retries=3).starts_run("b", retries=3).ends(1, 0).signalled(TERM)
    assert world.outcome == ("a", "killed", 1, 1)
    world.ends(2, 1)
    assert (world.finished[1].outcome, world.finished[1].code) == ("ended", 2)
    assert len(world.at(100).starts) == 2


def test_second_signal_ends_the_waiting_and_the_third_kills() -> None:
    """TERM, TERM, TERM, each a second after the one before; what comes sooner is the same request."""
    world = World(drain_s=3600).starts_run("a", kill_after_s=600.0).signalled(TERM)
    assert world.at(0.9).signalled(TERM).tree.signals == []
    world.at(1).signalled(TERM)
    assert world.at(1.9).signalled(TERM).tree.numbers == [TERM]
    world.at(2).signalled(INT)
    assert world.tree.numbers == [TERM, KILL]
    assert world.ends(137).outcome == ("a", "killed", 137, 1)


def test_order_that_arrives_during_a_drain() -> None:
    """It crossed the signal: nothing starts, and that is told."""
    world = World().starts_run("a").signalled(TERM).starts_run("b")
    assert world.outcome == ("b", "unstarted", None, 0)
    world.ends(0, 0).hears(Recorded("a"))
    assert world.kinds()[-1] != "release"
    assert world.hears(Recorded("b")).kinds()[-1] == "release"


def test_release_that_is_not_answered() -> None:
    """Waited for as long as was said; the leases expire by themselves."""
    world = World(release_s=10).signalled(TERM).at(9.9)
    assert not world.pool.done
    world.at(10)
    assert (world.pool.done, world.pool.code, world.has_keeper) == (True, 0, False)


def test_keeper_that_dies_during_the_release() -> None:
    """All is recorded: there is nothing another one could do."""
    assert World().signalled(TERM).dies().pool.done


def test_keeper_that_dies_during_a_drain() -> None:
    """Another one records what ended; it is told to start nothing."""
    world = World().starts_run("a").signalled(TERM).dies().ends(5).at(5)
    assert world.sent[-3:] == [Begin([], ["a"], False, []), world.finished[-1], Drain()]
    assert world.hears(Begun(), Recorded("a")).kinds()[-1] == "release"
    assert world.hears(Released()).pool.done
    assert world.pool.code == 0


def test_second_signal_does_not_wait_for_a_keeper() -> None:
    """What could not be recorded is in the journal; that it is not in etcd is 69."""
    world = World().starts_run("a").dies().ends(5)
    world.fail_keeper = True
    world.signalled(TERM).at(1).signalled(TERM).at(1)
    assert (world.pool.done, world.pool.code) == (True, 69)


def test_drain_still_obeys_deadlines() -> None:
    """A long drain is no reason to outlive a hold."""
    world = World(drain_s=3600).held().starts_run(holds=[1]).signalled(TERM).at(TTL)
    assert world.tree.sent_at(TERM) == pytest.approx(TERM_AT)
    assert world.tree.sent_at(KILL) == pytest.approx(KILL_AT)


def test_notes_of_the_keeper_are_logged() -> None:
    """As they are."""
    assert "retry" in World().hears(Note("warning", "retry", {"x": 3})).events


def test_every_wake_up_is_for_something() -> None:
    """No polling: between two moments the pool asks for nothing."""
    world = World()
    assert world.pool.wake_at is None
    world.held(deadline=100)
    assert world.pool.wake_at is None
    world.starts_run(holds=[1])
    assert world.pool.wake_at == pytest.approx(BEGAN + 90 + TERM_AT)
    world.ends(0)
    assert world.pool.wake_at is None


# -- at random --------------------------------------------------------------------------------------------


class Anything(RuleBasedStateMachine):
    """Orders, news of holds, ends, signals and deaths in any order; what is promised holds after each."""

    def __init__(self) -> None:
        super().__init__()
        self.world = World()
        self.world.pool._drain_s = 20.0
        self.number = 0
        self.runs = 0
        self.orders: dict[str, Start] = {}
        self.deadlines: dict[int, float] = {}
        self.lost: set[int] = set()
        self.known: list[int] = []
        self.outcomes: dict[str, Finished] = {}

    def seconds(self) -> float:
        return self.world.time - BEGAN

    @rule(left=st.floats(0.5, 30))
    def held(self, left: float) -> None:
        if not self.world.has_keeper:
            return
        self.number += 1
        self.deadlines[self.number] = self.world.time + left
        self.known.append(self.number)
        self.world.held(self.number, self.seconds() + left)

    @rule(which=st.integers(0, 5), left=st.floats(0.5, 10))
    def renewed(self, which: int, left: float) -> None:
        if self.world.has_keeper and self.known:
            number = self.known[which % len(self.known)]
            if number not in self.lost:
                self.deadlines[number] = max(self.deadlines[number], self.world.time + left)
                self.world.renewed(self.seconds() + left, number)

    @rule(which=st.integers(0, 5))
    def loses(self, which: int) -> None:
        if self.world.has_keeper and self.known:
            number = self.known[which % len(self.known)]
            self.lost.add(number)
            self.world.hears(Lost(number, "x"))

    @rule(
        holds=st.lists(st.integers(0, 5), max_size=2),
        kill_after=st.sampled_from([0.0, 1.0, 5.0, 60.0]),
        limit=st.sampled_from([2.0, 8.0, 600.0]),
        start_in=st.sampled_from([-0.1, 1.0, 60.0]),
        retries=st.integers(0, 2),
        delay=st.sampled_from([0.0, 3.0]),
        again=st.booleans(),
    )
    def ordered(
        self,
        holds: list[int],
        kill_after: float,
        limit: float,
        start_in: float,
        retries: int,
        delay: float,
        again: bool,
    ) -> None:
        if not self.world.has_keeper or self.world.pool.done:
            return
        numbers = sorted({self.known[which % len(self.known)] for which in holds}) if self.known else []
        self.runs += 1
        one = order(
            f"r{self.runs}", holds=numbers, kill_after_s=kill_after, first_limit_s=limit, limit_s=limit,
            start_by=self.seconds() + start_in, retries=retries, retry_delay_s=delay,
        )  # fmt: skip
        self.orders[one.run] = one
        self.world.hears(one)
        if again:
            self.world.hears(one)

    @rule(which=st.integers(0, 5), code=st.sampled_from([0, 1, 143]), left=st.booleans(), late=st.booleans())
    def ends(self, which: int, code: int, left: bool, late: bool) -> None:
        trees = [tree for tree in self.world.trees if not tree.gone]
        if trees:
            tree = trees[which % len(trees)]
            if tree.code is None:
                tree.code = code
                tree.left = [LEFT] if left and not late else []
                tree.end = End(late=late and not left)
            else:
                tree.left = []
            self.world.pool.on_change({tree.run_id})

    @rule(which=st.integers(0, 5))
    def killed(self, which: int) -> None:
        if self.world.has_keeper and self.runs:
            self.world.hears(Kill(f"r{which % self.runs + 1}", "k"))

    @rule(which=st.integers(0, 5))
    def recorded(self, which: int) -> None:
        waiting = [task for task in self.world.pool.tasks.values() if task.finished is not None]
        if self.world.has_keeper and waiting:
            self.world.hears(Recorded(waiting[which % len(waiting)].order.run))

    @rule(by=st.floats(0.01, 15))
    def time_passes(self, by: float) -> None:
        self.world.at(self.seconds() + by)

    @rule()
    def keeper_dies(self) -> None:
        if self.world.has_keeper and not self.world.pool.done:
            self.world.dies()
            self.lost.update(self.known)
            self.known.clear()

    @precondition(lambda self: self.runs > 3)
    @rule(number=st.sampled_from([TERM, INT, HUP, USR1]))
    def signalled(self, number: int) -> None:
        self.world.signalled(number)

    @invariant()
    def no_tree_outlives_its_holds(self) -> None:
        now = self.world.time
        for tree in self.world.trees:
            one = self.orders[tree.run_id]
            for number in one.holds:
                margin, grace = 0.5, min(one.kill_after_s, TTL / 3)
                if tree.gone or self.world.pool.done:
                    continue
                if now >= self.deadlines[number] - margin:
                    assert KILL in tree.numbers
                if now >= self.deadlines[number] - margin - grace:
                    assert tree.numbers
                if number in self.lost:
                    assert tree.numbers

    @invariant()
    def one_end_a_run_and_none_twice_different(self) -> None:
        for finished in self.world.finished:
            assert self.outcomes.setdefault(finished.run, finished) == finished
        for run in self.orders:
            assert run in self.outcomes or run in self.world.pool.tasks

    @invariant()
    def at_most_one_tree_a_run_and_no_more_attempts_than_ordered(self) -> None:
        living = [tree.run_id for tree in self.world.trees if not tree.gone]
        assert len(living) == len(set(living))
        for run, attempt, _ in self.world.starts:
            assert 1 <= attempt <= self.orders[run].retries + 1

    @invariant()
    def no_keeper_beside_what_the_last_one_held(self) -> None:
        for tree in self.world.trees:
            if not tree.gone and self.world.has_keeper:
                assert set(self.orders[tree.run_id].holds) <= set(self.known) | self.lost
                assert all(number in self.known for number in self.orders[tree.run_id].holds)

    @invariant()
    def done_only_when_nothing_lives(self) -> None:
        if self.world.pool.done:
            assert all(tree.gone for tree in self.world.trees)

    def teardown(self) -> None:
        """After all this every run that is told to end does, and each has one end."""
        world = self.world
        if world.pool.done:
            return
        world.at(self.seconds() + 40)
        world.signalled(TERM)
        for _ in range(4):
            for which, tree in enumerate(world.trees):
                if not tree.gone:
                    world.ends(143, which)
        world.at(self.seconds() + 40)
        for run in list(world.pool.tasks):
            world.hears(Recorded(run))
        unrecorded = set(self.orders) - {finished.run for finished in world.finished}
        # a second request does not wait for the next keeper, and says what it gives up
        assert not unrecorded or (world.pool.done and any("could not be recorded" in event for event in world.events))
        assert world.pool.done or isinstance(world.sent[-1], Release)


Anything.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestAnything = Anything.TestCase


# -- hooks ------------------------------------------------------------------------------------------------


def test_hook_has_its_time_within_the_drain() -> None:
    """A run that is asked for during a drain is not started; what is to happen after a failed one is."""
    world = World(drain_s=10.0).starts_run("a").signalled(signal.SIGTERM).ends(1)
    world.starts_run("h", hook="on-failure").hears(Recorded("a"))
    assert world.kinds()[-1] == "running"
    assert world.tree.run_id == "h"
    world.ends(0)
    assert world.events[-3:] == ["hook-start", "hook-exit", "hook-end"]
    world.hears(Recorded("h"))
    assert world.sent[-1] == Release()


def test_hook_is_ended_with_the_drain() -> None:
    world = World(drain_s=10.0).starts_run("h", hook="on-failure").signalled(signal.SIGTERM).at(11)
    assert world.tree.numbers[:1] == [signal.SIGTERM]
    world.ends(143)
    assert world.events[-1] == "hook-failed"
    assert world.finished[-1].outcome == "killed"


@pytest.mark.parametrize("ends", [True, False])
def test_hook_that_comes_too_late_delays_no_end(ends: bool) -> None:
    """When the drain is over, or nothing was left and the keeper gives its lease back: it is refused, and forgotten."""
    world = World(drain_s=1.0)
    if ends:
        world.signalled(signal.SIGTERM)
    else:
        world.starts_run("a").signalled(signal.SIGTERM).at(2)
    world.starts_run("h", hook="on-failure")
    assert [(end.run, end.outcome) for end in world.finished] == [("h", "unstarted")]
    assert "h" not in world.pool.tasks
    if ends:
        world.hears(Released())
        assert world.pool.done
