"""Our registration: kept for as long as the daemon lives, lost, taken by a namesake, given back."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from conch.core.daemon_loop import HOLDS
from conch.cron.node import Node, NodeState
from conch.cron.registrar import NameTaken, Registered
from conch.cron.ticks import Registration
from conch.errors import IllegalTransition
from tests.support.parts import World, lost_reply
from tests.support.virtual_loop import Log, VirtualLoop


class Registrar:
    """Answers each registration with the next of a script (a registration by default)."""

    origin = "here"

    def __init__(self, bed: "Bed", script: list[Any]) -> None:
        self.bed = bed
        self.script = script
        self.tried: list[tuple[float, int, bool, bool]] = []
        self.refreshed: list[tuple[float, int, bool, bool]] = []
        self.lost: dict[int, Any] = {}
        self.fails = False

    def register(self, number: int, now: float, lost: Any, *, draining: bool, off: bool, timeout_s: float) -> Any:
        self.tried.append((round(self.bed.now(), 1), number, draining, off))
        self.lost[number] = lost
        answer = self.script.pop(0) if self.script else None
        if callable(answer):
            answer = answer(number)
        if isinstance(answer, Exception):
            raise answer
        return registered(number, self.bed.stopped) if answer is None else answer

    def refresh(self, registration: Registration, now: float, *, draining: bool, off: bool, timeout_s: float) -> None:
        if self.fails:
            raise lost_reply()
        self.refreshed.append((round(self.bed.now(), 1), registration.number, draining, off))


def registered(number: int, stopped: list[int]) -> Registered:
    session: Any = SimpleNamespace(stop=lambda: stopped.append(number))
    return Registered(Registration(number, 100 + number, 10 * number), session)


class Bed(World):
    """A node whose registrar is scripted."""

    def __init__(self, loop: VirtualLoop, log: Log, *script: Any) -> None:
        super().__init__(loop, log)
        self.flags = (False, False)
        self.needed: set[int | None] = set()
        self.slots: list[int] = []
        self.stopped: list[int] = []
        self.revoked: list[int] = []
        self.claimable: list[float] = []
        self.revoke_fails = False
        self.registrar = Registrar(self, list(script))
        registrar: Any = self.registrar
        self.node = Node(
            *(registrar, self.supervisor, self.tasks, self.workers, self.writes, self.faults, log),
            own_time=loop.wall,
            flags=lambda: self.flags,
            needed=lambda: self.needed,
            slots=lambda: self.slots,
            registered=lambda: self.claimable.append(round(self.now(), 1)),
            host="a",
            contain="cgroup",
            ttl_s=10,
            timeout_s=5.0,
            revoke=self._revoke,
        )
        self.writes.connect(probers=(lambda: self.node.publish(probe=True),), resumed=(self.node.publish,))

    def _revoke(self, lease: int) -> None:
        if self.revoke_fails:
            raise lost_reply()
        self.revoked.append(lease)

    def start(self, seconds: float = 1.0) -> "Bed":
        self.tasks.spawn(self.node.keep_registered())
        self.go(seconds)
        return self

    def go(self, seconds: float) -> None:
        self.loop.run(asyncio.sleep(seconds))
        self.check()

    def lose(self, number: int = 1) -> None:
        self.registrar.lost[number]("etcd does not confirm it")


# -- states ---------------------------------------------------------------------------------------------------

ALLOWED = {
    (NodeState.UNREGISTERED, NodeState.REGISTERING),
    (NodeState.UNREGISTERED, NodeState.RELEASED),
    (NodeState.REGISTERING, NodeState.UNREGISTERED),
    (NodeState.REGISTERING, NodeState.REGISTERED),
    (NodeState.REGISTERING, NodeState.RELEASED),
    (NodeState.REGISTERED, NodeState.UNREGISTERED),
    (NodeState.REGISTERED, NodeState.RELEASED),
}


@pytest.mark.parametrize("before", NodeState)
@pytest.mark.parametrize("after", NodeState)
def test_transitions(loop: VirtualLoop, log: Log, before: NodeState, after: NodeState) -> None:
    node = Bed(loop, log).node
    node.state = before
    if (before, after) in ALLOWED:
        node._enter(after)
        assert node.state is after
    else:
        with pytest.raises(IllegalTransition):
            node._enter(after)
        assert node.state is before


# -- registering ----------------------------------------------------------------------------------------------


def test_it_registers_once(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log).start(50.0)
    assert bed.registrar.tried == [(0.0, 1, False, False)]
    assert bed.node.state is NodeState.REGISTERED
    assert bed.node.registration == Registration(1, 101, 10)
    assert bed.node.leases == [101]
    assert bed.claimable == [0.0]
    assert log.events("registered") == [{"host": "a", "lease": "65", "rev": 10, "contain": "cgroup"}]


def test_it_says_how_we_are(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log)
    bed.flags = (True, True)
    bed.start()
    assert bed.registrar.tried == [(0.0, 1, True, True)]


def test_etcd_does_not_answer(loop: VirtualLoop, log: Log) -> None:
    """It is tried again every two seconds; one fault, which is over then."""
    bed = Bed(loop, log, lost_reply(), lost_reply()).start(10.0)
    assert [at for at, *_ in bed.registrar.tried] == [0.0, 2.0, 4.0]
    assert len(log.events("not-registered")) == 1
    assert [over["fault"] for over in log.events("fault-over")] == ["not-registered"]
    assert not bed.writes.is_open


@pytest.mark.parametrize("gone_s", [None, 1.0])
def test_namesake(loop: VirtualLoop, log: Log, gone_s: float | None) -> None:
    """A copy of this machine perhaps. It is tried again after half a TTL, or as soon as its key has gone."""
    bed = Bed(loop, log, NameTaken("elsewhere"))
    if gone_s is not None:
        loop.at(gone_s, bed.node.on_key_gone)
    bed.start(8.0)
    assert [at for at, *_ in bed.registrar.tried] == [0.0, 5.0 if gone_s is None else gone_s]
    (fault,) = log.events("name-taken")
    assert (fault["by"], fault["here"]) == ("elsewhere", "here")
    assert bed.node.state is NodeState.REGISTERED


def test_namesake_in_an_etcd_that_takes_writes_again(loop: VirtualLoop, log: Log) -> None:
    """The answer that the name is taken is an answer."""
    bed = Bed(loop, log, lost_reply(), NameTaken("elsewhere")).start(3.0)
    assert not bed.writes.is_open


# -- losing it ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("needed", [False, True])
def test_lost_registration(loop: VirtualLoop, log: Log, needed: bool) -> None:
    """It registers at once; the old lease is revoked when nothing runs under it any more."""
    bed = Bed(loop, log).start()
    bed.needed = {1} if needed else set()
    bed.lose()
    assert bed.supervisor.lost_holds == [(1, "etcd does not confirm it")]  # in the session's own thread
    bed.go(1.0)
    assert bed.node.registration == Registration(2, 102, 20)
    assert bed.stopped == [1]
    assert log.events("registration-lost") == [{"reason": "etcd does not confirm it"}]
    assert bed.node.leases == ([101, 102] if needed else [102])
    assert bed.revoked == ([] if needed else [101])
    bed.needed = set()
    bed.node.revoke_unneeded()
    bed.node.revoke_unneeded()
    bed.go(1.0)
    assert bed.revoked == [101]
    assert bed.supervisor.forgotten == [1]
    assert bed.claimable == [0.0, 1.0]


def test_registration_that_is_lost_before_we_have_it(loop: VirtualLoop, log: Log) -> None:
    """The session's thread was faster than the answer: it is never used, its lease is revoked, and another made."""
    bed = Bed(loop, log)

    def lose_early(number: int) -> Registered:
        bed.lose(number)
        bed.node._lose(number, "early")  # its call is handled before the answer
        return registered(number, bed.stopped)

    bed.registrar.script = [lose_early]
    bed.start()
    assert [number for _, number, *_ in bed.registrar.tried] == [1, 2]
    assert bed.claimable == [0.0]
    assert bed.node.registration == Registration(2, 102, 20)
    assert bed.revoked == [101]


