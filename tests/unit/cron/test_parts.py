"""Which part hears of what from which other, and whether a run could be started, and whether the daemon may end."""

import asyncio
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from conch.core.origin import Origin
from conch.cron import parts as parts_module
from conch.cron import semaphore_slot
from conch.cron.active_run import ActiveRun, RunState
from conch.cron.clock_check import ClockCheck
from conch.cron.closer import Closer
from conch.cron.fleet_clock import FleetClock
from conch.cron.inventory import Inventory
from conch.cron.node import Node
from conch.cron.parts import Parts
from conch.cron.planner import Planner
from conch.cron.registrar import Registered
from conch.cron.reload import Reload
from conch.cron.replacement import Replacement
from conch.cron.run_log import Entry
from conch.cron.runner import Runner
from conch.cron.sweeping import Sweeping
from conch.cron.ticks import Claim, PendingTick, Registration
from conch.cron.waiting_room import WaitingRoom
from conch.cron.watcher import Watcher
from conch.cron.writes import ProbeQueue
from conch.keys import Keys
from tests.support.parts import ME, TICK, RunLog, Supervisor, lost_reply, pending, tracked
from tests.support.virtual_loop import DirectWorkers, Log, VirtualLoop, tasks_of

MAX_RUNS = 2


class Port:
    """A scheduler, as its parts see it, and the parts."""

    def __init__(self, loop: VirtualLoop, log: Log) -> None:
        self.loop, self.log = loop, log
        self.tasks = tasks_of(loop)
        self.counts: Counter[tuple[str, str]] = Counter()
        self.pending: dict[tuple[str, int], PendingTick] = {}
        self.is_draining = self.is_releasing = False
        self.considered: list[tuple[str, int]] = []
        self.revoked: list[int] = []
        self.watchdog = Supervisor()
        self.spec: Any = SimpleNamespace(
            store=SimpleNamespace(moments=lambda revision: (None, None), revoke=self._revoke),
            connection=SimpleNamespace(command_timeout_s=5.0),
            keys=Keys("/p"),
            watchdog=self.watchdog,
            run_log=RunLog(),
            identity=ME,
            origin=Origin("m", "", "b", "n", 7, 5),
            leases=frozenset(),
            state_id="s",
            clock=FleetClock(loop.wall),
            ttl_s=10,
            max_runs=MAX_RUNS,
            job_key=None,
            first=True,
            outputs=None,
            on_failure=None,
            contain="tree",
            tags=("gpu",),
            timeout_s=5.0,
        )
        port: Any = self
        self.parts = Parts(port)

    def _revoke(self, lease: int, *, timeout_s: float) -> None:
        self.revoked.append(lease)

    def call(self, function: Callable[..., object], *arguments: object) -> None:
        function(*arguments)

    def ask(self, question: Callable[[], Any], _timeout_s: float | None) -> Any:
        return question()

    def consider(self, tick: PendingTick, on_claim: Callable[[Claim], None] = lambda _: None) -> None:
        self.considered.append(tick.id)

    # what a test says

    def ready(self) -> "Port":
        """Registered, and sure of the time."""
        session: Any = SimpleNamespace(stop=lambda: None, deadline=self.loop.seconds + 10)
        self.parts.node.current = Registered(Registration(3, 8, 4), session)
        self.parts.clock_check.meet({})
        return self

    def run(self, run: str = "r", state: RunState = RunState.RUNNING, **fields: Any) -> ActiveRun:
        return self.parts.runner.add(ActiveRun(Entry(run, "j", TICK, 4), state=state, **fields))

    def go(self, seconds: float = 1.0) -> None:
        self.loop.run(asyncio.sleep(seconds))
        if self.tasks.ended.done():
            self.tasks.ended.result()


