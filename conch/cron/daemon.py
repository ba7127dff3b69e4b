"""The keeper of conchd: the scheduler and what it stands on, from the first journal record to the last lease."""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from conch import threads
from conch.core import procfs
from conch.core.cgroup import Cgroup, path_of, remove_left
from conch.core.channel import Channel
from conch.core.containment import TREE
from conch.core.messages import Begin, Begun, Failed, Message, Note
from conch.core.origin import origin
from conch.cron.fleet_clock import FleetClock
from conch.cron.output_files import OutputFiles
from conch.cron.run_log import RunLog
from conch.cron.state_dir import identify
from conch.errors import ConchError
from conch.etcd.connection import Connection
from conch.holder import Holder
from conch.keeper.main import crash, failure
from conch.keeper.watchdog import NotReady, Watchdog
from conch.keys import Keys
from conch.limits import lacking

if TYPE_CHECKING:
    from conch.cron.scheduler import Scheduler

# The scheduler, its watches of etcd and the clock, a session, the status, a worker for etcd and one for the disk.
_THREADS = 8


@dataclass(frozen=True, slots=True)
class Daemon:
    """How conchd was started; durations in seconds.

    `on_failure` is told of what fails; `owner` is the user and the group of runs, if they are not ours.
    `contain` is the form in which runs are contained; their cgroups are made below the directory `cgroups`, or nowhere.
    `tags` are those of this host.
    """

    connection: Connection
    keys: Keys
    identity: Holder
    state_dir: str
    ttl_s: int
    max_runs: int
    job_key: bytes | None
    status: tuple[str, int] | None
    status_hosts: tuple[str, ...] = ()
    on_failure: str | None = None
    owner: tuple[int, int] | None = None
    contain: str = TREE
    cgroups: str = ""
    tags: tuple[str, ...] = ()


class Mailbox:
    """Messages of the supervisor, in order, for a scheduler that is still being made at first."""

    def __init__(self) -> None:
        self._messages: queue.SimpleQueue[Message] = queue.SimpleQueue()
        self._wake: Callable[[], None] | None = None
        self._is_called = False  # the scheduler will look into it

    def put(self, message: Message) -> None:
        """Add a message; from the watchdog's thread."""
        self._messages.put(message)
        if self._wake is not None and not self._is_called:
            self._is_called = True
            self._wake()

    def first(self) -> Message:
        """Wait for the first message."""
        return self._messages.get()

    def attach(self, scheduler: "Scheduler") -> None:
        """From now on the scheduler gets the messages, those that wait among them."""

        def receive() -> None:
            self._is_called = False  # from here on a message that is added wakes the scheduler, or is seen now
            scheduler.receive(self._messages)

        def wake() -> None:
            scheduler.call(receive)

        self._wake = wake
        wake()


