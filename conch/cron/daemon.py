"""The keeper of conchd: the scheduler and what it stands on, from the first journal record to the last lease."""

import queue
import threading
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from conch.core import procfs
from conch.core.channel import Channel
from conch.core.messages import Begin, Begun, Failed, Message, Note
from conch.core.origin import origin
from conch.cron.clock import FleetClock
from conch.cron.run_log import RunLog
from conch.cron.state_dir import identify
from conch.errors import EXIT_UNAVAILABLE, ConchError
from conch.etcd.connection import Connection
from conch.holder import Holder
from conch.keeper.main import crash, failure
from conch.keeper.watchdog import NotReady, Watchdog
from conch.keys import Keys
from conch.limits import lacking

# The scheduler, its watches of etcd and the clock, a session, the status, a worker for etcd and one for the disk.
_THREADS = 8


@dataclass(frozen=True, slots=True)
class Daemon:
    """How conchd was started; durations in seconds."""

    connection: Connection
    keys: Keys
    me: Holder
    state_dir: str
    ttl_s: int
    max_runs: int
    job_key: bytes | None
    status: tuple[str, int] | None
    status_hosts: tuple[str, ...] = ()


def keep(daemon: Daemon, channel: Channel) -> None:
    """Be conchd's keeper until the supervisor is gone. Runs in the forked process."""
    # late: the supervisor must never have loaded these
    from conch.cron.actor import Base
    from conch.cron.scheduler import Scheduler
    from conch.etcd.open import open_store

    inbox: queue.SimpleQueue[Message | Callable[[], None]] = queue.SimpleQueue()
    scheduler: Scheduler | None = None

    def work() -> None:
        nonlocal scheduler
        begin = inbox.get()
        assert isinstance(begin, Begin)  # noqa: S101 - the supervisor's first word

        def tell(level: str, event: str, **text: Any) -> None:
            watchdog.send(Note(level, event, text))

        try:
            here = origin(daemon.me.pid)
            state, copied = identify(daemon.state_dir, daemon.keys.prefix, here, tell)
            ledger = RunLog(daemon.state_dir, tell, here)
        except OSError as error:
            watchdog.send(Failed(EXIT_UNAVAILABLE, f"cannot use {daemon.state_dir}: {error.strerror or error}"))
            return
        ledger.leave({*begin.live, *begin.ended}, here, tell, all_=copied)
        dead = ledger.dead(here) - {*begin.live, *begin.ended}
        _end_survivors(dead, tell)
        try:
            # many requests at a time, for months: gRPC's one connection serves them better
            store = open_store(
                daemon.connection,
                lambda event, text: tell("warning", event, msg=text),
                prefer_grpc=True,
                members_only=True,
            )
        except ConchError as error:
            watchdog.send(Failed(error.code, str(error)))
            return
        new = Scheduler(
            Base(
                store=store,
                connection=daemon.connection,
                keys=daemon.keys,
                watchdog=watchdog,
                ledger=ledger,
                me=daemon.me,
                state=state,
                here=here,
                leases=frozenset(begin.leases),
                clock=FleetClock(),
                inbox=inbox,
                ttl_s=daemon.ttl_s,
                max_runs=daemon.max_runs,
                key=daemon.job_key,
                first=begin.first,
            )
        )
        new.adopt(begin.live, begin.ended, dead)
        try:
            new.start()
        except ConchError as error:
            watchdog.send(Failed(error.code, str(error)))
            return
        scheduler = new
        watchdog.send(Begun())
        if daemon.status is not None:
            from conch.cron.status import own_names, serve

            names = [*own_names(daemon.me.host), *daemon.status_hosts]
            serve(daemon.status, names, new, ledger, store, daemon.connection, daemon.keys, tell)
        new.run()

    try:
        _check_room()
        watchdog = Watchdog(channel)
        threading.excepthook = partial(crash, watchdog)
        threading.Thread(target=work, name="scheduler", daemon=True).start()
    except (OSError, RuntimeError, MemoryError, ConchError) as error:
        channel.send(failure(error))
        return
    try:
        watchdog.run(inbox.put)
    except NotReady as error:
        channel.send(failure(error))
        return  # what an earlier keeper's runs hold is not given back while they run
    # The supervisor is gone, and so is all that it ran.
    if scheduler is not None and not scheduler.ended.is_set():
        scheduler.abandon()


def _check_room() -> None:
    """Raise `ConchError` unless the system lets us have the threads that we need at least."""
    lack = lacking(threads=_THREADS)
    if lack:
        raise ConchError(f"cannot start the process that talks to etcd: {lack}")


def _end_survivors(lost: set[str], tell: Any) -> None:
    """Kill what is left of runs whose conchd died with its keeper: nothing supervises them, and they hold nothing."""
    empty_looks = 0
    while lost and empty_looks < 2:
        try:
            alive = procfs.tagged(lost)
        except OSError:
            threading.Event().wait(0.1)
            continue
        if not empty_looks and alive:
            tell("warning", "survivors", pids=" ".join(str(entry.pid) for entry in alive))
        for entry in alive:
            procfs.signal_exactly(entry, 9)
        procfs.wait_for_ends(alive, 1.0)
        empty_looks = 0 if alive else empty_looks + 1
