"""A slot of a semaphore for one run: the wrapper's own acquirer, with the scheduler in the supervisor's place."""

import threading
from collections.abc import Callable

from conch.core import clock
from conch.core.deadline import DeadlineRule
from conch.core.messages import Acquire, Failed, Held, Message, Note, Release, Released
from conch.cron.job import Job
from conch.cron.scheduler_spec import SchedulerSpec
from conch.etcd.connection import Connection
from conch.etcd.store import Store
from conch.holder import Holder, shown
from conch.keeper.acquirer import Acquirer
from conch.keeper.hold_spec import HoldSpec, QueueSpec
from conch.keeper.watchdog import Watchdog
from conch.keys import Keys
from conch.times import rfc3339

Log = Callable[..., None]
OnHeld = Callable[[Held], None]
OnFailed = Callable[[str], None]


class SemaphoreSlot:
    """Queues for a slot, keeps it under hold `number` of the watchdog, gives it back.

    `held` is called once with the hold, or `failed` with the reason why there is none; both from another thread.
    """

    def __init__(
        self,
        store: Store,
        connection: Connection,
        keys: Keys,
        watchdog: Watchdog,
        semaphore: tuple[str, int],
        *,
        number: int,
        run: str,
        ttl_s: int,
        kill_after_s: float,
        wait_s: float,
        value: bytes,
        held: Callable[[Held], None],
        failed: Callable[[str], None],
        log: Log,
    ) -> None:
        self._watchdog = watchdog
        self.number = number
        self._held = held
        self._failed = failed
        self._log = log
        self.in_use = False  # the run has started: the slot is held between its attempts, too
        self.released = threading.Event()
        self.lease: int | None = None
        name, slots = semaphore
        stage = QueueSpec(keys.slots(name, slots), slots, sibling_prefix=keys.semaphore(name))
        job = HoldSpec(
            connection=connection,
            what=f"semaphore {name}/{slots}",
            stages=(stage,),
            ttl_s=ttl_s,
            kill_after_s=kill_after_s,
            value=value,
            wait_s=wait_s,
            run=run,
        )
        self._acquirer = Acquirer(job, store, self)
        self._thread = threading.Thread(target=self._acquirer.run, name="slot", daemon=True)
        self._thread.start()
        self._acquirer.deliver(Acquire(number, clock.now() + wait_s))

    def release(self) -> None:
        """Give the slot back, or leave the queue. Nothing may run under it any more."""
        self._acquirer.deliver(Release())

    # -- what the acquirer asks of a watchdog -------------------------------------------------------------

    def send(self, message: Message) -> None:
        """See `Watchdog`."""
        match message:
            case Held():
                self.lease = message.lease
                self._watchdog.send(message)
                self._held(message)
            case Failed(_, text):
                self.released.set()
                self._failed(text)
                self._acquirer.stop()
            case Released():
                self.released.set()
                self._acquirer.stop()
            case Note(level, event, text):
                self._log(level, event, **text)
            case _:
                pass

    def acquired(
        self,
        number: int,
        terms: DeadlineRule,
        deadline: float,
        *,
        run: str = "",
        renew_now: Callable[[], None] = lambda: None,
    ) -> None:
        """See `Watchdog`."""
        self._watchdog.acquired(number, terms, deadline, run=run, renew_now=renew_now)

    def drop_hold(self, number: int) -> None:
        """See `Watchdog`."""
        self._watchdog.drop_hold(number)

    def renewed(self, number: int, deadline: float) -> None:
        """See `Watchdog`."""
        self._watchdog.renewed(number, deadline)

    def wants_renewals(self, number: int) -> bool:
        """See `Watchdog`."""
        return self.in_use or self._watchdog.wants_renewals(number)

    def lost(self, number: int, reason: str) -> None:
        """See `Watchdog`."""
        self._watchdog.lost(number, reason)


def queue_for_slot(
    spec: SchedulerSpec, log: Log, run: str, job: Job, number: int, held: OnHeld, failed: OnFailed
) -> SemaphoreSlot:
    """Queue for a slot of the job's semaphore, for the run of this id."""
    assert job.semaphore is not None  # noqa: S101 - asked by the runner
    identity = spec.identity
    return SemaphoreSlot(
        spec.store,
        spec.connection,
        spec.keys,
        spec.watchdog,
        job.semaphore,
        number=number,
        run=run,
        ttl_s=spec.ttl_s,
        kill_after_s=job.kill_after_s,
        wait_s=job.run_ttl_s,
        value=Holder(identity.host, identity.pid, rfc3339(spec.clock.own()), shown(job.cmd)).encode(),
        held=held,
        failed=failed,
        log=log,
    )
