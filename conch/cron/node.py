"""Our place in the fleet: the registration, kept and renewed for as long as the daemon lives."""

from collections.abc import Callable
from enum import Enum
from functools import partial
from itertools import count

from conch.core import clock
from conch.core.daemon_loop import HOLDS
from conch.cron.registrar import NameTaken, Registered, Registrar
from conch.cron.ticks import PAUSE_MOST_S, Registration
from conch.cron.workers import Alarm, Tasks, Workers, call_in
from conch.cron.writes import Faults, Unsent, Writes
from conch.errors import checked
from conch.etcd.store import StoreError
from conch.keeper.watchdog import Watchdog

Log = Callable[..., None]

# How often a node writes its time.
_PUBLISH_EVERY_S = 60.0
# How often it answers those who ask for its time at most: hosts that start together are answered together.
_ANSWER_EVERY_S = 1.0


class NodeState(Enum):
    """Where our registration is."""

    UNREGISTERED = "unregistered"
    REGISTERING = "registering"
    REGISTERED = "registered"
    RELEASED = "released"


_NEXT: dict[NodeState, frozenset[NodeState]] = {
    NodeState.UNREGISTERED: frozenset({NodeState.REGISTERING, NodeState.RELEASED}),
    NodeState.REGISTERING: frozenset({NodeState.UNREGISTERED, NodeState.REGISTERED, NodeState.RELEASED}),
    NodeState.REGISTERED: frozenset({NodeState.UNREGISTERED, NodeState.RELEASED}),
    NodeState.RELEASED: frozenset(),
}


