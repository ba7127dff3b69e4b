"""The wrapper's decisions, driven by a table of messages and a clock of the test's own."""

import signal
from typing import Any

import pytest

from conch.core.cgroup import Usage
from conch.core.messages import (
    Acquire,
    Answered,
    Ended,
    Failed,
    Held,
    Lost,
    Message,
    Note,
    Queued,
    Release,
    Released,
    Renewed,
    Running,
)
from conch.core.procfs import Stat
from conch.core.states import AttemptState, End, RunOptions, State
from conch.core.supervisor import Supervisor
from conch.errors import IllegalTransition
from conch.log import Log

TERM, INT, HUP, KILL, CONT, USR1 = (
    signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL, signal.SIGCONT, signal.SIGUSR1,
)  # fmt: skip
TTL = 10.0  # margin 0.5, grace 10/3: SIGTERM by deadline - 3.833, SIGKILL by deadline - 0.5


class FakeTree:
    """A process tree that does what the test says."""

    def __init__(self, pid: int, sent: list[Message]) -> None:
        self.pid = pid
        self.run_id = f"t{pid}"
        self.cgroup = ""
        self.code: int | None = None
        self.left: list[Stat] = []
        self.signals: list[tuple[str, int]] = []
        self.sent = sent
        self.cleared_after: list[list[Message]] = []

    def exit_code(self) -> int | None:
        return self.code

    def empty(self) -> bool:
        return self.code is not None and not self.left

    def signal_group(self, number: int) -> None:
        self.signals.append(("group", number))

    def signal_tree(self, number: int) -> None:
        self.signals.append(("tree", number))

    def refused(self) -> list[int]:
        return []

    def clear_away(self) -> Usage:
        self.cleared_after.append(list(self.sent))
        return Usage(0.25, 9000)


class World:
    """Ports, clock and log for a supervisor."""

    def __init__(self, *, fail_keeper: bool = False, **plan: Any) -> None:
        self.time = 1000.0
        self.sent: list[Message] = []
        self.trees: list[FakeTree] = []
        self.started: list[tuple[str | None, float | None]] = []
        self.keepers = 0
        self.dropped = 0
        self.defect = False
        self.end = End()
        self.fail_start = False
        self.fail_keeper = fail_keeper
        self.gates = 0
        self.events: list[str] = []
        self.fields: dict[str, dict[str, Any]] = {}
        world = self

        class Recorder(Log):
            def __call__(self, level: str, event: str, **fields: Any) -> None:
                world.events.append(event)
                world.fields[event] = fields

            def plain(self, message: str) -> None:
                world.events.append(f"plain: {message}")

        plan.setdefault("name", "o")
        self.supervisor = Supervisor(RunOptions(**plan), self, self, Recorder())
        self.supervisor.begin()

    # Ports

    def now(self) -> float:
        return self.time

    def jitter(self, low: float, high: float) -> float:
        return low

    def start_keeper(self) -> None:
        if self.fail_keeper:
            raise OSError(11, "Resource temporarily unavailable")
        self.keepers += 1

    def drop_keeper(self) -> bool:
        self.dropped += 1
        return self.defect

    def send(self, message: Message) -> None:
        self.sent.append(message)

    def contain(self) -> str:
        return "tree"

    def start_tree(self, hook: str | None, hold: Held, start_by: float | None) -> FakeTree:
        if self.fail_start:
            raise OSError(11, "Resource temporarily unavailable")
        tree = FakeTree(100 + len(self.trees), self.sent)
        self.trees.append(tree)
        self.started.append((hook, start_by))
        return tree

    def open_gate(self, tree: Any) -> None:
        assert isinstance(self.sent[-1], Running) or not self.has_keeper, "the keeper must know it first"
        self.gates += 1

    def reap(self, tree: Any) -> End:
        assert isinstance(self.sent[-1], Ended) or not self.has_keeper, "the keeper must know it first"
        return self.end

    @property
    def has_keeper(self) -> bool:
        return self.supervisor._acquisition._keeper

    # what a test says

    def at(self, seconds: float) -> "World":
        """Time passes; every moment that the supervisor asked for is served on the way."""
        target = 1000.0 + seconds
        for _ in range(1000):
            wake = self.supervisor.wake_at
            if wake is None or wake > target:
                break
            self.time = max(self.time, wake)
            self.supervisor.on_time()
        self.time = target
        self.supervisor.on_time()
        return self

    def hears(self, *messages: Message) -> "World":
        for message in messages:
            self.supervisor.on_message(message)
        return self

    def held(self, number: int = 1, deadline: float = TTL) -> "World":
        return self.hears(Answered(7), Held(number, 5, 7, "/k", TTL, 1000.0 + deadline))

    def renewed(self, deadline: float, number: int = 1) -> "World":
        return self.hears(Renewed(number, 1000.0 + deadline))

    def signalled(self, *numbers: int) -> "World":
        for number in numbers:
            self.supervisor.on_signal(number)
        return self

    def ends(self, code: int, which: int = -1) -> "World":
        self.trees[which].code = code
        self.trees[which].left = []
        self.supervisor.on_change()
        return self

    @property
    def tree(self) -> FakeTree:
        return self.trees[-1]

    @property
    def state(self) -> State:
        return self.supervisor.state

    @property
    def code(self) -> int:
        assert self.state is State.DONE, self.state
        return self.supervisor.code


