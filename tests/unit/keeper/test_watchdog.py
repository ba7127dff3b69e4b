"""The watchdog enforces the deadline without etcd and without the supervisor's help."""

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


class Bench:
    """A watchdog in a thread, the supervisor's end of the channel, and a record of the kills."""

    def __init__(self, kill_after_s: float = 5.0) -> None:
        self.channel, self.theirs = pair()
        self.kills: list[tuple[float, int, str]] = []
        self.alive: list[Stat] = []
        self.delivered: list[Message] = []
        self.kill_after_s = kill_after_s
        self.watchdog = Watchdog(self.theirs, self.kill)
        self.thread = threading.Thread(target=self.watchdog.run, args=(self.delivered.append,), daemon=True)
        self.thread.start()

    def kill(self, targets: Sequence[Target]) -> list[list[Stat]]:
        self.kills += [(clock.now(), target.pid, target.run_id) for target in targets]
        return [self.alive for _ in targets]

    def received(self) -> list[Message]:
        return self.channel.drain()


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench(kill_after_s=0.3)
    yield bench
    bench.alive = []
    bench.channel.close()
    bench.thread.join(5)
    assert not bench.thread.is_alive()
    bench.theirs.close()


def hold(bench: Bench, left_s: float, *, ttl_s: float = 10.0, bound: bool = True) -> float:
    """A hold with so much time left until deadline - margin, over a running tree."""
    moment = clock.now() + left_s
    bench.watchdog.acquired(1, DeadlineRule(ttl_s, bench.kill_after_s), moment + max(0.2, ttl_s / 20))
    bench.channel.send(Running(77, "ab", [1] if bound else [], bench.kill_after_s))
    return moment


def test_tree_is_killed_at_the_last_moment_and_not_before(bench: Bench) -> None:
    """By the deadline alone: nobody tells it to. And again, while nobody says that it is empty."""
    moment = hold(bench, 0.2)
    wait_for(lambda: len(bench.kills) >= 3, "three kills")
    assert moment <= bench.kills[0][0] < moment + 2
    assert bench.kills[0][1:] == (77, "ab")


def test_renewal_moves_the_last_moment(bench: Bench) -> None:
    """It wakes nobody; the timer finds the newer deadline."""
    hold(bench, 0.2)
    later = clock.now() + 0.6
    bench.watchdog.renewed(1, later + 0.5)
    bench.watchdog.renewed(2, later + 100)  # of another acquisition
    wait_for(lambda: bench.kills, "a kill")
    assert bench.kills[0][0] >= later


def test_loss_brings_the_last_moment_to_kill_after(bench: Bench) -> None:
    """And tells the supervisor, once; also of a hold whose deadline the watchdog has looked at already."""
    hold(bench, 60)
    for number in range(2):  # the second one is delivered after the first one's turn
        bench.channel.send(Ended(f"another {number}"))
        wait_for(lambda: Ended(f"another {number}") in bench.delivered, "the turn")  # noqa: B023 - called at once
    lost_at = clock.now()
    bench.watchdog.lost(1, "gone")
    bench.watchdog.lost(1, "gone")
    bench.watchdog.lost(2, "another")
    wait_for(lambda: bench.kills, "a kill")
    assert lost_at + 0.3 <= bench.kills[0][0] < lost_at + 3
    assert [m for m in bench.received() if isinstance(m, Lost)] == [Lost(1, "gone")]


def test_empty_tree_and_free_hook_are_left_alone(bench: Bench) -> None:
    """Told that the tree is empty, or that what runs holds nothing."""
    hold(bench, 0.05)
    bench.channel.send(Ended())
    hold(bench, 0.05, bound=False)
    done = threading.Event()
    threading.Timer(0.4, done.set).start()
    done.wait()
    assert bench.kills == []


@pytest.mark.parametrize("bound", [True, False])
def test_dead_supervisor_means_kill_until_nothing_is_seen_alive(bench: Bench, bound: bool) -> None:
    """Only then does the watchdog return, for the lease to be released."""
    hold(bench, 60, bound=bound)
    bench.alive = [Stat(2**22 + 1, "S", 1, 1, 1, 1)]
    bench.channel.close()
    wait_for(lambda: len(bench.kills) > 5, "kills")
    assert bench.thread.is_alive()
    bench.alive = []
    bench.thread.join(5)
    assert not bench.thread.is_alive()