def test_late_loss_of_an_older_registration(loop: VirtualLoop, log: Log) -> None:
    """It says nothing about ours."""
    bed = Bed(loop, log).start()
    bed.lose()
    bed.go(1.0)
    bed.lose(1)
    bed.go(1.0)
    assert bed.node.registration == Registration(2, 102, 20)
    assert len(log.events("registration-lost")) == 1


def test_lease_that_cannot_be_revoked(loop: VirtualLoop, log: Log) -> None:
    """It expires by itself."""
    bed = Bed(loop, log).start()
    bed.revoke_fails = True
    bed.lose()
    bed.go(1.0)
    assert bed.node.leases == [102]


# -- the end --------------------------------------------------------------------------------------------------


def test_release(loop: VirtualLoop, log: Log) -> None:
    """Whoever gives the lease back gets the registration; it is not made again."""
    bed = Bed(loop, log).start()
    given = bed.node.release()
    assert given is not None
    assert given.registration == Registration(1, 101, 10)
    assert (bed.node.registration, bed.node.leases, bed.node.publish()) == (None, [], False)
    bed.lose()
    bed.go(100.0)
    assert len(bed.registrar.tried) == 1
    assert bed.node.state is NodeState.RELEASED
    with pytest.raises(IllegalTransition):
        bed.node.release()