def test_a_good_run() -> None:
    """Queue, hold, run, tell the keeper, release, exit with the child's code."""
    world = World().held()
    assert world.state is State.RUNNING
    assert world.started == [(None, pytest.approx(1000 + TTL - 0.5 - TTL / 3))]
    world.ends(3)
    assert world.state is State.RELEASING
    assert [type(m) for m in world.sent] == [Acquire, Running, Ended, Release]
    assert world.hears(Released()).code == 3
    assert world.events == ["acquiring", "acquired", "child-start", "child-exit", "child-end", "released"]


def test_deadline_that_is_not_renewed() -> None:
    """SIGTERM to the tree at deadline-margin-grace, SIGKILL at deadline-margin, then 70."""
    world = World().held()
    sigterm_at, kill_at = TTL - 0.5 - TTL / 3, TTL - 0.5
    world.at(sigterm_at - 0.01)
    assert world.tree.signals == []
    world.at(sigterm_at)
    assert world.tree.signals == [("tree", TERM), ("tree", CONT)]
    world.at(kill_at - 0.01)
    assert ("tree", KILL) not in world.tree.signals
    world.at(kill_at)
    assert world.tree.signals[2:] == [("tree", KILL)]
    assert world.ends(137).hears(Released()).code == 70


def test_renewals_push_the_moments_on_and_only_forward() -> None:
    """Each newer deadline counts, an older one does not, one of another acquisition neither."""
    world = World().held()
    for second in range(1, 60):
        world.at(second).renewed(second + TTL)
    world.renewed(5).renewed(1000, number=2)
    world.at(59 + TTL - 0.5 - TTL / 3 - 0.01)
    assert world.tree.signals == []
    world.at(59 + TTL - 0.5 - TTL / 3)
    assert world.tree.signals[0] == ("tree", TERM)


def test_terminating_is_final() -> None:
    """A renewal that comes too late takes nothing back."""
    world = World().held().at(TTL - 3.8).renewed(100).at(TTL - 0.5)
    assert ("tree", KILL) in world.tree.signals
    assert world.ends(0).hears(Released()).code == 70


def test_loss_told_by_the_keeper() -> None:
    """SIGTERM at once, SIGKILL after kill-after, or by the deadline if that is earlier."""
    world = World(kill_after_s=2.0).held().at(1).hears(Lost(1, "revoked"))
    assert world.tree.signals == [("tree", TERM), ("tree", CONT)]
    world.at(2.9)
    assert len(world.tree.signals) == 2
    world.at(3)
    assert world.tree.signals[2] == ("tree", KILL)
    late = World(kill_after_s=60.0).held().at(1).hears(Lost(1, "revoked")).at(TTL - 0.5)
    assert late.tree.signals[2] == ("tree", KILL)


