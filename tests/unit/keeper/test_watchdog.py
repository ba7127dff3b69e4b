"""The keeper's first thread: it enforces the last moment without etcd and without the supervisor's help."""

import threading
from collections.abc import Iterator, Sequence

import pytest

from conch.core import clock
from conch.core.channel import pair
from conch.core.deadline import DeadlineRule
from conch.core.messages import Acquire, Ended, Kill, Lost, Message, Note, Release, Running
from conch.core.procfs import Stat, Target
from conch.keeper.watchdog import Watchdog
from tests.support.conch import wait_for


class Stage:
    """A warden in a thread, the supervisor's end of the link, and a record of its kills."""

    def __init__(self, kill_after_s: float = 5.0) -> None:
        self.link, self.theirs = pair()
        self.kills: list[tuple[float, int, str]] = []
        self.alive: list[Stat] = []
        self.delivered: list[Message] = []
        self.kill_after_s = kill_after_s
        self.watchdog = Watchdog(self.theirs, self.kill)
        self.thread = threading.Thread(target=self.watchdog.run, args=(self.delivered.append,), daemon=True)
        self.thread.start()

    def kill(self, targets: Sequence[Target]) -> list[list[Stat]]:
        self.kills += [(clock.now(), one.pid, one.run_id) for one in targets]
        return [self.alive for _ in targets]

    def heard(self) -> list[Message]:
        return self.link.drain()


@pytest.fixture
def stage() -> Iterator[Stage]:
    stage = Stage(kill_after_s=0.3)
    yield stage
    stage.alive = []
    stage.link.close()
    stage.thread.join(5)
    assert not stage.thread.is_alive()
    stage.theirs.close()


def hold(stage: Stage, left_s: float, *, ttl_s: float = 10.0, bound: bool = True) -> float:
    """A hold with so much time left until deadline - margin, over a running tree."""
    moment = clock.now() + left_s
    stage.watchdog.acquired(1, DeadlineRule(ttl_s, stage.kill_after_s), moment + max(0.2, ttl_s / 20))
    stage.link.send(Running(77, "ab", [1] if bound else [], stage.kill_after_s))
    return moment


def test_tree_is_killed_at_the_last_moment_and_not_before(stage: Stage) -> None:
    """By the deadline alone: nobody tells it to. And again, while nobody says that it is empty."""
    moment = hold(stage, 0.2)
    wait_for(lambda: len(stage.kills) >= 3, "three kills")
    assert moment <= stage.kills[0][0] < moment + 2
    assert stage.kills[0][1:] == (77, "ab")


def test_renewal_moves_the_last_moment(stage: Stage) -> None:
    """It wakes nobody; the timer finds the newer deadline."""
    hold(stage, 0.2)
    later = clock.now() + 0.6
    stage.watchdog.renewed(1, later + 0.5)
    stage.watchdog.renewed(2, later + 100)  # of another acquisition
    wait_for(lambda: stage.kills, "a kill")
    assert stage.kills[0][0] >= later


def test_loss_brings_the_last_moment_to_kill_after(stage: Stage) -> None:
    """And tells the supervisor, once."""
    hold(stage, 60)
    lost_at = clock.now()
    stage.watchdog.lost(1, "gone")
    stage.watchdog.lost(1, "gone")
    stage.watchdog.lost(2, "another")
    wait_for(lambda: stage.kills, "a kill")
    assert lost_at + 0.3 <= stage.kills[0][0] < lost_at + 3
    assert [m for m in stage.heard() if isinstance(m, Lost)] == [Lost(1, "gone")]


def test_empty_tree_and_free_hook_are_left_alone(stage: Stage) -> None:
    """Told that the tree is empty, or that what runs holds nothing."""
    hold(stage, 0.05)
    stage.link.send(Ended())
    hold(stage, 0.05, bound=False)
    done = threading.Event()
    threading.Timer(0.4, done.set).start()
    done.wait()
    assert stage.kills == []


@pytest.mark.parametrize("bound", [True, False])
def test_dead_supervisor_means_kill_until_nothing_is_seen_alive(stage: Stage, bound: bool) -> None:
    """Only then does the warden return, for the lease to be given back."""
    hold(stage, 60, bound=bound)
    stage.alive = [Stat(2**22 + 1, "S", 1, 1, 1, 1)]
    stage.link.close()
    wait_for(lambda: len(stage.kills) > 5, "kills")
    assert stage.thread.is_alive()
    stage.alive = []
    stage.thread.join(5)
    assert not stage.thread.is_alive()