def test_renewals_are_not_wanted_for_a_hold_under_which_nothing_runs(bench: Bench) -> None:
    """A supervisor stopped at the wrong moment must not keep the office for nothing."""
    wants = bench.watchdog.wants_renewals
    assert wants(1)  # in the queue
    bench.watchdog.acquired(1, DeadlineRule(2.0, 0.3), clock.now() + 2)  # 2 - 0.2 - 0.3 s to start something
    assert wants(1)
    wait_for(lambda: not wants(1), "no renewal for nothing")
    bench.channel.send(Running(77, "ab", [1], 0.3))
    wait_for(lambda: wants(1), "a renewal for what runs")
    wait_for(lambda: bench.kills, "a kill: the deadline has passed")
    wait_for(lambda: not wants(1), "no renewal for what was killed")
    bench.channel.send(Ended())
    wait_for(lambda: wants(1), "time for the next")


def test_commands_are_delivered_and_messages_sent(bench: Bench) -> None:
    """In order, while a reader that does not read blocks nothing."""
    bench.channel.send(Acquire(1))
    bench.channel.send(Release())
    wait_for(lambda: bench.delivered[:2] == [Acquire(1), Release()], "the commands")
    for i in range(3000):
        bench.watchdog.send(Note("info", "n", {"i": i}))
    hold(bench, 0.1)
    wait_for(lambda: bench.kills, "a kill, although nobody reads")
    got: list[Message] = []

    def all_there() -> bool:
        got.extend(m for m in bench.received() if isinstance(m, Note))
        return len(got) == 3000

    wait_for(all_there, "all notes")
    assert [m.text["i"] for m in got if isinstance(m, Note)] == list(range(3000))


def test_runs_are_killed_each_by_its_own_last_moment(bench: Bench) -> None:
    """Of several under several holds: the earlier of two, and what holds nothing not at all."""
    now = clock.now()
    bench.watchdog.acquired(1, DeadlineRule(10.0, 0.3), now + 0.5 + 0.2)
    bench.watchdog.acquired(2, DeadlineRule(10.0, 0.3), now + 0.5 + 60, run="b")
    bench.channel.send(Running(71, "ta", [2], 0.3, "a"))
    bench.channel.send(Running(72, "tb", [1, 2], 0.3, "b"))
    bench.channel.send(Running(73, "tc", [], 0.3, "c"))
    wait_for(lambda: len(bench.kills) >= 3, "kills")
    assert {pid for _, pid, _ in bench.kills} == {72}
    assert bench.kills[0][0] >= now + 0.2
    bench.channel.send(Ended("b"))
    lost_at = clock.now()
    bench.watchdog.lost(2, "gone")
    wait_for(lambda: any(pid == 71 for _, pid, _ in bench.kills), "the kill of the other")
    assert next(at for at, pid, _ in bench.kills if pid == 71) >= lost_at + 0.3
    assert all(pid != 73 for _, pid, _ in bench.kills)


def test_end_of_one_run_is_ordered_and_enforced(bench: Bench) -> None:
    """The supervisor is told; should it not act, the run is killed after kill-after, and no other."""
    bench.channel.send(Running(71, "ta", [], 0.3, "a"))
    bench.channel.send(Running(72, "tb", [], 0.3, "b"))
    wait_for(lambda: len(bench.delivered) == 2, "both known")
    ended_at = clock.now()
    bench.watchdog.end("a", "the run key is gone")
    wait_for(lambda: bench.received() == [Kill("a", "the run key is gone")], "the order")
    wait_for(lambda: len(bench.kills) >= 2, "kills")
    assert bench.kills[0][0] >= ended_at + 0.3
    assert {pid for _, pid, _ in bench.kills} == {71}


def test_hold_that_was_given_back_under_a_run(bench: Bench) -> None:
    """A defect, and killing at once the safe side."""
    bench.watchdog.acquired(1, DeadlineRule(10.0, 0.3), clock.now() + 60)
    bench.channel.send(Running(71, "ta", [1], 0.3, "a"))
    wait_for(lambda: bench.delivered, "known")
    bench.watchdog.drop_hold(1)
    bench.channel.send(Acquire(9))  # wakes it
    wait_for(lambda: bench.kills, "a kill")