def test_kill_is_repeated_until_the_tree_is_empty_and_only_then_released() -> None:
    """A hold is never released while something that ran under it still runs."""
    world = World(kill_after_s=1.0).held().hears(Lost(1, "x")).at(1)
    world.tree.code = 137
    world.tree.left = [Stat(999, "D", 1, 999, 1, 1)]
    world.supervisor.on_change()
    world.at(30)
    assert world.state is State.RUNNING
    assert not any(isinstance(m, Release) for m in world.sent)
    assert 5 < world.tree.signals.count(("tree", KILL)) < 60
    world.tree.left = []
    world.supervisor.on_change()
    assert world.state is State.RELEASING


def test_leftovers_are_terminated_before_the_release() -> None:
    """The exit code is the child's."""
    world = World(kill_after_s=2.0).held()
    world.tree.left = [Stat(999, "S", 1, 999, 1, 1)]
    world.tree.code = 4
    world.supervisor.on_change()
    assert world.state is State.RUNNING
    assert world.tree.signals == [("tree", TERM), ("tree", CONT)]
    world.at(2)
    assert world.tree.signals[2] == ("tree", KILL)
    world.tree.left = []
    world.supervisor.on_change()
    assert world.hears(Released()).code == 4


@pytest.mark.parametrize("plan", [{}, {"restart": True}, {"on_lose": "x"}])
def test_release_does_not_wait_for_the_cgroup_of_the_run(plan: dict[str, Any]) -> None:
    """What others wait for is sent first; then the cgroup is removed, once, and the log says what the run used."""
    world = World(**plan).held().ends(0)
    if "on_lose" in plan:
        world.ends(0)
    assert isinstance(world.sent[-1], Release)
    for tree in world.trees:
        assert len(tree.cleared_after) == 1
    assert isinstance(world.tree.cleared_after[0][-1], Release)
    assert world.fields["child-end"] == {
        **{"name": "o", "rev": 5, "lease": "7", "hook": None},
        **{"cpu_s": 0.25, "max_rss_kb": 9000},
    }


@pytest.mark.parametrize("ending", ["clean", "loss", "late", "failed hook", "no keeper", "signals"])
def test_cgroup_of_a_run_is_removed_however_it_ends(ending: str) -> None:
    """Each is removed once, before conch ends or runs anything else under a new hold."""
    world = World(on_acquire="x" if ending == "failed hook" else None).held()
    match ending:
        case "clean":
            world.ends(0).hears(Released())
        case "loss":
            world.hears(Lost(1, "x")).ends(143).hears(Released())
        case "late":
            world.end = End(late=True)
            world.ends(126)
        case "failed hook":
            world.ends(1).hears(Released())
        case "no keeper":
            world.supervisor.on_keeper_death()
            world.fail_keeper = True
            world.ends(143)
        case "signals":
            world.signalled(TERM).at(2).signalled(TERM).ends(137).hears(Released())
    assert [len(tree.cleared_after) for tree in world.trees] == [1]
    assert world.supervisor.done or ending == "late"


@pytest.mark.parametrize("number", [TERM, INT, signal.SIGQUIT])
def test_users_signal_goes_to_the_group_and_the_childs_code_is_conchs(number: int) -> None:
    """The same within a second is the same request; one that comes later kills at once."""
    world = World(kill_after_s=60).held().at(1).signalled(number)
    assert world.tree.signals == [("group", number), ("group", CONT)]
    world.signalled(number).at(1.9).signalled(number)
    assert world.tree.signals[2:] == []
    world.at(2).signalled(number)
    assert world.tree.signals[2:] == [("tree", KILL)]
    assert world.ends(9).hears(Released()).code == 9


def test_long_kill_after_does_not_outlive_a_lost_deadline() -> None:
    """A user's SIGTERM with kill-after of an hour, then etcd goes away: SIGKILL by deadline-margin."""
    world = World(kill_after_s=3600).held().at(1).signalled(TERM)
    world.renewed(2 * TTL).at(2 * TTL - 0.51)
    assert ("tree", KILL) not in world.tree.signals
    world.at(2 * TTL - 0.5)
    assert ("tree", KILL) in world.tree.signals
    assert world.ends(137).hears(Released()).code == 137