class DaemonKeeper:
    """Conchd's keeper: `work` makes the scheduler and is its thread, the main thread is the watchdog."""

    def __init__(self, daemon: Daemon, watchdog: Watchdog) -> None:
        self._daemon = daemon
        self._watchdog = watchdog
        self.mailbox = Mailbox()
        self.scheduler: Scheduler | None = None

    def work(self) -> None:
        """Settle what an earlier conchd left, then schedule until everything was given back."""
        begin = self.mailbox.first()
        assert isinstance(begin, Begin)  # noqa: S101 - the supervisor's first message
        try:
            new, run_log, dead = self._make_scheduler(begin)
            new.adopt(begin.live, begin.ended, dead)
            new.start()
        except ConchError as error:
            self._watchdog.send(Failed(error.code, str(error)))
            return
        self.scheduler = new
        self.mailbox.attach(new)
        self._watchdog.send(Begun())
        if self._daemon.status is not None:
            self._serve_status(self._daemon.status, new, run_log)
        new.run()

    def _make_scheduler(self, begin: Begin) -> tuple["Scheduler", RunLog, set[str]]:
        """The scheduler, its run log, and the runs in that whose conchd died. Raises `ConchError`."""
        # late: the supervisor must never have loaded these
        from conch.cron.scheduler import Scheduler
        from conch.cron.scheduler_spec import SchedulerSpec
        from conch.etcd.open import open_store

        daemon, supervised = self._daemon, {*begin.live, *begin.ended}
        try:
            here = origin(daemon.identity.pid)
            state_id, copied = identify(daemon.state_dir, daemon.keys.prefix, here, self._log)
            run_log = RunLog(daemon.state_dir, self._log, here)
        except OSError as error:
            raise ConchError(f"cannot use {daemon.state_dir}: {error.strerror or error}") from None
        run_log.leave(supervised, here, self._log, all_=copied)
        dead = run_log.dead(here) - supervised
        outputs = OutputFiles(daemon.state_dir, state_id, daemon.owner)
        # commands that were told of failures are in no journal, but they have files
        _end_survivors(dead | (outputs.earlier() - supervised), daemon.cgroups, self._log)
        outputs.keep(begin.live)
        # many requests at a time, for months: gRPC's one connection serves them better
        store = open_store(
            daemon.connection,
            lambda event, text: self._log("warning", event, msg=text),
            prefer_grpc=True,
            members_only=True,
        )
        spec = SchedulerSpec(
            store=store,
            connection=daemon.connection,
            keys=daemon.keys,
            watchdog=self._watchdog,
            run_log=run_log,
            identity=daemon.identity,
            origin=here,
            leases=frozenset(begin.leases),
            state_id=state_id,
            clock=FleetClock(),
            ttl_s=daemon.ttl_s,
            max_runs=daemon.max_runs,
            job_key=daemon.job_key,
            first=begin.first,
            outputs=outputs,
            on_failure=daemon.on_failure,
            contain=daemon.contain,
            tags=daemon.tags,
        )
        return Scheduler(spec), run_log, dead

    def _serve_status(self, address: tuple[str, int], scheduler: "Scheduler", run_log: RunLog) -> None:
        from conch.cron.status import own_names, serve

        daemon, store = self._daemon, scheduler.spec.store
        names = [*own_names(daemon.identity.host), *daemon.status_hosts]
        serve(address, names, scheduler, run_log, store, daemon.connection, daemon.keys, self._log)

    def _log(self, level: str, event: str, **fields: Any) -> None:
        self._watchdog.send(Note(level, event, fields))


def keep(daemon: Daemon, channel: Channel) -> None:
    """Be conchd's keeper until the supervisor is gone. Runs in the forked process."""
    try:
        _check_room()
        watchdog = Watchdog(channel)
        threads.guard(lambda error: crash(watchdog, error))
        keeper = DaemonKeeper(daemon, watchdog)
        threading.Thread(target=keeper.work, name="scheduler", daemon=True).start()
    except (OSError, RuntimeError, MemoryError, ConchError) as error:
        channel.send(failure(error))
        return
    try:
        watchdog.run(keeper.mailbox.put)
    except NotReady as error:
        channel.send(failure(error))
        return  # what an earlier keeper's runs hold is not given back while they run
    # The supervisor is gone, and so is all that it ran.
    scheduler = keeper.scheduler
    if scheduler is not None and not scheduler.ended.is_set():
        scheduler.abandon()
        remove_left(daemon.cgroups)


def _check_room() -> None:
    """Raise `ConchError` unless the system lets us have the threads that we need at least."""
    lack = lacking(threads=_THREADS)
    if lack:
        raise ConchError(f"cannot start the process that talks to etcd: {lack}")


def _end_survivors(lost: set[str], cgroups: str, log: Any) -> None:
    """Kill what is left of runs whose conchd died with its keeper: nothing supervises them, and they hold nothing."""
    remove_left(cgroups)
    contained = [Cgroup(path_of(cgroups, run)) for run in lost] if cgroups else []
    empty_scans = 0
    while lost and empty_scans < 2:
        try:
            alive = _survivors(lost, contained)
        except OSError:
            threading.Event().wait(0.1)
            continue
        if not empty_scans and alive:
            log("warning", "survivors", pids=" ".join(str(entry.pid) for entry in alive))
        for entry in alive:
            procfs.signal_exactly(entry, 9)
        procfs.wait_for_ends(alive, 1.0)
        empty_scans = 0 if alive else empty_scans + 1
    for cgroup in contained:
        cgroup.remove()


def _survivors(lost: set[str], contained: list[Cgroup]) -> list[procfs.Stat]:
    """Return what lives of these runs, SIGKILLed as far as it is in their cgroups."""
    alive = {entry.pid: entry for entry in procfs.tagged(lost)}
    for cgroup in contained:
        try:
            if cgroup.populated():
                # what we may not see counts, too, and what is not even listed
                unseen = [procfs.unseen(pid, cgroup=cgroup.path) for pid in cgroup.pids() or {0}]
                alive.update((entry.pid, procfs.stat(entry.pid) or entry) for entry in unseen)
                cgroup.kill()
        except OSError:
            alive.setdefault(0, procfs.unseen(0))
    return list(alive.values())