class Node:
    """Registers, and again when that is lost. The lease of a lost registration is revoked once nothing needs it."""

    def __init__(
        self,
        registrar: Registrar,
        watchdog: Watchdog,
        tasks: Tasks,
        workers: Workers,
        writes: Writes,
        faults: Faults,
        log: Log,
        *,
        own_time: Callable[[], float],
        flags: Callable[[], tuple[bool, bool]],
        needed: Callable[[], set[int | None]],
        slots: Callable[[], list[int]],
        registered: Callable[[], None],
        host: str,
        contain: str,
        ttl_s: int,
        timeout_s: float,
        revoke: Callable[[int], None],
    ) -> None:
        """`flags` are whether we drain and whether our clock is off; `needed` the numbers of registrations in use.

        `slots` are the numbers of held slots, `contain` is the form in which runs are contained, `registered` is called
        when claims are possible (again), and `revoke` revokes a lease, blocking.
        """
        self.registrar = registrar
        self._watchdog = watchdog
        self._tasks = tasks
        self._workers = workers
        self._writes = writes
        self._faults = faults
        self._log = log
        self._own_time = own_time
        self._flags = flags
        self._needed = needed
        self._slots = slots
        self._registered = registered
        self._host = host
        self._contain = contain
        self._ttl_s = ttl_s
        self._timeout_s = timeout_s
        self._revoke_lease = revoke
        self.state = NodeState.UNREGISTERED
        self.current: Registered | None = None  # in REGISTERED alone
        self._numbers = count(1)
        self._changed = Alarm()
        self._lost_early: set[int] = set()  # registrations that were lost before we knew that we had them
        self._old_leases: dict[int, int] = {}  # of lost registrations under which something may still run
        self.published_at = -_ANSWER_EVERY_S
        self._will_answer = False
        self._registers = True

    @property
    def registration(self) -> Registration | None:
        """Our registration, if we have one."""
        return None if self.current is None else self.current.registration

    @property
    def leases(self) -> list[int]:
        """All leases that registrations of ours have."""
        current = self.registration
        return [*self._old_leases.values(), *([current.lease] if current is not None else [])]

    def _enter(self, state: NodeState) -> None:
        self.state = checked(_NEXT, self.state, state)

    def new_number(self) -> int:
        """A number for a hold; its place in the page of deadlines is not that of another."""
        used = {number % HOLDS for number in (*self._old_leases, *self._slots())}
        if self.registration is not None:
            used.add(self.registration.number % HOLDS)
        return next(number for number in self._numbers if number % HOLDS not in used)

    # -- the life of the registration ---------------------------------------------------------------------

    async def keep_registered(self) -> None:
        """Register, and again whenever the registration is lost, until the daemon ends."""
        while self.state is not NodeState.RELEASED:
            if self.state is NodeState.UNREGISTERED and self._registers:
                await self._register()
            else:
                await self._changed.wait()

    async def _register(self) -> None:
        """One try; after one that failed, wait for the next."""
        self._enter(NodeState.REGISTERING)
        number = self.new_number()
        draining, off = self._flags()
        try:
            outcome = await self._workers.etcd(
                lambda: self.registrar.register(
                    number,
                    self._own_time(),
                    self._on_lost(number),
                    draining=draining,
                    off=off,
                    timeout_s=self._timeout_s,
                )
            )
        except StoreError as error:
            self._writes.failed("not-registered", error)
            await self._pause(PAUSE_MOST_S)
            return
        self._writes.on_success()
        taken = self._faults("name-taken", level="error")
        if isinstance(outcome, NameTaken):
            taken.failed(
                host=self._host,
                by=outcome.by,
                here=str(self.registrar.origin),
                msg="another conchd has this name, a copy of this machine perhaps: set CONCH_HOST; claiming nothing",
            )
            await self._pause(self._ttl_s / 2)
            return
        taken.over()
        self._on_registered(outcome)

    def _on_lost(self, number: int) -> Callable[[str], None]:
        """For the session's thread."""

        def lost(reason: str) -> None:
            self._watchdog.lost(number, reason)
            call_in(self._tasks.loop, self._lose, number, reason)

        return lost

    async def _pause(self, pause_s: float) -> None:
        """Wait before the next try, or until the namesake's key has gone."""
        if self.state is NodeState.REGISTERING:
            await self._changed.wait(pause_s)
        if self.state is NodeState.REGISTERING:
            self._enter(NodeState.UNREGISTERED)

    def _on_registered(self, registered: Registered) -> None:
        registration = registered.registration
        if self.state is NodeState.RELEASED or registration.number in self._lost_early:
            registered.session.stop()
            self._old_leases[registration.number] = registration.lease
            self.revoke_unneeded()
            if self.state is NodeState.REGISTERING:
                self._enter(NodeState.UNREGISTERED)
            return
        self.current = registered
        self._enter(NodeState.REGISTERED)
        self._faults("not-registered").over()
        lease, rev = f"{registration.lease:x}", registration.rev
        self._log("info", "registered", host=self._host, lease=lease, rev=rev, contain=self._contain)
        self._tasks.later(_PUBLISH_EVERY_S, partial(self._publish_again, registration.number))
        self._registered()

    def _lose(self, number: int, reason: str) -> None:
        current = self.registration
        if self.current is None or current is None or current.number != number:
            self._lost_early.add(number)
            return
        self._log("error", "registration-lost", reason=reason)
        self._old_leases[number] = current.lease
        self.current.session.stop()
        self.current = None
        self._enter(NodeState.UNREGISTERED)
        self.revoke_unneeded()
        self._changed.ring()

    def on_key_gone(self) -> None:
        """The key of our host's name was deleted. If it was a namesake's, we can register now."""
        self._changed.ring()

    def revoke_unneeded(self) -> None:
        """Revoke the leases of lost registrations under which nothing runs any more."""
        needed = self._needed()
        for number in [number for number in self._old_leases if number not in needed]:
            lease = self._old_leases.pop(number)
            self._watchdog.drop_hold(number)
            self.revoke(lease)

    def revoke(self, lease: int) -> None:
        """Revoke a lease soon; one that cannot be revoked expires by itself."""
        self._tasks.spawn(self._revoke(lease))

    async def _revoke(self, lease: int) -> None:
        try:
            await self._workers.etcd(lambda: self._revoke_lease(lease))
        except StoreError:
            pass

    def stop_registering(self) -> None:
        """The daemon ends: a registration that is lost from now on is not made again."""
        self._registers = False

    def release(self) -> Registered | None:
        """Register no more. The registration that was there, for whoever gives its lease back."""
        registered, self.current = self.current, None
        self._enter(NodeState.RELEASED)
        self._changed.ring()
        return registered

    # -- what our registration says -----------------------------------------------------------------------

    def publish(self, *, probe: bool = False) -> bool:
        """Write our time and flags anew, unless etcd takes no writes and this is no probe; whether there is a key."""
        if self.registration is None:
            return False
        self.published_at = clock.now()
        self._tasks.spawn(self._publish(self.registration, probe=probe))
        return True

    def answer(self) -> None:
        """Write our time anew for a host that asks for it: now, or a second after we did last, for all who ask by then.

        Of N hosts that start together, each would be answered by all others, and each answer heard by all of them.
        """
        wait_s = self.published_at + _ANSWER_EVERY_S - clock.now()
        if wait_s <= 0:
            self.publish()
        elif not self._will_answer:
            self._will_answer = True
            self._tasks.later(wait_s, self._answer_late)

    def _answer_late(self) -> None:
        self._will_answer = False
        self.publish()

    async def _publish(self, registration: Registration, *, probe: bool) -> None:
        draining, off = self._flags()
        try:
            await self._writes.send(
                lambda: self.registrar.refresh(
                    registration, self._own_time(), draining=draining, off=off, timeout_s=self._timeout_s
                ),
                probe=probe,
            )
        except Unsent:
            pass  # published when etcd takes writes again
        except StoreError as error:
            self._writes.failed("refresh-failed", error)

    def _publish_again(self, number: int) -> None:
        if self.registration is not None and self.registration.number == number:
            self.publish()
            self._tasks.later(_PUBLISH_EVERY_S, partial(self._publish_again, number))