@pytest.mark.parametrize("number", [HUP, USR1, signal.SIGUSR2, signal.SIGWINCH, CONT])
def test_other_signals_are_only_passed_on(number: int) -> None:
    """To the group, once."""
    world = World().held().signalled(number)
    assert world.tree.signals == [("group", number)]
    assert world.supervisor.attempt is not None
    assert world.supervisor.attempt.state is AttemptState.RUNNING


@pytest.mark.parametrize("number", [TERM, INT, signal.SIGQUIT, HUP])
def test_signal_while_queued(number: int) -> None:
    """Release, then 128+n."""
    world = World().hears(Answered(7)).signalled(number)
    assert world.sent[-1] == Release(7)
    assert world.hears(Held(1, 5, 7, "/k", TTL, 1010.0)).state is State.RELEASING  # it crossed the release
    assert world.hears(Released()).code == 128 + number
    assert world.trees == []


def test_signal_while_dialling_waits_only_briefly() -> None:
    """Nothing was granted, so nothing can be left; but an answer on its way is waited for."""
    assert World().signalled(TERM).at(0.5).code == 128 + TERM
    world = World().signalled(TERM).at(0.4).hears(Answered(7)).at(4.9)
    assert world.state is State.RELEASING
    assert world.hears(Released()).code == 128 + TERM


@pytest.mark.parametrize("number", [USR1, signal.SIGWINCH, CONT])
def test_other_signals_without_a_child_do_nothing(number: int) -> None:
    """Neither queued nor backing off."""
    assert World().signalled(number).state is State.ACQUIRING
    assert backing_off().signalled(number).state is State.BACKOFF


def backing_off(**plan: Any) -> World:
    world = World(restart=True, **plan).held().ends(0).hears(Released())
    assert world.state is State.BACKOFF
    return world


def test_restart_backs_off_and_acquires_again_with_a_new_number() -> None:
    """What belongs to the first acquisition means nothing to the second."""
    world = backing_off()
    world.at(1.1)
    assert world.state is State.ACQUIRING
    assert isinstance(world.sent[-1], Acquire)
    assert world.sent[-1].number == 2
    world.hears(Held(1, 5, 7, "/k", TTL, 1010.0))
    assert world.state is State.ACQUIRING
    world.held(number=2, deadline=20).hears(Lost(1, "old"))
    assert world.tree.signals == []
    assert world.keepers == 1


def test_backoff_grows_and_a_stable_child_resets_it() -> None:
    """Seen in the log's delay, here by the moment it wakes."""
    world = World(restart=True, restart_min_s=1, restart_max_s=30, restart_stable_s=60)
    world.jitter = lambda low, high: high  # type: ignore[method-assign]
    delays = []
    number, moment = 0, 0.0
    for lived in (0, 0, 0, 0, 61, 0):
        number += 1
        world.held(number, deadline=moment + 1000)
        moment += lived
        world.at(moment).ends(0).hears(Released())
        wake = world.supervisor.wake_at
        assert wake is not None
        delays.append(round(wake - world.time, 3))
        moment += delays[-1]
        world.at(moment)
    assert delays == [3, 9, 27, 30, 3, 9]


@pytest.mark.parametrize("number", [TERM, INT, signal.SIGQUIT, HUP])
def test_signal_while_backing_off_ends_at_once(number: int) -> None:
    """There is nothing to release."""
    assert backing_off().signalled(number).code == 128 + number


def test_restart_ends_by_a_users_signal_with_the_childs_code() -> None:
    """And not before."""
    world = World(restart=True).held().signalled(TERM).ends(143).hears(Released())
    assert world.code == 143


def test_restart_ends_when_the_terminals_child_is_interrupted() -> None:
    """Ctrl-C never reached conch itself."""
    world = World(restart=True).held()
    world.end = End(interrupted=True)
    assert world.ends(130).hears(Released()).code == 130


