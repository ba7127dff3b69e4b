"""A daemon's scheduler in the test's own process, with a clock that the test can set, on a real etcd."""

import os
import queue
import threading
import time
from collections.abc import Callable
from pathlib import Path

from conch.core.channel import pair
from conch.core.daemon_loop import HOLDS
from conch.core.messages import Ended, Finished, Message, Note, Release, Running, Start
from conch.core.origin import origin
from conch.cron.actor import Base
from conch.cron.clock import FleetClock
from conch.cron.run_log import RunLog
from conch.cron.scheduler import Scheduler
from conch.etcd.connection import Connection
from conch.etcd.endpoints import parse_endpoints
from conch.etcd.grpc_store import GrpcStore
from conch.holder import Holder
from conch.keeper.watchdog import Watchdog
from conch.keys import Keys
from tests.support.conch import Bench, wait_for


class Host:
    """Everything of conchd but its supervisor: what is ordered ends at once and well."""

    def __init__(self, bench: Bench, name: str, folder: Path, ahead_s: float = 0.0) -> None:
        self.name = name
        self.ahead_s = ahead_s
        self.runs: list[tuple[int, float]] = []  # tick, and the true time of its start
        self.notes: list[Note] = []
        self._closing = False
        folder.mkdir()
        self._ours, theirs = pair(HOLDS)
        self._watchdog = Watchdog(theirs, lambda targets: [[] for _ in targets])
        self._store = GrpcStore(Connection(parse_endpoints(bench.endpoints)))
        inbox: queue.SimpleQueue[Message | Callable[[], None]] = queue.SimpleQueue()
        self._inbox = inbox
        self.scheduler = Scheduler(
            Base(
                store=self._store,
                connection=Connection(parse_endpoints(bench.endpoints)),
                keys=Keys(bench.prefix),
                watchdog=self._watchdog,
                ledger=RunLog(str(folder), self._warden_note),
                me=Holder(name, 1, "2026-01-01T00:00:00Z", "conchd"),
                here=origin(os.getpid()),
                leases=frozenset(),
                state=name,
                clock=FleetClock(lambda: time.time() + self.ahead_s),
                inbox=inbox,
                ttl_s=5,
                max_runs=100,
                key=None,
                first=True,
            )
        )
        self.scheduler.adopt([], [])
        self.scheduler.start()
        self._threads = [
            threading.Thread(target=self.scheduler.run, daemon=True),
            threading.Thread(target=self._watchdog.run, args=(inbox.put,), daemon=True),
            threading.Thread(target=self._supervise, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _warden_note(self, level: str, event: str, **text: str | int | float) -> None:
        self.notes.append(Note(level, event, text))

    def _supervise(self) -> None:
        while not self._ours.closed and not self._closing:
            for message in self._ours.drain():
                if isinstance(message, Note):
                    self.notes.append(message)
                if isinstance(message, Start):
                    self.runs.append((int(message.environment["CONCH_TICK"]), time.time()))
                    self._ours.send(Running(2**22 + 7, message.run, [], 1.0, message.run))
                    self._ours.send(Ended(message.run))
                    self._ours.send(Finished(message.run, "ended", 0, 1, time.time(), 0.0, ""))
            time.sleep(0.005)

    def events(self, name: str) -> list[Note]:
        """The log's lines of an event."""
        return [note for note in self.notes if note.event == name]

    def wait_event(self, name: str) -> Note:
        """The first line of an event, once it is there."""
        return wait_for(lambda: self.events(name), f"event {name}")[0]

    def set_clock(self, ahead_s: float) -> None:
        """Step the wall clock; the kernel would tell."""
        self.ahead_s = ahead_s
        self._inbox.put(self.scheduler._on_clock_step)

    def close(self) -> None:
        """End and give everything back."""
        self._inbox.put(Release())
        self.scheduler.ended.wait(10)
        self._closing = True
        self._threads[2].join(5)  # it reads what is closed next
        self._ours.close()
        self._threads[1].join(5)
        self._store.close()