def test_registration_that_is_lost_at_the_end(loop: VirtualLoop, log: Log) -> None:
    """It is not made again, while results are still being recorded."""
    bed = Bed(loop, log).start()
    bed.node.stop_registering()
    bed.lose()
    bed.go(100.0)
    assert len(bed.registrar.tried) == 1
    assert bed.node.release() is None


@pytest.mark.parametrize("outcome", [None, lost_reply(), NameTaken("elsewhere")])
def test_released_while_it_registers(loop: VirtualLoop, log: Log, outcome: Any) -> None:
    """A registration that is made all the same is revoked."""
    bed = Bed(loop, log, outcome)
    loop.at(0.0005, bed.node.release)
    bed.start(50.0)
    assert len(bed.registrar.tried) == 1
    assert bed.claimable == []
    assert bed.revoked == ([101] if outcome is None else [])
    assert bed.node.state is NodeState.RELEASED


def test_released_in_a_pause(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log, lost_reply())
    loop.at(0.5, bed.node.release)
    bed.start(50.0)
    assert len(bed.registrar.tried) == 1


# -- numbers --------------------------------------------------------------------------------------------------


def test_numbers_of_holds(loop: VirtualLoop, log: Log) -> None:
    """Each has its own place in the page of deadlines: of ours, of lost registrations in use, and of slots."""
    bed = Bed(loop, log).start()
    bed.needed = {1}
    bed.lose()
    bed.go(1.0)  # 1 is old, 2 is ours
    bed.slots = [3 + HOLDS, 5]
    assert [bed.node.new_number() for _ in range(2)] == [4, 6]
    numbers = [bed.node.new_number() for _ in range(2 * HOLDS)]
    assert {number % HOLDS for number in numbers}.isdisjoint({1, 2, 3, 5})
    assert len(set(numbers)) == len(numbers)


# -- what our registration says -------------------------------------------------------------------------------


def test_time_is_published_every_minute(loop: VirtualLoop, log: Log) -> None:
    """Once a minute, also after a registration that was lost."""
    bed = Bed(loop, log).start(30.0)
    bed.lose()
    bed.go(170.0)
    assert [(at, number) for at, number, *_ in bed.registrar.refreshed] == [(90.0, 2), (150.0, 2)]


def test_publish(loop: VirtualLoop, log: Log) -> None:
    """With the flags as they are now; without a registration there is nothing to write."""
    bed = Bed(loop, log)
    assert not bed.node.publish()
    bed.start()
    bed.flags = (True, False)
    assert bed.node.publish()
    assert bed.node.published_at == loop.seconds
    bed.go(1.0)
    assert bed.registrar.refreshed == [(1.0, 1, True, False)]


def test_hosts_that_ask_together_are_answered_together(loop: VirtualLoop, log: Log) -> None:
    """The first is answered immediately; all who ask within the second after that get one answer, after they asked."""
    bed = Bed(loop, log).start(10.0)
    asked = [bed.now()]
    bed.node.answer()
    for _ in range(50):
        bed.go(0.01)
        bed.node.answer()
        asked.append(bed.now())
    bed.go(5.0)
    answered = [at for at, *_ in bed.registrar.refreshed]
    assert answered == [round(asked[0], 1), round(asked[0] + 1.0, 1)]
    assert answered[-1] > asked[-1]
    bed.node.answer()
    bed.go(0.1)
    assert len(bed.registrar.refreshed) == 3


def test_publish_while_etcd_takes_no_writes(loop: VirtualLoop, log: Log) -> None:
    """Only as a probe, which finds out that it takes them again; then it is published for good."""
    bed = Bed(loop, log).start()
    bed.registrar.fails = True
    bed.node.publish()
    bed.go(1.0)
    assert bed.writes.is_open
    bed.node.publish()
    bed.go(1.0)
    assert bed.registrar.refreshed == []
    bed.registrar.fails = False
    bed.go(4.0)
    assert not bed.writes.is_open
    assert len(bed.registrar.refreshed) == 2  # the probe, and what was held up
    assert len(log.events("refresh-failed")) == 1


def test_registration_that_is_lost_while_it_is_published(loop: VirtualLoop, log: Log) -> None:
    """What is written is about the registration that it was for."""
    bed = Bed(loop, log).start()
    bed.node.publish()
    bed.lose()
    bed.go(1.0)
    assert [number for _, number, *_ in bed.registrar.refreshed] == [1]


def test_session_that_is_lost_after_the_loop_has_ended(loop: VirtualLoop, log: Log) -> None:
    """Its thread goes on for a moment, and nobody waits for it any more."""
    bed = Bed(loop, log).start()
    loop.close()
    bed.lose()
    assert bed.supervisor.lost_holds