def test_signal_while_releasing_ends_a_restart_and_a_second_one_the_wait() -> None:
    """The first has nobody to be passed on to."""
    world = World(restart=True).held().ends(0).signalled(TERM)
    assert world.state is State.RELEASING
    assert world.at(1).signalled(TERM).code == 128 + TERM
    assert world.dropped == 1
    assert World().held().ends(5).signalled(TERM).at(1).signalled(TERM).code == 5


def test_release_that_etcd_does_not_confirm_is_waited_for_at_most_the_command_timeout() -> None:
    """Then the keeper is killed; the lease expires by itself."""
    world = World(command_timeout_s=3.0).held().ends(5).at(2.9)
    assert world.state is State.RELEASING
    assert world.at(3).code == 5
    assert world.dropped == 1


# -- hooks ------------------------------------------------------------------------------------------------


def test_hooks_around_the_child() -> None:
    """Each is known to the keeper; on-lose after a clean end is bound to the hold."""
    world = World(on_acquire="a", on_lose="l").held().ends(0).ends(3).ends(1).hears(Released())
    assert [hook for hook, _ in world.started] == ["a", None, "l"]
    assert [m.holds for m in world.sent if isinstance(m, Running)] == [[1], [1], [1]]
    assert world.code == 3


def test_failed_on_acquire_gives_up_with_the_conflict_code() -> None:
    """No child, no on-lose."""
    world = World(on_acquire="a", on_lose="l", conflict_exit=9).held().ends(1).hears(Released())
    assert world.code == 9
    assert len(world.trees) == 1


def test_hook_past_its_timeout_is_killed() -> None:
    """And counts as failed even if it exits 0 just then."""
    world = World(on_acquire="a", hook_timeout_s=2).held(deadline=100).at(2)
    assert world.tree.signals == [("tree", KILL)]
    assert world.ends(0).hears(Released()).code == 75


def test_loss_in_on_acquire_is_70_and_in_on_lose_the_childs() -> None:
    """on-lose after a clean end is ended too, but the child had run to its end."""
    world = World(on_acquire="a").held().hears(Lost(1, "x"))
    assert world.tree.signals == [("tree", TERM), ("tree", CONT)]
    assert world.ends(0).hears(Released()).code == 70
    world = World(on_lose="l").held().ends(4).hears(Lost(1, "x"))
    assert world.tree.signals == [("tree", TERM), ("tree", CONT)]
    assert world.ends(143).hears(Released()).code == 4


def test_on_lose_after_a_loss_is_free_of_the_deadline() -> None:
    """It holds nothing any more; only its own time-out ends it."""
    world = World(on_lose="l", hook_timeout_s=100).held().hears(Lost(1, "x")).ends(0)
    assert world.started[-1] == ("l", None)
    assert not [m for m in world.sent if isinstance(m, Running)][-1].holds
    world.at(50)
    assert world.tree.signals == []
    assert world.ends(0).hears(Released()).code == 70


@pytest.mark.parametrize("hook", ["on_acquire", "on_lose"])
@pytest.mark.parametrize("number", [TERM, INT, HUP])
def test_signal_in_a_hook(hook: str, number: int) -> None:
    """The hook gets it; conch ends with 128+n."""
    plan: dict[str, Any] = {hook: "x"}
    world = World(**plan).held()
    if hook == "on_lose":
        world.ends(4)
    world.signalled(number)
    assert world.tree.signals[0] == ("group", number)
    assert world.ends(0).hears(Released()).code == 128 + number


def test_signal_to_the_child_leaves_its_code_through_on_lose() -> None:
    """The signal that ended conch came while running."""
    world = World(on_lose="l").held().signalled(TERM).ends(7).at(1).signalled(TERM)
    assert world.tree.signals == [("tree", KILL)]
    assert world.ends(137).hears(Released()).code == 7


# -- who came first ---------------------------------------------------------------------------------------


def test_users_signal_before_a_loss_wins() -> None:
    """And a loss before a user's signal."""
    world = World().held().signalled(TERM).hears(Lost(1, "x")).ends(143).hears(Released())
    assert world.code == 143
    world = World().held().hears(Lost(1, "x")).signalled(TERM).ends(143).hears(Released())
    assert world.code == 70


