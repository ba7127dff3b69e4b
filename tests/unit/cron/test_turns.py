"""Waiting for our turn at a tick: whoever is before us in line gets the tick, as long as it claims ticks."""

import json

import pytest

from conch.cron.fleet import TURN_S, Fleet, before
from conch.cron.ticks import PendingTick
from conch.cron.turns import Turns
from conch.etcd.store import KeyValue
from tests.support.parts import World, job
from tests.support.virtual_loop import Log, VirtualLoop

EPOCH = int(VirtualLoop.EPOCH)


def in_line(*hosts: str) -> int:
    """Return a tick at which these hosts have this order."""
    line = [host.encode() for host in hosts]
    return next(
        tick
        for tick in range(EPOCH, EPOCH + 1000)
        if all(len(before(host, line, "j", tick)) == place for place, host in enumerate(line))
    )


class Bed(World):
    """Host `a`, and the line for one tick; the wall clock shows its second at the beginning."""

    def __init__(self, loop: VirtualLoop, log: Log, *hosts: str, deadline_s: float = 30.0) -> None:
        super().__init__(loop, log)
        self.fleet = Fleet("a", self.clock, log)
        for host in hosts:
            self.fleet.add(host, KeyValue(b"/node", json.dumps({"host": host}).encode(), 1, 1, 1))
        at = in_line(*hosts)
        self.tick = PendingTick(job(), 5, at, at + deadline_s, "mine")
        self.pending = 3000
        self.turns = Turns(
            self.fleet,
            wall_clock=lambda: at + self.now(),
            pending=lambda: self.pending,
            draining=lambda: self.draining,
        )

    def claims(self, host: str, until_s: float) -> None:
        """Have a host claim a tick three times a second."""
        for number in range(int(until_s * 3) + 1):
            self.loop.at(number / 3, lambda: self.fleet.on_claim(host))

    def wait(self) -> float:
        """Wait for the turn; when it came."""
        self.loop.run(self.turns.wait(self.tick))
        return self.now()


def test_first_in_line_waits_for_nobody(loop: VirtualLoop, log: Log) -> None:
    """Whoever claims meanwhile, we too."""
    bed = Bed(loop, log, "a", "b")
    bed.fleet.on_claim("b")
    assert bed.wait() == 0.0


@pytest.mark.parametrize("hosts", [("b", "a", "c"), ("b", "c", "a")])
def test_dead_favourite_costs_its_turn_only(loop: VirtualLoop, log: Log, hosts: tuple[str, ...]) -> None:
    """A host that claims nothing is not waited for any longer."""
    bed = Bed(loop, log, *hosts)
    assert bed.wait() == pytest.approx(hosts.index("a") * TURN_S, abs=0.01)


def test_host_before_us_that_claims_is_given_time(loop: VirtualLoop, log: Log) -> None:
    """It has more ticks to claim than a turn is long; when it has stopped claiming, the tick is ours."""
    bed = Bed(loop, log, "b", "a")
    bed.claims("b", 4.0)
    assert 4.0 < bed.wait() < 5.0


def test_while_we_claim_ours_others_are_given_time(loop: VirtualLoop, log: Log) -> None:
    """One machine whose processors are busy delays all daemons on it."""
    bed = Bed(loop, log, "b", "a")
    ours = PendingTick(job(), 5, in_line("a", "b"), EPOCH + 30.0, "ours")
    bed.loop.run(bed.turns.wait(ours))
    bed.loop.at(3.0, lambda: bed.turns.settle(ours))
    assert 3.0 <= bed.wait() < 3.5


def test_few_ticks_need_little_time(loop: VirtualLoop, log: Log) -> None:
    """A host may claim others all the time and leave this one, as with a role that forbids it."""
    bed = Bed(loop, log, "b", "a")
    bed.pending = 5
    bed.claims("b", 20.0)
    assert bed.wait() == pytest.approx(TURN_S + 0.05, abs=0.01)


def test_wait_is_at_most_half_of_the_time_in_which_it_can_be_claimed(loop: VirtualLoop, log: Log) -> None:
    """Else a tick that the favourite does not claim would be lost."""
    bed = Bed(loop, log, "b", "a", deadline_s=8.0)
    bed.claims("b", 20.0)
    assert bed.wait() == pytest.approx(4.0, abs=TURN_S + 0.01)


def test_hosts_behind_us_are_not_waited_for(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log, "b", "a", "c")
    bed.claims("c", 10.0)
    assert bed.wait() == pytest.approx(TURN_S, abs=0.01)


def test_host_that_has_gone_is_not_waited_for(loop: VirtualLoop, log: Log) -> None:
    """Nor is one that claims without being registered."""
    bed = Bed(loop, log, "b", "a")
    bed.claims("b", 20.0)
    bed.loop.at(1.0, lambda: bed.fleet.remove("b"))
    assert 1.0 <= bed.wait() < 1.0 + 2 * TURN_S


@pytest.mark.parametrize("how", ["cancelled", "draining"])
@pytest.mark.parametrize("after_s", [0.05, 2.0])
def test_wait_ends_when_the_tick_is_not_to_be_claimed(loop: VirtualLoop, log: Log, how: str, after_s: float) -> None:
    """In the turn and after it."""
    bed = Bed(loop, log, "b", "a")
    bed.claims("b", 20.0)

    def stop() -> None:
        if how == "cancelled":
            bed.tick.cancel()
        else:
            bed.draining = True
            bed.tick.alarm.ring()

    bed.loop.at(after_s, stop)
    assert bed.wait() == pytest.approx(after_s, abs=0.01)