HEARD = [
    (ClockCheck, ["check", "meet"]),
    (Closer, ["wake"]),
    (Inventory, ["on_registered", "on_list", "on_events", "on_watching", "list_again", "remove_job", "read_job"]),
    (Node, ["publish", "revoke_unneeded"]),
    (Planner, ["wake", "on_clock_right"]),
    (ProbeQueue, ["probe", "resume"]),
    (Replacement, ["wake_all", "wake"]),
    (Runner, ["end_before"]),
    (WaitingRoom, ["admit", "probe"]),
    (Watcher, ["list_again"]),
]


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What the parts hear of each other, instead of their doing it."""
    said: list[str] = []

    def hears(owner: Any, name: str) -> None:
        def call(_self: object, *_arguments: object, **options: object) -> bool:
            said.append(f"{owner.__name__}.{name}{' probe' if options.get('probe') else ''}")
            return False

        monkeypatch.setattr(owner, name, call)

    for owner, names in HEARD:
        for name in names:
            hears(owner, name)
    return said


@pytest.fixture
def port(loop: VirtualLoop, log: Log, monkeypatch: pytest.MonkeyPatch) -> Port:
    monkeypatch.setattr(parts_module, "Workers", lambda _counts: DirectWorkers(0.001))
    return Port(loop, log)


# -- whether a run could be started ---------------------------------------------------------------------------


def unregister(port: Port) -> None:
    port.parts.node.current = None


def fill(port: Port) -> None:
    for run in ("r", "s"):
        port.run(run)


def open_breaker(port: Port) -> None:
    port.parts.writes.failed("claim-failed", lost_reply())


def fill_closer(port: Port) -> None:
    port.parts.closer.unclear.update(dict.fromkeys(map(str, range(10_000)), pending()))


def lose_the_time(port: Port) -> None:
    port.parts.clock_check.knows_the_time = lambda: False  # type: ignore[method-assign]


def stop_supervisor(port: Port) -> None:
    port.parts.runner.is_supervisor_answering = lambda: False  # type: ignore[method-assign]


FAULTS = [
    (unregister, "not registered in etcd"),
    (fill, "as many runs as this daemon may have: 2"),
    (open_breaker, "etcd takes no writes"),
    (fill_closer, "too many claims are unclear"),
    (lose_the_time, "the time is not known"),
    (stop_supervisor, "the supervisor is stopped"),
]


def test_ready(port: Port) -> None:
    assert port.ready().parts.readiness.why_not_ready() == ""


@pytest.mark.parametrize("at", range(len(FAULTS)))
def test_not_ready(port: Port, at: int) -> None:
    """Each is enough; of several the first is named."""
    fault, why = FAULTS[at]
    port.ready()
    fault(port)
    assert port.parts.readiness.why_not_ready() == why
    for other, _ in FAULTS[at + 1 :]:
        other(port)
    assert port.parts.readiness.why_not_ready() == why


def test_probe_may_be_sent_while_etcd_takes_no_writes(port: Port) -> None:
    """Nothing else is waived for it."""
    port.ready()
    open_breaker(port)
    assert port.parts.readiness.why_not_ready(probe=True) == ""
    fill(port)
    assert port.parts.readiness.why_not_ready(probe=True) != ""


@pytest.mark.parametrize("part", ["claimer", "closer", "replacement"])
def test_room_is_taken_by_runs_and_by_claims_that_may_become_one(port: Port, part: str) -> None:
    """A claim that is won cannot be given back. A run that has ended takes none, though it is not recorded yet."""
    port.ready()
    port.run("r")
    port.run("s", RunState.ENDED)
    assert port.parts.readiness.why_not_ready() == ""
    assert port.parts.room._free() == 1
    getattr(port.parts, part).under_way = 1
    assert port.parts.readiness.why_not_ready() == FAULTS[1][1]
    assert port.parts.room._free() == 0


@pytest.mark.parametrize("part", ["claimer", "closer", "replacement"])
def test_daemon_claims_a_hundred_ticks_ahead_of_their_starts(
    port: Port, part: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The others are for hosts that start them sooner, and if this one is killed, they are not lost with it."""
    port.ready()
    monkeypatch.setattr(port.parts.readiness, "_max_runs", 1000)
    monkeypatch.setattr(type(port.parts.runner), "unstarted", 90)
    getattr(port.parts, part).under_way = 9
    assert port.parts.readiness.why_not_ready() == ""
    assert port.parts.room._free() == 1
    getattr(port.parts, part).under_way = 10
    assert port.parts.readiness.why_not_ready() == "so many runs are yet to be started: 100"
    assert port.parts.room._free() == 0