def test_child_that_ended_before_the_loss_was_told_keeps_its_code() -> None:
    """Unless a keeper killed it for that loss."""
    world = World().held()
    world.tree.code = 5
    assert world.hears(Lost(1, "x")).ends(5).hears(Released()).code == 5
    world = World().held()
    world.tree.code = 137
    assert world.hears(Lost(1, "x")).ends(137).hears(Released()).code == 70


# -- little time, late news -------------------------------------------------------------------------------


def test_no_child_starts_when_too_little_time_is_left() -> None:
    """It waits for a newer deadline; without one the hold is given back and queued for again."""
    world = World().at(TTL - 0.5 - TTL / 3 - TTL / 5).held()
    assert world.state is State.READY
    world.renewed(17)
    assert world.state is State.RUNNING
    world = World().at(7).held().at(TTL - 0.51)
    assert world.state is State.READY
    world.at(TTL - 0.5)
    assert world.state is State.RELEASING
    assert world.hears(Released()).state is State.ACQUIRING
    assert world.trees == []


def test_child_that_found_itself_late_is_not_an_error() -> None:
    """It did not run: queue again."""
    world = World().held()
    world.end = End(late=True)
    world.ends(126)
    assert world.hears(Released()).state is State.ACQUIRING


def test_command_that_exec_refuses() -> None:
    """Its reason is told, its code is conch's, on-lose does not run."""
    world = World(on_lose="l").held()
    world.end = End(error="cannot run x: No such file")
    assert world.ends(127).hears(Released()).code == 127
    assert "plain: cannot run x: No such file" in world.events


def test_fork_that_fails() -> None:
    """126, and the hold is given back."""
    world = World()
    world.fail_start = True
    world.held()
    assert world.hears(Released()).code == 126


# -- the keeper -------------------------------------------------------------------------------------------


def test_failure_before_anything_was_answered_ends_even_a_restart() -> None:
    """69, with the keeper's words; later ones back off."""
    assert World(restart=True).hears(Failed(69, "no etcd")).code == 69
    assert World(restart=True).hears(Answered(7), Failed(69, "refused")).code == 69
    world = World(restart=True).hears(Answered(7), Queued(5), Failed(69, "refused"))
    assert world.state is State.BACKOFF


def test_conflict_code_replaces_75_only() -> None:
    """-E."""
    assert World(conflict_exit=3).hears(Answered(7), Failed(75, "taken")).code == 3
    assert World(conflict_exit=3).hears(Failed(69, "gone")).code == 69


def test_keeper_that_had_to_leave_with_a_lease_has_it_given_back() -> None:
    """It was short of something: its place would stand before others for as long as the lease lasts."""
    world = World().hears(Answered(7), Queued(5), Failed(69, "no threads", leftovers=True))
    assert (world.state, world.sent[-1]) == (State.RELEASING, Release(7))
    world.supervisor.on_keeper_death()
    assert (world.keepers, world.sent[-1]) == (2, Release(7))
    assert world.hears(Released()).code == 69
    assert World().hears(Failed(69, "no threads", leftovers=True)).code == 69
    restarted = World(restart=True).hears(Answered(7), Queued(5), Failed(69, "no threads", leftovers=True), Released())
    assert restarted.state is State.BACKOFF


def test_keeper_that_dies_while_queued_is_replaced_once() -> None:
    """The new one is told what to abandon."""
    world = World().hears(Answered(7))
    world.supervisor.on_keeper_death()
    assert world.sent[-1] == Acquire(2, None, 7)
    assert world.keepers == 2
    world.supervisor.on_keeper_death()
    assert world.sent[-1] == Release(7)
    assert world.hears(Released()).code == 69
    world = World()
    world.supervisor.on_keeper_death()
    world.supervisor.on_keeper_death()
    assert world.code == 69