def test_renewals_are_not_wanted_for_a_hold_under_which_nothing_runs(stage: Stage) -> None:
    """A supervisor stopped at the wrong moment must not keep the office for nothing."""
    wants = stage.watchdog.wants_renewals
    assert wants(1)  # in the queue
    stage.watchdog.acquired(1, DeadlineRule(2.0, 0.3), clock.now() + 2)  # 2 - 0.2 - 0.3 s to start something
    assert wants(1)
    wait_for(lambda: not wants(1), "no renewal for nothing")
    stage.link.send(Running(77, "ab", [1], 0.3))
    wait_for(lambda: wants(1), "a renewal for what runs")
    wait_for(lambda: stage.kills, "a kill: the deadline has passed")
    wait_for(lambda: not wants(1), "no renewal for what was killed")
    stage.link.send(Ended())
    wait_for(lambda: wants(1), "time for the next")


def test_commands_are_delivered_and_messages_sent(stage: Stage) -> None:
    """In order, while a reader that does not read blocks nothing."""
    stage.link.send(Acquire(1))
    stage.link.send(Release())
    wait_for(lambda: stage.delivered[:2] == [Acquire(1), Release()], "the commands")
    for i in range(3000):
        stage.watchdog.send(Note("info", "n", {"i": i}))
    hold(stage, 0.1)
    wait_for(lambda: stage.kills, "a kill, although nobody reads")
    got: list[Message] = []

    def all_there() -> bool:
        got.extend(m for m in stage.heard() if isinstance(m, Note))
        return len(got) == 3000

    wait_for(all_there, "all notes")
    assert [m.text["i"] for m in got if isinstance(m, Note)] == list(range(3000))


def test_runs_are_killed_each_by_its_own_last_moment(stage: Stage) -> None:
    """Of several under several holds: the earlier of two, and what holds nothing not at all."""
    now = clock.now()
    stage.watchdog.acquired(1, DeadlineRule(10.0, 0.3), now + 0.5 + 0.2)
    stage.watchdog.acquired(2, DeadlineRule(10.0, 0.3), now + 0.5 + 60, run="b")
    stage.link.send(Running(71, "ta", [2], 0.3, "a"))
    stage.link.send(Running(72, "tb", [1, 2], 0.3, "b"))
    stage.link.send(Running(73, "tc", [], 0.3, "c"))
    wait_for(lambda: len(stage.kills) >= 3, "kills")
    assert {pid for _, pid, _ in stage.kills} == {72}
    assert stage.kills[0][0] >= now + 0.2
    stage.link.send(Ended("b"))
    lost_at = clock.now()
    stage.watchdog.lost(2, "gone")
    wait_for(lambda: any(pid == 71 for _, pid, _ in stage.kills), "the kill of the other")
    assert next(at for at, pid, _ in stage.kills if pid == 71) >= lost_at + 0.3
    assert all(pid != 73 for _, pid, _ in stage.kills)


def test_end_of_one_run_is_ordered_and_enforced(stage: Stage) -> None:
    """The supervisor is told; should it not act, the run is killed after kill-after, and no other."""
    stage.link.send(Running(71, "ta", [], 0.3, "a"))
    stage.link.send(Running(72, "tb", [], 0.3, "b"))
    wait_for(lambda: len(stage.delivered) == 2, "both known")
    ended_at = clock.now()
    stage.watchdog.end("a", "the run key is gone")
    wait_for(lambda: stage.heard() == [Kill("a", "the run key is gone")], "the order")
    wait_for(lambda: len(stage.kills) >= 2, "kills")
    assert stage.kills[0][0] >= ended_at + 0.3
    assert {pid for _, pid, _ in stage.kills} == {71}


def test_hold_that_was_given_back_under_a_run(stage: Stage) -> None:
    """A defect, and killing at once the safe side."""
    stage.watchdog.acquired(1, DeadlineRule(10.0, 0.3), clock.now() + 60)
    stage.link.send(Running(71, "ta", [1], 0.3, "a"))
    wait_for(lambda: stage.delivered, "known")
    stage.watchdog.forget(1)
    stage.link.send(Acquire(9))  # wakes it
    wait_for(lambda: stage.kills, "a kill")