# -- whether the daemon may end -------------------------------------------------------------------------------


def test_idle(port: Port) -> None:
    port.pending["j", TICK] = pending()
    assert not port.parts.is_busy


@pytest.mark.parametrize(
    "occupy",
    [
        lambda port: port.run(),
        lambda port: port.run(state=RunState.ENDED),  # its result is not recorded
        lambda port: port.parts.closer.unclear.update(mine=pending()),
        lambda port: setattr(port.parts.claimer, "under_way", 1),
        lambda port: setattr(port.parts.closer, "under_way", 1),
        lambda port: setattr(port.parts.replacement, "under_way", 1),
        lambda port: setattr(port.parts.replacement, "waiting", 1),
        lambda port: port.pending.update({("j", TICK): replace(pending(), unclear=True)}),  # it is closed next
    ],
)
def test_busy(port: Port, occupy: Callable[[Port], object]) -> None:
    """Ending now would leave a claim without its result."""
    occupy(port)
    assert port.parts.is_busy


# -- who hears of what ----------------------------------------------------------------------------------------


def test_registration(calls: list[str], port: Port) -> None:
    """All that waited for it goes on, and everything may have to be listed."""
    port.parts.node._registered()
    assert sorted(calls) == [
        "ClockCheck.meet",
        "Closer.wake",
        "Inventory.on_registered",
        "Replacement.wake_all",
        "WaitingRoom.admit",
    ]


def test_end_of_a_run(calls: list[str], port: Port) -> None:
    """There is room for another, and a lost registration under which it ran may go."""
    port.parts.recorder._ended()
    assert sorted(calls) == ["Node.revoke_unneeded", "WaitingRoom.admit"]
    port.parts.recorder._run_key_gone("j")
    assert calls[-1] == "Replacement.wake"


def test_clock_that_was_set(calls: list[str], port: Port, log: Log) -> None:
    """It is checked before ticks are planned by it, and the others hear of it."""
    port.parts.on_clock_step()
    assert calls == ["ClockCheck.check", "Node.publish", "Planner.wake"]
    assert len(log.events("clock-set")) == 1


def test_end_of_a_fault_wakes_all_that_waited(calls: list[str], port: Port) -> None:
    port.parts.writes._resume()
    assert sorted(calls) == ["Node.publish", "ProbeQueue.resume", "ProbeQueue.resume", "WaitingRoom.admit"]


def test_probes_in_turn(calls: list[str], port: Port) -> None:
    """The registration's time can always be written: a daemon without ticks notices the end of a fault, too."""
    port.parts.writes._probe()
    assert sorted(calls) == ["Node.publish probe", "ProbeQueue.probe", "ProbeQueue.probe", "WaitingRoom.probe"]


def test_what_the_watcher_hears_goes_to_the_inventory(calls: list[str], port: Port) -> None:
    watcher = port.parts.watcher
    watcher._listed([], set())
    watcher._events([])
    watcher._watching(True)
    port.parts.inventory._list_again()
    assert calls == ["Inventory.on_list", "Inventory.on_events", "Inventory.on_watching", "Watcher.list_again"]


def test_run_keys_are_those_of_live_runs(port: Port) -> None:
    """Asked from the watcher's thread."""
    for run, state, rev in (("r", RunState.RUNNING, 5), ("s", RunState.ENDED, 6), ("t", RunState.RUNNING, None)):
        one = port.run(run, state)
        one.entry = replace(one.entry, run_rev=rev)
    assert port.parts.watcher._run_ids() == {"r"}


def test_planned_ticks_and_requests_begin_their_lives(port: Port) -> None:
    port.parts.planner._due(pending())
    port.parts.requests._ports.start(pending(at=TICK + 1), lambda claim: None)
    assert port.considered == [("j", TICK), ("j", TICK + 1)]
    port.pending["j", TICK] = pending()
    assert port.parts.requests._ports.is_pending(("j", TICK))
    assert not port.parts.requests._ports.is_pending(("j", TICK + 1))