def test_keeper_that_dies_under_a_child_is_a_loss_and_the_lease_is_given_back_by_another() -> None:
    """SIGTERM at once; SIGKILL by the deadline that was last heard."""
    world = World(kill_after_s=60).held()
    world.supervisor.on_keeper_death()
    assert world.tree.signals == [("tree", TERM), ("tree", CONT)]
    world.at(TTL - 0.5)
    assert ("tree", KILL) in world.tree.signals
    world.ends(137)
    assert world.keepers == 2
    assert world.sent[-1] == Release(7)
    assert world.hears(Released()).code == 70


def test_keeper_that_dies_while_releasing_is_replaced_once_for_that() -> None:
    """Then the lease has to expire by itself."""
    world = World().held().ends(0)
    world.supervisor.on_keeper_death()
    assert world.sent[-1] == Release(7)
    world.supervisor.on_keeper_death()
    assert world.code == 0


def test_keeper_that_dies_while_backing_off_is_replaced_when_it_is_needed() -> None:
    """Nothing is held."""
    world = backing_off()
    world.supervisor.on_keeper_death()
    assert world.state is State.BACKOFF
    world.at(2)
    assert (world.state, world.keepers) == (State.ACQUIRING, 2)


def test_keeper_that_cannot_be_started() -> None:
    """69 at the start; later a back-off under --restart, and a release that is left to the TTL."""
    assert World(fail_keeper=True).code == 69
    world = backing_off()
    world.supervisor.on_keeper_death()
    world.fail_keeper = True
    world.at(1.1)
    assert world.state is State.BACKOFF
    world.fail_keeper = False
    assert world.at(5).state is State.ACQUIRING
    world = World().held()
    world.fail_keeper = True
    world.supervisor.on_keeper_death()
    assert world.ends(143).code == 70


def test_hung_keeper_does_not_outwait_the_users_times() -> None:
    """A first answer, --wait and --nonblock, each with the time that the keeper itself may take and a little more."""
    assert World(dial_timeout_s=1).at(60 + 5 + 1).state is State.ACQUIRING
    assert World(dial_timeout_s=1).at(60 + 5 + 2).code == 69
    assert World(dial_timeout_s=90).at(60 + 5 + 2).state is State.ACQUIRING
    world = World(wait_s=3).hears(Answered(7)).at(3 + 5 + 2)
    assert (world.dropped, world.keepers, world.sent[-1]) == (1, 2, Release(7))
    assert world.hears(Released()).code == 75
    assert World(nonblock=True).hears(Answered(7)).at(10 + 5 + 2).hears(Released()).code == 69
    assert World().hears(Answered(7)).at(10_000).state is State.ACQUIRING


def test_signal_while_a_hold_that_ran_nothing_is_given_back() -> None:
    """Not 0: the command never ran."""
    world = World().at(7).held().at(TTL - 0.5)
    assert world.state is State.RELEASING
    assert world.signalled(TERM).hears(Released()).code == 128 + TERM


def test_what_a_signalled_command_left_running_gets_a_sigterm_of_its_own() -> None:
    """The user's signal went to the group alone, and perhaps it was not SIGTERM."""
    world = World().held().signalled(INT)
    world.tree.left = [Stat(999, "S", 1, 999, 1, 1)]
    world.tree.code = 130
    world.supervisor.on_change()
    assert world.tree.signals == [("group", INT), ("group", CONT), ("tree", TERM), ("tree", CONT)]
    world.supervisor.on_change()
    assert len(world.tree.signals) == 4


def test_notes_of_the_keeper_are_logged() -> None:
    """With the name."""
    assert "retry" in World().hears(Note("warning", "retry", {"rev": 3})).events


def test_illegal_transition_names_both_states() -> None:
    """A defect must not pass for a state."""
    world = World().held()
    with pytest.raises(IllegalTransition, match="from running to acquiring"):
        world.supervisor._enter(State.ACQUIRING)


def test_every_wake_up_is_for_something() -> None:
    """No polling: between two moments the supervisor asks for nothing."""
    world = World().held(deadline=100)
    assert world.supervisor.wake_at == pytest.approx(1000 + 100 - 0.5 - TTL / 3)
    waiting = World().hears(Answered(7))
    assert waiting.supervisor.wake_at is None
