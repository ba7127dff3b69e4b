"""A daemon's scheduler in the test's own process, on a real etcd, with a clock that the test can set."""

import os
import threading
import time
from pathlib import Path

from conch.core.channel import pair
from conch.core.daemon_loop import HOLDS
from conch.core.messages import Ended, Finished, Note, Release, Running, Start
from conch.core.origin import origin
from conch.cron.daemon import Mailbox
from conch.cron.fleet_clock import FleetClock
from conch.cron.output_files import OutputFiles
from conch.cron.run_log import RunLog
from conch.cron.scheduler import Scheduler
from conch.cron.scheduler_spec import SchedulerSpec
from conch.etcd.connection import Connection
from conch.etcd.endpoints import parse_endpoints
from conch.etcd.grpc_store import GrpcStore
from conch.holder import Holder
from conch.keeper.watchdog import Watchdog
from conch.keys import Keys
from tests.support.conch import Bench, wait_for


class Host:
    """conchd without its supervisor: every run that is started ends immediately with exit code 0."""

    def __init__(
        self, bench: Bench, name: str, folder: Path, ahead_s: float = 0.0, *, limit_s: float | None = None
    ) -> None:
        """`limit_s` is how long a request to etcd may take."""
        self.name = name
        self.ahead_s = ahead_s
        self.runs: list[tuple[int, float]] = []  # tick, and the true time of its start
        self.notes: list[Note] = []
        self._closing = False
        folder.mkdir()
        self._ours, theirs = pair(HOLDS)
        self._watchdog = Watchdog(theirs, lambda targets: [[] for _ in targets])
        self._store = GrpcStore(Connection(parse_endpoints(bench.endpoints)))
        self._mailbox = Mailbox()
        self.scheduler = Scheduler(
            SchedulerSpec(
                store=self._store,
                connection=Connection(parse_endpoints(bench.endpoints), command_timeout_s=limit_s or 5.0),
                keys=Keys(bench.prefix),
                watchdog=self._watchdog,
                run_log=RunLog(str(folder), self._keep_note),
                identity=Holder(name, 1, "2026-01-01T00:00:00Z", "conchd"),
                origin=origin(os.getpid()),
                leases=frozenset(),
                state_id=name,
                clock=FleetClock(lambda: time.time() + self.ahead_s),
                ttl_s=5,
                max_runs=100,
                job_key=None,
                first=True,
                outputs=OutputFiles(str(folder), name, None),
            )
        )
        self.scheduler.adopt([], [])
        self.scheduler.start()
        self._mailbox.attach(self.scheduler)
        self._threads = [
            threading.Thread(target=self.scheduler.run, daemon=True),
            threading.Thread(target=self._watchdog.run, args=(self._mailbox.put,), daemon=True),
            threading.Thread(target=self._supervise, daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def _keep_note(self, level: str, event: str, **text: str | int | float) -> None:
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
        """Return the log lines of an event."""
        return [note for note in self.notes if note.event == name]

    def wait_event(self, name: str) -> Note:
        """Wait for the first log line of an event and return it."""
        return wait_for(lambda: self.events(name), f"event {name}")[0]

    def set_clock(self, ahead_s: float) -> None:
        """Step the wall clock and report the step, as the kernel would."""
        self.ahead_s = ahead_s
        self.scheduler.call(self.scheduler.parts.on_clock_step)

    def close(self) -> None:
        """End and give everything back."""
        self._mailbox.put(Release())
        self.scheduler.ended.wait(10)
        self._closing = True
        self._threads[2].join(5)  # it reads the channel that is closed next
        self._ours.close()
        self._threads[1].join(5)
        self._store.close()