def test_jobs_and_registration_are_as_they_are_now(port: Port) -> None:
    """Each part asks anew: both change."""
    ports: list[Any] = [port.parts.claimer._ports, port.parts.runner._ports, port.parts.requests._ports]
    assert [asked.tracked("j") for asked in ports] == [None] * 3
    port.parts.planner.jobs["j"] = job = tracked()
    port.ready()
    assert all(asked.tracked("j") is job for asked in ports)
    assert [asked.registration() for asked in ports[:2]] == [Registration(3, 8, 4)] * 2
    assert not ports[0].draining()
    port.is_draining = True
    assert ports[0].draining()
    assert ports[2].draining()


def test_waiting_ticks_are_counted(port: Port) -> None:
    """Those that are being closed, too: they are not pending any more."""
    port.pending["j", TICK] = pending()
    port.parts.closer.unclear["other"] = pending("other")
    assert port.parts.claimer._ports.waiting() == 2


def test_what_a_run_needs_is_not_given_back(port: Port) -> None:
    """The registration of a run that lives; the number of a slot until the run's result is recorded."""
    slot: Any = SimpleNamespace(number=7)
    port.run("r", node=3)
    port.run("s", RunState.ENDED, node=4, slot=slot)
    assert port.parts.node._needed() == {3}
    assert port.parts.node._slots() == [7]


def test_registration_says_whether_we_drain_and_whether_our_clock_is_off(port: Port) -> None:
    assert port.parts.node._flags() == (False, False)
    port.is_draining = True
    assert port.parts.node._flags() == (True, False)
    port.parts.clock_check.is_off = True
    assert port.parts.node._flags() == (True, True)


def test_leases_are_revoked_in_etcd(port: Port) -> None:
    port.parts.node.revoke(77)
    port.go()
    assert port.revoked == [77]


def test_release_of_our_zones_is_published(calls: list[str], port: Port) -> None:
    """The registration has it from its first writing on."""
    assert port.parts.node.registrar.tzdata == port.parts.reload.release != ""
    port.parts.reload._set_release("2099z")
    assert port.parts.node.registrar.tzdata == "2099z"
    assert calls == ["Node.publish"]


def test_reload_reaches_the_inventory(calls: list[str], port: Port) -> None:
    port.parts.reload._list_again()
    port.parts.reload._remove_job("j")
    assert calls == ["Inventory.list_again", "Inventory.remove_job"]
    assert port.parts.reload._job_key("j") == "/p/cron/job/j"


def test_slot_of_a_run(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is waited for as long as the run may take, in the name of this host, and killed as its job says."""
    made: dict[str, Any] = {}
    monkeypatch.setattr(semaphore_slot, "SemaphoreSlot", lambda *_arguments, **options: made.update(options))
    job = tracked(sema="s:2", run_ttl=40, kill_after=3).job
    held, failed = (lambda _message: None), (lambda _why: None)
    port.parts.runner._ports.queue_for_slot("r", job, 9, held, failed)
    assert (made["number"], made["run"], made["ttl_s"]) == (9, "r", 10)
    assert (made["wait_s"], made["kill_after_s"]) == (job.run_ttl_s, job.kill_after_s)
    assert (made["held"], made["failed"]) == (held, failed)
    assert b'"host": "a"' in made["value"]


def test_start(port: Port, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each that works by itself begins."""
    begun: list[str] = []

    def runs(owner: Any, name: str) -> None:
        async def run(_self: object) -> None:
            begun.append(owner.__name__)

        monkeypatch.setattr(owner, name, run)

    runs(Node, "keep_registered")
    runs(Planner, "run")
    runs(Sweeping, "run")
    monkeypatch.setattr(Reload, "start", lambda _self: begun.append("Reload"))
    port.parts.start()
    port.go()
    assert sorted(begun) == ["Node", "Planner", "Reload", "Sweeping"]
