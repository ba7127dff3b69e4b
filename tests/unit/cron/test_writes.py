"""The circuit breaker for writes: what waits while etcd takes none, which probe is sent, and when a fault is over."""

import asyncio
from itertools import pairwise
from typing import Any

import pytest

from conch.cron.writes import RETRY_EVERY_S, ProbeQueue, Unsent, WriteKind, Writes, was_refused
from conch.etcd.store import StoreError, Unreachable
from tests.support.parts import World, lost_reply, refusal
from tests.support.virtual_loop import Log, VirtualLoop


class Bed(World):
    def __init__(self, loop: VirtualLoop, log: Log) -> None:
        super().__init__(loop, log)
        self.probed: list[tuple[float, str]] = []
        self.resumed: list[float] = []
        self.has: set[str] = {"a", "b", "c"}
        self.writes.connect(
            probers=[lambda kind=kind: self._probe(kind) for kind in "abc"],  # type: ignore[misc]
            resumed=[lambda: self.resumed.append(self.now())],
        )

    def _probe(self, kind: str) -> bool:
        if kind not in self.has:
            return False
        self.probed.append((self.now(), kind))
        return True

    def go(self, seconds: float) -> None:
        self.loop.run(asyncio.sleep(seconds))
        self.check()


def failing(error: Exception) -> Any:
    def call() -> None:
        raise error

    return call


# -- sending --------------------------------------------------------------------------------------------------


def test_send(loop: VirtualLoop, log: Log) -> None:
    """The result of the call; what it raises goes to whoever sends, who reports it."""
    bed = Bed(loop, log)
    assert loop.run(bed.writes.send(lambda: 42)) == 42
    with pytest.raises(Unreachable):
        loop.run(bed.writes.send(failing(lost_reply())))
    assert not bed.writes.is_open
    assert log.lines == []


@pytest.mark.parametrize("probe", [False, True])
def test_only_a_probe_is_sent_while_the_breaker_is_open(loop: VirtualLoop, log: Log, probe: bool) -> None:
    """One that is made closes the breaker, and everything else goes on."""
    bed = Bed(loop, log)
    bed.writes.failed("claim-failed", lost_reply())
    sent: list[int] = []
    if probe:
        loop.run(bed.writes.send(lambda: sent.append(1), probe=True))
        assert (sent, bed.writes.is_open) == ([1], False)
        bed.go(0.01)
        assert len(bed.resumed) == 1
    else:
        with pytest.raises(Unsent):
            loop.run(bed.writes.send(lambda: sent.append(1)))
        assert (sent, bed.writes.is_open) == ([], True)


@pytest.mark.parametrize("probe", [False, True])
def test_breaker_that_opens_while_a_write_queues_for_a_worker(loop: VirtualLoop, log: Log, probe: bool) -> None:
    bed = Bed(loop, log)
    loop.at(0.0005, lambda: bed.writes.failed("claim-failed", lost_reply()))
    if probe:
        assert loop.run(bed.writes.send(lambda: 1, probe=True)) == 1
    else:
        with pytest.raises(Unsent):
            loop.run(bed.writes.send(lambda: 1))


def test_call_that_sends_nothing_says_nothing_about_etcd(loop: VirtualLoop, log: Log) -> None:
    """A call that raises `Unsent` itself, as for want of time, does not close the breaker."""
    bed = Bed(loop, log)
    bed.writes.failed("claim-failed", lost_reply())
    with pytest.raises(Unsent):
        loop.run(bed.writes.send(failing(Unsent()), probe=True))
    assert bed.writes.is_open
    assert bed.resumed == []


# -- probes ---------------------------------------------------------------------------------------------------


def test_probes_take_the_kinds_in_rotation(loop: VirtualLoop, log: Log) -> None:
    """Each has its turn, so a kind that is refused for itself does not keep the others from being tried."""
    bed = Bed(loop, log)
    bed.writes.failed("claim-failed", lost_reply())
    bed.go(30.0)
    kinds = [kind for _, kind in bed.probed]
    assert kinds[:6] == ["b", "c", "a", "b", "c", "a"]
    times = [at for at, _ in bed.probed]
    pauses = [b - a for a, b in pairwise(times)]
    assert 0.05 <= times[0] <= 0.1
    assert max(pauses) <= 3.0
    assert min(pauses[-4:]) >= 1.5


def test_kind_without_a_write_gives_its_turn_to_the_next(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log)
    bed.has = {"a"}
    bed.writes.failed("claim-failed", lost_reply())
    bed.go(2.0)
    assert {kind for _, kind in bed.probed} == {"a"}
    bed.has = set()
    bed.go(10.0)  # there is nothing to be sent
    assert bed.writes.is_open


def test_one_row_of_probes_for_all_failures(loop: VirtualLoop, log: Log) -> None:
    """Failures of many writes do not send more probes; after a recovery the next fault has its own row."""
    bed = Bed(loop, log)
    for _ in range(20):
        bed.writes.failed("claim-failed", lost_reply())
    bed.go(1.0)
    assert len(bed.probed) <= 6
    bed.writes.on_success()
    bed.go(5.0)
    assert len(bed.probed) <= 6
    assert len(bed.resumed) == 1
    before = len(bed.probed)
    bed.writes.failed("claim-failed", lost_reply())
    bed.go(0.1)
    assert len(bed.probed) == before + 1  # the pause is short again


def test_write_that_is_made_without_a_fault_resumes_nothing(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log)
    bed.writes.on_success()
    bed.go(1.0)
    assert bed.resumed == []


