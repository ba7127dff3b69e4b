"""Values for tests of the scheduler's parts: jobs, ticks, answers of etcd; and a script of answers in its place."""

import asyncio
import json
from collections import Counter
from collections.abc import Callable
from typing import Any

from conch.core.messages import Message
from conch.cron.faults import Lasting
from conch.cron.fleet_clock import FleetClock
from conch.cron.group_commit import GroupCommit
from conch.cron.job import Job, parse
from conch.cron.shared_leases import SharedLeases
from conch.cron.ticks import PendingTick, Registration, TrackedJob
from conch.cron.transactions import Transactions
from conch.cron.writes import Faults, Unsent, Writes
from conch.etcd.store import KeyValue, StoreError, Unreachable
from conch.holder import Holder
from tests.support.virtual_loop import DirectWorkers, Log, VirtualLoop, tasks_of

TICK = int(VirtualLoop.EPOCH)
ME = Holder("a", 1, "2026-01-01T00:00:00Z", "conchd")


def job(name: str = "j", **fields: Any) -> Job:
    return parse(name, json.dumps({"schedule": "@every 1s", "cmd": ["true"], **fields}).encode())


def tracked(name: str = "j", rev: int = 5, **fields: Any) -> TrackedJob:
    made = job(name, **fields)
    return TrackedJob(made, rev, made.ticks())


def pending(run: str = "mine", at: int = TICK, *, deadline_s: float = 30.0, **fields: Any) -> PendingTick:
    """A tick of job `j`, which may be claimed for so many seconds."""
    return PendingTick(job(**fields), 5, at, TICK + deadline_s, run)


def lost_reply() -> Unreachable:
    """A write whose answer never came."""
    error = Unreachable("no endpoint answered")
    error.unclear = True
    return error


def refusal() -> StoreError:
    """Etcd answered that it made nothing."""
    error = StoreError("etcdserver: permission denied")
    error.unclear = False
    return error


def run_key(run: str = "other", tick: object = TICK - 60, rev: int = 9) -> KeyValue:
    return KeyValue(b"/run/j", json.dumps({"tick": tick, "host": "b", "run": run}).encode(), rev, rev, 1)


def fire_key(run: str, rev: int = 21) -> KeyValue:
    return KeyValue(b"/fire/j", json.dumps({"run": run}).encode(), rev, rev, 1)


# What is sent together with others, and awaited; it takes a millisecond, as a call of a worker does.
_AWAITED = ("claim", "claim_to_wait", "claim_to_skip", "take_run", "release", "deliver")


class Script:
    """Answers each call with the next of a list; an exception is raised, a callable is called for its answer."""

    def __init__(self, *answers: Any) -> None:
        self.answers = list(answers)
        self.asked: list[str] = []
        self.arguments: list[tuple[tuple[Any, ...], dict[str, Any]]] = []

    def __getattr__(self, how: str) -> Callable[..., Any]:
        async def awaited(*arguments: Any, **options: Any) -> Any:
            await asyncio.sleep(0.001)
            if not options["sending"].is_wanted():
                raise Unsent
            return call(*arguments, **options)

        def call(*arguments: Any, **options: Any) -> Any:
            self.asked.append(how)
            self.arguments.append((arguments, options))
            answer = self.answers.pop(0)
            if callable(answer):
                answer = answer()
            if isinstance(answer, Exception):
                raise answer
            return answer

        return awaited if how in _AWAITED else call

    def is_ours(self, kv: KeyValue, tick: PendingTick) -> bool:
        return bool(json.loads(kv.value).get("run") == tick.run)


def script(*answers: Any) -> Any:
    """A script, in the place of whatever a part takes."""
    return Script(*answers)


class RunLog:
    """Keeps what is written; a `full` disk takes nothing."""

    def __init__(self) -> None:
        self.written: list[Any] = []
        self.forgotten: list[str] = []
        self.full = False

    def write(self, *entries: Any) -> bool:
        self.written += entries
        return not self.full

    def delivered(self, *runs: str) -> None:
        self.forgotten += runs


class Supervisor:
    """The watchdog's side of the scheduler: what was sent, and which runs it was to end."""

    def __init__(self) -> None:
        self.sent: list[Message] = []
        self.ended: list[tuple[str, str]] = []
        self.forgotten: list[int] = []
        self.lost_holds: list[tuple[int, str]] = []

    def send(self, message: Message) -> None:
        self.sent.append(message)

    def end(self, run: str, reason: str) -> None:
        self.ended.append((run, reason))

    def drop_hold(self, number: int) -> None:
        self.forgotten.append(number)

    def lost(self, number: int, reason: str) -> None:
        self.lost_holds.append((number, reason))

    def kinds(self) -> list[str]:
        """The kinds of messages that were sent, in order."""
        return [message.kind for message in self.sent]


class VirtualFaults(Faults):
    """Lasting faults on the loop's clock."""

    def __init__(self, loop: VirtualLoop, log: Log) -> None:
        super().__init__(log)
        self._loop = loop

    def __call__(self, event: str, **options: Any) -> Lasting:
        return super().__call__(event, now=self._loop.time, **options)


class World:
    """What all parts share, on one loop, and what the other parts would answer."""

    def __init__(self, loop: VirtualLoop, log: Log, **fields: Any) -> None:
        self.loop = loop
        self.log = log
        self.tasks = tasks_of(loop)
        self.workers = DirectWorkers(0.001)
        self.faults = VirtualFaults(loop, log)
        self.writes = Writes(self.tasks, self.workers, self.faults)
        self.clock = FleetClock(loop.wall)
        self.counts: Counter[tuple[str, str]] = Counter()
        self.supervisor: Any = Supervisor()
        self.run_log: Any = RunLog()
        run_log: Any = self.run_log
        self.commit = GroupCommit(run_log, self.tasks, self.workers)
        self.transactions = Transactions(script(), SharedLeases(script(), "/p"), self.tasks, self.workers)
        self.tracked: TrackedJob | None = tracked(**fields)
        self.registration: Registration | None = Registration(3, 8, 4)
        self.draining = False
        self.releasing = False

    def now(self) -> float:
        """Seconds since the beginning."""
        return self.loop.seconds - 1000.0

    def check(self) -> None:
        """Raise what a coroutine of the parts raised."""
        if self.tasks.ended.done():
            self.tasks.ended.result()