def test_recovery_and_fault_in_one_pause(loop: VirtualLoop, log: Log) -> None:
    """The probe that was planned before the recovery is not sent in the new fault."""
    bed = Bed(loop, log)
    bed.writes.failed("claim-failed", lost_reply())
    bed.writes.on_success()
    bed.writes.failed("claim-failed", lost_reply())
    bed.go(0.11)
    assert len(bed.probed) == 1


# -- faults ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("times", "quiet_s", "made", "reason"),
    [
        (1, 0.0, False, "no endpoint answered"),
        (1, 0.0, True, ""),
        (3, 0.0, True, "no endpoint answered"),
        (3, 14.0, True, "no endpoint answered"),
        (3, 16.0, True, ""),
    ],
)
def test_reason(loop: VirtualLoop, log: Log, times: int, quiet_s: float, made: bool, reason: str) -> None:
    """Why etcd takes no writes; or why it refuses a kind of them again and again while it takes others."""
    bed = Bed(loop, log)
    bed.has = set()
    for _ in range(times):
        bed.writes.failed(WriteKind.RESULT.value, lost_reply())
        if made:
            bed.writes.on_success()
    bed.go(quiet_s)
    assert bed.writes.reason == reason


def test_other_faults_are_no_kind_of_write(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log)
    for _ in range(5):
        bed.writes.failed("not-registered", lost_reply())
        bed.writes.on_success()
    assert bed.writes.reason == ""


def test_fault_is_over_when_it_has_not_happened_for_a_while(loop: VirtualLoop, log: Log) -> None:
    """Not at the first write that is made: some may be refused for ever while others are made."""
    bed = Bed(loop, log)
    for at in (0.0, 10.0, 20.0):
        loop.at(at, lambda: bed.writes.failed(WriteKind.CLAIM.value, refusal()))
        loop.at(at + 0.01, bed.writes.on_success)
    bed.go(30.0)
    assert log.events("fault-over") == []
    bed.go(60.0)
    (over,) = log.events("fault-over")
    assert (over["fault"], over["times"]) == ("claim-failed", 3)
    bed.go(600.0)
    assert len(log.events("fault-over")) == 1


def test_fault_lasts_while_the_breaker_is_open(loop: VirtualLoop, log: Log) -> None:
    bed = Bed(loop, log)
    bed.writes.failed(WriteKind.CLAIM.value, refusal())
    bed.writes.failed(WriteKind.CLAIM.value, refusal())
    bed.writes.on_success()
    bed.writes.failed(WriteKind.RESULT.value, refusal())
    bed.go(100.0)
    assert log.events("fault-over") == []
    bed.writes.on_success()
    bed.go(100.0)
    assert [over["fault"] for over in log.events("fault-over")] == ["claim-failed"]


# -- refusals -------------------------------------------------------------------------------------------------


def test_refused_writes_take_turns(loop: VirtualLoop, log: Log) -> None:
    """One at a time of its kind, until one is made."""
    bed = Bed(loop, log)
    assert bed.writes.may_retry(WriteKind.CLAIM)
    assert not bed.writes.may_retry(WriteKind.CLAIM)
    assert bed.writes.may_retry(WriteKind.RESULT)
    bed.go(RETRY_EVERY_S - 0.1)
    assert not bed.writes.may_retry(WriteKind.CLAIM)
    bed.go(0.2)
    assert bed.writes.may_retry(WriteKind.CLAIM)
    bed.writes.retry_made(WriteKind.CLAIM)
    assert bed.writes.may_retry(WriteKind.CLAIM)
    bed.writes.retry_made(WriteKind.REFRESH)  # nothing of it was refused


@pytest.mark.parametrize(
    ("error", "unclear", "refused"),
    [
        (StoreError("denied"), False, True),
        (StoreError("lost"), True, False),
        (Unreachable("away"), False, False),
        (Unreachable("away"), True, False),
    ],
)
def test_was_refused(error: StoreError, unclear: bool, refused: bool) -> None:
    """Etcd answered, and made nothing."""
    error.unclear = unclear
    assert was_refused(error) == refused


# -- those that wait ------------------------------------------------------------------------------------------


def test_probe_queue(loop: VirtualLoop) -> None:
    """A probe wakes the one that waits longest, a recovery all; one that is gone is passed over."""
    waiting, woken = ProbeQueue(), []

    async def wait(name: str) -> None:
        woken.append((name, await waiting.wait()))

    async def go() -> None:
        assert not waiting.probe()
        tasks = [asyncio.ensure_future(wait(name)) for name in "abcd"]
        await asyncio.sleep(0)
        tasks[0].cancel()
        await asyncio.sleep(0)
        assert waiting.probe()
        await asyncio.sleep(0)
        assert woken == [("b", True)]
        waiting.resume()
        waiting.resume()
        assert not waiting.probe()
        await asyncio.sleep(0)
        assert woken == [("b", True), ("c", False), ("d", False)]

    loop.run(go())


def test_writes_without_parts(loop: VirtualLoop, log: Log) -> None:
    """Before they are connected nothing is sent, and nothing breaks."""
    bed = World(loop, log)
    writes = Writes(bed.tasks, bed.workers, bed.faults)
    writes.failed("claim-failed", lost_reply())
    loop.run(asyncio.sleep(1.0))
    writes.on_success()
    loop.run(asyncio.sleep(1.0))
    bed.check()
